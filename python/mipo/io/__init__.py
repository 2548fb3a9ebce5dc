"""Files and tables: reading rows, looking them up, and writing them whole. Knows nothing of what they mean."""
