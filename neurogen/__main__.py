"""`python -m neurogen` is the command `neurogen`, and `run` is what the command starts with. Imports nothing first."""

import sys

EXIT_INTERRUPTED = 130


def run() -> None:
    """The command line; Ctrl-C while it is still being imported ends without a traceback."""
    try:
        from neurogen.cli import main  # here, since this takes a while

        main(prog_name="neurogen")
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    run()
