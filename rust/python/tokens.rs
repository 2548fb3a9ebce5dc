//! The bindings of `tokens`.

use arrow_array::ArrayRef;
use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;

use crate::error::Error;
use crate::python::arrays::{array, slice};
use crate::python::arrow::{chunks, conversations, strings};
use crate::python::pool::detached;
use crate::python::tokenizer::{Encoder, PyTable, Template, to_python};
use crate::tokens::{Chats, GroupRows, Groups, Interner, Plain, Rendered, Truncated};

/// (offsets int64 `[groups + 1]`, rows uint64 `[groups]`, truncated chosen bool `[groups]`, truncated rejected bool).
type PyGroups<'py> = (
    Bound<'py, PyAny>,
    Bound<'py, PyAny>,
    Bound<'py, PyAny>,
    Bound<'py, PyAny>,
);

/// The arrays of groups, held while they are read.
struct GroupArrays<'py> {
    offsets: PyReadonlyArray1<'py, i64>,
    rows: PyReadonlyArray1<'py, u64>,
    chosen: PyReadonlyArray1<'py, bool>,
    rejected: PyReadonlyArray1<'py, bool>,
}

impl<'py> GroupArrays<'py> {
    fn new((offsets, rows, chosen, rejected): &PyGroups<'py>) -> PyResult<Self> {
        Ok(Self {
            offsets: array("offsets", offsets)?,
            rows: array("rows", rows)?,
            chosen: array("truncated chosen", chosen)?,
            rejected: array("truncated rejected", rejected)?,
        })
    }

    fn groups<'a>(&'a self, end_ids: &'a [u32], add_special_tokens: bool) -> PyResult<Groups<'a>> {
        Ok(Groups {
            offsets: slice("offsets", &self.offsets)?,
            rows: slice("rows", &self.rows)?,
            truncated: Truncated {
                chosen: slice("truncated chosen", &self.chosen)?,
                rejected: slice("truncated rejected", &self.rejected)?,
                end_ids,
            },
            add_special_tokens,
        })
    }
}

fn chunks_of_each(texts: &[Bound<'_, PyAny>; 3]) -> PyResult<[Vec<ArrayRef>; 3]> {
    Ok([chunks(&texts[0])?, chunks(&texts[1])?, chunks(&texts[2])?])
}

/// Of each group its verdict; of those kept (prompt, chosen, offsets, rejected); how many borders lie before the end of
/// the prompt alone.
type PyGroupRows<'py> = (
    Bound<'py, PyArray1<u8>>,
    Bound<'py, PyArray1<u64>>,
    Bound<'py, PyArray1<u64>>,
    Bound<'py, PyArray1<i64>>,
    Bound<'py, PyArray1<u64>>,
    u64,
);

/// The rows as arrays, without a copy.
fn rows_to_python(py: Python<'_>, rows: GroupRows) -> PyGroupRows<'_> {
    (
        rows.verdicts.into_pyarray(py),
        rows.prompt.into_pyarray(py),
        rows.chosen.into_pyarray(py),
        rows.offsets.into_pyarray(py),
        rows.rejected.into_pyarray(py),
        rows.merged,
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
    ) -> PyResult<PyGroupRows<'py>> {
        let (arrays, group_arrays) = (chunks_of_each(&texts)?, GroupArrays::new(&groups)?);
        let groups = group_arrays.groups(&[], true)?;
        let (encoder, interner) = (&self.encoder.get().0, &mut self.interner);
        let rows = detached(py, || {
            let texts = Plain {
                prompts: strings(&arrays[0])?,
                chosen: strings(&arrays[1])?,
                rejected: strings(&arrays[2])?,
                end,
                truncated: groups.truncated,
            };
            interner.push(encoder, &texts, groups, limit)
        })??;
        Ok(rows_to_python(py, rows))
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
    ) -> PyResult<Option<PyGroupRows<'py>>> {
        let (arrays, group_arrays) = (chunks_of_each(&chats)?, GroupArrays::new(&groups)?);
        let groups = group_arrays.groups(&end_ids, false)?;
        let (encoder, interner, template) = (&self.encoder.get().0, &mut self.interner, &template.get().0);
        let rows = detached(py, || {
            let chats = Chats {
                template,
                prompts: conversations(&arrays[0])?,
                chosen: conversations(&arrays[1])?,
                rejected: conversations(&arrays[2])?,
            };
            interner.push(encoder, &chats, groups, limit)
        })?;
        match rows {
            Ok(rows) => Ok(Some(rows_to_python(py, rows))),
            Err(Error::RenderGroup { .. }) => Ok(None),
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
    ) -> PyResult<PyGroupRows<'py>> {
        let (arrays, group_arrays) = (chunks_of_each(&texts)?, GroupArrays::new(&groups)?);
        let groups = group_arrays.groups(&end_ids, false)?;
        let (encoder, interner) = (&self.encoder.get().0, &mut self.interner);
        let rows = detached(py, || {
            let texts = Rendered {
                prompts: strings(&arrays[0])?,
                chosen: strings(&arrays[1])?,
                rejected: strings(&arrays[2])?,
            };
            interner.push(encoder, &texts, groups, limit)
        })??;
        Ok(rows_to_python(py, rows))
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
