"""TRL's head: makes TRL's DPO, KTO, SFT, GRPO and RLOO trainers score tokens with `mipo.fused.linear_logps`.

Knows where TRL's trainers look up their LM head, and its arguments. Knows no model, and of mipo only the fused head.
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
from trl.trainer import utils as trl_utils

from mipo.errors import InputError
from mipo.fused.operators import linear_logps

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int64

    Tokens = Float[Tensor, " T"]
    Scores = tuple[Tokens, Tokens | None, Tokens | None, Tokens | None, Bool[Tensor, " T"] | None]

NAME = "_ChunkedLogProbFunction"
KNOWN = "1.16"
# The contract of TRL 1.16: the arguments and results of every call in `add_fused_lm_head`.
ARGUMENTS = ("hidden", "weight", "bias", "targets", "temperature", "chunk_size", "final_logit_softcapping",
             "logit_scale", "outputs")  # fmt: skip
OUTPUTS = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")


@dataclass(frozen=True)
class TRLHead:
    """Replaces TRL's autograd function: `apply` has the same arguments and results."""

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
        """Log-probs [T] of the targets, and the statistics named in `outputs`, with None for the others.

        Args:
            hidden: [T, D].
            weight: [V, D]; cast to the dtype of `hidden`, or of autocast, as in TRL.
            bias: [V], or None.
            targets: [T], int64, in [0, V).
            temperature: divides the logits.
            chunk_size: the words per tile in TRL; unused here, where tiles have a budget of bytes.
            final_logit_softcapping: None means none.
            logit_scale: multiplies the logits.
            outputs: names among entropy (differentiable), log_sum_sq_probs, mean_logits and is_top1.
        """
        if is_deepspeed_zero3_enabled():
            _warn_of_zero3()
            rest = (temperature, chunk_size, final_logit_softcapping, logit_scale, outputs)
            scores: Scores = self.theirs.apply(hidden, weight, bias, targets, *rest)
            return scores
        device, dtype = hidden.device.type, hidden.dtype
        if torch.is_autocast_enabled(device):  # linear_logps casts
            dtype = torch.get_autocast_dtype(device)
        else:
            weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        options: dict[str, Any] = {
            "softcap": final_logit_softcapping, "scale": logit_scale, "temperature": temperature,
            "chunk_bytes": self.chunk_bytes, "logits_dtype": self.logits_dtype or dtype,
        }  # fmt: skip
        if not set(outputs) & set(OUTPUTS[1:]):
            return linear_logps(hidden, weight, targets, bias, **options), None, None, None, None
        scored = linear_logps(hidden, weight, targets, bias, statistics=True, **options)
        entropy, squares, mean, top1 = (getattr(scored, name) if name in outputs else None for name in OUTPUTS[1:])
        return scored.logps, entropy, squares, mean, top1


class Patch:
    """Makes TRL score tokens with mipo's head, until `undo` or the end of a `with` block."""

    _active: ClassVar[list[Patch]] = []

    def __init__(self, head: TRLHead) -> None:
        self.head = head
        self._active.append(self)
        setattr(trl_utils, NAME, head)

    def undo(self) -> None:
        """Removes this patch: the newest active one counts then, or TRL's own head after the last.

        A second call does nothing. Raises RuntimeError, and changes nothing, if other code replaced mipo's head.
        """
        if self not in self._active:
            return
        _check_newest(self._active[-1])
        self._active.remove(self)
        setattr(trl_utils, NAME, self._active[-1].head if self._active else self.head.theirs)

    def __enter__(self) -> Patch:
        return self

    def __exit__(self, *error: object) -> None:
        self.undo()


def patch_trl(*, chunk_bytes: int | None = None, logits_dtype: torch.dtype | None = None) -> Patch:
    """Makes TRL's trainers score tokens with `mipo.fused.linear_logps`; call it before or after making a trainer.

    Losses, metrics and gradients stay TRL's. With F = 2 T D V, the FLOPs of one product with the head, a frozen head
    (LoRA) takes 2F per step instead of 3F, and a trained one 3F instead of 4F as long as the T V logits fit
    `chunk_bytes`; beyond that, F more for the share of tokens that do not. Several patches may be active: the newest
    counts, and they may be undone in any order. Under DeepSpeed ZeRO-3, where TRL's own function gathers the weights,
    that function is called, with one warning.

    Args:
        chunk_bytes: budget for the logits held at a time; `None` means about that of TRL's own head.
        logits_dtype: dtype of a chunk's logits until their log-sum-exp. `None` means that of the hidden states or of
            autocast, with gradients and without, as in TRL: a policy and its reference then round alike.

    Returns:
        The patch: a context manager with `undo()`.

    Raises:
        RuntimeError: if the installed TRL's head differs from TRL 1.16's in arguments, results or numbers; or if other
            code replaced the head after an earlier patch.
    """
    if chunk_bytes is not None and chunk_bytes < 1:
        raise InputError(f"expected a positive chunk_bytes, got {chunk_bytes}; leave it out for the default")
    if Patch._active:
        _check_newest(Patch._active[-1])
        theirs = Patch._active[-1].head.theirs
    else:
        theirs = getattr(trl_utils, NAME, None)
        _check_contract(theirs)
    return Patch(TRLHead(theirs, chunk_bytes, logits_dtype))


@functools.cache
def _warn_of_zero3() -> None:
    warnings.warn("DeepSpeed ZeRO-3 shards the LM head: TRL's own function scores the tokens, not mipo's", stacklevel=3)


def _check_newest(patch: Patch) -> None:
    head = getattr(trl_utils, NAME, None)
    if head is not patch.head:
        raise RuntimeError(
            f"expected mipo's head in trl.trainer.utils.{NAME}, got {head!r}, set after patch_trl(); undo that first"
        )


def _check_contract(theirs: Any) -> None:
    """Raises RuntimeError unless `theirs` is TRL 1.16's function and TRL's models call it as in that version."""
    try:
        parameters = tuple(inspect.signature(theirs.forward).parameters)[1:]
        source = ast.parse(textwrap.dedent(inspect.getsource(trl_utils.add_fused_lm_head)))
    except (AttributeError, TypeError, ValueError, OSError) as error:
        raise _changed(f"an autograd function {NAME} that add_fused_lm_head calls", f"none ({error})") from error
    if parameters != ARGUMENTS:
        raise _changed(f"the arguments {', '.join(ARGUMENTS)}", ", ".join(parameters))
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
    """Scores three tokens with both heads, on the CPU: the same arguments may have changed their meaning."""
    numbers = torch.arange(7 * 5 + 3 * 5 + 7, dtype=torch.float32, device="cpu").sin() * 2
    weight, hidden, bias = numbers[:35].view(7, 5), numbers[35:50].view(3, 5), numbers[50:]
    targets = torch.tensor([0, 6, 3], device="cpu")
    head = TRLHead(theirs, 1 << 20, None)
    with torch.autocast("cpu", enabled=False):
        ours = head.apply(hidden, weight, bias, targets, 0.7, 4, 3.0, 0.6, OUTPUTS[1:])
        expected = theirs.apply(hidden, weight, bias, targets, 0.7, 4, 3.0, 0.6, OUTPUTS[1:])
    for name, own, other in zip(OUTPUTS, ours, expected, strict=True):
        # Two orders of float32 sums over seven words.
        if not torch.allclose(own.float(), other.float(), atol=1e-5):  # type: ignore[union-attr]
            raise _changed(f"{name} {own.tolist()}", str(other.tolist()))  # type: ignore[union-attr]


def _changed(expected: str, actual: str) -> RuntimeError:
    return RuntimeError(
        f"TRL's LM head is not that of TRL {KNOWN}, which patch_trl() replaces: expected {expected}; got {actual} in "
        f"TRL {trl.__version__}. Install trl=={KNOWN}.*, or leave patch_trl() out and use TRL's own head"
    )
