"""Engines: what answers prompts, a file per engine; `contract` says what an engine is.

An engine gets prompts that have no answer yet and yields answers as they come, in any order. What is kept of them, and
that nothing is asked twice, is the work of `mipo.responses.generation` and `mipo.responses.answers`.
"""
