"""Sharing: whether a training can run each prompt once for all its responses, from settings, model and a first batch.

Knows what stands in the way. Knows nothing of how rows are made (`packing`) or read (`shared_attention`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from trl import DPOConfig

from mipo.errors import InputError, UnsupportedError
from mipo.fused.heads import Head
from mipo.fused.verification import verify
from mipo.trainer.preference_head import check_settings, lacking
from mipo.trainer.shared_attention import IMPLEMENTATIONS, PREFIX
from mipo.trainer.shared_prompts import Layout

# Kinds of layers whose state at a token is a function of what they may attend to, and of nothing else.
ATTENDING = {"full_attention", "sliding_attention"}
AVERAGING = {"ipo", "sigmoid_norm"}  # losses that divide by the tokens of a response
# Nats a token by which the two kinds of rows may differ: at most, or in half precision on average. On GSM8K they differ
# by 5e-5 and 0.037 for SmolLM2-135M, and by 18 and 0.88 where a response does not see its prompt (LOG.md, 2026-11-30).
ATOL, HALF_ATOL = 1e-3, 0.1
HALF = (torch.bfloat16, torch.float16)

Scored = Callable[[], Tensor]


def obstacle_in_settings(
    args: DPOConfig, arguments: Mapping[str, Any], row: Mapping[str, Any], negatives: int
) -> str | None:
    """What in the settings and arguments of a DPOTrainer, or in its rows, keeps prompts from being shared."""
    if unsupported := lacking(args, arguments, row):
        return f"the loss lacks {', '.join(unsupported)}"
    try:
        check_settings(args, arguments, row, negatives)
    except InputError as error:
        return str(error)
    cut = args.max_length is not None and args.truncation_mode == "keep_end"
    others = {
        "torch_compile=True": args.torch_compile,
        "neftune_noise_alpha scales its noise by the length of a row": bool(args.neftune_noise_alpha),
        # TRL divides by all tokens of a response, mipo's loss by those that it scores: not by one that begins a row.
        "truncation_mode='keep_end' may leave rows without a prompt, whose first token loss_type counts for TRL alone":
            cut and not AVERAGING.isdisjoint(args.loss_type),
    }  # fmt: skip
    return next((obstacle for obstacle, holds in others.items() if holds), None)


def obstacle_in_model(model: Any, *, has_weights: bool = True) -> str | None:
    """What in a model keeps prompts from being shared. `has_weights` is false where other processes have them."""
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return "PEFT puts learned prompts before the tokens"
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    name, config = type(inner).__name__, inner.config.get_text_config()
    implementation = str(config._attn_implementation).removeprefix(PREFIX)
    if implementation not in IMPLEMENTATIONS:
        return f"attn_implementation is {implementation}, not {' or '.join(IMPLEMENTATIONS)}"
    if not getattr(inner, "_can_set_attn_implementation", lambda: True)():
        return f"{name} has an attention of its own"
    kinds = set(getattr(config, "layer_types", None) or ()) - ATTENDING
    recurrent = next((type(m).__name__ for m in inner.modules() if isinstance(m, nn.Conv1d | nn.RNNBase)), None)
    if kinds or recurrent:
        return f"{name} has layers that read the row as it lies: {', '.join(sorted(kinds)) or recurrent}"
    if has_weights:
        try:
            Head.of(inner)
        except (ValueError, TypeError, UnsupportedError) as error:
            return str(error)
    return None


def obstacle_of_kernels(device: torch.device, dtype: torch.dtype, vocabulary: int, softcap: float | None) -> str | None:
    """What is wrong with mipo's LM head on an accelerator: figures that differ, or what Triton or the driver raises."""
    if device.type == "cpu":  # the path that the tests run everywhere
        return None
    try:
        verify(device, dtype, vocabulary, softcap)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of any of these libraries: the trainer has TRL's head to go on with
        return f"mipo's LM head does not work here ({' '.join(str(error).split())})"
    return None


def obstacle_at_first_use(
    shared: Scored, ordinary: Scored, layout: Layout | None, config: Any, dtype: torch.dtype
) -> str | None:
    """What keeps prompts from being shared after a batch was scored both ways, or how the model fails at it.

    `shared` and `ordinary` give the log-prob of each token, in nats, of a model that computes in `dtype`.
    """
    try:
        ours = shared()
    except torch.OutOfMemoryError:
        raise
    except (ValueError, TypeError, RuntimeError, UnsupportedError) as error:
        return f"the model fails with them: {' '.join(str(error).split())}"
    assert layout is not None
    if layout.windows != (expected := _windows(config)):
        return f"the attention does not tell the windows of its layers: expected {expected}, got {layout.windows}"
    off = (ours - ordinary()).abs()
    distance, limit = (off.mean(), HALF_ATOL) if dtype in HALF else (off.max(), ATOL)
    # Not >: NaN is too far.
    return None if distance <= limit else f"log-probs of tokens are {float(distance):.2g} nats off with them"


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """Scores with a model: no gradients, no dropout, and no checkpointing, which belongs to training."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def _windows(config: Any) -> list[int | None]:
    """The window of each layer, None for all tokens, by a model's configuration."""
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return [window if kind == "sliding_attention" else None for kind in kinds]
