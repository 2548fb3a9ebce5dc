//! Groups as the tests write them, and a tokenizer of numbers.

use mipo::error::Error;
use mipo::tokenizer::{Encoder, EngineChoice, Table};
use mipo::tokens::{GroupRows, Groups, Interner, Rendered, Truncated};

/// The text "7 12" has the ids 7 and 12; the tokenizer's own special token is 99, and `words` is all it knows.
pub(crate) fn encoder() -> Encoder {
    let words: Vec<String> = (0..100).map(|id| format!(r#""{id}": {id}"#)).collect();
    let json = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "decoder": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "99", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"99": {"id": "99", "ids": [99], "tokens": ["99"]}}},
        "model": {"type": "WordLevel", "unk_token": "unknown", "vocab": {WORDS}}}"#
        .replace("WORDS", &words.join(", "));
    Encoder::from_json(json.as_bytes(), EngineChoice::Auto).unwrap()
}

pub(crate) fn rows(table: &Table) -> Vec<Vec<u32>> {
    (0..table.len()).map(|row| table.row(row).to_vec()).collect()
}

/// Whole texts: of each group its prompt, the chosen joint text and the rejected ones.
pub(crate) type Group<'a> = (&'a str, &'a str, &'a [&'a str]);

/// Groups in arrays, all finished.
pub(crate) struct Arrays<'a> {
    pub(crate) texts: Rendered<'a>,
    pub(crate) offsets: Vec<i64>,
    pub(crate) rows: Vec<u64>,
    pub(crate) flags: Vec<bool>,
}

impl<'a> Arrays<'a> {
    pub(crate) fn new(groups: &[Group<'a>]) -> Self {
        let mut arrays = Self {
            texts: Rendered {
                prompts: Vec::new(),
                chosen: Vec::new(),
                rejected: Vec::new(),
            },
            offsets: vec![0],
            rows: Vec::new(),
            flags: Vec::new(),
        };
        for (row, &(prompt, chosen, rejected)) in groups.iter().enumerate() {
            arrays.texts.prompts.push(prompt);
            arrays.texts.chosen.push(chosen);
            arrays.texts.rejected.extend(rejected);
            arrays.offsets.push(arrays.texts.rejected.len() as i64);
            arrays.rows.push(1_000 + row as u64);
        }
        arrays.flags = vec![false; arrays.rows.len().max(arrays.texts.rejected.len())];
        arrays
    }

    pub(crate) fn groups(&self) -> Groups<'_> {
        Groups {
            offsets: &self.offsets,
            rows: &self.rows,
            truncated: Truncated {
                chosen: &self.flags[..self.rows.len()],
                rejected: &self.flags[..self.texts.rejected.len()],
                end_ids: &[],
            },
            add_special_tokens: false,
        }
    }
}

/// The ids of each row.
pub(crate) type Rows = Vec<Vec<u32>>;

/// Pushes groups into a new interner: their row numbers, and the ids of its prompts and of its responses.
pub(crate) fn push(groups: &[Group], limit: Option<usize>) -> Result<(GroupRows, Rows, Rows), Error> {
    let (arrays, mut interner) = (Arrays::new(groups), Interner::default());
    let group_rows = interner.push(&encoder(), &arrays.texts, arrays.groups(), limit)?;
    Ok((
        group_rows,
        rows(&interner.take_prompts()),
        rows(&interner.take_responses()),
    ))
}
