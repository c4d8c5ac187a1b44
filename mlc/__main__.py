"""The `mlc` command, also `python -m mlc`.

Until the command line is loaded, Ctrl-C ends the process as it ends a program in C: Python's own way
is a traceback from the middle of an import.
"""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)


def main() -> None:
    """Run the command line, and exit."""
    from mlc.cli.main import run

    run()


if __name__ == "__main__":
    main()
