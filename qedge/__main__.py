"""`python -m qedge` is the command line."""

from qedge.cli import main

main()
