//! The bindings of `tokenizer`.

use arrow_array::ArrayRef;
use numpy::{IntoPyArray, PyArray1};
use pyo3::prelude::*;

use crate::error::Error;
use crate::python::arrow::{chunks, conversations_of_chunk, strings};
use crate::python::pool::detached;
use crate::tokenizer::{self, EngineChoice, Rendering, Table};

/// A tokenizer, without the truncation and padding that its tokenizer.json may ask for.
#[pyclass(frozen, module = "mipo._native")]
pub(super) struct Encoder(pub(super) tokenizer::Encoder);

#[pymethods]
impl Encoder {
    #[new]
    #[pyo3(signature = (json, engine="auto"))]
    fn new(py: Python<'_>, json: &[u8], engine: &str) -> PyResult<Self> {
        let choice = EngineChoice::from_name(engine)?;
        Ok(Self(detached(py, || tokenizer::Encoder::from_json(json, choice))??))
    }

    /// The engine that encodes: fastokens or tokenizers.
    #[getter]
    fn name(&self) -> &'static str {
        self.0.name()
    }

    /// Why it is that engine, in a few words.
    #[getter]
    fn why(&self) -> &str {
        self.0.why()
    }

    /// Ids of each text: (offsets int64 `[n + 1]`, ids uint32 `[offsets[n]]`).
    fn encode(&self, py: Python<'_>, texts: &Bound<'_, PyAny>, add_special_tokens: bool) -> PyResult<PyTable> {
        let chunks = chunks(texts)?;
        let encode = || self.0.encode(&strings(&chunks)?, add_special_tokens);
        Ok(to_python(py, detached(py, encode)??))
    }
}

/// (offsets int64, ids uint32).
pub(super) type PyTable = (Py<PyArray1<i64>>, Py<PyArray1<u32>>);

/// The table as arrays, without a copy.
pub(super) fn to_python(py: Python<'_>, table: Table) -> PyTable {
    (
        table.offsets.into_pyarray(py).unbind(),
        table.ids.into_pyarray(py).unbind(),
    )
}

/// A chat template as `mipo.tokenizer.jinja` writes it.
#[pyclass(frozen, module = "mipo._native")]
pub(super) struct Template(pub(super) tokenizer::Template);

/// (offsets int64, UTF-8 uint8) of the texts; row and reason of each conversation without one.
type PyTexts = (Py<PyArray1<i64>>, Py<PyArray1<u8>>, Vec<(usize, String)>);

#[pymethods]
impl Template {
    #[new]
    fn new(source: &str, constants: Vec<(String, Option<String>)>) -> PyResult<Self> {
        Ok(Self(tokenizer::Template::new(source, constants)?))
    }

    /// The text of each conversation.
    fn render(
        &self,
        py: Python<'_>,
        conversations: &Bound<'_, PyAny>,
        add_generation_prompt: bool,
    ) -> PyResult<PyTexts> {
        let chunks = chunks(conversations)?;
        let rendering = detached(py, || render(&self.0, &chunks, add_generation_prompt))??;
        Ok((
            rendering.offsets.into_pyarray(py).unbind(),
            rendering.bytes.into_pyarray(py).unbind(),
            rendering.failed,
        ))
    }
}

fn render(template: &tokenizer::Template, chunks: &[ArrayRef], prompt: bool) -> Result<Rendering, Error> {
    let mut renderings = Vec::with_capacity(chunks.len());
    let mut rows = 0;
    for chunk in chunks {
        let conversations = conversations_of_chunk(chunk, rows)?;
        rows += conversations.len();
        renderings.push(template.render_all(&conversations, prompt)?);
    }
    Ok(Rendering::joined(renderings))
}
