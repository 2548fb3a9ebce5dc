//! Seams: where a text may be cut so that the ids of its parts, one after another, are those of the whole. Knows a
//! `tokenizer.json` and bytes, and no engine.

use serde_json::Value;

use crate::tokenizer::config::{is_scanned, kind};

/// Where a tokenizer's texts may be cut: before a single space between two ASCII letters, or nowhere at all.
///
/// No pattern of byte-level tokenizers has a match across such a place, since they take a word with the space before it
/// and never with the one after; no normal form joins a letter or mark with a space; and merges stay within a match.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seams {
    any: bool,
}

impl Seams {
    /// Bytes behind a seam that make it one: the space and a letter.
    pub const AFTER: usize = 2;

    /// The seams of a tokenizer: none, where one of its steps is not known to keep them.
    #[must_use]
    pub fn of(json: &Value) -> Self {
        let normalizer = &json["normalizer"];
        let added = json["added_tokens"].as_array().map_or(&[][..], Vec::as_slice);
        Self {
            any: (normalizer.is_null() || kind(normalizer) == "NFC")
                && splits_words(&json["pre_tokenizer"])
                && added.iter().all(|token| {
                    // A token that ends in letter and space has a seam in it wherever a letter follows.
                    let content = [token["content"].as_str().unwrap_or_default(), "a"].concat();
                    !content.as_bytes().windows(1 + Self::AFTER).any(is_seam)
                }),
        }
    }

    /// The last byte at which a text may be cut. So may any other text that is the same up to [`Self::AFTER`] bytes
    /// behind it.
    #[must_use]
    pub fn last(self, text: &str) -> Option<usize> {
        let before = text.as_bytes().windows(1 + Self::AFTER).rposition(is_seam);
        before.filter(|_| self.any).map(|place| place + 1)
    }
}

fn is_seam(bytes: &[u8]) -> bool {
    matches!(bytes, [before, b' ', after] if before.is_ascii_alphabetic() && after.is_ascii_alphabetic())
}

/// Whether a pre-tokenizer scans its text with the pattern of GPT-2, or with one of its successors.
fn splits_words(step: &Value) -> bool {
    let is_gpt2 =
        |step: &Value| kind(step) == "ByteLevel" && step["use_regex"] != false && step["add_prefix_space"] == false;
    let digits_first = || match step["pretokenizers"].as_array().map(Vec::as_slice) {
        Some([digits, last]) => kind(digits) == "Digits" && is_gpt2(last),
        _ => false,
    };
    is_scanned(step) || is_gpt2(step) || (kind(step) == "Sequence" && digits_first())
}
