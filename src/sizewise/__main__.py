"""`python -m sizewise` is the command line."""

from sizewise.cli.main import main

main()
