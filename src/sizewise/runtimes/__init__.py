"""One file per runtime; the file's name is the runtime's name."""
