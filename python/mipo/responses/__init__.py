"""Responses: the model answers each distinct prompt once."""
