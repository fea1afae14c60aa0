"""`python -m pruning_lib`, and the program `pruning-lib`."""

from .pruning_commands import app


def main() -> None:
    """Run the command line."""
    app(prog_name="pruning-lib")


if __name__ == "__main__":
    main()
