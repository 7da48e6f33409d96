"""`python -m cnnc` is the `cnnc` command."""

from cnnc.cli import main

if __name__ == "__main__":
    main()
