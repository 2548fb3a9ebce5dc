"""Tokens: pairs become groups of token ids on disk."""
