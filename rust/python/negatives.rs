//! The bindings of `negatives`.

use numpy::PyArray2;
use numpy::PyArrayMethods;
use pyo3::prelude::*;

use crate::negatives::{self, Draw, Near, draw};
use crate::python::arrays::{array, empty, matrix, natural, slice};
use crate::python::pool::detached;

/// Counterparts of the rows `start..stop` of `n`: uint64 `[stop - start, negatives]`.
#[pyfunction]
#[pyo3(signature = (n, negatives, seed, start, stop, balanced=true))]
pub(super) fn counterparts<'py>(
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
    draw::checked_length(n, negatives, start, stop)?;
    let array = empty(py, stop - start, negatives)?;
    let mut entries = array.try_readwrite()?;
    let out = entries.as_slice_mut()?;
    detached(py, || draw::fill(out, n, negatives, seed, start, draw))?;
    drop(entries);
    Ok(array)
}

/// Counterparts with an equal match code, another code in every differ column and a near value: uint64 `[n, negatives]`.
#[pyfunction]
#[pyo3(signature = (match_codes, differ_codes, negatives, seed, near=None))]
pub(super) fn counterparts_within<'py>(
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
    let flat = detached(py, || {
        negatives::counterparts_within(rows, &columns, near, negatives, seed)
    })??;
    matrix(py, flat, rows.len() as u64, negatives)
}
