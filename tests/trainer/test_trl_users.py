"""TRL's own users: what works with DPOTrainer works with MIPOTrainer's defaults, and what TRL refuses it still does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from trl import DPOConfig, TrlParser

import mipo.demo
from mipo.trainer.config import MIPOConfig
from mipo.trainer.trainer import MIPOTrainer, _can_precompute

pytestmark = pytest.mark.usefixtures("one_thread")
DEMO = str(Path(mipo.demo.__file__).parent / "model")


def rows() -> datasets.Dataset:
    """Preferences as people have them: text, not ids."""
    side = {"chosen": "yes , always .", "rejected": "no , never ."}
    return datasets.Dataset.from_list([{"prompt": f"do you drink {drink} ?", **side} for drink in ("tea", "milk") * 4])


def trainer(folder: Path, tokenizer: Any, train: Any, held_out: Any = None, **fields: Any) -> MIPOTrainer:
    args = MIPOConfig(
        output_dir=str(folder), max_steps=1, save_strategy="no", disable_tqdm=True, use_cpu=True, learning_rate=1e-3,
        per_device_train_batch_size=2, report_to=[], **fields,
    )  # fmt: skip
    made = MIPOTrainer(DEMO, args=args, train_dataset=train, eval_dataset=held_out, processing_class=tokenizer)
    assert args.precompute_ref_log_probs is fields.get("precompute_ref_log_probs")  # the caller's are left alone
    return made


Change = Callable[[datasets.Dataset], dict[str, Any]]
ASIDE: dict[str, Change] = {
    "a stream": lambda rows: {"train": rows.to_iterable_dataset()},
    "a stream to evaluate on": lambda rows: {"train": rows, "held_out": rows.to_iterable_dataset()},
    "one stream of two": lambda rows: {"train": rows, "held_out": {"a": rows, "b": rows.to_iterable_dataset()}},
    "a reference that moves": lambda rows: {"train": rows, "sync_ref_model": True, "ref_model_sync_steps": 1},
}


@pytest.mark.parametrize("case", ASIDE)
def test_the_default_steps_aside_where_trl_scores_in_each_step(case: str, tokenizer: Any, tmp_path: Path) -> None:
    made = trainer(tmp_path, tokenizer, **ASIDE[case](rows()))
    assert not made.args.precompute_ref_log_probs
    made.train()
    assert made.state.log_history[-1]["step"] == 1
    if made.eval_dataset is not None:
        assert "loss" in " ".join(made.evaluate())


@pytest.mark.parametrize("case", ASIDE)
def test_an_explicit_true_gets_trl_s_error(case: str, tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="precompute_ref_log_probs"):
        trainer(tmp_path, tokenizer, **ASIDE[case](rows()), precompute_ref_log_probs=True)


def test_elsewhere_the_reference_is_scored_once(tokenizer: Any, tmp_path: Path) -> None:
    made = trainer(tmp_path, tokenizer, rows(), rows())
    assert made.args.precompute_ref_log_probs
    assert "ref_chosen_logps" in made.train_dataset.column_names
    made.train()


def test_pictures_are_never_scored_before(tmp_path: Path) -> None:
    args = MIPOConfig(output_dir=str(tmp_path))
    known = [_can_precompute(args, row, None, None) for row in ({"prompt": "a"}, {"image": 1}, {"images": []})]
    assert known == [True, False, False]


def test_a_data_set_that_trl_does_not_take_gets_trl_s_words(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="must be a `Dataset` or `IterableDataset`, got `DatasetDict`"):
        trainer(tmp_path, tokenizer, datasets.DatasetDict(train=rows()))


@pytest.mark.parametrize("schedule", ["linear", "constant", "cosine", "cosine_warmup_with_min_lr", "inverse_sqrt"])
def test_another_schedule_needs_no_other_setting(schedule: str, tokenizer: Any, tmp_path: Path) -> None:
    made = trainer(tmp_path, tokenizer, rows(), lr_scheduler_type=schedule)
    made.train()
    assert made.state.log_history[-1]["step"] == 1


def test_every_flag_of_trl_s_parser_is_one_of_ours() -> None:
    bare = ("gradient_checkpointing", "precompute_ref_log_probs", "sync_ref_model")
    for name in (*bare, "bf16"):
        for words, value in (([], True), (["true"], True), (["false"], False)):
            if not words and name not in bare:
                continue  # TRL's own wants a value
            flags = [f"--{name}", *words]
            (theirs,) = TrlParser(DPOConfig).parse_args_and_config(["--output_dir", "x", "--use_cpu", *flags])
            (ours,) = TrlParser(MIPOConfig).parse_args_and_config(["--output_dir", "x", "--use_cpu", *flags])
            assert getattr(ours, name) == getattr(theirs, name) == value
