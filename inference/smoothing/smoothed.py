"""What smoothing gives: a posterior of whole trajectories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...ppl.model import Floats
from ..results.columns.latents import visits_of
from ..results.posterior import Posterior

Method = Literal["backward", "genealogy", "lag"]
_DEGENERATE = 0.1


@dataclass(frozen=True, repr=False)
class Smoothed(Posterior):
    """Trajectories of equal weight, drawn given all observations. Made by `smooth`.

    A `Posterior` of m particles, with its ``table()``, ``to_datatree()``, ``expect`` and so on, and the evidence of the
    filter; ``smoothed.series("x")`` has a site's values at all its visits. Of method "lag" the values are None, for its
    draws are of single steps and no paths of the model.

    Attributes:
        method: "backward", "genealogy" or "lag".
        distinct: (T,) how many different particles of the filter the draws have at each step, of all chains.
    """

    method: Method = "backward"
    distinct: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def series(self, name: str) -> NDArray[Any]:
        """Return the draws of a site at each of its visits, (m, T, …); NaN, or "", where a draw has not been there.

        Raises KeyError where no draw has a site of this name (as the program wrote it, without a visit).
        """
        return visits_of(self, name)

    def mean(self, name: str) -> Floats:
        """Return the mean of a site at each visit, (T, …). Raises as `quantiles` does."""
        found: Floats = self._numbers(name).mean(0)
        return found

    def quantiles(self, name: str, levels: Sequence[float] = (0.05, 0.5, 0.95)) -> Floats:
        """Return quantiles of a site at each visit, (levels, T, …).

        Raises KeyError where no draw has the site, and TypeError where it holds no numbers.
        """
        found: Floats = np.quantile(self._numbers(name), levels, axis=0)
        return found

    def _numbers(self, name: str) -> Floats:
        array = self.series(name)
        if array.dtype.kind not in "biuf":
            raise TypeError(f"{name!r} holds no numbers, which means and quantiles need")
        return array.astype(np.float64)

    @property
    def warnings(self) -> tuple[str, ...]:
        """One sentence for each reason not to trust these draws."""
        if self.method == "lag":
            return (
                "each step was drawn given the observations up to a fixed lag after it (heuristic), and apart from the "
                "others: means of single steps alone have a meaning",
            )
        found = super().warnings
        fewest = int(self.distinct.min(initial=len(self)))
        if self.method == "genealogy" and len(self) > 1 and fewest < max(_DEGENERATE * len(self), 2):
            found += (
                f"the {len(self)} trajectories go through {fewest} particle{'s' * (fewest > 1)} at step "
                f'{int(self.distinct.argmin())}: the genealogy has lost its past there; use method="backward"',
            )
        return found

    def plot(self, name: str, *, ax: Any = None, figsize: tuple[float, float] | None = None) -> Any:
        """Draw a site against its visits: mean, and the middle 50% and 90% of the draws; return the figure.

        Raises ValueError for a site whose visits are no single numbers. Needs matplotlib (``pip install
        feynkac[plots]``).
        """
        from ..drawing.figure import axes, label, steps_axis
        from ..drawing.palette import BLUE

        numbers = self._numbers(name)
        if numbers.ndim != 2:
            raise ValueError(f"plot draws one number for each visit of a site, and {name!r} has shape {numbers.shape}")
        ax = axes(ax, figsize, (5.6, 2.4))
        q = np.quantile(numbers, (0.05, 0.25, 0.75, 0.95), axis=0)
        visits = np.arange(numbers.shape[1])
        for low, high in ((0, 3), (1, 2)):
            ax.fill_between(visits, q[low], q[high], color=BLUE, alpha=0.28, linewidth=0)
        ax.plot(visits, numbers.mean(0), color=BLUE, linewidth=1.8)
        steps_axis(ax, len(visits))
        label(ax, f"Smoothed {name}", "visit", "mean, middle 50% and 90%")
        return ax.figure
