"""Running commands in this process, without a terminal."""

from __future__ import annotations

from click.testing import CliRunner, Result

from cnnc.cli import main


def call(*args: object) -> Result:
    """What a command says, and its exit code; arguments are taken by their text."""
    return CliRunner().invoke(main, [str(arg) for arg in args])


def good(*args: object) -> str:
    """The stdout of a command that must succeed."""
    result = call(*args)
    assert result.exit_code == 0, result.output
    return result.stdout


def bad(code: int, *args: object) -> str:
    """The stderr of a command that must fail with that exit code, and without a traceback."""
    result = call(*args)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.stderr and "error" in result.stderr.lower()
    return result.stderr
