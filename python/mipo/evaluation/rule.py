"""The rule: a regular expression that reads an answer from each response. It only measures; training never sees it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Annotated

from msgspec import Meta

from mipo.errors import InputError
from mipo.io.records import Record, Text

# "$-1,234.50", "18", ".5", "12 %", "3/4": commas only between thousands, so that "1,2" and "3 4" are not numbers.
_DIGITS = r"(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)"
_NUMBER = re.compile(rf"(?P<sign>[-+−$€£\s]*)(?P<over>{_DIGITS})(?:\s*/\s*(?P<under>{_DIGITS}))?\s*%?")
_UNIT = re.compile(r"(?P<number>.*[\d%])\s*(?P<unit>[^\W\d]+(?: [^\W\d]+)?)", re.DOTALL)  # "72 dollars", "12km"
_BOXED = re.compile(r"\\(?:boxed|fbox|text|textbf|mathbf|mathrm)\s*\{(.*)\}", re.DOTALL)
# What stands around an answer and is none of it: marks of Markdown and TeX, quotes, brackets, stops.
_BEFORE, _AFTER = " \t\r\n*_`\"'“‘([{", " \t\r\n*_`\"'”’)]}.,;:!?"


class Rule(Record, frozen=True, kw_only=True, omit_defaults=True):
    """Where the right answers are, and how to read one from a response: with `pattern` or with `pattern_column`."""

    answer: Annotated[Text, Meta(description="column with the right answer", examples=["answer"])]
    pattern: Annotated[
        Text | None,
        Meta(
            description="regular expression with a group `answer` that a response must match",
            examples=[r"####\s*(?P<answer>\S+)"],
        ),
    ] = None
    pattern_column: Annotated[Text | None, Meta(description="column with such an expression for each row")] = None

    def __post_init__(self) -> None:
        if self.pattern is not None and self.pattern_column is not None:
            raise InputError("pattern_column: expected none beside a pattern; leave one of them out")
        if self.pattern is None and self.pattern_column is None:
            raise InputError("pattern: is missing; expected a regular expression here, or pattern_column")
        if self.pattern is not None:
            compile_rule(self.pattern, "pattern")


def judge(
    responses: Sequence[str], answers: Sequence[str], patterns: str | Sequence[str]
) -> tuple[list[bool], list[bool]]:
    """Whether each response is right, and whether it is malformed.

    A pattern (one for all, or one per response) is a regular expression with a group `answer`; its first match counts.
    A response without a match is malformed, and never right. The group is compared with the right answer, which may
    match the pattern itself, without what stands around an answer ("**72**,", "\\boxed{72}", "(72)"): as numbers where
    both are numbers ("$1,234.0" is 1234, "72/3" is 24; a unit that only one has is passed over), otherwise as text
    without case. Raises InputError, with the row, for an invalid pattern, one without the group,
    and a missing answer.
    """
    patterns = [patterns] * len(responses) if isinstance(patterns, str) else patterns
    right, malformed = [], []
    for row, (response, answer, pattern) in enumerate(zip(responses, answers, patterns, strict=True), start=1):
        if answer is None:
            raise InputError(f"row {row}: expected an answer to judge by, got none; add one, or drop the row")
        rule = compile_rule(pattern, f"row {row}: pattern")
        extracted, expected = _answer(rule, response), _answer(rule, answer)
        malformed.append(extracted is None)
        right.append(extracted is not None and _same(extracted, answer if expected is None else expected))
    return right, malformed


def compile_rule(pattern: str, at: str) -> re.Pattern[str]:
    """The compiled pattern. Raises InputError, which names `at`, if it is invalid or has no group `answer`."""
    try:
        rule = re.compile(pattern)
    except (re.error, TypeError, OverflowError, RecursionError) as error:
        raise InputError(f"{at}: expected a regular expression, got {pattern!r} ({error})") from None
    if "answer" not in rule.groupindex:
        raise InputError(f"{at}: expected a group `answer`, written (?P<answer>…), got {pattern!r}")
    return rule


def _answer(rule: re.Pattern[str], text: str) -> str | None:
    match = rule.search(text.strip())
    return match["answer"] if match else None


def _same(one: str, other: str) -> bool:
    """Whether two answers are the same number, or the same text."""
    (number, unit), (second, other_unit) = _plain(one), _plain(other)
    return number == second and (unit == other_unit or not unit or not other_unit)


def _plain(text: str) -> tuple[Fraction | str, str]:
    """The number that a text is (without currency, % and commas between thousands) and its unit, else the text."""
    bare = _bare(text)
    whole, unit = _NUMBER.fullmatch(bare), ""
    if whole is None and (measured := _UNIT.fullmatch(bare)):
        whole, unit = _NUMBER.fullmatch(measured["number"]), measured["unit"].casefold()
    if whole is None:
        return bare.casefold(), ""
    over, under = (Fraction((whole[name] or "1").replace(",", "")) for name in ("over", "under"))
    if not under:
        return bare.casefold(), ""
    return over / under * (-1 if re.search("[-−]", whole["sign"]) else 1), unit


def _bare(text: str) -> str:
    """The text without what stands around an answer."""
    text = text.replace("\\$", "$")
    while True:
        boxed = _BOXED.fullmatch(text.strip().strip("$"))
        bare = boxed[1] if boxed else text.lstrip(_BEFORE).rstrip(_AFTER)
        if "$" in bare[1:] and bare.endswith("$"):  # $72$ is TeX, $72 is money
            bare = bare.strip("$")
        if bare == text:
            return bare
        text = bare
