"""Reasoning: tells what a model thought aloud from its answer. Knows the marks that models use, and no engine."""

from __future__ import annotations

from dataclasses import replace

from mipo.responses.engines.contract import Answer

BEGIN, END = "<think>", "</think>"


def split(answer: Answer, *, prompt_end: str = "") -> Answer:
    """The answer with its reasoning apart: all up to the last `</think>`.

    `prompt_end` is the end of the rendered prompt, which may open the reasoning itself. An answer that was cut within
    its reasoning has no response: it is empty, and truncated. Text without marks is left as it is.
    """
    text = answer.response
    if text is None:
        return answer
    begun = text.lstrip().startswith(BEGIN) or prompt_end.rstrip().endswith(BEGIN)
    if END not in text:
        if not begun:
            return answer
        thought = text.lstrip().removeprefix(BEGIN)
        return replace(answer, response="", reasoning=_joined(answer.reasoning, thought), finish_reason="length")
    if not begun and BEGIN in text[: text.index(END)]:
        return answer  # an answer that speaks of the marks
    thought, _, response = text.rpartition(END)
    thought = thought.lstrip().removeprefix(BEGIN)
    return replace(answer, response=response.lstrip("\n"), reasoning=_joined(answer.reasoning, thought))


def _joined(*thoughts: str | None) -> str:
    return "\n".join(thought.strip() for thought in thoughts if thought)
