"""Prompt log-probs: the request by which a server of vLLM scores a response, and the score in what comes back.

Knows that format. Knows no HTTP.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mipo import reasons
from mipo.errors import InputError
from mipo.responses.engines.contract import Answer, Scoring

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mipo.io.lazy import np

CLAMPED = -9999.0  # what vLLM's server writes for minus infinity, which JSON does not have
ROUNDED = 1e-3  # a log-prob of nearly 0 may be rounded to more


class ScoreBodies:
    """The bodies of the requests that score some rows."""

    path = "completions"  # below the base URL

    def __init__(self, asked: Scoring) -> None:
        self._asked = asked

    def prompts(self, rows: NDArray[np.int64]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Each of the rows, with the part of its body that no other has."""
        return ((row, {"prompt": self._asked.ids(row)}) for row in rows.tolist())

    def of(self, own: dict[str, Any], *, model: str, kind: str) -> dict[str, Any]:
        """The body of a row; `model` is the model's name on the server.

        A new token is asked for, since vLLM refuses 0; and 0 other tokens at each place, which leaves the prompt's own.
        """
        return {"model": model, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0, **own}

    def score(self, row: int, value: Any) -> float | Answer:
        """The log-prob of the row's response in the value of a body that came back, or a failure.

        Raises InputError for a server that gives logits.
        """
        ids = self._asked.ids(row)
        try:
            places = value["choices"][0].get("prompt_logprobs")
            if places is None:  # asked again, it would say the same
                return Answer(failure=reasons.SERVER_ERROR, detail="its answer has no prompt_logprobs")
            if len(places) != len(ids):
                raise ValueError
            logps = [float(places[at][str(ids[at])]["logprob"]) for at in range(self._asked.first(row), len(ids))]
        except (ValueError, LookupError, TypeError, AttributeError):
            shown = (value if isinstance(value, str) else json.dumps(value))[:200]
            detail = f"expected the log-probs of {len(ids):,} tokens, got {shown!r}"
            return Answer(failure=reasons.SERVER_ERROR, detail=detail, final=False)
        if max(logps) > ROUNDED:
            raise InputError(
                f"expected log-probs, got {max(logps):.3f}, as from a server with --logprobs-mode raw_logits; start it "
                "without"
            )
        return sum(logp if logp > CLAMPED else -math.inf for logp in logps)
