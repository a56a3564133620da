"""From a source to a long-tailed split on disk."""
