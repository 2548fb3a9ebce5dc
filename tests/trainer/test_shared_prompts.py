"""Shared prompts: a row that holds each prompt once gives the log-probs, losses and gradients of ordinary rows.

Attention is compared with one dense mask, models of transformers' own classes with their ordinary rows, and the trainer
with TRL's.
"""

import copy
import itertools
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data._utils.pin_memory import pin_memory
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.llama.modeling_llama import LlamaAttention
from trl import DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

import mipo.demo
from mipo.models.loading import load_model
from mipo.trainer.collators import GroupCollator
from mipo.trainer.config import MIPOConfig
from mipo.trainer.metrics import CAP, INFONCE
from mipo.trainer.packing import PackedGroups, PackingCollator
from mipo.trainer.preference_head import add_preference_head
from mipo.trainer.shared_attention import LAYOUT, arguments, attend, read_layouts
from mipo.trainer.shared_prompts import Block, Layout, Tree, share
from mipo.trainer.sharing import obstacle_in_model
from mipo.trainer.trainer import MIPOTrainer

pytestmark = pytest.mark.usefixtures("one_thread")
DEMO = str(Path(mipo.demo.__file__).parent / "model")
# Float64, in another order of the sums; the softmax of eager attention is in float32, and gradients are sums of some.
ATOL = {"sdpa": 1e-12, "eager": 1e-5}
# Models in float64, whose norms compute in float32, or in float32, as experts and eager masks need; gradients up to 10.
MODEL_ATOL = {torch.float64: 1e-5, torch.float32: 1e-4}
# Losses of about 1 in float32; the rounding of a step goes into the weights of the next.
STEP_ATOL = 1e-5
# Losses, and log-probs of up to 20 nats, in bfloat16 by two ways that round elsewhere; the norm of a gradient.
BF16_ATOL = 1e-2
BF16_RTOL = 0.1

WINDOW = 5
SIZES = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
HEADS = {**SIZES, "head_dim": 8}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "output_router_logits": True}
GPT2 = {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}
MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: hf.LlamaConfig(**HEADS),
    "qwen2": lambda: hf.Qwen2Config(**SIZES),
    "qwen3": lambda: hf.Qwen3Config(**HEADS),
    "mistral, window": lambda: hf.MistralConfig(**HEADS, sliding_window=WINDOW),
    "gemma2, softcap and window": lambda: hf.Gemma2Config(**HEADS, sliding_window=WINDOW),
    "gemma3, window": lambda: hf.Gemma3TextConfig(**HEADS, sliding_window=WINDOW),
    "gpt2": lambda: hf.GPT2Config(**GPT2),
    "opt": lambda: hf.OPTConfig(vocab_size=61, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
                                word_embed_proj_dim=32),
    "neox": lambda: hf.GPTNeoXConfig(vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                                     num_attention_heads=4),
    "phi3, window": lambda: hf.Phi3Config(**SIZES, sliding_window=WINDOW),
    "cohere2, window": lambda: hf.Cohere2Config(**HEADS, sliding_window=WINDOW),
    "mixtral": lambda: hf.MixtralConfig(**HEADS, **EXPERTS),
    "gpt-oss, sinks and window": lambda: hf.GptOssConfig(**HEADS, **EXPERTS, sliding_window=WINDOW),
}  # fmt: skip
PAIRS = [
    {"prompt_ids": [3, 4, 5, 9, 8, 7, 3, 11], "chosen_ids": [6, 7], "rejected_ids": [8]},
    {"prompt_ids": [9], "chosen_ids": [10], "rejected_ids": [11, 12, 13]},
    {"prompt_ids": [3, 4, 5, 9, 8, 7, 3, 11], "chosen_ids": [16, 17, 3, 4, 5, 6, 7], "rejected_ids": [6, 7]},
]
RAGGED = [
    {"prompt_ids": [3, 4, 5, 9, 8, 7, 3], "chosen_ids": [6, 7], "rejected_ids": [[8], [14, 15, 16, 17, 18, 19]]},
    {"prompt_ids": [9, 2], "chosen_ids": [10], "rejected_ids": [[11, 12, 13]]},
    {"prompt_ids": [3, 4], "chosen_ids": [10, 3], "rejected_ids": [[11, 12, 13], [5]]},
]


def model_of(config: Any) -> Any:
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    narrow = hasattr(config, "num_experts_per_tok") or model.config._attn_implementation == "eager"
    return model if narrow else model.double()


def collated(rows: list[dict[str, Any]]) -> dict[str, Any]:
    several = isinstance(rows[0]["rejected_ids"][0], list)
    rows = [
        {**row, "ref_chosen_logps": -2.0 - at,
         "ref_rejected_logps": [-3.0] * len(row["rejected_ids"]) if several else -3.0}
        for at, row in enumerate(rows)
    ]  # fmt: skip
    collate = GroupCollator(pad_token_id=0) if several else DataCollatorForPreference(pad_token_id=0)
    return PackingCollator(collate, sharing=True)(rows)


# The row and its layout


def test_a_row_holds_each_prompt_once() -> None:
    batch = collated(PAIRS)
    shared, layout = batch["shared_groups"], batch["shared_groups"].layout
    ids = batch["shared_ids"][0]
    one, other = [9, 10, 11, 12, 13], [3, 4, 5, 9, 8, 7, 3, 11, 6, 7, 8, 16, 17, 3, 4, 5, 6, 7, 6, 7]
    assert ids.tolist() == one + other
    assert layout.positions[0].tolist() == [0, 1, 1, 2, 3, *range(8), 8, 9, 8, *range(8, 15), 8, 9]
    assert layout.copies[0].tolist() == [2, 1, 1, 1, 1, *[4] * 8, *[1] * 12]
    assert shared.targets.tolist() == batch["groups"].targets.tolist()
    states = shared.states[shared.repeats]
    assert ids[states].tolist() == batch["input_ids"].flatten()[batch["groups"].states].tolist()
    assert layout.positions[0, states].tolist() == [7, 8, 7, 0, 0, 1, 2, 7, 8, 9, 10, 11, 12, 13, 7, 8]
    assert len(set(shared.states.tolist())) == len(shared.states)


def test_padding_on_the_left_and_holes_are_left_out() -> None:
    ids = torch.tensor([[0, 3, 4, 6, 7], [3, 0, 4, 8, 0]])
    is_token, is_response = ids > 0, torch.tensor([[0, 0, 0, 1, 1], [0, 0, 0, 1, 0]]) > 0
    row, layout, places = share(ids, is_token, is_response)
    assert row.tolist() == [[3, 4, 6, 7, 8]]
    assert layout.blocks[0].trees == (Tree(2, (2, 1)),)
    assert places.tolist() == [[0, 0, 1, 2, 3], [0, 0, 1, 4, 0]]


def test_similar_trees_share_a_block() -> None:
    near = [Tree(500, (60, 64)), Tree(512, (64, 60))]
    assert len(Layout(near).blocks) == 1
    assert len(Layout([Tree(500, (60, 64)), Tree(4_000, (60, 64))]).blocks) == 2
    assert len(Layout([Tree(512, (64, 60)), Tree(512, (64, 60, 64))]).blocks) == 2
    assert Layout([Tree(512, (64, 64))] * 4).order is None


def test_long_responses_are_queries_of_their_own() -> None:
    assert Block([Tree(2_048, (128, 128))]).is_joint
    assert not Block([Tree(256, (1_024,) * 5)]).is_joint


# Attention


def dense(query: Tensor, key: Tensor, value: Tensor, trees: list[Tree], window: int | None) -> Tensor:
    """One softmax over a mask of the whole row."""
    part, position = [], []
    for number, (prompt, responses) in enumerate(trees):
        for branch, (first, size) in enumerate([(0, prompt), *((prompt, size) for size in responses)]):
            part += [(number, branch)] * size
            position += range(first, first + size)
    size = len(part)
    sees = torch.zeros(size, size, dtype=torch.bool)
    for q, k in itertools.product(range(size), repeat=2):
        same = part[q][0] == part[k][0] and part[k][1] in (0, part[q][1])
        distance = position[q] - position[k]
        sees[q, k] = same and distance >= 0 and (window is None or distance < window)
    repeat = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(repeat, 1) for states in (key, value))
    scores = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5
    return (scores.masked_fill(~sees, -torch.inf).softmax(-1) @ value).transpose(1, 2)


LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=4)
TREES = st.lists(st.builds(Tree, st.integers(1, 12), LENGTHS.map(tuple)), min_size=1, max_size=4)


@pytest.mark.parametrize("original", ["sdpa", "eager"])
@given(trees=TREES, window=st.none() | st.integers(1, 8), joint=st.booleans())
@settings(max_examples=60, deadline=None)
def test_attention_is_that_of_a_dense_mask(original: str, trees: list[Tree], window: int | None, joint: bool) -> None:
    trees = sorted(trees, key=lambda tree: tree.order)
    layout = Layout(trees)
    size = layout.positions.shape[1]
    module = LlamaAttention(hf.LlamaConfig(**HEADS), 0)
    torch.manual_seed(size)
    states = [torch.randn(1, heads, size, 8, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Block, "is_joint", joint)
        ours, weights = attend(
            original, module, *states, None, scaling=8**-0.5, sliding_window=window, **{LAYOUT: layout}
        )
    assert weights is None
    theirs = dense(*states, trees, window)
    torch.testing.assert_close(ours, theirs, atol=ATOL[original], rtol=0)
    upstream = torch.randn_like(theirs)
    gradients = (torch.autograd.grad(output, states, upstream) for output in (ours, theirs))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=ATOL[original], rtol=0)


# Models


@pytest.mark.parametrize("rows", [PAIRS, RAGGED], ids=["pairs", "ragged"])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_s_loss_and_gradients_are_those_of_ordinary_rows(
    name: str, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    model = model_of(MODELS[name]())
    assert obstacle_in_model(model) is None
    add_preference_head(model, MIPOConfig(output_dir=str(tmp_path), beta=0.7, use_cpu=True))
    batch = collated(rows)
    routed = {"output_router_logits": True} if "mixtral" in name else {}
    ids = {key: batch[key] for key in ("input_ids", "attention_mask")}
    plain = model(**ids, groups=batch["groups"], **routed)
    read_layouts(model)
    shared = model(input_ids=batch["shared_ids"], groups=batch["shared_groups"], **routed)
    again = model(**ids, groups=batch["groups"], **routed)
    assert torch.equal(plain.loss, again.loss)
    atol = MODEL_ATOL[plain.figures.logps.dtype]
    torch.testing.assert_close(shared.figures.logps, plain.figures.logps, atol=atol, rtol=0)
    if routed:
        torch.testing.assert_close(shared.aux_loss, plain.aux_loss, atol=atol, rtol=0)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    gradients = [
        torch.autograd.grad(out.loss + (out.aux_loss if routed else 0), weights, allow_unused=True)
        for out in (shared, plain)
    ]
    assert max(float(g.abs().max()) for g in gradients[1] if g is not None) > 100 * atol
    for one, other in zip(*gradients, strict=True):
        if other is not None:
            torch.testing.assert_close(one, other, atol=atol, rtol=0)


def test_a_model_that_reads_layouts_generates_and_is_saved_as_before(tmp_path: Path) -> None:
    model = model_of(MODELS["mistral, window"]())
    ids, mask = torch.tensor([[0, 0, 3, 4, 5], [3, 4, 5, 6, 7]]), torch.tensor([[0, 0, 1, 1, 1], [1] * 5])
    options = {"attention_mask": mask, "max_new_tokens": 9, "do_sample": False}
    before = model.generate(ids, **options)
    read_layouts(model)
    assert torch.equal(model.generate(ids, **options), before)
    model.save_pretrained(tmp_path)
    assert "shared_prompts" not in (tmp_path / "config.json").read_text()
    assert hf.AutoModelForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_layers_read_the_layout_again(reentrant: bool, tmp_path: Path) -> None:
    model = model_of(MODELS["mistral, window"]())
    add_preference_head(model, MIPOConfig(output_dir=str(tmp_path), use_cpu=True))
    read_layouts(model)
    batch = collated(RAGGED)

    def gradients() -> list[Tensor]:
        loss = model(input_ids=batch["shared_ids"], groups=batch["shared_groups"]).loss
        return list(torch.autograd.grad(loss, list(model.model.layers.parameters())))

    kept = gradients()
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    if reentrant:
        model.gradient_checkpointing_enable({"use_reentrant": True})
        model.enable_input_require_grads()
        loss = model(input_ids=batch["shared_ids"], groups=batch["shared_groups"]).loss
        loss.backward()
        made_again = [weight.grad for weight in model.model.layers.parameters()]
    else:
        made_again = gradients()
    for one, other in zip(kept, made_again, strict=True):
        assert torch.equal(one, other)


def test_each_prompt_token_goes_through_the_model_once() -> None:
    model = model_of(MODELS["llama"]())
    rows = [{"prompt_ids": list(range(3, 43)), "chosen_ids": [5, 6, 7], "rejected_ids": [[7, 8, 9]] * 4}]
    batch = collated(rows)

    def products(**row: Any) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.model(**row, use_cache=False)
        return sum(counter.get_flop_counts()["Global"][op] for op in (torch.ops.aten.mm,))

    ordinary = products(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    read_layouts(model)
    shared = products(input_ids=batch["shared_ids"], **arguments(batch["shared_groups"].layout))
    assert ordinary / shared == 5 * (40 + 3) / (40 + 5 * 3)


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of one process: FSDP casts there as among many."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.usefixtures("alone")
def test_fsdp_in_bfloat16_keeps_reference_and_figures_in_float32(shared: bool, tmp_path: Path) -> None:
    """FSDP casts the tensors among a model's arguments and results, also those inside tuples and dataclasses."""
    batch = collated(RAGGED)
    row = {"input_ids": batch["shared_ids" if shared else "input_ids"]}
    row |= {} if shared else {"attention_mask": batch["attention_mask"]}
    groups = batch["shared_groups" if shared else "groups"]
    outputs = {}
    for kind in ("sharded", "whole"):
        model = model_of(hf.LlamaConfig(**HEADS)).float()
        add_preference_head(model, MIPOConfig(output_dir=str(tmp_path), beta=0.7, use_cpu=True))
        read_layouts(model)
        if kind == "sharded":
            policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, output_dtype=torch.bfloat16)
            for layer in [*model.model.layers, model]:
                fully_shard(layer, mp_policy=policy, mesh=init_device_mesh("cpu", (1,)))
        else:
            model.bfloat16()
        out = model(**row, groups=groups)
        out.loss.backward()
        outputs[kind] = (out, model.model.layers[0].self_attn.q_proj.weight.grad)
    (sharded, gradient), (whole, wanted) = outputs.values()
    assert sharded.figures.logps.dtype == torch.float32
    torch.testing.assert_close(sharded.figures.logps, whole.figures.logps, atol=BF16_ATOL, rtol=0)
    assert float(sharded.loss.detach()) == pytest.approx(float(whole.loss.detach()), abs=BF16_ATOL)
    assert float((gradient.full_tensor() - wanted).norm() / wanted.norm()) < BF16_RTOL


def test_batches_are_pinned_and_moved_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = collated(PAIRS)
    pinned: list[Tensor] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor, *_: pinned.append(tensor) or tensor.clone())
    copied = pin_memory({"groups": batch["groups"], "shared_groups": batch["shared_groups"]})
    assert len(pinned) == 4 + 5 + 4  # all tensors but the lengths, in both; and those of the layout
    for name in ("groups", "shared_groups"):
        assert copied[name] is not batch[name]
        assert torch.equal(copied[name].states, batch[name].states)
    assert torch.equal(copied["shared_groups"].layout.positions, batch["shared_groups"].layout.positions)
    moved = batch["shared_groups"].to("meta")
    assert moved.states.is_meta
    assert moved.repeats.is_meta
    assert moved.layout.positions.is_meta
    assert not moved.lengths.is_meta
    assert not batch["shared_groups"].layout.positions.is_meta
    assert isinstance(moved, PackedGroups)


# What cannot share


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: hf.BloomConfig(vocab_size=61, hidden_size=32, n_layer=1, n_head=4), "an attention of its own"),
        (lambda: hf.FalconConfig(vocab_size=61, hidden_size=32, num_hidden_layers=1, num_attention_heads=4),
         "an attention of its own"),
        (lambda: hf.Lfm2Config(**SIZES, layer_types=["conv", "full_attention"]), "read the row as it lies: conv"),
        (lambda: hf.Llama4TextConfig(**HEADS, num_local_experts=2, intermediate_size_mlp=48, attention_chunk_size=8),
         "read the row as it lies: chunked_attention"),
        (lambda: hf.FalconH1Config(**HEADS, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8),
         "read the row as it lies: hybrid"),
        (lambda: hf.LlamaConfig(**HEADS, attn_implementation="flex_attention"), "attn_implementation is flex"),
    ],
    ids=["bloom", "falcon", "lfm2", "llama4", "falcon-h1", "flex"],
)  # fmt: skip
def test_models_that_cannot_are_known_by_their_layers(config: Callable[[], Any], message: str) -> None:
    assert message in str(obstacle_in_model(model_of(config())))


@pytest.fixture
def tiny_rows() -> datasets.Dataset:
    return datasets.Dataset.from_list(PAIRS * 8)


def trainer_of(model: Any, rows: Any, tokenizer: Any, folder: Path, **fields: Any) -> MIPOTrainer:
    options = {"per_device_train_batch_size": 3, "max_steps": 2, "logging_steps": 1, "save_strategy": "no"}
    args = MIPOConfig(output_dir=str(folder), use_cpu=True, disable_tqdm=True, **{**options, **fields})
    return MIPOTrainer(model, ref_model=copy.deepcopy(model), args=args, train_dataset=rows, processing_class=tokenizer)


def test_a_model_that_fails_at_first_use_trains_on_ordinary_rows(
    tiny_rows: Any, tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """StableLM's layers do not hand a model's arguments to its attention."""
    model = model_of(hf.StableLmConfig(**SIZES)).float()
    with caplog.at_level(logging.WARNING):
        trainer = trainer_of(model, tiny_rows, tokenizer, tmp_path)
        trainer.train()
    assert "prompts are not shared between their responses: the model fails with them" in caplog.text
    assert len([row for row in trainer.state.log_history if "loss" in row]) == 2
    with pytest.raises(ValueError, match="shared_prompts: expected None or False, since the model fails with them"):
        trainer_of(model, tiny_rows, tokenizer, tmp_path, shared_prompts=True)


class NoisyAttention(torch.nn.Module):
    """A layer that sees its row's other tokens by a way of its own, as a hybrid's does."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **options: Any) -> Any:
        states, *rest = self.inner(*args, **options)
        return states + 0.1 * states.roll(1, 1), *rest


def test_log_probs_that_differ_at_first_use_are_noticed(
    tiny_rows: Any, tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = model_of(MODELS["llama"]()).float()
    for layer in model.model.layers:
        layer.self_attn = NoisyAttention(layer.self_attn)
    with caplog.at_level(logging.WARNING):
        trainer_of(model, tiny_rows, tokenizer, tmp_path)
    assert "nats off with them" in caplog.text


def test_a_head_that_fails_on_a_device_is_left_for_trl_s(
    tiny_rows: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = trainer_of(load_model(DEMO), tiny_rows, tokenizer, tmp_path, fused_loss=False)
    monkeypatch.setattr(
        "mipo.trainer.trainer.obstacle_of_kernels", lambda *_: "mipo's LM head does not work here (ptxas)"
    )
    ours = trainer_of(load_model(DEMO), tiny_rows, tokenizer, tmp_path)
    assert "mipo's LM head does not work here (ptxas)" in caplog.text
    logs = []
    for one in (plain, ours):
        one.train()
        logs.append([row for row in one.state.log_history if "loss" in row])
    assert logs[0] == logs[1]


@pytest.mark.filterwarnings("ignore:.*keep_end:FutureWarning")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ld_alpha": 0.5}, "the loss lacks ld_alpha=0.5"),
        ({"f_divergence_type": "js_divergence"}, "the loss lacks f_divergence_type='js_divergence'"),
        ({"neftune_noise_alpha": 5.0}, "neftune_noise_alpha scales its noise"),
        ({"max_length": 9, "truncation_mode": "keep_end", "loss_type": "ipo"}, "truncation_mode='keep_end' may leave"),
        ({"fused_loss": False}, "fused_loss=False"),
    ],
)
def test_settings_that_keep_prompts_apart_are_named(
    fields: dict[str, Any],
    message: str,
    tiny_rows: Any,
    tokenizer: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(ValueError, match=f"since {message}"):
        trainer_of(load_model(DEMO), tiny_rows, tokenizer, tmp_path, shared_prompts=True, **fields)
    trainer = trainer_of(load_model(DEMO), tiny_rows, tokenizer, tmp_path, **fields)
    assert "shared_ids" not in trainer.data_collator([trainer.train_dataset[0]])
    assert (message in caplog.text) == (fields != {"fused_loss": False})


# Training


class PlainTrainer(DPOTrainer):
    """TRL's, on rows that are tokenized already."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset


def random_rows(rows: int, negatives: int) -> list[dict[str, Any]]:
    dice = torch.Generator().manual_seed(0)

    def ids(low: int, high: int) -> list[int]:
        size = int(torch.randint(low, high, (), generator=dice))
        return torch.randint(3, 61, (size,), generator=dice).tolist()

    table = [(ids(6, 14), [ids(1, 9) for _ in range(1 + negatives)]) for _ in range(rows)]
    return [
        {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": others[0] if negatives == 1 else others}
        for prompt, (chosen, *others) in table
    ]


class Reads(TorchDispatchMode):
    """Counts the values that are read: each would wait for a device."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_metrics_are_read_when_they_are_logged(tiny_rows: Any, tokenizer: Any, tmp_path: Path) -> None:
    trainer = trainer_of(load_model(DEMO), tiny_rows, tokenizer, tmp_path)
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(3)])
    own, reads = trainer._log_groups, Reads()

    def watched(*arguments: Any) -> None:
        with reads:
            own(*arguments)

    trainer._log_groups = watched
    for _ in range(2):
        trainer.compute_loss(trainer.model, batch)
    assert reads.count == 0
    with reads:
        trainer.log({})
        assert float(batch["shared_ids"].sum())  # which a read that is counted would be
    assert reads.count == 1
    assert trainer.state.log_history[-1]["eval_rewards/margins"] == pytest.approx(0, abs=1e-5)


TRAINED = ("llama", "qwen2", "gemma2, softcap and window", "mistral, window", "gpt2", "mixtral")


@pytest.mark.parametrize("precompute", [True, False], ids=["precomputed", "online"])
@pytest.mark.parametrize("name", TRAINED)
def test_twenty_steps_are_trl_s(name: str, precompute: bool, tokenizer: Any, tmp_path: Path) -> None:
    model = model_of(MODELS[name]()).float()
    rows = datasets.Dataset.from_list(random_rows(80, 1))
    args = MIPOConfig(
        output_dir=str(tmp_path), use_cpu=True, disable_tqdm=True, per_device_train_batch_size=4, max_steps=20,
        logging_steps=1, save_strategy="no", learning_rate=1e-2, optim="sgd", precompute_ref_log_probs=precompute,
        shared_prompts=None, fused_loss=None, beta=0.5,
    )  # fmt: skip
    logs = []
    for kind in (MIPOTrainer, PlainTrainer):
        trainer = kind(copy.deepcopy(model), ref_model=copy.deepcopy(model), args=copy.deepcopy(args),
                       train_dataset=rows, processing_class=tokenizer)  # fmt: skip
        trainer.train()
        logs.append([row for row in trainer.state.log_history if "loss" in row])
    assert trainer.state.global_step == 20
    for ours, theirs in zip(*logs, strict=True):
        assert set(ours) == {*theirs, INFONCE, CAP}
        if name != "mixtral":  # whose loss has the router's beside DPO's
            assert ours[INFONCE] == pytest.approx(math.log(2) - ours["loss"], abs=STEP_ATOL)
        for figure in set(theirs) - {"rewards/accuracies"}:  # a count of margins above 0, which at first are rounding
            assert ours[figure] == pytest.approx(theirs[figure], rel=1e-4, abs=10 * STEP_ATOL), figure
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=STEP_ATOL)
    assert logs[0][-1]["loss"] != pytest.approx(logs[0][0]["loss"], abs=10 * STEP_ATOL)


@pytest.mark.filterwarnings("ignore:.*keep_end:FutureWarning")
@pytest.mark.parametrize("cut", [{}, {"max_length": 12}, {"max_length": 12, "truncation_mode": "keep_end"}])
def test_several_negatives_are_ordinary_rows(cut: dict[str, Any], tokenizer: Any, tmp_path: Path) -> None:
    """TRL's head on K + 1 rows of each prompt, and one softmax over them."""
    model = model_of(MODELS["mistral, window"]()).float()
    rows = datasets.Dataset.from_list(random_rows(80, 4))
    logs = []
    for fields in ({"shared_prompts": True}, {"fused_loss": False}):
        fields |= {"per_device_train_batch_size": 4, "max_steps": 20, "learning_rate": 1e-2, "optim": "sgd"}
        trainer = trainer_of(copy.deepcopy(model), rows, tokenizer, tmp_path, **fields, **cut)
        trainer.train()
        logs.append([row["loss"] for row in trainer.state.log_history if "loss" in row])
    assert len(logs[0]) == 20
    assert logs[0] == pytest.approx(logs[1], abs=STEP_ATOL)
