"""What the plots and reports show of a posterior, as plain arrays and texts."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...ppl.model import Floats, Index
from ...ppl.sites import Site, short
from ..base.chain import Chain
from ..base.step import Step
from ..base.weights import logmeanexp, normalize
from .pixels import described

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
BOXES = 48
"""With more steps that weigh, the boxes of rewards become bands."""


class Rewards(NamedTuple):
    """The log-potentials of the k steps that weigh, all chains together.

    Attributes:
        step: (k,) their numbers.
        quantiles: (5, k) at `QUANTILES` of the finite ones; NaN where there is none.
        points: k arrays of the finite ones.
        dead: (k,) how many were −inf.
        made: (k,) how many particles met a factor or an observation.
        resampled: (k,) whether a chain was resampled after the step.
    """

    step: Index
    quantiles: Floats
    points: list[Floats]
    dead: Index
    made: Index
    resampled: NDArray[np.bool_]


class Row(NamedTuple):
    """What one particle did from one step to another: its text, and sums of log p and log G over the steps."""

    first: int
    last: int
    text: str
    log_prob: float
    log_potential: float


def resampled_after(steps: Sequence[Step]) -> NDArray[np.bool_]:
    """Return whether the particles were resampled after each step, shape (T,)."""
    return np.array([*(step.resampled for step in steps[1:]), False])


def pooled_evidence(chains: Sequence[Chain]) -> Floats:
    """Return log Ẑ of all chains together after each step, shape (T,); a chain that has ended keeps its last."""
    longest = max(len(chain.history) for chain in chains)
    each = [[chain.history[min(t, len(chain.history) - 1)].log_evidence for chain in chains] for t in range(longest)]
    return np.array([math.nan if np.isnan(logs).any() else logmeanexp(logs) for logs in each])


def integral(posterior: Any) -> str:
    """Compare log Ẑ with the thermodynamic integral, the mean of the chains."""
    other = float(np.mean([one.log_evidence for one in posterior.thermodynamic]))
    return f"log Ẑ = {number(posterior.log_evidence)}, by the integral {number(other)}"


def mass_curve(log_weights: Floats) -> Floats:
    """Return the mass that the k largest weights hold, for k = 1…n."""
    return np.cumsum(np.sort(normalize(log_weights))[::-1])


def holding(curve: Floats, share: float = 0.9) -> int:
    """Return how many particles hold a share of the mass; 0 where every weight is zero.

    >>> holding(np.array([0.5, 0.8, 0.95, 1.0]))
    3
    """
    return int(np.searchsorted(curve, share - 1e-9)) + 1 if curve[-1] > 0 else 0


def moved(steps: Sequence[Step], t: int) -> NDArray[np.bool_]:
    """Return which particles made step t, shape (n,): those whose parent had not finished."""
    step = steps[t]
    if t == 0:
        return np.ones(len(step.done), bool)
    return ~np.asarray(steps[t - 1].done)[step.ancestors]


def rewards(chains: Sequence[Chain]) -> Rewards:
    """Gather the log-potentials of each step from the particles that met a factor or an observation there."""
    longest = max(len(chain.steps) for chain in chains)
    at: dict[int, Floats] = {}
    marks = np.zeros(longest, bool)
    for t in range(longest):
        here = [chain.steps for chain in chains if t < len(chain.steps)]
        logs = [steps[t].log_potential[_weighed(steps, t)] for steps in here]
        if sum(map(len, logs)):
            at[t] = np.concatenate(logs)
    for chain in chains:
        marks[: len(chain.steps)] |= resampled_after(chain.steps)
    points = [logs[np.isfinite(logs)] for logs in at.values()]
    return Rewards(
        step=np.array(list(at), np.intp),
        quantiles=np.array([np.quantile(p, QUANTILES) if len(p) else np.full(5, np.nan) for p in points])
        .reshape(-1, 5)
        .T,
        points=points,
        dead=np.array([np.isneginf(logs).sum() for logs in at.values()], np.intp),
        made=np.array([len(logs) for logs in at.values()], np.intp),
        resampled=marks[list(at)],
    )


_VALUES = 6


def values_of(seen: Rewards) -> Floats:
    """Return the values that the finite log-potentials take, where they are few and more than the steps; else none."""
    every = np.concatenate([*seen.points, np.empty(0)])
    found = np.unique(every.round(9))
    return found if len(found) <= min(_VALUES, len(every) / 2) else np.empty(0)


def _weighed(steps: Sequence[Step], t: int) -> NDArray[np.bool_]:
    """Return which particles met a factor or an observation in step t, shape (n,).

    Those whose log G is not 0 did; of the others the sites tell, and models other than programs have none.
    """
    step, met = steps[t], moved(steps, t)
    for i in np.flatnonzero(met & (step.log_potential == 0.0)).tolist():
        sites = step.choices[i]
        if isinstance(sites, tuple) and all(isinstance(site, Site) for site in sites):
            met[i] = any(site.kind in ("factor", "observe") for site in sites)
    return met


# -- texts ------------------------------------------------------------------------------------------------------


def number(value: float, digits: int = 4) -> str:
    """Write a number with a real minus and ∞.

    >>> number(-0.12345), number(-math.inf), number(float("nan"))
    ('−0.1235', '−∞', 'unknown')
    """
    if math.isnan(value):
        return "unknown"
    return f"{value:.{digits}g}".replace("inf", "∞").replace("-", "−")


def verdict(k: float) -> Literal["good", "ok", "bad", "unknown"]:
    """Say what a k̂ means: good below 0.5, ok below 0.7, bad from there on; unknown where it is NaN.

    >>> verdict(0.3), verdict(0.6), verdict(0.9), verdict(math.nan)
    ('good', 'ok', 'bad', 'unknown')
    """
    if math.isnan(k):
        return "unknown"
    return "good" if k < 0.5 else "ok" if k < 0.7 else "bad"


_CONTROL = ("Cc", "Cs", "Zl", "Zp")
_TURNS = frozenset("\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that turn the direction of what comes after them."""


def plain(text: str) -> str:
    """Write the control characters of a text as escapes, so that it can do nothing to a terminal.

    >>> plain("a\\x1b[31mb")
    'a\\\\x1b[31mb'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(repr(c)[1:-1] if unicodedata.category(c) in _CONTROL or c in _TURNS else c for c in text)


def short_line(text: str, width: int) -> str:
    """Cut a text to a width and one line, its white space single blanks, without control characters."""
    text = plain(" ".join(text[: 40 * width].split()))
    return text if len(text) <= width else text[: width - 1] + "…"


def cut(text: str, width: int) -> str:
    """Cut a text to a width and one line, its line ends shown by ⏎."""
    text = text.replace("\n", "⏎")
    return text if len(text) <= width else text[: width - 1] + "…"


def shown(value: Any, width: int = 200) -> str:
    """Show a value on a page: a text by its last step, a string as it is, a number in 4 digits, an array by size."""
    steps = getattr(value, "steps", None)
    if isinstance(steps, tuple) and steps and isinstance(steps[-1], str):
        return steps[-1]
    if isinstance(value, str):
        return value
    if isinstance(value, float | np.floating):
        return f"{value:.4g}"
    return described(value) or short(value, width)


def step_text(choices: Any) -> str:
    """Show what one particle drew in one step: its sampled values; a number goes with the name of its site."""
    drawn = _drawn(choices)
    return shown(choices) if drawn is None else _joined(drawn)


def words(choices: Any) -> str:
    """Show the texts that one particle drew in one step, without the numbers."""
    return _joined([site for site in _drawn(choices) or () if _is_text(site.value)])


def _joined(sites: Sequence[Site]) -> str:
    parts = [shown(site.value) if _is_text(site.value) else f"{site.name} = {shown(site.value)}" for site in sites]
    if all(hasattr(site.value, "steps") for site in sites):
        return "".join(parts)
    return (" · " if any(_is_text(site.value) for site in sites) else ", ").join(filter(None, parts))


def _drawn(choices: Any) -> list[Site] | None:
    """Return the sites sampled in a step; None for the choices of a model that is no program."""
    if not isinstance(choices, tuple) or not all(isinstance(site, Site) for site in choices):
        return None
    return [site for site in choices if site.kind == "sample" and not site.hidden]


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or isinstance(getattr(value, "steps", None), tuple)


def rows(chain: Chain, particle: int, most: int | None = None) -> list[Row]:
    """Return what a particle of a chain did, step by step; neighbouring steps are joined to keep to ``most`` rows."""
    line = ancestry(chain.steps, np.array([particle]))[:, 0]
    made: list[Row] = []
    for t, (step, j) in enumerate(zip(chain.steps, line)):
        if moved(chain.steps, t)[j]:
            chosen = step.choices[j]
            sites = [site for site in chosen if isinstance(site, Site)] if isinstance(chosen, tuple) else []
            log_prob = sum((site.log_prob for site in sites if site.kind == "sample"), 0.0) if sites else math.nan
            made.append(Row(t, t, step_text(chosen), log_prob, float(step.log_potential[j])))
    if most is None or len(made) <= most:
        return made
    return [_join(list(part)) for part in np.array_split(np.array(made, object), most)]


def _join(part: list[Any]) -> Row:
    joint = ", " if any(" = " in text for _, _, text, _, _ in part) else ""
    log_prob, log_potential = sum(row[3] for row in part), sum(row[4] for row in part)
    return Row(part[0][0], part[-1][1], joint.join(row[2] for row in part), log_prob, log_potential)


def ancestry(steps: Sequence[Step], particles: Index) -> Index:
    """Return the ancestors (T, k) of some particles of the last step at each step."""
    out = np.empty((len(steps), len(particles)), np.intp)
    index = np.asarray(particles, np.intp)
    for t in range(len(steps) - 1, -1, -1):
        out[t] = index
        index = steps[t].ancestors[index]
    return out
