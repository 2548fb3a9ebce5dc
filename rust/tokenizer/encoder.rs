//! The encoder: token ids of texts, on all threads. Knows texts and tables of ids, no templates.

use std::ops::Range;

use rayon::prelude::*;

use crate::error::Error;
use crate::interrupt;
use crate::memory;
use crate::tokenizer::engine::EngineChoice;
use crate::tokenizer::open::{Opened, open};
use crate::tokenizer::probe;
use crate::tokenizer::table::Table;

/// Bytes that a byte of a text needs, if each is a token of its own; mostly four are one.
const ID_BYTES: usize = 4;

/// Texts that a thread encodes in one go.
const CHUNK: usize = 64;

/// Bytes that a thread encodes in one go, if one text alone is not longer.
const CHUNK_BYTES: usize = 256 << 10;

/// Chunks of a thread between two copies into the table. Their buffers are used again, so that of all memory only the
/// table's is touched for the first time, which took a fifth of all time when each chunk kept its own.
const WINDOW: usize = 128;

/// One text in so many is encoded by `tokenizers` as well.
const CHECKED: usize = 1_024;

/// Longer texts are not: at 3 MB/s, one could take longer than all others together.
const CHECKED_BYTES: usize = 64 << 10;

/// A tokenizer, without the truncation and padding that its `tokenizer.json` may ask for.
///
/// # Examples
/// ```
/// use mipo::tokenizer::{Encoder, EngineChoice};
///
/// let json = br#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
///     "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
///     "model": {"type": "WordLevel", "unk_token": "<unk>", "vocab": {"<unk>": 0, "hello": 1, "world": 2}}}"#;
/// let encoder = Encoder::from_json(json, EngineChoice::Auto)?;
/// let table = encoder.encode(&["hello world", "", "hello mipo"], true)?;
/// assert_eq!(table.offsets, [0, 2, 2, 4]);
/// assert_eq!(table.row(2), [1, 0]);
/// // fastokens is for byte-pair encoding.
/// assert_eq!(encoder.name(), "tokenizers");
/// assert!(encoder.why().starts_with("the model WordLevel"));
/// # Ok::<(), mipo::error::Error>(())
/// ```
pub struct Encoder(Opened);

impl Encoder {
    /// The tokenizer of a `tokenizer.json`.
    ///
    /// # Errors
    /// Bytes that are no `tokenizer.json`; [`EngineChoice::Fastokens`] for a tokenizer whose ids it is not known to
    /// give.
    pub fn from_json(json: &[u8], choice: EngineChoice) -> Result<Self, Error> {
        open(json, choice).map(Self)
    }

    /// The engine that encodes: `fastokens` or `tokenizers`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.0.name
    }

    /// Why it is that engine, in a few words.
    #[must_use]
    pub fn why(&self) -> &str {
        &self.0.why
    }

    /// Appends the ids of one text; `add_special_tokens` as in `tokenizers`.
    ///
    /// # Errors
    /// The library's message about a text that the tokenizer refuses.
    pub fn encode_into(&self, text: &str, add_special_tokens: bool, ids: &mut Vec<u32>) -> Result<(), String> {
        self.0.engine.encode(text, add_special_tokens, ids)
    }

    /// The last byte at which a text may be cut: its ids are those of both parts, the second one without special
    /// tokens. So may any other text that is the same up to [`Seams::AFTER`](crate::tokenizer::Seams::AFTER) bytes
    /// behind it.
    #[must_use]
    pub fn seam(&self, text: &str) -> Option<usize> {
        self.0.seams.last(text)
    }

    /// Compares the ids of a text with those of `tokenizers`.
    ///
    /// # Errors
    /// The ids of both, where they differ.
    pub fn check(&self, text: &str, add_special_tokens: bool, ids: &[u32]) -> Result<(), String> {
        if self.name() == "tokenizers" {
            return Ok(());
        }
        probe::check(&self.0.reference, text, add_special_tokens, ids)
    }

    /// Ids of each text, in order, on all threads; `add_special_tokens` as in `tokenizers`.
    ///
    /// Where another engine encodes, every 1,024th text is encoded by `tokenizers` as well.
    ///
    /// # Errors
    /// The first text that the tokenizer refuses, or whose ids are not those of `tokenizers`, with its row.
    pub fn encode(&self, texts: &[&str], add_special_tokens: bool) -> Result<Table, Error> {
        memory::expect(memory::bytes(texts, 8), ID_BYTES)?;
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

    /// Replaces `ids` by the ids of the texts of these rows, and writes how many each has into `lengths`.
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
            interrupt::check();
            let start = ids.len();
            self.encode_into(texts[row], special, ids)
                .map_err(|reason| Error::EncodeText { row, reason })?;
            *length = (ids.len() - start) as i64;
            if row % CHECKED == 0 && texts[row].len() <= CHECKED_BYTES {
                self.check(texts[row], special, &ids[start..])
                    .map_err(|reason| Error::DifferentIds { row, reason })?;
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

/// Makes `ids` long enough for `end` ids; for all ids, if those up to `end` are the `share` of them that they seem to
/// be.
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
