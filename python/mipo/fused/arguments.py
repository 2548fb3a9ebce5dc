"""Arguments of the operators: the checks of hidden states and LM head, the default budget, the choice of a mode.

Knows the kernels' records and modes, and nothing of the preference loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from mipo.errors import InputError, InputTypeError
from mipo.kernels import linear_logps as logps_kernel  # type: ignore[attr-defined, unused-ignore]
from mipo.kernels.projection import Inputs  # type: ignore[import-not-found, unused-ignore]
from mipo.kernels.row_state import Transform  # type: ignore[import-not-found, unused-ignore]
from mipo.kernels.rows import aligned  # type: ignore[import-not-found, unused-ignore]
from mipo.loss.logps import check_head

if TYPE_CHECKING:
    from jaxtyping import Float, Int64

    Lora = tuple[Float[Tensor, "*T r"], Float[Tensor, "V r"]]

# The tile of logits in TRL 1.16's head.
TILE_TOKENS, TILE_WORDS = 4096, 32768
Mode = Literal["M0", "M1", "M2", "M3", "M4"]


@dataclass(frozen=True)
class CheckedHead:
    """Checked arguments of the kernels, which compute in the dtype of hidden."""

    inputs: Inputs

    @property
    def trained(self) -> bool:
        """Whether the head itself requires a gradient, not only its inputs."""
        return _trained(self.inputs.weight, self.inputs.bias, self.inputs.up)

    @property
    def fits(self) -> bool:
        """Whether G of all tokens, and their logits if in another buffer, fits the budget."""
        hidden, logits_dtype = self.inputs.hidden, self.inputs.logits_dtype
        logit_bytes = logits_dtype.itemsize + (logits_dtype != hidden.dtype) * hidden.itemsize
        return bool(hidden.shape[0] * self.inputs.weight.shape[0] * logit_bytes <= self.inputs.chunk_bytes)

    def score(
        self, mode: Mode | None, statistics: bool
    ) -> tuple[Float[Tensor, " T"], Float[Tensor, "..."], Float[Tensor, "..."]]:
        """Log-probs [T], and with `statistics` entropy [T] and other statistics [3, T]."""
        scored: tuple[Tensor, Tensor, Tensor] = logps_kernel.linear_logps(
            self.inputs, mode=self._mode(mode), statistics=statistics
        )
        return scored

    def _mode(self, mode: Mode | None) -> Mode:
        """The requested mode, or the cheapest one that gives all gradients needed."""
        modes: tuple[Mode, ...]
        if self.trained:
            modes, reason = ("M3", "M4") if self.fits else ("M4", "M3"), "the head requires"
        elif _trained(self.inputs.hidden, self.inputs.down):
            modes, reason = ("M1", "M3", "M4"), "hidden requires"
        else:
            modes, reason = ("M0", "M1", "M3", "M4"), "nothing requires"
        if mode is not None and mode not in modes:
            allowed = ", ".join(sorted(modes))
            raise InputError(f"expected mode None or one of {allowed}, got {mode!r}: {reason} a gradient")
        return mode or modes[0]


def check_arguments(
    hidden: Float[Tensor, "*T D"],
    weight: Float[Tensor, "V D"],
    targets: Int64[Tensor, "*T"],
    bias: Float[Tensor, " V"] | None,
    lora: Lora | None,
    transform: Transform,
    chunk_bytes: int | None,
    logits_dtype: torch.dtype | None,
    inside: bool = False,
) -> CheckedHead:
    """The arguments of both operators, cast as autocast asks; raises InputError where they do not fit together."""
    devices = {str(x.device) for x in (hidden, weight, targets, bias, *(lora or ())) if x is not None}
    if len(devices) > 1:
        raise InputError(f"expected hidden, head and targets on one device, got them on {', '.join(sorted(devices))}")
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, bias = hidden.to(dtype), None if bias is None else bias.to(dtype)
        lora = None if lora is None else (lora[0].to(dtype), lora[1].to(dtype))
        # The kernel casts the weight itself, so that its gradient is not rounded to autocast's dtype.
        cast = torch.empty_like(weight, dtype=dtype, device="meta")
    else:
        cast = weight
    scale, softcap, temperature = transform
    check_head(hidden, cast, targets, bias=bias, softcap=softcap, scale=scale, temperature=temperature, lora=lora)
    if chunk_bytes is not None and (chunk_bytes < 1 or not isinstance(chunk_bytes, int | torch.SymInt)):
        raise InputError(f"expected a positive whole chunk_bytes, got {chunk_bytes}; leave it out for the default")
    if chunk_bytes is None:
        head_trained = _trained(weight, bias, lora[1] if lora else None)
        chunk_bytes = _default_budget(hidden, weight, head_trained, inside)
    wide = torch.promote_types(hidden.dtype, torch.float32)
    if logits_dtype is None:
        logits_dtype = hidden.dtype if _trained(hidden, weight, bias, *(lora or ())) else wide
    if logits_dtype not in (hidden.dtype, wide):
        raise InputTypeError(
            f"expected logits_dtype to be {hidden.dtype}, the dtype of hidden, or float32, got {logits_dtype}; "
            "leave it out for the default"
        )
    down, up = (None, None) if lora is None else (lora[0].reshape(-1, lora[0].shape[-1]), lora[1])
    rows = hidden.reshape(-1, hidden.shape[-1])
    return CheckedHead(Inputs(rows, weight, targets.reshape(-1), bias, down, up, transform, logits_dtype, chunk_bytes))


def _default_budget(hidden: Float[Tensor, "*T D"], weight: Float[Tensor, "V D"], trained: bool, inside: bool) -> Any:
    """Bytes of logits with which the whole head takes no more than TRL's; see kernels/README.md.

    `inside` says whether the loss of a trained head may be computed by its operator, in mode M2.
    """
    (words, width), tokens = weight.shape, hidden.numel() // weight.shape[1]
    # Under torch.compile the numbers are symbolic; sym_min decides nothing yet, so one graph serves any of them.
    tile_words: Any = torch.sym_min(words, TILE_WORDS)
    tile = hidden.itemsize * torch.sym_min(tokens, TILE_TOKENS) * aligned(tile_words)
    if not trained:
        return tile
    # TRL's dH in float32 and the cast of its dW, which mipo does not have; a chunk's logits, less its scaled hidden.
    room = tile + 4 * hidden.numel() + hidden.itemsize * weight.numel()
    of_logits = room * words // (words + width)
    if inside:
        return of_logits
    # M3 and M4 have no dW in float32 either, but M4 has dH in it.
    return torch.sym_max(of_logits, tile + 4 * weight.numel() - hidden.itemsize * hidden.numel())


def _trained(*tensors: Float[Tensor, "..."] | None) -> bool:
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
