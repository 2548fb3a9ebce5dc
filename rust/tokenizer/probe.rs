//! The probe: ids of an engine compared with those of `tokenizers`, on texts in which engines are likely to differ.

use rayon::prelude::*;

use crate::tokenizer::engine::{Engine, HuggingFace};
use crate::tokenizer::seams::Seams;

/// Compares an engine with the reference; the number of probe texts, or how the first one differs.
pub(crate) fn compare(engine: &dyn Engine, reference: &HuggingFace) -> Result<usize, String> {
    let texts = probe_texts(reference);
    let first = texts.par_iter().find_map_first(|text| {
        [false, true]
            .into_iter()
            .find_map(|special| difference(engine, reference, text, special))
    });
    first.map_or(Ok(texts.len()), Err)
}

/// Whether the probe texts, cut at their seams, have part by part the ids of the whole, special tokens at the start
/// included.
pub(crate) fn keeps(seams: Seams, reference: &HuggingFace) -> bool {
    let holds = |text: &str, seam: usize, special: bool| {
        let (mut parts, mut whole) = (Vec::new(), Vec::new());
        let encoded = [(&text[..seam], special), (&text[seam..], false)]
            .into_iter()
            .try_for_each(|(part, special)| reference.encode(part, special, &mut parts));
        encoded.is_ok() && reference.encode(text, special, &mut whole).is_ok() && parts == whole
    };
    probe_texts(reference)
        .par_iter()
        .filter(|text| text.len() <= SEAMED)
        .all(|text| {
            let seams = std::iter::successors(seams.last(text), |&seam| seams.last(&text[..seam]));
            seams
                .take(8)
                .all(|seam| [false, true].iter().all(|&special| holds(text, seam, special)))
        })
}

/// How the ids of an engine differ from those of the reference, if they do.
fn difference(engine: &dyn Engine, reference: &HuggingFace, text: &str, special: bool) -> Option<String> {
    let encode = |engine: &dyn Engine| {
        let mut ids = Vec::new();
        engine.encode(text, special, &mut ids).map(|()| ids)
    };
    let (got, expected) = (encode(engine), encode(reference));
    (got != expected).then(|| describe(text, got, expected))
}

/// Compares ids with those of the reference; how they differ, if they do.
pub(crate) fn check(reference: &HuggingFace, text: &str, special: bool, ids: &[u32]) -> Result<(), String> {
    let mut expected = Vec::with_capacity(ids.len());
    let expected = reference.encode(text, special, &mut expected).map(|()| expected);
    if expected.as_deref() == Ok(ids) {
        Ok(())
    } else {
        Err(describe(text, Ok(ids.to_vec()), expected))
    }
}

fn describe(text: &str, got: Result<Vec<u32>, String>, expected: Result<Vec<u32>, String>) -> String {
    // A long text differs somewhere in the middle: the ids shown are those from there on.
    let from = match (&got, &expected) {
        (Ok(got), Ok(expected)) => got.iter().zip(expected).take_while(|(a, b)| a == b).count(),
        _ => 0,
    };
    let show = |ids: Result<Vec<u32>, String>| match ids {
        Ok(ids) => format!("{:?}", &ids[from.min(ids.len())..(from + 8).min(ids.len())]),
        Err(reason) => reason,
    };
    let beginning: String = text.chars().take(60).collect();
    format!(
        "fastokens and tokenizers differ for {beginning:?}… ({} bytes) from token {from} on: {} and {}",
        text.len(),
        show(got),
        show(expected)
    )
}

/// Bytes of the longest probe text that is cut at its seams: each is encoded up to 32 times.
const SEAMED: usize = 1 << 10;

/// Pieces that pre-tokenizers, normalizers and merges treat in their own ways.
const PIECES: &[&str] = &[
    "I'll can't we've you're he'd it's I'm 'S 'T 'LL 'Re o'clock ''s '' ' s it\u{2019}s it'\u{17f} 'LĿ",
    "1 12 123 1234 12345 1.5 1,234 3rd x2 2x ٣٤٥ ½ Ⅷ ²³ 十二 1_000 0x1F 1e-9 ₿5",
    "!!! ?! ... -- --- ,.;: (a) [b] {c} <d> \"e\" `f` #g @h $i %j ^k &l *m /n \\o |p ~q =r +s _t",
    "a/b //c /\n/ x!\n/\n/y !\r\n\r\n! end.\n/usr b\n/b's",
    "a b  c   d    e     f\tg\t\th \ti\t j\u{b}k\u{c}l",
    "a\nb\n\nc\n\n\nd\r\ne\r\rf\n\rg \n h\n  \n  i\t\n\tj   \n\n   k",
    " leading",
    "  leading",
    "trailing ",
    "trailing  ",
    "\n",
    "\r\n",
    " ",
    "  ",
    "\t",
    "",
    "\n ",
    " \n",
    "camelCase HTTPServer iPhone McDonald ABCdefGHI ÀÉî ßẞ ǅ ŉ İıI ﬁ Ω Å K",
    "日本語のテキストと漢字、かな・カナ。「引用」　全角　ＡＢＣ１２３",
    "中文，没有空格的句子。한국어 문장입니다 ไทยไม่มีช่องว่าง العربية עברית हिन्दी தமிழ்",
    "👍 👍🏽 👨‍👩‍👧‍👦 🏳️‍🌈 🇯🇵🇩🇪 ☺️ 1️⃣ ❤\u{fe0f}\u{200d}🔥",
    "e\u{301} \u{e9} a\u{323}\u{302} \u{1ea7} o\u{302}\u{323} \u{1100}\u{1161}\u{11a8} \u{ac01} \u{212b} \u{2126} \u{301}x",
    "\u{6e0}\u{7fd} \u{308}\u{7fd} \u{344} \u{958} \u{fb2a} \u{f900} \u{2adc} \u{1d15e}",
    "a\u{a0}b\u{2003}c\u{2009}d\u{200b}e\u{202f}f\u{205f}g\u{3000}h\u{1680}i\u{180e}j\u{feff}k\u{85}l\u{2028}m\u{2029}n",
    "\u{0}\u{1}\u{7}\u{8}\u{1b}[0m\u{7f}\u{80}\u{9f}\u{ad}\u{200e}\u{202e}\u{2060}\u{fffd}\u{fffd}\u{ffff}\u{10ffff}\u{e000}",
    "\u{378}\u{1c89}\u{1c8a}\u{a7cb}\u{a7da}\u{10d40}\u{10ec2}\u{16d40}\u{1e5d0}\u{1cc00}\u{1fae9}\u{2ebf0}\u{1e4d0}\u{11f02}",
    "def f(x):\n    return [y ** 2 for y in x if y != 0]  # done\n\n\nclass A:\n\tpass\n",
    "https://example.org/a?b=c&d=%20e#f user@example.org C:\\dir\\file.txt",
    "▁ ▁a a▁b ▁▁ Ġ Ġa Ċ ĉ â <0x0A> <0xE2> <unk> <s> </s> ## ##a </w> ï¿½",
    "<|endoftext|> <|im_start|>user\nhi<|im_end|>\n<|eot_id|> [INST] <<SYS>> <|",
    "<",
    "<|",
    "|>",
    "</",
    "[",
];

/// Texts in which engines that differ anywhere are likely to differ.
fn probe_texts(reference: &HuggingFace) -> Vec<String> {
    let mut texts: Vec<String> = PIECES.iter().map(|&piece| piece.to_owned()).collect();
    texts.push((0..128u8).map(char::from).collect());
    texts.push((0..128u8).flat_map(|byte| [char::from(byte), ' ']).collect());
    texts.push(
        (0..128u8)
            .flat_map(|byte| ['a', char::from(byte), '1', char::from(byte)])
            .collect(),
    );
    texts.push((0x80..0x600u32).filter_map(char::from_u32).collect());
    for (one, times) in [
        ("a", 10_000),
        (" ", 10_000),
        ("\n", 3_000),
        ("ab", 2_000),
        ("あ", 1_000),
        ("!", 2_000),
        ("1", 2_000),
    ] {
        texts.push(one.repeat(times));
        texts.push(format!("x{}y", one.repeat(times / 7)));
    }
    // Neighbours matter: each piece before each of a few others, which the count of pieces is no multiple of.
    for (place, first) in PIECES.iter().enumerate() {
        for step in [1, 5, 11] {
            texts.push([first, PIECES[(place + step) % PIECES.len()]].concat());
        }
    }
    texts.extend(around(&reference.added()));
    texts.extend(glued(reference));
    // Above 256 KiB fastokens looks for added tokens, and above 64 scans, in parts.
    texts.push(PIECES.concat().repeat(40));
    texts
}

/// Added tokens inside of words, twice, with spaces around and cut off.
fn around(added: &[String]) -> Vec<String> {
    // Some tokenizers reserve a thousand of a kind: 64 of them are looked at closely, and all at least once.
    let step = added.len().div_ceil(64).max(1);
    let close = added.iter().step_by(step).map(|token| {
        let ends: Vec<usize> = token.char_indices().map(|(place, _)| place).collect();
        let (second, last) = (ends.get(1).copied().unwrap_or(0), ends.last().copied().unwrap_or(0));
        let (start, end, upper) = (&token[..last], &token[second..], token.to_uppercase());
        format!(
            "a{token}b {token} {token}{token}\n{token}\n  {token}  {start} {end} {start}{token}{end} {upper}é{token}"
        )
    });
    close
        .chain([added.concat(), added.join(" "), added.join("a")])
        .collect()
}

/// Texts of tokens from all over the vocabulary, side by side.
fn glued(reference: &HuggingFace) -> Vec<String> {
    let (texts, tokens) = (128, 16);
    let vocabulary = reference.vocabulary().max(1);
    // A multiplier without a common divisor with any likely size walks through the whole vocabulary.
    let id = |place: u32| (u64::from(place) * 2_654_435_761 % u64::from(vocabulary)) as u32;
    let ids = |text: u32| (text * tokens..(text + 1) * tokens).map(id).collect::<Vec<_>>();
    (0..texts).filter_map(|text| reference.decode(&ids(text))).collect()
}
