//! Preference groups as arrays: which responses a group owns, and what becomes of it. Knows row numbers, no ids.

use crate::error::Error;
use crate::tokens::texts::{Response, Truncated};

/// Preference groups, each of one prompt, one chosen response and any number of rejected ones, and how they are
/// tokenized.
///
/// # Examples
/// One group: a prompt with a chosen and a rejected response.
/// ```
/// use mipo::tokenizer::{Encoder, EngineChoice};
/// use mipo::tokens::{Groups, Interner, Plain, Truncated, Verdict};
///
/// let json = br#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
///     "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
///     "model": {"type": "WordLevel", "unk_token": "?",
///               "vocab": {"?": 0, "hello": 1, "world": 2, "moon": 3, "</s>": 4}}}"#;
/// let encoder = Encoder::from_json(json, EngineChoice::Auto)?;
/// let truncated = Truncated { chosen: &[false], rejected: &[true], end_ids: &[] };
/// let groups = Groups { offsets: &[0, 1], rows: &[0], truncated, add_special_tokens: true };
/// let texts = Plain {
///     prompts: vec!["hello"],
///     chosen: vec![" world"],
///     rejected: vec![" moon"],
///     end: " </s>",
///     truncated,
/// };
/// let mut interner = Interner::default();
/// let rows = interner.push(&encoder, &texts, groups, None)?;
/// assert_eq!(rows.verdicts, [Verdict::Kept as u8]);
/// assert_eq!((rows.prompt, rows.chosen, rows.rejected), (vec![0], vec![0], vec![1]));
/// assert_eq!(interner.take_prompts().ids, [1]);
/// let responses = interner.take_responses();
/// assert_eq!(responses.row(0), [2, 4]);
/// assert_eq!(responses.row(1), [3], "it was cut off and has no end");
/// # Ok::<(), mipo::error::Error>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Groups<'a> {
    /// `[groups + 1]`: group g owns the rejected responses `offsets[g]..offsets[g + 1]`.
    pub offsets: &'a [i64],
    /// `[groups]`: the row of each group in its source, for errors.
    pub rows: &'a [u64],
    /// The responses that were cut off.
    pub truncated: Truncated<'a>,
    /// Whether the tokenizer adds its special tokens.
    pub add_special_tokens: bool,
}

impl Groups<'_> {
    /// Refuses arrays whose lengths do not fit each other and this many prompts, chosen and rejected responses.
    pub(crate) fn check(&self, [prompts, chosen, rejected]: [usize; 3]) -> Result<(), Error> {
        check_offsets("offsets", self.offsets, rejected)?;
        let (groups, responses) = (self.offsets.len() - 1, self.offsets[self.offsets.len() - 1] as usize);
        let lengths = [
            ("prompts", "group", groups, prompts),
            ("chosen", "group", groups, chosen),
            ("rejected", "rejected response", responses, rejected),
            ("rows", "group", groups, self.rows.len()),
            ("truncated chosen", "group", groups, self.truncated.chosen.len()),
            (
                "truncated rejected",
                "rejected response",
                responses,
                self.truncated.rejected.len(),
            ),
        ];
        for (name, what, expected, got) in lengths {
            if got != expected {
                return Err(Error::Length {
                    name: name.into(),
                    what,
                    expected,
                    got,
                });
            }
        }
        Ok(())
    }

    /// The responses of a group, the chosen one first.
    pub(crate) fn responses(&self, group: usize) -> impl Iterator<Item = Response> {
        let rejected = self.offsets[group] as usize..self.offsets[group + 1] as usize;
        std::iter::once(Response::Chosen).chain(rejected.map(Response::Rejected))
    }
}

/// Whether a group is kept, and why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Verdict {
    /// It is kept.
    Kept = 0,
    /// A response has no token of its own.
    Empty = 1,
    /// The prompt alone is as long as the limit.
    LongPrompt = 2,
    /// Prompt and response are longer than the limit.
    Long = 3,
}

/// Groups as row numbers of the tables that an [`Interner`](crate::tokens::Interner) fills.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct GroupRows {
    /// `[groups]`: the [`Verdict`] on each.
    pub verdicts: Vec<u8>,
    /// `[kept]`: row of the prompt.
    pub prompt: Vec<u64>,
    /// `[kept]`: row of the chosen response.
    pub chosen: Vec<u64>,
    /// `[kept + 1]`: kept group g owns `rejected[offsets[g]..offsets[g + 1]]`.
    pub offsets: Vec<i64>,
    /// Rows of the rejected responses.
    pub rejected: Vec<u64>,
    /// How many kept groups have responses that begin before their prompt, tokenized alone, ends.
    pub merged: u64,
}

/// Refuses offsets that fall or leave `0..=limit`.
fn check_offsets(name: &'static str, offsets: &[i64], limit: usize) -> Result<(), Error> {
    let mut least = 0;
    for (place, &got) in offsets.iter().enumerate() {
        if got < least || got > limit as i64 {
            return Err(Error::Offsets {
                name,
                limit,
                got,
                place,
            });
        }
        least = got;
    }
    if offsets.is_empty() {
        Err(Error::NoOffsets { name })
    } else {
        Ok(())
    }
}
