"""The hierarchical Gaussian filter: random walks, each of whose variance is the next one, and beliefs about them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike

from ...ppl.distributions.dist import Bernoulli, Normal
from ...ppl.model import Floats
from ...ppl.program import Program, program
from ...ppl.words import observe, sample, scan

Update = Literal["ehgf", "standard"]


@dataclass(frozen=True)
class Beliefs:
    """What `HGF.filter` believes after each input, as Gaussians of each level. No bound and no posterior: heuristic.

    Attributes:
        means: (T, K), lowest level first.
        precisions: (T, K).
        log_evidence: Σ log p(input | beliefs before it).
    """

    means: Floats
    precisions: Floats
    log_evidence: float
    guarantee: ClassVar[str] = "heuristic"


@dataclass(frozen=True)
class HGF:
    """The hierarchical Gaussian filter with K levels of numbers, lowest first, for continuous or binary inputs.

    The top level is a Gaussian random walk of log-variance ω_K; each one below has log-variance ω_k + κ_k·x_{k+1}, so
    that it is as volatile as the one above says. Continuous inputs are u ~ N(x_1, 1/precision); binary ones are
    u ~ Bernoulli(1/(1 + e^{−x})) of the lowest number x, which is named x2 as in the literature (x1 is the input).

    `program` is this model for any engine. `filter` is its one-step approximation in closed form: mean-field, with one
    quadratic step for each level, which bounds nothing (heuristic). Compare the two before you trust the second: for
    continuous inputs the lowest level agrees well, the volatility does not.

    Args:
        omega: (K,) ω, the tonic log-variances.
        kappa: (K − 1,) κ, couplings to the level above; None: all 1.
        precision: of continuous inputs; None: inputs are binary.
        means: (K,) of the Gaussian start before the first input; None: all 0.
        precisions: (K,) of the start; None: all 1.

    Raises ValueError for settings that do not fit.

    Source: Mathys, Daunizeau, Friston and Stephan (2011), doi:10.3389/fnhum.2011.00039; Weber et al. (2023),
    arXiv:2305.10937, for the enhanced update ("ehgf").
    Guarantee: `program` is exact under engines that are; `filter` is heuristic.
    Engines: all; compiled under SMC, ParticleFilter and ParticleGibbs.
    Measured: not shown here on data; the filter's lowest level agrees with SMC, the volatility does not.

    >>> model = HGF(omega=(-2.0, -2.0), precision=4.0)
    >>> beliefs = model.filter([0.5, -0.2, 1.3, 2.0, 1.1])
    >>> beliefs.means[-1].round(4).tolist()
    [1.2197, 0.4095]
    """

    omega: tuple[float, ...]
    kappa: tuple[float, ...] | None = None
    precision: float | None = None
    means: tuple[float, ...] | None = None
    precisions: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        levels = len(self.omega)
        if not levels:
            raise ValueError("omega needs a number for each level")
        defaults = {"kappa": (1.0,) * (levels - 1), "means": (0.0,) * levels, "precisions": (1.0,) * levels}
        for name, default in {"omega": (), **defaults}.items():
            given = getattr(self, name)
            numbers = default if given is None else tuple(float(x) for x in given)
            wanted = levels - (name == "kappa")
            if len(numbers) != wanted or not all(map(math.isfinite, numbers)):
                raise ValueError(f"{name} needs {wanted} finite numbers for {levels} levels, not {given!r}")
            object.__setattr__(self, name, numbers)
        if self.precision is not None and not 0 < self.precision < math.inf:
            raise ValueError(f"precision is a positive number, or None for binary inputs, not {self.precision!r}")
        if min(self.precisions or ()) <= 0:
            raise ValueError(f"precisions must be positive, not {self.precisions}")

    @property
    def names(self) -> tuple[str, ...]:
        """The sites of the levels, lowest first: "x1", "x2", …; of binary inputs from "x2"."""
        return tuple(f"x{k + 1 + (self.precision is None)}" for k in range(len(self.omega)))

    def program(self, inputs: ArrayLike) -> Program:
        """Return the generative model, conditioned on inputs (T,): a scan, whose value is all states, T tuples (K,).

        The sites are ``names`` by input, ``"u"``, and ``"x1_start"`` and so on for the numbers before the first input.
        """
        return hierarchy(self, self._inputs(inputs))

    def filter(self, inputs: ArrayLike, update: Update = "ehgf") -> Beliefs:
        """Return the beliefs after each of the inputs (T,), by the enhanced or the standard update.

        Raises ValueError for inputs that are none, and where a precision is not positive any more: the quadratic
        approximation has failed there.
        """
        if update not in ("ehgf", "standard"):
            raise ValueError(f'update must be "ehgf" or "standard", not {update!r}')
        mean, pi = np.array(self.means), np.array(self.precisions)
        means, precisions, log_evidence = [], [], 0.0
        for t, u in enumerate(self._inputs(inputs)):
            mean, pi, found = self._step(mean, pi, u, update)
            log_evidence += found
            if not (pi > 0).all():
                name = self.names[int(np.argmin(pi > 0))]
                raise ValueError(
                    f"the precision of {name} is {pi.min():.3g} after input {t}: the update has failed for these "
                    'settings; try update="ehgf", a lower omega or kappa, or an engine on the program'
                )
            means.append(mean)
            precisions.append(pi)
        shape = (len(means), len(self.omega))
        return Beliefs(np.reshape(means, shape), np.reshape(precisions, shape), log_evidence)

    def _inputs(self, inputs: ArrayLike) -> list[float]:
        found = np.asarray(inputs, np.float64)
        if found.ndim != 1 or not np.isfinite(found).all():
            raise ValueError(f"inputs are one finite number for each time, not an array of shape {found.shape}")
        if self.precision is None and not np.isin(found, (0.0, 1.0)).all():
            raise ValueError("inputs of an HGF without precision are binary, 0 or 1")
        listed: list[float] = found.tolist()
        return listed

    def _step(self, mean: Floats, pi: Floats, u: float, update: Update) -> tuple[Floats, Floats, float]:
        """Return the beliefs after an input, and the log-density that it had."""
        # The walk of each level adds this variance, by what is expected of the level above.
        coupled = [kappa * above for kappa, above in zip(self.kappa or (), mean[1:].tolist())]
        walk = np.exp(np.add(self.omega, [*coupled, 0.0]))
        ahead = 1.0 / (1.0 / pi + walk)
        new, precise = mean.copy(), ahead.copy()
        if self.precision is None:
            s = 1.0 / (1.0 + math.exp(-mean[0]))
            precise[0] = ahead[0] + s * (1.0 - s)
            new[0] = mean[0] + (u - s) / precise[0]
            found = math.log(s if u else 1.0 - s)
        else:
            precise[0] = ahead[0] + self.precision
            new[0] = mean[0] + self.precision / precise[0] * (u - mean[0])
            variance = 1.0 / ahead[0] + 1.0 / self.precision
            found = -0.5 * ((u - mean[0]) ** 2 / variance + math.log(2.0 * math.pi * variance))
        for k in range(1, len(mean)):
            # One quadratic step on the expected log-density of the walk below, in what sets its variance.
            kappa, share = self.kappa[k - 1], walk[k - 1] * ahead[k - 1]  # type: ignore[index]
            surprise = ahead[k - 1] / precise[k - 1] + ahead[k - 1] * (new[k - 1] - mean[k - 1]) ** 2 - 1.0
            slope = kappa * share
            precise[k] = ahead[k] + 0.5 * slope**2 + slope**2 * surprise - 0.5 * kappa**2 * share * surprise
            new[k] = mean[k] + slope * surprise / (2.0 * (ahead[k] if update == "ehgf" else precise[k]))
        return new, precise, found


@program
async def hierarchy(model: Any, inputs: Sequence[float]) -> Any:
    """The generative model of an `HGF`."""
    names, omega, kappa = model.names, model.omega, (*model.kappa, 0.0)

    async def step(x: tuple[Any, ...], u: Any) -> Any:
        above: Any = 0.0
        states: list[Any] = []
        for k in reversed(range(len(omega))):
            sd = math.e ** (0.5 * (omega[k] + kappa[k] * above))  # a power, which symbols of JAX know, too
            above = await sample(names[k], Normal(x[k], sd))
            states.insert(0, above)
        binary = model.precision is None
        law = Bernoulli(1.0 / (1.0 + math.e**-above)) if binary else Normal(above, model.precision**-0.5)
        await observe("u", law, u)
        return tuple(states), tuple(states)

    start = []
    for name, mean, precision in zip(names, model.means, model.precisions):
        start.append(await sample(f"{name}_start", Normal(mean, precision**-0.5)))
    return (await scan(step, tuple(start), inputs))[1]
