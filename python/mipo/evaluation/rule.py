"""The rule: answers judged by a regular expression. It only measures; training never sees it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal

from mipo.errors import InputError

# "$-1,234.50", "18", ".5", "12 %": commas only where thousands have them, so that "1,2" and "3 4" are no numbers.
_NUMBER = re.compile(r"(?P<sign>[-+−$€£\s]*)(?P<digits>(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)\s*%?")


def judge(
    responses: Sequence[str], answers: Sequence[str], patterns: str | Sequence[str]
) -> tuple[list[bool], list[bool]]:
    """Whether each response is right, and whether it is malformed.

    A pattern (one for all, or one a response) is a regular expression with a group `answer`, and its first match
    counts; a response without one is malformed, and never right. The group is compared with the answer, in which the
    pattern is looked for too: as numbers where both are ("$1,234.0" is 1234), otherwise as text without case, outer
    white space and a final stop. Raises ValueError for a pattern that is none or has no such group, and for a missing
    answer, with the row.
    """
    each = [patterns] * len(responses) if isinstance(patterns, str) else patterns
    right, malformed = [], []
    for row, (response, answer, pattern) in enumerate(zip(responses, answers, each, strict=True), start=1):
        if answer is None:
            raise InputError(f"row {row}: no answer to judge by; give every held-out row one, or drop it")
        rule = compile_rule(pattern, row)
        found, given = _answer(rule, response), _answer(rule, answer)
        malformed.append(found is None)
        right.append(found is not None and _plain(found) == _plain(answer if given is None else given))
    return right, malformed


def compile_rule(pattern: str, row: int) -> re.Pattern[str]:
    """The pattern compiled; ValueError names the row where it is none, or has no group `answer`."""
    try:
        rule = re.compile(pattern)
    except (re.error, TypeError) as error:
        raise InputError(f"row {row}: pattern {pattern!r} is no regular expression ({error})") from None
    if "answer" not in rule.groupindex:
        raise InputError(f"row {row}: pattern {pattern!r} has no group `answer`; write (?P<answer>…) around the answer")
    return rule


def _answer(rule: re.Pattern[str], text: str) -> str | None:
    found = rule.search(text.strip())
    return found["answer"] if found else None


def _plain(text: str) -> Decimal | str:
    """A number where the text is one (currency, % and thousands' commas aside), else the text without case."""
    bare = text.strip().rstrip(".").strip()
    number = _NUMBER.fullmatch(bare)
    if number is None:
        return bare.casefold()
    return Decimal(number["digits"].replace(",", "")) * (-1 if re.search("[-−]", number["sign"]) else 1)
