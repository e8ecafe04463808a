"""Twists that are learned from a posterior: contrastive learning of a log-linear estimate of what is still to come."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from ...ppl.model import Floats
from ...ppl.sites import Site
from ..base.step import Step
from ..base.weights import normalize

if TYPE_CHECKING:
    from .posterior import Posterior

Features: TypeAlias = Callable[[Any], Sequence[float]]
"""Features (d,) of what a step chose."""
_MOST, _ENOUGH = 200, 1e-12
"""Steps of Newton's method, and the decrement at which it ends."""


@dataclass(frozen=True)
class LinearTwist:
    """A twist log ψ(x) = θ·φ(x), whose weights θ are learned from a posterior.

    The best twist is log E[∏ G still to come | x]. The program records its features and twists by them:

        phi = fk.deterministic("phi", (1.0, left, x))      # what the future may depend on
        await fk.twist("later", twist(phi))

    and learning goes in rounds, since a guided run finds more to learn from:

        twist = fk.LinearTwist()                           # log ψ = 0
        for _ in range(3):
            twist = fk.LinearTwist.fit(fk.infer(program(twist), fk.SMC(1000), seed=0), "phi")

    A model that is no program records no features, but each step what it chose, of which a function makes them:

        twist = fk.LinearTwist.fit(fk.infer(model, fk.SMC(1000), seed=0), phi)  # phi(tokens) of masked diffusion

    Whatever is learned, the target and E[Ẑ] stay as they are; see `induced` for proposals by it.

    Args:
        weights: θ, shape (d,); none gives log ψ = 0.

    Source: contrastive twist learning, Zhao, Brekelmans, Makhzani and Grosse (2024), arXiv:2404.17546; learned in
    rounds as in Guarniero, Johansen and Lee (2017), doi:10.1080/01621459.2016.1222291.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def steps(twist):
    ...     x = 0
    ...     for left in (2, 1, 0):
    ...         x += await fk.sample("step", fk.dist.DiscreteUniform(0, 9))
    ...         await fk.twist("later", twist(fk.deterministic("phi", (1.0, x, left, left * x))))
    ...     await fk.factor("far", 2.0 * (x - 27))
    >>> blind = [fk.infer(steps(fk.LinearTwist()), fk.SMC(100), seed=seed) for seed in range(20)]
    >>> twist = fk.LinearTwist.fit(blind[0], "phi")
    >>> guided = [fk.infer(steps(twist), fk.SMC(100), seed=seed) for seed in range(20)]
    >>> spread = [np.std([posterior.log_evidence for posterior in some]) for some in (blind, guided)]
    >>> bool(spread[1] < spread[0] / 2)
    True
    """

    weights: tuple[float, ...] = ()

    def __call__(self, features: Sequence[float]) -> float:
        """Return log ψ of features (d,). Raises ValueError where they are not as many as the weights."""
        if not self.weights:
            return 0.0
        if len(features) != len(self.weights):
            raise ValueError(f"the twist was learned with {len(self.weights)} features, and got {len(features)}")
        return math.fsum(w * float(x) for w, x in zip(self.weights, features))

    @classmethod
    def fit(
        cls, posteriors: Posterior | Sequence[Posterior], site: str | Features, *, ridge: float = 1e-3
    ) -> LinearTwist:
        """Learn weights from the runs of a posterior, or of several, such as one for each of many prompts.

        Minimises the mean of E_t[ψ]/R − E_T[log ψ] over the steps t at which unfinished particles recorded features.
        E_t is over the weighted particles of step t, E_T over the ancestors at t of the final ones, and R is the
        evidence after the last step over that after step t. It is convex, and least where ψ is the conditional
        expectation, if features and weights can say it.

        Args:
            posteriors: of `SMC` or another engine with evidence and steps, and without a tree. Several count alike; one
                in which all particles died teaches nothing.
            site: the name by which the program records features, with ``fk.deterministic``, just before its twist.
            ridge: λ of a penalty λ/2·Σ_j θ_j²·E[φ_j²], which keeps weights small that little speaks for.

        Raises:
            ValueError: for a posterior without steps, evidence or features, features that are not finite numbers, or a
                ridge that is not positive.
        """
        if not ridge > 0.0:
            raise ValueError(f"ridge must be positive, not {ridge!r}")
        several = posteriors if isinstance(posteriors, Sequence) else [posteriors]
        return cls(tuple(_minimise(_contrast(several, site), ridge).tolist()))


class _Contrast(NamedTuple):
    """Features (m, d) of particles at steps; log of their share of E_t, over R; their share of E_T; and log R: (m,)."""

    features: Floats
    log_before: Floats
    after: Floats
    log_ratio: Floats


def _contrast(posteriors: Sequence[Posterior], site: str | Features) -> _Contrast:
    features: list[Any] = []
    columns: list[Floats] = []
    for posterior in posteriors:
        if any(chain.tree is not None for chain in posterior.chains) or math.isnan(posterior.log_evidence):
            raise ValueError(
                f"a twist is learned from steps and evidence, which {posterior.engine} does not give: use SMC"
            )
        for chain, share in zip(posterior.chains, normalize([chain.evidence for chain in posterior.chains])):
            last = normalize(chain.log_weights)
            for step, line in zip(chain.steps, chain.lines):
                recorded = _recorded(step, site)
                if recorded and share > 0.0:
                    rows, ratio = list(recorded), chain.evidence - step.log_evidence
                    log_before = step.log_weights[rows] - step.log_evidence - math.log(len(step.done)) - ratio
                    after = share * np.bincount(line, last, len(step.done))[rows]
                    features += recorded.values()
                    columns.append(np.stack([math.log(share) + log_before, after, np.full(len(rows), ratio)]))
    if not features:
        how = "was there to be read" if callable(site) else f"recorded {site!r} by fk.deterministic({site!r}, …)"
        raise ValueError(f"no unfinished particle of a run that ended well {how}")
    try:
        x = np.array(features, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"features {site!r} must be numbers, as many in each record: {error}") from error
    if x.ndim != 2 or not np.isfinite(x).all():
        raise ValueError(f"features {site!r} must be sequences of finite numbers, not {features[0]!r} and the like")
    log_before, after, log_ratio = np.concatenate(columns, 1)
    return _Contrast(x, log_before - math.log(len(columns)), after / len(columns), log_ratio)


def _recorded(step: Step, site: str | Features) -> dict[int, Any]:
    """Return the last features that each unfinished particle recorded at a step, or those of what it chose."""
    if callable(site):
        return {i: site(chosen) for i, chosen in enumerate(step.choices) if not step.done[i]}
    return {
        i: record.value
        for i, chosen in enumerate(step.choices)
        if not step.done[i] and isinstance(chosen, tuple)
        for record in chosen
        if isinstance(record, Site) and record.name == site and record.kind == "deterministic"
    }


def _minimise(sample: _Contrast, ridge: float) -> Any:
    """Newton's method, from the least squares of log ψ to log R."""
    x, log_before, after, log_ratio = sample
    both = after + np.exp(log_before + log_ratio)
    scale = both @ x**2 / both.sum()
    penalty = np.diag(ridge * np.where(scale > 0.0, scale, 1.0))
    weights: Any = np.linalg.solve((x.T * both) @ x + penalty, (x.T * both) @ log_ratio)
    value, mass = _loss(sample, penalty, weights)
    for _ in range(_MOST):
        gradient = x.T @ (mass - after) + penalty @ weights
        direction = np.linalg.solve((x.T * mass) @ x + penalty, gradient)
        decrement, size = float(gradient @ direction), 1.0
        if decrement < _ENOUGH:
            break
        while size > _ENOUGH:
            there, mass_there = _loss(sample, penalty, weights - size * direction)
            if there <= value - 1e-4 * size * decrement:
                break
            size /= 2.0
        else:
            break  # no further but for rounding
        weights, value, mass = weights - size * direction, there, mass_there
    return weights


def _loss(sample: _Contrast, penalty: Floats, weights: Floats) -> tuple[float, Floats]:
    """Return the loss, and what each row adds to E_t[ψ]/R."""
    log_twist = sample.features @ weights
    mass: Floats = np.exp(np.minimum(sample.log_before + log_twist, 700.0))
    return float(mass.sum() - sample.after @ log_twist + weights @ penalty @ weights / 2.0), mass
