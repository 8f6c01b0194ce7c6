"""What to try next, and which of the tried are best."""
