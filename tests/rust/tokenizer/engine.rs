//! Which engine a tokenizer gets, and that a step which fastokens is not known to support is named.

use mipo::error::Error;
use mipo::tokenizer::{Encoder, EngineChoice};
use serde_json::{Value, json};

use crate::data::byte_level;

/// Bytes, the merges of "the", and one added token.
fn tokenizer() -> Value {
    byte_level(&[["t", "h"], ["th", "e"]], &["<e>"])
}

fn encoder(json: &Value, choice: EngineChoice) -> Result<Encoder, Error> {
    Encoder::from_json(json.to_string().as_bytes(), choice)
}

#[test]
fn the_chosen_engine_encodes_and_both_give_the_same_ids() -> Result<(), Error> {
    let texts = ["the<e>the", "", "th\0e\u{1f600}", "<e", "日本"];
    let slow = encoder(&tokenizer(), EngineChoice::Tokenizers)?;
    let fast = encoder(&tokenizer(), EngineChoice::Fastokens)?;
    let auto = encoder(&tokenizer(), EngineChoice::Auto)?;
    assert_eq!(
        (slow.name(), fast.name(), auto.name()),
        ("tokenizers", "fastokens", "fastokens")
    );
    assert_eq!(slow.encode(&texts, true)?, fast.encode(&texts, true)?);
    let mut ids = Vec::new();
    fast.encode_into("the<e>", true, &mut ids).unwrap();
    assert_eq!(ids, [257, 258]);
    assert_eq!(fast.check("the<e>", true, &ids), Ok(()));
    let difference = fast.check("the<e>", true, &[257]).unwrap_err();
    assert!(
        difference.contains("differ for \"the<e>\"… (6 bytes) from token 1 on: [] and [258]"),
        "{difference}"
    );
    Ok(())
}

#[test]
fn what_fastokens_is_not_known_to_support_is_named() -> Result<(), Error> {
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
        let opened = encoder(&json, EngineChoice::Auto)?;
        assert_eq!(opened.name(), "tokenizers", "{place}");
        assert!(opened.why().starts_with(reason), "{}", opened.why());
        assert!(opened.encode(&["the<e>", ""], false).is_ok());
        let refusal = encoder(&json, EngineChoice::Fastokens).err();
        assert!(matches!(refusal, Some(Error::Fastokens { reason: why }) if why.starts_with(reason)));
    }
    Ok(())
}

#[test]
fn an_added_token_whose_id_is_not_the_one_written_is_detected_by_the_probe() -> Result<(), Error> {
    // tokenizers takes the model's id for a text that the model knows; fastokens believes the file.
    let mut json = tokenizer();
    json["added_tokens"][0]["content"] = json!("the");
    let opened = encoder(&json, EngineChoice::Auto)?;
    assert_eq!(opened.name(), "tokenizers");
    assert!(opened.why().contains("differ for"), "{}", opened.why());
    Ok(())
}

#[test]
fn names_are_checked() {
    assert!(matches!(
        EngineChoice::from_name("gigatoken"),
        Err(Error::UnknownEngine { .. })
    ));
    assert_eq!(EngineChoice::from_name("auto"), Ok(EngineChoice::Auto));
    assert!(Encoder::from_json(b"{", EngineChoice::Auto).is_err());
}
