//! Token ids of texts, and the border between prompt and response. Knows ids and row numbers, no strings after
//! encoding, no template and no Python.

use std::collections::HashMap;

use rayon::prelude::*;
use tokenizers::Tokenizer;

use crate::error::Error;

/// Texts that a thread encodes in one go.
const CHUNK: usize = 64;

/// Ids of one text per row, in Arrow's list layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// `[rows + 1]`: row i is `ids[offsets[i]..offsets[i + 1]]`.
    pub offsets: Vec<i64>,
    /// The ids of all rows, one after another.
    pub ids: Vec<u32>,
}

impl Table {
    /// A table with no rows.
    #[must_use]
    pub fn new() -> Self {
        Self {
            offsets: vec![0],
            ids: Vec::new(),
        }
    }

    /// The same table, borrowed.
    #[must_use]
    pub fn view(&self) -> View<'_> {
        View {
            offsets: &self.offsets,
            ids: &self.ids,
        }
    }

    fn push(&mut self, ids: &[u32]) {
        self.ids.extend_from_slice(ids);
        self.offsets.push(self.ids.len() as i64);
    }

    /// Appends `ids`, cut into rows of the given lengths.
    fn extend(&mut self, lengths: &[usize], ids: &[u32]) {
        let mut end = self.ids.len();
        self.offsets.extend(lengths.iter().map(|length| {
            end += length;
            end as i64
        }));
        self.ids.extend_from_slice(ids);
    }
}

impl Default for Table {
    fn default() -> Self {
        Self::new()
    }
}

/// A borrowed [`Table`], which may be a part of a larger one: offsets need not start at 0.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    offsets: &'a [i64],
    ids: &'a [u32],
}

impl<'a> View<'a> {
    /// Checks the offsets; `name` is what errors call them.
    ///
    /// # Errors
    /// No offsets; offsets that fall, or point outside `ids`.
    pub fn new(name: &'static str, offsets: &'a [i64], ids: &'a [u32]) -> Result<Self, Error> {
        check_offsets(name, offsets, ids.len())?;
        Ok(Self { offsets, ids })
    }

    /// Rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Whether there are no rows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The ids of one row.
    #[must_use]
    pub fn row(&self, row: usize) -> &'a [u32] {
        &self.ids[self.offsets[row] as usize..self.offsets[row + 1] as usize]
    }
}

/// Offsets never fall and stay within `0..=limit`.
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

/// A tokenizer that neither cuts nor pads, whatever its `tokenizer.json` says.
#[derive(Debug)]
pub struct Encoder(Tokenizer);

impl Encoder {
    /// The tokenizer of a `tokenizer.json`.
    ///
    /// # Errors
    /// Bytes that are no `tokenizer.json`.
    pub fn from_json(json: &[u8]) -> Result<Self, Error> {
        let refuse = |reason: tokenizers::Error| Error::Tokenizer {
            got: json.len(),
            reason: reason.to_string(),
        };
        let mut tokenizer = Tokenizer::from_bytes(json).map_err(refuse)?;
        tokenizer.with_truncation(None).map_err(refuse)?.with_padding(None);
        Ok(Self(tokenizer))
    }

    /// Ids of each text, in order, on all threads; `add_special_tokens` as in `tokenizers`.
    ///
    /// # Errors
    /// The first text that the tokenizer refuses, with its row.
    pub fn encode(&self, texts: &[&str], add_special_tokens: bool) -> Result<Table, Error> {
        let chunks: Vec<_> = texts
            .par_chunks(CHUNK)
            .map(|texts| self.encode_chunk(texts, add_special_tokens))
            .collect();
        let mut table = Table::new();
        table.offsets.reserve_exact(texts.len());
        table
            .ids
            .reserve_exact(chunks.iter().flatten().map(|(_, ids)| ids.len()).sum());
        for (chunk, encoded) in chunks.into_iter().enumerate() {
            let (lengths, ids) = encoded.map_err(|(row, reason)| Error::Text {
                row: chunk * CHUNK + row,
                reason,
            })?;
            table.extend(&lengths, &ids);
        }
        Ok(table)
    }

    /// Lengths and ids, or the row within the chunk that is refused and why.
    #[allow(clippy::type_complexity)]
    fn encode_chunk(&self, texts: &[&str], special: bool) -> Result<(Vec<usize>, Vec<u32>), (usize, String)> {
        let (mut lengths, mut ids) = (Vec::with_capacity(texts.len()), Vec::new());
        for (row, &text) in texts.iter().enumerate() {
            // The fast variant leaves out the offsets into the text, which nobody here asks for.
            let encoding = self
                .0
                .encode_fast(text, special)
                .map_err(|reason| (row, reason.to_string()))?;
            lengths.push(encoding.len());
            ids.extend_from_slice(encoding.get_ids());
        }
        Ok((lengths, ids))
    }
}

/// Preference groups as row numbers: a prompt, its chosen response and any number of rejected ones.
#[derive(Debug, Clone, Copy)]
pub struct Groups<'a> {
    /// `[groups]`: rows of the prompt table.
    pub prompt: &'a [u64],
    /// `[groups]`: rows of the joint table.
    pub chosen: &'a [u64],
    /// `[groups + 1]`: group g owns `rejected[rejected_offsets[g]..rejected_offsets[g + 1]]`.
    pub rejected_offsets: &'a [i64],
    /// Rows of the joint table.
    pub rejected: &'a [u64],
}

impl<'a> Groups<'a> {
    fn check(&self, prompts: usize, joints: usize) -> Result<(), Error> {
        let groups = self.prompt.len();
        check_length("group_chosen", "group", groups, self.chosen.len())?;
        check_offsets("rejected_offsets", self.rejected_offsets, self.rejected.len())?;
        check_length(
            "rejected_offsets",
            "group, and one more",
            groups + 1,
            self.rejected_offsets.len(),
        )?;
        check_rows("group_prompt", "prompt", prompts, self.prompt)?;
        check_rows("group_chosen", "joint", joints, self.chosen)?;
        check_rows("rejected", "joint", joints, self.rejected)
    }

    fn rejected(&self, group: usize) -> &'a [u64] {
        &self.rejected[self.rejected_offsets[group] as usize..self.rejected_offsets[group + 1] as usize]
    }
}

fn check_length(name: &str, what: &'static str, expected: usize, got: usize) -> Result<(), Error> {
    if expected == got {
        Ok(())
    } else {
        Err(Error::Length {
            name: name.into(),
            what,
            expected,
            got,
        })
    }
}

fn check_rows(name: &'static str, table: &'static str, len: usize, rows: &[u64]) -> Result<(), Error> {
    match rows.iter().position(|&row| row >= len as u64) {
        Some(place) => Err(Error::Row {
            name,
            table,
            len,
            got: rows[place],
            place,
        }),
        None => Ok(()),
    }
}

/// Responses that the token limit cut off: the template closed their turn, they did not.
#[derive(Debug, Clone, Copy)]
pub struct Unfinished<'a> {
    /// `[rows of the joint table]`.
    pub joint: &'a [bool],
    /// Ids that end a turn.
    pub end_ids: &'a [u32],
}

impl Unfinished<'_> {
    fn check(&self, joints: usize) -> Result<(), Error> {
        check_length("unfinished", "row of the joint table", joints, self.joint.len())?;
        if self.end_ids.is_empty() && self.joint.contains(&true) {
            Err(Error::NoEndIds)
        } else {
            Ok(())
        }
    }

    /// A response without the end of its turn, if it never came to it. What follows the end (a line break in many
    /// templates) goes as well.
    fn cut<'a>(&self, joint: usize, response: &'a [u32]) -> &'a [u32] {
        let end = || response.iter().rposition(|id| self.end_ids.contains(id));
        if self.joint[joint] {
            &response[..end().unwrap_or(response.len())]
        } else {
            response
        }
    }
}

/// Prompts and responses of preference groups, each stored once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Split {
    /// Distinct prompts, in order of first appearance.
    pub prompts: Table,
    /// Distinct responses, in order of first appearance (chosen, then rejected, group after group).
    pub responses: Table,
    /// `[groups]`: rows of `prompts`.
    pub prompt: Vec<u64>,
    /// `[groups]`: rows of `responses`.
    pub chosen: Vec<u64>,
    /// Rows of `responses`, in the layout of [`Groups::rejected`](field@Groups::rejected).
    pub rejected: Vec<u64>,
    /// Groups whose responses begin before their rendered prompt ends.
    pub merged: u64,
    /// Joint rows, ascending, of which nothing is left after the border in some group.
    pub empty: Vec<u64>,
}

/// Separates prompts from responses on token ids, by TRL's rule.
///
/// `prompts` holds each distinct rendered prompt alone, `joints` each distinct rendered prompt and response. The
/// completions of a group start at the shortest common prefix of its prompt with each of its joints: where a token
/// spans the border, or the template renders a prompt alone differently, all of the group start there.
/// (TRL 1.16, `DPOTrainer._prepare_dataset` and `common_prefix_length`.)
///
/// # Errors
/// Arrays of different lengths; offsets that fall; row numbers outside their table; unfinished responses with no ids
/// that end a turn.
pub fn split(prompts: View, joints: View, groups: Groups, unfinished: Option<Unfinished>) -> Result<Split, Error> {
    groups.check(prompts.len(), joints.len())?;
    if let Some(unfinished) = &unfinished {
        unfinished.check(joints.len())?;
    }
    let borders: Vec<usize> = (0..groups.prompt.len())
        .into_par_iter()
        .map(|group| border(prompts, joints, groups, group))
        .collect();
    let (mut distinct_prompts, mut distinct_responses) = (Distinct::default(), Distinct::default());
    let mut split = Split::default();
    for (group, &border) in borders.iter().enumerate() {
        let prompt = prompts.row(groups.prompt[group] as usize);
        split.merged += u64::from(border < prompt.len());
        split.prompt.push(distinct_prompts.row(&prompt[..border]));
        let mut respond = |&joint: &u64| {
            let tail = &joints.row(joint as usize)[border..];
            let response = unfinished.map_or(tail, |unfinished| unfinished.cut(joint as usize, tail));
            if response.is_empty() {
                split.empty.push(joint);
            }
            distinct_responses.row(response)
        };
        split.chosen.push(respond(&groups.chosen[group]));
        split.rejected.extend(groups.rejected(group).iter().map(respond));
    }
    split.empty.sort_unstable();
    split.empty.dedup();
    Ok(Split {
        prompts: distinct_prompts.table,
        responses: distinct_responses.table,
        ..split
    })
}

/// Where the completions of a group start.
fn border(prompts: View, joints: View, groups: Groups, group: usize) -> usize {
    let prompt = prompts.row(groups.prompt[group] as usize);
    std::iter::once(&groups.chosen[group])
        .chain(groups.rejected(group))
        .map(|&joint| common_prefix_length(prompt, joints.row(joint as usize)))
        .min()
        .unwrap_or(prompt.len())
}

fn common_prefix_length(one: &[u32], other: &[u32]) -> usize {
    one.iter().zip(other).take_while(|(x, y)| x == y).count()
}

/// Rows by content: equal ids are one row.
#[derive(Default)]
struct Distinct<'a> {
    rows: HashMap<&'a [u32], u64>,
    table: Table,
}

impl<'a> Distinct<'a> {
    fn row(&mut self, ids: &'a [u32]) -> u64 {
        let next = self.rows.len() as u64;
        *self.rows.entry(ids).or_insert_with(|| {
            self.table.push(ids);
            next
        })
    }
}
