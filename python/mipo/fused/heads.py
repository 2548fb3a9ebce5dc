"""Heads: the LM head of a model as arguments of the fused operations, and the hidden states that it reads.

Knows transformers' names for heads, and PEFT's layers. Knows nothing of losses, trainers or kernels. It refuses a head
that is more than a linear layer: treated as one, it would silently train towards wrong log-probs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn import functional
from transformers import PreTrainedModel

from mipo.errors import InputError, InputTypeError, UnsupportedError
from mipo.loss.logps import token_logps

if TYPE_CHECKING:
    from jaxtyping import Float, Int64, Shaped

# The first name with a value in the configuration counts; TRL 1.16's `add_fused_lm_head` reads the first name only.
SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
# Cohere, Muse, Falcon-H1. Granite and MiniCPM3 divide by `logits_scaling`, HyperCLOVA X multiplies by it.
SCALES = ("logit_scale", "output_multiplier", "lm_head_multiplier")
FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


@dataclass(frozen=True, eq=False)
class Adapter:
    """One LoRA adapter of a head: it adds scaling (dropout(hidden) down^T) up^T to the raw logits."""

    down: Float[Tensor, "r D"]  # PEFT's A
    up: Float[Tensor, "V r"]  # PEFT's B
    scaling: float
    dropout: nn.Module

    def project(self, hidden: Float[Tensor, "*T D"]) -> Float[Tensor, "*T r"]:
        """The hidden states as the r numbers that `up` reads; dropout draws anew at every call."""
        return functional.linear(self.dropout(hidden.to(self.down.dtype)), self.down) * self.scaling


@dataclass(frozen=True, eq=False)
class Head:
    """An LM head: logits = softcap tanh(scale (hidden weight^T + adapters(hidden) + bias) / softcap).

    Called with the hidden states [..., D] to score, it returns the keyword arguments weight, bias, softcap, scale and
    lora of `mipo.fused.linear_logps`, `mipo.fused.linear_preference_loss` and `mipo.loss.token_logps`. The tensors are
    the model's own, so gradients reach the model. `Head.of` gathers sharded weights: call it anew in every step.
    """

    weight: Float[Tensor, "V D"]
    bias: Float[Tensor, " V"] | None
    softcap: float | None
    scale: float
    adapters: tuple[Adapter, ...] = ()

    @classmethod
    def of(cls, model: nn.Module) -> Head:
        """The head of a causal LM of transformers, bare or inside the wrappers of PEFT, DDP and torch.compile.

        Where PEFT trains a copy of the head (`modules_to_save`), that copy is the weight. Active LoRA layers on the
        head are its adapters; disabled or merged ones are not. Frozen weights that FSDP2 shards are gathered; trained
        ones must be whole already, as those of the root module are within its forward.

        Raises:
            InputTypeError: if `model` is not a model of transformers.
            UnsupportedError: if the logits are not those of such a head, or its weights are not all on this process.
            InputError: if adapters are both disabled and merged into the weights.
        """
        inner = _unwrapped(model)
        layer = inner.get_output_embeddings()
        _backbone(inner)  # refuses what lies between backbone and head
        linear, adapters = _layers(layer)
        _check_linear(linear)
        weight, bias = _gathered(linear.weight), None if linear.bias is None else _gathered(linear.bias)
        config = inner.config.get_text_config()
        words = getattr(config, "unpadded_vocab_size", None)
        if words is not None and words < weight.shape[0]:
            _refuse(f"a vocabulary of {words} that {type(inner).__name__} cuts out of {weight.shape[0]} logits")
        return cls(weight, bias, softcap_of(config), _scale(config), adapters)

    def __call__(self, hidden: Float[Tensor, "*T D"]) -> dict[str, Any]:
        """The head as keyword arguments, with lora = (down [..., r], up [V, r]) in the dtype of the weight, or None."""
        lora = None
        if self.adapters:
            down = _beside([adapter.project(hidden) for adapter in self.adapters])
            up = _beside([adapter.up for adapter in self.adapters])
            lora = (down.to(self.weight.dtype), up.to(self.weight.dtype))
        return {"weight": self.weight, "bias": self.bias, "softcap": self.softcap, "scale": self.scale, "lora": lora}

    @torch.no_grad()
    def verify(self, model: nn.Module, input_ids: Int64[Tensor, "N L"] | None = None) -> None:
        """Runs the model on a few tokens and raises InputError unless this head gives the model's log-probs.

        `of` reads layers and settings; it cannot see other code that changes logits, for example in remote code.

        Args:
            model: the model of this head.
            input_ids: [N, L], int64; any text. `None` means four ids from the vocabulary.
        """
        if input_ids is None:
            input_ids = torch.arange(4, device=self.weight.device)[None]
        outputs: list[Any] = []
        backbone = _backbone(_unwrapped(model))
        # OPT and the decoders of BART call the model inside their backbone, which then never runs itself. The last of
        # them to end has the states that the head reads.
        parts = [part for part in backbone.modules() if part is backbone or isinstance(part, PreTrainedModel)]
        hooks = [part.register_forward_hook(lambda *call: outputs.append(call[-1])) for part in parts]
        training = {module for module in model.modules() if module.training}
        try:
            logits = model.eval()(input_ids=input_ids, use_cache=False).logits
            if not outputs:
                _refuse(f"{type(_unwrapped(model)).__name__}, whose forward runs without its {type(backbone).__name__}")
            hidden = outputs[-1][0].to(self.weight)
            ours = token_logps(hidden, targets=input_ids, **self(hidden))
        finally:
            for hook in hooks:
                hook.remove()
            for module in training:
                module.training = True
        theirs = logits.float().log_softmax(-1).gather(-1, input_ids[..., None])[..., 0]
        # Logits have the precision of their dtype, and a log-sum-exp in float32 that of a few 1e-6.
        tolerance = 4 * torch.finfo(logits.dtype).eps * float(logits.abs().max()) + 1e-5
        error = float((ours - theirs).abs().max())
        if not error <= tolerance:
            raise InputError(
                f"expected the log-probs of {type(_unwrapped(model)).__name__} from its head within "
                f"{tolerance:.1g} nats, got them {error:.2g} off; the model changes logits in a way unknown here, so "
                "score with its own forward"
            )


def softcap_of(config: Any) -> float | None:
    """The softcap of the logits, by a model's configuration."""
    return _first(config, SOFTCAPS)


def response_states(
    model: nn.Module,
    input_ids: Int64[Tensor, "N L"],
    completion_mask: Shaped[Tensor, "N L"],
    attention_mask: Shaped[Tensor, "N L"] | None = None,
) -> tuple[Float[Tensor, "T D"], Int64[Tensor, " T"]]:
    """The response tokens and the hidden states that predict them, packed row after row without padding.

    The selection waits for the device. It calls the backbone alone, so it skips the work of DDP or FSDP around a whole
    model: with those, call this function within the model's own forward.

    Args:
        model: as for `Head.of`.
        input_ids: [N, L], int64: prompts and their responses.
        completion_mask: [N, L], true at the response tokens; never in the first column, which nothing predicts.
        attention_mask: [N, L], false at padding; needed where padding is on the left.

    Returns:
        hidden [T, D] and targets [T], with T the number of response tokens: completion_mask.sum(1) in each row.
    """
    inner = _unwrapped(model)
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        _refuse(f"{type(model).__name__} with learned prompts, which PEFT puts before the tokens in its own forward")
    if completion_mask.shape != input_ids.shape:
        raise InputError(
            f"expected a completion_mask of the shape of input_ids, {list(input_ids.shape)}, got "
            f"{list(completion_mask.shape)}; true at the response tokens"
        )
    is_response = completion_mask.bool()
    if bool(is_response[:, 0].any()):
        raise InputError("expected no response token in the first column; give every row a prompt of at least 1 token")
    states = _backbone(inner)(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)[0]
    return states[:, :-1][is_response[:, 1:]], input_ids[is_response]


def _unwrapped(wrapped: nn.Module) -> PreTrainedModel:
    model: Any = wrapped
    while not isinstance(model, PreTrainedModel):
        if hasattr(model, "get_base_model"):
            model = model.get_base_model()
        elif isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod
        else:
            raise InputTypeError(
                "expected a causal LM of transformers, bare or wrapped by PEFT, DDP or torch.compile, got "
                f"{type(wrapped).__name__}; pass the model inside"
            )
    return model


def _backbone(model: PreTrainedModel) -> Any:
    """The only child with weights besides the head; a second one, as in BERT, would change the states."""
    head = model.get_output_embeddings()
    children = dict(model.named_children())
    own = [name for named in (model.named_parameters, model.named_buffers) for name, _ in named(recurse=False)]
    rest = {name: child for name, child in children.items() if child is not head and _holds_numbers(child)}
    if head is None or len(rest) != 1 or own or all(child is not head for child in children.values()):
        parts = ", ".join([*children, *own])
        _refuse(f"{type(model).__name__} of {parts}, and not only a backbone and a linear head")
    if getattr(model.config, "is_encoder_decoder", False):
        _refuse(f"{type(model).__name__}, an encoder and a decoder")
    return next(iter(rest.values()))


def _holds_numbers(module: nn.Module) -> bool:
    return any(True for named in (module.parameters, module.buffers) for _ in named())


def _layers(module: Any) -> tuple[Any, tuple[Adapter, ...]]:
    """The layer inside PEFT's layers, and their adapters."""
    kind = _class(module)
    if not kind.__module__.startswith("peft."):
        return module, ()
    from peft.tuners.lora import Linear
    from peft.utils import ModulesToSaveWrapper

    if kind is ModulesToSaveWrapper:
        copies, names = module.modules_to_save, module.active_adapters
        off = module.disable_adapters or not names or any(name not in copies for name in names)
        return _layers(module.original_module if off else copies[names[0]])
    if kind is Linear:
        return module.base_layer, _adapters(module)
    _refuse(f"the PEFT layer {kind.__module__}.{kind.__name__}; LoRA and modules_to_save are supported")


def _adapters(layer: Any) -> tuple[Adapter, ...]:
    if layer.disable_adapters and layer.merged:
        raise InputError(
            f"adapters {layer.merged_adapters} are disabled, but merged into the LM head's weight; call "
            "unmerge_adapter() before disable_adapter()"
        )
    if layer.disable_adapters or layer.merged:
        return ()
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    for name in names:
        if name in layer.lora_variant:
            variant = type(layer.lora_variant[name]).__name__.removesuffix("LinearVariant")
            _refuse(f"the {variant} variant of LoRA in adapter {name!r}; plain LoRA is supported")
        if layer.lora_bias[name]:
            _refuse(f"a LoRA layer with a bias in adapter {name!r}; leave out lora_bias=True")
    return tuple(
        Adapter(_gathered(layer.lora_A[n].weight), _gathered(layer.lora_B[n].weight), layer.scaling[n],
                layer.lora_dropout[n])
        for n in names
    )  # fmt: skip


def _check_linear(layer: Any) -> None:
    # accelerate's device_map sets its own forward, which moves inputs and changes no number.
    patched = "forward" in vars(layer) and not hasattr(layer, "_hf_hook")
    if not isinstance(layer, nn.Linear) or type(layer).forward is not nn.Linear.forward or patched:
        _refuse(f"{'a patched ' if patched else ''}{_class(layer).__name__}, and not a torch.nn.Linear")
    weight = layer.weight
    if weight.dtype not in FLOATS or type(weight) not in (Tensor, nn.Parameter, DTensor):
        _refuse(f"a quantized weight, {type(weight).__name__} of {weight.dtype}; leave the LM head out of quantization")
    if weight.is_meta or weight.ndim != 2 or not weight.numel():
        state = "on the meta device" if weight.is_meta else f"of shape {list(weight.shape)}"
        _refuse(f"a weight {state}, so offloaded or sharded by FSDP1 or ZeRO-3; FSDP2 is supported")


def _class(module: nn.Module) -> type:
    """The class of a module without the one that `fully_shard` puts in front."""
    return next(kind for kind in type(module).__mro__ if not issubclass(kind, FSDPModule))


def _gathered(tensor: Float[Tensor, "*V"]) -> Float[Tensor, "*V"]:
    if not isinstance(tensor, DTensor):
        return tensor
    if tensor.device_mesh.size() > 1 and tensor.requires_grad and torch.is_grad_enabled():
        # In its backward each process would get the gradient of its own shard, and nobody would sum over processes.
        _refuse(
            f"a trained weight sharded by FSDP2 over {tensor.device_mesh.size()} processes; shard the LM head with the "
            "root module, not by itself, and read it within the model's forward, where it is whole"
        )
    return tensor.full_tensor()


def _first(config: Any, names: tuple[str, ...]) -> float | None:
    return next((getattr(config, name) for name in names if getattr(config, name, None) is not None), None)


def _scale(config: Any) -> float:
    scale, divisor = _first(config, SCALES), getattr(config, "logits_scaling", None)
    if scale is None and divisor is not None:
        scale = divisor if config.model_type == "hyperclovax" else 1 / divisor
    return 1.0 if scale is None else scale


def _beside(tensors: list[Float[Tensor, "*T _"]]) -> Float[Tensor, "*T _"]:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, -1)


def _refuse(obstacle: str) -> NoReturn:
    raise UnsupportedError(f"the LM head can't be fused: got {obstacle}. Score with the model's own forward instead")
