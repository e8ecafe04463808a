"""Exact inference for finite programs: run every sequence of choices, and weigh each.

The oracle for tests of engines and of one's own programs. The target of a run is log p of its choices plus its
potentials; twists and proposals do not enter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import keys as _keys
from ..effects import Effect, Sample
from ..errors import Unsupported
from ..model import Floats
from ..program import Program, check_bound
from ..running.handling import Handler
from ..running.nesting import Nested
from ..sites import MISSING


class _Choice(Exception):
    """Raised at the first site that is still free, with its values."""

    def __init__(self, address: str, values: list[Any]) -> None:
        self.address = address
        self.values = values


class _Free:
    """What stands for the law of a site that is free: to draw from it is to choose. (A race may end before.)"""

    batch_key = "choice"

    def __init__(self, address: str, kernel: Any) -> None:
        self.address = address
        self.kernel = kernel

    def sample_batch(self, requests: Sequence[_Free], keys: Any) -> Any:
        """Stop: the first of the sites is the next to choose at."""
        values = getattr(self.kernel, "support", lambda: None)()
        if values is None:
            raise Unsupported(f"site {self.address!r}: {self.kernel!r} does not have a small finite support")
        raise _Choice(self.address, list(values))


@dataclass(frozen=True, eq=False)
class _Branch(Handler):
    """Force the choices made so far, and stop at the next."""

    made: dict[str, Any]
    sees_hidden = True

    def touch(self, effect: Effect, address: str, length: int) -> bool:
        if type(effect) is Nested and effect.forced is MISSING:
            raise Unsupported(
                f"enumerate_program cannot enumerate what fk.nested({address!r}, …) may find: use an engine, or "
                "enumerate the inner program by itself"
            )
        if type(effect) is not Sample or not effect.obs is effect.forced is effect.fixed is MISSING:
            return False
        effect.proposal = None
        if address in self.made:
            effect.forced = self.made[address]
            return False
        free: Any = _Free(address, effect.kernel)
        effect.kernel = free
        return False


@dataclass(frozen=True)
class Enumeration:
    """All runs of a finite program that have positive weight.

    Attributes:
        values: what each run returned.
        log_weights: log p + log potentials of each run, unnormalised.
        log_prob: log p of each run's choices.
    """

    values: list[Any]
    log_weights: Floats
    log_prob: Floats

    @property
    def log_evidence(self) -> float:
        """log Z, the log of the sum of the weights."""
        top = self.log_weights.max(initial=-np.inf)
        return float(top + np.log(np.exp(self.log_weights - top).sum())) if np.isfinite(top) else -np.inf

    @property
    def probabilities(self) -> Floats:
        """The posterior probability of each run."""
        return np.exp(self.log_weights - self.log_evidence)

    def probability(self, value: Any) -> float:
        """Return the posterior probability of a returned value."""
        return float(sum(p for v, p in zip(self.values, self.probabilities) if v == value))

    def law(self) -> dict[Any, float]:
        """Return the posterior law of the returned value (which must be hashable)."""
        out: dict[Any, float] = {}
        for value, probability in zip(self.values, self.probabilities.tolist()):
            out[value] = out.get(value, 0.0) + probability
        return out

    def expect(self, fn: Callable[[Any], float]) -> float:
        """Return the posterior mean of ``fn(value)``."""
        return float(sum(fn(v) * p for v, p in zip(self.values, self.probabilities)))


def enumerate_program(model: Program, *, max_runs: int = 100_000) -> Enumeration:
    """Enumerate a program whose sample sites all have small finite supports.

    Args:
        model: a bound program. Values that come from ``fk.call`` must be deterministic.
        max_runs: stop with an error beyond so many runs.

    Raises:
        Unsupported: where a site's support is not finite and small, or there are too many runs; and for `nested`.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def two():
    ...     x = await fk.sample("x", fk.dist.Bernoulli(0.5))
    ...     await fk.factor("G", fk.dist.Bernoulli(0.9).log_prob(x))
    ...     return x
    >>> result = enumerate_program(two())
    >>> round(result.probability(1), 3), round(result.log_evidence, 4)
    (0.9, -0.6931)
    """
    check_bound("enumerate_program", model)
    values, log_weights, log_probs = [], [], []
    for value, log_prob, log_potential in _runs(model, {}):
        values.append(value)
        log_probs.append(log_prob)
        log_weights.append(log_prob + log_potential)
        if len(values) > max_runs:
            raise Unsupported(f"{model!r} has more than {max_runs} runs; raise max_runs, or use an engine")
    return Enumeration(values, np.array(log_weights), np.array(log_probs))


def _runs(model: Program, made: dict[str, Any]) -> Iterator[tuple[Any, float, float]]:
    key = _keys.root(0)
    branch = model.with_handler(_Branch(made))
    try:
        step = branch.start(key)
        log_prob, log_potential = step.log_prob[0], step.log_potential[0]
        while not step.done[0]:
            step = branch.advance(step.state, key)
            log_prob, log_potential = log_prob + step.log_prob[0], log_potential + step.log_potential[0]
    except _Choice as choice:
        for value in choice.values:
            yield from _runs(model, {**made, choice.address: value})
        return
    if np.isfinite(log_prob + log_potential):
        yield branch.values(step.state)[0], float(log_prob), float(log_potential)
