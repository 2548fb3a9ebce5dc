"""Pairing: prompts, counterparts and responses become pairs of chosen and rejected responses."""
