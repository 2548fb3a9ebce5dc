"""Prompts: reading rows from a file, comparing them, and composing what a model is asked."""
