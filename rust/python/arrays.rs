//! NumPy arrays and integers, checked on their way in and handed over without a copy on their way out.

use numpy::ndarray::Array2;
use numpy::{Element, IntoPyArray, PyArray2, PyReadonlyArray1, dtype};
use pyo3::exceptions::PyMemoryError;
use pyo3::prelude::*;

use crate::error::Error;
use crate::error::python::{InputError, InputTypeError};

/// An array in NumPy's own memory, with nothing written into it yet.
pub(super) fn empty(py: Python<'_>, rows: u64, columns: u64) -> PyResult<Bound<'_, PyArray2<u64>>> {
    let array = py.import("numpy")?.call_method1("empty", ((rows, columns), "uint64"));
    let array = array.map_err(|error| {
        if error.is_instance_of::<PyMemoryError>(py) {
            let negatives = columns;
            Error::Memory { rows, negatives }.into()
        } else {
            error
        }
    })?;
    Ok(array.cast_into()?)
}

/// The vector as an array, without a copy.
pub(super) fn matrix(py: Python<'_>, flat: Vec<u64>, rows: u64, columns: u64) -> PyResult<Bound<'_, PyArray2<u64>>> {
    let shaped = Array2::from_shape_vec((rows as usize, columns as usize), flat);
    Ok(shaped
        .map_err(|error| InputError::new_err(error.to_string()))?
        .into_pyarray(py))
}

/// An integer of 64 bits without sign.
pub(super) fn natural(name: &str, value: &Bound<'_, PyAny>) -> PyResult<u64> {
    value.extract().map_err(|_| {
        let message = format!("{name}: expected an integer from 0 to 2^64 - 1, got {value}; give one in that range");
        if value.hasattr("__index__").unwrap_or(false) {
            InputError::new_err(message)
        } else {
            InputTypeError::new_err(message)
        }
    })
}

/// A one-dimensional NumPy array of T.
pub(super) fn array<'py, T: Element>(name: &str, value: &Bound<'py, PyAny>) -> PyResult<PyReadonlyArray1<'py, T>> {
    value.extract().map_err(|_| {
        let expected = dtype::<T>(value.py());
        let got = match (value.getattr("dtype"), value.getattr("ndim")) {
            (Ok(dtype), Ok(dimensions)) => format!("{dtype} with {dimensions} dimension(s)"),
            _ => value.get_type().to_string(),
        };
        InputTypeError::new_err(format!(
            "{name}: expected a one-dimensional NumPy array of {expected}, got {got}; \
             convert it with numpy.ascontiguousarray(…, dtype=numpy.{expected})"
        ))
    })
}

/// The array's memory as it lies.
pub(super) fn slice<'a, T: Element>(name: &str, array: &'a PyReadonlyArray1<'_, T>) -> PyResult<&'a [T]> {
    array.as_slice().map_err(|_| {
        InputError::new_err(format!(
            "{name}: expected a contiguous array, got one with gaps; convert it with numpy.ascontiguousarray"
        ))
    })
}
