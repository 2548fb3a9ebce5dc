"""TRL's head: DPO, KTO, SFT, GRPO and RLOO trainers of TRL score tokens with `mipo.fused.linear_logps` instead.

Knows where TRL's trainers look their LM head up, and what passes there. Knows no model, and nothing of ours but the
fused head.
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import trl
from torch import Tensor
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from trl.trainer import utils as place

from mipo.errors import InputError
from mipo.fused.operators import linear_logps

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int64

    Tokens = Float[Tensor, " T"]
    Scores = tuple[Tokens, Tokens | None, Tokens | None, Tokens | None, Bool[Tensor, " T"] | None]

NAME = "_ChunkedLogProbFunction"
KNOWN = "1.16"
# The contract of TRL 1.16: what goes in, what comes out, and how `add_fused_lm_head` asks for it at every call.
ARGUMENTS = ("hidden", "weight", "bias", "targets", "temperature", "chunk_size", "final_logit_softcapping",
             "logit_scale", "outputs")  # fmt: skip
OUTPUTS = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")


@dataclass(frozen=True)
class TRLHead:
    """Stands in TRL's place for its autograd function: `apply` takes and returns what that one does."""

    theirs: Any
    chunk_bytes: int | None
    logits_dtype: torch.dtype | None

    def apply(
        self,
        hidden: Float[Tensor, "T D"],
        weight: Float[Tensor, "V D"],
        bias: Float[Tensor, " V"] | None,
        targets: Int64[Tensor, " T"],
        temperature: float,
        chunk_size: int,
        final_logit_softcapping: float | None = None,
        logit_scale: float = 1.0,
        outputs: tuple[str, ...] = OUTPUTS[1:],
    ) -> Scores:
        """Log-probs [T] of the targets, and what `outputs` names of their statistics; None for what it does not.

        Args:
            hidden: [T, D].
            weight: [V, D]; computed with in the dtype of `hidden`, or autocast's, as in TRL.
            bias: [V], or None.
            targets: [T], int64, in [0, V).
            temperature: divides the logits.
            chunk_size: of TRL's tiles of the vocabulary; ours go by bytes.
            final_logit_softcapping: None means none.
            logit_scale: multiplies the logits.
            outputs: of entropy (differentiable), log_sum_sq_probs, mean_logits and is_top1.
        """
        if is_deepspeed_zero3_enabled():
            _say_zero3()
            given = (hidden, weight, bias, targets, temperature, chunk_size, final_logit_softcapping, logit_scale)
            scores: Scores = self.theirs.apply(*given, outputs)
            return scores
        return self._apply(hidden, weight, bias, targets, temperature, final_logit_softcapping, logit_scale, outputs)

    def _apply(
        self,
        hidden: Float[Tensor, "T D"],
        weight: Float[Tensor, "V D"],
        bias: Float[Tensor, " V"] | None,
        targets: Int64[Tensor, " T"],
        temperature: float,
        softcap: float | None,
        scale: float,
        outputs: tuple[str, ...],
    ) -> Scores:
        dtype = _dtype(hidden)
        if not torch.is_autocast_enabled(hidden.device.type):  # which linear_logps deals with itself
            weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        options: dict[str, Any] = {
            "softcap": softcap, "scale": scale, "temperature": temperature, "chunk_bytes": self.chunk_bytes,
            "logits_dtype": self.logits_dtype or dtype,
        }  # fmt: skip
        if not set(outputs) & set(OUTPUTS[1:]):
            return linear_logps(hidden, weight, targets, bias, **options), None, None, None, None
        made = linear_logps(hidden, weight, targets, bias, statistics=True, **options)
        entropy, squares, mean, top1 = (getattr(made, name) if name in outputs else None for name in OUTPUTS[1:])
        return made.logps, entropy, squares, mean, top1


class Patch:
    """That TRL scores tokens with our head: until `undo`, or to the end of a `with` block."""

    _standing: ClassVar[list[Patch]] = []

    def __init__(self, head: TRLHead) -> None:
        self.head = head
        self._standing.append(self)
        setattr(place, NAME, head)

    def undo(self) -> None:
        """Take this patch away; the newest that still stands is used, or TRL's own after the last. Twice is once.

        Raises RuntimeError, and changes nothing, if somebody else has put something in our place since.
        """
        if self not in self._standing:
            return
        _check_newest(self._standing[-1])
        self._standing.remove(self)
        setattr(place, NAME, self._standing[-1].head if self._standing else self.head.theirs)

    def __enter__(self) -> Patch:
        return self

    def __exit__(self, *error: object) -> None:
        self.undo()


def patch_trl(*, chunk_bytes: int | None = None, logits_dtype: torch.dtype | None = None) -> Patch:
    """Have TRL's trainers score tokens with `mipo.fused.linear_logps`, before or after a trainer is made.

    Losses, metrics and gradients stay TRL's. With F = 2 T D V the FLOPs of one product with the head, a frozen one
    (LoRA) takes 2F a step instead of 3F, a trained one 3F instead of 4F as long as the T V logits fit `chunk_bytes`.
    Several patches may stand: the newest counts, and they are undone in any order. Under DeepSpeed ZeRO-3, where TRL's
    own function gathers the weights, that one is called, and this is said once.

    Args:
        chunk_bytes: budget for the logits held at any one time; `None` means about what TRL's own head takes.
        logits_dtype: dtype in which a chunk's logits wait for their log-sum-exp. `None` means that of the hidden
            states or of autocast, with gradients and without, as in TRL: a policy and its reference then round alike.

    Returns:
        The patch: a context manager, with `undo()`.

    Raises:
        RuntimeError: if this TRL's head is not the one of TRL 1.16, in what it takes, returns or computes; or if
            somebody else has put one in its place since an earlier patch.
    """
    if chunk_bytes is not None and chunk_bytes < 1:
        raise InputError(f"expected a positive chunk_bytes, got {chunk_bytes}; leave it out to have it chosen")
    if Patch._standing:
        _check_newest(Patch._standing[-1])
        theirs = Patch._standing[-1].head.theirs
    else:
        theirs = getattr(place, NAME, None)
        _check_contract(theirs)
    return Patch(TRLHead(theirs, chunk_bytes, logits_dtype))


def _dtype(hidden: Float[Tensor, "T D"]) -> torch.dtype:
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


@functools.cache
def _say_zero3() -> None:
    warnings.warn("DeepSpeed ZeRO-3 shards the LM head: TRL's own function scores the tokens, not mipo's", stacklevel=3)


def _check_newest(patch: Patch) -> None:
    found = getattr(place, NAME, None)
    if found is not patch.head:
        raise RuntimeError(
            f"expected our own head in trl.trainer.utils.{NAME}, found {found!r}, put there after patch_trl(); "
            "undo that first"
        )


def _check_contract(theirs: Any) -> None:
    """Raise RuntimeError unless this is TRL 1.16's function, and TRL's models call it as that version's do."""
    try:
        taken = tuple(inspect.signature(theirs.forward).parameters)[1:]
        source = ast.parse(textwrap.dedent(inspect.getsource(place.add_fused_lm_head)))
    except (AttributeError, TypeError, ValueError, OSError) as error:
        raise _changed(f"an autograd function {NAME} that add_fused_lm_head calls", f"none ({error})") from error
    if taken != ARGUMENTS:
        raise _changed(f"the arguments {', '.join(ARGUMENTS)}", ", ".join(taken))
    calls = [node for node in ast.walk(source) if isinstance(node, ast.Call) and _is_apply(node.func)]
    if [(len(call.args), len(call.keywords)) for call in calls] != [(len(ARGUMENTS), 0)]:
        shown = "; ".join(ast.unparse(call) for call in calls) or "no call"
        raise _changed(f"one call of {NAME}.apply with {len(ARGUMENTS)} arguments in add_fused_lm_head", shown)
    unpacked = [node.targets[0] for node in ast.walk(source) if isinstance(node, ast.Assign)]
    if OUTPUTS not in [tuple(ast.unparse(e) for e in node.elts) for node in unpacked if isinstance(node, ast.Tuple)]:
        raise _changed(f"its results unpacked as {', '.join(OUTPUTS)} in add_fused_lm_head", "no such assignment")
    _check_numbers(theirs)


def _is_apply(function: ast.expr) -> bool:
    return ast.unparse(function) == f"{NAME}.apply"


@torch.no_grad()
def _check_numbers(theirs: Any) -> None:
    """The same arguments may come to mean something else: three tokens under both heads, on the CPU."""
    numbers = torch.arange(7 * 5 + 3 * 5 + 7, dtype=torch.float32, device="cpu").sin() * 2
    weight, hidden, bias = numbers[:35].view(7, 5), numbers[35:50].view(3, 5), numbers[50:]
    targets = torch.tensor([0, 6, 3], device="cpu")
    head = TRLHead(theirs, 1 << 20, None)
    with torch.autocast("cpu", enabled=False):
        ours = head._apply(hidden, weight, bias, targets, 0.7, 3.0, 0.6, OUTPUTS[1:])
        made = theirs.apply(hidden, weight, bias, targets, 0.7, 4, 3.0, 0.6, OUTPUTS[1:])
    for name, mine, other in zip(OUTPUTS, ours, made, strict=True):
        # Two orders of float32 sums over seven words.
        if not torch.allclose(mine.float(), other.float(), atol=1e-5):  # type: ignore[union-attr]
            raise _changed(f"{name} {mine.tolist()}", str(other.tolist()))  # type: ignore[union-attr]


def _changed(expected: str, found: str) -> RuntimeError:
    return RuntimeError(
        f"TRL's LM head is not the one that patch_trl() stands in for, TRL {KNOWN}'s: expected {expected}; found "
        f"{found} in TRL {trl.__version__}. Install trl=={KNOWN}.*, or leave patch_trl() out and use TRL's own head"
    )
