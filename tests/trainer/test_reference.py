"""Reference: scored once for a store and a model, kept beside the store, and again where it is not as written."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from demo_pairs import DEMO, arguments, losses, preferences

from mipo.errors import InputError
from mipo.io import outputs
from mipo.models.loading import load_model
from mipo.tokens.groups import tokenize
from mipo.tokens.store import PairStore
from mipo.trainer.checks import check_training
from mipo.trainer.reference import can_precompute, file_name, is_kept
from mipo.trainer.trainer import MIPOTrainer
from mipo.trainer.training import train

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of groups of each batch of which the reference was scored."""
    batches: list[int] = []
    own = MIPOTrainer.compute_ref_log_probs

    def counted(self: Any, model: Any, inputs: Any) -> Any:
        logps = own(self, model, inputs)
        batches.append(len(logps[0]))
        return logps

    monkeypatch.setattr(MIPOTrainer, "compute_ref_log_probs", counted)
    return batches


@pytest.fixture(params=[(3, 1, 2)])
def folder(request: pytest.FixtureRequest, tokenizer: Any, tmp_path: Path) -> Path:
    """A store of groups of three, one and two rejected responses in turn."""
    tokenize(preferences(12, request.param), tokenizer)[0].save(tmp_path / "tokens")
    return tmp_path / "tokens"


def trained(
    folder: Path,
    tokenizer: Any,
    *,
    model: str = DEMO,
    reuse: Path | None = None,
    lora: dict[str, Any] | None = None,
    **fields: Any,
) -> list[float]:
    args = arguments(folder.parent / "checkpoints", **fields)
    output = folder.parent / "model"
    log = train(PairStore.open(folder), model, tokenizer, output, args=args, reuse=reuse, lora=lora)
    outputs.remove(output)
    return losses(log)


def references(folder: Path) -> list[Path]:
    return sorted(folder.glob("reference-*.parquet"))


@pytest.mark.parametrize("folder", [(1,), (3, 1, 2)], ids=["one", "several"], indirect=True)
def test_a_sweep_scores_the_reference_once(folder: Path, tokenizer: Any, scored: list[int]) -> None:
    first = trained(folder, tokenizer)
    assert sum(scored) == 12
    (kept,) = references(folder)
    assert trained(folder, tokenizer) == first
    other = trained(folder, tokenizer, beta=0.4)
    assert other != first
    assert sum(scored) == 12
    kept.unlink()
    assert trained(folder, tokenizer, beta=0.4) == other
    assert sum(scored) == 24


def test_another_run_s_reference_is_taken(folder: Path, tokenizer: Any, scored: list[int]) -> None:
    first = trained(folder, tokenizer)
    again = folder.parent / "again"
    PairStore.open(folder).save(again)
    aside = folder.rename(folder.with_name("aside"))
    assert trained(again, tokenizer, reuse=aside) == first
    assert sum(scored) == 12


def test_a_reference_that_is_not_as_written_is_scored_again(folder: Path, tokenizer: Any, scored: list[int]) -> None:
    first = trained(folder, tokenizer)
    (kept,) = references(folder)
    content = kept.read_bytes()
    for damaged in (content[:40] + bytes([content[40] ^ 1]) + content[41:], b""):
        scored.clear()
        kept.write_bytes(damaged)
        assert trained(folder, tokenizer) == first
        assert sum(scored) == 12
        assert kept.read_bytes() == content


def test_other_weights_or_settings_have_a_reference_of_their_own(
    folder: Path, tokenizer: Any, scored: list[int], tmp_path: Path
) -> None:
    trained(folder, tokenizer)
    trained(folder, tokenizer, bf16=True)
    model = load_model(DEMO)
    with torch.no_grad():
        model.lm_head.weight[3] += 1
    model.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    trained(folder, tokenizer, model=str(tmp_path / "other"))
    assert sum(scored) == 36
    assert len(references(folder)) == 3
    scored.clear()
    trained(folder, tokenizer, precompute_ref_log_probs=False)
    assert sum(scored) == 12  # in the steps
    assert len(references(folder)) == 3


@pytest.mark.parametrize("folder", [(1,)], indirect=True)
def test_rows_that_trl_cuts_have_no_reference_that_is_kept(folder: Path, tokenizer: Any, scored: list[int]) -> None:
    lengths = PairStore.open(folder).lengths()
    trained(folder, tokenizer)
    assert sum(scored) == 12
    trained(folder, tokenizer, max_length=int(lengths["prompt"].max()))
    assert 0 < sum(scored) - 12 < 12
    assert len(references(folder)) == 1


def test_an_adapter_that_begins_by_changing_weights_leaves_no_reference(
    folder: Path, tokenizer: Any, scored: list[int]
) -> None:
    adapter = {"r": 4, "target_modules": "all-linear"}
    trained(folder, tokenizer, lora={**adapter, "init_lora_weights": "pissa"})
    assert not references(folder)
    trained(folder, tokenizer, lora=adapter)
    trained(folder, tokenizer)
    assert sum(scored) == 24
    assert len(references(folder)) == 1


def test_the_folder_stays_mipo_s(folder: Path, tokenizer: Any) -> None:
    trained(folder, tokenizer)
    store = PairStore.open(folder)
    store.save(folder)
    assert not references(folder)


def test_a_folder_that_takes_no_file_stops_nothing(
    folder: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(folder, tokenizer)
    (kept,) = references(folder)
    kept.unlink()
    kept.mkdir()
    trained(folder, tokenizer)
    assert "the reference's log-probs are not kept for another training" in capsys.readouterr().out


@pytest.mark.parametrize(("stage", "before"), [(None, True), (2, True), (3, False)])
def test_zero_3_scores_the_reference_in_each_step(stage: int | None, before: bool, tmp_path: Path) -> None:
    args = arguments(tmp_path, precompute_ref_log_probs=None)
    args.deepspeed_plugin = None if stage is None else SimpleNamespace(zero_stage=stage)
    assert can_precompute(args, {"prompt_ids": []}, None, None) == before
    assert is_kept(args, None) == before
    args.precompute_ref_log_probs = True
    with nullcontext() if before else pytest.raises(InputError, match=r"precompute_ref_log_probs: .* with ZeRO-3"):
        check_training(args, negatives=1, launched=True)


def test_deepspeed_s_reference_is_another(folder: Path, tmp_path: Path) -> None:
    args, store, content = arguments(tmp_path, bf16=True), PairStore.open(folder), {"files": "x"}
    name = file_name(store, content, args)
    assert name == file_name(store, content, arguments(tmp_path, bf16=True))
    args.deepspeed_plugin = SimpleNamespace(zero_stage=2)
    assert file_name(store, content, args) != name
