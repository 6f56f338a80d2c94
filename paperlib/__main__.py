"""Run the command line as ``python -m paperlib``."""

from paperlib.cli import main

if __name__ == "__main__":
    main()
