//! Engines that turn a text into ids, and the choice of one for a tokenizer. Knows no table and no Python.

use std::sync::Arc;

use serde_json::Value;
use tokenizers::Tokenizer;

use crate::error::Error;
use crate::tokenizer::probe;
use crate::tokenizer::seams::Seams;

/// What turns a text into ids.
pub trait Engine: Send + Sync {
    /// Appends the ids of `text` to `ids`; `add_special_tokens` as in `tokenizers`.
    ///
    /// # Errors
    /// A text that the engine refuses, in the engine's words.
    fn encode(&self, text: &str, add_special_tokens: bool, ids: &mut Vec<u32>) -> Result<(), String>;
}

/// The `tokenizers` crate: the truth, since transformers and TRL use it.
#[derive(Debug)]
pub struct HuggingFace(Tokenizer);

impl HuggingFace {
    fn from_json(json: &[u8]) -> Result<Self, Error> {
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

    /// Added tokens as they are written.
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
struct Fastokens {
    tokenizer: fastokens::Tokenizer,
    truth: Arc<HuggingFace>,
}

impl Engine for Fastokens {
    fn encode(&self, text: &str, add_special_tokens: bool, ids: &mut Vec<u32>) -> Result<(), String> {
        match self.tokenizer.encode_with_special_tokens(text, add_special_tokens) {
            Ok(found) => {
                ids.extend_from_slice(&found);
                Ok(())
            }
            // fastokens refuses what tokenizers leaves out, such as the bytes that smollm2's vocabulary lacks.
            Err(_) => self.truth.encode(text, add_special_tokens, ids),
        }
    }
}

/// Which engine is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// fastokens where its ids are those of tokenizers, else tokenizers.
    Auto,
    /// fastokens, or an error.
    Fastokens,
    /// tokenizers.
    Tokenizers,
}

impl Choice {
    /// The choice of this name.
    ///
    /// # Errors
    /// Another name than `auto`, `fastokens` and `tokenizers`.
    pub fn from_name(name: &str) -> Result<Self, Error> {
        match name {
            "auto" => Ok(Self::Auto),
            "fastokens" => Ok(Self::Fastokens),
            "tokenizers" => Ok(Self::Tokenizers),
            _ => Err(Error::EngineName { got: name.to_owned() }),
        }
    }
}

/// The engine of a tokenizer, and the truth beside it.
pub struct Opened {
    /// What encodes.
    pub engine: Arc<dyn Engine>,
    /// What `engine` is held against; the same where tokenizers encodes.
    pub truth: Arc<HuggingFace>,
    /// Where a text may be cut, and encoded with special tokens for the first part alone.
    pub seams: Seams,
    /// `fastokens` or `tokenizers`.
    pub name: &'static str,
    /// Why it is this engine, in a sentence.
    pub why: String,
}

/// Opens the tokenizer of a `tokenizer.json`, which neither cuts nor pads, whatever is said there.
///
/// # Errors
/// Bytes that are no `tokenizer.json`; fastokens asked for where it cannot be.
pub fn open(json: &[u8], choice: Choice) -> Result<Opened, Error> {
    let slow = |truth: Arc<HuggingFace>, why: String| Opened {
        engine: truth.clone(),
        truth,
        seams: Seams::default(),
        name: "tokenizers",
        why,
    };
    if choice == Choice::Tokenizers {
        return Ok(slow(Arc::new(HuggingFace::from_json(json)?), "asked for".to_owned()));
    }
    // Both take most of a second for a vocabulary of 150,000, so each has a thread.
    let (truth, fast) = rayon::join(|| HuggingFace::from_json(json), || load_fast(json));
    let truth = Arc::new(truth?);
    let probed = fast.and_then(|(tokenizer, seams)| {
        let truth = truth.clone();
        let fast = Fastokens { tokenizer, truth };
        Ok((probe::compare(&fast, &fast.truth)?, fast, seams))
    });
    match probed {
        Ok((texts, fast, seams)) => Ok(Opened {
            engine: Arc::new(fast),
            seams: if probe::keeps(seams, &truth) {
                seams
            } else {
                Seams::default()
            },
            truth,
            name: "fastokens",
            why: format!("its ids are those of tokenizers for {texts} probe texts"),
        }),
        Err(reason) if choice == Choice::Fastokens => Err(Error::Engine { reason }),
        Err(reason) => Ok(slow(truth, reason)),
    }
}

/// fastokens for a tokenizer in which nothing is known to be treated differently; else why not.
fn load_fast(json: &[u8]) -> Result<(fastokens::Tokenizer, Seams), String> {
    let json: Value = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    probe::inspect(&json)?;
    let seams = Seams::of(&json);
    let loaded = fastokens::Tokenizer::from_json(json);
    let mut tokenizer = loaded.map_err(|reason| format!("fastokens refuses the tokenizer: {reason}"))?;
    tokenizer.set_truncation(None);
    tokenizer.set_padding(None);
    Ok((tokenizer, seams))
}
