"""Negatives: which other prompt each rejected response answers, drawn by `mipo.contrast`. The idea of the method."""
