"""`python -m mlc`, the same as the `mlc` command."""

from mlc.cli.main import run

if __name__ == "__main__":
    run()
