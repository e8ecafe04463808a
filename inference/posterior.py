"""What an engine found: weighted values, evidence, and the history that says how far to trust them."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..ppl import keys as _keys
from ..ppl.cost import Cost
from ..ppl.model import Floats, Index
from ..ppl.sites import Site
from .chain import Chain
from .engine import Guarantee, Step
from .files import load, save
from .html import posterior_html
from .weights import ess, logmeanexp, normalize


@dataclass(frozen=True, repr=False)
class Posterior:
    """Weighted particles with their evidence, history and cost. Made by `infer`.

    Attributes:
        values: what each particle returned, all chains in order; None (or its last ``"output"``) if unfinished.
        chains: the independent runs; their weights share one scale, so that pooling is in proportion to Ẑ_c.
        cost: what the run used.
        guarantee: what the engine promises: "unbiased", "consistent", "discretised" or "heuristic".
        engine: the engine and its settings.
        model: the model and its arguments.
        seed: the seed it was run with.
        stopped: why it was cut short ("tokens", "interrupted", "callback", …), or None.
    """

    values: tuple[Any, ...]
    chains: tuple[Chain, ...]
    cost: Cost
    guarantee: Guarantee
    engine: str
    model: str
    seed: int
    stopped: str | None = None

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def log_weights(self) -> Floats:
        """Unnormalised log-weights of all particles, shape (len(self),)."""
        return np.concatenate([chain.log_weights for chain in self.chains])

    @cached_property
    def probabilities(self) -> Floats:
        """Normalised weights, shape (len(self),). Raises ValueError where every weight is zero."""
        if np.isneginf(self.log_weights).all():
            raise ValueError(
                "every particle has weight zero: the posterior has no probabilities (log_evidence is -inf)"
            )
        return normalize(self.log_weights)

    @cached_property
    def complete(self) -> NDArray[np.bool_]:
        """Whether each particle ran to its end, shape (len(self),)."""
        return np.concatenate([chain.complete for chain in self.chains])

    @cached_property
    def log_evidence(self) -> float:
        """log Ẑ, the log of the mean of the chains' evidence estimates. Biased down by about Var(log Ẑ)/2."""
        return logmeanexp(np.array([chain.evidence for chain in self.chains]))

    @cached_property
    def log_evidence_se(self) -> float:
        """Standard error of log Ẑ from the spread of the chains (delta method); NaN for a single chain."""
        estimates = np.array([chain.evidence for chain in self.chains])
        if len(estimates) < 2 or np.isneginf(estimates).all():
            return math.nan
        ratios = np.exp(estimates - logmeanexp(estimates))
        return float(ratios.std(ddof=1) / math.sqrt(len(ratios)))

    @cached_property
    def ess(self) -> float:
        """Effective sample size of the final weights, in 0…len(self)."""
        return ess(self.log_weights)

    @property
    def steps(self) -> tuple[Step, ...]:
        """The history of the first chain; see ``chains`` for the others."""
        return self.chains[0].steps

    def best(self) -> Any:
        """Return the value of the particle with the largest weight (a complete one, where there is any)."""
        return self.values[self._best()]

    def _best(self) -> int:
        log_weights = np.where(self.complete, self.log_weights, -np.inf)
        if np.isneginf(log_weights).all():
            log_weights = self.log_weights
        return int(log_weights.argmax())

    def sample(self, n: int, *, seed: int) -> list[Any]:
        """Draw n values with replacement, in proportion to their weights."""
        u = _keys.uniform(_keys.fold(_keys.root(seed), np.arange(n)))
        ends = np.cumsum(self.probabilities)
        index = np.searchsorted(ends, u * ends[-1], side="right")
        return [self.values[i] for i in index]

    def expect(self, fn: Callable[[Any], Any]) -> Any:
        """Return the weighted mean of ``fn(value)`` (a number or an array) over the complete particles.

        Raises ValueError where no complete particle has positive weight.
        """
        weights = np.where(self.complete, self.probabilities, 0.0)
        if not weights.sum() > 0:
            raise ValueError("no particle ran to its end, so there is nothing to average; raise the budget")
        weights = weights / weights.sum()
        total = sum(weight * np.asarray(fn(v), float) for v, weight in zip(self.values, weights) if weight > 0)
        return float(total) if np.ndim(total) == 0 else total

    def vote(self, key: Callable[[Any], Hashable] = lambda value: value) -> dict[Any, float]:
        """Return the total weight of each ``key(value)``, largest first: a weighted majority vote."""
        totals: dict[Any, float] = {}
        for value, weight, complete in zip(self.values, self.probabilities.tolist(), self.complete):
            if complete and weight > 0:
                choice = key(value)
                totals[choice] = totals.get(choice, 0.0) + weight
        return dict(sorted(totals.items(), key=lambda item: -item[1]))

    # -- history ------------------------------------------------------------------------------------------------

    def _locate(self, particle: int) -> tuple[Chain, int]:
        if not 0 <= particle < len(self):
            raise IndexError(f"particle {particle} of {len(self)}")
        for chain in self.chains:
            if particle < len(chain.log_weights):
                return chain, particle
            particle -= len(chain.log_weights)
        raise AssertionError("unreachable")

    def genealogy(self, particle: int) -> Index:
        """Return the index of a final particle's ancestor at each step of its chain, shape (steps,)."""
        chain, i = self._locate(particle)
        return chain.lines[:, i]

    def trace(self, particle: int) -> dict[str, Site]:
        """Return the sites of a particle by address, from its start to its end (programs only)."""
        chain, i = self._locate(particle)
        sites = [s for step, j in zip(chain.steps, chain.lines[:, i]) for s in step.choices[j]]
        return {site.address: site for site in sites if not site.hidden}

    def site(self, address: str) -> list[Any]:
        """Return the value of a site in every particle, None where a particle has not visited it."""
        traces = [self.trace(i) for i in range(len(self))]
        return [trace[address].value if address in trace else None for trace in traces]

    # -- showing ------------------------------------------------------------------------------------------------

    def summary(self, top: int = 5) -> str:
        """Return a short text: evidence, ESS, cost, and the values of largest weight."""
        se = "" if math.isnan(self.log_evidence_se) else f" ± {self.log_evidence_se:.2g}"
        lines = [
            f"{self.engine} on {_short(self.model, 70)}",
            f"log evidence {self.log_evidence:.4g}{se} ({self.guarantee}); "
            f"ESS {self.ess:.1f} of {len(self)}; {int(self.complete.sum())} complete"
            + (f"; stopped: {self.stopped}" if self.stopped else ""),
            "cost: " + ", ".join(f"{amount} {unit}" for unit, amount in self._spent()),
        ]
        for weight, value in self._top(top):
            lines.append(f"  {weight:6.3f}  {_short(str(value), 90)}")
        return "\n".join(lines)

    def _spent(self) -> list[tuple[str, str]]:
        cost = self.cost
        counts = [("model calls", cost.model_calls), ("tokens in", cost.tokens_in), ("tokens out", cost.tokens_out)]
        counts += [("denoiser evaluations", cost.nfe), ("reward calls", cost.reward_calls)]
        return [(unit, f"{n:,}") for unit, n in counts if n] + [("s", f"{cost.seconds:.2f}")]

    def _top(self, top: int) -> list[tuple[float, Any]]:
        """Distinct values with their total weight, largest first."""
        if np.isneginf(self.log_weights).all():
            return []
        totals: dict[str, tuple[float, Any]] = {}
        for value, weight in zip(self.values, self.probabilities.tolist()):
            shown = str(value)
            totals[shown] = (totals.get(shown, (0.0, None))[0] + weight, value)
        return sorted(totals.values(), key=lambda item: -item[0])[:top]

    def __repr__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        return posterior_html(self)

    # -- files --------------------------------------------------------------------------------------------------

    def save(self, path: Any) -> None:
        """Write to one file (a zip of JSON and arrays, no pickle); see `load`.

        Values may be texts, numbers, strings, arrays and containers of them; TypeError names any other.
        """
        save(self, path)

    @staticmethod
    def load(path: Any) -> Posterior:
        """Read what `save` wrote. Raises ValueError for a file that is corrupt or not a posterior."""
        return Posterior(**load(path))


def _short(text: str, width: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"
