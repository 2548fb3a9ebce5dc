"""TRL's head: its trainers train the same under ours, for one product less, and afterwards all is as it was."""

import math
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import trl
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers.integrations import deepspeed
from trl.trainer import utils as trl_utils

import mipo.demo
from mipo.demo import world
from mipo.fused import trl as trl_head
from mipo.fused.trl import ARGUMENTS, OUTPUTS, Patch, patch_trl

pytestmark = pytest.mark.usefixtures("one_thread")
DEMO = str(Path(mipo.demo.__file__).parent / "model")
THEIRS = trl_utils._ChunkedLogProbFunction
# Two orders of float32 sums, on log-probs of about -5 and gradients of about 1.
ATOL = 2e-5
# bfloat16 has 8 bits; the two round a gradient of about 1 at different points.
BF16_ATOL = 2e-2
# Losses of about 1 after three steps, and the sums of many tokens' log-probs, about -50, in the log.
LOG_TOL = {"rel": 2e-4, "abs": 2e-4}
# Adam divides by the gradient's size, so where one is all rounding a weight may take a step of another sign: the bound
# is on the mean over a tensor, a hundredth of the three steps' 3e-4.
STEPS, RATE = 3, 1e-4
WEIGHT_ATOL = STEPS * RATE / 100
TIMES = {"train_runtime", "train_samples_per_second", "train_steps_per_second", "step_time", "epoch"}


@pytest.fixture(autouse=True)
def no_patch_before_or_after() -> Iterator[None]:
    assert trl_utils._ChunkedLogProbFunction is THEIRS
    yield
    assert trl_utils._ChunkedLogProbFunction is THEIRS
    assert Patch._active == []


# The function


def arguments(dtype: torch.dtype = torch.float32, seed: int = 0, **fields: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype).requires_grad_()

    defaults = {"hidden": normal(9, 16), "weight": normal(37, 16), "bias": None, "targets": torch.arange(9) * 4,
            "temperature": 1.0, "chunk_size": 8, "final_logit_softcapping": None, "logit_scale": 1.0,
            "outputs": OUTPUTS[1:]}  # fmt: skip
    return {**defaults, **fields}


def both(values: dict[str, Any]) -> list[tuple[Any, dict[str, Tensor]]]:
    """Outputs, and gradients of a sum of the log-probs and of the entropy if there is one; TRL's, then ours."""
    results = []
    for patched in (False, True):
        with patch_trl() if patched else warnings.catch_warnings():
            scores = trl_utils._ChunkedLogProbFunction.apply(*(values[name] for name in ARGUMENTS))
        leaves = {
            name: values[name] for name in ARGUMENTS[:3] if values[name] is not None and values[name].requires_grad
        }
        weights = torch.linspace(-1, 1, len(values["targets"]))
        total = (weights * scores[0]).sum() + (0 if scores[1] is None else (weights * scores[1]).square().sum())
        gradients = torch.autograd.grad(total, list(leaves.values())) if leaves else ()
        results.append((scores, dict(zip(leaves, gradients, strict=True))))
    return results


def assert_same(values: dict[str, Any], atol: float = ATOL) -> None:
    (theirs, their_gradients), (ours, our_gradients) = both(values)
    for name, one, two in zip(OUTPUTS, theirs, ours, strict=True):
        assert (one is None) == (two is None), name
        if one is not None:
            torch.testing.assert_close(two, one, atol=atol, rtol=atol, msg=lambda text, name=name: f"{name}: {text}")
    for name, gradient in their_gradients.items():
        torch.testing.assert_close(our_gradients[name], gradient, atol=atol, rtol=atol)


@pytest.mark.parametrize("outputs", [("log_probs",), ("entropy", "is_top1"), OUTPUTS, OUTPUTS[1:]])
@pytest.mark.parametrize(
    "fields",
    [{}, {"temperature": 0.6}, {"final_logit_softcapping": 5.0, "logit_scale": 0.4}],
    ids=["plain", "temperature", "softcap"],
)
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
def test_it_returns_what_trl_s_returns(outputs: tuple[str, ...], fields: dict[str, Any], bias: bool) -> None:
    values = arguments(outputs=outputs, **fields)
    assert_same({**values, "bias": torch.linspace(-1, 1, 37, requires_grad=True) if bias else None})


@pytest.mark.parametrize("frozen", [("weight",), ("hidden",), ("hidden", "weight")], ids=str)
def test_each_gradient_alone(frozen: tuple[str, ...]) -> None:
    values = arguments()
    assert_same({**values, **{name: values[name].detach() for name in frozen}})


def test_it_computes_in_the_dtype_of_the_hidden_states() -> None:
    """As after cast_lm_head_to_fp32: float32 states, outside autocast, and a weight still in bfloat16."""
    values = arguments(torch.bfloat16, bias=torch.zeros(37, dtype=torch.bfloat16, requires_grad=True))
    values["hidden"] = values["hidden"].detach().float().requires_grad_()
    assert_same(values, BF16_ATOL)  # the weight's gradient is rounded to bfloat16
    (theirs, _), (ours, gradients) = both(values)
    torch.testing.assert_close(ours[0], theirs[0], atol=ATOL, rtol=0)
    assert gradients["weight"].dtype == torch.bfloat16
    assert ours[0].dtype == torch.float32


def test_it_computes_in_the_dtype_of_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(arguments(), BF16_ATOL)


def test_with_and_without_gradients_it_rounds_alike() -> None:
    """Of a policy that is still its own reference, every log-ratio is exactly 0."""
    values = arguments(torch.bfloat16)
    with patch_trl():
        trained = trl_utils._ChunkedLogProbFunction.apply(*values.values())[0]
        with torch.no_grad():
            scored = trl_utils._ChunkedLogProbFunction.apply(*values.values())[0]
    assert torch.equal(trained, scored)


def test_a_batch_without_a_label_keeps_its_graph() -> None:
    """What TRL hands in on a GPU when every label is -100: no token, and a loss that can still go backward."""
    values = arguments()
    values.update(hidden=values["hidden"][:0], targets=values["targets"][:0])
    with patch_trl():
        scores = trl_utils._ChunkedLogProbFunction.apply(*values.values())
    assert [tuple(score.shape) for score in scores] == [(0,)] * 5
    (scores[0].sum() + scores[1].sum()).backward()
    assert not values["weight"].grad.any()


@pytest.mark.parametrize(("frozen", "products"), [(False, (4, 3)), (True, (3, 2))], ids=["trained", "frozen"])
def test_it_takes_one_product_less(frozen: bool, products: tuple[int, int]) -> None:
    values = arguments(outputs=("entropy", "mean_logits", "is_top1"))
    values["weight"].requires_grad_(not frozen)
    one = 2 * values["hidden"].numel() * len(values["weight"])
    counted = []
    for patched in (False, True):
        # TRL's sums in place are not in PyTorch's own list of products.
        in_place = {torch.ops.aten.addmm_: lambda into, a, b, **_: 2 * a[0] * a[1] * b[1]}
        counter = FlopCounterMode(display=False, custom_mapping=in_place)
        with patch_trl() if patched else warnings.catch_warnings(), counter:
            trl_utils._ChunkedLogProbFunction.apply(*values.values())[0].sum().backward()
        counted.append(counter.get_total_flops())
    assert counted == [one * n for n in products]


def test_a_smaller_budget_gives_the_same() -> None:
    values = arguments()
    with patch_trl():
        whole = trl_utils._ChunkedLogProbFunction.apply(*values.values())
    with patch_trl(chunk_bytes=512):
        parts = trl_utils._ChunkedLogProbFunction.apply(*values.values())
    torch.testing.assert_close(parts[0], whole[0], atol=ATOL, rtol=0)
    with pytest.raises(ValueError, match="chunk_bytes"):
        patch_trl(chunk_bytes=0)


# The trainers


def rows() -> list[dict[str, Any]]:
    rng = random.Random(0)
    rows = []
    for user in rng.sample([user for user in world.users() if not world.held_out(user)], 12):
        topic = rng.choice(sorted(user))
        other = rng.choice([value for value in world.TOPICS[topic].values if value != user[topic]])
        prompt = [{"role": "system", "content": world.context(user, rng)},
                  {"role": "user", "content": world.question(topic, rng)}]  # fmt: skip
        answers = [[{"role": "assistant", "content": world.answer(topic, v, rng)}] for v in (user[topic], other)]
        rows.append({"prompt": prompt, "chosen": answers[0], "rejected": answers[1]})
    return rows


def trainer(kind: str, folder: Path, tokenizer: Any, **fields: Any) -> Any:
    plain = {"output_dir": str(folder), "max_steps": STEPS, "per_device_train_batch_size": 4, "learning_rate": RATE,
             "logging_steps": 1, "save_strategy": "no", "report_to": [], "disable_tqdm": True, "bf16": False, "seed": 5,
             "gradient_checkpointing": False, "dataloader_pin_memory": False, "use_cpu": True}  # fmt: skip
    shared = {"model": DEMO, "processing_class": tokenizer}
    data: dict[str, Any] = {
        "dpo": rows(),
        "kto": [{"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
                for row in rows() for side in ("chosen", "rejected")],
        "sft": [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows()],
        "grpo": [{"prompt": row["prompt"]} for row in rows()],
        "rloo": [{"prompt": row["prompt"]} for row in rows()],
    }  # fmt: skip
    kinds = {"dpo": (trl.DPOTrainer, trl.DPOConfig), "kto": (trl.KTOTrainer, trl.KTOConfig),
             "sft": (trl.SFTTrainer, trl.SFTConfig), "grpo": (trl.GRPOTrainer, trl.GRPOConfig),
             "rloo": (trl.RLOOTrainer, trl.RLOOConfig)}  # fmt: skip
    if kind in ("grpo", "rloo"):
        fields = {"num_generations": 4, "max_completion_length": 8, **fields}
        shared["reward_funcs"] = lambda completions, **_: [len(messages[0]["content"]) / 10 for messages in completions]
    peft_config = fields.pop("peft_config", None)
    args = kinds[kind][1](**{**plain, **fields})
    return kinds[kind][0](
        args=args, train_dataset=datasets.Dataset.from_list(data[kind]), peft_config=peft_config, **shared
    )


def lora() -> Any:
    from peft import LoraConfig

    torch.manual_seed(0)
    return LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"])


def trained(instance: Any) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """The log, and the change of each trained weight."""
    before = {name: p.detach().clone() for name, p in instance.model.named_parameters() if p.requires_grad}
    instance.train()
    return instance.state.log_history, {
        name: instance.model.get_parameter(name).detach() - p for name, p in before.items()
    }


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("dpo", {}),
        ("dpo", {"use_weighting": True, "peft_config": lora}),
        ("kto", {}),
        ("sft", {}),
        ("grpo", {"entropy_coef": 0.1, "beta": 0.05, "temperature": 0.9}),
        ("rloo", {"beta": 0.05}),
    ],
    ids=["dpo", "dpo, WPO, LoRA", "kto", "sft", "grpo, entropy bonus", "rloo"],
)
def test_a_trainer_trains_the_same(
    kind: str, fields: dict[str, Any], tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    ours = trl_head.linear_logps

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(options)
        return ours(*args, **options)

    monkeypatch.setattr(trl_head, "linear_logps", counted)
    results = []
    for patched in (False, True):
        options = {name: value() if callable(value) else value for name, value in fields.items()}
        instance = trainer(kind, tmp_path / str(patched), tokenizer, **options)
        assert calls == []
        with patch_trl() if patched else warnings.catch_warnings():
            results.append(trained(instance))
    assert len(calls) >= STEPS
    (log, steps), (our_log, our_steps) = results
    for row, our_row in zip(log, our_log, strict=True):
        assert row.keys() == our_row.keys()
        for name in row.keys() - TIMES:
            assert our_row[name] == pytest.approx(row[name], **LOG_TOL, nan_ok=True), name
    assert sum("loss" in row and math.isfinite(row["loss"]) for row in log) == STEPS
    for name, step in steps.items():
        assert (our_steps[name] - step).abs().mean() < WEIGHT_ATOL, name
    assert max(float(step.abs().mean()) for step in steps.values()) > 10 * WEIGHT_ATOL


# Undoing


def test_undo_restores_what_was_there_and_twice_is_once() -> None:
    patch = patch_trl()
    assert trl_utils._ChunkedLogProbFunction is patch.head
    patch.undo()
    assert trl_utils._ChunkedLogProbFunction is THEIRS
    later = patch_trl()
    patch.undo()
    assert trl_utils._ChunkedLogProbFunction is later.head
    later.undo()


def test_patches_nest_and_come_away_in_any_order() -> None:
    with patch_trl(chunk_bytes=1000) as outer:
        with patch_trl(chunk_bytes=2000) as inner:
            assert trl_utils._ChunkedLogProbFunction is inner.head
        assert trl_utils._ChunkedLogProbFunction is outer.head
    first, second, third = patch_trl(), patch_trl(), patch_trl()
    second.undo()
    assert trl_utils._ChunkedLogProbFunction is third.head
    first.undo()
    assert trl_utils._ChunkedLogProbFunction is third.head
    assert third.head.theirs is THEIRS
    third.undo()


def test_an_error_inside_undoes_too() -> None:
    with pytest.raises(KeyError), patch_trl():
        raise KeyError


def test_another_s_patch_on_top_is_not_thrown_away() -> None:
    patch = patch_trl()
    other = object()
    trl_utils._ChunkedLogProbFunction = other
    with pytest.raises(RuntimeError, match=r"expected mipo's head .* undo that first"):
        patch.undo()
    with pytest.raises(RuntimeError, match="undo that first"):
        patch_trl()
    assert trl_utils._ChunkedLogProbFunction is other
    trl_utils._ChunkedLogProbFunction = patch.head
    patch.undo()


# The guard


def refuses(match: str) -> None:
    head = trl_utils._ChunkedLogProbFunction
    with pytest.raises(RuntimeError, match=match) as raised:
        patch_trl()
    assert trl_utils._ChunkedLogProbFunction is head
    for part in ("expected", "got", trl.__version__, "trl==1.16"):
        assert part in str(raised.value)


def test_another_signature_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Later(THEIRS):  # type: ignore[misc, valid-type]
        @staticmethod
        def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
            return hidden

    monkeypatch.setattr(trl_utils, "_ChunkedLogProbFunction", Later)
    refuses("got hidden, weight, targets in TRL")


def test_something_else_in_its_place_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trl_utils, "_ChunkedLogProbFunction", nn.Identity)
    refuses("arguments hidden, weight, bias")
    monkeypatch.delattr(trl_utils, "_ChunkedLogProbFunction")
    with pytest.raises(RuntimeError, match="got none"):
        patch_trl()
    monkeypatch.undo()


def head_that_passes_less(model: Any) -> Any:
    per_token = _ChunkedLogProbFunction.apply(model.hidden, model.weight, None)  # type: ignore[name-defined] # noqa: F821
    log_probs, entropy, log_sum_sq_probs, mean_logits, is_top1 = per_token
    return log_probs, entropy, log_sum_sq_probs, mean_logits, is_top1


def head_that_unpacks_less(model: Any) -> Any:
    log_probs, entropy = _ChunkedLogProbFunction.apply(1, 2, 3, 4, 5, 6, 7, 8, 9)  # type: ignore[name-defined] # noqa: F821
    return log_probs, entropy


def head_without(model: Any) -> Any:
    return model.forward


@pytest.mark.parametrize(
    ("head", "match"),
    [
        (head_that_passes_less, r"apply\(model.hidden, model.weight, None\)"),
        (head_that_unpacks_less, "no such assignment"),
        (head_without, "no call"),
    ],
)
def test_another_use_is_refused(head: Any, match: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trl_utils, "add_fused_lm_head", head)
    refuses(match)


def test_another_meaning_of_the_same_arguments_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Later(THEIRS):  # type: ignore[misc, valid-type]
        @staticmethod
        def forward(
            ctx: Any, hidden: Any, weight: Any, bias: Any, targets: Any, temperature: float, chunk_size: int,
            final_logit_softcapping: Any = None, logit_scale: float = 1.0, outputs: Any = (),
        ) -> Any:  # fmt: skip
            values = (bias, targets, 1 / temperature, chunk_size, final_logit_softcapping, logit_scale, outputs)
            return THEIRS.forward(ctx, hidden, weight, *values)

    monkeypatch.setattr(trl_utils, "_ChunkedLogProbFunction", Later)
    refuses("expected log_probs")


def test_another_version_with_the_same_contract_is_welcome(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trl, "__version__", "1.99.0")
    with patch_trl() as patch:
        assert trl_utils._ChunkedLogProbFunction is patch.head


def test_zero3_calls_trl_s_own_function_and_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    values = arguments(outputs=("entropy",))
    assert deepspeed.is_deepspeed_zero3_enabled() is False
    trl_head._warn_of_zero3.cache_clear()
    with patch_trl():
        monkeypatch.setattr(trl_head, "is_deepspeed_zero3_enabled", lambda: True)
        monkeypatch.setattr(trl_head, "linear_logps", None)
        with pytest.warns(UserWarning, match="ZeRO-3"):
            scores = trl_utils._ChunkedLogProbFunction.apply(*values.values())
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            trl_utils._ChunkedLogProbFunction.apply(*values.values())
    torch.testing.assert_close(scores[0], THEIRS.apply(*values.values())[0])
