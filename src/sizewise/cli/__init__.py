"""The command line: one file per subcommand; importing it does not import torch."""
