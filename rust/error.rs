//! Every way in which a call can be wrong, and the Python exception that it becomes. Knows no algorithm.

/// A call that cannot be served: what was expected, what was got, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A counterpart is another row, so there must be another row.
    #[error("n: expected at least 2 rows, since a counterpart is another row, got {0}; bring more prompts")]
    TooFewRows(u64),
    /// Positions are added to shifts in 64 bits.
    #[error("n: expected at most 2^63 rows, got {0}; split the rows into several sets")]
    TooManyRows(u64),
    /// Zero counterparts a row.
    #[error("negatives: expected at least 1 counterpart a row, got 0; ask for 1, which is plain DPO")]
    NoNegatives,
    /// More distinct counterparts than there are other rows.
    #[error("negatives: expected at most {} distinct counterparts among {n} rows, got {negatives}; \
             ask for fewer or bring more prompts", n - 1)]
    TooManyNegatives {
        /// Counterparts a row.
        negatives: u64,
        /// Rows.
        n: u64,
    },
    /// A slice that ends before it starts, or after the last row.
    #[error(
        "start, stop: expected 0 <= start <= stop <= {n}, got {start} and {stop}; \
             a shard is a part of the rows 0..n"
    )]
    Slice {
        /// First row of the slice.
        start: u64,
        /// One past its last row.
        stop: u64,
        /// Rows.
        n: u64,
    },
    /// The result does not fit in memory.
    #[error(
        "expected a result that fits in memory, got {rows} rows of {negatives} counterparts; \
             ask for a slice of the rows or for fewer negatives"
    )]
    Memory {
        /// Rows of the result.
        rows: u64,
        /// Counterparts a row.
        negatives: u64,
    },
    /// What a call needs does not fit in memory.
    #[error(
        "expected {mebibytes} MiB of free memory for this call, got less; free some, raise the limit (ulimit -v), \
             or give fewer rows"
    )]
    NoMemory {
        /// Mebibytes that the call needs at most.
        mebibytes: usize,
    },
    /// The system starts no thread, mostly for want of memory.
    #[error("expected the system to start the threads of this call, got {reason}; free memory, or raise the limit")]
    NoThreads {
        /// The system's message.
        reason: String,
    },
    /// Without a column that must differ a row could be its own counterpart.
    #[error(
        "differ_codes: expected at least one column in which a counterpart must differ, got none; \
             give the code of the prompt text"
    )]
    NoDiffer,
    /// No distance is within a tolerance below 0.
    #[error("tolerance: expected a number of at least 0, got {0}; give the largest difference of two near values")]
    Tolerance(String),
    /// Arrays that describe the same rows have different lengths.
    #[error("{name}: expected length {expected}, got {got}; give one entry for each {what}")]
    Length {
        /// The argument.
        name: String,
        /// What an entry is of.
        what: &'static str,
        /// Length that the other arguments imply.
        expected: usize,
        /// Length of the argument.
        got: usize,
    },
    /// Offsets that fall, or leave the array that they point into.
    #[error(
        "{name}: expected offsets that never fall, from 0 to at most {limit}, got {got} at place {place}; \
             row i lies at offsets[i]..offsets[i + 1]"
    )]
    Offsets {
        /// The argument.
        name: &'static str,
        /// Length of the array that the offsets point into.
        limit: usize,
        /// The first wrong offset.
        got: i64,
        /// Where it stands.
        place: usize,
    },
    /// A table without offsets.
    #[error("{name}: expected one offset more than there are rows, got no offsets; an empty table has the offset 0")]
    NoOffsets {
        /// The argument.
        name: &'static str,
    },
    /// A `tokenizer.json` that cannot be read.
    #[error(
        "json: expected the bytes of a tokenizer.json, got {got} bytes that cannot be read: {reason}; \
             save the tokenizer with `save_pretrained` and give that file"
    )]
    Tokenizer {
        /// Bytes of the argument.
        got: usize,
        /// The message of the tokenizers library.
        reason: String,
    },
    /// A text of a table that the tokenizer refuses.
    #[error(
        "texts: expected a text that the tokenizer can encode, got row {row}, which it refuses: {reason}; \
             drop the row or use another tokenizer"
    )]
    EncodeText {
        /// Row of the text.
        row: usize,
        /// The message of the tokenizers library.
        reason: String,
    },
    /// A text of a preference group that its chat template refuses to render.
    #[error("row {row}: {reason}")]
    RenderGroup {
        /// Row in the source.
        row: u64,
        /// The message of the template.
        reason: String,
    },
    /// A text of a preference group that the tokenizer refuses.
    #[error("row {row}: {reason}")]
    EncodeGroup {
        /// Row in the source.
        row: u64,
        /// The message of the tokenizers library.
        reason: String,
    },
    /// A name of no engine.
    #[error("encoder: expected auto, fastokens or tokenizers, got {got:?}; leave it at auto")]
    UnknownEngine {
        /// The name.
        got: String,
    },
    /// fastokens required for a tokenizer whose ids it is not known to give.
    #[error("encoder: fastokens cannot take this tokenizer: {reason}; use encoder=\"auto\" or encoder=\"tokenizers\"")]
    Fastokens {
        /// Why not.
        reason: String,
    },
    /// Ids that are not those of the tokenizers library.
    #[error("texts: the ids of row {row} are not the tokenizer's: {reason}; use encoder=\"tokenizers\"")]
    DifferentIds {
        /// Row of the text.
        row: usize,
        /// The beginning of the text, and the ids of both engines.
        reason: String,
    },
    /// Runs of length 0.
    #[error("{name}: expected at least 1, got 0; it says how many successive {what} are compared")]
    EmptyRun {
        /// The argument.
        name: &'static str,
        /// What a run is made of.
        what: &'static str,
    },
    /// A share that no two texts, or any two texts, would reach.
    #[error("{name}: expected a share above 0 and up to 1, got {got}; give a share, for example 0.8")]
    Share {
        /// The argument.
        name: &'static str,
        /// The share.
        got: String,
    },
    /// Rows and characters are counted in 32 bits here.
    #[error(
        "texts: expected fewer than 2^32 - 1 texts and bytes in a text, got {got}; split the rows into several sets"
    )]
    TooLarge {
        /// Texts, or bytes in one.
        got: usize,
    },
    /// A missing text.
    #[error("texts: expected a text in every row, got a null in row {row}; drop the row or fill it")]
    Null {
        /// The first row with a null.
        row: usize,
    },
    /// A chat template that minijinja cannot parse.
    #[error("template: expected what `mipo.tokenizer.jinja` writes of a chat template, got {reason}")]
    Template {
        /// The message of the template engine.
        reason: String,
    },
    /// Messages in several Arrow chunks.
    #[error("conversations: expected an Arrow array in one chunk, got {got}; combine them")]
    Chunks {
        /// Chunks.
        got: usize,
    },
    /// An Arrow array of other things than messages of texts.
    #[error(
        "conversations: expected an Arrow array of lists of messages whose fields are strings, got {got}; \
             nested fields are left to transformers"
    )]
    NotMessages {
        /// The Arrow type.
        got: String,
    },
    /// Bytes in an Arrow array of text that are not UTF-8.
    #[error(
        "texts: expected UTF-8 in every row, got other bytes in row {row} from byte {byte} on; \
             drop the row or decode it with errors=\"replace\""
    )]
    NotUtf8 {
        /// The first such row.
        row: usize,
        /// Where in the row the first wrong byte stands.
        byte: usize,
    },
    /// An Arrow array whose offsets fall or leave its bytes.
    #[error(
        "texts: expected offsets that never fall and stay in the array's bytes, got others in row {row}; \
             build the array again"
    )]
    TextOffsets {
        /// The first such row.
        row: usize,
    },
    /// An Arrow array of other things than text.
    #[error("texts: expected an Arrow array of string, large_string or string_view, got {got}; cast it to string")]
    NotText {
        /// The Arrow type.
        got: String,
    },
}

/// The Python classes of these errors: also a `ValueError` and a `TypeError`, and what the command line shows in a line.
#[cfg(feature = "python")]
pub(crate) mod python {
    pyo3::import_exception!(mipo.errors, InputError);
    pyo3::import_exception!(mipo.errors, InputTypeError);
}

#[cfg(feature = "python")]
impl From<Error> for pyo3::PyErr {
    fn from(error: Error) -> Self {
        use pyo3::exceptions::PyMemoryError;
        use python::{InputError, InputTypeError};
        let message = error.to_string();
        match error {
            Error::Memory { .. } | Error::NoMemory { .. } | Error::NoThreads { .. } => PyMemoryError::new_err(message),
            Error::NotText { .. } | Error::NotMessages { .. } => InputTypeError::new_err(message),
            _ => InputError::new_err(message),
        }
    }
}
