//! Tables, and the encoder on a tokenizer of six words.
#![allow(clippy::unwrap_used)]

use mipo::error::Error;
use mipo::tokenizer::encoder::{Encoder, Table};
use mipo::tokenizer::engine::Choice;

/// Special tokens around every text, and truncation and padding that the encoder has to switch off.
const TOKENIZER: &str = r#"{
  "version": "1.0",
  "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
  "padding": {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
              "pad_type_id": 0, "pad_token": "<pad>"},
  "added_tokens": [],
  "normalizer": null,
  "pre_tokenizer": {"type": "WhitespaceSplit"},
  "post_processor": {"type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
  "decoder": null,
  "model": {"type": "WordLevel", "vocab": {"<pad>": 0, "<s>": 1, "a": 2, "b": 3, "c": 4, "d": 5}, "unk_token": "<unk>"}
}"#;

fn rows(table: &Table) -> Vec<&[u32]> {
    (0..table.len()).map(|row| table.row(row)).collect()
}

#[test]
fn encoding_neither_cuts_nor_pads() -> Result<(), Error> {
    let encoder = Encoder::from_json(TOKENIZER.as_bytes(), Choice::Auto)?;
    let found = encoder.encode(&["a b c d", "", "d"], true)?;
    assert_eq!(rows(&found), [&[1, 2, 3, 4, 5][..], &[1], &[1, 5]]);
    assert_eq!(
        rows(&encoder.encode(&["a b c d", "", "d"], false)?),
        [&[2, 3, 4, 5][..], &[], &[5]]
    );
    assert_eq!(encoder.encode(&[], true)?, Table::new());
    Ok(())
}

#[test]
fn encoding_keeps_the_order_over_many_chunks() -> Result<(), Error> {
    let texts: Vec<String> = (0..1_000).map(|row| "a ".repeat(row % 17) + "b").collect();
    let borrowed: Vec<&str> = texts.iter().map(String::as_str).collect();
    let found = Encoder::from_json(TOKENIZER.as_bytes(), Choice::Auto)?.encode(&borrowed, false)?;
    assert!(
        rows(&found)
            .iter()
            .enumerate()
            .all(|(row, ids)| ids.len() == row % 17 + 1 && ids[row % 17] == 3)
    );
    Ok(())
}

#[test]
fn a_refused_text_is_named_by_its_row() -> Result<(), Error> {
    let mut texts = vec!["a"; 300];
    (texts[200], texts[250]) = ("unheard", "of");
    let error = Encoder::from_json(TOKENIZER.as_bytes(), Choice::Auto)?
        .encode(&texts, false)
        .unwrap_err();
    assert!(matches!(error, Error::Text { row: 200, .. }), "{error}");
    assert!(matches!(
        Encoder::from_json(b"{", Choice::Auto),
        Err(Error::Tokenizer { got: 1, .. })
    ));
    Ok(())
}
