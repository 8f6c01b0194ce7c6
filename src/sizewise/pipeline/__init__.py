"""From a task and a budget to a bundle."""
