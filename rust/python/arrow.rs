//! Texts and messages in Arrow arrays, borrowed and checked.

use std::ops::Range;

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, OffsetSizeTrait, StructArray};
use pyo3::prelude::*;
use pyo3_arrow::input::AnyArray;
use rayon::prelude::*;

use crate::error::Error;
use crate::error::python::InputTypeError;
use crate::memory;
use crate::tokenizer::Conversations;

/// The chunks of an object with Arrow's PyCapsule interface.
pub(super) fn chunks(texts: &Bound<'_, PyAny>) -> PyResult<Vec<ArrayRef>> {
    if !(texts.hasattr("__arrow_c_array__")? || texts.hasattr("__arrow_c_stream__")?) {
        return Err(InputTypeError::new_err(format!(
            "texts: expected an Arrow array of strings (a polars Series, a pyarrow array), got {}; \
             wrap it with polars.Series or pyarrow.array",
            texts.get_type()
        )));
    }
    Ok(texts.extract::<AnyArray>()?.into_chunked_array()?.into_inner().0)
}

/// Every text of the chunks, borrowed. Arrow's interface promises UTF-8; here it is checked.
pub(super) fn strings(chunks: &[ArrayRef]) -> Result<Vec<&str>, Error> {
    let count = chunks.iter().map(|chunk| chunk.len()).sum();
    memory::expect(count, 3 * size_of::<&str>())?;
    let mut texts: Vec<&[u8]> = Vec::with_capacity(count);
    for chunk in chunks {
        if let Some(row) = (0..chunk.len()).find(|&row| chunk.null_count() > 0 && chunk.is_null(row)) {
            return Err(Error::Null { row: texts.len() + row });
        }
        if let Some(strings) = chunk.as_string_opt::<i32>() {
            let offsets = strings.value_offsets().iter().map(|&offset| i64::from(offset));
            slices(&mut texts, offsets, strings.value_data())?;
        } else if let Some(strings) = chunk.as_string_opt::<i64>() {
            slices(
                &mut texts,
                strings.value_offsets().iter().copied(),
                strings.value_data(),
            )?;
        } else if let Some(strings) = chunk.as_string_view_opt() {
            texts.extend(strings.bytes_iter());
        } else {
            return Err(Error::NotText {
                got: chunk.data_type().to_string(),
            });
        }
    }
    let checked: Option<Vec<&str>> = texts.par_iter().map(|text| std::str::from_utf8(text).ok()).collect();
    checked.ok_or_else(|| not_utf8(&texts))
}

/// Appends what lies between successive offsets.
fn slices<'a>(texts: &mut Vec<&'a [u8]>, offsets: impl Iterator<Item = i64>, bytes: &'a [u8]) -> Result<(), Error> {
    let mut start = None;
    for end in offsets {
        let end = usize::try_from(end).unwrap_or(usize::MAX);
        if let Some(start) = start {
            let text = bytes.get(start..end).ok_or(Error::TextOffsets { row: texts.len() })?;
            texts.push(text);
        }
        start = Some(end);
    }
    Ok(())
}

/// The first text that is not UTF-8.
fn not_utf8(texts: &[&[u8]]) -> Error {
    let mut rows = texts.iter().enumerate();
    let first = rows.find_map(|(row, text)| std::str::from_utf8(text).err().map(|error| (row, error.valid_up_to())));
    let (row, byte) = first.unwrap_or_default();
    Error::NotUtf8 { row, byte }
}

/// The conversations of an Arrow array of lists of messages in one chunk, borrowed.
pub(super) fn conversations(chunks: &[ArrayRef]) -> Result<Conversations<'_>, Error> {
    match chunks {
        [] => Ok(Conversations::default()),
        [chunk] => conversations_of_chunk(chunk, 0),
        _ => Err(Error::Chunks { got: chunks.len() }),
    }
}

/// The conversations of a chunk with this many rows before it.
pub(super) fn conversations_of_chunk(chunk: &ArrayRef, before: usize) -> Result<Conversations<'_>, Error> {
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
    // A slice of a table may hold the messages of the whole table.
    let (first, last) = (offsets.first().copied(), offsets.last().copied());
    let used = first.unwrap_or(0)..last.unwrap_or(0);
    memory::expect(used.len(), messages.fields().len() * size_of::<Option<&str>>())?;
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

/// The texts of one field of these messages, each None where it or its message is null; None if the field has no texts.
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
