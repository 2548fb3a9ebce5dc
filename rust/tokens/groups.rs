//! Preference groups on token ids: prompt and responses apart by TRL's rule, each stored once among many. Knows texts,
//! ids and row numbers; no template and no Python.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use rayon::prelude::*;
use xxhash_rust::xxh3::xxh3_128;

use crate::error::Error;
use crate::tokenizer::encoder::{Encoder, Table, check_offsets};
use crate::tokenizer::seams;
use crate::tokens::texts::{Said, Texts, Unfinished};

/// Groups that a thread tokenizes in one go.
const CHUNK: usize = 64;

/// Which groups there are, and what is asked of them.
#[derive(Debug, Clone, Copy)]
pub struct Groups<'a> {
    /// `[groups + 1]`: group g owns the rejected responses `offsets[g]..offsets[g + 1]`.
    pub offsets: &'a [i64],
    /// `[groups]`: what errors call the groups, the rows of their source.
    pub rows: &'a [u64],
    /// The responses that were cut off.
    pub unfinished: Unfinished<'a>,
    /// Whether the tokenizer adds its special tokens.
    pub special: bool,
}

impl Groups<'_> {
    fn check(&self, [prompts, chosen, rejected]: [usize; 3]) -> Result<(), Error> {
        check_offsets("offsets", self.offsets, rejected)?;
        let (groups, responses) = (self.offsets.len() - 1, self.offsets[self.offsets.len() - 1] as usize);
        let lengths = [
            ("prompts", "group", groups, prompts),
            ("chosen", "group", groups, chosen),
            ("rejected", "rejected response", responses, rejected),
            ("rows", "group", groups, self.rows.len()),
            ("unfinished chosen", "group", groups, self.unfinished.chosen.len()),
            (
                "unfinished rejected",
                "rejected response",
                responses,
                self.unfinished.rejected.len(),
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

    fn said(&self, group: usize) -> impl Iterator<Item = Said> {
        let rejected = self.offsets[group] as usize..self.offsets[group + 1] as usize;
        std::iter::once(Said::Chosen).chain(rejected.map(Said::Rejected))
    }
}

/// Whether a group is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Verdict {
    /// It is.
    Kept = 0,
    /// No: a response has no token of its own.
    Empty = 1,
    /// No: the prompt alone is as long as the limit.
    LongPrompt = 2,
    /// No: prompt and response are longer than the limit.
    Long = 3,
}

/// Groups as row numbers of the tables that an [`Interner`] fills.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Made {
    /// `[groups]`: [`Verdict`] of each.
    pub verdicts: Vec<u8>,
    /// `[kept]`: row of the prompt.
    pub prompt: Vec<u64>,
    /// `[kept]`: row of the chosen response.
    pub chosen: Vec<u64>,
    /// `[kept + 1]`: kept group g owns `rejected[offsets[g]..offsets[g + 1]]`.
    pub offsets: Vec<i64>,
    /// Rows of the rejected responses.
    pub rejected: Vec<u64>,
    /// Kept groups whose responses begin before their prompt, tokenized alone, ends.
    pub merged: u64,
}

/// The prompts and responses of groups, each once among [`KNOWN`]; the ids of those that were not taken yet.
#[derive(Debug, Default)]
pub struct Interner {
    prompts: Distinct,
    responses: Distinct,
}

impl Interner {
    /// Tokenizes groups, and stores what is new of them.
    ///
    /// The completions of a group start at the shortest common prefix of its prompt's ids with those of each of its
    /// joint texts: where a token spans the border, or the template renders a prompt alone differently, all of the
    /// group start there. (TRL 1.16, `DPOTrainer._prepare_dataset`.) With `limit`, groups with more tokens, or without
    /// a token in a response, are left out.
    ///
    /// # Errors
    /// Arrays of different lengths; a text that template or tokenizer refuse, with its row.
    pub fn push(
        &mut self,
        encoder: &Encoder,
        texts: &dyn Texts,
        groups: Groups,
        limit: Option<usize>,
    ) -> Result<Made, Error> {
        groups.check(texts.sizes())?;
        let count = groups.rows.len();
        let tried: Vec<Result<Chunk, Error>> = (0..count.div_ceil(CHUNK))
            .into_par_iter()
            .map(|chunk| {
                let mut made = Chunk::default();
                (chunk * CHUNK..count.min((chunk + 1) * CHUNK))
                    .try_for_each(|group| made.add(encoder, texts, groups, group, limit))?;
                Ok(made)
            })
            .collect();
        // Of several errors the first one, whichever thread was faster; nothing was stored then.
        let chunks = tried.into_iter().collect::<Result<Vec<_>, _>>()?;
        let mut made = Made {
            offsets: vec![0],
            ..Made::default()
        };
        for chunk in &chunks {
            self.store(chunk, &mut made);
        }
        Ok(made)
    }

    /// The prompts that were stored since the last call; row numbers go on.
    pub fn take_prompts(&mut self) -> Table {
        std::mem::take(&mut self.prompts.pending)
    }

    /// As `take_prompts`.
    pub fn take_responses(&mut self) -> Table {
        std::mem::take(&mut self.responses.pending)
    }

    /// Bytes of ids that were not taken yet.
    #[must_use]
    pub fn pending(&self) -> usize {
        size_of::<u32>() * (self.prompts.pending.ids.len() + self.responses.pending.ids.len())
    }

    fn store(&mut self, chunk: &Chunk, made: &mut Made) {
        let (mut sequence, mut start) = (0, 0);
        for &(responses, verdict, merged) in &chunk.groups {
            made.verdicts.push(verdict as u8);
            if verdict != Verdict::Kept {
                continue;
            }
            for place in 0..=responses {
                let (length, hash) = chunk.sequences[sequence];
                let ids = &chunk.ids[start..start + length];
                match place {
                    0 => made.prompt.push(self.prompts.row(hash, ids)),
                    1 => made.chosen.push(self.responses.row(hash, ids)),
                    _ => made.rejected.push(self.responses.row(hash, ids)),
                }
                sequence += 1;
                start += length;
            }
            made.offsets.push(made.rejected.len() as i64);
            made.merged += u64::from(merged);
        }
    }
}

/// Groups that one thread tokenized.
#[derive(Default)]
struct Chunk {
    /// Of each group its responses, its verdict, and whether its border was moved.
    groups: Vec<(usize, Verdict, bool)>,
    /// Length and hash of each prompt and response of the kept groups, prompt first.
    sequences: Vec<(usize, u128)>,
    ids: Vec<u32>,
    /// Of the group at hand: the ids that all its texts begin with, the rest of the prompt alone, the rest of the
    /// joint texts one after another.
    head: Vec<u32>,
    prompt: Vec<u32>,
    joint: Vec<u32>,
}

impl Chunk {
    fn add(
        &mut self,
        encoder: &Encoder,
        texts: &dyn Texts,
        groups: Groups,
        group: usize,
        limit: Option<usize>,
    ) -> Result<(), Error> {
        let ends = self.encode(encoder, texts, groups, group)?;
        let starts = std::iter::once(0).chain(ends.iter().copied());
        let joints: Vec<&[u32]> = starts.zip(&ends).map(|(start, &end)| &self.joint[start..end]).collect();
        let border = joints
            .iter()
            .map(|joint| common_prefix_length(&self.prompt, joint))
            .min()
            .unwrap_or(self.prompt.len());
        let responses: Vec<&[u32]> = joints
            .iter()
            .zip(groups.said(group))
            .map(|(joint, said)| groups.unfinished.cut(group, said, &joint[border..]))
            .collect();
        let verdict = limit.map_or(Verdict::Kept, |limit| {
            judge(self.head.len() + border, &responses, limit)
        });
        if verdict == Verdict::Kept {
            let prompt = [&self.head, &self.prompt[..border]];
            for parts in std::iter::once(prompt).chain(responses.iter().map(|ids| [&[], *ids])) {
                let start = self.ids.len();
                parts.iter().for_each(|ids| self.ids.extend_from_slice(ids));
                let ids = &self.ids[start..];
                self.sequences.push((ids.len(), xxh3_128(bytemuck::cast_slice(ids))));
            }
        }
        self.groups.push((responses.len(), verdict, border < self.prompt.len()));
        Ok(())
    }

    /// The ids of a group's texts, what all begin with apart; where each joint text ends.
    fn encode(
        &mut self,
        encoder: &Encoder,
        texts: &dyn Texts,
        groups: Groups,
        group: usize,
    ) -> Result<Vec<usize>, Error> {
        let row = groups.rows[group];
        let unmade = |reason| Error::Unmade { row, reason };
        let prompt = texts.prompt(group).map_err(unmade)?;
        let joints: Vec<_> = groups
            .said(group)
            .map(|said| texts.joint(group, said).map_err(unmade))
            .collect::<Result<_, _>>()?;
        // Where all can be cut, at the end of what they have in common, that is encoded once.
        let seam = encoder.seam(&prompt).filter(|&seam| {
            let common = &prompt.as_bytes()[..seam + seams::AFTER];
            joints.iter().all(|joint| joint.as_bytes().starts_with(common))
        });
        let encode = |text: &str, special: bool, ids: &mut Vec<u32>| {
            let encoded = encoder.encode_into(text, special, ids);
            encoded.map_err(|reason| Error::Group { row, reason })
        };
        for ids in [&mut self.head, &mut self.prompt, &mut self.joint] {
            ids.clear();
        }
        if let Some(seam) = seam {
            encode(&prompt[..seam], groups.special, &mut self.head)?;
        }
        let (seam, special) = (seam.unwrap_or(0), groups.special && seam.is_none());
        encode(&prompt[seam..], special, &mut self.prompt)?;
        let mut ends = Vec::with_capacity(joints.len());
        for joint in joints {
            encode(&joint[seam..], special, &mut self.joint)?;
            ends.push(self.joint.len());
        }
        Ok(ends)
    }
}

fn judge(prompt: usize, responses: &[&[u32]], limit: usize) -> Verdict {
    if responses.iter().any(|ids| ids.is_empty()) {
        Verdict::Empty
    } else if prompt >= limit {
        Verdict::LongPrompt
    } else if responses.iter().any(|ids| prompt + ids.len() > limit) {
        Verdict::Long
    } else {
        Verdict::Kept
    }
}

fn common_prefix_length(one: &[u32], other: &[u32]) -> usize {
    one.iter().zip(other).take_while(|(x, y)| x == y).count()
}

/// Sequences that are known at a time; with one more all are forgotten, so that what is held does not grow with what
/// comes. So many fill a hash map that one more would double.
const KNOWN: usize = 7 << 15;

/// Ids for which there is room at once. So large a piece comes from the system by itself, untouched, and goes back to it
/// whole; grown to that size by and by, it would leave holes all over the heap.
const ROOM: usize = 12 << 20;

/// Sequences by 128 bits of their content: two of 10⁶ different ones share them with a chance below 10⁻²⁶.
#[derive(Debug, Default)]
struct Distinct {
    known: HashMap<u128, u64, BuildHasherDefault<Low>>,
    rows: u64,
    pending: Table,
}

impl Distinct {
    fn row(&mut self, hash: u128, ids: &[u32]) -> u64 {
        if let Some(&row) = self.known.get(&hash) {
            return row;
        }
        if self.known.len() == KNOWN {
            self.known.clear();
        }
        if self.pending.is_empty() {
            self.pending.ids.reserve(ROOM);
        }
        self.known.insert(hash, self.rows);
        self.pending.push(ids);
        self.rows += 1;
        self.rows - 1
    }
}

/// What is a hash already needs no other.
#[derive(Default)]
struct Low(u64);

impl Hasher for Low {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("a key of 128 bits comes by write_u128");
    }

    fn write_u128(&mut self, hash: u128) {
        self.0 = hash as u64;
    }
}
