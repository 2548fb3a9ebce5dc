//! Token ids of texts, a table of them, and the encoder that fills it. Knows no template and no Python.

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

    pub(crate) fn push(&mut self, ids: &[u32]) {
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

    /// Appends the ids of one text.
    ///
    /// # Errors
    /// A text that the tokenizer refuses, in its own words.
    pub fn encode_into(&self, text: &str, add_special_tokens: bool, ids: &mut Vec<u32>) -> Result<(), String> {
        let encoding = self
            .0
            .encode_fast(text, add_special_tokens)
            .map_err(|reason| reason.to_string())?;
        ids.extend_from_slice(encoding.get_ids());
        Ok(())
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
