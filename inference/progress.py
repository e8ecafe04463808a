"""A progress line for long runs, in terminals and notebooks; through rich, where it is installed."""

from __future__ import annotations

import importlib.util
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engine import Step
    from .infer import Session


class Progress:
    """Shows the step, ESS, finished particles and cost of a run. A context manager around it.

    ``show`` None means: if rich is installed and standard error is a terminal.
    """

    def __init__(self, session: Session, show: bool | None) -> None:
        if show and importlib.util.find_spec("rich") is None:
            raise ImportError("progress=True needs rich: pip install feynkac[progress]")
        if show is None:
            show = sys.stderr.isatty() and importlib.util.find_spec("rich") is not None
        self._session = session
        self._status: Any = None
        if show:
            from rich.console import Console

            self._status = Console(stderr=True).status("starting …")

    def __enter__(self) -> Progress:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def update(self, step: Step) -> None:
        """Show a step."""
        if self._status is not None:
            cost = self._session.ledger.total()
            n = len(step.done)
            used = f"{cost.tokens_out} tokens, " if cost.tokens_out else ""
            self._status.update(
                f"step {step.depth}: ESS {step.ess:.1f} of {n}, {int(step.done.sum())} finished, "
                f"{used}{cost.seconds:.0f} s"
            )
