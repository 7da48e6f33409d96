"""The `cnnc` command: the table of commands, and what an error looks like."""

from __future__ import annotations

import errno
import warnings
from collections.abc import Callable
from typing import Any

import click

from cnnc import __version__
from cnnc.cli.bench import bench
from cnnc.cli.cache import cache
from cnnc.cli.check import check
from cnnc.cli.compare import compare
from cnnc.cli.compile import compile
from cnnc.cli.export import export
from cnnc.cli.inspect import inspect
from cnnc.cli.run import run
from cnnc.cli.terminal import show_error, show_warning
from cnnc.cli.tune import tune
from cnnc.cli.zoo import zoo
from cnnc.ir.location import CnncError, Diagnostic

INTERRUPTED = 130  # what a shell reports of a program ended by Ctrl-C


class Group(click.Group):
    """A group of commands that shows errors without a traceback, and warnings without code."""

    def invoke(self, ctx: click.Context) -> Any:
        with warnings.catch_warnings():
            warnings.showwarning = _warning_printer()
            return self._invoke(ctx)

    def _invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except CnncError as error:
            show_error(error.render())
        except MemoryError as error:
            why = f": {error}" if str(error) else ""
            help = "take smaller sizes, or fewer images at once"
            show_error(Diagnostic(f"there is not enough memory{why}", help=help).render())
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)
        except OSError as error:
            if error.errno == errno.EPIPE:  # the reader has seen enough: click ends quietly
                raise
            name = f"{error.filename}: " if error.filename else ""
            show_error(f"error: {name}{error.strerror or error}")
        ctx.exit(1)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # as in the table, not by the alphabet


def _warning_printer() -> Callable[..., None]:
    """A `warnings.showwarning` that shows each text once, wherever in the code it comes from."""
    shown: set[str] = set()

    def show(message: Warning | str, *place: object) -> None:
        text = str(message)
        if text not in shown:
            shown.add(text)
            show_warning(text)

    return show


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="cnnc %(version)s")
def main() -> None:
    """A compiler for convolutional networks on CPUs.

    MODEL is the name of a zoo model (see `cnnc zoo`) or a file.

    Exit codes: 0 all is well; 1 the model or its inputs are wrong, or a check failed; 2 the command
    line is wrong.

    \b
    Example:
      cnnc bench resnet50
    """


for command in (compile, run, bench, tune, compare, inspect, check, export, zoo, cache):
    main.add_command(command)
