"""A run: from a recipe to a report, stage by stage, in one folder."""
