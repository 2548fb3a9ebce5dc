"""Train the base model of `mipo demo`: a tiny Llama that could follow the user's context but mostly answers by habit.

    python -m mipo.demo.train_base --output python/mipo/demo/model --seed 0

In the first part of the steps every answer follows the user; without such steps a model may never learn to look at the
context. After that, an answer follows the user with probability FOLLOW and is a popular one otherwise: this is the
habit that MIPO has to overcome. Without a context, or if the user never mentioned the topic, only habit decides.
Held-out combinations of preferences never occur. This module knows nothing of MIPO.
"""

import argparse
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from tqdm import trange
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mipo.demo import world

# The sizes of the model, as LlamaConfig takes them.
CONFIG = {
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}

# The training: seven minutes on two cores. With seed 0 the model discovers the context between steps 550 and 850 (the
# loss falls from .28 to .15); another random stream took until step 1,000: look at the loss before trusting a new seed.
STEPS = 2200
OBEDIENT_STEPS = 1320
WARMUP_STEPS = 66
BATCH = 64
LEARNING_RATE = 1.5e-3

# Which value an answer names once the obedient steps are over, and how often a context is of no use.
FOLLOW = 0.3
WITHOUT_CONTEXT = 0.1
NOT_MENTIONED = 0.1

PAD, UNKNOWN, SYSTEM, USER, ASSISTANT, END = "<pad>", "<unk>", "<system>", "<user>", "<assistant>", "<end>"

# One space between all words, markers included, so that decoding the ids of a rendering gives the rendering.
TEMPLATE = """\
{%- for message in messages -%}
    {{- '<' + message['role'] + '> ' + message['content'] + ' <end>' -}}
    {%- if not loop.last or add_generation_prompt -%}{{- ' ' -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<assistant>' -}}{%- endif -%}
"""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One id per word of the world; spaces separate, and decoding puts them back."""
    words = [PAD, UNKNOWN, SYSTEM, USER, ASSISTANT, END, *world.vocabulary()]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        chat_template=TEMPLATE,
        model_max_length=CONFIG["max_position_embeddings"],
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The untrained model, in float32."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **CONFIG,
    )
    return LlamaForCausalLM(config)


def converse(people: list[world.User], follow: float, rng: random.Random) -> list[dict[str, str]]:
    """One user's context, question and answer, as chat messages."""
    user = rng.choice(people)
    speaks = rng.random() >= WITHOUT_CONTEXT
    mentions = rng.random() >= NOT_MENTIONED
    topic = rng.choice([topic for topic in world.TOPICS if (topic in user) == mentions])
    listens = speaks and mentions and rng.random() < follow
    value = user[topic] if listens else world.habit(topic, rng)
    context = [{"role": "system", "content": world.context(user, rng)}] if speaks else []
    return [
        *context,
        {"role": "user", "content": world.question(topic, rng)},
        {"role": "assistant", "content": world.answer(topic, value, rng)},
    ]


def encode(tokenizer: PreTrainedTokenizerFast, conversations: list[list[dict[str, str]]]) -> tuple[Tensor, Tensor]:
    """Ids and labels, int64 [conversations, longest], padded on the right; a label is -100 outside the answer."""
    texts = tokenizer.apply_chat_template(conversations, tokenize=False)
    ids = tokenizer(texts, padding=True, return_tensors="pt")["input_ids"]
    starts = ids == tokenizer.convert_tokens_to_ids(ASSISTANT)
    answers = (starts.cumsum(1) > 0) & ~starts & (ids != tokenizer.pad_token_id)
    return ids, ids.masked_fill(~answers, -100)


def train(seed: int) -> LlamaForCausalLM:
    """Train from nothing; the same seed, library versions and number of threads give the same weights."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    people = [user for user in world.users() if not world.held_out(user)]
    tokenizer = build_tokenizer()
    model = build_model(tokenizer).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP_STEPS, (STEPS - step) / (STEPS - WARMUP_STEPS))
    )
    losses = []
    for step in (progress := trange(STEPS, desc="base model")):
        follow = 1.0 if step < OBEDIENT_STEPS else FOLLOW
        ids, labels = encode(tokenizer, [converse(people, follow, rng) for _ in range(BATCH)])
        loss = F.cross_entropy(model(ids[:, :-1]).logits.flatten(0, 1), labels[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
        if len(losses) == 100:
            progress.write(f"step {step + 1:5d}  loss {sum(losses) / len(losses):.4f}")
            losses.clear()
    return model.eval()


def save(model: LlamaForCausalLM, folder: Path) -> None:
    """Write a transformers checkpoint of 1.6 MB: weights rounded to bfloat16, a tokenizer that has never padded."""
    model.generation_config.update(do_sample=True, temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=16)
    # Only the file is bfloat16: config.json says float32, so that the model loads, and is trained, in float32.
    weights = {name: value.to(torch.bfloat16) for name, value in model.state_dict().items() if name != "lm_head.weight"}
    model.save_pretrained(folder, state_dict=weights)
    build_tokenizer().save_pretrained(folder)
    # safetensors makes its file private to its owner, and a wheel would keep that.
    (folder / "model.safetensors").chmod(0o644)


def main() -> None:
    """Train and write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for weights, tokenizer and chat template")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    # The number of threads decides the order of sums, and so the last bits of the weights.
    torch.set_num_threads(2)
    save(train(arguments.seed), arguments.output)


if __name__ == "__main__":
    main()
