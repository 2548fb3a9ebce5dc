//! The bindings of `checksum`.

use std::path::PathBuf;

use numpy::PyArray2;
use pyo3::prelude::*;

use crate::error::Error;
use crate::python::arrays::{array, matrix, slice};
use crate::python::arrow::{chunks, strings};
use crate::python::pool::detached;

/// XXH3 of buffers, as 32 hexadecimal digits.
#[pyfunction]
pub(super) fn checksum(py: Python<'_>, buffers: Vec<Bound<'_, PyAny>>) -> PyResult<String> {
    let arrays: Vec<_> = buffers
        .iter()
        .map(|buffer| array::<u8>("buffers", buffer))
        .collect::<PyResult<_>>()?;
    let bytes: Vec<&[u8]> = arrays
        .iter()
        .map(|bytes| slice("buffers", bytes))
        .collect::<PyResult<_>>()?;
    Ok(format!("{:032x}", detached(py, || crate::checksum::checksum(&bytes))?))
}

/// 128 bits of each text: uint64 `[texts, 2]`.
#[pyfunction]
pub(super) fn digests<'py>(py: Python<'py>, texts: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyArray2<u64>>> {
    let chunks = chunks(texts)?;
    let digests = detached(py, || Ok::<_, Error>(crate::checksum::digests(&strings(&chunks)?)))??;
    let rows = digests.len() as u64;
    matrix(py, digests.into_flattened(), rows, 2)
}

/// XXH3 of a file, the bytes `start..stop` read as zeros, as 32 hexadecimal digits.
#[pyfunction]
pub(super) fn checksum_file(py: Python<'_>, path: PathBuf, start: u64, stop: u64) -> PyResult<String> {
    let checksum = detached(py, || crate::checksum::checksum_file(&path, start..stop))??;
    Ok(format!("{checksum:032x}"))
}
