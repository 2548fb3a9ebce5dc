"""Files and tables: how rows come in, are held apart and are written whole. Knows nothing of what they mean."""
