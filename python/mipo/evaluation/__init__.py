"""Evaluation: how much a model's responses say about their prompts, and what training changed, with intervals."""

from mipo.evaluation.bounds import Information, information
from mipo.evaluation.rule import judge

__all__ = ["Information", "information", "judge"]
