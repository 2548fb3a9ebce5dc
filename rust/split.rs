//! The border between prompt and response, on token ids. Knows ids and row numbers, no text, no template, no Python.

use std::collections::HashMap;

use rayon::prelude::*;

use crate::error::Error;
use crate::tokens::{Table, View, check_offsets};

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
