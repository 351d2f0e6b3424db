"""The command line. Only this package prints, and only it turns errors into messages and exit codes."""

from neurogen.cli.program import main

__all__ = ["main"]
