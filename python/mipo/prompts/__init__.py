"""Prompts: the rows of a file, what counts as the same among them, and how they become what a model is asked."""
