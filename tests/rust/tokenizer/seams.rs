//! Seams: where they are, and which tokenizers have them.

use mipo::tokenizer::{Encoder, EngineChoice, Seams};
use serde_json::{Value, json};

use crate::data::byte_level;

/// Bytes, the merges of " the" and "er", and two added tokens.
pub(crate) fn tokenizer() -> Value {
    let mut json = byte_level(&[["Ġ", "t"], ["Ġt", "h"], ["Ġth", "e"], ["e", "r"]], &["<s>", "<e>"]);
    json["normalizer"] = json!({"type": "NFC"});
    json
}

/// A post-processor that puts `<s>` before a text, and `<e>` after it if asked.
pub(crate) fn around(end: bool) -> Value {
    let special = |id: u32, token: &str| json!({"id": token, "ids": [id], "tokens": [token]});
    let mut single = vec![
        json!({"SpecialToken": {"id": "<s>", "type_id": 0}}),
        json!({"Sequence": {"id": "A", "type_id": 0}}),
    ];
    if end {
        single.push(json!({"SpecialToken": {"id": "<e>", "type_id": 0}}));
    }
    json!({"type": "TemplateProcessing", "single": single,
           "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
           "special_tokens": {"<s>": special(260, "<s>"), "<e>": special(261, "<e>")}})
}

/// The tokenizer with another value at a place.
pub(crate) fn changed(pointer: &str, value: Value) -> Value {
    let mut json = tokenizer();
    *json.pointer_mut(pointer).unwrap() = value;
    json
}

pub(crate) fn encoder(json: &Value, choice: EngineChoice) -> Encoder {
    Encoder::from_json(json.to_string().as_bytes(), choice).unwrap()
}

#[test]
fn the_last_single_space_between_ascii_letters_is_the_seam() {
    let seams = Seams::of(&tokenizer());
    for (text, expected) in [
        ("a b", Some(1)),
        ("a b c. d  e é f g", Some(16)),
        ("a b c. d  e é x", Some(3)),
        ("日本 a b日本", Some(8)),
        ("a b ", Some(1)),
        (" a", None),
        ("a  b", None),
        ("a\nb", None),
        ("1 2", None),
        ("a é", None),
        ("a ", None),
        ("", None),
    ] {
        assert_eq!(seams.last(text), expected, "{text:?}");
    }
    assert_eq!(Seams::default().last("a b"), None);
}

#[test]
fn only_tokenizers_that_are_known_to_keep_them_have_seams() {
    let byte_level = &tokenizer()["pre_tokenizer"];
    let mut prefix = byte_level.clone();
    prefix["add_prefix_space"] = json!(true);
    let mut whole = byte_level.clone();
    whole["use_regex"] = json!(false);
    let digits = json!({"type": "Digits", "individual_digits": true});
    let sequence = |steps: &[&Value]| json!({"type": "Sequence", "pretokenizers": steps});
    for (pointer, value, expected) in [
        ("/normalizer", Value::Null, true),
        ("/pre_tokenizer", sequence(&[&digits, byte_level]), true),
        ("/normalizer", json!({"type": "Prepend", "prepend": "▁"}), false),
        ("/normalizer", json!({"type": "Sequence", "normalizers": []}), false),
        ("/pre_tokenizer", Value::Null, false),
        ("/pre_tokenizer", prefix, false),
        ("/pre_tokenizer", whole, false),
        ("/pre_tokenizer", sequence(&[byte_level, &digits]), false),
        ("/pre_tokenizer", json!({"type": "Metaspace"}), false),
        ("/added_tokens/0/content", json!("<a b>"), false),
        ("/added_tokens/0/content", json!("User "), false),
        ("/added_tokens/0/content", json!(" User"), true),
        ("/added_tokens/0/content", json!("a 1"), true),
    ] {
        let seams = Seams::of(&changed(pointer, value.clone()));
        assert_eq!(seams.last("a b").is_some(), expected, "{pointer} {value}");
    }
}

#[test]
fn an_encoder_has_seams_where_they_keep_the_ids_of_the_probe() {
    let seam = |json: &Value, choice| encoder(json, choice).seam("the others");
    assert_eq!(seam(&tokenizer(), EngineChoice::Auto), Some(3));
    assert_eq!(
        seam(&changed("/post_processor", around(false)), EngineChoice::Auto),
        Some(3)
    );
    assert_eq!(
        seam(&changed("/post_processor", around(true)), EngineChoice::Auto),
        None
    );
    assert_eq!(seam(&tokenizer(), EngineChoice::Tokenizers), None);
}
