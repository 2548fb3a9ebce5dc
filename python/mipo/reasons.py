"""Reasons: why a row is dropped, in the words that tables, manifests and `max_dropped` of a recipe use.

Each stage that drops rows takes its reasons from here, so this is the whole list, in the order of the stages.
"""

import difflib
import re

# Prompts
HALF_CHARACTER = "half of a surrogate pair, which is not a character"
EMPTY_PROMPT = "empty prompt"
NULL_CONTEXT = "null context"
EMPTY_CONTEXT = "empty context"
EQUALS_HELD_OUT = "equals a held-out prompt"
OVERLAPS_HELD_OUT = "overlaps a held-out prompt"

# Negatives
ONE_SENTENCE = "one sentence: no part to keep"

# Responses
REFUSED = "refused by the server"
FILTERED = "stopped by the server's content filter"
TIMED_OUT = "timed out"
SERVER_ERROR = "the server failed"

# Pairs
NO_RESPONSE = "no response"
EMPTY_RESPONSE = "empty response"
EQUAL_RESPONSES = "chosen and rejected are equal"
ANOTHER_SAMPLE = "another sample says more of its prompt"

# Tokens
NO_MESSAGE = "a prompt of no message"
NO_TOKEN = "a response without a token of its own"


def too_long_for_context(tokens: int | None) -> str:
    """A prompt that leaves no room for a response: the model's context has `tokens` for it."""
    return f"longer than the {tokens} tokens that the model's context leaves"


def too_few_counterparts(negatives: int, conditions: list[str]) -> str:
    """A prompt for which fewer than `negatives` other rows satisfy the `conditions`."""
    return f"fewer than {negatives} row{'s' * (negatives > 1)} with {', '.join(conditions)}"


def no_number(column: str) -> str:
    """A row that has no number in the column of `near`."""
    return f"no number in {column}"


def null(side: str) -> str:
    """A pair without its prompt, chosen or rejected response."""
    return f"null {side}"


def long_prompt(tokens: int | None) -> str:
    """A group whose prompt alone is as long as the limit."""
    return f"a prompt of {tokens} tokens or more"


def long_group(tokens: int | None) -> str:
    """A group with a response that ends after the limit."""
    return f"longer than {tokens} tokens"


def is_known(reason: str) -> bool:
    """Whether some stage may drop a row for this reason."""
    numbered = (re.escape(make(7)).replace("7", r"\d+") for make in (too_long_for_context, long_prompt, long_group))
    named = (r"fewer than \d+ rows? with .+", r"no number in .+", r"null (prompt|chosen|rejected)")
    return reason in _constants() or any(re.fullmatch(pattern, reason) for pattern in (*numbered, *named))


def nearest(reason: str) -> str:
    """The reason without numbers or names in it that is most like this one."""
    return max(_constants(), key=lambda other: difflib.SequenceMatcher(None, reason, other).ratio())


def _constants() -> list[str]:
    return [str(value) for name, value in globals().items() if name.isupper()]


def by_frequency(counts: dict[str, int]) -> dict[str, int]:
    """The counts of reasons, the highest first, equal ones in alphabetical order."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
