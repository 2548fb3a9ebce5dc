"""The fused preference loss in a bare PyTorch loop: a chosen and two rejected answers, any causal LM."""

import sys

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer

import mipo.demo
from mipo.fused.heads import Head, response_states
from mipo.fused.operators import linear_logps, linear_preference_loss

name = sys.argv[1] if len(sys.argv) > 1 else str(mipo.demo.HERE / "model")
model, tokenizer = AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)
prompt = "<system> i could eat pizza every day . <end> <user> what should i eat tonight ? <end> <assistant>"
answers = [f" tonight you should eat some {food} because it suits you . <end>" for food in ("pizza", "soup", "curry")]
prompt_ids, *answer_ids = (tokenizer(text, add_special_tokens=False).input_ids for text in (prompt, *answers))
ids = pad_sequence([torch.tensor(prompt_ids + answer) for answer in answer_ids], batch_first=True)  # [responses, L]
mask = pad_sequence([torch.tensor([0] * len(prompt_ids) + [1] * len(answer)) for answer in answer_ids], True)
lengths = torch.tensor([[len(answer) for answer in answer_ids]])  # [groups, 1 + K]: the chosen one, then the rejected

with torch.no_grad():  # the reference is the model before training
    hidden, targets = response_states(model, ids, mask)  # the response tokens of all rows: [T, D] and [T]
    logps = linear_logps(hidden, targets=targets, logits_dtype=hidden.dtype, **Head.of(model)(hidden))
    ref_logps = torch.stack([part.sum() for part in logps.split(lengths.flatten().tolist())]).view_as(lengths)
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
for step in range(10):
    hidden, targets = response_states(model, ids, mask)
    head = Head.of(model)(hidden)  # weight, bias, softcap, scale and LoRA, as this model has them
    out = linear_preference_loss(hidden, targets=targets, lengths=lengths, ref_logps=ref_logps, beta=0.1, **head)
    out.loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"step {step}: loss {out.loss:.4f}, log-probs {[round(x, 2) for x in out.logps[0].tolist()]}")
