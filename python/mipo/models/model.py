"""The model: a record of its name, content, tokenizer, config, context and weights, each loaded once."""

from __future__ import annotations

import gc
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mipo.errors import InputError
from mipo.io import checksum
from mipo.io.lazy import torch
from mipo.models.loading import load_config, load_generation_config, load_model, load_tokenizer
from mipo.tokenizer.chat import is_chat
from mipo.tokenizer.encoder import fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Model:
    """A causal language model by its folder or hub name. Each part of it is loaded at its first use, and kept.

    `dtype` is the name of a torch dtype, or `auto`: the saved dtype on an accelerator, float32 on a CPU.
    """

    name: str
    trust_remote_code: bool = False
    dtype: str = "auto"

    @classmethod
    def of(cls, weights: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Model:
        """A model that is in memory already."""
        model = cls(weights.name_or_path)
        model.__dict__.update(weights=weights, tokenizer=tokenizer, config=weights.config, in_memory=True)
        return model

    def with_dtype(self, dtype: str) -> Model:
        """This model with weights of another dtype, and the same tokenizer and config; itself for `auto`."""
        if dtype == "auto":
            return self
        model = replace(self, dtype=dtype)
        # What is loaded already: to load a tokenizer, or to hash the files of a folder, takes seconds.
        names = {"tokenizer", "config", "content", "tokenizer_fingerprint"} if not self.in_memory else set[str]()
        model.__dict__.update({name: self.__dict__[name] for name in names & self.__dict__.keys()})
        return model

    @cached_property
    def in_memory(self) -> bool:
        """Whether the weights were given by `of`, so that they need not be those under the name."""
        return False

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, padding on the left; NotThereError where there is none."""
        return load_tokenizer(self.name, trust_remote_code=self.trust_remote_code)

    @cached_property
    def config(self) -> Any:
        """The model's config; NotThereError where there is none."""
        return load_config(self.name, trust_remote_code=self.trust_remote_code)

    @cached_property
    def weights(self) -> PreTrainedModel:
        """The model itself, in evaluation mode on the accelerator, if any."""
        return load_model(self.name, dtype=self.dtype, trust_remote_code=self.trust_remote_code)

    @cached_property
    def end_ids(self) -> list[int]:
        """The token ids that end a response, sorted: the tokenizer's and the generation config's."""
        loaded = self.in_memory or "weights" in self.__dict__
        generation = self.weights.generation_config if loaded else load_generation_config(self.name, self.config)
        configured = getattr(generation, "eos_token_id", None)
        listed = configured if isinstance(configured, list) else [configured]
        return sorted({int(i) for i in [self.tokenizer.eos_token_id, *listed] if i is not None})

    @property
    def is_chat(self) -> bool:
        """Whether prompts are rendered through a chat template."""
        return is_chat(self.tokenizer)

    @property
    def context_length(self) -> int | None:
        """How many tokens the model can attend to at once; None where its config does not say."""
        return getattr(self.config.get_text_config(), "max_position_embeddings", None)

    def room(self, max_new_tokens: int) -> int | None:
        """How many tokens a prompt may have; InputError where a response alone would fill the context."""
        if self.context_length is None:
            return None
        if max_new_tokens >= self.context_length:
            raise InputError(
                f"max_new_tokens is {max_new_tokens}, but the model's whole context is "
                f"{self.context_length} tokens; lower it"
            )
        return self.context_length - max_new_tokens

    @cached_property
    def content(self) -> dict[str, str | None]:
        """What identifies the weights: a checksum of the folder or of those in memory, or the revision on the hub."""
        if self.in_memory:
            return {"weights": checksum.of_value(_checksums(self.weights))}
        if Path(self.name).is_dir():
            return {"checksum": checksum.of_folder(Path(self.name))}
        return {"revision": getattr(self.config, "_commit_hash", None)}

    @property
    def identity(self) -> dict[str, str | None]:
        """What its answers and scores are kept by: the content, and the name where that says too little."""
        named: dict[str, str | None] = {"name": self.name}
        if not any(self.content.values()):
            return named
        return named | self.content if "revision" in self.content else self.content

    @cached_property
    def tokenizer_fingerprint(self) -> str:
        """Equal for tokenizers that give equal ids and render chats alike."""
        return fingerprint(self.tokenizer)

    def let_go(self) -> None:
        """Gives back the memory of weights that can be loaded again, also on an accelerator."""
        if not self.in_memory and self.__dict__.pop("weights", None) is not None:
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    @property
    def saved_dtype(self) -> str:
        """The dtype of the saved weights on an accelerator, `auto` elsewhere."""
        usable = torch.accelerator.is_available() and self.config.dtype is not None
        return str(self.config.dtype).removeprefix("torch.") if usable else "auto"


def _checksums(weights: PreTrainedModel) -> dict[str, str]:
    """The checksum of each parameter and buffer."""
    tensors = weights.state_dict().items()
    return {
        name: checksum.of_bytes(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        for name, tensor in tensors
    }
