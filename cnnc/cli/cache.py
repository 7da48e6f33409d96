"""`cnnc cache`: what is kept of compiled models."""

from __future__ import annotations

import click

from cnnc.cli.settings import color_option, json_option
from cnnc.cli.terminal import show_json, show_table


@click.command()
@click.option("--clear", is_flag=True, help="Remove everything from the cache.")
@json_option
@color_option
def cache(clear: bool, as_json: bool) -> None:
    """Show the cache of compiled models, or clear it.

    The cache is in $XDG_CACHE_HOME/cnnc, by default ~/.cache/cnnc. What was not used for longest is
    removed when it grows beyond 2 GB. Removing anything does no harm: it is compiled again.

    \b
    Example:
      cnnc cache
      cnnc cache --clear
    """
    from cnnc.cache import open_cache
    from cnnc.report import megabytes

    found = open_cache()
    if clear:
        freed = found.clear()
        if as_json:
            show_json({"folder": str(found.folder), "freed_bytes": freed})
        else:
            click.echo(f"{found.folder}: removed {megabytes(freed)}")
        return
    entries = found.entries()
    total = sum(entry.bytes for entry in entries)
    if as_json:
        models = [{"model": e.model, "bytes": e.bytes, "used": e.used} for e in entries]
        show_json({"folder": str(found.folder), "bytes": total, "models": models})
        return
    count = "1 model" if len(entries) == 1 else f"{len(entries)} models"
    click.echo(f"{found.folder}: {count}, {megabytes(total)}")
    if entries:
        from datetime import datetime

        from cnnc.report import table

        rows = [
            (entry.model, megabytes(entry.bytes), f"{datetime.fromtimestamp(entry.used):%F %T}")
            for entry in entries
        ]
        show_table(table(("model", "size", "last used"), rows))
