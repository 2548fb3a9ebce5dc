//! Seams: where they are, which tokenizers have them, and that groups cut there have the ids of groups left whole.
#![allow(clippy::unwrap_used)]

use mipo::tokenizer::encoder::{Encoder, Table};
use mipo::tokenizer::engine::Choice;
use mipo::tokenizer::seams::Seams;
use mipo::tokens::groups::{Groups, Interner, Made};
use mipo::tokens::texts::{Plain, Unfinished};
use serde_json::{Value, json};

/// Bytes, the merges of " the" and "er", and two added tokens.
fn tokenizer() -> Value {
    let alphabet = ('!'..='~').chain('¡'..='¬').chain('®'..='ÿ').chain('Ā'..='Ń');
    let mut vocab: serde_json::Map<String, Value> =
        (0..).zip(alphabet).map(|(id, c)| (c.to_string(), json!(id))).collect();
    for (id, word) in (256..).zip(["Ġt", "Ġth", "Ġthe", "er"]) {
        vocab.insert(word.into(), json!(id));
    }
    let added = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [added(260, "<s>"), added(261, "<e>")],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null, "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab,
                  "merges": [["Ġ", "t"], ["Ġt", "h"], ["Ġth", "e"], ["e", "r"]]}
    })
}

/// A post-processor that puts `<s>` before a text, and `<e>` after it if asked.
fn around(end: bool) -> Value {
    let special = |id: u32, token: &str| json!({"id": token, "ids": [id], "tokens": [token]});
    let mut single = vec![
        json!({"SpecialToken": {"id": "<s>", "type_id": 0}}),
        json!({"Sequence": {"id": "A", "type_id": 0}}),
    ];
    if end {
        single.push(json!({"SpecialToken": {"id": "<e>", "type_id": 0}}));
    }
    json!({"type": "TemplateProcessing", "single": single,
           "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
           "special_tokens": {"<s>": special(260, "<s>"), "<e>": special(261, "<e>")}})
}

fn changed(pointer: &str, value: Value) -> Value {
    let mut json = tokenizer();
    *json.pointer_mut(pointer).unwrap() = value;
    json
}

fn encoder(json: &Value, choice: Choice) -> Encoder {
    Encoder::from_json(json.to_string().as_bytes(), choice).unwrap()
}

#[test]
fn the_last_single_space_between_ascii_letters_is_the_seam() {
    let seams = Seams::of(&tokenizer());
    for (text, expected) in [
        ("a b", Some(1)),
        ("a b c. d  e é f g", Some(16)),
        ("a b c. d  e é x", Some(3)),
        ("日本 a b日本", Some(8)),
        ("a b ", Some(1)),
        (" a", None),
        ("a  b", None),
        ("a\nb", None),
        ("1 2", None),
        ("a é", None),
        ("a ", None),
        ("", None),
    ] {
        assert_eq!(seams.last(text), expected, "{text:?}");
    }
    assert_eq!(Seams::default().last("a b"), None);
}

#[test]
fn only_tokenizers_that_are_known_to_keep_them_have_seams() {
    let byte_level = &tokenizer()["pre_tokenizer"];
    let mut prefix = byte_level.clone();
    prefix["add_prefix_space"] = json!(true);
    let mut whole = byte_level.clone();
    whole["use_regex"] = json!(false);
    let digits = json!({"type": "Digits", "individual_digits": true});
    let sequence = |steps: &[&Value]| json!({"type": "Sequence", "pretokenizers": steps});
    for (pointer, value, expected) in [
        ("/normalizer", Value::Null, true),
        ("/pre_tokenizer", sequence(&[&digits, byte_level]), true),
        ("/normalizer", json!({"type": "Prepend", "prepend": "▁"}), false),
        ("/normalizer", json!({"type": "Sequence", "normalizers": []}), false),
        ("/pre_tokenizer", Value::Null, false),
        ("/pre_tokenizer", prefix, false),
        ("/pre_tokenizer", whole, false),
        ("/pre_tokenizer", sequence(&[byte_level, &digits]), false),
        ("/pre_tokenizer", json!({"type": "Metaspace"}), false),
        ("/added_tokens/0/content", json!("<a b>"), false),
        ("/added_tokens/0/content", json!("User "), false),
        ("/added_tokens/0/content", json!(" User"), true),
        ("/added_tokens/0/content", json!("a 1"), true),
    ] {
        let seams = Seams::of(&changed(pointer, value.clone()));
        assert_eq!(seams.last("a b").is_some(), expected, "{pointer} {value}");
    }
}

#[test]
fn an_encoder_has_seams_where_the_probe_found_that_they_keep_the_ids() {
    let seam = |json: &Value, choice| encoder(json, choice).seam("the others");
    assert_eq!(seam(&tokenizer(), Choice::Auto), Some(3));
    assert_eq!(seam(&changed("/post_processor", around(false)), Choice::Auto), Some(3));
    assert_eq!(seam(&changed("/post_processor", around(true)), Choice::Auto), None);
    assert_eq!(seam(&tokenizer(), Choice::Tokenizers), None);
}

/// Prompts, chosen and rejected responses of many groups, whose borders lie in, on and far from a seam.
fn texts() -> [Vec<String>; 3] {
    let heads = [
        "the other",
        "a  the",
        "the\n\nother the",
        "",
        "日本 the 日本",
        "<s>the er<e> the",
    ];
    let tails = [
        "",
        " ",
        " t",
        " the",
        "\u{301}",
        "er",
        "h e",
        "\u{301} the",
        "<e>",
        " <",
        "1 2",
        "\n",
    ];
    let mut made = [Vec::new(), Vec::new(), Vec::new()];
    for head in heads {
        for border in tails {
            for tail in tails {
                made[0].push(format!("{head}{border}"));
                made[1].push(format!("{tail}the"));
                made[2].push(tail.to_owned());
            }
        }
    }
    made
}

fn push(encoder: &Encoder) -> (Made, Table, Table) {
    let made = texts();
    let borrowed = made
        .each_ref()
        .map(|side| side.iter().map(String::as_str).collect::<Vec<_>>());
    let count = borrowed[0].len();
    let (flags, offsets, rows): (_, Vec<i64>, Vec<u64>) = (
        vec![false; count],
        (0..=count as i64).collect(),
        (0..count as u64).collect(),
    );
    let unfinished = Unfinished {
        chosen: &flags,
        rejected: &flags,
        end_ids: &[],
    };
    let [prompts, chosen, rejected] = borrowed;
    let texts = Plain {
        prompts,
        chosen,
        rejected,
        end: "<e>",
        unfinished,
    };
    let groups = Groups {
        offsets: &offsets,
        rows: &rows,
        unfinished,
        special: true,
    };
    let mut interner = Interner::default();
    let made = interner.push(encoder, &texts, groups, Some(14)).unwrap();
    (made, interner.take_prompts(), interner.take_responses())
}

#[test]
fn groups_that_are_cut_have_the_ids_of_groups_left_whole() {
    for post_processor in [Value::Null, around(false), around(true)] {
        let json = changed("/post_processor", post_processor);
        let (cut, whole) = (
            push(&encoder(&json, Choice::Fastokens)),
            push(&encoder(&json, Choice::Tokenizers)),
        );
        assert_eq!(cut, whole);
        assert!(
            cut.0.merged > 0 && cut.0.verdicts.contains(&3),
            "every branch was taken"
        );
    }
}
