"""Which candidates are kept: scores, duplicates, selection."""
