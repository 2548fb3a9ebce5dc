//! The engine of a tokenizer: fastokens where the config allows it and the probe agrees, else tokenizers.

use std::sync::Arc;

use serde_json::Value;

use crate::error::Error;
use crate::tokenizer::engine::{Engine, EngineChoice, Fastokens, HuggingFace};
use crate::tokenizer::seams::Seams;
use crate::tokenizer::{config, probe};

/// The engine of a tokenizer, and the reference beside it.
pub(crate) struct Opened {
    /// The engine that encodes.
    pub(crate) engine: Arc<dyn Engine>,
    /// What `engine` is compared with; the same one where tokenizers encodes.
    pub(crate) reference: Arc<HuggingFace>,
    /// Where a text may be cut, and encoded with special tokens for the first part alone.
    pub(crate) seams: Seams,
    /// `fastokens` or `tokenizers`.
    pub(crate) name: &'static str,
    /// Why it is this engine, in a few words.
    pub(crate) why: String,
}

/// Opens the tokenizer of a `tokenizer.json`, without the truncation and padding that it may ask for.
pub(crate) fn open(json: &[u8], choice: EngineChoice) -> Result<Opened, Error> {
    let slow = |reference: Arc<HuggingFace>, why: String| Opened {
        engine: reference.clone(),
        reference,
        seams: Seams::default(),
        name: "tokenizers",
        why,
    };
    if choice == EngineChoice::Tokenizers {
        return Ok(slow(Arc::new(HuggingFace::from_json(json)?), "asked for".to_owned()));
    }
    // Both take most of a second for a vocabulary of 150,000, so each has a thread.
    let (reference, fast) = rayon::join(|| HuggingFace::from_json(json), || load_fast(json));
    let reference = Arc::new(reference?);
    let probed = fast.and_then(|(tokenizer, seams)| {
        let reference = reference.clone();
        let fast = Fastokens { tokenizer, reference };
        Ok((probe::compare(&fast, &fast.reference)?, fast, seams))
    });
    match probed {
        Ok((texts, fast, seams)) => Ok(Opened {
            engine: Arc::new(fast),
            seams: if probe::keeps(seams, &reference) {
                seams
            } else {
                Seams::default()
            },
            reference,
            name: "fastokens",
            why: format!("its ids are those of tokenizers for {texts} probe texts"),
        }),
        Err(reason) if choice == EngineChoice::Fastokens => Err(Error::Fastokens { reason }),
        Err(reason) => Ok(slow(reference, reason)),
    }
}

/// fastokens for a tokenizer that it is known to read as tokenizers does; else why not.
fn load_fast(json: &[u8]) -> Result<(fastokens::Tokenizer, Seams), String> {
    let json: Value = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    config::inspect(&json)?;
    let seams = Seams::of(&json);
    let loaded = fastokens::Tokenizer::from_json(json);
    let mut tokenizer = loaded.map_err(|reason| format!("fastokens refuses the tokenizer: {reason}"))?;
    tokenizer.set_truncation(None);
    tokenizer.set_padding(None);
    Ok((tokenizer, seams))
}
