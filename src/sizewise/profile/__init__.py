"""What a model costs: static counts and measured time."""
