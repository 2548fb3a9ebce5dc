"""Engines: programs that answer prompts, one file per engine."""
