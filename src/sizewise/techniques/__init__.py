"""One file per technique; the file's name is the technique's name."""
