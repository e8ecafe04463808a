"""A progress bar of one line for long runs: in notebooks by their own displays, in terminals through rich."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import time
from collections.abc import Callable
from html import escape
from typing import Any, NamedTuple

_EVERY = 0.2
"""Seconds before a notebook shows a run, and between two pictures of it."""


class Progress:
    """Shows how far a run has come: ``describe()`` gives what is done, of how much, and a line. A context manager.

    ``show`` None means: where somebody watches, in a notebook (Jupyter, VS Code, …) or, if rich is installed, in a
    terminal. Elsewhere nothing is written. The line is gone when the run is over.

    Raises ImportError where it is asked for, and rich is missing outside of a notebook.
    """

    def __init__(self, describe: Callable[[], tuple[int, int, str]], show: bool | None) -> None:
        self._notebook = in_notebook()
        installed = self._notebook or importlib.util.find_spec("rich") is not None
        if show and not installed:
            raise ImportError("progress=True needs rich: pip install feynkac[progress]")
        self._describe = describe
        self._bar: Any = None
        self._shown = installed and (sys.stderr.isatty() or self._notebook) if show is None else show

    def __enter__(self) -> Progress:
        if self._shown:
            self._bar = _Cell() if self._notebook else _Terminal()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.end()

    @property
    def shown(self) -> bool:
        """Whether anybody sees it."""
        return self._shown

    def update(self) -> None:
        """Show where the run stands."""
        if self._bar is not None:
            self._bar.show(self._describe)


class _Terminal:
    """rich's bar, on the standard error."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (BarColumn(bar_width=24), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
        console = Console(stderr=True, force_jupyter=False)
        self._bar = Progress(*columns, console=console, transient=True)
        self._bar.start()
        self._task = self._bar.add_task("starting", total=1)

    def show(self, describe: Callable[[], tuple[int, int, str]]) -> None:
        done, total, text = describe()
        self._bar.update(self._task, description=text, completed=done, total=total)

    def end(self) -> None:
        self._bar.stop()


class _Cell:
    """One display of a notebook that changes, which needs no widgets."""

    def __init__(self) -> None:
        self._began = self._last = time.monotonic()
        self._display: Any = None

    def show(self, describe: Callable[[], tuple[int, int, str]]) -> None:
        now = time.monotonic()
        if now - self._last < _EVERY:
            return
        self._last, line = now, _Line(*describe(), now - self._began)
        if self._display is None:
            self._display = live(line)
        else:
            self._display.update(line)

    def end(self) -> None:
        if self._display is not None:
            self._display.update(_Line(0, 0, "", 0.0))


class _Line(NamedTuple):
    """What a notebook shows of a run; nothing where there is no text."""

    done: int
    total: int
    text: str
    seconds: float

    def __repr__(self) -> str:
        return f"{self.text}, {self.seconds:.0f} s" if self.text else ""

    def _repr_html_(self) -> str:
        if not self.text:
            return "<span></span>"
        return (
            f'<progress value="{self.done}" max="{max(self.total, 1)}" style="width:12em;vertical-align:middle">'
            f'</progress> <span style="font:13px system-ui,sans-serif">{escape(repr(self))}</span>'
        )


def live(first: Any) -> Any:
    """Show something in a notebook's cell, and return the handle whose ``update`` shows another in its place."""
    return importlib.import_module("IPython.display").display(first, display_id=True)


def in_notebook() -> bool:
    """Return whether a kernel runs this: that somebody has imported one is not enough."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")
