"""Evaluation: how much a model's responses tell of their prompts, and what training moved, each with its interval."""

from mipo.evaluation.bounds import Information, information

__all__ = ["Information", "information"]
