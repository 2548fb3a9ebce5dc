//! Tokens: preference groups as row numbers of tables of ids. Knows texts, ids and row numbers, no columns and no Python.

pub mod groups;
pub mod texts;
