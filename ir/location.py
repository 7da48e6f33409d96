"""Where things come from, and how errors are told.

Everything a user meets as an error is a `CnncError` that carries one or more `Diagnostic`s. A
diagnostic names the place, the reason and, where there is one, the fix:

    unet.cnn:3:24: error[E0207]: cannot concatenate: dimension H differs (71 vs 70)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, order=True)
class Location:
    """A place in a source file, and the name that the source gives to what stands there.

    Lines and columns count from 1; 0 means unknown. `end_column` is exclusive.
    """

    file: str = ""
    line: int = 0
    column: int = 0
    end_column: int = 0
    name: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        if self.name and place:
            return f"{place} ({self.name})"
        return self.name or place or "<unknown>"


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One problem: what is wrong, where, why (`notes`, outermost last) and how to mend it."""

    message: str
    location: Location = field(default_factory=Location)
    code: str = ""
    label: str = ""
    notes: tuple[str, ...] = ()
    help: str = ""
    severity: str = "error"

    def render(self, source: str | None = None) -> str:
        """The diagnostic as text, with the source line and a caret where `source` is given."""
        code = f"[{self.code}]" if self.code else ""
        lines = [f"{self.severity}{code}: {self.message}"]
        at = self.location
        gutter = " " * max(len(str(at.line)), 1)
        if at.file or at.line:
            lines.append(
                f"{gutter}--> {at.file}:{at.line}:{at.column}" if at.line else f" --> {at}"
            )
        if source is not None and at.line:
            lines += _excerpt(source, at, self.label, gutter)
        elif self.label:
            lines.append(f"{gutter} | {self.label}")
        lines += [f"{gutter} = note: {note}" for note in self.notes]
        if self.help:
            lines.append(f"{gutter} = help: {self.help}")
        return "\n".join(lines)


def _excerpt(source: str, at: Location, label: str, gutter: str) -> list[str]:
    rows = source.splitlines()
    text = rows[at.line - 1] if at.line <= len(rows) else ""
    # Tabs keep their width so that the caret stands under what it means.
    lead = "".join("\t" if c == "\t" else " " for c in text[: at.column - 1])
    carets = "^" * max(min(at.end_column, len(text) + 1) - at.column, 1)
    return [
        f"{gutter} |",
        f"{at.line} | {text}",
        f"{gutter} | {lead}{carets} {label}".rstrip(),
    ]


class CnncError(Exception):
    """The base of every error that cnnc raises on purpose.

    `diagnostics` holds them all, most important first; `str(error)` is their rendering against
    `sources` (file name -> text), so that an uncaught error already reads well.
    """

    def __init__(
        self,
        problems: str | Diagnostic | Iterable[Diagnostic],
        sources: dict[str, str] | None = None,
    ) -> None:
        if isinstance(problems, str):
            problems = Diagnostic(problems)
        if isinstance(problems, Diagnostic):
            problems = (problems,)
        self.diagnostics: Sequence[Diagnostic] = tuple(problems)
        self.sources = sources or {}
        super().__init__(self.render())

    def render(self) -> str:
        """All diagnostics as text, a blank line between them."""
        return "\n\n".join(d.render(self.sources.get(d.location.file)) for d in self.diagnostics)


class ShapeError(CnncError):
    """Shapes, ranks or element types that do not fit together; raised when an op is wired."""


class ParseError(CnncError):
    """A source file or text form that cannot be read."""


class VerifyError(CnncError):
    """A graph that breaks an invariant of `cnnc.ir.verify`."""


class PassError(CnncError):
    """A pass that cannot do its work, or a pipeline text that cannot be read."""


class OptionError(CnncError, ValueError):
    """An option, name or setting that cnnc does not know."""


class InputError(CnncError, ValueError):
    """Arrays given at run time that do not fit the model's inputs."""


def suggest(word: str, known: Iterable[str]) -> str:
    """Help for an unknown word: the nearest known one, else all of them, or some of very many."""
    from difflib import get_close_matches  # only errors need it

    names = sorted(known)
    close = get_close_matches(word, names, n=1)
    if close:
        return f"did you mean `{close[0]}`?"
    if len(names) > 40:
        names = [*names[:12], f"... ({len(names)} in all)"]
    return f"known: {', '.join(names)}" if names else ""
