//! Tokens: preference groups become row numbers of tables of ids, in which each prompt and response is stored once.
//! Knows texts, ids and row numbers; no columns and no Python.

mod distinct;
mod groups;
mod interner;
mod texts;

pub use groups::{GroupRows, Groups, Verdict};
pub use interner::Interner;
pub use texts::{Chats, Plain, Rendered, Response, Texts, Truncated};
