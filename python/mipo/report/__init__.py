"""The report: what the numbers of a run allow to be said, as a page and as a table. Knows no model."""
