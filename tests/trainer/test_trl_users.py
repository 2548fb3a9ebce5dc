"""TRL's own users: what works with DPOTrainer works with MIPOTrainer's defaults, and what TRL refuses it still does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer, TrlParser

import mipo.demo
from mipo.errors import InputError
from mipo.trainer.config import MIPOConfig
from mipo.trainer.metrics import CAP, INFONCE
from mipo.trainer.reference import can_precompute
from mipo.trainer.trainer import MIPOTrainer

pytestmark = pytest.mark.usefixtures("one_thread")
DEMO = str(Path(mipo.demo.__file__).parent / "model")


def rows() -> datasets.Dataset:
    """Preferences as people have them: text, not ids."""
    side = {"chosen": "yes , always .", "rejected": "no , never ."}
    return datasets.Dataset.from_list([{"prompt": f"do you drink {drink} ?", **side} for drink in ("tea", "milk") * 4])


def trainer(
    folder: Path, tokenizer: Any, train: Any, held_out: Any = None, model: Any = DEMO, **fields: Any
) -> MIPOTrainer:
    args = MIPOConfig(
        output_dir=str(folder), save_strategy="no", disable_tqdm=True, use_cpu=True, learning_rate=1e-3, report_to=[],
        **{"max_steps": 1, "per_device_train_batch_size": 2, **fields},
    )  # fmt: skip
    made = MIPOTrainer(model, args=args, train_dataset=train, eval_dataset=held_out, processing_class=tokenizer)
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
    known = [can_precompute(args, row, None, None) for row in ({"prompt": "a"}, {"image": 1}, {"images": []})]
    assert known == [True, False, False]


def test_a_data_set_that_trl_does_not_take_gets_trl_s_words(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="must be a `Dataset` or `IterableDataset`, got `DatasetDict`"):
        trainer(tmp_path, tokenizer, datasets.DatasetDict(train=rows()))


Later = Callable[[datasets.Dataset], Any]
LATER: dict[str, Later] = {
    "rows": lambda rows: rows,
    "a stream": lambda rows: rows.to_iterable_dataset(),
    "two data sets": lambda rows: {"a": rows, "b": rows.select([0, 1])},
}
SAME = ("output_dir", "max_steps", "save_strategy", "disable_tqdm", "learning_rate", "per_device_train_batch_size",
        "report_to", "num_train_epochs", "activation_checkpointing", "dataloader_pin_memory")  # fmt: skip
UNLIKE = ("_runtime", "per_second", INFONCE, CAP)  # endings of names of figures that TRL's log has otherwise or not
FIGURE = 1e-4  # TRL's head adds up in another order, and a step of Adam divides by what may be small


@pytest.mark.parametrize(("after", "shared"), [(False, None), (True, None), (True, False)])
@pytest.mark.parametrize("case", LATER)
def test_data_that_come_later_are_evaluated_as_by_trl(
    case: str, after: bool, shared: bool | None, tokenizer: Any, tmp_path: Path
) -> None:
    """Against the model before training, whichever policy evaluates."""
    later = rows().map(lambda row: {"prompt": row["prompt"].replace("drink", "like")})
    fields = {"lr_scheduler_type": "constant", "warmup_steps": 0, "max_length": None}
    ours = trainer(tmp_path, tokenizer, rows(), shared_prompts=shared, **fields)
    args = DPOConfig(**{name: getattr(ours.args, name) for name in (*SAME, *fields)}, bf16=False, use_cpu=True)
    theirs = DPOTrainer(DEMO, args=args, train_dataset=rows(), processing_class=tokenizer)
    got = []
    for each in (ours, theirs):
        if after:
            each.train()
        figures = each.evaluate(LATER[case](later))
        got.append({name: value for name, value in figures.items() if name.endswith(("loss", "margins", "chosen"))})
    assert got[0] == pytest.approx(got[1], abs=FIGURE)
    assert len(got[0]) > 3
    assert ours.ref_model is None
    assert ours.precompute_ref_logps


SETTINGS: dict[str, dict[str, Any]] = {
    "noise in the embeddings": {"neftune_noise_alpha": 5.0},
    "rows cut to their ends": {"max_length": 4, "truncation_mode": "keep_end", "loss_type": "ipo"},
    "the last batch is smaller": {"per_device_train_batch_size": 3, "max_steps": 3},
    "checkpoints, reentrant": {
        "activation_checkpointing": True,
        "activation_checkpointing_kwargs": {"use_reentrant": True},
    },
}


@pytest.mark.filterwarnings("ignore:.*keep_end:FutureWarning")
@pytest.mark.parametrize("case", SETTINGS)
def test_a_training_logs_what_trl_s_logs(case: str, tokenizer: Any, tmp_path: Path) -> None:
    """Under settings that change the rows which a model sees, or how."""
    fields = {"lr_scheduler_type": "constant", "warmup_steps": 0, "logging_steps": 1, "max_length": None}
    fields |= {"precompute_ref_log_probs": False, **SETTINGS[case]}
    ours = trainer(tmp_path, tokenizer, rows(), **fields)
    args = DPOConfig(**{name: getattr(ours.args, name) for name in (*SAME, *fields)}, bf16=False, use_cpu=True)
    logs = []
    for kind, its in ((MIPOTrainer, ours.args), (DPOTrainer, args)):
        each = kind(DEMO, args=its, train_dataset=rows(), processing_class=tokenizer)  # seeds what it draws
        each.train()
        logs.append([
            {name: value for name, value in row.items() if not name.endswith(UNLIKE)}
            for row in each.state.log_history
        ])  # fmt: skip
    assert len(logs[0]) == len(logs[1]) == ours.args.max_steps + 1
    for row, expected in zip(*logs, strict=True):
        assert row == pytest.approx(expected, abs=FIGURE, rel=FIGURE)


def test_the_model_before_training_is_not_taken_for_another(tokenizer: Any, tmp_path: Path) -> None:
    """A model that was changed after it was loaded: its folder holds another, and TRL's error says what to do."""
    model = AutoModelForCausalLM.from_pretrained(DEMO)
    model.model.norm.weight.data.mul_(1.5)
    made = trainer(tmp_path, tokenizer, rows(), model=model)
    made.train()
    with pytest.raises(ValueError, match="pass an explicit `ref_model`"):
        made.evaluate(rows())


@pytest.mark.parametrize("precompute", [None, False])
def test_a_length_that_no_prompt_fits_is_named(precompute: bool | None, tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="max_length: expected a shorter prompt in one group at least, got 2"):
        trainer(tmp_path, tokenizer, rows(), max_length=2, precompute_ref_log_probs=precompute)


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
