//! Which engine a tokenizer gets, and that what fastokens is not known to honour is named.
#![allow(clippy::unwrap_used)]

use mipo::error::Error;
use mipo::tokenizer::encoder::Encoder;
use mipo::tokenizer::engine::{Choice, open};
use serde_json::{Value, json};

/// Bytes, the merges of "the", and one added token.
fn tokenizer() -> Value {
    let alphabet = ('!'..='~').chain('¡'..='¬').chain('®'..='ÿ').chain('Ā'..='Ń');
    let mut vocab: serde_json::Map<String, Value> =
        (0..).zip(alphabet).map(|(id, c)| (c.to_string(), json!(id))).collect();
    vocab.insert("th".into(), json!(256));
    vocab.insert("the".into(), json!(257));
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [{"id": 258, "content": "<e>", "single_word": false, "lstrip": false, "rstrip": false,
                          "normalized": false, "special": true}],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null, "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab,
                  "merges": [["t", "h"], ["th", "e"]]}
    })
}

fn encoder(json: &Value, choice: Choice) -> Result<Encoder, Error> {
    Encoder::from_json(json.to_string().as_bytes(), choice)
}

#[test]
fn the_engine_asked_for_encodes_and_both_say_the_same() -> Result<(), Error> {
    let texts = ["the<e>the", "", "th\0e\u{1f600}", "<e", "日本"];
    let slow = encoder(&tokenizer(), Choice::Tokenizers)?;
    let fast = encoder(&tokenizer(), Choice::Fastokens)?;
    let auto = encoder(&tokenizer(), Choice::Auto)?;
    assert_eq!(
        (slow.name(), fast.name(), auto.name()),
        ("tokenizers", "fastokens", "fastokens")
    );
    assert_eq!(slow.encode(&texts, true)?, fast.encode(&texts, true)?);
    let mut ids = Vec::new();
    fast.encode_into("the<e>", true, &mut ids).unwrap();
    assert_eq!(ids, [257, 258]);
    assert_eq!(fast.check("the<e>", true, &ids), Ok(()));
    let said = fast.check("the<e>", true, &[257]).unwrap_err();
    assert!(
        said.contains("differ for \"the<e>\"… (6 bytes) from token 1 on: [] and [258]"),
        "{said}"
    );
    Ok(())
}

#[test]
fn what_fastokens_is_not_known_to_honour_is_named() -> Result<(), Error> {
    let cases = [
        ("/model/dropout", json!(0.1), "dropout"),
        (
            "/model/continuing_subword_prefix",
            json!("##"),
            "continuing_subword_prefix",
        ),
        ("/model/end_of_word_suffix", json!("</w>"), "end_of_word_suffix"),
        ("/model/unk_token", json!("<e>"), "unk_token without all bytes"),
        ("/normalizer", json!({"type": "NFKC"}), "the normalizer NFKC"),
        (
            "/normalizer",
            json!({"type": "Sequence", "normalizers": [{"type": "Lowercase"}]}),
            "the normalizer Lowercase",
        ),
        (
            "/pre_tokenizer",
            json!({"type": "Whitespace"}),
            "the pre-tokenizer Whitespace",
        ),
        (
            "/pre_tokenizer",
            json!({"type": "Split", "pattern": {"Regex": "\\w+"}, "behavior": "Isolated", "invert": false}),
            "the pattern or behavior of the pre-tokenizer Split",
        ),
        (
            "/post_processor",
            json!({"type": "RobertaProcessing", "sep": ["<e>", 258], "cls": ["<e>", 258],
            "trim_offsets": true, "add_prefix_space": true}),
            "the post-processor RobertaProcessing",
        ),
        (
            "/added_tokens/0/lstrip",
            json!(true),
            "the added token \"<e>\" with lstrip",
        ),
        (
            "/added_tokens/0/rstrip",
            json!(true),
            "the added token \"<e>\" with rstrip",
        ),
        (
            "/added_tokens/0/single_word",
            json!(true),
            "the added token \"<e>\" with single_word",
        ),
    ];
    for (place, value, reason) in cases {
        let mut json = tokenizer();
        json["model"]["merges"] = json!([]);
        *json.pointer_mut(place).unwrap() = value;
        let found = encoder(&json, Choice::Auto)?;
        assert_eq!(found.name(), "tokenizers", "{place}");
        assert!(found.why().starts_with(reason), "{}", found.why());
        assert!(found.encode(&["the<e>", ""], false).is_ok());
        assert!(
            matches!(encoder(&json, Choice::Fastokens), Err(Error::Engine { reason: said }) if said.starts_with(reason))
        );
    }
    Ok(())
}

#[test]
fn an_added_token_whose_id_is_not_the_one_written_is_found_by_the_probe() -> Result<(), Error> {
    // tokenizers takes the model's id for a text that the model knows; fastokens believes the file.
    let mut json = tokenizer();
    json["added_tokens"][0]["content"] = json!("the");
    let found = encoder(&json, Choice::Auto)?;
    assert_eq!(found.name(), "tokenizers");
    assert!(found.why().contains("differ for"), "{}", found.why());
    Ok(())
}

#[test]
fn names_are_checked() {
    assert!(matches!(Choice::from_name("gigatoken"), Err(Error::EngineName { .. })));
    assert_eq!(Choice::from_name("auto"), Ok(Choice::Auto));
    assert!(open(b"{", Choice::Auto).is_err());
}

#[test]
fn rows_stay_in_order_whatever_their_lengths() -> Result<(), Error> {
    let fast = encoder(&tokenizer(), Choice::Fastokens)?;
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
