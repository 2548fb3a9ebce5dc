"""Negatives: which other prompt each rejected response answers. The method's one idea."""
