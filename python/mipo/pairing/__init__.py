"""Pairing: joins prompts, counterparts and responses into pairs of chosen and rejected responses."""
