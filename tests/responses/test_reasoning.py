"""Reasoning: what a model thought is told from its answer, however it is marked, and wherever it was cut."""

import pytest

from mipo.responses.engines.contract import Answer
from mipo.responses.reasoning import split


@pytest.mark.parametrize(
    ("text", "prompt_end", "response", "reasoning", "finish"),
    [
        ("<think>\nhm\n</think>\n\nYes.", "", "Yes.", "hm", "stop"),
        ("hm\n</think>\n\nYes.", "assistant\n<think>\n", "Yes.", "hm", "stop"),  # the template opens it
        ("hm</think>Yes.", "", "Yes.", "hm", "stop"),
        ("<think>\n\n</think>\n\nYes.", "", "Yes.", "", "stop"),  # a model that was told not to think
        ("<think>a</think>b</think>Yes.", "", "Yes.", "a</think>b", "stop"),
        ("<think>\nhm, so", "", "", "hm, so", "length"),  # cut
        ("hm, so", "<think>\n", "", "hm, so", "length"),
        ("Yes.", "", "Yes.", None, "stop"),
        ("Write <think>…</think> around it.", "", "Write <think>…</think> around it.", None, "stop"),
        (None, "<think>", None, None, "stop"),
    ],
)
def test_reasoning_is_told_from_the_answer(text, prompt_end, response, reasoning, finish):
    answer = split(Answer(text), prompt_end=prompt_end)
    assert (answer.response, answer.reasoning, answer.finish_reason) == (response, reasoning, finish)


def test_reasoning_that_the_server_told_apart_is_kept():
    answer = split(Answer("Yes.", reasoning="hm"))
    assert (answer.response, answer.reasoning) == ("Yes.", "hm")
