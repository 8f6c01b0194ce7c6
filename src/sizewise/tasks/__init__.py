"""Tasks: candidates, data, metric; the built-in ones."""
