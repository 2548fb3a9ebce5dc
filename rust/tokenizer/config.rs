//! What a `tokenizer.json` says, and whether fastokens reads it as tokenizers does. Knows JSON and runs no engine.

use fastokens::tiktoken;
use serde_json::Value;

/// Refuses a tokenizer with a step that is not known to be the same in fastokens 0.3.5 and tokenizers 0.23; says which.
///
/// What is listed passes, so a step that is new is refused. Regular expressions pass only where fastokens has a scanner
/// of its own for them: it hands others to PCRE2, whose character classes are those of another version of Unicode than
/// Oniguruma's, and caches their matches by thread.
pub(crate) fn inspect(json: &Value) -> Result<(), String> {
    inspect_model(&json["model"])?;
    inspect_normalizer(&json["normalizer"])?;
    inspect_pre_tokenizer(&json["pre_tokenizer"])?;
    inspect_post_processor(&json["post_processor"])?;
    inspect_added(
        json["added_tokens"].as_array().map_or(&[], Vec::as_slice),
        json["normalizer"].is_null(),
    )
}

fn refuse<T>(what: &str) -> Result<T, String> {
    Err(format!(
        "{what} is not known to be the same in fastokens as in tokenizers"
    ))
}

/// The type of a step or model.
pub(crate) fn kind(step: &Value) -> &str {
    step["type"].as_str().unwrap_or("none")
}

fn is_set(value: &Value) -> bool {
    !(value.is_null() || value.as_str() == Some(""))
}

fn inspect_model(model: &Value) -> Result<(), String> {
    // Older files name no type; tokenizers recognizes BPE by its merges.
    let is_bpe = kind(model) == "BPE" || (model["type"].is_null() && model["merges"].is_array());
    if !is_bpe {
        return refuse(&format!("the model {}", kind(model)));
    }
    if model["dropout"].as_f64().is_some_and(|p| p != 0.0) {
        return refuse("dropout");
    }
    for affix in ["continuing_subword_prefix", "end_of_word_suffix"] {
        if is_set(&model[affix]) {
            return refuse(affix);
        }
    }
    let falls_back = model["byte_fallback"] == true
        && (0..=255u8).all(|byte| model["vocab"][format!("<0x{byte:02X}>").as_str()].is_u64());
    if is_set(&model["unk_token"]) && !falls_back {
        return refuse("unk_token without all bytes to fall back on");
    }
    Ok(())
}

fn inspect_normalizer(step: &Value) -> Result<(), String> {
    match kind(step) {
        "none" if step.is_null() => Ok(()),
        "NFC" | "Prepend" => Ok(()),
        "Replace" if is_set(&step["pattern"]["String"]) => Ok(()),
        "Sequence" => each(&step["normalizers"], inspect_normalizer),
        other => refuse(&format!("the normalizer {other}")),
    }
}

fn inspect_pre_tokenizer(step: &Value) -> Result<(), String> {
    if is_scanned(step) {
        return Ok(());
    }
    match kind(step) {
        "none" if step.is_null() => Ok(()),
        "ByteLevel" | "Digits" => Ok(()),
        "Sequence" => each(&step["pretokenizers"], inspect_pre_tokenizer),
        "Split" => refuse("the pattern or behavior of the pre-tokenizer Split"),
        other => refuse(&format!("the pre-tokenizer {other}")),
    }
}

/// Whether a pre-tokenizer is Split steps for whose patterns fastokens has scanners, before a ByteLevel that only maps
/// bytes.
pub(crate) fn is_scanned(step: &Value) -> bool {
    let steps = step["pretokenizers"].as_array().map_or(&[][..], Vec::as_slice);
    let Some((last, splits)) = steps.split_last() else {
        return false;
    };
    let maps_bytes = kind(last) == "ByteLevel" && last["use_regex"] == false && last["add_prefix_space"] == false;
    let isolated = |step: &Value| kind(step) == "Split" && step["behavior"] == "Isolated" && step["invert"] == false;
    let inverted = |step: &Value| kind(step) == "Split" && step["behavior"] == "Removed" && step["invert"] == true;
    let pattern = |step: &Value| step["pattern"]["Regex"].as_str().unwrap_or_default().to_owned();
    let single = [
        tiktoken::CL100K_BASE_PATTERN,
        tiktoken::QWEN2_PATTERN,
        tiktoken::QWEN35_PATTERN,
        tiktoken::O200K_BASE_PATTERN,
        tiktoken::TEKKEN_PATTERN,
    ];
    let deepseek = [
        tiktoken::DEEPSEEK_SPLIT1_PATTERN,
        tiktoken::DEEPSEEK_SPLIT2_PATTERN,
        tiktoken::DEEPSEEK_SPLIT3_PATTERN,
    ];
    maps_bytes
        && match splits {
            [split] => (isolated(split) || inverted(split)) && single.contains(&pattern(split).as_str()),
            splits => splits.iter().all(isolated) && splits.iter().map(pattern).eq(deepseek),
        }
}

fn inspect_post_processor(step: &Value) -> Result<(), String> {
    match kind(step) {
        "none" if step.is_null() => Ok(()),
        "ByteLevel" | "TemplateProcessing" => Ok(()),
        "Sequence" => each(&step["processors"], inspect_post_processor),
        other => refuse(&format!("the post-processor {other}")),
    }
}

fn inspect_added(tokens: &[Value], plain: bool) -> Result<(), String> {
    // Without a normalizer, `normalized` only says which tokens are looked for first: nothing, if all have the same.
    let alike = plain
        && tokens
            .iter()
            .all(|token| token["normalized"] == tokens[0]["normalized"]);
    for token in tokens {
        for flag in ["single_word", "lstrip", "rstrip", "normalized"] {
            if token[flag] == true && !(flag == "normalized" && alike) {
                return refuse(&format!("the added token {} with {flag}", token["content"]));
            }
        }
        if !is_set(&token["content"]) {
            return refuse("an empty added token");
        }
    }
    Ok(())
}

fn each(steps: &Value, inspect: fn(&Value) -> Result<(), String>) -> Result<(), String> {
    steps
        .as_array()
        .map_or(&[][..], Vec::as_slice)
        .iter()
        .try_for_each(inspect)
}
