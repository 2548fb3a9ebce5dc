"""The heads that are compared: ours, the peers that are installed, naive logits, and the bare products as the floor.

Knows how to call each. Every head computes the same number, `Batch.loss_of` of the targets' log-probs,
differentiable in hidden states and weight; those without a loss inside return log-probs and get the same few lines of
PyTorch on top. Does not know how they are timed or whether they are right.
"""

import importlib
import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch
from inputs import BETA, Batch
from stopwatch import Contender
from torch import Tensor
from torch.nn import functional

from mipo.fused import operators

# How TRL's trainers call their head, and the statistics that its DPO trainer requests.
TRL_VOCABULARY_CHUNK = 32768
TRL_STATISTICS = ("log_probs", "entropy", "mean_logits", "is_top1")

Loss = Callable[[Batch, Tensor, Tensor], Tensor]
BOTH = ("trained", "frozen")


@dataclass(frozen=True)
class Head:
    """One way to the loss; `loss` gets the batch and the two tensors that may require a gradient."""

    name: str
    label: str
    loss: Loss
    is_ours: bool = False
    # Skips small probabilities, so its tolerance is another one.
    filters: bool = False
    settings: Sequence[str] = BOTH
    # FLOPs as torch counts them on a CPU; None for own kernels, which it does not see.
    counted_as: str | None = ""


def find(device: str, without: Sequence[str] = ()) -> tuple[list[Head], dict[str, str]]:
    """The available heads, ours first, and the reason for each missing one; heads in `without` are not imported."""
    heads, absent = _ours(), {}
    peers = {"trl": _trl, "liger": _liger, "cce": _cce}
    for name, peer in [(n, p) for n, p in peers.items() if n not in without]:
        try:
            heads += peer(device)
        except Exception as error:  # a peer's import may fail in any way, and is then named with it
            absent[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    heads.append(Head("naive", "naive: F.linear + log_softmax", _naive))
    return [h for h in heads if h.name not in without], absent


def contend(head: Head, batch: Batch, setting: str) -> Contender:
    """The head as something to time, with its weight trained or frozen."""
    hidden = batch.hidden.detach().requires_grad_()
    weight = batch.weight.detach().requires_grad_(setting == "trained")
    wanted = [hidden, weight] if setting == "trained" else [hidden]
    return Contender(
        head.name, lambda: head.loss(batch, hidden, weight), lambda loss: torch.autograd.grad(loss, wanted)
    )


def floor(batch: Batch, setting: str) -> Contender:
    """The products alone, F forward and F or 2F backward, into preallocated buffers; G is the batch's own."""
    hidden, weight = batch.hidden, batch.weight
    g = _softmax_minus_onehot(batch)
    logits, dh = torch.empty_like(g), torch.empty_like(hidden)
    dw = torch.empty_like(weight) if setting == "trained" else None

    def forward() -> None:
        torch.mm(hidden, weight.t(), out=logits)

    def backward(_: None) -> list[Tensor]:
        torch.mm(g, weight, out=dh)
        if dw is not None:
            torch.mm(g.t(), hidden, out=dw)
        # Returns nothing new, so its memory is 0.
        return []

    return Contender("floor", forward, backward)


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "of unknown version"


def _ours() -> list[Head]:
    return [
        Head("ours", "mipo.fused.linear_preference_loss", _preference(), is_ours=True),
        Head("ours+statistics", "the same, with statistics", _preference(statistics=True), is_ours=True),
        Head("ours+fp32", "the same, fp32 logits", _preference(logits_dtype=torch.float32), is_ours=True),
        Head("ours+512MiB", "the same, chunks of 512 MiB", _preference(chunk_bytes=512 << 20), is_ours=True),
        Head("ours+2GiB", "the same, chunks of 2 GiB", _preference(chunk_bytes=2 << 30), is_ours=True),
        Head("M1", "mipo.fused.linear_logps, M1", _logps("M1"), is_ours=True, settings=("frozen",)),
        Head("M3", "mipo.fused.linear_logps, M3", _logps("M3"), is_ours=True, settings=("trained",)),
        Head("M4", "mipo.fused.linear_logps, M4", _logps("M4"), is_ours=True, settings=("trained",)),
    ]


def _preference(**options: Any) -> Loss:
    def loss(batch: Batch, hidden: Tensor, weight: Tensor) -> Tensor:
        arguments = (hidden, weight, batch.targets, batch.lengths, batch.ref_logps)
        return operators.linear_preference_loss(*arguments, beta=BETA, **options).loss

    return loss


def _logps(mode: operators.Mode) -> Loss:
    return lambda batch, hidden, weight: batch.loss_of(operators.linear_logps(hidden, weight, batch.targets, mode=mode))


def _naive(batch: Batch, hidden: Tensor, weight: Tensor) -> Tensor:
    log_p = functional.log_softmax(functional.linear(hidden, weight), -1, dtype=torch.float32)
    return batch.loss_of(log_p.gather(1, batch.targets.unsqueeze(1)).squeeze(1))


def _trl(device: str) -> list[Head]:
    function = importlib.import_module("trl.kernels").ChunkedLogProbFunction
    # Its backward imports this; fail early.
    importlib.import_module("trl.trainer.utils")

    def head(outputs: tuple[str, ...]) -> Loss:
        def loss(batch: Batch, hidden: Tensor, weight: Tensor) -> Tensor:
            options = (1.0, TRL_VOCABULARY_CHUNK, None, 1.0, outputs)
            return batch.loss_of(function.apply(hidden, weight, None, batch.targets, *options)[0])

        return loss

    name = f"TRL {version('trl')}"
    return [
        Head("trl", name, head(("log_probs",))),
        Head("trl+statistics", f"{name}, with its DPO statistics", head(TRL_STATISTICS)),
    ]


def _liger(device: str) -> list[Head]:
    # Without its check of the targets, which makes the host wait: its fastest way.
    os.environ.setdefault("LIGER_SCALED_CE_SM90_VALIDATE_TARGETS", "0")
    function = importlib.import_module("liger_kernel.ops").LigerFusedLinearScaledCrossEntropyFunction
    on_hopper = device == "cuda" and torch.cuda.get_device_capability() == (9, 0)
    if on_hopper:
        importlib.import_module("liger_kernel.ops.cutedsl.ops.fused_scaled_cross_entropy_sm90")
    label = f"Liger {version('liger_kernel')}, per token" + ("" if on_hopper else " (its PyTorch fallback)")

    def loss(batch: Batch, hidden: Tensor, weight: Tensor) -> Tensor:
        return batch.loss_of(-function.apply(hidden, weight, batch.targets))

    return [Head("liger", label, loss, counted_as="its PyTorch fallback")]


def _cce(device: str) -> list[Head]:
    function = importlib.import_module("cut_cross_entropy").linear_cross_entropy
    if device != "cuda":
        raise RuntimeError("installed, but its Triton kernels need a GPU")
    # The release of 2025-01 turns its filter off by a threshold of None, later sources by an implementation's name.
    named = "filter_e_grad" in inspect.signature(function).parameters
    exact = {"impl": "cce_exact"} if named else {"filter_eps": None}

    def head(options: dict[str, Any]) -> Loss:
        def loss(batch: Batch, hidden: Tensor, weight: Tensor) -> Tensor:
            return batch.loss_of(-function(hidden, weight, batch.targets, reduction="none", **options).float())

        return loss

    name = f"Cut Cross-Entropy {version('cut-cross-entropy')}"
    return [
        Head("cce", f"{name}, default (filters)", head({}), filters=True, counted_as=None),
        Head("cce-exact", f"{name}, exact", head(exact), counted_as=None),
    ]


def _softmax_minus_onehot(batch: Batch) -> Tensor:
    g = batch.hidden.new_empty(len(batch.hidden), len(batch.weight))
    for start in range(0, len(g), 1024):
        rows = slice(start, start + 1024)
        logits = torch.mm(batch.hidden[rows], batch.weight.t())
        g[rows] = logits.softmax(-1, dtype=torch.float32)
        g[rows].scatter_add_(1, batch.targets[rows, None], g.new_full((len(logits), 1), -1.0))
    return g


# Names whose failure is ours.
OURS = frozenset(head.name for head in _ours())
