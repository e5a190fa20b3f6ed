"""`python -m labkit` is the command line too, for an interpreter whose scripts are not on PATH."""

from labkit.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
