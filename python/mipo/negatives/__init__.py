"""Negatives: which other prompt each rejected response answers. The one idea of the method."""
