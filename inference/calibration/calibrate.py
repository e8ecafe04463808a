"""Simulation-based calibration of engines: `calibrate`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...ppl import keys as _keys
from ...ppl.keys import Keys
from ...ppl.model import Floats, Index
from ...ppl.program import Program, check_bound
from ..base.checks import check_engine, positive
from ..base.engine import Engine
from ..base.progress import Progress
from ..base.resampling import resample
from ..infer import infer
from ..results.posterior import Posterior
from ..results.trust.markov import layout
from .calibration import LIKELIHOOD, Calibration
from .simulating import Simulated, simulate_jointly

Quantity = Callable[[Any], float]
_TOGETHER = 4096
"""Particles of engines that are run at once."""
_MOST = 50
_CLOSE = 1e-9
"""Relative difference of numbers that tie: the same one, computed in different batches."""


def calibrate(
    program: Program,
    engine: Engine,
    simulations: int = 1000,
    draws: int = 99,
    quantities: Mapping[str, Quantity] | None = None,
    *,
    seed: int,
    bins: int = 20,
    progress: bool | None = None,
) -> Calibration:
    """Check an engine on data that a program makes: whether its posteriors are, on average, the posterior.

    Each simulation draws latents θ and data y from the program, whose observations are drawn from their laws for it;
    then the engine conditions on y, and the rank of f(θ) among f of ``draws`` posterior draws is taken, ties broken at
    random. For a right engine it is uniform, for every quantity f. One of them is always log p(y | θ): it sees an
    engine that forgets the data, which no function of θ alone does. Weighted particles are drawn from in proportion to
    their weights, independently; of Markov chains evenly spaced draws are taken, and their ESS should be at least
    ``draws``. An engine of finite n has the bias of n, which enough simulations show.

    Args:
        program: a bound program with observations, and no factors; what it observes tells the shapes alone.
        engine: an engine with its settings.
        simulations: M, how many. χ² wants 5 for each bin.
        draws: L, from each posterior.
        quantities: functions of what the program returns, by name. None takes each latent number, and each number of
            latent arrays.
        seed: an integer. Same seed, same ranks.
        bins: of the χ² test; it must divide ``draws + 1``.
        progress: whether to show a progress line, as in `infer`.

    Ctrl-C ends it with the simulations that are done; an error's attribute ``calibration`` has them, too.

    Raises:
        Unsupported: for a program whose data cannot be drawn: with factors, scales, or laws that are not normalised.
        ValueError: for settings out of range, and for quantities that are no finite numbers.

    Source: Talts, Betancourt, Simpson, Vehtari and Gelman (2018), arXiv:1804.06788; Modrák et al. (2023),
    arXiv:2211.02383, for the likelihood among the quantities.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def scale(y):
    ...     z = await fk.sample("z", fk.dist.Normal(0.0, 1.0))
    ...     await fk.observe("y", fk.dist.Normal(z, 0.5), y)
    ...     return z
    >>> found = fk.calibrate(scale(1.5), fk.ImportanceSampling(400), simulations=100, draws=19, bins=10, seed=0)
    >>> found.names, found.ok
    (('z', 'log p(y|θ)'), True)
    """
    check_bound("calibrate", program)
    check_engine("calibrate", engine)
    for name, value in (("simulations", simulations), ("draws", draws), ("bins", bins)):
        positive(name, value)
    if bins < 2 or (draws + 1) % bins:
        raise ValueError(f"bins must be at least 2 and divide draws + 1 = {draws + 1}, and {bins} does not")
    key = _keys.root(seed)
    ranks: list[list[int]] = []
    sizes: list[float] = []
    names: tuple[str, ...] = ()

    def gathered(stopped: str | None = None) -> Calibration:
        table = np.array(ranks, np.int64).reshape(len(ranks), len(names)).T
        found = (names, table, draws, bins, np.array(sizes))
        return Calibration(*found, engine=repr(engine), program=repr(program), seed=int(seed), stopped=stopped)

    def standing() -> tuple[int, int, str]:
        return len(ranks), simulations, f"{len(ranks)} of {simulations} simulations"

    together = max(1, _TOGETHER // (engine.particles * engine.chains))
    try:
        with Progress(standing, progress) as bar:
            for first in range(0, simulations, together):
                bar.update()
                numbers = np.arange(first, min(first + together, simulations))
                keys = _keys.fold(key, _keys.tag("simulation"), numbers)
                made = simulate_jointly(program, keys)
                posteriors = infer(
                    [one.model for one in made],
                    engine,
                    seed=_keys.as_seed(_keys.fold(key, _keys.tag("infer"), first)),
                    progress=False,
                )
                if any(posterior.stopped for posterior in posteriors):
                    return gathered("interrupted")
                for one, posterior, own in zip(made, posteriors, keys[:, None]):
                    true, drawn = _compared(one, posterior, draws, quantities, own)
                    names = names or tuple(true)
                    ranks.append(_ranks(true, drawn, names, own))
                    sizes.append(posterior.ess)
    except KeyboardInterrupt:
        if not ranks:
            raise
        return gathered("interrupted")
    except Exception as error:
        if ranks:
            error.calibration = gathered("error")  # type: ignore[attr-defined]
            error.add_note("feynkac: the simulations that were finished are in the error's attribute `calibration`")
        raise
    return gathered()


def _compared(
    simulated: Simulated, posterior: Posterior, draws: int, quantities: Mapping[str, Quantity] | None, key: Keys
) -> tuple[dict[str, float], dict[str, Floats]]:
    """Return each quantity of the simulated latents, and of posterior draws (draws,)."""
    rows = _draw(posterior, draws, _keys.fold(key, _keys.tag("draws")))
    different, again = np.unique(rows, return_inverse=True)
    if quantities is None:
        true = _parts(simulated.sites)
        traces = [
            {address: site.value for address, site in posterior.trace(i).items() if site.kind == "sample"}
            for i in different.tolist()
        ]
        parts = [_parts(trace) for trace in traces]
        for part in parts:
            if part.keys() != true.keys():
                odd = sorted(part.keys() ^ true.keys())[0]
                raise ValueError(f"latent {odd!r} is not in every run, so it has no ranks: give quantities=")
        found = {name: np.array([part[name] for part in parts])[again] for name in true}
    else:
        true = {name: _number(name, fn(simulated.value)) for name, fn in quantities.items()}
        values = [posterior.values[i] for i in different.tolist()]
        found = {name: np.array([_number(name, fn(v)) for v in values])[again] for name, fn in quantities.items()}
    true[LIKELIHOOD], found[LIKELIHOOD] = simulated.log_likelihood, posterior.log_potential[rows]
    return true, found


def _draw(posterior: Posterior, draws: int, key: Keys) -> Index:
    """Draw complete particles by weight, independently; of Markov chains, take evenly spaced ones."""
    if posterior.serial:
        chain = layout(posterior).ravel()
        return chain[np.linspace(0, len(chain) - 1, draws).round().astype(np.intp)]
    weights = np.where(posterior.complete, posterior.log_weights, -np.inf)
    if np.isneginf(weights).all():
        raise ValueError(f"{posterior.engine} has no complete particle of positive weight to draw from")
    return resample(weights, draws, key, "multinomial")


def _parts(sites: Mapping[str, Any]) -> dict[str, float]:
    """Return each number of the latents by name: an address, with a dot and the index for those of arrays."""
    out: dict[str, float] = {}
    for address, value in sites.items():
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            raise ValueError(f"latent {address!r} is no number, so it has no ranks: give quantities=")
        if array.ndim == 0:
            out[address] = _number(address, value)
        else:
            for place in np.ndindex(array.shape):
                name = ".".join(map(str, (address, *place)))
                out[name] = _number(name, array[place])
    if len(out) > _MOST:
        raise ValueError(f"the program has {len(out)} latent numbers: name those to look at by quantities=")
    return out


def _number(name: str, value: Any) -> float:
    number = float(value)
    if not np.isfinite(number):
        raise ValueError(f"quantity {name!r} is {number}, which has no rank")
    return number


def _ranks(true: Mapping[str, float], drawn: Mapping[str, Floats], names: Sequence[str], key: Keys) -> list[int]:
    """Return the rank of each quantity among its draws, ties broken uniformly."""
    if tuple(true) != tuple(names):
        raise ValueError("the simulations differ in their latents, so these have no ranks: give quantities=")
    out = []
    for name, u in zip(names, _keys.uniform(_keys.fold(key, _keys.tag("ties")), len(names))[0].tolist()):
        ties: NDArray[np.bool_] = np.isclose(drawn[name], true[name], rtol=_CLOSE, atol=0.0)
        below = int(((drawn[name] < true[name]) & ~ties).sum())
        out.append(below + int(u * (int(ties.sum()) + 1)))
    return out
