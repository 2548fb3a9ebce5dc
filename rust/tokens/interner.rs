//! Groups on token ids: the border between prompt and responses is TRL's, and each prompt and response is stored once.
//! Knows texts, ids and row numbers; no template.

use rayon::prelude::*;
use xxhash_rust::xxh3::xxh3_128;

use crate::error::Error;
use crate::interrupt;
use crate::memory;
use crate::tokenizer::{Encoder, Seams, Table};
use crate::tokens::distinct::Distinct;
use crate::tokens::groups::{GroupRows, Groups, Verdict};
use crate::tokens::texts::Texts;

/// Groups that a thread tokenizes in one go.
const CHUNK: usize = 64;

/// What the ids and texts of a group need while a batch is tokenized, as a guess: a thousand tokens.
const GROUP_BYTES: usize = 8 << 10;

/// Tokenizes groups into two tables, of prompts and of responses, in which equal ids are one row.
///
/// Some 230,000 prompts, and as many responses, are remembered at a time, so that memory does not grow with the groups.
/// One that was forgotten is stored again.
#[derive(Debug, Default)]
pub struct Interner {
    prompts: Distinct,
    responses: Distinct,
}

impl Interner {
    /// Tokenizes groups, and stores those of their prompts and responses that are new.
    ///
    /// The responses of a group start at the border: the shortest common prefix of its prompt's ids with those of each
    /// of its joint texts. Where a token spans the end of the prompt, or the template renders a prompt alone
    /// differently, the border lies before the end, for all responses of the group (TRL 1.16,
    /// `DPOTrainer._prepare_dataset`). With `limit`, groups with more tokens, or without a token in a response, are
    /// left out.
    ///
    /// # Errors
    /// Arrays of different lengths; a text that the template or the tokenizer refuses, with its row.
    pub fn push(
        &mut self,
        encoder: &Encoder,
        texts: &dyn Texts,
        groups: Groups,
        limit: Option<usize>,
    ) -> Result<GroupRows, Error> {
        groups.check(texts.sizes())?;
        let count = groups.rows.len();
        memory::expect(count, GROUP_BYTES)?;
        let results: Vec<Result<Chunk, Error>> = (0..count.div_ceil(CHUNK))
            .into_par_iter()
            .map(|number| {
                interrupt::check();
                let mut chunk = Chunk::default();
                (number * CHUNK..count.min((number + 1) * CHUNK))
                    .try_for_each(|group| chunk.add(encoder, texts, groups, group, limit))?;
                Ok(chunk)
            })
            .collect();
        // Of several errors the first one, whichever thread was faster; nothing is stored then.
        let chunks = results.into_iter().collect::<Result<Vec<_>, _>>()?;
        let mut rows = GroupRows {
            offsets: vec![0],
            ..GroupRows::default()
        };
        for chunk in &chunks {
            self.store(chunk, &mut rows);
        }
        Ok(rows)
    }

    /// The prompts that were stored since the last call; row numbers go on.
    pub fn take_prompts(&mut self) -> Table {
        self.prompts.take()
    }

    /// The responses that were stored since the last call; row numbers go on.
    pub fn take_responses(&mut self) -> Table {
        self.responses.take()
    }

    /// Bytes of the ids that were not taken yet.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.prompts.pending() + self.responses.pending()
    }

    fn store(&mut self, chunk: &Chunk, rows: &mut GroupRows) {
        let (mut sequence, mut start) = (0, 0);
        for &(responses, verdict, merged) in &chunk.groups {
            rows.verdicts.push(verdict as u8);
            if verdict != Verdict::Kept {
                continue;
            }
            for place in 0..=responses {
                let (length, hash) = chunk.sequences[sequence];
                let ids = &chunk.ids[start..start + length];
                match place {
                    0 => rows.prompt.push(self.prompts.row(hash, ids)),
                    1 => rows.chosen.push(self.responses.row(hash, ids)),
                    _ => rows.rejected.push(self.responses.row(hash, ids)),
                }
                sequence += 1;
                start += length;
            }
            rows.offsets.push(rows.rejected.len() as i64);
            rows.merged += u64::from(merged);
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
    /// Of the group at hand: the ids that all its texts begin with, those of the rest of its prompt, and those of the
    /// rest of its joint texts, one after another.
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
            .zip(groups.responses(group))
            .map(|(joint, response)| groups.truncated.cut(group, response, &joint[border..]))
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

    /// Encodes a group's texts into `head`, `prompt` and `joint`; where each joint text ends in `joint`.
    fn encode(
        &mut self,
        encoder: &Encoder,
        texts: &dyn Texts,
        groups: Groups,
        group: usize,
    ) -> Result<Vec<usize>, Error> {
        let row = groups.rows[group];
        let refused = |reason| Error::RenderGroup { row, reason };
        let prompt = texts.prompt(group).map_err(refused)?;
        let joints: Vec<_> = groups
            .responses(group)
            .map(|response| texts.joint(group, response).map_err(refused))
            .collect::<Result<_, _>>()?;
        // The prompt up to its last seam, where all texts begin with it, is encoded once.
        let seam = encoder.seam(&prompt).filter(|&seam| {
            let common = &prompt.as_bytes()[..seam + Seams::AFTER];
            joints.iter().all(|joint| joint.as_bytes().starts_with(common))
        });
        let encode = |text: &str, special: bool, ids: &mut Vec<u32>| {
            let encoded = encoder.encode_into(text, special, ids);
            encoded.map_err(|reason| Error::EncodeGroup { row, reason })
        };
        for ids in [&mut self.head, &mut self.prompt, &mut self.joint] {
            ids.clear();
        }
        if let Some(seam) = seam {
            encode(&prompt[..seam], groups.add_special_tokens, &mut self.head)?;
        }
        let (seam, special) = (seam.unwrap_or(0), groups.add_special_tokens && seam.is_none());
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
