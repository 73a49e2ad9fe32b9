"""`python -m recray` is the `recray` command."""

from recray.cli import main

if __name__ == "__main__":
    main()
