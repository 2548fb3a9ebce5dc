"""The fused LM head against fp64: in PyTorch rows, in the Triton interpreter, and on a GPU where there is one.

Run as a script this file does every check in its own process and prints one JSON object, name to traceback or null.
So the interpreter, which must be chosen before triton is imported, never meets the other tests.
"""

import json
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from mipo.fused import linear_logps
from mipo.kernels import linear_logps as kernel
from mipo.loss import token_logps

# Largest error over largest true value. Fp32 has 6e-8; a log-sum-exp and a product of a few hundred terms lose 1 to 8
# times that, and 4 times as much again is room for another BLAS.
FP32_RTOL = 2e-6
# dH is rounded to bf16 as a product and again when it is scaled, and dW is a product of two rounded factors, G and
# g * H, where eager rounds g * G once. So one more rounding is allowed, half an ulp of bf16, root mean square.
BF16_EXTRA_ROUNDING = 2.0**-9


@dataclass(frozen=True)
class Case:
    """An LM head; `spread` is the standard deviation of its logits, `rows` the tokens that fit a chunk."""

    tokens: int = 11
    width: int = 17
    vocabulary: int = 301
    bias: bool = False
    softcap: float | None = None
    scale: float = 1.0
    temperature: float = 1.0
    spread: float = 2.0
    rows: int = 4


CASES = {
    "plain": Case(),
    "one-chunk": Case(rows=1000),
    "one-token": Case(tokens=1),
    "token-by-token": Case(rows=1),
    "one-word": Case(vocabulary=1),
    "aligned": Case(width=16, vocabulary=256),
    "bias": Case(bias=True),
    "softcap": Case(softcap=5.0),
    "scale": Case(scale=0.25),
    "negative-scale": Case(scale=-1.5),
    "temperature": Case(temperature=0.7),
    "everything": Case(bias=True, softcap=5.0, scale=1.7, temperature=1.3),
    "peaky": Case(spread=30.0),
    "flat": Case(spread=1e-3),
}


def make(case: Case, device: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(case.tokens, case.width, generator=random)
    weight = torch.randn(case.vocabulary, case.width, generator=random) * case.spread / case.width**0.5
    bias = torch.randn(case.vocabulary, generator=random) if case.bias else None
    targets = torch.randint(case.vocabulary, (case.tokens,), generator=random)
    hidden, weight = hidden.to(device, dtype), weight.to(device, dtype)
    return hidden, weight, targets.to(device), None if bias is None else bias.to(device, dtype)


def options(case: Case) -> dict[str, float | None]:
    return {"softcap": case.softcap, "scale": case.scale, "temperature": case.temperature}


def chunk_bytes(case: Case) -> int:
    return case.rows * 4 * (-(-case.vocabulary // 16) * 16)


def upstream(logps: Tensor) -> Tensor:
    return torch.linspace(-2, 3, logps.numel(), dtype=logps.dtype, device=logps.device)


def relative_error(ours: Tensor, truth: Tensor) -> float:
    assert ours.shape == truth.shape
    # A vocabulary of one word has only zeros for truth.
    return float((ours.double() - truth).abs().max() / truth.abs().max().clamp_min(1e-3))


def rms_error(ours: Tensor, truth: Tensor) -> float:
    return float((ours.double() - truth).norm() / truth.norm())


def check_against_fp64(case: Case, wanted: tuple[str, ...], device: str) -> None:
    """Log-probs, and the gradients of the wanted inputs while the others are frozen."""
    hidden, weight, targets, bias = make(case, device)
    inputs = {"hidden": hidden, "weight": weight, "bias": bias}
    ours = {k: v if v is None else v.clone().requires_grad_(k in wanted) for k, v in inputs.items()}
    true = {k: v if v is None else v.double().requires_grad_(k in wanted) for k, v in inputs.items()}
    logps = linear_logps(**ours, targets=targets, **options(case), chunk_bytes=chunk_bytes(case))
    truth = token_logps(**true, targets=targets, **options(case))
    assert relative_error(logps.detach(), truth.detach()) < FP32_RTOL
    assert logps.requires_grad == bool(wanted)
    if wanted:
        gradients = torch.autograd.grad(logps, [ours[k] for k in wanted], upstream(logps))
        true_gradients = torch.autograd.grad(truth, [true[k] for k in wanted], upstream(truth))
        for name, gradient, true_gradient in zip(wanted, gradients, true_gradients, strict=True):
            assert relative_error(gradient, true_gradient) < FP32_RTOL, name


def check_several_blocks(device: str) -> None:
    """The row kernel alone on rows of three blocks: BLAS errors on 16,389 terms would hide its own."""
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 2 * kernel.BLOCK + 5, generator=random).to(device) * 4
    bias = torch.randn(logits.shape[1], generator=random).to(device)
    targets = torch.tensor([0, 1, kernel.BLOCK, 2 * kernel.BLOCK, 2 * kernel.BLOCK + 4], device=device)
    truth = logits.double().requires_grad_()
    z = 30 * torch.tanh(0.5 * (truth + bias) / 30) / 0.7
    true_logps = z.log_softmax(1).gather(1, targets[:, None])[:, 0]
    (true_g,) = torch.autograd.grad(-true_logps.sum(), truth)
    logps = kernel.rewrite_rows(logits, targets, bias, kernel.Transform(0.5, 30.0, 0.7), logits)
    assert relative_error(logps, true_logps.detach()) < FP32_RTOL
    assert relative_error(logits, true_g) < FP32_RTOL


def check_same_bits_twice(device: str) -> None:
    case = CASES["everything"]
    runs = []
    for _ in range(2):
        hidden, weight, targets, bias = make(case, device)
        inputs = [x.requires_grad_() for x in (hidden, weight, bias)]
        logps = linear_logps(hidden, weight, targets, bias, **options(case), chunk_bytes=chunk_bytes(case))
        runs.append((logps, *torch.autograd.grad(logps, inputs, upstream(logps))))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def check_retained_graph(device: str) -> None:
    """Walking the graph twice adds the same gradient twice."""
    hidden, weight, targets, _ = make(CASES["plain"], device)
    hidden.requires_grad_(), weight.requires_grad_()
    logps = linear_logps(hidden, weight, targets, chunk_bytes=chunk_bytes(CASES["plain"]))
    logps.backward(upstream(logps), retain_graph=True)
    once = hidden.grad.clone(), weight.grad.clone()
    logps.backward(upstream(logps))
    assert torch.equal(hidden.grad, 2 * once[0])
    assert torch.equal(weight.grad, 2 * once[1])


def check_forbidden_words(device: str) -> None:
    """A bias of -inf over a whole block forbids its words and leaves the rest as if they did not exist."""
    hidden, weight, targets, _ = make(Case(tokens=3, width=3, vocabulary=8192 + 50), device)
    targets = 8192 + targets % 50
    bias = torch.zeros(len(weight), device=device)
    bias[:8192] = -torch.inf
    hidden.requires_grad_()
    logps = linear_logps(hidden, weight, targets, bias)
    (gradient,) = torch.autograd.grad(logps, hidden, upstream(logps))
    rest = hidden.detach().double().requires_grad_()
    truth = token_logps(rest, weight[8192:].double(), targets - 8192)
    (true_gradient,) = torch.autograd.grad(truth, rest, upstream(truth))
    assert relative_error(logps.detach(), truth.detach()) < FP32_RTOL
    assert relative_error(gradient, true_gradient) < FP32_RTOL


def check_nothing_beyond_the_row(device: str) -> None:
    """Rows lie in a wider buffer, and what stands beside them is neither read nor written."""
    hidden, weight, targets, bias = make(CASES["everything"], device)
    transform = kernel.Transform(1.7, 5.0, 1.3)
    buffer = torch.full((len(hidden), 320), torch.nan, device=device)
    logits = buffer[:, : len(weight)]
    torch.mm(hidden, weight.t(), out=logits)
    logps = kernel.rewrite_rows(logits, targets, bias, transform, logits)
    assert logps.isfinite().all()
    assert logits.isfinite().all()
    assert buffer[:, len(weight) :].isnan().all()


def check_unknown_words(device: str) -> None:
    """Where nobody may look at the targets first, a target outside the vocabulary gives NaN and reads no memory."""
    hidden, weight, targets, bias = make(CASES["bias"], device)
    targets[3], targets[4] = -100, len(weight)
    logits = hidden @ weight.t()
    if kernel.runs_triton(logits):
        logps = kernel.rewrite_rows(logits, targets, bias, kernel.Transform(1.0, None, 1.0), logits)
        assert logps.isnan().nonzero().flatten().tolist() == [3, 4]
        assert logits.isfinite().all()


def inputs_of(case: Case) -> tuple[str, ...]:
    return ("hidden", "weight", "bias") if case.bias else ("hidden", "weight")


CHECKS: dict[str, Callable[[str], None]] = {
    f"{name}-{'+'.join(wanted) or 'nothing'}": partial(check_against_fp64, case, wanted)
    for name, case in CASES.items()
    # Each gradient alone only where everything is on: what is left out does not depend on the options.
    for wanted in [(), inputs_of(case), *([(k,) for k in inputs_of(case)] if name == "everything" else [])]
} | {
    "several-blocks": check_several_blocks,
    "same-bits-twice": check_same_bits_twice,
    "retained-graph": check_retained_graph,
    "forbidden-words": check_forbidden_words,
    "nothing-beyond-the-row": check_nothing_beyond_the_row,
    "unknown-words": check_unknown_words,
}


def outcome(check: Callable[[str], None]) -> str | None:
    try:
        check("cpu")
    except Exception:
        return traceback.format_exc()
    return None


@pytest.fixture(autouse=True)
def pytorch_rows_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    # In this process the interpreter stays away, also where somebody has exported TRITON_INTERPRET.
    runs_triton = kernel.runs_triton
    monkeypatch.setattr(kernel, "runs_triton", lambda logits: logits.is_cuda and runs_triton(logits))


@pytest.fixture(scope="module")
def interpreted() -> dict[str, str | None]:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    run = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("name", CHECKS)
def test_pytorch_rows(name: str) -> None:
    CHECKS[name]("cpu")


# The interpreter of Triton 3.6 fails with numpy 2.4; its compiler is tested below all the same.
INTERPRETS = kernel.triton is not None and not kernel.triton.__version__.startswith("3.6.")


@pytest.mark.skipif(not INTERPRETS, reason="needs the interpreter of Triton 3.7 or newer")
@pytest.mark.parametrize("name", CHECKS)
def test_triton_rows_in_the_interpreter(name: str, interpreted: dict[str, str | None]) -> None:
    assert interpreted[name] is None, interpreted[name]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", CHECKS)
def test_triton_rows_on_a_gpu(name: str) -> None:
    CHECKS[name]("cuda")


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["plain", "one-chunk", "everything", "peaky"])
def test_bf16_is_no_worse_than_eager(name: str, device: str) -> None:
    case = CASES[name]
    tensors = [x for x in make(case, device, torch.bfloat16) if x is not None]
    targets = tensors.pop(2)  # the others: hidden, weight and perhaps bias

    def run(fn: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        inputs = [x.to(dtype).requires_grad_() for x in tensors]
        hidden, weight, *bias = inputs
        logps = fn(hidden, weight, targets, bias[0] if bias else None)
        return [logps.detach(), *torch.autograd.grad(logps, inputs, upstream(logps))]

    def ours(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None) -> Tensor:
        return linear_logps(hidden, weight, targets, bias, **options(case), chunk_bytes=chunk_bytes(case) // 2)

    def eager(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None) -> Tensor:
        logits = torch.nn.functional.linear(hidden, weight, bias).to(torch.promote_types(hidden.dtype, torch.float32))
        logits = logits * case.scale
        if case.softcap is not None:
            logits = case.softcap * torch.tanh(logits / case.softcap)
        return (logits / case.temperature).log_softmax(-1).gather(-1, targets[:, None])[:, 0]

    runs = zip(run(ours, torch.bfloat16), run(eager, torch.bfloat16), run(eager, torch.float64), strict=True)
    for quantity, (mine, theirs, truth) in zip(("logps", "hidden", "weight", "bias"), runs, strict=False):
        extra = FP32_RTOL if quantity == "logps" else BF16_EXTRA_ROUNDING
        assert rms_error(mine, truth) <= rms_error(theirs, truth) + extra, quantity


@pytest.mark.parametrize("device", DEVICES)
def test_without_gradients_bf16_inputs_keep_fp32_logits(device: str) -> None:
    case = CASES["everything"]
    hidden, weight, targets, bias = make(case, device, torch.bfloat16)
    logps = linear_logps(hidden, weight, targets, bias, **options(case))
    truth = token_logps(hidden.double(), weight.double(), targets, bias=bias.double(), **options(case))
    assert relative_error(logps, truth) < FP32_RTOL


@pytest.mark.parametrize("staging", [torch.bfloat16, torch.float32])
def test_staging_the_logits_is_a_choice(staging: torch.dtype) -> None:
    hidden, weight, targets, _ = make(CASES["plain"], "cpu", torch.bfloat16)
    hidden.requires_grad_()
    logps = linear_logps(hidden, weight, targets, logits_dtype=staging)
    error = relative_error(logps.detach(), token_logps(hidden.double(), weight.double(), targets).detach())
    assert (error < FP32_RTOL) == (staging == torch.float32)
    (gradient,) = torch.autograd.grad(logps.sum(), hidden)
    assert gradient.dtype == torch.bfloat16


def test_gradcheck() -> None:
    case = Case(tokens=4, width=3, vocabulary=7, bias=True, softcap=5.0, scale=1.7, temperature=1.3)
    hidden, weight, targets, bias = make(case, "cpu", torch.float64)
    inputs = [x.requires_grad_() for x in (hidden, weight, bias)]
    assert torch.autograd.gradcheck(
        lambda h, w, b: linear_logps(h, w, targets, b, **options(case), chunk_bytes=128), inputs
    )


def test_second_derivatives_are_refused() -> None:
    hidden, weight, targets, _ = make(CASES["plain"], "cpu")
    hidden.requires_grad_()
    (gradient,) = torch.autograd.grad(linear_logps(hidden, weight, targets).sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        gradient.sum().backward()


# One product of all the hidden states with the head, in FLOPs.
F = 2 * CASES["plain"].tokens * CASES["plain"].width * CASES["plain"].vocabulary


def count_flops(fn: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        fn()
    return counter.get_total_flops() / F


@pytest.mark.parametrize(("with_gradient", "expected"), [(False, 1), (True, 2)])
def test_forward_flops_counted_product_by_product(with_gradient: bool, expected: int) -> None:
    hidden, weight, targets, _ = make(CASES["plain"], "cpu")
    arguments = (
        hidden,
        weight,
        targets,
        None,
        1.0,
        None,
        1.0,
        torch.float32,
        chunk_bytes(CASES["plain"]),
        with_gradient,
    )
    assert count_flops(lambda: kernel.forward_chunks(*arguments)) == expected


def test_weight_gradient_flops_counted_product_by_product() -> None:
    hidden, weight, targets, _ = make(CASES["plain"], "cpu")
    g = torch.ones(len(hidden))
    arguments = (
        hidden,
        weight,
        targets,
        None,
        g,
        1.0,
        None,
        1.0,
        torch.float32,
        chunk_bytes(CASES["plain"]),
        True,
        False,
    )
    assert count_flops(lambda: kernel.weight_gradient(*arguments)) == 2


@pytest.mark.parametrize(("trained", "expected"), [("", 1), ("h", 2), ("w", 3), ("hw", 4)])
def test_flops_of_a_step(trained: str, expected: int) -> None:
    """What the ops tell FlopCounterMode, forward and backward: F, 2F with a frozen head, 4F with a trained one."""
    hidden, weight, targets, _ = make(CASES["plain"], "cpu")
    hidden.requires_grad_("h" in trained), weight.requires_grad_("w" in trained)

    def step() -> None:
        logps = linear_logps(hidden, weight, targets, chunk_bytes=chunk_bytes(CASES["plain"]))
        if trained:
            logps.sum().backward()

    assert count_flops(step) == expected


class LargestTensor(TorchDispatchMode):
    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.elements = max(self.elements, out.numel())
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_logits_never_exist_at_once(dtype: torch.dtype) -> None:
    hidden, weight, targets, _ = make(Case(tokens=256, width=4, vocabulary=1600), "cpu", dtype)
    options = (1.0, None, 1.0, dtype, 8 * 1600 * dtype.itemsize)
    with LargestTensor() as largest:
        kernel.forward_chunks(hidden, weight, targets, None, *options, True)
        kernel.weight_gradient(hidden, weight, targets, None, torch.ones(256), *options, True, True)
    assert largest.elements == 8 * 1600


def test_a_frozen_head_keeps_one_matrix_for_the_backward() -> None:
    hidden, weight, targets, _ = make(CASES["plain"], "cpu")
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, lambda x: x):
        linear_logps(hidden.requires_grad_(), weight, targets)
    assert kept == [hidden.shape]


def test_no_tokens() -> None:
    hidden, weight, targets, _ = make(Case(tokens=0), "cpu")
    hidden.requires_grad_(), weight.requires_grad_()
    logps = linear_logps(hidden, weight, targets)
    logps.sum().backward()
    assert logps.shape == (0,)
    assert hidden.grad.shape == (0, 17)
    assert not weight.grad.any()


def test_leading_dimensions_are_kept() -> None:
    hidden, weight, targets, _ = make(Case(tokens=24), "cpu")
    logps = linear_logps(hidden.view(2, 3, 4, 17), weight, targets.view(2, 3, 4))
    assert torch.equal(logps, linear_logps(hidden, weight, targets).view(2, 3, 4))


def test_autocast_computes_in_its_dtype() -> None:
    hidden, weight, targets, _ = make(CASES["plain"], "cpu")
    weight.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        logps = linear_logps(hidden, weight, targets)
    logps.sum().backward()
    assert logps.dtype == weight.grad.dtype == torch.float32
    assert torch.equal(logps, linear_logps(hidden.bfloat16(), weight.bfloat16(), targets))


def test_torch_compile_sees_one_node_each_way() -> None:
    hidden, weight, targets, bias = make(CASES["bias"], "cpu")
    inputs = [x.requires_grad_() for x in (hidden, weight, bias)]
    compiled = torch.compile(linear_logps, fullgraph=True, backend="aot_eager")
    ours, eager = compiled(hidden, weight, targets, bias), linear_logps(hidden, weight, targets, bias)
    gradients = [torch.autograd.grad(x, inputs, upstream(x)) for x in (ours, eager)]
    assert torch.equal(ours, eager)
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_ops_are_what_they_declare(dtype: torch.dtype) -> None:
    hidden, weight, targets, bias = make(CASES["bias"], "cpu", dtype)
    weight.requires_grad_()
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    options = (1.0, None, 1.0, torch.float32, 4096)
    forward, backward = torch.ops.mipo.linear_logps.default, torch.ops.mipo.linear_logps_weight_gradient.default
    torch.library.opcheck(forward, (hidden, weight, targets, bias, *options, True), test_utils=checks)
    g = torch.ones(len(hidden))
    torch.library.opcheck(
        backward,
        (hidden, weight.detach(), targets, bias, g, *options, True, True),
        test_utils=("test_schema", checks[2]),
    )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"hidden": torch.zeros(11, 16)}, ValueError, r"hidden \[\.\.\., D\] and weight \[V, D\] with one D"),
        ({"weight": torch.zeros(17, 301)}, ValueError, "not transposed"),
        ({"targets": torch.zeros(10, dtype=torch.int64)}, ValueError, "one target per hidden state"),
        ({"targets": torch.zeros(11, dtype=torch.int32)}, TypeError, r"int64 targets.*\.long\(\)"),
        ({"targets": torch.full((11,), -100)}, ValueError, r"\[0, 301\).*-100"),
        ({"targets": torch.full((11,), 301)}, ValueError, r"from 301 to 301"),
        ({"bias": torch.zeros(300)}, ValueError, r"bias of shape \[301\]"),
        ({"weight": torch.zeros(301, 17, dtype=torch.bfloat16)}, TypeError, "one floating dtype.*bfloat16"),
        ({"softcap": 0.0}, ValueError, "positive softcap or None"),
        ({"scale": 0.0}, ValueError, "finite scale other than 0"),
        ({"temperature": 0.0}, ValueError, "positive temperature"),
        ({"chunk_bytes": 0}, ValueError, "positive chunk_bytes"),
        ({"logits_dtype": torch.float16}, TypeError, "logits_dtype to be torch.float32"),
    ],
)
def test_what_is_wrong_is_said(change: dict[str, object], error: type[Exception], message: str) -> None:
    hidden, weight, targets, _ = make(CASES["plain"], "cpu")
    with pytest.raises(error, match=message):
        linear_logps(**{"hidden": hidden, "weight": weight, "targets": targets} | change)


# The widest use of registers is a trained head with everything on; the narrowest type makes the widest vectors.
COMPILED = [
    ("bf16", "bf16", {"HAS_BIAS": True, "HAS_SOFTCAP": True, "WRITE_G": True}),
    ("bf16", "bf16", {"HAS_BIAS": False, "HAS_SOFTCAP": False, "WRITE_G": True}),
    ("fp32", "bf16", {"HAS_BIAS": True, "HAS_SOFTCAP": True, "WRITE_G": True}),
    ("fp32", "fp32", {"HAS_BIAS": False, "HAS_SOFTCAP": False, "WRITE_G": False}),
]


@pytest.mark.skipif(
    kernel.triton is None or os.environ.get("TRITON_INTERPRET") == "1", reason="needs the Triton compiler"
)
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_the_row_kernel_compiles_without_spills(
    capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    # Triton 3.9 warns that this default will change.
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    for z, g, flags in COMPILED:
        registers, spills = compile_row_kernel(capability, z, g, flags, tmp_path)
        assert spills == 0
        # A program's threads share the 65,536 registers of a multiprocessor.
        assert registers * 32 * kernel.NUM_WARPS <= 65536


def compile_row_kernel(capability: int, z: str, g: str, flags: dict[str, bool], folder: Path) -> tuple[int, int]:
    """Registers per thread and bytes spilled, from the ptxas that Triton brings."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import get_ptxas
    from triton.compiler import ASTSource

    signature = {"z_ptr": f"*{z}", "g_ptr": f"*{g}", "targets_ptr": "*i64", "bias_ptr": "*bf16", "logps_ptr": "*fp32"}
    signature |= dict.fromkeys(("z_stride", "g_stride", "n_cols"), "i32")
    signature |= dict.fromkeys(("scale", "softcap", "inv_t"), "fp32")
    signature |= dict.fromkeys((*flags, "BLOCK"), "constexpr")
    # As the launcher would find them: aligned pointers, strides and vocabulary, in multiples of 16.
    aligned = {(i,): [["tt.divisibility", 16]] for i in range(8)}
    source = ASTSource(kernel._row_kernel, signature, {**flags, "BLOCK": kernel.BLOCK}, aligned)
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source, target=target, options={"num_warps": kernel.NUM_WARPS})
    ptx = folder / f"{capability}-{z}-{g}.ptx"
    ptx.write_text(compiled.asm["ptx"])
    architecture = re.search(r"\.target (\w+)", compiled.asm["ptx"])[1]
    command = [get_ptxas(capability).path, "-v", f"--gpu-name={architecture}", ptx, "-o", os.devnull]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers = int(re.search(r"Used (\d+) registers", report)[1])
    spills = sum(map(int, re.findall(r"(\d+) bytes spill", report)))
    return registers, spills


if __name__ == "__main__":
    assert kernel.runs_triton(torch.empty(1)), "TRITON_INTERPRET=1 must be set before triton is imported"
    json.dump({name: outcome(check) for name, check in CHECKS.items()}, sys.stdout)
