"""Decoding: what `generate` of transformers decodes, by fewer steps, whatever the batch."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from mipo.responses.engines import decoding
from mipo.responses.engines.decoding import decode
from mipo.responses.engines.picking import picker
from mipo.responses.sampling import Sampling

pytestmark = pytest.mark.usefixtures("one_thread")
SIZES: dict[str, Any] = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "mistral": {**SIZES, "sliding_window": 6},
    "gemma2": {**SIZES, "sliding_window": 6},
    "mixtral": {**SIZES, "num_local_experts": 4},
    "gpt2": {"vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2},
    "lfm2": {**SIZES, "full_attn_idxs": [1]},  # the other layer is a convolution
}
NEW, ENDS = 24, [2, 5, 11, 17, 23]


def build(name: str) -> Any:
    """A model of this kind with random weights, large enough to make it wander."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **MODELS[name])).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)
    return model


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    return build(request.param)


@pytest.fixture
def llama() -> Any:
    return build("llama")


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    sizes = torch.randint(1, 30, (50,), generator=generator).tolist()
    return [torch.randint(3, 60, (size,), generator=generator).tolist() for size in sizes]


def decoded(model: Any, prompts: list[list[int]], sampling: Sampling, rows: int) -> list[list[int]]:
    """The new ids of each prompt; each comes once."""
    pick = picker(sampling, range(len(prompts)))
    got = [pair for ended in decode(model, prompts, pick, rows=rows, new=NEW, ends=ENDS) for pair in ended]
    assert sorted(place for place, _ in got) == list(range(len(prompts)))
    return [ids for _, ids in sorted(got)]


def generated(model: Any, prompt: list[int]) -> list[int]:
    """The new ids of one prompt by `generate` itself."""
    config = GenerationConfig(max_new_tokens=NEW, eos_token_id=ENDS, pad_token_id=0, do_sample=False)
    with torch.inference_mode():
        out = model.generate(torch.tensor([prompt]), generation_config=config)
    return out[0, len(prompt) :].tolist()


@contextmanager
def shapes(model: Any) -> Iterator[list[tuple[int, int]]]:
    """The shape of the ids of each call of the model."""
    calls: list[tuple[int, int]] = []
    hook = model.register_forward_pre_hook(
        lambda _, args, named: calls.append(tuple((args[0] if args else named["input_ids"]).shape)), with_kwargs=True
    )
    yield calls
    hook.remove()


@pytest.mark.parametrize("rows", [1, 3, 16, 64])
def test_greedy_ids_are_those_of_generate(model: Any, prompts: list[list[int]], rows: int) -> None:
    ids = decoded(model, prompts, Sampling(temperature=0.0), rows)
    assert ids == [generated(model, prompt) for prompt in prompts]
    assert len({len(row) for row in ids}) > 5


def test_sampled_ids_do_not_depend_on_the_batch(model: Any, prompts: list[list[int]]) -> None:
    sampling = Sampling(temperature=0.8, top_p=0.9, max_new_tokens=NEW)
    one, other = (decoded(model, prompts, sampling, rows) for rows in (1, 20))
    assert one == other
    assert one != decoded(model, prompts, Sampling(temperature=0.0), 20)


def test_a_row_that_ends_makes_room_for_the_next_prompt(llama: Any, prompts: list[list[int]]) -> None:
    rows = 16
    with shapes(llama) as calls:
        ids = decoded(llama, prompts * 4, Sampling(temperature=1.5, top_p=1.0, max_new_tokens=NEW), rows)
    steps = [count for count, columns in calls if columns == 1]
    assert max(count for count, _ in calls) <= rows
    tokens = sum(len(row) - 1 for row in ids)  # the first comes from the prompt
    assert tokens < 0.6 * len(ids) * NEW  # lengths differ: batches that wait for their last row take up to twice this
    assert sum(steps) <= 1.2 * tokens


def test_prompts_go_through_the_model_in_bounded_parts(
    llama: Any, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = decoded(llama, prompts, Sampling(temperature=0.0), 16)
    monkeypatch.setattr(decoding, "PREFILL_TOKENS", (40, 40))
    with shapes(llama) as calls:
        assert decoded(llama, prompts, Sampling(temperature=0.0), 16) == whole
    assert all(count * columns <= 40 for count, columns in calls)


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("MPS backend out of memory (MPS allocated: 17.98 GB)")],
)
def test_half_as_many_rows_go_on_where_memory_runs_out(
    llama: Any, prompts: list[list[int]], capsys: pytest.CaptureFixture[str], error: RuntimeError
) -> None:
    sampling = Sampling(temperature=0.8, top_p=0.9, max_new_tokens=NEW)
    whole = decoded(llama, prompts, sampling, 16)

    def run_out(_: Any, args: Any) -> None:
        if len(args[0]) > 5:
            raise error

    llama.register_forward_pre_hook(run_out)
    limits = list[int]()
    pick = picker(sampling, range(len(prompts)))
    decoding_of = decode(llama, prompts, pick, rows=16, new=NEW, ends=ENDS, shrink=limits.append)
    got = dict(pair for ended in decoding_of for pair in ended)
    assert [got[place] for place in range(len(prompts))] == whole
    assert limits == [8, 4]
    assert capsys.readouterr().out.splitlines() == [
        "generate: no memory for 16 prompts at once; going on with 8",
        "generate: no memory for 8 prompts at once; going on with 4",
    ]
    llama.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(type(error), match="out of memory"):
        decoded(llama, prompts[:2], sampling, 2)
    llama.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("a bad shape")), prepend=True)
    with pytest.raises(RuntimeError, match="a bad shape"):
        decoded(llama, prompts[:2], sampling, 2)


def test_the_model_s_own_generation_config_does_not_act(model: Any, prompts: list[list[int]]) -> None:
    plain = decoded(model, prompts[:8], Sampling(temperature=0.0), 4)
    model.generation_config.update(repetition_penalty=5.0, suppress_tokens=[7], min_new_tokens=20)
    before = model.generation_config.to_dict()
    assert decoded(model, prompts[:8], Sampling(temperature=0.0), 4) == plain
    assert model.generation_config.to_dict() == before
