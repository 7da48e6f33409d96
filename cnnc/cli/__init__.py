"""The command line. Each command is one file and one line in `app.py`.

Modules here import click alone; the compiler is imported when a command runs, so that `cnnc --help`
answers at once.
"""

from cnnc.cli.app import main

__all__ = ["main"]
