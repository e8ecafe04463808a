"""Continual learning as sequential Bayes: a scan whose carry is the posterior, with a prototype for each class."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ...ppl.model import Floats
from ...ppl.program import program
from ...ppl.words import deterministic, factor, scan


class Belief(NamedTuple):
    """What is believed of a prototype: independent Gaussians.

    Attributes:
        mean: (D,).
        var: the variance of each coordinate.
    """

    mean: Floats
    var: float

    def update(self, x: Floats, sd: float) -> tuple[Belief, float]:
        """Return the belief after x (D,), observed with standard deviation ``sd``, and log p(x | what was before)."""
        spread = self.var + sd**2
        gain = self.var / spread
        log_p = -0.5 * float(np.sum((x - self.mean) ** 2 / spread + math.log(2.0 * math.pi * spread)))
        return Belief(self.mean + gain * (x - self.mean), (1.0 - gain) * self.var), log_p

    def log_density(self, x: Floats, sd: float) -> float:
        """Return log p(x) of a new observation."""
        return self.update(x, sd)[1]


@program
async def continual(
    tasks: Sequence[Sequence[tuple[Any, Hashable]]],
    *,
    prior: float = 1.0,
    sd: float = 1.0,
) -> Mapping[Hashable, Belief]:
    """Learn from one task after the other, where the posterior after each is the prior of the next.

    Each class has a prototype θ ~ N(0, prior²·I), and its observations are x ~ N(θ, sd²·I). The carry of the scan is
    what is believed of all prototypes, in closed form; the data of earlier tasks are not looked at again. Beliefs after
    all tasks are those of all data at once, in any order of tasks.

    That holds where the model does. A class that means something else in a later task has one prototype all the same,
    and ends between the two: sequential Bayes does not remember what its model has no place for. Give classes of
    different tasks different names, and nothing is forgotten (prototypes, ProtoCL).

    Feynman–Kac mapping: a step is a task; G is the probability of its data given all earlier ones, so that Z is the
    evidence of all of them. Nothing is drawn. It costs arithmetic.

    Args:
        tasks: of each the observations, as (x, class); x is a number, or a vector (D,).
        prior: standard deviation of prototypes.
        sd: of observations around theirs.

    Returns the `Belief` of each class, in the order in which they came up. Raises ValueError for deviations that are
    not positive.

    Source: On Sequential Bayesian Inference for Continual Learning (2023), arXiv:2301.01828, with its ProtoCL.
    Guarantee: closed form; as a program exact for the law that it defines.
    Engines: all; nothing is drawn, so that one particle is enough.
    Measured: two tasks of one class at −1 and 3, without noise, end at their mean, 1, as the data grow: both forgotten.

    >>> import feynkac as fk
    >>> belief = fk.simulate(continual([[(1.0, "a")], [(3.0, "a")]]), seed=0).value["a"]
    >>> belief.mean.round(4).tolist(), round(belief.var, 4)
    ([1.3333], 0.3333)
    """
    if not (prior > 0 and sd > 0):
        raise ValueError(f"continual needs positive prior and sd, not {prior} and {sd}")

    async def learn(beliefs: Mapping[Hashable, Belief], task: Any) -> Any:
        now, evidence = dict(beliefs), 0.0
        for x, label in task:
            seen = np.atleast_1d(np.asarray(x, np.float64))
            before = now.get(label, Belief(np.zeros_like(seen), prior**2))
            now[label], log_p = before.update(seen, sd)
            evidence += log_p
        await factor("data", evidence)
        return deterministic("output", now), None

    beliefs, _ = await scan(learn, {}, tasks)
    return beliefs  # type: ignore[no-any-return]
