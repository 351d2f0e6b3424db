"""`python -m neurogen` is the command `neurogen`."""

from neurogen.cli import main

main(prog_name="neurogen")
