//! `mipo._native`: the other rooms with NumPy and Arrow at their doors. Checks types and hands over; no algorithm.

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef};
use numpy::ndarray::Array2;
use numpy::{Element, IntoPyArray, PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1, dtype};
use pyo3::exceptions::{PyMemoryError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3_arrow::input::AnyArray;

use crate::contrast::Draw;
use crate::error::Error;
use crate::tokens::{Groups, Table, Unfinished, View};
use crate::within::Near;
use crate::{contrast, duplicates, overlap, tokens, within};

#[pymodule]
mod _native {
    #[pymodule_export]
    use super::{Encoder, Split, clusters, counterparts, counterparts_within, overlaps, split};
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
    contrast::length(n, negatives, start, stop)?;
    let array = empty(py, stop - start, negatives)?;
    let mut places = array.try_readwrite()?;
    let out = places.as_slice_mut()?;
    py.detach(|| contrast::fill(out, n, negatives, seed, start, draw));
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

/// A tokenizer that neither cuts nor pads, whatever its tokenizer.json says.
#[pyclass(frozen, module = "mipo._native")]
struct Encoder(tokens::Encoder);

#[pymethods]
impl Encoder {
    #[new]
    fn new(py: Python<'_>, json: &[u8]) -> PyResult<Self> {
        Ok(Self(py.detach(|| tokens::Encoder::from_json(json))?))
    }

    /// Ids of each text: (offsets int64 [n + 1], ids uint32 [offsets[n]]).
    fn encode(&self, py: Python<'_>, texts: &Bound<'_, PyAny>, add_special_tokens: bool) -> PyResult<PyTable> {
        let chunks = chunks(texts)?;
        let encode = || self.0.encode(&strings(&chunks)?, add_special_tokens);
        Ok(to_python(py, py.detach(encode)?))
    }
}

/// Prompts and responses of preference groups, each stored once; the result of `split`.
#[pyclass(frozen, get_all, module = "mipo._native")]
struct Split {
    /// Distinct prompts: (offsets, ids).
    prompts: PyTable,
    /// Distinct responses: (offsets, ids).
    responses: PyTable,
    /// uint64 [groups]: rows of `prompts`.
    prompt: Py<PyArray1<u64>>,
    /// uint64 [groups]: rows of `responses`.
    chosen: Py<PyArray1<u64>>,
    /// uint64 [rejected]: rows of `responses`.
    rejected: Py<PyArray1<u64>>,
    /// Groups whose responses begin before their rendered prompt ends.
    merged: u64,
    /// uint64: joint rows, ascending, of which nothing is left after the border in some group.
    empty: Py<PyArray1<u64>>,
}

/// Separates prompts from responses on token ids, by TRL's rule.
#[pyfunction]
#[pyo3(signature = (
    prompt, joint, *, group_prompt, group_chosen, rejected_offsets, rejected, unfinished=None, end_ids=None
))]
#[allow(clippy::too_many_arguments)]
fn split(
    py: Python<'_>,
    prompt: (Bound<'_, PyAny>, Bound<'_, PyAny>),
    joint: (Bound<'_, PyAny>, Bound<'_, PyAny>),
    group_prompt: &Bound<'_, PyAny>,
    group_chosen: &Bound<'_, PyAny>,
    rejected_offsets: &Bound<'_, PyAny>,
    rejected: &Bound<'_, PyAny>,
    unfinished: Option<&Bound<'_, PyAny>>,
    end_ids: Option<Vec<u32>>,
) -> PyResult<Split> {
    let (prompt_offsets, prompt_ids) = (
        array::<i64>("prompt[0]", &prompt.0)?,
        array::<u32>("prompt[1]", &prompt.1)?,
    );
    let (joint_offsets, joint_ids) = (array::<i64>("joint[0]", &joint.0)?, array::<u32>("joint[1]", &joint.1)?);
    let prompts = View::new(
        "prompt[0]",
        slice("prompt[0]", &prompt_offsets)?,
        slice("prompt[1]", &prompt_ids)?,
    )?;
    let joints = View::new(
        "joint[0]",
        slice("joint[0]", &joint_offsets)?,
        slice("joint[1]", &joint_ids)?,
    )?;
    let (group_prompt, group_chosen) = (
        array("group_prompt", group_prompt)?,
        array("group_chosen", group_chosen)?,
    );
    let (offsets, rejected) = (
        array("rejected_offsets", rejected_offsets)?,
        array("rejected", rejected)?,
    );
    let groups = Groups {
        prompt: slice("group_prompt", &group_prompt)?,
        chosen: slice("group_chosen", &group_chosen)?,
        rejected_offsets: slice("rejected_offsets", &offsets)?,
        rejected: slice("rejected", &rejected)?,
    };
    let flags = unfinished.map(|flags| array::<bool>("unfinished", flags)).transpose()?;
    let flags = flags.as_ref().map(|flags| slice("unfinished", flags)).transpose()?;
    let end_ids = end_ids.unwrap_or_default();
    let unfinished = flags.map(|joint| Unfinished {
        joint,
        end_ids: &end_ids,
    });
    let split = py.detach(|| tokens::split(prompts, joints, groups, unfinished))?;
    Ok(Split {
        prompts: to_python(py, split.prompts),
        responses: to_python(py, split.responses),
        prompt: split.prompt.into_pyarray(py).unbind(),
        chosen: split.chosen.into_pyarray(py).unbind(),
        rejected: split.rejected.into_pyarray(py).unbind(),
        merged: split.merged,
        empty: split.empty.into_pyarray(py).unbind(),
    })
}

/// (offsets int64, ids uint32).
type PyTable = (Py<PyArray1<i64>>, Py<PyArray1<u32>>);

/// Hands the vectors over without a copy.
fn to_python(py: Python<'_>, table: Table) -> PyTable {
    (
        table.offsets.into_pyarray(py).unbind(),
        table.ids.into_pyarray(py).unbind(),
    )
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

/// Every text of the chunks, borrowed.
fn strings(chunks: &[ArrayRef]) -> Result<Vec<&str>, Error> {
    let mut texts = Vec::with_capacity(chunks.iter().map(|chunk| chunk.len()).sum());
    for chunk in chunks {
        if let Some(row) = (0..chunk.len()).find(|&row| chunk.null_count() > 0 && chunk.is_null(row)) {
            return Err(Error::Null { row: texts.len() + row });
        }
        if let Some(strings) = chunk.as_string_opt::<i32>() {
            texts.extend((0..strings.len()).map(|row| strings.value(row)));
        } else if let Some(strings) = chunk.as_string_opt::<i64>() {
            texts.extend((0..strings.len()).map(|row| strings.value(row)));
        } else if let Some(strings) = chunk.as_string_view_opt() {
            texts.extend((0..strings.len()).map(|row| strings.value(row)));
        } else {
            return Err(Error::NotText {
                got: chunk.data_type().to_string(),
            });
        }
    }
    Ok(texts)
}
