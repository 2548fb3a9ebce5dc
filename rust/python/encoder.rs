//! The doors of the room `tokens`.

use numpy::{IntoPyArray, PyArray1};
use pyo3::prelude::*;

use super::{chunks, strings};
use crate::tokenizer::encoder::{self, Table};
use crate::tokenizer::engine::Choice;

/// A tokenizer that neither cuts nor pads, whatever its tokenizer.json says.
#[pyclass(frozen, module = "mipo._native")]
pub(super) struct Encoder(pub(super) encoder::Encoder);

#[pymethods]
impl Encoder {
    #[new]
    #[pyo3(signature = (json, engine="auto"))]
    fn new(py: Python<'_>, json: &[u8], engine: &str) -> PyResult<Self> {
        let choice = Choice::from_name(engine)?;
        Ok(Self(py.detach(|| encoder::Encoder::from_json(json, choice))?))
    }

    /// The engine that encodes: fastokens or tokenizers.
    #[getter]
    fn name(&self) -> &'static str {
        self.0.name()
    }

    /// Why it is that engine, in a sentence.
    #[getter]
    fn why(&self) -> &str {
        self.0.why()
    }

    /// Ids of each text: (offsets int64 [n + 1], ids uint32 [offsets[n]]).
    fn encode(&self, py: Python<'_>, texts: &Bound<'_, PyAny>, add_special_tokens: bool) -> PyResult<PyTable> {
        let chunks = chunks(texts)?;
        let encode = || self.0.encode(&strings(&chunks)?, add_special_tokens);
        Ok(to_python(py, py.detach(encode)?))
    }
}

/// (offsets int64, ids uint32).
pub(super) type PyTable = (Py<PyArray1<i64>>, Py<PyArray1<u32>>);

/// Hands the vectors over without a copy.
pub(super) fn to_python(py: Python<'_>, table: Table) -> PyTable {
    (
        table.offsets.into_pyarray(py).unbind(),
        table.ids.into_pyarray(py).unbind(),
    )
}
