"""Engines: what answers prompts. One file per engine."""
