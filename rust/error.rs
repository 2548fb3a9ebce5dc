//! Every way in which a call can be wrong, and the Python exception that it becomes. Knows no algorithm.

/// What was expected, what came, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A counterpart is another row, so there must be another row.
    #[error("n: expected at least 2 rows, since a counterpart is another row, got {0}; bring more prompts")]
    TooFewRows(u64),
    /// Positions are added to shifts in 64 bits.
    #[error("n: expected at most 2^63 rows, got {0}; split the rows into several sets")]
    TooManyRows(u64),
    /// No counterpart was asked for.
    #[error("negatives: expected at least 1 counterpart a row, got 0; ask for 1, which is plain DPO")]
    NoNegatives,
    /// More distinct counterparts than there are other rows.
    #[error("negatives: expected at most {} distinct counterparts among {n} rows, got {negatives}; \
             ask for fewer or bring more prompts", n - 1)]
    TooManyNegatives {
        /// Counterparts asked for.
        negatives: u64,
        /// Rows there are.
        n: u64,
    },
    /// A slice that ends before it starts, or after the last row.
    #[error(
        "start, stop: expected 0 <= start <= stop <= {n}, got {start} and {stop}; \
             a shard is a part of the rows 0..n"
    )]
    Slice {
        /// First row asked for.
        start: u64,
        /// One past the last row asked for.
        stop: u64,
        /// Rows there are.
        n: u64,
    },
    /// The result does not fit in memory.
    #[error(
        "expected a result that fits in memory, got {rows} rows of {negatives} counterparts; \
             ask for a slice of the rows or for fewer negatives"
    )]
    Memory {
        /// Rows asked for.
        rows: u64,
        /// Counterparts asked for in each.
        negatives: u64,
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
        /// What an entry stands for.
        what: &'static str,
        /// Length that the other arguments imply.
        expected: usize,
        /// Length that came.
        got: usize,
    },
    /// Offsets that fall, or leave the array that they point into.
    #[error(
        "{name}: expected offsets that never fall, from 0 to at most {limit}, got {got} at place {place}; \
             offsets[i]..offsets[i + 1] is row i"
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
    /// A table with no offsets at all: even an empty one has the offset 0.
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
        /// Bytes that came.
        got: usize,
        /// The tokenizers library's own words.
        reason: String,
    },
    /// A text that the tokenizer refuses.
    #[error(
        "texts: expected a text that the tokenizer can encode, got row {row}, which it refuses: {reason}; \
             drop the row or use another tokenizer"
    )]
    Text {
        /// Row of the text.
        row: usize,
        /// The tokenizers library's own words.
        reason: String,
    },
    /// A text of a preference group that is not to be had, as from a template that refuses the messages.
    #[error("row {row}: {reason}")]
    Unmade {
        /// Row in the source.
        row: u64,
        /// Why, in the template's words.
        reason: String,
    },
    /// A text of a preference group that the tokenizer refuses.
    #[error("row {row}: {reason}")]
    Group {
        /// Row in the source.
        row: u64,
        /// Their own words.
        reason: String,
    },
    /// An engine that there is not.
    #[error("encoder: expected auto, fastokens or tokenizers, got {got:?}; leave it at auto")]
    EngineName {
        /// The name that came.
        got: String,
    },
    /// fastokens asked for where its ids are not known to be the tokenizer's.
    #[error("encoder: fastokens cannot take this tokenizer: {reason}; use encoder=\"auto\" or encoder=\"tokenizers\"")]
    Engine {
        /// What was found.
        reason: String,
    },
    /// Two engines that should give the same ids and do not.
    #[error("texts: the ids of row {row} are not the tokenizer's: {reason}; use encoder=\"tokenizers\"")]
    Differs {
        /// Row of the text.
        row: usize,
        /// The text, and what both engines say.
        reason: String,
    },
    /// Runs of nothing.
    #[error("{name}: expected at least 1, got 0; it says how many successive {what} are compared")]
    NoNgram {
        /// The argument.
        name: &'static str,
        /// What a run is made of.
        what: &'static str,
    },
    /// A share that no two texts, or any two texts, would reach.
    #[error("{name}: expected a share above 0 and up to 1, got {got}; give one as 0.8")]
    Share {
        /// The argument.
        name: &'static str,
        /// The share that came.
        got: String,
    },
    /// Rows and characters are counted in 32 bits here.
    #[error(
        "texts: expected fewer than 2^32 - 1 texts and bytes in a text, got {got}; split the rows into several sets"
    )]
    TooLong {
        /// Texts, or bytes in one.
        got: usize,
    },
    /// A missing text.
    #[error("texts: expected a text in every row, got a null in row {row}; drop the row or fill it")]
    Null {
        /// The first row with a null.
        row: usize,
    },
    /// A chat template that is not in the normal form.
    #[error("template: expected the normal form that `mipo.jinja` makes of a chat template, got {reason}")]
    Template {
        /// What the template engine says.
        reason: String,
    },
    /// Messages in several pieces.
    #[error("conversations: expected an Arrow array in one chunk, got {got}; combine them")]
    Chunks {
        /// How many chunks came.
        got: usize,
    },
    /// An Arrow array of something else than messages of texts.
    #[error(
        "conversations: expected an Arrow array of lists of messages whose fields are strings, got {got}; \
             nested fields are left to transformers"
    )]
    NotMessages {
        /// The Arrow type that came.
        got: String,
    },
    /// Bytes that an Arrow array calls text and that are none.
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
             make the array anew"
    )]
    TextOffsets {
        /// The first such row.
        row: usize,
    },
    /// An Arrow array of something else than text.
    #[error("texts: expected an Arrow array of string, large_string or string_view, got {got}; cast it to string")]
    NotText {
        /// The Arrow type that came.
        got: String,
    },
}

#[cfg(feature = "python")]
impl From<Error> for pyo3::PyErr {
    fn from(error: Error) -> Self {
        use pyo3::exceptions::{PyMemoryError, PyTypeError, PyValueError};
        let message = error.to_string();
        match error {
            Error::Memory { .. } => PyMemoryError::new_err(message),
            Error::NotText { .. } | Error::NotMessages { .. } => PyTypeError::new_err(message),
            _ => PyValueError::new_err(message),
        }
    }
}
