//! `mipo._native`: the other rooms with NumPy and Arrow at their doors. Checks types and hands over; no algorithm.

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef};
use numpy::ndarray::Array2;
use numpy::{Element, IntoPyArray, PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1, dtype};
use pyo3::exceptions::{PyMemoryError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3_arrow::input::AnyArray;
use rayon::prelude::*;

use crate::error::Error;
use crate::negatives::draw::Draw;
use crate::negatives::within::Near;
use crate::negatives::{draw, within};
use crate::prompts::{duplicates, overlap};

mod encoder;
mod tokenizer;
mod tokens;

#[pymodule]
mod _native {
    #[pymodule_export]
    use super::encoder::Encoder;
    #[pymodule_export]
    use super::tokenizer::Template;
    #[pymodule_export]
    use super::tokens::{GroupBuilder, checksum, checksum_file};
    #[pymodule_export]
    use super::{clusters, counterparts, counterparts_within, overlaps};
}

/// Counterparts of the rows start..stop of n: uint64 [stop - start, negatives].
#[pyfunction]
#[pyo3(signature = (n, negatives, seed, start, stop, balanced=true))]
fn counterparts<'py>(
    py: Python<'py>,
    n: &Bound<'py, PyAny>,
    negatives: &Bound<'py, PyAny>,
    seed: &Bound<'py, PyAny>,
    start: &Bound<'py, PyAny>,
    stop: &Bound<'py, PyAny>,
    balanced: bool,
) -> PyResult<Bound<'py, PyArray2<u64>>> {
    let (n, negatives, seed) = (
        natural("n", n)?,
        natural("negatives", negatives)?,
        natural("seed", seed)?,
    );
    let (start, stop) = (natural("start", start)?, natural("stop", stop)?);
    let draw = if balanced { Draw::Balanced } else { Draw::Independent };
    draw::length(n, negatives, start, stop)?;
    let array = empty(py, stop - start, negatives)?;
    let mut places = array.try_readwrite()?;
    let out = places.as_slice_mut()?;
    py.detach(|| draw::fill(out, n, negatives, seed, start, draw));
    drop(places);
    Ok(array)
}

/// Counterparts with an equal match code, another code in every differ column and a near value: uint64 [n, negatives].
#[pyfunction]
#[pyo3(signature = (match_codes, differ_codes, negatives, seed, near=None))]
fn counterparts_within<'py>(
    py: Python<'py>,
    match_codes: &Bound<'py, PyAny>,
    differ_codes: Vec<Bound<'py, PyAny>>,
    negatives: &Bound<'py, PyAny>,
    seed: &Bound<'py, PyAny>,
    near: Option<(Bound<'py, PyAny>, f64)>,
) -> PyResult<Bound<'py, PyArray2<u64>>> {
    let (negatives, seed) = (natural("negatives", negatives)?, natural("seed", seed)?);
    let match_codes = array::<u64>("match_codes", match_codes)?;
    let columns: Vec<_> = differ_codes
        .iter()
        .map(|codes| array::<u64>("differ_codes", codes))
        .collect::<PyResult<_>>()?;
    let values = near
        .as_ref()
        .map(|(values, _)| array::<f64>("near", values))
        .transpose()?;
    let rows = slice("match_codes", &match_codes)?;
    let columns: Vec<&[u64]> = columns
        .iter()
        .map(|codes| slice("differ_codes", codes))
        .collect::<PyResult<_>>()?;
    let values = values.as_ref().map(|values| slice("near", values)).transpose()?;
    let near = values
        .zip(near.as_ref())
        .map(|(values, &(_, tolerance))| Near { values, tolerance });
    let flat = py.detach(|| within::counterparts_within(rows, &columns, near, negatives, seed))?;
    matrix(py, flat, rows.len() as u64, negatives)
}

/// The first row of each text's cluster of near-duplicates: uint64 [texts].
#[pyfunction]
fn clusters<'py>(
    py: Python<'py>,
    texts: &Bound<'py, PyAny>,
    size: usize,
    threshold: f64,
) -> PyResult<Bound<'py, PyArray1<u64>>> {
    let chunks = chunks(texts)?;
    let clusters = py.detach(|| duplicates::clusters(&strings(&chunks)?, size, threshold))?;
    Ok(clusters.into_pyarray(py))
}

/// Of each text: the held-out row that it occurs as, the share in common, whether they are equal.
type PyOverlaps<'py> = (
    Bound<'py, PyArray1<u64>>,
    Bound<'py, PyArray1<f64>>,
    Bound<'py, PyArray1<bool>>,
);

/// What each text has in common with a held-out text of the same group: uint64, float64 and bool [texts].
#[pyfunction]
fn overlaps<'py>(
    py: Python<'py>,
    texts: (Bound<'py, PyAny>, Bound<'py, PyAny>),
    held_out: (Bound<'py, PyAny>, Bound<'py, PyAny>),
    words: u32,
    share: f64,
) -> PyResult<PyOverlaps<'py>> {
    let (groups, held_out_groups) = (
        array::<u64>("groups", &texts.1)?,
        array::<u64>("held_out_groups", &held_out.1)?,
    );
    let (groups, held_out_groups) = (slice("groups", &groups)?, slice("held_out_groups", &held_out_groups)?);
    let (texts, held_out) = (chunks(&texts.0)?, chunks(&held_out.0)?);
    let compare = || {
        let (texts, held_out) = (strings(&texts)?, strings(&held_out)?);
        overlap::overlaps((&texts, groups), (&held_out, held_out_groups), words, share)
    };
    let found = py.detach(compare)?;
    Ok((
        found.held_out.into_pyarray(py),
        found.shares.into_pyarray(py),
        found.equal.into_pyarray(py),
    ))
}

/// NumPy's own memory, with nothing written into it yet.
fn empty(py: Python<'_>, rows: u64, columns: u64) -> PyResult<Bound<'_, PyArray2<u64>>> {
    let made = py.import("numpy")?.call_method1("empty", ((rows, columns), "uint64"));
    let made = made.map_err(|error| {
        let short = error.is_instance_of::<PyMemoryError>(py);
        if short {
            Error::Memory {
                rows,
                negatives: columns,
            }
            .into()
        } else {
            error
        }
    })?;
    Ok(made.cast_into()?)
}

/// Hands the vector over without a copy.
fn matrix(py: Python<'_>, flat: Vec<u64>, rows: u64, columns: u64) -> PyResult<Bound<'_, PyArray2<u64>>> {
    let shaped = Array2::from_shape_vec((rows as usize, columns as usize), flat);
    Ok(shaped
        .map_err(|error| PyValueError::new_err(error.to_string()))?
        .into_pyarray(py))
}

/// An integer of 64 bits without sign.
fn natural(name: &str, value: &Bound<'_, PyAny>) -> PyResult<u64> {
    value.extract().map_err(|_| {
        let message = format!("{name}: expected an integer from 0 to 2^64 - 1, got {value}; give one in that range");
        if value.hasattr("__index__").unwrap_or(false) {
            PyValueError::new_err(message)
        } else {
            PyTypeError::new_err(message)
        }
    })
}

/// A one-dimensional NumPy array of T.
fn array<'py, T: Element>(name: &str, value: &Bound<'py, PyAny>) -> PyResult<PyReadonlyArray1<'py, T>> {
    value.extract().map_err(|_| {
        let expected = dtype::<T>(value.py());
        let got = match (value.getattr("dtype"), value.getattr("ndim")) {
            (Ok(dtype), Ok(dimensions)) => format!("{dtype} with {dimensions} dimension(s)"),
            _ => value.get_type().to_string(),
        };
        PyTypeError::new_err(format!(
            "{name}: expected a one-dimensional NumPy array of {expected}, got {got}; \
             convert it with numpy.ascontiguousarray(…, dtype=numpy.{expected})"
        ))
    })
}

/// The array's memory as it lies.
fn slice<'a, T: Element>(name: &str, array: &'a PyReadonlyArray1<'_, T>) -> PyResult<&'a [T]> {
    array.as_slice().map_err(|_| {
        PyValueError::new_err(format!(
            "{name}: expected a contiguous array, got one with gaps; convert it with numpy.ascontiguousarray"
        ))
    })
}

/// The chunks of whatever speaks Arrow's PyCapsule interface.
fn chunks(texts: &Bound<'_, PyAny>) -> PyResult<Vec<ArrayRef>> {
    if !(texts.hasattr("__arrow_c_array__")? || texts.hasattr("__arrow_c_stream__")?) {
        return Err(PyTypeError::new_err(format!(
            "texts: expected an Arrow array of strings (a polars Series, a pyarrow array), got {}; \
             wrap it with polars.Series or pyarrow.array",
            texts.get_type()
        )));
    }
    Ok(texts.extract::<AnyArray>()?.into_chunked_array()?.into_inner().0)
}

/// Every text of the chunks, borrowed. Arrow's interface promises UTF-8, and nobody has checked it.
fn strings(chunks: &[ArrayRef]) -> Result<Vec<&str>, Error> {
    let mut texts: Vec<&[u8]> = Vec::with_capacity(chunks.iter().map(|chunk| chunk.len()).sum());
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
    checked.ok_or_else(|| broken(&texts))
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
fn broken(texts: &[&[u8]]) -> Error {
    let mut rows = texts.iter().enumerate();
    let first = rows.find_map(|(row, text)| std::str::from_utf8(text).err().map(|error| (row, error.valid_up_to())));
    let (row, byte) = first.unwrap_or_default();
    Error::NotUtf8 { row, byte }
}
