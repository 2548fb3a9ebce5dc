"""Settings: `trl.DPOConfig` with the paper's settings as defaults."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from trl import DPOConfig

# Settings that are true or false in TRL, and None here until the machine or the data is known.
UNDECIDED = ("precompute_ref_log_probs", "bf16", "gradient_checkpointing", "dataloader_pin_memory")
# For TRL's parser: without a value, the flag of a setting that may be None means true, as for any other truth value.
FLAG = {"nargs": "?", "const": True}


@dataclass
class MIPOConfig(DPOConfig):  # type: ignore[misc]
    """`trl.DPOConfig`, and all its fields, with the paper's settings (arXiv 2603.19294) as defaults.

    β 0.1, learning rate 5e-7 with 3 % warm-up and a cosine to 10 %, one epoch, 4 groups per step and device, no length
    limit of TRL's own (`mipo.tokens` drops long groups by name), reference log-probs computed once before training
    where TRL can (see `MIPOTrainer`), bf16 and gradient checkpointing on an accelerator.
    """

    learning_rate: float = field(default=5e-7, metadata={"help": "The initial learning rate for AdamW."})
    per_device_train_batch_size: int = field(default=4, metadata={"help": "Preference groups per step and device."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Epochs over the pairs."})
    lr_scheduler_type: str = field(default="cosine_with_min_lr", metadata={"help": "Learning-rate schedule."})
    lr_scheduler_kwargs: dict | str | None = field(  # type: ignore[type-arg]  # TRL's parser takes no other form
        default=None, metadata={"help": "Arguments of the schedule. Default: min_lr_rate 0.1 where it has a minimum."}
    )
    warmup_steps: float = field(default=0.03, metadata={"help": "Warm-up steps; below 1, a share of all steps."})
    max_length: int | None = field(
        default=None, metadata={"help": "TRL's limit in tokens; groups that it drops or cuts are counted."}
    )
    precompute_ref_log_probs: bool | None = field(
        default=None, metadata={"help": "Score the reference once, before training. Default: where TRL can.", **FLAG}
    )
    save_strategy: str = field(default="steps", metadata={"help": "When to save checkpoints, to resume from."})
    save_steps: float = field(default=0.2, metadata={"help": "Steps between checkpoints; below 1, a share of all."})
    save_total_limit: int | None = field(default=1, metadata={"help": "How many checkpoints to keep."})
    bf16: bool | None = field(default=None, metadata={"help": "Default: on an accelerator only.", **FLAG})
    gradient_checkpointing: bool | None = field(
        default=None, metadata={"help": "Default: on an accelerator only.", **FLAG}
    )
    dataloader_pin_memory: bool | None = field(
        default=None, metadata={"help": "Default: on an accelerator only.", **FLAG}
    )
    fused_loss: bool | None = field(
        default=None,
        metadata={"help": "Score with mipo's LM head and loss. Default: where prompts are shared.", **FLAG},
    )
    shared_prompts: bool | None = field(
        default=None,
        metadata={"help": "Run each prompt once for all its responses. Default: where the model allows it.", **FLAG},
    )

    def __post_init__(self) -> None:
        if not torch.accelerator.is_available() and (self.bf16 or int(os.environ.get("WORLD_SIZE", "1")) > 1):
            self.use_cpu = True  # transformers requires it on a CPU for bf16, and for several processes
        accelerated = torch.accelerator.is_available() and not self.use_cpu
        # transformers renamed this setting, and warns about the old name.
        name = "activation_checkpointing" if hasattr(self, "activation_checkpointing") else "gradient_checkpointing"
        if self.gradient_checkpointing is None and getattr(self, name) is None:
            setattr(self, name, accelerated)
        if self.dataloader_pin_memory is None:
            self.dataloader_pin_memory = accelerated
        if self.bf16 is None and not accelerated:
            self.bf16 = False
        if self.lr_scheduler_kwargs is None and "with_min_lr" in self.lr_scheduler_type:
            self.lr_scheduler_kwargs = {"min_lr_rate": 0.1}
        super().__post_init__()


def is_partitioned(args: DPOConfig) -> bool:
    """Whether DeepSpeed's ZeRO-3 partitions the weights: it cannot train a model that was used for scoring before."""
    return args.deepspeed_plugin is not None and args.deepspeed_plugin.zero_stage == 3


def lora_config(fields: Mapping[str, Any]) -> Any:
    """The `peft.LoraConfig` of a causal language model with these fields."""
    from peft import LoraConfig

    return LoraConfig(**{"task_type": "CAUSAL_LM", **fields})
