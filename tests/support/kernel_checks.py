"""The fused LM head against fp64 through `mipo.loss`: checks that need only torch and mipo, on any device.

`test_kernels.py` runs them under pytest. As a script (`python tests/support/kernel_checks.py --device cuda`) this file
runs them alone, prints a line for each and fails if one fails; `--json` prints one object, name to traceback or
null. Under TRITON_INTERPRET=1, which must be set before triton is imported, the Triton rows run on
the CPU.
"""

import argparse
import json
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mipo.fused.operators import Mode, linear_logps, linear_preference_loss
from mipo.kernels import row_kernels, row_state, rows
from mipo.loss import preference_loss, sequence_logps, token_statistics
from mipo.loss.preference import BATCH_LOSSES

# Largest error over largest true value. Fp32 has 6e-8; a log-sum-exp and a product of a few hundred terms lose 1 to 8
# times that, and 4 times as much again is room for another BLAS.
FP32_RTOL = 4e-6  # 2e-6 on most CPUs; 3.0e-6 was measured on an AMD EPYC, whose matrix product sums in another order
# dH is rounded to bf16 as a product and again when it is scaled, and dW is a product of two rounded factors, G and
# g * H, where eager rounds g * G once. So one more rounding is allowed, half an ulp of bf16, root mean square.
BF16_EXTRA_ROUNDING = 2.0**-9
# Words that a program reads at a time in the narrowest dtype.
BLOCK = 32 * row_kernels.NUM_WARPS * row_kernels.LANE_BYTES // 2
INPUTS = ("hidden", "weight", "bias", "down", "up")
HEAD = ("weight", "bias", "up")


@dataclass(frozen=True)
class Case:
    """An LM head; `spread` is the standard deviation of its logits, `rows` the tokens that fit a chunk."""

    tokens: int = 11
    width: int = 17
    vocabulary: int = 301
    bias: bool = False
    rank: int = 0
    softcap: float | None = None
    scale: float = 1.0
    temperature: float = 1.0
    spread: float = 2.0
    rows: int = 4

    @property
    def inputs(self) -> tuple[str, ...]:
        absent = {"bias": not self.bias, "down": not self.rank, "up": not self.rank}
        return tuple(name for name in INPUTS if not absent.get(name))

    @property
    def options(self) -> dict[str, float | None]:
        return {"softcap": self.softcap, "scale": self.scale, "temperature": self.temperature}

    @property
    def chunk_bytes(self) -> int:
        return self.rows * 4 * (-(-self.vocabulary // 16) * 16)

    def budget(self, mode: str) -> int:
        """Bytes of logits: M4 has a quarter of them for its slices, and many slices are slow in the interpreter."""
        return self.chunk_bytes * (2 if mode == "M4" else 1)


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
    "low-rank": Case(rank=3),
    "everything": Case(bias=True, rank=2, softcap=5.0, scale=1.7, temperature=1.3),
    "peaky": Case(spread=30.0),
    "flat": Case(spread=1e-3),
}

# Lengths [G, K+1] of responses; 0 is none. A chunk of `Case.rows` = 9 tokens cuts some of them into several chunks,
# and leaves a group that is longer than a chunk to slices of words.
GROUPS = {
    "a-pair": [[2, 3]],
    "one-token-each": [[1, 1], [1, 1]],
    "pairs": [[3, 2], [1, 4], [2, 2], [5, 1]],
    "longer-than-a-chunk": [[2, 2], [9, 7], [1, 3]],
    "ragged": [[2, 3, 1], [4, 0, 2], [1, 1, 0]],
    "eight-rejected": [[1, 2, 1, 1, 2, 1, 1, 2, 1], [2, 1, 0, 0, 0, 0, 0, 0, 0]],
}


def make(case: Case, device: str, dtype: torch.dtype = torch.float32) -> tuple[dict[str, Tensor], Tensor]:
    """Those of `INPUTS` that the case has, and targets."""
    random = torch.Generator().manual_seed(0)
    size = {
        "hidden": (case.tokens, case.width),
        "weight": (case.vocabulary, case.width),
        "bias": (case.vocabulary,),
        "down": (case.tokens, case.rank),
        "up": (case.vocabulary, case.rank),
    }
    inputs = {name: torch.randn(size[name], generator=random) for name in INPUTS if name in case.inputs}
    inputs["weight"] *= case.spread / case.width**0.5
    targets = torch.randint(case.vocabulary, (case.tokens,), generator=random)
    return {name: x.to(device, dtype) for name, x in inputs.items()}, targets.to(device)


def arguments(inputs: dict[str, Tensor]) -> dict[str, object]:
    """What the doors call them."""
    kwargs: dict[str, object] = {name: inputs[name] for name in ("hidden", "weight", "bias") if name in inputs}
    return kwargs | ({"lora": (inputs["down"], inputs["up"])} if "up" in inputs else {})


def leaves(inputs: dict[str, Tensor], wanted: tuple[str, ...], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    return {name: x.detach().clone().to(dtype or x.dtype).requires_grad_(name in wanted) for name, x in inputs.items()}


def upstream(like: Tensor, start: float = -2.0, end: float = 3.0) -> Tensor:
    return torch.linspace(start, end, like.numel(), dtype=like.dtype, device=like.device).view_as(like)


def relative_error(ours: Tensor, truth: Tensor) -> float:
    assert ours.shape == truth.shape
    # A vocabulary of one word has only zeros for truth.
    return float((ours.double() - truth).abs().max() / truth.abs().max().clamp_min(1e-3))


def rms_error(ours: Tensor, truth: Tensor) -> float:
    return float((ours.double() - truth).norm() / truth.norm())


def assert_close(ours: Tensor, truth: Tensor, name: str, rtol: float = FP32_RTOL) -> None:
    error = relative_error(ours.detach(), truth.detach())
    assert error < rtol, f"{name}: relative error {error:.1e}"


def check_logps(case: Case, wanted: tuple[str, ...], mode: Mode, device: str) -> None:
    """Log-probs, and the gradients of the wanted inputs while the others are frozen."""
    inputs, targets = make(case, device)
    ours, true = leaves(inputs, wanted), leaves(inputs, wanted, torch.float64)
    logps = linear_logps(**arguments(ours), targets=targets, **case.options, mode=mode, chunk_bytes=case.budget(mode))
    truth = token_statistics(**arguments(true), targets=targets, **case.options).logps
    assert_close(logps, truth, "logps")
    assert logps.requires_grad == bool(wanted)
    if wanted:
        gradients = torch.autograd.grad(logps, [ours[name] for name in wanted], upstream(logps))
        true_gradients = torch.autograd.grad(truth, [true[name] for name in wanted], upstream(truth))
        for name, gradient, true_gradient in zip(wanted, gradients, true_gradients, strict=True):
            assert_close(gradient, true_gradient, name)


def check_statistics(case: Case, mode: Mode, device: str) -> None:
    """All that is known of a token's softmax, and the gradient of log-prob and entropy together."""
    inputs, targets = make(case, device)
    wanted = {"M0": (), "M1": tuple(name for name in case.inputs if name not in HEAD)}.get(mode, case.inputs)
    ours, true = leaves(inputs, wanted), leaves(inputs, wanted, torch.float64)
    mine = linear_logps(
        **arguments(ours), targets=targets, **case.options, mode=mode, chunk_bytes=case.budget(mode), statistics=True
    )
    truth = token_statistics(**arguments(true), targets=targets, **case.options)
    for name in ("logps", "entropy", "mean_logits", "log_sum_sq_probs"):
        # What is small in a peaked softmax is still a difference of large logits, each known to 6e-8 of itself.
        assert_close(getattr(mine, name), getattr(truth, name), name, FP32_RTOL * max(1.0, case.spread / 2))
    assert torch.equal(mine.is_top1, truth.is_top1)
    if wanted:
        sums = [(x.logps * upstream(x.logps) + x.entropy * upstream(x.entropy, 2, -1)).sum() for x in (mine, truth)]
        gradients = torch.autograd.grad(sums[0], [ours[name] for name in wanted])
        true_gradients = torch.autograd.grad(sums[1], [true[name] for name in wanted])
        for name, gradient, true_gradient in zip(wanted, gradients, true_gradients, strict=True):
            assert_close(gradient, true_gradient, name)


def check_preference(
    case: Case,
    lengths: list[list[int]],
    wanted: tuple[str, ...],
    device: str,
    rtol: float = FP32_RTOL,
    **options: object,
) -> None:
    """The loss and the gradients of the wanted inputs while the others are frozen; inside, in M2, where that may be."""
    names = options.get("loss_type", "sigmoid")
    names = [names] if isinstance(names, str) else names
    inside = set(wanted) & set(HEAD) and not BATCH_LOSSES.intersection(names)
    mode = "M2" if inside else None
    counted = torch.tensor(lengths)
    case = Case(**{**case.__dict__, "tokens": int(counted.sum())})
    inputs, targets = make(case, device)
    ours, true = leaves(inputs, wanted), leaves(inputs, wanted, torch.float64)
    random = torch.Generator().manual_seed(1)
    truth_logps = token_statistics(**arguments(true), targets=targets, **case.options).logps
    ids = torch.arange(counted.numel()).repeat_interleave(counted.flatten()).to(device)
    sums = sequence_logps(truth_logps, ids, counted.numel()).view_as(counted)
    ref_logps = sums.detach() + 4 * torch.randn(counted.shape, generator=random, dtype=torch.float64).to(device)
    options = {"beta": 0.1} | options
    truth = preference_loss(
        sums, ref_logps.float().double(), mask=(counted > 0).to(device), lengths=counted.to(device), **options
    )
    mine = linear_preference_loss(
        **arguments(ours), targets=targets, lengths=counted, ref_logps=ref_logps.float(), **case.options, **options,
        chunk_bytes=case.chunk_bytes, mode=mode,
    )  # fmt: skip
    assert_close(mine.loss, truth.mean(), "loss", rtol)
    assert_close(mine.losses, truth, "losses", rtol)
    assert_close(mine.logps, sums, "logps")
    if wanted:
        # An upstream of 3: what a loss that is scaled afterwards hands down.
        gradients = torch.autograd.grad(3 * mine.loss, [ours[name] for name in wanted])
        true_gradients = torch.autograd.grad(3 * truth.mean(), [true[name] for name in wanted])
        for name, gradient, true_gradient in zip(wanted, gradients, true_gradients, strict=True):
            assert_close(gradient, true_gradient, name, rtol)


def check_several_blocks(device: str) -> None:
    """The row kernel alone on rows of three blocks: BLAS errors on 16,389 terms would hide its own."""
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 2 * BLOCK + 5, generator=random).to(device) * 4
    bias = torch.randn(logits.shape[1], generator=random).to(device)
    targets = torch.tensor([0, 1, BLOCK, 2 * BLOCK, 2 * BLOCK + 4], device=device)
    transform = row_state.Transform(0.5, 30.0, 0.7)
    logits[2, targets[2]] = 100  # one target is the top
    truth = logits.double().requires_grad_()
    z = 30 * torch.tanh(0.5 * (truth + bias) / 30) / 0.7
    true_logps = z.log_softmax(1).gather(1, targets[:, None])[:, 0]
    (true_g,) = torch.autograd.grad(-true_logps.sum(), truth)

    # In slices of words whose borders are none of the blocks', and then at once, in place.
    border, state, g = 10_000, row_state.new_state(targets, torch.float32, True), torch.empty_like(logits)
    slices = [(first, end, bias[first:end]) for first, end in ((0, border), (border, logits.shape[1]))]
    for first, end, part in slices:
        rows.fold_rows(logits[:, first:end], targets, part, transform, state, words=end - first, first=first)
    for first, end, part in slices:
        options = {"words": end - first, "first": first, "g": g[:, first:end]}
        rows.gradient_rows(logits[:, first:end], targets, part, transform, state, **options)
    assert_close(row_state.logps_of(state), true_logps, "logps of slices")
    assert_close(g, true_g, "G of slices")
    whole = row_state.new_state(targets, torch.float32, True)
    rows.fold_rows(logits, targets, bias, transform, whole, words=logits.shape[1], g=logits)
    assert_close(row_state.logps_of(whole), true_logps, "logps")
    assert_close(logits, true_g, "G")
    all_logps = z.detach().log_softmax(1)
    entropy = -(all_logps.exp() * all_logps).sum(1)
    others = torch.stack([z.detach().mean(1), (2 * all_logps).logsumexp(1), z.argmax(1) == targets])
    for name, statistics in (("slices", state), ("whole", whole)):
        mine, rest = row_state.statistics_of(statistics, logits.shape[1])
        assert_close(mine, entropy, f"entropy of {name}")
        assert_close(rest, others, f"statistics of {name}")


def check_same_bits_twice(device: str) -> None:
    case = CASES["everything"]
    lengths = torch.tensor([[3, 2], [4, 2]])
    runs = []
    for _ in range(2):
        inputs, targets = make(case, device)
        ours = leaves(inputs, case.inputs)
        results: list[Tensor] = []
        for mode in ("M3", "M4"):
            logps = linear_logps(
                **arguments(ours), targets=targets, **case.options, mode=mode, chunk_bytes=case.budget(mode)
            )
            results += [logps, *torch.autograd.grad(logps, list(ours.values()), upstream(logps))]
        ref_logps = torch.full((2, 2), -20.0, device=device)
        out = linear_preference_loss(
            **arguments(ours), targets=targets, lengths=lengths, ref_logps=ref_logps, chunk_bytes=case.chunk_bytes,
            mode="M2",
        )  # fmt: skip
        runs.append([*results, out.loss, *torch.autograd.grad(out.loss, list(ours.values()))])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def check_retained_graph(device: str) -> None:
    """Walking a graph twice, as accumulating gradients, adds the same gradient twice."""
    case = CASES["everything"]
    inputs, targets = make(case, device)
    for mode in ("M2", "M3", "M4"):
        ours = leaves(inputs, case.inputs)
        if mode == "M2":
            ref_logps = torch.full((2, 2), -20.0, device=device)
            lengths = torch.tensor([[3, 2], [4, 2]])
            out = linear_preference_loss(
                **arguments(ours), targets=targets, lengths=lengths, ref_logps=ref_logps, chunk_bytes=case.chunk_bytes,
                mode="M2",
            ).loss  # fmt: skip
        else:
            out = linear_logps(**arguments(ours), targets=targets, mode=mode, chunk_bytes=case.budget(mode))
        out.backward(upstream(out), retain_graph=True)
        once = [x.grad.clone() for x in ours.values()]
        out.backward(upstream(out))
        assert all(torch.equal(x.grad, 2 * first) for x, first in zip(ours.values(), once, strict=True)), mode


def check_forbidden_words(device: str) -> None:
    """A bias of -inf over a whole block forbids its words and leaves the rest as if they did not exist."""
    inputs, targets = make(Case(tokens=3, width=3, vocabulary=BLOCK + 50, bias=True), device)
    targets = BLOCK + targets % 50
    inputs["bias"].zero_()[:BLOCK] = -torch.inf
    rest = {"hidden": inputs["hidden"], "weight": inputs["weight"][BLOCK:]}
    for mode, chunk_bytes in (("M1", 1 << 20), ("M4", 1 << 16)):
        ours, true = leaves(inputs, ("hidden",)), leaves(rest, ("hidden",), torch.float64)
        mine = linear_logps(**ours, targets=targets, mode=mode, chunk_bytes=chunk_bytes, statistics=True)
        truth = token_statistics(**true, targets=targets - BLOCK)
        assert_close(mine.logps, truth.logps, "logps")
        assert_close(mine.entropy, truth.entropy, "entropy")
        for a, b in ((mine.logps, truth.logps), (mine.entropy, truth.entropy)):
            (gradient,) = torch.autograd.grad(a, ours["hidden"], upstream(a), retain_graph=True)
            (true_gradient,) = torch.autograd.grad(b, true["hidden"], upstream(b), retain_graph=True)
            assert_close(gradient, true_gradient, f"hidden, {mode}")


def check_impossible_targets(device: str) -> None:
    """A target that its own bias of -inf excludes: a log-prob of -inf, a loss of +inf if chosen, and no NaN."""
    lengths, ref_logps = torch.tensor(GROUPS["pairs"]), torch.full((4, 2), -9.0, device=device)
    for token in (0, 4):  # of a chosen response, and of a rejected one
        inputs, targets = make(Case(tokens=int(lengths.sum()), bias=True), device)
        inputs["bias"][targets[token]] = -torch.inf
        for mode in ("M1", "M2", "M3", "M4"):
            wanted = ("hidden",) if mode == "M1" else ("hidden", "weight", "bias")
            ours, true = leaves(inputs, wanted), leaves(inputs, wanted, torch.float64)
            mine = linear_preference_loss(
                **arguments(ours), targets=targets, lengths=lengths, ref_logps=ref_logps, mode=mode, chunk_bytes=20_000
            )
            logps = token_statistics(**arguments(true), targets=targets).logps
            parts = logps.split(lengths.flatten().tolist())
            truth = preference_loss(torch.stack([p.sum() for p in parts]).view(4, 2), ref_logps.double())
            assert mine.logps[0, token // 4] == -torch.inf
            assert mine.losses[0] == truth[0] == (0.0 if token else torch.inf)
            assert_close(mine.losses[1:], truth[1:], "losses")
            gradients = torch.autograd.grad(mine.loss, [ours[name] for name in wanted])
            true_gradients = torch.autograd.grad(truth.mean(), [true[name] for name in wanted])
            for name, gradient, true_gradient in zip(wanted, gradients, true_gradients, strict=True):
                assert_close(gradient, true_gradient, f"{name}, {mode}")


def check_nothing_beyond_the_row(device: str) -> None:
    """Rows lie in a wider buffer; what is beside the words is not used, what is beside the rows not changed either."""
    case = CASES["everything"]
    inputs, targets = make(case, device)
    transform = row_state.Transform(1.7, 5.0, 1.3)
    buffer = torch.full((case.tokens, 320), torch.nan, device=device)
    words = case.vocabulary
    logits, room = buffer[:, :words], buffer[:, : rows.aligned(words)]
    state = row_state.new_state(targets, torch.float32, True)
    torch.mm(inputs["hidden"], inputs["weight"].t(), out=logits)
    rows.fold_rows(room, targets, inputs["bias"], transform, state, words=words, g=room)
    assert state.isfinite().all()
    assert logits.isfinite().all()
    assert buffer[:, rows.aligned(words) :].isnan().all()


def check_strided_arguments(device: str) -> None:
    """Columns of a table of ids, and every second number of a bias, are what they say and not what lies beside them."""
    case = CASES["everything"]
    inputs, targets = make(case, device)
    table = torch.stack([targets, targets.flip(0), targets * 0], 1)
    wide = torch.stack([inputs["bias"], -inputs["bias"]], 1)
    spread = inputs | {"bias": wide[:, 0], "hidden": torch.cat([inputs["hidden"]] * 2, 1)[:, : case.width]}
    assert not any(x.is_contiguous() for x in (table[:, 0], spread["bias"], spread["hidden"]))
    options = {**case.options, "chunk_bytes": case.chunk_bytes}
    ours = linear_logps(**arguments(spread), targets=table[:, 0], **options)
    torch.testing.assert_close(
        ours, linear_logps(**arguments(inputs), targets=targets, **options), rtol=FP32_RTOL, atol=1e-6
    )
    lengths, ref_logps = torch.tensor([[3, 2], [4, 2]]), torch.full((2, 4), -20.0, device=device)
    losses = [
        linear_preference_loss(**arguments(params), targets=of, lengths=lengths, ref_logps=ref, **options).loss
        for params, of, ref in ((spread, table[:, 0], ref_logps[:, ::2]), (inputs, targets, ref_logps[:, :2].clone()))
    ]
    assert torch.equal(*losses)


def check_wide_rows_in_bf16(vocabulary: int, logits_dtype: torch.dtype, device: str) -> None:
    """What a training step runs on a GPU: bf16, in place, every warp, many rows; against fp64 as eager bf16 is."""
    if device == "cpu" and rows.runs_triton(torch.empty(1)):
        return  # the interpreter's bf16 is wrong
    case = Case(tokens=200, width=64, vocabulary=vocabulary, bias=True, rows=70)
    inputs, targets = make(case, device, torch.bfloat16)
    lengths, ref_logps = torch.full((10, 2), 10), torch.full((10, 2), -100.0, device=device)
    gradients: dict[str, dict[str, Tensor]] = {}
    for mode in ("M1", "M2", "M3", "M4", "eager", "truth"):
        wanted = ("hidden",) if mode == "M1" else case.inputs
        params = leaves(inputs, wanted, torch.float64 if mode == "truth" else None)
        if mode in ("eager", "truth"):
            logits = torch.nn.functional.linear(params["hidden"], params["weight"], params["bias"])
            logps = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
            sums = logps.gather(1, targets[:, None]).view(10, 2, 10).sum(2)
            loss = preference_loss(sums, ref_logps.to(sums)).mean()
        else:
            loss = linear_preference_loss(
                **arguments(params), targets=targets, lengths=lengths, ref_logps=ref_logps, mode=mode,
                chunk_bytes=case.chunk_bytes // 2, logits_dtype=logits_dtype,
            ).loss  # fmt: skip
        # An upstream that bf16 does not hold: it must not be rounded before it is multiplied with.
        parts = torch.autograd.grad(loss, [params[name] for name in wanted], torch.full_like(loss, 1 / 3))
        gradients[mode] = dict(zip(wanted, parts, strict=True))
    eager, truth = gradients["eager"], gradients["truth"]
    for mode in ("M1", "M2", "M3", "M4"):
        for name, ours in gradients[mode].items():
            limit = rms_error(eager[name], truth[name]) + BF16_EXTRA_ROUNDING
            assert rms_error(ours, truth[name]) <= limit, f"{mode}, {name}"


def check_the_host_never_waits(device: str) -> None:
    """On a GPU no step of forward or backward makes the host wait for it: lengths come from the CPU."""
    if device == "cpu":
        return
    lengths, ref_logps = torch.tensor([[3, 2], [4, 2]]), torch.full((2, 2), -20.0, device=device)
    case = CASES["everything"]
    inputs, targets = make(case, device)
    for again in (False, True):
        torch.cuda.set_sync_debug_mode("error" if again else "default")  # compiling may wait
        try:
            for names in ("sigmoid", "exo_pair"):
                for mode in ("M1", "M2", "M3", "M4"):
                    ours = leaves(inputs, tuple(x for x in case.inputs if mode != "M1" or x not in HEAD))
                    linear_preference_loss(
                        **arguments(ours), targets=targets, lengths=lengths, ref_logps=ref_logps, mode=mode,
                        loss_type=names, label_smoothing=0.1 if names == "exo_pair" else 0.0, statistics=True,
                        chunk_bytes=case.chunk_bytes,
                    ).loss.backward()  # fmt: skip
        finally:
            torch.cuda.set_sync_debug_mode("default")


def check_unknown_words(device: str) -> None:
    """Where nobody may look at the targets first, a target outside the vocabulary gives NaN and reads no memory."""
    inputs, targets = make(CASES["bias"], device)
    targets[3], targets[4] = -100, len(inputs["weight"])
    logits = inputs["hidden"] @ inputs["weight"].t()
    state = row_state.new_state(targets, torch.float32, False)
    rows.fold_rows(
        logits, targets, inputs["bias"], row_state.Transform(1.0, None, 1.0), state, words=logits.shape[1], g=logits
    )
    assert row_state.logps_of(state).isnan().nonzero().flatten().tolist() == [3, 4]
    assert logits.isfinite().all()


def _logps_checks() -> dict[str, Callable[[str], None]]:
    checks: dict[str, Callable[[str], None]] = {}
    for name, case in CASES.items():
        frozen_head = tuple(x for x in case.inputs if x not in HEAD)
        for mode, wanted in (("M0", ()), ("M1", frozen_head), ("M3", case.inputs), ("M4", case.inputs)):
            checks[f"{name}-{mode}"] = partial(check_logps, case, wanted, mode)
    # Each gradient alone only where everything is on: what is left out does not depend on the options.
    for mode in ("M3", "M4"):
        for wanted in INPUTS:
            checks[f"everything-{mode}-{wanted}-alone"] = partial(check_logps, CASES["everything"], (wanted,), mode)
    for name in ("plain", "everything", "peaky"):
        for mode in ("M0", "M1", "M3", "M4"):
            checks[f"{name}-{mode}-statistics"] = partial(check_statistics, CASES[name], mode)
    return checks


def _preference_checks() -> dict[str, Callable[[str], None]]:
    plain, everything = Case(rows=9), Case(**{**CASES["everything"].__dict__, "rows": 9})
    checks: dict[str, Callable[[str], None]] = {}
    for name, lengths in GROUPS.items():
        checks[f"groups-{name}"] = partial(check_preference, plain, lengths, plain.inputs)
        checks[f"groups-{name}-everything"] = partial(check_preference, everything, lengths, everything.inputs)
    checks["groups-one-chunk"] = partial(check_preference, Case(rows=1000), GROUPS["pairs"], plain.inputs)
    checks["groups-frozen-head"] = partial(check_preference, everything, GROUPS["pairs"], ("hidden", "down"))
    checks["groups-nothing"] = partial(check_preference, everything, GROUPS["pairs"], ())
    for wanted in INPUTS:
        lengths = GROUPS["longer-than-a-chunk"]
        checks[f"groups-{wanted}-alone"] = partial(check_preference, everything, lengths, (wanted,))
    return checks


CHECKS: dict[str, Callable[[str], None]] = {
    **_logps_checks(),
    **_preference_checks(),
    "several-blocks": check_several_blocks,
    "same-bits-twice": check_same_bits_twice,
    "retained-graph": check_retained_graph,
    "forbidden-words": check_forbidden_words,
    "impossible-targets": check_impossible_targets,
    "nothing-beyond-the-row": check_nothing_beyond_the_row,
    "strided-arguments": check_strided_arguments,
    "the-host-never-waits": check_the_host_never_waits,
    **{
        f"wide-rows-of-{vocabulary}-{dtype}": partial(check_wide_rows_in_bf16, vocabulary, dtype)
        for vocabulary, dtype in ((16_400, torch.bfloat16), (16_389, torch.bfloat16), (16_400, torch.float32))
    },
    "unknown-words": check_unknown_words,
}


def outcome(check: Callable[[str], None], device: str) -> str | None:
    """A traceback, or nothing."""
    try:
        check(device)
    except Exception:
        return traceback.format_exc()
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if not rows.runs_triton(torch.empty(1, device=args.device)):
        print("on a CPU the Triton rows need TRITON_INTERPRET=1, set before triton is imported", file=sys.stderr)
        return 2
    torch.backends.cuda.matmul.allow_tf32 = False
    failures = {name: outcome(check, args.device) for name, check in CHECKS.items()}
    if args.json:
        json.dump(failures, sys.stdout)
        return 0
    for name, failure in failures.items():
        print(f"{'ok  ' if failure is None else 'FAIL'} {name}" + (f"\n{failure}" if failure else ""))
    failed = sum(failure is not None for failure in failures.values())
    print(f"{len(failures) - failed} passed, {failed} failed on {args.device}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
