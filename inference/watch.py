"""Watch a run: the texts of its heaviest particles as they grow."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any, NamedTuple

from .base.interrupts import noticing
from .base.progress import in_notebook, live
from .base.weights import normalize
from .drawing.views import plain, rows
from .results.posterior import Posterior
from .session import Session


def watch(
    run: Session,
    *,
    lines: int = 3,
    width: int = 100,
    every: int = 1,
    write: Callable[[str], Any] | None = None,
) -> Posterior:
    """Drive a run of `steps` to its end, show its heaviest texts after each wave, and return the posterior.

    A notebook has one display that changes; elsewhere each wave is printed, a line for each text: its weight, and
    its end. Texts that several particles have are one, with their weight together. Waves that change nothing of this
    are left out. Ctrl-C ends the run, as in `infer`.

    Args:
        run: what `steps` returned; waves that it has made already are not made again.
        lines: texts to show.
        width: characters of a text.
        every: waves from one picture to the next.
        write: takes what is shown, such as ``logger.info``; None is the display, or print.

    Raises ValueError for lines, width or every below 1.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def spell():
    ...     for letters in ("fk", "ea", "yr"):
    ...         letter = await fk.sample("letter", fk.dist.Categorical([0.5, 0.5], values=list(letters)))
    ...         await fk.factor("G", 9.0 if letter in "fey" else 0.0)
    >>> posterior = fk.watch(fk.steps(spell(), fk.SMC(50), seed=0), lines=1)
    step 0, ESS 54%
      1.000  f
    step 1, ESS 38%
      1.000  fe
    step 2, ESS 52%, finished
      1.000  fey
    """
    if min(lines, width, every) < 1:
        raise ValueError(f"lines, width and every are positive numbers, not {lines}, {width} and {every}")
    display: Any = None
    seen: _Seen | None = None
    wave = 0
    try:
        with noticing(run.interrupt):
            while run.wave() is not None:
                wave += 1
                if not run.begun or (wave % every and not run.over):
                    continue
                before, seen = seen, _seen(run, lines, width)
                if seen == before:
                    continue
                if write is not None or not in_notebook():
                    (write or print)(str(seen))
                elif display is None:
                    display = live(seen)
                else:
                    display.update(seen)
    except KeyboardInterrupt:
        if not run.begun:
            raise
        run.stop("interrupted")
    return run.posterior


class _Seen(NamedTuple):
    """What is shown of a run after a wave: a heading, and texts with their weights."""

    heading: str
    texts: list[tuple[float, str]]

    def __str__(self) -> str:
        return "\n".join([self.heading, *(f"  {weight:.3f}  {plain(text)}" for weight, text in self.texts)])

    def _repr_html_(self) -> str:
        rows = "".join(
            f'<div style="padding-left:.6em"><b>{weight:.3f}</b>  {escape(text)}</div>' for weight, text in self.texts
        )
        style = "font:13px/1.5 system-ui,sans-serif;white-space:pre-wrap;overflow-wrap:anywhere"
        return f'<div style="{style}">{escape(self.heading)}{rows}</div>'


def _seen(run: Session, lines: int, width: int) -> _Seen:
    """Return the texts of largest weight, each by its end."""
    posterior = run.posterior
    totals: dict[str, float] = {}
    for i, weight in enumerate(normalize(posterior.log_weights).tolist()):
        told = [row.text for row in rows(*posterior._locate(i))] if weight else []
        text = (", " if any(" = " in part for part in told) else "").join(told)
        totals[text] = totals.get(text, 0.0) + weight
    heaviest = sorted(totals.items(), key=lambda item: -item[1])[:lines]
    last = max((len(chain.steps) for chain in posterior.chains), default=0) - 1
    ended = ", finished" if run.over else ""
    return _Seen(
        f"step {last}, ESS {posterior.ess / len(posterior):.0%}{ended}",
        [(weight, _end(text, width)) for text, weight in heaviest if weight],
    )


def _end(text: str, width: int) -> str:
    text = text.replace("\n", "⏎")
    return text if len(text) <= width else "…" + text[len(text) - width + 1 :]
