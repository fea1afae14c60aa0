"""`python -m pruning_lib`, and the program `pruning-lib`; see `commands`."""

from .commands import main

if __name__ == "__main__":
    main()
