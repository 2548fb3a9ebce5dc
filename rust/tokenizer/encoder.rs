//! Token ids of texts, a table of them, and the encoder that fills it. Knows no template and no Python.

use std::ops::Range;

use rayon::prelude::*;

use crate::error::Error;
use crate::tokenizer::engine::{self, Choice, Opened};
use crate::tokenizer::probe;

/// Texts that a thread encodes in one go.
const CHUNK: usize = 64;

/// Bytes that a thread encodes in one go, if one text alone is not longer.
const CHUNK_BYTES: usize = 256 << 10;

/// Chunks of a thread between two copies into the table. Their buffers are used again, so that of all memory only the
/// table's is touched for the first time, which took a fifth of all time when each chunk kept its own.
const WINDOW: usize = 128;

/// Every how many texts one is encoded by `tokenizers` as well.
const CHECKED: usize = 1_024;

/// Longer texts are not: at 3 MB/s, one could take longer than all others together.
const CHECKED_BYTES: usize = 64 << 10;

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
    pub fn row(&self, row: usize) -> &[u32] {
        &self.ids[self.offsets[row] as usize..self.offsets[row + 1] as usize]
    }

    pub(crate) fn push(&mut self, ids: &[u32]) {
        self.ids.extend_from_slice(ids);
        self.offsets.push(self.ids.len() as i64);
    }
}

impl Default for Table {
    fn default() -> Self {
        Self::new()
    }
}

/// Offsets never fall and stay within `0..=limit`.
pub(crate) fn check_offsets(name: &'static str, offsets: &[i64], limit: usize) -> Result<(), Error> {
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
pub struct Encoder(Opened);

impl Encoder {
    /// The tokenizer of a `tokenizer.json`, with the engine of this choice.
    ///
    /// # Errors
    /// Bytes that are no `tokenizer.json`; fastokens asked for where it cannot be.
    pub fn from_json(json: &[u8], choice: Choice) -> Result<Self, Error> {
        engine::open(json, choice).map(Self)
    }

    /// The engine that encodes: `fastokens` or `tokenizers`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.0.name
    }

    /// Why it is that engine, in a sentence.
    #[must_use]
    pub fn why(&self) -> &str {
        &self.0.why
    }

    /// Appends the ids of one text; `add_special_tokens` as in `tokenizers`.
    ///
    /// # Errors
    /// A text that the tokenizer refuses, in the words of its library.
    pub fn encode_into(&self, text: &str, add_special_tokens: bool, ids: &mut Vec<u32>) -> Result<(), String> {
        self.0.engine.encode(text, add_special_tokens, ids)
    }

    /// The last place where a text may be cut: its ids are those of both parts, the second one without special tokens.
    /// So may any other text that is the same to [`crate::tokenizer::seams::AFTER`] bytes behind it.
    #[must_use]
    pub fn seam(&self, text: &str) -> Option<usize> {
        self.0.seams.last(text)
    }

    /// Holds the ids of a text against those of `tokenizers`.
    ///
    /// # Errors
    /// What both say, where it is not the same.
    pub fn check(&self, text: &str, add_special_tokens: bool, ids: &[u32]) -> Result<(), String> {
        if self.name() == "tokenizers" {
            return Ok(());
        }
        probe::check(&self.0.truth, text, add_special_tokens, ids)
    }

    /// Ids of each text, in order, on all threads; `add_special_tokens` as in `tokenizers`.
    ///
    /// Every 1,024th text is encoded by `tokenizers` as well, where another engine encodes.
    ///
    /// # Errors
    /// The first text that the tokenizer refuses, or whose ids are not those of `tokenizers`, with its row.
    pub fn encode(&self, texts: &[&str], add_special_tokens: bool) -> Result<Table, Error> {
        let chunks = cut(texts);
        let mut offsets = vec![0; texts.len() + 1];
        let (mut lengths, mut ids, mut end) = (&mut offsets[1..], Vec::new(), 0);
        let mut buffers = vec![Vec::new(); (WINDOW * rayon::current_num_threads()).min(chunks.len())];
        for window in chunks.chunks(buffers.len().max(1)) {
            let mut parts = Vec::with_capacity(window.len());
            for (rows, buffer) in window.iter().zip(&mut buffers) {
                let (part, rest) = lengths.split_at_mut(rows.len());
                lengths = rest;
                parts.push((rows.clone(), part, buffer));
            }
            parts
                .into_par_iter()
                .map(|(rows, lengths, buffer)| self.encode_chunk(texts, rows, lengths, add_special_tokens, buffer))
                .collect::<Vec<_>>()
                .into_iter()
                .collect::<Result<(), _>>()?;
            let filled = &buffers[..window.len()];
            let start = end;
            end += filled.iter().map(Vec::len).sum::<usize>();
            if end > ids.len() {
                let rows = window[window.len() - 1].end;
                make_room(&mut ids, end, rows as f64 / texts.len() as f64);
            }
            copy_all(filled, &mut ids[start..end]);
        }
        ids.truncate(end);
        ids.shrink_to_fit();
        let mut end = 0;
        for offset in &mut offsets {
            end += *offset;
            *offset = end;
        }
        Ok(Table { offsets, ids })
    }

    /// Ids of the texts of these rows go into `ids`, which is emptied before, and their lengths into `lengths`.
    fn encode_chunk(
        &self,
        texts: &[&str],
        rows: Range<usize>,
        lengths: &mut [i64],
        special: bool,
        ids: &mut Vec<u32>,
    ) -> Result<(), Error> {
        ids.clear();
        for (row, length) in rows.zip(lengths) {
            let start = ids.len();
            self.encode_into(texts[row], special, ids)
                .map_err(|reason| Error::Text { row, reason })?;
            *length = (ids.len() - start) as i64;
            if row % CHECKED == 0 && texts[row].len() <= CHECKED_BYTES {
                self.check(texts[row], special, &ids[start..])
                    .map_err(|reason| Error::Differs { row, reason })?;
            }
        }
        Ok(())
    }
}

/// Rows of successive chunks: at most [`CHUNK`] texts, and not many bytes unless one text has them.
fn cut(texts: &[&str]) -> Vec<Range<usize>> {
    let (mut chunks, mut start, mut bytes) = (Vec::with_capacity(texts.len() / CHUNK + 1), 0, 0);
    for (row, text) in texts.iter().enumerate() {
        if row > start && (row - start == CHUNK || bytes + text.len() > CHUNK_BYTES) {
            chunks.push(start..row);
            (start, bytes) = (row, 0);
        }
        bytes += text.len();
    }
    if start < texts.len() {
        chunks.push(start..texts.len());
    }
    chunks
}

/// Makes `ids` long enough for `end` ids, and for the rest if they are the `share` of all that they seem to be.
fn make_room(ids: &mut Vec<u32>, end: usize, share: f64) {
    let guess = if share < 1.0 {
        (end as f64 / share * 1.1) as usize
    } else {
        end
    };
    if ids.is_empty() {
        // Zeros come from the system as untouched pages, so that the threads that copy are the first to touch them,
        // and pages that are never needed are never there.
        *ids = vec![0; guess];
    } else {
        ids.resize(guess.max(end), 0);
    }
}

/// All buffers one after another.
fn copy_all(buffers: &[Vec<u32>], ids: &mut [u32]) {
    let (mut rest, mut parts) = (ids, Vec::with_capacity(buffers.len()));
    for buffer in buffers {
        let (part, after) = rest.split_at_mut(buffer.len());
        rest = after;
        parts.push((part, buffer));
    }
    parts
        .into_par_iter()
        .for_each(|(part, buffer)| part.copy_from_slice(buffer));
}
