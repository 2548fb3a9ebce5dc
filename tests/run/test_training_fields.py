"""Training fields, read as text, are those of the classes themselves; and no value that these take is refused."""

import dataclasses
import enum
from typing import Any

import pytest
from peft import LoraConfig

from mipo.io import records
from mipo.run import training_fields
from mipo.run.training_fields import OURS, SOURCES, fields_of, paper_fields
from mipo.trainer.config import MIPOConfig

CONFIGS: dict[training_fields.Config, type[Any]] = {"MIPOConfig": MIPOConfig, "LoraConfig": LoraConfig}


def real_fields(config: training_fields.Config) -> dict[str, Any]:
    """Each field of the class, with its default."""
    return {
        field.name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        for field in dataclasses.fields(CONFIGS[config])
    }


@pytest.mark.parametrize("config", CONFIGS)
def test_the_names_are_those_of_the_class(config: training_fields.Config) -> None:
    read = fields_of(config)
    assert read is not None
    assert read.keys() == real_fields(config).keys()


def test_every_field_of_ours_is_one() -> None:
    assert OURS.keys() <= {*(fields_of("MIPOConfig") or {}), *(fields_of("LoraConfig") or {})}


@pytest.mark.parametrize("config", CONFIGS)
def test_every_default_is_allowed(config: training_fields.Config) -> None:
    read = fields_of(config) or {}
    for name, default in real_fields(config).items():
        value = default.value if isinstance(default, enum.Enum) else default
        # Annotated as if it were never None, or a config of its own, which no recipe can hold.
        if value is None or type(value).__module__.partition(".")[0] in ("peft", "transformers"):
            continue
        assert records.problem(read[name].kind, value, name) is None, (name, read[name].kind, value)


def test_choices_are_those_of_transformers() -> None:
    from transformers.trainer_utils import IntervalStrategy, SaveStrategy, SchedulerType
    from transformers.training_args import OptimizerNames

    read = fields_of("MIPOConfig") or {}
    classes: dict[str, type[enum.Enum]] = {
        "lr_scheduler_type": SchedulerType, "save_strategy": SaveStrategy, "eval_strategy": IntervalStrategy,
        "optim": OptimizerNames,
    }  # fmt: skip
    for name, choices in classes.items():
        for choice in choices:
            assert records.problem(read[name].kind, choice.value, name) is None
        assert records.problem(read[name].kind, "other", name)


@pytest.mark.parametrize(
    ("config", "name", "value"),
    [
        ("MIPOConfig", "loss_type", "ipo"),
        ("MIPOConfig", "loss_type", ["sigmoid", "sft"]),
        ("MIPOConfig", "report_to", ["tensorboard"]),
        ("MIPOConfig", "pad_to_multiple_of", "auto"),
        ("MIPOConfig", "pad_to_multiple_of", 8),
        ("MIPOConfig", "include_num_input_tokens_seen", True),
        ("MIPOConfig", "max_steps", -1),
        ("MIPOConfig", "save_total_limit", 0),
        ("MIPOConfig", "fsdp", True),
        ("MIPOConfig", "model_init_kwargs", {"attn_implementation": "eager"}),
        ("MIPOConfig", "trackio_static_space_id", False),
        ("LoraConfig", "target_modules", ["q_proj"]),
        ("LoraConfig", "init_lora_weights", "pissa_niter_16"),
        ("LoraConfig", "init_lora_weights", False),
        ("LoraConfig", "eva_config", {"rho": 2.0}),
        ("LoraConfig", "rank_pattern", {"q_proj": 4}),
        ("LoraConfig", "layer_replication", [[0, 4], [2, 5]]),
        ("LoraConfig", "trainable_token_indices", {"embed_tokens": [1]}),
    ],
)
def test_what_the_libraries_take_is_not_refused(config: training_fields.Config, name: str, value: Any) -> None:
    assert records.problem((fields_of(config) or {})[name].kind, value, name) is None


def test_the_paper_s_settings_are_mipo_s_own_fields() -> None:
    assert paper_fields().keys() == MIPOConfig.__annotations__.keys()
    assert paper_fields()["learning_rate"].default == "5e-07"
    assert all(field.help for field in paper_fields().values())


@pytest.mark.parametrize("missing", ["trl", "trainer/base_config.py"])
def test_nothing_is_known_where_a_source_is_not_there(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    others = tuple(place for place in SOURCES["MIPOConfig"] if missing not in place)
    monkeypatch.setitem(SOURCES, "MIPOConfig", others)
    training_fields._classes.cache_clear()
    try:
        assert fields_of.__wrapped__("MIPOConfig") is None
        assert paper_fields()
    finally:
        training_fields._classes.cache_clear()
