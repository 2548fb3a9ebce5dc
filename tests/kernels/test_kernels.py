"""The fused LM head: in PyTorch rows, in the Triton interpreter, and on a GPU where there is one.

What it must compute is in `kernel_checks.py`. Here is how often (FLOPs), in how much memory, and how it fits in: bf16,
autocast, torch.compile, the Triton compiler.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext

import kernel_checks
import pytest
import torch
from counting import LookInside, peak
from kernel_checks import (
    BF16_EXTRA_ROUNDING,
    CASES,
    CHECKS,
    FP32_RTOL,
    GROUPS,
    HEAD,
    Case,
    arguments,
    leaves,
    make,
    relative_error,
    rms_error,
    upstream,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from mipo.fused.operators import linear_logps, linear_preference_loss
from mipo.kernels import linear_logps as logps_kernel
from mipo.kernels import linear_preference_loss as loss_kernel
from mipo.kernels import row_kernels, rows
from mipo.loss import preference_loss, token_logps


@pytest.fixture(scope="module")
def interpreted() -> dict[str, str | None]:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, kernel_checks.__file__, "--json"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("name", CHECKS)
def test_pytorch_rows(name: str) -> None:
    CHECKS[name]("cpu")


# The interpreter of Triton 3.6 fails with numpy 2.4; its compiler is tested below all the same.
INTERPRETS = row_kernels.triton is not None and not row_kernels.triton.__version__.startswith("3.6.")


@pytest.mark.skipif(not INTERPRETS, reason="needs the interpreter of Triton 3.7 or newer")
@pytest.mark.parametrize("name", CHECKS)
def test_triton_rows_in_the_interpreter(name: str, interpreted: dict[str, str | None]) -> None:
    assert interpreted[name] is None, interpreted[name]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", CHECKS)
def test_triton_rows_on_a_gpu(name: str) -> None:
    CHECKS[name]("cuda")


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def eager_logps(case: Case, inputs: dict[str, Tensor], targets: Tensor) -> Tensor:
    """What a model's own head and a softmax in fp32 give."""
    logits = torch.nn.functional.linear(inputs["hidden"], inputs["weight"], inputs.get("bias"))
    if "up" in inputs:
        logits = logits + inputs["down"] @ inputs["up"].t()
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) * case.scale
    if case.softcap is not None:
        logits = case.softcap * torch.tanh(logits / case.softcap)
    return (logits / case.temperature).log_softmax(-1).gather(-1, targets[:, None])[:, 0]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mode", ["M1", "M2", "M3", "M4"])
@pytest.mark.parametrize("name", ["plain", "one-chunk", "everything", "peaky"])
def test_bf16_is_no_worse_than_eager(name: str, mode: str, device: str) -> None:
    case = CASES[name]
    inputs, targets = make(case, device, torch.bfloat16)
    wanted = tuple(x for x in case.inputs if mode != "M1" or x not in HEAD)
    lengths, ref_logps = torch.tensor([[3, 2], [4, 2]]), torch.full((2, 2), -20.0, device=device)
    chunk_bytes = case.chunk_bytes // 2

    def loss(logps: Tensor) -> Tensor:
        sums = torch.stack([part.sum() for part in logps.split(lengths.flatten().tolist())]).view(2, 2)
        return preference_loss(sums, ref_logps.to(sums)).mean()

    def run(dtype: torch.dtype, ours: bool) -> list[Tensor]:
        params = leaves(inputs, wanted, dtype)
        head, options = {**arguments(params), **case.options}, {"chunk_bytes": chunk_bytes}
        if not ours:
            logps = eager_logps(case, params, targets)
            out = loss(logps) if mode == "M2" else logps
        elif mode == "M2":
            result = linear_preference_loss(
                **head, targets=targets, lengths=lengths, ref_logps=ref_logps, statistics=True, mode=mode, **options
            )
            logps, out = result.statistics.logps, result.loss
        else:
            logps = out = linear_logps(**head, targets=targets, mode=mode, **options)
        return [logps.detach(), *torch.autograd.grad(out, [params[x] for x in wanted], upstream(out))]

    runs = zip(run(torch.bfloat16, True), run(torch.bfloat16, False), run(torch.float64, False), strict=True)
    for quantity, (mine, theirs, truth) in zip(("logps", *wanted), runs, strict=True):
        extra = FP32_RTOL if quantity == "logps" else BF16_EXTRA_ROUNDING
        assert rms_error(mine, truth) <= rms_error(theirs, truth) + extra, quantity


@pytest.mark.parametrize("device", DEVICES)
def test_without_gradients_bf16_inputs_keep_fp32_logits(device: str) -> None:
    case = CASES["everything"]
    inputs, targets = make(case, device, torch.bfloat16)
    logps = linear_logps(**arguments(inputs), targets=targets, **case.options)
    truth = token_logps(**arguments(leaves(inputs, (), torch.float64)), targets=targets, **case.options)
    assert relative_error(logps, truth) < FP32_RTOL


@pytest.mark.parametrize("mode", ["M1", "M3", "M4"])
@pytest.mark.parametrize("staging", [torch.bfloat16, torch.float32])
def test_staging_the_logits_is_a_choice(staging: torch.dtype, mode: str) -> None:
    inputs, targets = make(CASES["plain"], "cpu", torch.bfloat16)
    params = leaves(inputs, ("hidden",))
    logps = linear_logps(**arguments(params), targets=targets, logits_dtype=staging, mode=mode, chunk_bytes=9000)
    truth = token_logps(**arguments(leaves(inputs, (), torch.float64)), targets=targets)
    assert (relative_error(logps.detach(), truth) < FP32_RTOL) == (staging == torch.float32)
    (gradient,) = torch.autograd.grad(logps.sum(), params["hidden"])
    assert gradient.dtype == torch.bfloat16


# FLOPs


def plain_step(wanted: tuple[str, ...], mode: str, chunk_rows: int = 6) -> Callable[[], object]:
    """Forward and backward; in mode M2 of a group of 5 tokens and one of 6."""
    case = CASES["plain"]
    inputs, targets = make(case, "cpu")
    params = leaves(inputs, wanted)
    chunk_bytes = Case(rows=chunk_rows).chunk_bytes
    if mode == "M2":
        lengths, ref_logps = torch.tensor([[3, 2], [4, 2]]), torch.full((2, 2), -20.0)
        return lambda: linear_preference_loss(
            **params, targets=targets, lengths=lengths, ref_logps=ref_logps, chunk_bytes=chunk_bytes, mode=mode
        ).loss.backward()

    def step() -> None:
        logps = linear_logps(**params, targets=targets, mode=mode, chunk_bytes=chunk_bytes)
        if wanted:
            logps.sum().backward()

    return step


def flops(step: Callable[[], object], inside: TorchDispatchMode | nullcontext) -> float:
    """In units of one product of the hidden states with the head."""
    case = CASES["plain"]
    with FlopCounterMode(display=False) as counter, inside:
        step()
    return counter.get_total_flops() / (2 * case.tokens * case.width * case.vocabulary)


@pytest.mark.parametrize(
    ("mode", "wanted", "expected"),
    [
        ("M0", "", 1),
        ("M1", "hidden", 2),
        ("M2", "hidden weight", 3),
        ("M2", "weight", 2),
        ("M3", "hidden weight", 3),
        ("M3", "weight", 2),
    ],
)
@pytest.mark.parametrize("inside", [LookInside, nullcontext], ids=["product by product", "as declared"])
def test_flops_of_a_step(mode: str, wanted: str, expected: int, inside: Callable[[], TorchDispatchMode]) -> None:
    assert flops(plain_step(tuple(wanted.split()), mode), inside()) == expected


@pytest.mark.parametrize(("chunk_rows", "kept"), [(1, 0), (6, 4), (11, 8), (15, 11)])
@pytest.mark.parametrize("inside", [LookInside, nullcontext], ids=["product by product", "as declared"])
def test_m4_projects_twice_only_what_it_does_not_keep(
    chunk_rows: int, kept: int, inside: Callable[[], TorchDispatchMode]
) -> None:
    """Three quarters of the budget keep G of some of the 11 tokens: 3F, and F for the others."""
    step = plain_step(("hidden", "weight"), "M4", chunk_rows)
    assert flops(step, inside()) == pytest.approx(3 + (11 - kept) / 11)


def test_only_a_group_longer_than_a_chunk_is_projected_twice() -> None:
    """The operator declares 3F; the products of a group that is longer than its chunk add F for its tokens."""
    chunks = loss_kernel.chunks_of_groups(torch.tensor([[2, 2], [1, 1], [3, 2]]), 4)
    assert list(chunks) == [(slice(0, 1), slice(0, 4)), (slice(1, 2), slice(4, 6)), (slice(2, 3), slice(6, 11))]
    assert flops(plain_step(("hidden", "weight"), "M2", chunk_rows=5), LookInside()) == pytest.approx(3 + 6 / 11)


# Memory


def test_peak_memory_is_seen() -> None:
    def step() -> None:
        a = torch.ones(1000)
        b = a + 1
        del a
        c = b.view(10, 100).t()[:5]
        assert c.sum() == 100

    assert 8000 <= peak(step) <= 8000 + 64


T, D, V = 256, 32, 1600
ROW = V * 4  # bytes of a token's logits in fp32
# State of the softmax, targets, log-probs and what else there is a few numbers of a token; temporaries of a row or two
# in the PyTorch rows. Small beside any of the terms of the table at these sizes: a sixteenth of a chunk's logits.
SMALL = 64 * T + 8 * ROW


@pytest.mark.parametrize(
    ("mode", "trained", "chunk_tokens", "expected"),
    [
        ("M0", "", 64, 64 * ROW),
        ("M1", "hidden", 64, 64 * ROW + 4 * T * D),
        ("M2", "hidden weight", 64, 64 * ROW + 4 * T * D + 4 * 64 * D + 4 * V * D),
        ("M2", "hidden weight", T, T * ROW + 8 * T * D + 4 * V * D),
        ("M3", "hidden weight", T, T * ROW + 8 * T * D + 4 * V * D),
        ("M4", "hidden weight", 64, 64 * ROW + 12 * T * D + 4 * V * D),
    ],
)
def test_peak_memory_is_what_the_table_says(
    mode: str, trained: str, chunk_tokens: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients included, in fp32, where no product needs a wider sum; see kernels/README.md."""
    monkeypatch.setattr(rows, "SLICE_BYTES", ROW)
    inputs, targets = make(Case(tokens=T, width=D, vocabulary=V), "cpu")
    params = leaves(inputs, tuple(trained.split()))
    chunk_bytes = chunk_tokens * ROW

    def step() -> None:
        if mode == "M2":
            lengths, ref_logps = torch.full((T // 16, 2), 8), torch.full((T // 16, 2), -60.0)
            linear_preference_loss(
                **params, targets=targets, lengths=lengths, ref_logps=ref_logps, chunk_bytes=chunk_bytes, mode=mode
            ).loss.backward()
        else:
            logps = linear_logps(**params, targets=targets, mode=mode, chunk_bytes=chunk_bytes)
            if trained:
                logps.sum().backward()

    assert expected <= peak(step) <= expected + SMALL


@pytest.mark.parametrize("mode", ["M1", "M2", "M3", "M4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_logits_never_exist_at_once(mode: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is narrower or wider on the way: only M3 ever has a matrix of tokens by words."""
    monkeypatch.setattr(rows, "SLICE_BYTES", ROW)
    inputs, targets = make(Case(tokens=T, width=4, vocabulary=V), "cpu", dtype)
    params = leaves(inputs, ("hidden",) if mode == "M1" else ("hidden", "weight"))

    def step() -> None:
        chunk_bytes = 8 * V * dtype.itemsize
        if mode == "M2":
            lengths, ref_logps = torch.full((T // 8, 2), 4), torch.full((T // 8, 2), -30.0)
            out = linear_preference_loss(
                **params, targets=targets, lengths=lengths, ref_logps=ref_logps, chunk_bytes=chunk_bytes, mode=mode
            )
            out.loss.backward()
        else:
            linear_logps(**params, targets=targets, mode=mode, chunk_bytes=chunk_bytes).sum().backward()

    assert (peak(step) >= T * V * dtype.itemsize) == (mode == "M3")


def test_a_frozen_head_keeps_one_matrix_for_the_backward() -> None:
    inputs, targets = make(CASES["plain"], "cpu")
    params, sizes = leaves(inputs, ("hidden",)), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        linear_logps(**params, targets=targets)
    assert sorted(sizes) == [0, 3 * len(targets), params["hidden"].numel()]


# How it fits in


@pytest.mark.parametrize("mode", ["M1", "M3", "M4"])
def test_no_tokens(mode: str) -> None:
    case = Case(tokens=0, bias=True, rank=2)
    inputs, targets = make(case, "cpu")
    params = leaves(inputs, ("hidden",) if mode == "M1" else case.inputs)
    logps = linear_logps(**arguments(params), targets=targets, mode=mode)
    logps.sum().backward()
    assert logps.shape == (0,)
    assert params["hidden"].grad.shape == (0, 17)
    assert mode == "M1" or not any(params[x].grad.any() for x in HEAD)


def test_leading_dimensions_are_kept() -> None:
    inputs, targets = make(Case(tokens=24), "cpu")
    hidden, weight = inputs["hidden"], inputs["weight"]
    logps = linear_logps(hidden.view(2, 3, 4, 17), weight, targets.view(2, 3, 4))
    assert torch.equal(logps, linear_logps(hidden, weight, targets).view(2, 3, 4))


@pytest.mark.parametrize("rank", [0, 2])
def test_autocast_computes_in_its_dtype(rank: int) -> None:
    inputs, targets = make(Case(rank=rank), "cpu")
    params = leaves(inputs, ("weight",))
    with torch.autocast("cpu", torch.bfloat16):
        logps = linear_logps(**arguments(params), targets=targets)
    logps.sum().backward()
    assert logps.dtype == params["weight"].grad.dtype == torch.float32
    narrow = {name: x.bfloat16() for name, x in params.items()}
    assert torch.equal(logps, linear_logps(**arguments(narrow), targets=targets))


@pytest.mark.parametrize("mode", ["M1", "M2", "M3", "M4"])
def test_torch_compile_sees_one_node_each_way(mode: str) -> None:
    case = Case(bias=True, rank=2)
    inputs, targets = make(case, "cpu")
    wanted = tuple(x for x in case.inputs if mode != "M1" or x not in HEAD)
    lengths, ref_logps = torch.tensor([[3, 2], [4, 2]]), torch.full((2, 2), -20.0)

    def step(params: dict[str, Tensor]) -> Tensor:
        if mode == "M2":
            return linear_preference_loss(
                **arguments(params), targets=targets, lengths=lengths, ref_logps=ref_logps, mode=mode
            ).loss
        return linear_logps(**arguments(params), targets=targets, mode=mode)

    graphs = []

    def backend(graph: torch.fx.GraphModule, example: list[Tensor]) -> Callable[..., object]:
        def keep(graph: torch.fx.GraphModule, example: list[Tensor]) -> Callable[..., object]:
            graphs.append([node.target for node in graph.graph.nodes if "mipo" in str(node.target)])
            return torch._functorch.aot_autograd.make_boxed_func(graph)

        return torch._dynamo.backends.common.aot_autograd(fw_compiler=keep, bw_compiler=keep)(graph, example)

    runs = []
    for function in (torch.compile(step, fullgraph=True, backend=backend), step):
        params = leaves(inputs, wanted)
        out = function(params)
        runs.append([out, *torch.autograd.grad(out, [params[x] for x in wanted], upstream(out))])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    forward, backward = graphs
    # The numbers of lengths, which tracing does not see, are looked at in a node of their own.
    assert len(forward) == 1 + (mode == "M2")
    # M1 scales the rows of hidden and of down, M2 multiplies all five gradients with the upstream of the loss.
    assert len(backward) == {"M1": 2, "M2": 5}.get(mode, 1)


@pytest.mark.parametrize("mode", ["M1", "M2", "M3", "M4"])
def test_torch_compile_keeps_the_number_of_tokens_open(mode: str) -> None:
    """Every batch has another number of response tokens: one graph for the first, one for all others."""
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, example: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph

    @torch.compile(fullgraph=True, backend=backend)
    def step(params: dict[str, Tensor], targets: Tensor, lengths: Tensor, ref_logps: Tensor) -> Tensor:
        return linear_preference_loss(
            **arguments(params), targets=targets, lengths=lengths, ref_logps=ref_logps, mode=mode
        ).loss

    torch._dynamo.reset()
    for n in (3, 5, 8, 13):
        inputs, targets = make(Case(tokens=2 * n + 1), "cpu")
        params = leaves(inputs, ("hidden",) if mode == "M1" else ("hidden", "weight"))
        step(params, targets, torch.tensor([[n, n + 1]]), torch.full((1, 2), -20.0)).backward()
        assert params["hidden"].grad.isfinite().all()
    assert len(graphs) <= 2
    with pytest.raises(ValueError, match="add up to the 27 tokens, got 26"):
        step(params, targets, torch.tensor([[13, 13]]), torch.full((1, 2), -20.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", ["M0", "M1", "M3", "M4"])
def test_the_operators_of_the_log_probs_are_what_they_declare(mode: str, dtype: torch.dtype) -> None:
    case = Case(bias=True, rank=2)
    inputs, targets = make(case, "cpu", dtype)
    wanted = {"M0": (), "M1": ("hidden", "down")}.get(mode, case.inputs)
    h, w, b, down, up = leaves(inputs, wanted).values()
    options = (1.0, None, 1.0, torch.float32, 4096)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    forward, backward = torch.ops.mipo.linear_logps.default, torch.ops.mipo.linear_logps_backward.default
    for hidden in (h, h.detach().t().contiguous().t().requires_grad_(h.requires_grad)):  # one column beside the other
        torch.library.opcheck(forward, (hidden, w, targets, b, down, up, *options, mode, True), test_utils=checks)
    h, w, b, down, up = inputs.values()
    state, saved = logps_kernel._forward.flat(h, w, targets, b, down, up, *options, mode, True)[3:5]
    if mode in ("M3", "M4"):
        rest = (state, saved, torch.ones(len(h)), None, [True] * 5)
        torch.library.opcheck(backward, (h, w, targets, b, down, up, *options, *rest), test_utils=checks[::2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["pairs", "ragged"])
def test_the_operator_of_the_loss_is_what_it_declares(name: str, dtype: torch.dtype) -> None:
    lengths = torch.tensor(GROUPS[name])
    case = Case(tokens=int(lengths.sum()), bias=True, rank=2)
    inputs, targets = make(case, "cpu", dtype)
    h, w, b, down, up = leaves(inputs, case.inputs).values()
    options = (1.0, None, 1.0, torch.float32, 9 * ROW)
    loss = (lengths, torch.full(lengths.shape, -9.0), "sigmoid", [1.0], 0.1, 0.0, 0.05, True, [True] * 5)
    torch.library.opcheck(
        torch.ops.mipo.linear_preference_loss.default,
        (h, w, targets, b, down, up, *options, *loss),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )
