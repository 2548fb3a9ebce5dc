"""Preference head: the loss that a model gives for groups is `mipo.loss`'s of its own logits, and nothing else changes.

On small models of transformers' own classes, made from configurations, in float64 where the loss is compared.
"""

import copy
import gc
import weakref
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as hf
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import Tensor
from trl.trainer import dpo_trainer
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import add_fused_lm_head

from mipo.loss.preference import preference_loss
from mipo.trainer.collators import GroupCollator
from mipo.trainer.config import MIPOConfig
from mipo.trainer.packing import PackedGroups, PackingCollator
from mipo.trainer.preference_head import (
    adapted_heads,
    add_preference_head,
    check_settings,
)

pytestmark = pytest.mark.usefixtures("one_thread")
# Models in float64, whose norms alone compute in float32.
ATOL = 1e-6
# TRL's head gives log-probs in float32, here of about -10.
TRL_ATOL = 1e-5
SIZES = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
EXPERTS = {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2, "output_router_logits": True}
PAIRS = [
    {"prompt_ids": [3, 4, 5], "chosen_ids": [6, 7], "rejected_ids": [8]},
    {"prompt_ids": [9], "chosen_ids": [10], "rejected_ids": [11, 12, 13]},
]
RAGGED = [
    {"prompt_ids": [3, 4, 5], "chosen_ids": [6, 7], "rejected_ids": [[8], [14, 15, 16]]},
    {"prompt_ids": [9], "chosen_ids": [10], "rejected_ids": [[11, 12, 13]]},
]


def model_of(config: Any) -> Any:
    torch.manual_seed(0)
    return hf.AutoModelForCausalLM.from_config(config).double().eval()


def settings(folder: Path, **fields: Any) -> MIPOConfig:
    return MIPOConfig(output_dir=str(folder), beta=0.7, use_cpu=True, **fields)


def collated(rows: list[dict[str, Any]], reference: bool = True) -> dict[str, Any]:
    """A batch of pairs in TRL's order, or of groups in ours, with groups packed."""
    several = isinstance(rows[0]["rejected_ids"][0], list)
    if reference:
        rows = [
            {**row, "ref_chosen_logps": -2.0 - at,
             "ref_rejected_logps": [-3.0 + k for k in range(len(row["rejected_ids"]))] if several else -3.0 + at}
            for at, row in enumerate(rows)
        ]  # fmt: skip
    collate = GroupCollator(pad_token_id=0) if several else DataCollatorForPreference(pad_token_id=0)
    return PackingCollator(collate)(rows)


def plain_loss(model: Any, rows: list[dict[str, Any]], ref: Tensor, **options: Any) -> Tensor:
    """A row at a time, a full softmax over the model's own logits."""
    logps, lengths = torch.zeros(ref.shape, dtype=torch.float64), torch.zeros(ref.shape, dtype=torch.int64)
    for at, row in enumerate(rows):
        several = isinstance(row["rejected_ids"][0], list)
        for k, response in enumerate([row["chosen_ids"], *(row["rejected_ids"] if several else [row["rejected_ids"]])]):
            ids, start = torch.tensor([[*row["prompt_ids"], *response]]), len(row["prompt_ids"])
            every = model(input_ids=ids).logits[0, start - 1 : -1].log_softmax(-1)
            logps[at, k], lengths[at, k] = every.gather(-1, ids[0, start:, None]).sum(), len(response)
    return preference_loss(logps, ref, beta=0.7, mask=lengths > 0, lengths=lengths, **options).mean()


def packed_loss(model: Any, batch: dict[str, Any]) -> Any:
    groups = batch["groups"]
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], groups=groups)


# Batches


def test_pairs_are_packed_group_by_group() -> None:
    batch = collated(PAIRS)
    groups = batch["groups"]
    assert batch["input_ids"].tolist() == [[3, 4, 5, 6, 7], [9, 10, 0, 0, 0], [3, 4, 5, 8, 0], [9, 11, 12, 13, 0]]
    assert groups.targets.tolist() == [6, 7, 8, 10, 11, 12, 13]
    assert batch["input_ids"].flatten()[groups.states].tolist() == [5, 6, 5, 9, 9, 11, 12]
    assert groups.is_chosen.tolist() == [True, True, False, True, False, False, False]
    assert groups.lengths.tolist() == [[2, 1], [1, 3]]
    assert groups.ref_logps.tolist() == [[-2, -3], [-3, -2]]
    assert collated(PAIRS, reference=False)["groups"].ref_logps is None


def test_ragged_groups_are_packed_as_they_lie() -> None:
    groups = collated(RAGGED)["groups"]
    assert groups.targets.tolist() == [6, 7, 8, 14, 15, 16, 10, 11, 12, 13]
    assert groups.is_chosen.tolist() == [True, True, *[False] * 4, True, *[False] * 3]
    assert groups.lengths.tolist() == [[2, 1, 3], [1, 3, 0]]
    assert groups.ref_logps.tolist() == [[-2, -3, -2], [-3, -3, 0]]


def test_lengths_stay_and_nothing_is_cast() -> None:
    from accelerate.utils import send_to_device

    groups = send_to_device(collated(PAIRS), torch.device("meta"))["groups"]
    assert groups.states.is_meta
    assert groups.targets.is_meta
    assert groups.ref_logps.is_meta
    assert groups.ref_logps.dtype == torch.float32
    assert groups.lengths.tolist() == [[2, 1], [1, 3]]
    assert collated(PAIRS, reference=False)["groups"].to("meta").ref_logps is None


def test_a_first_token_without_a_prompt_is_not_scored() -> None:
    rows = [{"prompt_ids": [], "chosen_ids": [6, 7], "rejected_ids": [8, 9]}]
    assert collated(rows)["groups"].targets.tolist() == [7, 9]
    batch = collated(PAIRS)
    assert batch["completion_mask"].sum(1).tolist() == [2, 1, 1, 3]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt_ids": [1], "chosen_ids": [6, 7], "rejected_ids": []},
        {"prompt_ids": [], "chosen_ids": [6], "rejected_ids": [8, 9]},
    ],
)
def test_a_response_with_nothing_to_score_is_refused(row: dict[str, Any]) -> None:
    collate = PackingCollator(DataCollatorForPreference(pad_token_id=0))
    with pytest.raises(ValueError, match=r"got none in groups \[1\] of a batch"):
        collate([PAIRS[0], row])
    nested = {**RAGGED[1], "rejected_ids": [[11], []]}
    with pytest.raises(ValueError, match=r"got none in groups \[1\] of a batch"):
        PackingCollator(GroupCollator(pad_token_id=0))([RAGGED[0], nested])


# Losses

MODELS = {
    "llama": lambda: hf.LlamaConfig(**SIZES),
    "llama with tied embeddings": lambda: hf.LlamaConfig(**SIZES, tie_word_embeddings=True),
    "gemma2, softcap": lambda: hf.Gemma2Config(**SIZES, final_logit_softcapping=1.5),
    "cohere, scale": lambda: hf.CohereConfig(**SIZES, logit_scale=0.25),
    "phi, bias": lambda: hf.PhiConfig(**{**SIZES, "num_key_value_heads": 4}),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("rows", "fields"),
    [(PAIRS, {}), (PAIRS, {"loss_type": ["ipo", "sft"], "loss_weights": [1.0, 0.3]}), (RAGGED, {})],
    ids=["pairs", "mixture", "ragged"],
)
def test_the_loss_and_its_gradients_are_those_of_the_logits(
    name: str, rows: list[dict[str, Any]], fields: dict[str, Any], tmp_path: Path
) -> None:
    model = model_of(MODELS[name]())
    twin = copy.deepcopy(model)
    add_fused_lm_head(model)
    add_preference_head(model, settings(tmp_path, **fields))
    batch = collated(rows)
    out = packed_loss(model, batch)
    expected = plain_loss(twin, rows, batch["groups"].ref_logps.double(), **fields)
    torch.testing.assert_close(out.loss, expected, atol=ATOL, rtol=0)
    assert out.aux_loss is None
    out.loss.backward()
    expected.backward()
    for (weight, one), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=ATOL, rtol=0, msg=lambda text, w=weight: f"{w}: {text}")


def test_prompts_that_peft_learns_stand_before_the_tokens(tmp_path: Path) -> None:
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    base = model_of(MODELS["llama"]())
    add_fused_lm_head(base)
    model = get_peft_model(base, config).double()
    add_preference_head(model, settings(tmp_path))
    batch = collated(PAIRS)
    ids = {name: batch[name] for name in ("input_ids", "attention_mask")}
    labels = ids["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    logps = model(**ids, labels=labels, fused_lm_head=True).log_probs.sum(1)
    ours = packed_loss(model, batch).figures.logps.float()
    torch.testing.assert_close(ours, logps.view(2, -1).t(), atol=TRL_ATOL, rtol=0)


def test_experts_have_the_auxiliary_loss_of_trl_s_head(tmp_path: Path) -> None:
    model = model_of(hf.MixtralConfig(**EXPERTS)).float()
    add_fused_lm_head(model)
    add_preference_head(model, settings(tmp_path))
    batch = collated(PAIRS)
    rows = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "output_router_logits": True}
    ours, theirs = model(**rows, groups=batch["groups"]), model(**rows, labels=rows["input_ids"], fused_lm_head=True)
    assert ours.aux_loss.requires_grad
    torch.testing.assert_close(ours.aux_loss, theirs.aux_loss, atol=ATOL, rtol=0)


# What else a model does


def test_without_groups_a_model_does_what_it_did(tmp_path: Path) -> None:
    model = model_of(MODELS["llama"]())
    add_fused_lm_head(model)
    ids = torch.tensor([[3, 4, 5, 6]])

    def everything() -> list[Tensor]:
        torch.manual_seed(0)
        generated = model.generate(ids, max_new_tokens=5, do_sample=True)
        fused = model(input_ids=ids, labels=ids, fused_lm_head=True)
        plain = model(input_ids=ids, labels=ids)
        return [generated, fused.log_probs, fused.loss, plain.logits, plain.loss]

    before = everything()
    add_preference_head(model, settings(tmp_path))
    assert all(torch.equal(one, other) for one, other in zip(before, everything(), strict=True))


def test_a_model_that_is_let_go_is_gone(tmp_path: Path) -> None:
    model = model_of(MODELS["llama"]())
    add_fused_lm_head(model)
    add_preference_head(model, settings(tmp_path))
    packed_loss(model, collated(PAIRS))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


# Settings


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ld_alpha": 0.5}, "does not support ld_alpha=0.5;"),
        ({"use_weighting": True}, "does not support use_weighting=True;"),
        ({"f_divergence_type": "js_divergence"}, "does not support f_divergence_type='js_divergence';"),
        ({"padding_free": True}, "does not support padding_free=True;"),
        ({"label_smoothing": 0.1}, "expected label_smoothing 0 for sigmoid, got 0.1"),
        ({"loss_type": "exo_pair"}, r"expected label_smoothing in \(0, 1\) for exo_pair"),
        ({"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, float("inf")]}, "one finite weight for each"),
    ],
)
def test_unsupported_settings_are_named(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        check_settings(settings(tmp_path, **fields), {}, PAIRS[0], negatives=1)


def test_arguments_and_rows_that_it_does_not_take_are_named(tmp_path: Path) -> None:
    args = settings(tmp_path, loss_type="ipo")
    check_settings(args, {"compute_metrics": None}, PAIRS[0], negatives=1)
    with pytest.raises(ValueError, match="does not support compute_metrics, 'image' in the rows;"):
        check_settings(args, {"compute_metrics": print}, {**PAIRS[0], "image": None}, negatives=1)
    with pytest.raises(ValueError, match="one rejected response per group for ipo, got 2"):
        check_settings(args, {}, RAGGED[0], negatives=2)


def test_trl_s_check_stands_again_after_an_error() -> None:
    model = get_peft_model(model_of(MODELS["llama"]()), LoraConfig(task_type="CAUSAL_LM", target_modules=["lm_head"]))
    head = model.get_output_embeddings()
    with adapted_heads(allowed=False):
        assert isinstance(head, dpo_trainer.BaseTunerLayer)
    seen = []
    with pytest.raises(KeyError), adapted_heads(allowed=True):
        seen.append(isinstance(head, dpo_trainer.BaseTunerLayer)) or {}["now"]
    assert seen == [False]
    assert dpo_trainer.BaseTunerLayer is peft.tuners.tuners_utils.BaseTunerLayer


def test_a_batch_of_groups_is_no_tensor_to_others() -> None:
    """FSDP casts the float tensors that it finds in arguments to its own dtype: a reference in bfloat16 is noise."""
    from torch.utils._pytree import tree_leaves

    groups = collated(PAIRS)["groups"]
    assert isinstance(groups, PackedGroups)
    assert tree_leaves({"groups": groups}) == [groups]
