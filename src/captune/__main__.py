"""`python -m captune`: the command line."""

from captune.cli import main

main()
