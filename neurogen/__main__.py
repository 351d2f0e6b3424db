"""`python -m neurogen` is the command `neurogen`."""

import sys

EXIT_INTERRUPTED = 130


def run() -> None:
    """The command line; Ctrl-C while it is still being imported ends without a traceback."""
    try:
        from neurogen.cli import main

        main(prog_name="neurogen")
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    run()
