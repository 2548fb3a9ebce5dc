//! The Python module `mipo._native`: a file for each folder beside this one. Checks types and hands over; no algorithm.

mod arrays;
mod arrow;
mod checksum;
mod negatives;
mod pool;
mod prompts;
mod tokenizer;
mod tokens;

use pyo3::pymodule;

#[pymodule]
mod _native {
    #[pymodule_export]
    use crate::python::checksum::{checksum, checksum_file, digests};
    #[pymodule_export]
    use crate::python::negatives::{counterparts, counterparts_within};
    #[pymodule_export]
    use crate::python::prompts::{clusters, overlaps};
    #[pymodule_export]
    use crate::python::tokenizer::{Encoder, Template};
    #[pymodule_export]
    use crate::python::tokens::GroupBuilder;
}
