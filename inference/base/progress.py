"""A progress bar for long runs, in terminals and notebooks; through rich, where it is installed."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from typing import Any


class Progress:
    """Shows how far a run has come: ``describe()`` gives what is done, of how much, and a line. A context manager.

    ``show`` None means: if rich is installed and somebody watches, in a terminal or a notebook. A notebook without
    ipywidgets gets a line of text.
    """

    def __init__(self, describe: Callable[[], tuple[int, int, str]], show: bool | None) -> None:
        installed = importlib.util.find_spec("rich") is not None
        if show and not installed:
            raise ImportError("progress=True needs rich: pip install feynkac[progress]")
        notebook = _in_notebook()
        self._describe = describe
        self._bar: Any = None
        self._line = notebook and importlib.util.find_spec("ipywidgets") is None
        self._shown = installed and (sys.stderr.isatty() or notebook) if show is None else show

    def __enter__(self) -> Progress:
        if self._shown and not self._line:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar

            columns = (BarColumn(bar_width=24), TextColumn("{task.description}"), TimeElapsedColumn())
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task("starting", total=1)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._shown:
            print(file=sys.stderr)

    @property
    def shown(self) -> bool:
        """Whether anybody sees it."""
        return self._shown

    def update(self) -> None:
        """Show where the run stands."""
        if not self._shown:
            return
        done, total, text = self._describe()
        if self._bar is None:
            print(f"\r{text:<79}", end="", file=sys.stderr)
        else:
            self._bar.update(self._task, description=text, completed=done, total=total)


def _in_notebook() -> bool:
    """Return whether a kernel runs this: that somebody has imported one is not enough."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")
