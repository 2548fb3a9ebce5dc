"""Sampling: the settings of sampled responses. One record for generation, evaluation and recipes."""

from typing import Annotated

from msgspec import Meta

from mipo.io.records import Count, Record


class Sampling(Record, frozen=True, kw_only=True):
    """How responses are sampled, before and after training alike. The defaults are the paper's."""

    temperature: Annotated[float, Meta(ge=0, description="0 is greedy; colder makes more equal pairs")] = 0.1
    top_p: Annotated[float, Meta(gt=0, le=1, description="nucleus sampling; 1 keeps all tokens")] = 0.9
    max_new_tokens: Annotated[Count, Meta(description="longest response, in tokens")] = 512
    batch_size: Annotated[Count, Meta(description="prompts answered at once; another number rounds differently")] = 64
