//! The tokenizer: its chat template turns chats into texts, and its engine turns texts into ids. Knows no preference
//! groups and no Python.

mod config;
mod encoder;
mod engine;
mod filters;
mod open;
mod probe;
pub mod pytext;
mod seams;
mod table;
mod template;

pub use encoder::Encoder;
pub use engine::EngineChoice;
pub use seams::Seams;
pub use table::Table;
pub use template::{Conversations, Rendering, Template};
