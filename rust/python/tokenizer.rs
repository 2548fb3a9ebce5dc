//! The doors of the room that knows chat templates.

use std::ops::Range;

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, OffsetSizeTrait, StructArray};
use numpy::{IntoPyArray, PyArray1};
use pyo3::prelude::*;

use super::chunks;
use crate::error::Error;
use crate::tokenizer::template::{self, Conversations, Rendered};

/// A chat template in the normal form of `mipo.jinja`.
#[pyclass(frozen, module = "mipo._native")]
pub(super) struct Template(pub(super) template::Template);

/// (offsets int64, UTF-8 uint8) of the texts; row and message of each conversation without one.
type PyTexts = (Py<PyArray1<i64>>, Py<PyArray1<u8>>, Vec<(usize, String)>);

#[pymethods]
impl Template {
    #[new]
    fn new(source: &str, absent: Vec<String>) -> PyResult<Self> {
        Ok(Self(template::Template::new(source)?.without(absent)))
    }

    /// The text of each conversation.
    fn render(
        &self,
        py: Python<'_>,
        conversations: &Bound<'_, PyAny>,
        add_generation_prompt: bool,
    ) -> PyResult<PyTexts> {
        let chunks = chunks(conversations)?;
        let rendered = py.detach(|| render(&self.0, &chunks, add_generation_prompt))?;
        Ok((
            rendered.offsets.into_pyarray(py).unbind(),
            rendered.bytes.into_pyarray(py).unbind(),
            rendered.failed,
        ))
    }
}

fn render(template: &template::Template, chunks: &[ArrayRef], prompt: bool) -> Result<Rendered, Error> {
    let mut made = Vec::with_capacity(chunks.len());
    let mut rows = 0;
    for chunk in chunks {
        let conversations = of_chunk(chunk, rows)?;
        rows += conversations.len();
        made.push(template.render_all(&conversations, prompt));
    }
    Ok(Rendered::joined(made))
}

/// The conversations of an Arrow array of lists of messages in one chunk, borrowed.
pub(super) fn conversations(chunks: &[ArrayRef]) -> Result<Conversations<'_>, Error> {
    match chunks {
        [] => Ok(Conversations::default()),
        [chunk] => of_chunk(chunk, 0),
        _ => Err(Error::Chunks { got: chunks.len() }),
    }
}

/// The conversations of a chunk; `before` rows stand before it.
fn of_chunk(chunk: &ArrayRef, before: usize) -> Result<Conversations<'_>, Error> {
    if let Some(row) = (0..chunk.len()).find(|&row| chunk.null_count() > 0 && chunk.is_null(row)) {
        return Err(Error::Null { row: before + row });
    }
    let not_messages = || Error::NotMessages {
        got: chunk.data_type().to_string(),
    };
    let (offsets, values) = if let Some(lists) = chunk.as_list_opt::<i32>() {
        (numbers(lists.value_offsets()), lists.values())
    } else if let Some(lists) = chunk.as_list_opt::<i64>() {
        (numbers(lists.value_offsets()), lists.values())
    } else {
        return Err(not_messages());
    };
    let messages = values.as_struct_opt().ok_or_else(not_messages)?;
    // Of a slice of a table, the messages of all of it may come along.
    let (first, last) = (offsets.first().copied(), offsets.last().copied());
    let used = first.unwrap_or(0)..last.unwrap_or(0);
    let fields = messages.fields().iter().zip(messages.columns());
    let fields = fields.map(|(field, column)| Some((field.name().clone(), texts(messages, column, used.clone())?)));
    Ok(Conversations {
        offsets: offsets.iter().map(|offset| offset - used.start).collect(),
        fields: fields.collect::<Option<_>>().ok_or_else(not_messages)?,
    })
}

fn numbers<O: OffsetSizeTrait>(offsets: &[O]) -> Vec<usize> {
    offsets.iter().map(|offset| offset.as_usize()).collect()
}

/// The texts of one field of these messages, None where it or its message is null; None for what is no text.
fn texts<'a>(messages: &StructArray, column: &'a ArrayRef, used: Range<usize>) -> Option<Vec<Option<&'a str>>> {
    let nulls = messages.null_count() + column.null_count() > 0;
    let there = |row| !nulls || (messages.is_valid(row) && column.is_valid(row));
    if let Some(strings) = column.as_string_opt::<i32>() {
        Some(used.map(|row| there(row).then(|| strings.value(row))).collect())
    } else if let Some(strings) = column.as_string_opt::<i64>() {
        Some(used.map(|row| there(row).then(|| strings.value(row))).collect())
    } else if let Some(strings) = column.as_string_view_opt() {
        Some(used.map(|row| there(row).then(|| strings.value(row))).collect())
    } else {
        (column.logical_null_count() == column.len()).then(|| vec![None; used.len()])
    }
}
