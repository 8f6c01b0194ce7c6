"""How tensors are stored: forms, entropy coding, and the container `weights.swz`."""
