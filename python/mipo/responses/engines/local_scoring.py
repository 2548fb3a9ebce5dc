"""The local engine's scoring: log π(response | prompt) with transformers, in this process, batched by length.

It is what the scores of other engines are compared with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from mipo.io.lazy import np, torch
from mipo.responses.engines.contract import Answer, Scoring

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

LOGIT_BYTES = 1 << 30  # of float32 logits held at once; with a vocabulary of 150,000, 1,800 response tokens


def score(asked: Scoring, *, batch_tokens: int | None = None) -> Iterator[list[tuple[int, float | Answer]]]:
    """The log-prob of each asked row, batch by batch.

    Logits are converted to float32. Rows are batched by length, at most `batch_tokens` padded tokens at once (default
    16,384 on an accelerator, 2,048 on a CPU); only the positions that predict response tokens are projected on the
    vocabulary.
    """
    weights, rows = asked.model.weights, asked.rows.tolist()
    # On a CPU, a batch that fits the caches is faster: 2,048 rows of 52 tokens took the demo's model 3.1 s at 2,048
    # padded tokens and 5.0 s at 16,384 (one core, November 2026).
    batch_tokens = batch_tokens or (2_048 if weights.device.type == "cpu" else 16_384)
    most_logits = LOGIT_BYTES // (4 * weights.config.get_text_config().vocab_size)
    sizes = [(len(asked.prompts[row]) + len(asked.responses[row]), len(asked.responses[row])) for row in rows]
    for places in _batches(sizes, batch_tokens, most_logits):
        batch = [rows[place] for place in places]
        sums = _sums(weights, [asked.prompts[row] for row in batch], [asked.responses[row] for row in batch])
        yield list(zip(batch, sums.tolist(), strict=True))


def _sums(
    model: PreTrainedModel, prompts: Sequence[NDArray[np.uint32]], responses: Sequence[NDArray[np.uint32]]
) -> NDArray[np.float64]:
    width = max(len(p) + len(r) for p, r in zip(prompts, responses, strict=True))
    new = min(max(map(len, responses)), width - 1)
    ids, mask, is_response = (np.zeros((len(prompts), width), dtype=np.int64) for _ in range(3))
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        at = width - len(prompt) - len(response)  # padded on the left: all responses end in the last column
        ids[row, at:], mask[row, at:] = np.concatenate([prompt, response]), 1
        is_response[row, max(width - len(response), at + 1) :] = 1
    tokens, seen, weights = (torch.from_numpy(array).to(model.device) for array in (ids, mask, is_response))
    positions = (seen.cumsum(1) - 1).clamp_min(0)
    with torch.inference_mode():
        logits = model(
            tokens, attention_mask=seen, position_ids=positions, use_cache=False, logits_to_keep=new + 1
        ).logits
        # Both terms from one float32 copy: a target in float32 over a log-sum-exp of bfloat16 could be positive.
        logits = logits[:, -new - 1 : -1].float()
        picked = logits.gather(-1, tokens[:, -new:, None]).squeeze(-1) - logits.logsumexp(-1)
        sums: NDArray[np.float64] = (picked.double() * weights[:, -new:]).sum(1).cpu().numpy()
    return sums


def _batches(sizes: Sequence[tuple[int, int]], batch_tokens: int, places: int) -> Iterator[list[int]]:
    """Rows of similar `sizes` (tokens, response tokens), with at most so many padded tokens and places with logits."""
    batch: list[int] = []
    longest = new = 0
    for row in sorted(range(len(sizes)), key=lambda row: sizes[row], reverse=True):
        longest, new = longest or sizes[row][0], max(new, sizes[row][1])
        if batch and ((len(batch) + 1) * longest > batch_tokens or (len(batch) + 1) * (new + 1) > places):
            yield batch
            batch, (longest, new) = [], sizes[row]
        batch.append(row)
    if batch:
        yield batch
