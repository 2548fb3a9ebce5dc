"""The report: what the figures of a run support, as a page and as a table. Knows no model."""
