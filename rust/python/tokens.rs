//! The doors of the rooms that know tokens.

use numpy::{IntoPyArray, PyArray1};
use pyo3::prelude::*;

use super::{array, chunks, slice, strings};
use crate::split::{self as border, Groups, Unfinished};
use crate::tokens::{self, Table, View};

/// A tokenizer that neither cuts nor pads, whatever its tokenizer.json says.
#[pyclass(frozen, module = "mipo._native")]
pub(super) struct Encoder(tokens::Encoder);

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
pub(super) struct Split {
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
pub(super) fn split(
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
    let split = py.detach(|| border::split(prompts, joints, groups, unfinished))?;
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
