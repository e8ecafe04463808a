"""What calibration found: ranks, their χ² tests, and pictures of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...ppl.model import Floats
from ..base.step import freeze
from .chi_squared import chi2_tail, chi2_threshold

LIKELIHOOD = "log p(y|θ)"
RATE = 2e-5
"""How often the test of a quantity rejects an engine that is right."""
_APART = 4.265
"""|z| of a normal that is exceeded as often."""
_FEW = 5


class Row(NamedTuple):
    """A quantity of a `Calibration`.

    Attributes:
        name: of the quantity.
        chi2: Σ (count − expected)² / expected over the bins.
        p_value: of ``chi2`` for uniform ranks.
        location: z-score of the mean rank; positive where the engine's draws are too low.
        spread: z-score of the ranks' variance; positive where the engine's posterior is too narrow.
        ok: whether ``chi2`` is below the threshold.
    """

    name: str
    chi2: float
    p_value: float
    location: float
    spread: float
    ok: bool


@dataclass(frozen=True, repr=False)
class Calibration:
    """Ranks of simulated quantities among an engine's posterior draws. Made by `calibrate`.

    Attributes:
        names: Q quantities; the last is log p(y|θ).
        ranks: (Q, M) in 0…draws, of M simulations.
        draws: L, of each posterior.
        bins: of the χ² test.
        ess: (M,) effective sample size of each posterior.
        engine: the engine and its settings, n among them.
        program: the program and its arguments.
        seed: the seed.
        stopped: "interrupted" where Ctrl-C ended it, or None.
    """

    names: tuple[str, ...]
    ranks: NDArray[np.int64]
    draws: int
    bins: int
    ess: Floats
    engine: str
    program: str
    seed: int
    stopped: str | None = None

    def __post_init__(self) -> None:
        freeze(self, "ranks", "ess")

    def __len__(self) -> int:
        return int(self.ranks.shape[1])

    @property
    def threshold(self) -> float:
        """χ² above which a right engine is rejected with probability 2e-5: 55.43 for 20 bins."""
        return chi2_threshold(self.bins - 1, RATE)

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """How many ranks fall into each bin, (Q, bins)."""
        place = self.ranks * self.bins // (self.draws + 1)
        return np.stack([np.bincount(line, minlength=self.bins) for line in place])

    @property
    def ok(self) -> bool:
        """Whether no quantity is rejected."""
        return all(row.ok for row in self.table())

    def table(self) -> tuple[Row, ...]:
        """Return a row for each quantity, in order."""
        return self._rows

    @cached_property
    def _rows(self) -> tuple[Row, ...]:
        m, expected = len(self), len(self) / self.bins
        # Place ranks in (0, 1), where uniform ones have this variance, and their squared deviations this one.
        x = (self.ranks + 0.5) / (self.draws + 1) - 0.5
        grid = (np.arange(self.draws + 1) + 0.5) / (self.draws + 1) - 0.5
        variance, fourth = float((grid**2).mean()), float((grid**4).mean())
        rows = []
        for name, line, counts in zip(self.names, x, self.counts):
            chi2 = float(((counts - expected) ** 2).sum() / expected)
            spread = ((line**2).mean() - variance) / math.sqrt(max(fourth - variance**2, 1e-300) / m)
            location = float(line.mean() / math.sqrt(variance / m))
            ok = chi2 <= self.threshold
            rows.append(Row(name, chi2, chi2_tail(chi2, self.bins - 1), location, float(spread), ok))
        return tuple(rows)

    def band(self, level: float = 0.95) -> Floats:
        """Return the half-width of a simultaneous band for the ECDF minus uniform, at each rank, (draws + 1,).

        Found from 400 simulations of uniform ranks, in units of the standard error at each rank: Säilynoja, Bürkner and
        Vehtari (2022), doi:10.1007/s11222-022-10090-6.
        """
        rng = np.random.default_rng(0)
        t = (np.arange(self.draws) + 1) / (self.draws + 1)
        error = np.sqrt(t * (1 - t) / len(self))
        counts = rng.multinomial(len(self), np.full(self.draws + 1, 1 / (self.draws + 1)), 400)
        gaps = np.abs(counts[:, :-1].cumsum(1) / len(self) - t) / error
        width = float(np.quantile(gaps.max(1), level))
        return np.append(width * error, 0.0)

    def plot(self, *, figsize: tuple[float, float] | None = None) -> Any:
        """Draw for each quantity its rank histogram, and its ECDF minus uniform, with 95% bands; return the figure.

        Ranks heaped at both ends say that the posterior is too narrow, in the middle too wide; sloping ones that its
        draws are too low or too high. Needs matplotlib (``pip install feynkac[plots]``).
        """
        from .plot_ranks import plot_ranks

        return plot_ranks(self, figsize)

    # -- showing ------------------------------------------------------------------------------------------------

    def _verdict(self, row: Row) -> str:
        if row.ok:
            return "ok"
        told = []
        if abs(row.location) > _APART:
            told.append("draws too low" if row.location > 0 else "draws too high")
        if abs(row.spread) > _APART:
            told.append("too narrow" if row.spread > 0 else "too wide")
        return f"rejected: {', '.join(told) or 'ranks not uniform'}"

    def _notes(self) -> list[str]:
        notes = [
            f"{self.engine}; {len(self)} simulations × {self.draws} draws, mean ESS {np.mean(self.ess):.1f}; χ² of "
            f"{self.bins} bins rejects above {self.threshold:.2f} (false alarm {RATE:g} for each quantity)"
        ]
        if len(self) < _FEW * self.bins:
            notes.append(f"χ² wants {_FEW * self.bins} simulations or more for {self.bins} bins")
        short = float((self.ess < self.draws).mean())
        if short > 0.1:
            notes.append(
                f"in {short:.0%} of the simulations the ESS is below the {self.draws} draws: what is rejected may be "
                "that roughness; use more particles or sweeps, or fewer draws"
            )
        if self.stopped:
            notes.append(f"stopped: {self.stopped}")
        return notes

    def _cells(self) -> list[tuple[str, str, str, str]]:
        return [(row.name, f"{row.chi2:.1f}", f"{row.p_value:.2g}", self._verdict(row)) for row in self.table()]

    def __repr__(self) -> str:
        lines = [("quantity", "χ²", "p", ""), *self._cells()]
        widths = [max(map(len, column)) for column in zip(*lines)]
        shown = [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {d}".rstrip() for a, b, c, d in lines]
        return "\n".join([*shown, *self._notes()])

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{cell}</th>" for cell in ("quantity", "χ²", "p", ""))
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>" for line in self._cells()
        )
        notes = "".join(f"<div>{escape(note)}</div>" for note in self._notes())
        return (
            f"<div><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
            f'<div style="font-size:.85em;opacity:.8">{notes}</div></div>'
        )
