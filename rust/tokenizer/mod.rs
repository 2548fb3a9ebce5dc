//! The tokenizer: chats to texts by its chat template, texts to ids by the engine that is right and fast. Knows no
//! preference groups and no Python.

mod filters;
mod probe;

pub mod encoder;
pub mod engine;
pub mod pytext;
pub mod seams;
pub mod template;
