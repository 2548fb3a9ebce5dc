//! The doors of the rooms `groups` and `checksum`.

use std::path::PathBuf;

use arrow_array::ArrayRef;
use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;

use super::encoder::{Encoder, PyTable, to_python};
use super::tokenizer::{Template, conversations};
use super::{array, chunks, slice, strings};
use crate::checksum::{checksum as xxh3, checksum_file as xxh3_file};
use crate::error::Error;
use crate::tokens::groups::{Groups, Interner, Made};
use crate::tokens::texts::{Chats, Plain, Rendered, Unfinished};

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
    Ok(format!("{:032x}", py.detach(|| xxh3(&bytes))))
}

/// The same of a file, the bytes start..stop read as zeros.
#[pyfunction]
pub(super) fn checksum_file(py: Python<'_>, path: PathBuf, start: u64, stop: u64) -> PyResult<String> {
    let found = py.detach(|| xxh3_file(&path, start..stop))?;
    Ok(format!("{found:032x}"))
}

/// (offsets int64 [groups + 1], rows uint64 [groups], unfinished chosen bool [groups], unfinished rejected bool).
type PyGroups<'py> = (
    Bound<'py, PyAny>,
    Bound<'py, PyAny>,
    Bound<'py, PyAny>,
    Bound<'py, PyAny>,
);

/// The arrays of groups, held while they are read.
struct Asked<'py> {
    offsets: PyReadonlyArray1<'py, i64>,
    rows: PyReadonlyArray1<'py, u64>,
    chosen: PyReadonlyArray1<'py, bool>,
    rejected: PyReadonlyArray1<'py, bool>,
}

impl<'py> Asked<'py> {
    fn new((offsets, rows, chosen, rejected): &PyGroups<'py>) -> PyResult<Self> {
        Ok(Self {
            offsets: array("offsets", offsets)?,
            rows: array("rows", rows)?,
            chosen: array("unfinished chosen", chosen)?,
            rejected: array("unfinished rejected", rejected)?,
        })
    }

    fn groups<'a>(&'a self, end_ids: &'a [u32], special: bool) -> PyResult<Groups<'a>> {
        Ok(Groups {
            offsets: slice("offsets", &self.offsets)?,
            rows: slice("rows", &self.rows)?,
            unfinished: Unfinished {
                chosen: slice("unfinished chosen", &self.chosen)?,
                rejected: slice("unfinished rejected", &self.rejected)?,
                end_ids,
            },
            special,
        })
    }
}

fn read(texts: &[Bound<'_, PyAny>; 3]) -> PyResult<[Vec<ArrayRef>; 3]> {
    Ok([chunks(&texts[0])?, chunks(&texts[1])?, chunks(&texts[2])?])
}

/// Of each group its verdict, and of those kept (prompt, chosen, offsets, rejected) and how many borders were moved.
type PyMade<'py> = (
    Bound<'py, PyArray1<u8>>,
    Bound<'py, PyArray1<u64>>,
    Bound<'py, PyArray1<u64>>,
    Bound<'py, PyArray1<i64>>,
    Bound<'py, PyArray1<u64>>,
    u64,
);

/// Hands the vectors over without a copy.
fn hand_over(py: Python<'_>, made: Made) -> PyMade<'_> {
    (
        made.verdicts.into_pyarray(py),
        made.prompt.into_pyarray(py),
        made.chosen.into_pyarray(py),
        made.offsets.into_pyarray(py),
        made.rejected.into_pyarray(py),
        made.merged,
    )
}

/// Preference groups become row numbers of two tables of ids, which grow.
#[pyclass(module = "mipo._native")]
pub(super) struct GroupBuilder {
    encoder: Py<Encoder>,
    interner: Interner,
}

#[pymethods]
impl GroupBuilder {
    #[new]
    fn new(encoder: Py<Encoder>) -> Self {
        Self {
            encoder,
            interner: Interner::default(),
        }
    }

    /// Text: `texts` are (prompts, chosen, rejected), whose joint texts close with `end`.
    #[pyo3(signature = (texts, groups, *, end, limit=None))]
    fn push_text<'py>(
        &mut self,
        py: Python<'py>,
        texts: [Bound<'py, PyAny>; 3],
        groups: PyGroups<'py>,
        end: &str,
        limit: Option<usize>,
    ) -> PyResult<PyMade<'py>> {
        let (arrays, asked) = (read(&texts)?, Asked::new(&groups)?);
        let groups = asked.groups(&[], true)?;
        let (encoder, interner) = (&self.encoder.get().0, &mut self.interner);
        let made = py.detach(|| {
            let texts = Plain {
                prompts: strings(&arrays[0])?,
                chosen: strings(&arrays[1])?,
                rejected: strings(&arrays[2])?,
                end,
                unfinished: groups.unfinished,
            };
            interner.push(encoder, &texts, groups, limit)
        })?;
        Ok(hand_over(py, made))
    }

    /// Chats: `chats` are (prompts, chosen, rejected) as lists of messages, each in one chunk; None where the template
    /// does not render one of them, and then nothing is stored.
    #[pyo3(signature = (template, chats, groups, *, end_ids, limit=None))]
    fn push_chats<'py>(
        &mut self,
        py: Python<'py>,
        template: &Bound<'py, Template>,
        chats: [Bound<'py, PyAny>; 3],
        groups: PyGroups<'py>,
        end_ids: Vec<u32>,
        limit: Option<usize>,
    ) -> PyResult<Option<PyMade<'py>>> {
        let (arrays, asked) = (read(&chats)?, Asked::new(&groups)?);
        let groups = asked.groups(&end_ids, false)?;
        let (encoder, interner, template) = (&self.encoder.get().0, &mut self.interner, &template.get().0);
        let made = py.detach(|| {
            let chats = Chats {
                template,
                prompts: conversations(&arrays[0])?,
                chosen: conversations(&arrays[1])?,
                rejected: conversations(&arrays[2])?,
            };
            interner.push(encoder, &chats, groups, limit)
        });
        match made {
            Ok(made) => Ok(Some(hand_over(py, made))),
            Err(Error::Unmade { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Chats, rendered: `texts` are (prompts, each prompt with its chosen response, and with each rejected one).
    #[pyo3(signature = (texts, groups, *, end_ids, limit=None))]
    fn push_rendered<'py>(
        &mut self,
        py: Python<'py>,
        texts: [Bound<'py, PyAny>; 3],
        groups: PyGroups<'py>,
        end_ids: Vec<u32>,
        limit: Option<usize>,
    ) -> PyResult<PyMade<'py>> {
        let (arrays, asked) = (read(&texts)?, Asked::new(&groups)?);
        let groups = asked.groups(&end_ids, false)?;
        let (encoder, interner) = (&self.encoder.get().0, &mut self.interner);
        let made = py.detach(|| {
            let texts = Rendered {
                prompts: strings(&arrays[0])?,
                chosen: strings(&arrays[1])?,
                rejected: strings(&arrays[2])?,
            };
            interner.push(encoder, &texts, groups, limit)
        })?;
        Ok(hand_over(py, made))
    }

    /// Prompts stored since the last call: (offsets, ids).
    fn take_prompts(&mut self, py: Python<'_>) -> PyTable {
        to_python(py, self.interner.take_prompts())
    }

    /// Responses stored since the last call: (offsets, ids).
    fn take_responses(&mut self, py: Python<'_>) -> PyTable {
        to_python(py, self.interner.take_responses())
    }

    /// Bytes of ids that were not taken yet.
    fn pending(&self) -> usize {
        self.interner.pending()
    }
}
