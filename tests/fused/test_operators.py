"""The fused preference loss: `mipo.loss` by another way, TRL's loss through the same model, and with fewer FLOPs.

What its kernels compute, on every device, is in `kernel_checks.py`.
"""

import math
import random
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from counting import LookInside
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import FP32_RTOL, GROUPS, Case, arguments, check_preference, leaves, make, relative_error
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from mipo.fused import arguments as checked
from mipo.fused import operators
from mipo.fused.operators import FusedPreferenceLoss, linear_logps, linear_preference_loss
from mipo.kernels import linear_preference_loss as loss_kernel
from mipo.loss.preference import BATCH_LOSSES, LOSS_TYPES, preference_loss

# Two float32 computations of one number, each FP32_RTOL from the truth, and a model's body before them.
TRL_RTOL = 1e-5
# x / tau with tau = 0.05 is what discopop's mixture sees of the margin: rounding is amplified 20 times over that part.
DISCOPOP_RTOL = 2e-5
EXAMPLE = Path(__file__).parents[2] / "examples" / "preference_loop.py"
SMOOTHED = {"robust": 0.1, "exo_pair": 1e-3, "aot": 0.1, "aot_unpaired": 0.1}
MIXTURES = [
    ({"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.3]}, "sigmoid + sft"),
    ({"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]}, "MPO"),
    ({"loss_type": ["robust", "apo_zero"], "loss_weights": None, "label_smoothing": 0.2}, "robust + apo_zero"),
]


def options_of(name: str) -> dict[str, Any]:
    return {"loss_type": name, "label_smoothing": SMOOTHED.get(name, 0.0)}


EVERY = [pytest.param(options_of(name), id=name) for name in LOSS_TYPES]
EVERY += [pytest.param(options, id=name) for options, name in MIXTURES]


def tolerance(options: dict[str, Any]) -> float:
    return DISCOPOP_RTOL if "discopop" in options["loss_type"] else FP32_RTOL


@pytest.mark.parametrize("options", EVERY)
@pytest.mark.parametrize("rows", [9, 1000], ids=["chunks", "one chunk"])
def test_every_loss_is_its_definition(options: dict[str, Any], rows: int) -> None:
    case = Case(rows=rows, bias=True, rank=2, softcap=5.0, scale=1.7)
    check_preference(case, GROUPS["pairs"], case.inputs, "cpu", tolerance(options), **options)


@pytest.mark.parametrize("options", EVERY)
def test_every_loss_is_its_definition_with_a_frozen_head(options: dict[str, Any]) -> None:
    check_preference(Case(rows=9), GROUPS["pairs"], ("hidden",), "cpu", tolerance(options), **options)


@st.composite
def groups(draw: st.DrawFn) -> list[list[int]]:
    """Lengths of ragged groups of one chosen and up to eight rejected responses."""
    negatives = draw(st.integers(1, 8))
    response = st.lists(st.integers(0, 4), min_size=negatives, max_size=negatives).filter(any)
    return draw(st.lists(st.tuples(st.integers(1, 5), response).map(lambda g: [g[0], *g[1]]), min_size=1, max_size=5))


@settings(max_examples=40, deadline=None)
@given(groups(), st.integers(1, 30), st.sampled_from([0.01, 0.1, 1.0]))
def test_ragged_groups_in_any_chunks(lengths: list[list[int]], rows: int, beta: float) -> None:
    case = Case(rows=rows, width=7, vocabulary=53)
    check_preference(case, lengths, case.inputs, "cpu", beta=beta)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(1, 20))
def test_chunks_hold_whole_groups_and_no_more_than_fits(sizes: list[int], capacity: int) -> None:
    lengths = torch.tensor([[1, size] for size in sizes])
    chunks = list(loss_kernel.chunks_of_groups(lengths, capacity))
    assert [g for groups, _ in chunks for g in range(groups.start, groups.stop)] == list(range(len(sizes)))
    assert [t for _, tokens in chunks for t in range(tokens.start, tokens.stop)] == list(range(int(lengths.sum())))
    for groups, tokens in chunks:
        assert tokens.stop - tokens.start == lengths[groups].sum()
        assert tokens.stop - tokens.start <= capacity or groups.stop - groups.start == 1
    # No chunk could take the next group as well: there is no way with fewer.
    for (_, tokens), (following, _) in pairwise(chunks):
        assert tokens.stop - tokens.start + int(lengths[following.start].sum()) > capacity


# One rejected response is DPO

PAIRS = torch.tensor(GROUPS["pairs"])


def problem(wanted: tuple[str, ...] = ("hidden", "weight"), **fields: Any) -> dict[str, Any]:
    case = Case(**{"tokens": int(PAIRS.sum()), **fields})
    inputs, targets = make(case, "cpu")
    ref_logps = -3.0 * PAIRS.float()
    return {**arguments(leaves(inputs, wanted)), "targets": targets, "lengths": PAIRS, "ref_logps": ref_logps}


@pytest.mark.parametrize(("mode", "wanted"), [("M0", ""), ("M1", "hidden"), ("M2", "hidden weight"),
                                              ("M3", "hidden weight"), ("M4", "hidden weight")])  # fmt: skip
def test_a_pair_is_dpo_to_the_bit(mode: str, wanted: str) -> None:
    out = linear_preference_loss(**problem(tuple(wanted.split())), beta=0.3, mode=mode)
    margins = (out.logps - -3.0 * PAIRS.float()).diff(dim=1)[:, 0]
    assert torch.equal(out.losses, -functional.logsigmoid(0.3 * -margins))
    assert torch.equal(out.loss, out.losses.mean())
    assert not out.losses.requires_grad
    assert not out.logps.requires_grad


@pytest.mark.parametrize("options", EVERY)
def test_the_kernels_losses_have_the_values_of_their_definitions(options: dict[str, Any]) -> None:
    """From the same log-probs: without the tolerance of `check_preference` for the products."""
    mode = None if BATCH_LOSSES.intersection(str(options["loss_type"]).split("'")) else "M2"
    out = linear_preference_loss(**problem(), **options, mode=mode)
    defined = preference_loss(out.logps, -3.0 * PAIRS.float(), lengths=PAIRS, **options)
    torch.testing.assert_close(out.losses, defined, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", sorted(set(LOSS_TYPES) - BATCH_LOSSES - {"sigmoid"}))
def test_the_kernels_slopes_are_finite_where_mathematics_is(name: str) -> None:
    far = torch.tensor([-1e4, -50.0, 0.0, 50.0, 1e4])
    pairs = loss_kernel.LossInputs(
        far, -far, torch.full((5,), 3.0), torch.full((5,), 2.0), far, 1.0, SMOOTHED.get(name, 0.0), 0.05, 0.5
    )
    wide = loss_kernel.LossInputs(*(x.double() if isinstance(x, Tensor) else x for x in pairs))
    for ours, truth in zip(loss_kernel.PAIR_LOSSES[name](pairs), loss_kernel.PAIR_LOSSES[name](wide), strict=True):
        fits = truth.abs() < torch.finfo(torch.float32).max
        assert torch.allclose(ours[fits].double(), truth[fits], rtol=DISCOPOP_RTOL, atol=1e-6)


@pytest.mark.parametrize("side", [0, 1], ids=["chosen", "rejected"])
@pytest.mark.parametrize("name", sorted(set(LOSS_TYPES) - BATCH_LOSSES - {"ipo", "sppo_hard", "discopop"}))
def test_an_impossible_response_is_what_the_definition_makes_of_it(name: str, side: int) -> None:
    """A log-prob of -inf, in each loss that has a limit there."""
    logps = torch.tensor([[-3.0, -4.0], [-2.0, -1.0]])
    logps[0, side] = -torch.inf
    logps.requires_grad_()
    lengths = torch.tensor([[3, 2], [1, 4]])
    options = options_of(name) | {"beta": 0.5}
    defined = preference_loss(logps, torch.zeros(2, 2), lengths=lengths, **options)
    (slopes,) = torch.autograd.grad(defined.sum(), logps)
    objective = loss_kernel.Objective(
        lengths, torch.zeros(2, 2), name, [1.0], 0.5, options["label_smoothing"], discopop_tau=0.05
    )
    sums = loss_kernel._Sums(objective)
    ours, our_slopes = sums._losses(logps.detach(), lengths, logps.detach())
    torch.testing.assert_close(ours, defined.detach())
    torch.testing.assert_close(our_slopes, slopes)


# The modes


@pytest.mark.parametrize(
    ("wanted", "chunk_bytes", "expected"),
    [
        ("", None, "M0"),
        ("hidden", None, "M1"),
        ("hidden down", None, "M1"),
        ("hidden weight", None, "M3"),
        ("bias", None, "M3"),
        ("up", None, "M3"),
        ("hidden weight", 1 << 12, "M4"),
        ("hidden", 1 << 12, "M1"),
    ],
)
def test_the_mode_follows_from_what_is_trained_and_what_fits(
    wanted: str, chunk_bytes: int | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kwargs = problem(tuple(wanted.split()), bias=True, rank=2)
    del kwargs["lengths"], kwargs["ref_logps"]
    modes: list[str] = []
    kernel = checked.logps_kernel.linear_logps
    monkeypatch.setattr(
        checked.logps_kernel, "linear_logps", lambda *a, mode, **o: modes.append(mode) or kernel(*a, mode=mode, **o)
    )
    linear_logps(**kwargs, chunk_bytes=chunk_bytes)
    with torch.no_grad():
        linear_logps(**kwargs, chunk_bytes=chunk_bytes)
    assert modes == [expected, "M0"]


@pytest.mark.parametrize(
    ("wanted", "loss_type", "chunk_bytes", "inside"),
    [("hidden weight", "sigmoid", 1 << 12, True), ("bias", "sigmoid", 1 << 12, True), ("up", "ipo", 1 << 12, True),
     ("hidden weight", "sigmoid", None, False), ("hidden", "sigmoid", 1 << 12, False), ("", "ipo", 1 << 12, False),
     ("hidden weight", "aot", 1 << 12, False), ("hidden weight", ["sigmoid", "aot_unpaired"], 1 << 12, False)],
)  # fmt: skip
def test_the_loss_is_inside_where_the_head_is_trained_and_its_logits_do_not_fit(
    wanted: str, loss_type: Any, chunk_bytes: int | None, inside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    kernel = operators.loss_kernel.linear_preference_loss
    monkeypatch.setattr(
        operators.loss_kernel, "linear_preference_loss", lambda *a, **o: calls.append(1) or kernel(*a, **o)
    )
    kwargs = problem(tuple(wanted.split()), bias=True, rank=2)
    linear_preference_loss(**kwargs, loss_type=loss_type, chunk_bytes=chunk_bytes)
    assert bool(calls) == inside
    with torch.no_grad():
        linear_preference_loss(**kwargs, loss_type=loss_type, chunk_bytes=chunk_bytes, mode="M2" if inside else None)
    assert len(calls) == inside


def test_float16_has_its_gradients_made_after_the_loss_is_scaled() -> None:
    """Small gradients that a scaler lifts into float16's range must not have been rounded to it before."""
    kwargs = problem(bias=True)
    kwargs |= {name: kwargs[name].detach().half().requires_grad_() for name in ("hidden", "weight", "bias")}
    scale = 2.0**14
    loss = linear_preference_loss(**kwargs, beta=1e-4, chunk_bytes=1 << 12).loss * scale
    (ours,) = torch.autograd.grad(loss, kwargs["weight"])
    true = {name: x.detach().double() if name in ("hidden", "weight", "bias") else x for name, x in kwargs.items()}
    true["weight"].requires_grad_()
    (truth,) = torch.autograd.grad(linear_preference_loss(**true, beta=1e-4).loss * scale, true["weight"])
    # The logits' own rounding in float16, 2^-11.
    assert float((ours.double() - truth).norm() / truth.norm()) < 4e-3


@pytest.mark.parametrize("mode", ["M0", "M1", "M2", "M3", "M4"])
def test_statistics_come_with_the_loss_in_every_mode(mode: str) -> None:
    wanted = {"M0": (), "M1": ("hidden",)}.get(mode, ("hidden", "weight"))
    kwargs = problem(wanted)
    out = linear_preference_loss(**kwargs, mode=mode, statistics=True)
    lengths, ref_logps = kwargs.pop("lengths"), kwargs.pop("ref_logps")
    alone = linear_logps(**kwargs, statistics=True)
    for name, ours, theirs in zip(alone._fields, out.statistics, alone, strict=True):
        assert not ours.requires_grad
        assert relative_error(ours, theirs.detach().double()) < FP32_RTOL, name
    assert linear_preference_loss(**kwargs, lengths=lengths, ref_logps=ref_logps, mode=mode).statistics is None


def test_the_module_is_the_function() -> None:
    options = {"beta": 0.3, "loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5], "softcap": 5.0}
    kwargs = problem(bias=True)
    module = FusedPreferenceLoss(**options)
    ours, theirs = module(**kwargs), linear_preference_loss(**kwargs, **options)
    assert torch.equal(ours.loss, theirs.loss)
    assert not list(module.parameters())
    assert "beta=0.3, loss_type=['sigmoid', 'sft']" in repr(module)
    with pytest.raises(ValueError, match="loss types among sigmoid"):
        FusedPreferenceLoss(loss_type="dpo")


@pytest.mark.parametrize("rows", [9, 1000], ids=["chunks", "one chunk"])
@pytest.mark.parametrize("mode", ["M2", "M3", "M4"])
def test_autocast_does_not_round_the_gradient_of_a_float32_weight(mode: str, rows: int) -> None:
    """Float32 weights and bf16 products, as TRL trains by default: dW is as good as the products, in float32."""
    kwargs = problem(rank=2, bias=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = linear_preference_loss(**kwargs, mode=mode, chunk_bytes=Case(rows=rows).chunk_bytes // 2)
    out.loss.backward()
    assert kwargs["weight"].grad.dtype == out.loss.dtype == torch.float32
    assert not torch.equal(kwargs["weight"].grad, kwargs["weight"].grad.bfloat16().float())
    narrow = {name: x.detach().bfloat16() if name in ("hidden", "weight", "bias") else x for name, x in kwargs.items()}
    narrow["lora"] = tuple(x.bfloat16() for x in kwargs["lora"])
    narrow["weight"].requires_grad_()
    again = linear_preference_loss(**narrow, mode=mode, chunk_bytes=Case(rows=rows).chunk_bytes // 2)
    again.loss.backward()
    assert torch.equal(out.loss, again.loss)
    assert torch.equal(kwargs["weight"].grad.bfloat16(), narrow["weight"].grad)


@pytest.mark.parametrize("rows", [9, 1000], ids=["chunks", "one chunk"])
def test_the_gradient_of_a_head_is_rounded_once(rows: int) -> None:
    """From the sums in float32, after they are multiplied by what comes from outside."""
    kwargs, chunk_bytes = problem(), Case(rows=rows).chunk_bytes // 2
    with torch.autocast("cpu", torch.bfloat16):
        out = linear_preference_loss(**kwargs, mode="M2", chunk_bytes=chunk_bytes)
    (wide,) = torch.autograd.grad(out.loss, kwargs["weight"])
    narrow = kwargs | {name: kwargs[name].detach().bfloat16().requires_grad_() for name in ("hidden", "weight")}
    out = linear_preference_loss(**narrow, mode="M2", chunk_bytes=chunk_bytes)
    (ours,) = torch.autograd.grad(out.loss, narrow["weight"], torch.tensor(1 / 3))
    assert torch.equal(ours, (wide * torch.tensor(1 / 3)).bfloat16())


def test_autocast_computes_in_its_dtype() -> None:
    kwargs = problem(rank=2, bias=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = linear_preference_loss(**kwargs)
    narrow = {name: x.detach().bfloat16() if name in ("hidden", "weight", "bias") else x for name, x in kwargs.items()}
    narrow["lora"] = tuple(x.bfloat16() for x in kwargs["lora"])
    narrow["weight"].requires_grad_()
    assert torch.equal(out.loss, linear_preference_loss(**narrow).loss)


# TRL


@pytest.fixture(scope="module")
def trl_trainer(demo_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """TRL's own trainer of the demo's model, with eight pairs of responses of different lengths."""
    import datasets
    from trl import DPOConfig, DPOTrainer

    import mipo.demo
    from mipo.demo import world

    rng = random.Random(0)
    rows = []
    for user in rng.sample(world.users(), 8):
        topic = rng.choice(sorted(user))
        other = rng.choice([value for value in world.TOPICS[topic].values if value != user[topic]])
        prompt = [{"role": "system", "content": world.context(user, rng)},
                  {"role": "user", "content": world.question(topic, rng)}]  # fmt: skip
        sides = [[{"role": "assistant", "content": world.answer(topic, v, rng)}] for v in (user[topic], other)]
        rows.append({"prompt": prompt, "chosen": sides[0], "rejected": sides[1]})
    args = DPOConfig(
        output_dir=str(tmp_path_factory.mktemp("trl")), per_device_train_batch_size=8, max_length=None, bf16=False,
        use_cpu=True, report_to=[], precompute_ref_log_probs=True, gradient_checkpointing=False, disable_tqdm=True,
    )  # fmt: skip
    folder = str(mipo.demo.HERE / "model")
    return DPOTrainer(
        folder, args=args, train_dataset=datasets.Dataset.from_list(rows), processing_class=demo_tokenizer
    )


@pytest.fixture(scope="module")
def batch(trl_trainer: Any) -> dict[str, Tensor]:
    loader = trl_trainer.get_train_dataloader()
    # The reference is the model itself before a step; shaken, so that no loss sits at its origin.
    batch = next(iter(loader))
    noise = torch.linspace(-9, 9, 8)
    batch["ref_chosen_logps"] += noise
    batch["ref_rejected_logps"] -= noise.flip(0) / 2
    return dict(batch)


def packed(model: Any, batch: dict[str, Tensor]) -> dict[str, Any]:
    """TRL's batch, [chosen; rejected], as packed groups."""
    from mipo.fused.heads import Head, response_states

    order = torch.arange(16).view(2, 8).t().flatten()
    ids, attention, mask = (batch[name][order] for name in ("input_ids", "attention_mask", "completion_mask"))
    hidden, targets = response_states(model, ids, mask, attention)
    ref_logps = torch.stack([batch["ref_chosen_logps"], batch["ref_rejected_logps"]], 1)
    return {**Head.of(model)(hidden), "hidden": hidden, "targets": targets, "lengths": mask.sum(1).view(8, 2),
            "ref_logps": ref_logps}  # fmt: skip


@pytest.mark.parametrize("mode", ["M2", None], ids=["trained head", "frozen head"])
@pytest.mark.parametrize("options", EVERY)
def test_loss_and_gradients_are_trl_s_through_the_same_model(
    options: dict[str, Any], mode: str | None, trl_trainer: Any, batch: dict[str, Tensor]
) -> None:
    types, weights = options["loss_type"], options.get("loss_weights")
    types = [types] if isinstance(types, str) else types
    trl_trainer.loss_types, trl_trainer.loss_weights = types, weights or [1.0] * len(types)
    trl_trainer.label_smoothing = options.get("label_smoothing", 0.0)
    model = trl_trainer.model.eval()
    head = model.get_output_embeddings().weight
    head.requires_grad_(mode == "M2")
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert (head is model.get_input_embeddings().weight) == model.config.tie_word_embeddings

    theirs = trl_trainer._compute_loss(model, dict(batch), False)
    their_gradients = torch.autograd.grad(theirs, list(trained.values()))
    kwargs = packed(model, batch)
    named = None if BATCH_LOSSES.intersection(types) else mode
    ours = linear_preference_loss(**kwargs, beta=trl_trainer.beta, **options, mode=named)
    our_gradients = torch.autograd.grad(ours.loss, list(trained.values()))
    head.requires_grad_(True)

    assert relative_error(ours.loss.detach(), theirs.detach().double()) < TRL_RTOL
    # The gradient is one vector; a small piece of it has the rounding of the model's large sums. The head's by itself.
    mine, other = (torch.cat([g.flatten() for g in gradients]) for gradients in (our_gradients, their_gradients))
    assert float((mine - other).norm() / other.norm()) < TRL_RTOL
    if mode == "M2":
        at = [p is head for p in trained.values()].index(True)
        assert relative_error(our_gradients[at], their_gradients[at].double()) < TRL_RTOL


def _trl_step(kwargs: dict[str, Any]) -> None:
    from trl.kernels import ChunkedLogProbFunction

    logps, *_ = ChunkedLogProbFunction.apply(
        kwargs["hidden"], kwargs["weight"], None, kwargs["targets"], 1.0, 32768, None, 1.0, ()
    )
    sums = torch.segment_reduce(logps, "sum", lengths=PAIRS.flatten()).view(4, 2)
    preference_loss(sums, kwargs["ref_logps"]).mean().backward()


@pytest.mark.parametrize(("wanted", "ours", "theirs"), [("hidden", 2, 3), ("hidden weight", 3, 4)])
def test_one_product_fewer_than_trl(wanted: str, ours: int, theirs: int) -> None:
    """Counted on one input: 2F and 3F with a frozen head, 3F and 4F with a trained one."""
    kwargs = problem(tuple(wanted.split()))

    def flops(step: Callable[[], object]) -> float:
        # TRL's sums in place are not in PyTorch's own list of products.
        in_place = {torch.ops.aten.addmm_: lambda total, a, b, **_: 2 * a[0] * a[1] * b[1]}
        with FlopCounterMode(display=False, custom_mapping=in_place) as counter, LookInside():
            step()
        return counter.get_total_flops() / (2 * kwargs["hidden"].numel() * len(kwargs["weight"]))

    assert flops(lambda: linear_preference_loss(**kwargs).loss.backward()) == ours
    assert flops(lambda: _trl_step(kwargs)) == theirs


# Errors

WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"hidden": torch.zeros(20, 16)}, ValueError, r"hidden \[\.\.\., D\] and weight \[V, D\] with one D"),
    ({"weight": torch.zeros(17, 301)}, ValueError, "not transposed"),
    ({"targets": torch.zeros(10, dtype=torch.int64)}, ValueError, "one target per hidden state"),
    ({"targets": torch.zeros(20, dtype=torch.int32)}, TypeError, r"int64 targets.*\.long\(\)"),
    ({"targets": torch.full((20,), -100)}, ValueError, r"\[0, 301\).*-100"),
    ({"targets": torch.full((20,), 301)}, ValueError, r"from 301 to 301"),
    ({"bias": torch.zeros(300)}, ValueError, r"bias of shape \[301\]"),
    ({"weight": torch.zeros(301, 17, dtype=torch.bfloat16)}, TypeError, "one floating dtype.*bfloat16"),
    ({"lora": (torch.zeros(20, 3), torch.zeros(301, 2))}, ValueError, "lora"),
    ({"softcap": 0.0}, ValueError, "positive softcap or None"),
    ({"scale": 0.0}, ValueError, "finite scale other than 0"),
    ({"temperature": 0.0}, ValueError, "positive temperature"),
    ({"chunk_bytes": 0}, ValueError, "positive whole chunk_bytes"),
    ({"chunk_bytes": 1e9}, ValueError, "positive whole chunk_bytes"),
    ({"targets": torch.zeros(20, dtype=torch.int64, device="meta")}, ValueError, "one device, got them on cpu, meta"),
    ({"logits_dtype": torch.float16}, TypeError, "logits_dtype to be torch.float32"),
    ({"mode": "M5"}, ValueError, "mode"),
]
WRONG_LOSS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"lengths": torch.tensor([20])}, ValueError, r"\[groups, 1 \+ negatives\].*\[1\] and \[4, 2\]"),
    ({"lengths": torch.tensor([[10, 10]])}, ValueError, r"\[1, 2\] and \[4, 2\]"),
    ({"lengths": PAIRS.int()}, TypeError, "int64 lengths"),
    ({"lengths": PAIRS + 1}, ValueError, "add up to the 20 tokens, got 28"),
    ({"lengths": torch.tensor([[21, -1], [0, 0], [0, 0], [0, 0]])}, ValueError, "a least of -1"),
    ({"lengths": torch.tensor([[3, 2], [0, 5], [2, 2], [6, 0]])}, ValueError, r"missing in groups \[1, 3\]"),
    ({"ref_logps": torch.zeros(4, 2, dtype=torch.bfloat16)}, TypeError, "ref_logps in float32"),
    ({"ref_logps": torch.zeros(4, 2, requires_grad=True)}, ValueError, "without a gradient"),
    ({"ref_logps": torch.zeros(4, 2, device="meta")}, TypeError, "ref_logps on cpu, got them on meta"),
    ({"hidden": torch.zeros(4, 5, 17), "targets": torch.zeros(4, 5, dtype=torch.int64)}, ValueError, "packed targets"),
    ({"beta": 0.0}, ValueError, "positive, finite beta"),
    ({"loss_type": "dpo"}, ValueError, "loss types among"),
    ({"loss_type": "aot", "mode": "M2"}, ValueError, "aot need the whole batch"),
    ({"loss_type": "robust", "label_smoothing": 0.5}, ValueError, "label_smoothing"),
    ({"mode": "M1"}, ValueError, "the head requires a gradient"),
]


@pytest.mark.parametrize(("change", "error", "message"), WRONG)
def test_what_is_wrong_is_said(change: dict[str, Any], error: type[Exception], message: str) -> None:
    kwargs = problem()
    with pytest.raises(error, match=message):
        linear_preference_loss(**kwargs | change)
    del kwargs["lengths"], kwargs["ref_logps"]
    with pytest.raises(error, match=message):
        linear_logps(**kwargs | change)


@pytest.mark.parametrize(("change", "error", "message"), WRONG_LOSS)
def test_what_is_wrong_with_groups_is_said(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        linear_preference_loss(**problem() | change)


def test_a_mode_that_cannot_give_the_gradient_is_refused() -> None:
    with pytest.raises(ValueError, match=r"than M2.*the head requires no gradient"):
        linear_preference_loss(**problem(("hidden",)), mode="M2")
    with pytest.raises(ValueError, match=r"one of M1, M3, M4, got 'M0': hidden requires a gradient"):
        linear_preference_loss(**problem(("hidden",)), mode="M0")


def test_more_rejected_responses_have_the_softmax_only() -> None:
    lengths = torch.tensor(GROUPS["ragged"])
    kwargs = problem(tokens=int(lengths.sum())) | {"lengths": lengths, "ref_logps": torch.zeros(3, 3)}
    with pytest.raises(ValueError, match="one rejected response per group for ipo, got 2"):
        linear_preference_loss(**kwargs, loss_type="ipo")
    out = linear_preference_loss(**kwargs)
    assert out.loss > 0
    assert math.isclose(out.loss.item(), out.losses.mean().item(), rel_tol=FP32_RTOL)
    assert not out.logps[lengths == 0].any()


# The example


@pytest.mark.parametrize("model", ["the demo's", "stories260K"])
def test_the_example_learns(model: str, request: pytest.FixtureRequest) -> None:
    """`examples/preference_loop.py` as it stands: from log 3 nats down, and the chosen answer up against the others."""
    path = [] if model == "the demo's" else [str(request.getfixturevalue("shared") / "models" / model)]
    run = subprocess.run([sys.executable, EXAMPLE, *path], capture_output=True, text=True, check=True)
    steps = [re.match(r"step \d: loss ([\d.]+), log-probs \[(.*)\]", line) for line in run.stdout.splitlines()]
    losses = [float(step[1]) for step in steps]
    logps = [[float(x) for x in step[2].split(", ")] for step in steps]
    assert losses[0] == pytest.approx(math.log(3), abs=1e-4)
    assert losses[-1] < losses[0] - 0.3
    margins = [chosen - max(rejected) for chosen, *rejected in logps]
    assert margins[-1] > margins[0] + 3
