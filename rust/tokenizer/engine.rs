//! Engines that turn a text into ids. Knows no tables, and not which engine suits a tokenizer.

use std::sync::Arc;

use tokenizers::Tokenizer;

use crate::error::Error;

/// Turns a text into ids.
pub(crate) trait Engine: Send + Sync {
    /// Appends the ids of `text` to `ids`; `add_special_tokens` as in `tokenizers`.
    /// The error is the engine's message about a text that it refuses.
    fn encode(&self, text: &str, add_special_tokens: bool, ids: &mut Vec<u32>) -> Result<(), String>;
}

/// The `tokenizers` crate: the reference for every other engine, since transformers and TRL use it.
#[derive(Debug)]
pub(crate) struct HuggingFace(Tokenizer);

impl HuggingFace {
    /// The tokenizer of a `tokenizer.json`, without its truncation and padding.
    pub(crate) fn from_json(json: &[u8]) -> Result<Self, Error> {
        let refuse = |reason: tokenizers::Error| Error::Tokenizer {
            got: json.len(),
            reason: reason.to_string(),
        };
        let mut tokenizer = Tokenizer::from_bytes(json).map_err(refuse)?;
        tokenizer.with_truncation(None).map_err(refuse)?.with_padding(None);
        Ok(Self(tokenizer))
    }

    pub(crate) fn decode(&self, ids: &[u32]) -> Option<String> {
        self.0.decode(ids, false).ok()
    }

    pub(crate) fn vocabulary(&self) -> u32 {
        u32::try_from(self.0.get_vocab_size(false)).unwrap_or(u32::MAX)
    }

    /// The texts of the added tokens, in the order of their ids.
    pub(crate) fn added(&self) -> Vec<String> {
        let decoder = self.0.get_added_tokens_decoder();
        let mut tokens: Vec<_> = decoder.into_iter().map(|(id, token)| (id, token.content)).collect();
        tokens.sort_unstable();
        tokens.into_iter().map(|(_, content)| content).collect()
    }
}

impl Engine for HuggingFace {
    fn encode(&self, text: &str, add_special_tokens: bool, ids: &mut Vec<u32>) -> Result<(), String> {
        // The fast variant leaves out the offsets into the text, which nobody here asks for.
        let encoding = self.0.encode_fast(text, add_special_tokens);
        ids.extend_from_slice(encoding.map_err(|reason| reason.to_string())?.get_ids());
        Ok(())
    }
}

/// The `fastokens` crate: byte-pair encoding at the speed of memory.
pub(crate) struct Fastokens {
    pub(crate) tokenizer: fastokens::Tokenizer,
    pub(crate) reference: Arc<HuggingFace>,
}

impl Engine for Fastokens {
    fn encode(&self, text: &str, add_special_tokens: bool, ids: &mut Vec<u32>) -> Result<(), String> {
        match self.tokenizer.encode_with_special_tokens(text, add_special_tokens) {
            Ok(encoded) => {
                ids.extend_from_slice(&encoded);
                Ok(())
            }
            // fastokens refuses what tokenizers leaves out, such as the bytes that SmolLM2's vocabulary lacks.
            Err(_) => self.reference.encode(text, add_special_tokens, ids),
        }
    }
}

/// Which engine an encoder may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineChoice {
    /// fastokens where its ids are those of tokenizers, else tokenizers.
    Auto,
    /// fastokens, or an error.
    Fastokens,
    /// tokenizers.
    Tokenizers,
}

impl EngineChoice {
    /// The choice by its name.
    ///
    /// # Errors
    /// A name other than `auto`, `fastokens` and `tokenizers`.
    pub fn from_name(name: &str) -> Result<Self, Error> {
        match name {
            "auto" => Ok(Self::Auto),
            "fastokens" => Ok(Self::Fastokens),
            "tokenizers" => Ok(Self::Tokenizers),
            _ => Err(Error::UnknownEngine { got: name.to_owned() }),
        }
    }
}
