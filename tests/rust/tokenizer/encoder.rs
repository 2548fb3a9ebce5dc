//! The encoder and its tables.

use mipo::error::Error;
use mipo::tokenizer::{Encoder, EngineChoice, Table};

use crate::data::byte_level;

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
    let encoder = Encoder::from_json(TOKENIZER.as_bytes(), EngineChoice::Auto)?;
    let table = encoder.encode(&["a b c d", "", "d"], true)?;
    assert_eq!(rows(&table), [&[1, 2, 3, 4, 5][..], &[1], &[1, 5]]);
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
    let table = Encoder::from_json(TOKENIZER.as_bytes(), EngineChoice::Auto)?.encode(&borrowed, false)?;
    assert!(
        rows(&table)
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
    let error = Encoder::from_json(TOKENIZER.as_bytes(), EngineChoice::Auto)?
        .encode(&texts, false)
        .unwrap_err();
    assert!(matches!(error, Error::EncodeText { row: 200, .. }), "{error}");
    assert!(matches!(
        Encoder::from_json(b"{", EngineChoice::Auto),
        Err(Error::Tokenizer { got: 1, .. })
    ));
    Ok(())
}

#[test]
fn rows_stay_in_order_whatever_their_lengths() -> Result<(), Error> {
    let json = byte_level(&[["t", "h"], ["th", "e"]], &["<e>"]).to_string();
    let fast = Encoder::from_json(json.as_bytes(), EngineChoice::Fastokens)?;
    let texts: Vec<String> = (0..3_000)
        .map(|row| "the ".repeat(if row % 500 == 7 { 100_000 } else { row % 9 }) + &row.to_string())
        .collect();
    let borrowed: Vec<&str> = texts.iter().map(String::as_str).collect();
    let table = fast.encode(&borrowed, false)?;
    for (row, text) in texts.iter().enumerate() {
        let mut ids = Vec::new();
        fast.encode_into(text, false, &mut ids).unwrap();
        assert!(table.row(row) == ids, "row {row}");
    }
    assert_eq!(table.len(), 3_000);
    Ok(())
}
