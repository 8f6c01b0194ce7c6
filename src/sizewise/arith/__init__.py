"""Pure tensor mathematics: knows tensors, no modules and no graphs."""
