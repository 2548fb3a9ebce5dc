//! The bindings of `prompts`.

use numpy::{IntoPyArray, PyArray1};
use pyo3::prelude::*;

use crate::prompts;
use crate::python::arrays::{array, slice};
use crate::python::arrow::{chunks, strings};
use crate::python::pool::detached;

/// The first row of each text's cluster of near-duplicates: uint64 `[texts]`.
#[pyfunction]
pub(super) fn clusters<'py>(
    py: Python<'py>,
    texts: &Bound<'py, PyAny>,
    size: usize,
    threshold: f64,
) -> PyResult<Bound<'py, PyArray1<u64>>> {
    let chunks = chunks(texts)?;
    let clusters = detached(py, || prompts::clusters(&strings(&chunks)?, size, threshold))??;
    Ok(clusters.into_pyarray(py))
}

/// Of each text: the held-out row that it occurs as, their share, whether they are equal.
type PyOverlaps<'py> = (
    Bound<'py, PyArray1<u64>>,
    Bound<'py, PyArray1<f64>>,
    Bound<'py, PyArray1<bool>>,
);

/// What each text has in common with a held-out text of the same group: uint64, float64 and bool `[texts]`.
#[pyfunction]
pub(super) fn overlaps<'py>(
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
        prompts::overlaps((&texts, groups), (&held_out, held_out_groups), words, share)
    };
    let overlaps = detached(py, compare)??;
    Ok((
        overlaps.held_out.into_pyarray(py),
        overlaps.shares.into_pyarray(py),
        overlaps.equal.into_pyarray(py),
    ))
}
