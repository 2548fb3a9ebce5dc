//! Overlap: texts that occur in a held-out set, as equal texts or by runs of words in common.

use rayon::prelude::*;
use unicode_segmentation::UnicodeSegmentation;

use crate::error::Error;
use crate::interrupt;
use crate::memory;
use crate::random::{key, mix};

/// Stands in the place of a held-out row where there is none.
pub const ABSENT: u64 = u64::MAX;

/// The weight of a word. A character of a script without spaces between words weighs 1: about two of them make a word.
const WORD: u32 = 2;

/// Bytes that a byte of a held-out text needs: a word has five letters, and takes 72 bytes while it is gathered.
const HELD_OUT_BYTES: usize = 16;

/// What each text has in common with a held-out text.
#[derive(Debug, Clone, PartialEq)]
pub struct Overlaps {
    /// `[texts]`: the row of the first held-out text that is equal, else of the first with the largest share;
    /// [`ABSENT`] where the text does not occur.
    pub held_out: Vec<u64>,
    /// `[texts]`: the share of that held-out text's words that lie in runs of words which the text has too.
    pub shares: Vec<f64>,
    /// `[texts]`: whether the two texts are equal.
    pub equal: Vec<bool>,
}

/// What each text has in common with a held-out text of the same group. `texts` and `held_out` are each (texts,
/// groups).
///
/// A text occurs in the held-out set where it equals one of its texts, or where runs of `words` successive words that
/// both have cover at least `share` of the held-out text's words. A held-out text with fewer words than a run is
/// covered only by a text with the same words and no others. Words are those of Unicode (UAX #29) and signs such as
/// `+`, not punctuation. A character of Han, kana, Thai, Lao, Khmer or Burmese is half a word.
///
/// Words are compared by 64 bits of a hash. Memory: 24 bytes for each held-out word.
///
/// # Errors
/// `words` = 0; `share` outside (0, 1]; groups that are not one a text; 2^32 - 1 held-out texts or more.
///
/// # Examples
/// ```
/// use mipo::prompts::{ABSENT, overlaps};
///
/// let texts = ["Please name the longest river in France.", "Add 2 and 3."];
/// let held_out = ["Name the longest river in Spain.", "name the longest river in France"];
/// let common = overlaps((&texts, &[0, 0]), (&held_out, &[0, 0]), 4, 0.5)?;
/// assert_eq!(common.held_out, [1, ABSENT]);
/// assert_eq!(common.shares, [1.0, 0.0]);
/// assert_eq!(common.equal, [false, false]);
/// # Ok::<(), mipo::error::Error>(())
/// ```
pub fn overlaps(
    texts: (&[&str], &[u64]),
    held_out: (&[&str], &[u64]),
    words: u32,
    share: f64,
) -> Result<Overlaps, Error> {
    if words == 0 {
        return Err(Error::EmptyRun {
            name: "words",
            what: "words",
        });
    }
    if !(share > 0.0 && share <= 1.0) {
        return Err(Error::Share {
            name: "share",
            got: share.to_string(),
        });
    }
    for (name, (texts, groups)) in [("groups", texts), ("held_out_groups", held_out)] {
        if texts.len() != groups.len() {
            let (expected, got) = (texts.len(), groups.len());
            return Err(Error::Length {
                name: name.into(),
                what: "text",
                expected,
                got,
            });
        }
    }
    memory::expect(memory::bytes(held_out.0, 8) + 4 * texts.0.len(), HELD_OUT_BYTES)?;
    let index = Index::new(held_out.0, held_out.1, words)?;
    let compare = |(text, &group): (&&str, &u64)| index.find(text, group, share);
    let matches: Vec<Match> = texts.0.par_iter().zip(texts.1).map(compare).collect();
    Ok(Overlaps {
        held_out: matches.par_iter().map(|of| of.held_out).collect(),
        shares: matches.par_iter().map(|of| of.share).collect(),
        equal: matches.par_iter().map(|of| of.equal).collect(),
    })
}

/// The held-out row that a text occurs as, or [`ABSENT`]; their share; whether they are equal.
#[derive(Clone, Copy)]
struct Match {
    held_out: u64,
    share: f64,
    equal: bool,
}

/// A word's hash and weight.
#[derive(Clone, Copy)]
struct Word {
    hash: u64,
    weight: u32,
}

/// The words of a text, in order.
fn words_of(text: &str) -> Vec<Word> {
    interrupt::check();
    let mut words = Vec::new();
    let mut segments = text.split_word_bounds().peekable();
    while let Some(segment) = segments.next() {
        if segment.starts_with(is_unspaced) {
            let letters = segment.chars().filter(|letter| letter.is_alphanumeric());
            words.extend(letters.map(|letter| Word {
                hash: key(&[1, letter.into()]),
                weight: 1,
            }));
        } else if segment.contains(char::is_alphanumeric) || is_sign(segment, segments.peek().copied()) {
            let letters = segment.chars().map(|letter| if letter == '’' { '\'' } else { letter });
            let hash = letters.fold(0, |state: u64, letter| mix(state.wrapping_add(1) ^ u64::from(letter)));
            words.push(Word { hash, weight: WORD });
        }
    }
    words
}

/// Whether a letter's script puts no spaces between words.
fn is_unspaced(letter: char) -> bool {
    matches!(letter,
        '\u{e00}'..='\u{eff}' | '\u{1000}'..='\u{109f}' | '\u{1780}'..='\u{17ff}' | '\u{3040}'..='\u{30ff}'
        | '\u{31f0}'..='\u{31ff}' | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{f900}'..='\u{faff}'
        | '\u{20000}'..='\u{3ffff}')
}

/// Whether a segment without letters has a meaning: 5 + 3 is not 5 * 3, and -5 is not 5.
fn is_sign(segment: &str, next: Option<&str>) -> bool {
    let has_meaning = |sign: char| match sign {
        '-' => next.is_some_and(|next| next.starts_with(char::is_numeric)),
        '+' | '*' | '/' | '=' | '<' | '>' | '^' | '%' | '&' | '|' | '~' | '$' | '#' | '@' | '\\' | '×' | '÷' | '±' => {
            true
        }
        // Latin, Arabic and Indic punctuation, general punctuation, that of Chinese and Japanese.
        '\0'..='\u{bf}' | '\u{600}'..='\u{61f}' | '\u{6d4}' | '\u{964}'..='\u{965}' | '\u{2000}'..='\u{206f}' => false,
        '\u{2e00}'..='\u{2e7f}' | '\u{3000}'..='\u{303f}' | '\u{fe00}'..='\u{fe0f}' => false,
        _ => !sign.is_whitespace(),
    };
    segment.chars().any(has_meaning)
}

/// The windows of a text, (first word, word after the last, hash): the shortest run from each word on that weighs at
/// least `least`. A text that weighs less has one window of all its words, with a hash that no part of a longer text
/// has.
fn windows(words: &[Word], least: u32, group: u64) -> impl Iterator<Item = (usize, usize, u64)> + '_ {
    let (mut end, mut weight, total) = (0, 0, words.iter().map(|word| word.weight).sum::<u32>());
    let short = !words.is_empty() && total < least;
    let hash = move |words: &[Word]| {
        words
            .iter()
            .fold(mix(group), |state, word| mix(state.rotate_left(1) ^ word.hash))
    };
    let whole = short.then(|| (0, words.len(), key(&[0, hash(words)])));
    let runs = (0..words.len()).map_while(move |start| {
        while weight < least && end < words.len() {
            weight += words[end].weight;
            end += 1;
        }
        let window = (weight >= least).then(|| (start, end, hash(&words[start..end])));
        weight = weight.saturating_sub(words[start].weight);
        window
    });
    runs.chain(whole)
}

/// The held-out texts' windows, by hash.
struct Index<'a> {
    least: u32,
    /// Held-out rows in the order of (group, text).
    rows: Vec<(u64, &'a str, u32)>,
    /// (hash of the window, its row, its first word, the word after its last), sorted.
    windows: Vec<(u64, u32, u32, u32)>,
    /// A bit for each hash that occurs, so that the many that do not are ruled out at once.
    seen: Vec<u64>,
    /// Weights of each held-out text's words before each place, one text after another.
    weights: Vec<Vec<u32>>,
}

impl<'a> Index<'a> {
    fn new(texts: &[&'a str], groups: &[u64], words: u32) -> Result<Self, Error> {
        if texts.len() >= u32::MAX as usize {
            return Err(Error::TooLarge { got: texts.len() });
        }
        let least = words.saturating_mul(WORD);
        let mut rows: Vec<_> = groups
            .iter()
            .zip(texts)
            .zip(0..)
            .map(|((&group, &text), row)| (group, text, row))
            .collect();
        rows.par_sort_unstable();
        let split: Vec<Vec<Word>> = texts.par_iter().map(|text| words_of(text)).collect();
        let of_row = |(row, words): (usize, &'_ Vec<Word>)| {
            windows(words, least, groups[row])
                .map(|(start, end, hash)| (hash, row as u32, start as u32, end as u32))
                .collect::<Vec<_>>()
        };
        let mut windows: Vec<_> = split.par_iter().enumerate().flat_map_iter(of_row).collect();
        windows.par_sort_unstable();
        let mut seen = vec![0; (windows.len() / 4).next_power_of_two()];
        for window in &windows {
            let (place, bit) = spot(window.0, seen.len());
            seen[place] |= bit;
        }
        let sums = |words: &Vec<Word>| {
            let before = words.iter().scan(0, |sum, word| {
                *sum += word.weight;
                Some(*sum)
            });
            [0].into_iter().chain(before).collect()
        };
        let weights = split.par_iter().map(sums).collect();
        Ok(Self {
            least,
            rows,
            windows,
            seen,
            weights,
        })
    }

    fn find(&self, text: &str, group: u64, share: f64) -> Match {
        let place = self
            .rows
            .partition_point(|&(other, held_out, _)| (other, held_out) < (group, text));
        if let Some(&(_, _, row)) = self.rows.get(place).filter(|row| (row.0, row.1) == (group, text)) {
            return Match {
                held_out: row.into(),
                share: 1.0,
                equal: true,
            };
        }
        let mut shared = Vec::new();
        for (_, _, hash) in windows(&words_of(text), self.least, group) {
            let (place, bit) = spot(hash, self.seen.len());
            if self.seen[place] & bit != 0 {
                let first = self.windows.partition_point(|window| window.0 < hash);
                let equal = self.windows[first..].iter().take_while(|window| window.0 == hash);
                shared.extend(equal.map(|&(_, row, start, end)| (row, start, end)));
            }
        }
        shared.sort_unstable();
        let mut best = Match {
            held_out: ABSENT,
            share: 0.0,
            equal: false,
        };
        for of_row in shared.chunk_by(|one, next| one.0 == next.0) {
            let covered = self.share(of_row);
            if covered >= share && covered > best.share {
                best.held_out = of_row[0].0.into();
                best.share = covered;
            }
        }
        best
    }

    /// The share of a held-out text that windows of it, in order, cover together.
    fn share(&self, windows: &[(u32, u32, u32)]) -> f64 {
        let weights = &self.weights[windows[0].0 as usize];
        let (mut covered, mut until) = (0, 0);
        for &(_, start, end) in windows {
            if end > until {
                covered += weights[end as usize] - weights[start.max(until) as usize];
                until = end;
            }
        }
        f64::from(covered) / f64::from(weights[weights.len() - 1])
    }
}

/// The word and the bit of a hash in a table of a power of two words.
fn spot(hash: u64, words: usize) -> (usize, u64) {
    ((hash >> 6) as usize & (words - 1), 1 << (hash & 63))
}
