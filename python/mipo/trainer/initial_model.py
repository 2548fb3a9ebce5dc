"""Initial model: what a policy was before its training, loaded again where later data need it as their reference.

Knows TRL's way to load a model by the name in its configuration. Knows nothing of data sets, losses or adapters.
"""

from typing import Any

from torch import nn
from trl.trainer.utils import (
    add_fused_lm_head,
    create_model_from_path,
    disable_dropout_in_model,
    get_config_model_id,
    hash_module,
)

from mipo.trainer.config import MIPOConfig
from mipo.trainer.shared_attention import PREFIX


def load_again(policy: Any, args: MIPOConfig, checksum: str) -> nn.Module | None:
    """The model on the policy's device, with TRL's head; None unless its weights have `checksum`, TRL's `hash_module`.

    They have another where the model came without a name, or was changed after it was loaded.
    """
    name = get_config_model_id(policy.config)
    if not name:
        return None
    options = {
        "trust_remote_code": args.trust_remote_code,
        "dtype": policy.dtype,
        "attn_implementation": policy.config._attn_implementation.removeprefix(PREFIX),
        **(args.model_init_kwargs or {}),
    }
    model = create_model_from_path(name, **options)
    if hash_module(model) != checksum:
        return None
    if args.disable_dropout:
        disable_dropout_in_model(model)
    add_fused_lm_head(model)
    if "device_map" not in options:
        model.to(policy.device)
    return model.requires_grad_(False).eval()  # type: ignore[no-any-return]
