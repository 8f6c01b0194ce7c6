"""Reference model families at any scale, in torch alone."""
