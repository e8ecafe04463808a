"""The posterior as ArviZ knows it: an ``xarray.DataTree``."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...ppl import keys as _keys
from ...ppl.model import Floats, Index
from ..base.chain import Chain
from ..base.resampling import systematic
from .columns.columns import free
from .columns.latents import Variable, variables
from .trust.khat import khat
from .trust.markov import layout

if TYPE_CHECKING:
    from xarray import DataTree

_DIMS = ("chain", "draw", "step", "particle", "log_weight", "log_potential", "complete")


def to_datatree(posterior: Any, *, draws: int, seed: int, sites: bool = True) -> DataTree:
    """Return a posterior as an ``xarray.DataTree`` with the conventions of ArviZ.

    Groups:
        posterior: numbers, (chain, draw), as `equal_draws` has them. Bools are 0 and 1. The coordinate ``particle`` of
            each draw is the particle that it is. Where all is text, it is the reward, ``log_potential``. Engines that
            are heuristic have no such group, for their weights select and are no probabilities: ArviZ then says that
            there is none.
        posterior_text: what is text (strings, `Text`, other objects by ``str``) of the same draws. It is a group of
            its own, since ``az.summary`` and its kin take numbers alone.
        sample_stats: of Markov chains that say how their draws came about, (chain, draw): ``acceptance_rate``,
            ``diverging``, ``energy``, ``n_steps``, ``lp``, as far as there are such.
        particles: (chain, draw): the particles as they are, unfinished ones too, numbers and texts alike, with their
            unnormalised ``log_weight``, their reward ``log_potential``, and whether they are ``complete``. A chain with
            fewer is filled up with NaN, of weight zero.
        smc: (chain, step), but for Markov chains: ``ess``, ``entropy``, ``log_normalizer_increment`` (they sum to the
            chain's ``log_normalizer``, but for engines that have no evidence), ``resampled`` before the step,
            ``n_unique_ancestors``, ``temperature``, ``khat`` of the (twisted) weights after the step, and ``ancestor``
            (chain, step, particle). A tempered population has a step for each stage, and ``inverse_temperature`` and
            ``acceptance`` of it. Where a chain is shorter than the longest it is NaN, False or −1.

    The tree's own attributes name the engine, model, seed, guarantee, cost, log evidence, the warnings, and the version
    of the library.

    A value that is a mapping, named tuple or dataclass has a variable for each of its keys; see `columns` for the
    rest, and for what stands where a particle has nothing. With ``sites``, what programs drew and recorded follows
    under its name (but for "output", the value so far); a name visited more than once has one more dimension,
    ``<name>_visit``. What a program returns of its sites is there once. A slash (of a scope or branch) becomes a dot,
    and a name that is taken gets an underscore.

    ArviZ knows no weights, and takes draws in their order for a Markov chain; so the group ``posterior`` has them in an
    order in which that is right. Of a Markov chain it is its own, chain by chain: ``az.summary``, ``az.ess`` and
    ``az.rhat`` mean what they say. Of a weighted population, a particle is there as often as its weight says, copies
    and then relatives side by side: their autocorrelation time is n·Σw², so that ``az.ess`` finds the effective
    sample size, ``az.mcse`` follows from it, and ``az.rhat`` is NaN. (A number that is the same in all draws has all
    of them as its effective sample size, as always with ArviZ: look at ``posterior.warnings``.)

    Args:
        posterior: a `Posterior`.
        draws: how often weighted particles are there in all; more of them follow the weights more closely. Markov
            chains have their own.
        seed: of the draws.
        sites: whether to add the sites of programs.

    Raises:
        ImportError: without arviz-base (``pip install feynkac[plots]``).
        ValueError: where no complete particle has positive weight.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def walk():
    ...     x = 0.0
    ...     for _ in range(3):
    ...         x = await fk.sample("x", fk.dist.Normal(x, 1.0))
    ...         await fk.factor("G", -x * x)
    ...     return {"end": x, "sign": "up" if x > 0 else "down"}
    >>> tree = fk.infer(walk(), fk.SMC(100, chains=2), seed=0).to_datatree(draws=500)
    >>> sorted(tree.children), list(tree.posterior), tree.posterior["x"].dims
    (['particles', 'posterior', 'posterior_text', 'smc'], ['end', 'x'], ('chain', 'draw', 'x_visit'))
    """
    if draws < 1:
        raise ValueError(f"draws must be a positive integer, not {draws!r}")
    try:
        import arviz_base
        import xarray
    except ImportError as error:
        raise ImportError("to_datatree needs arviz-base and xarray: pip install feynkac[plots]") from error

    index = layout(posterior) if posterior.serial else equal_draws(posterior, draws, seed)[None]
    found = variables(posterior, sites, _DIMS)
    dims = _dims(found)
    arrays = {name: variable.array for name, variable in found.items()}
    numbers = {name: _number(array[index]) for name, array in arrays.items() if array.dtype.kind in "biufc"}
    texts = {name: array[index] for name, array in arrays.items() if name not in numbers}
    numbers = numbers or {"log_potential": posterior.log_potential[index]}
    library = {"inference_library": "feynkac", "inference_library_version": importlib.metadata.version("feynkac")}

    def group(data: dict[str, NDArray[Any]], lead: list[str]) -> Any:
        return arviz_base.dict_to_dataset(
            data,
            sample_dims=lead,
            dims={name: dims[name] for name in data if name in dims},
            attrs=library,
            check_conventions=False,  # it takes more chains than particles for a mistake
        )

    chains, count = index.shape
    coords = {"chain": np.arange(chains), "draw": np.arange(count), "particle": (("chain", "draw"), index)}
    groups = {
        name: group(data, ["chain", "draw"]).assign_coords(coords)
        for name, data in (("posterior", numbers), ("posterior_text", texts))
        if posterior.guarantee != "heuristic" and (data or name == "posterior")
    }
    groups["particles"] = group(_particles(posterior, arrays), ["chain", "draw"])
    told = _stats(posterior)
    if told:
        stats = {name: array[index] for name, array in told.items()}
        groups["sample_stats"] = group(stats, ["chain", "draw"]).assign_coords(coords)
    if not posterior.serial:
        history, lead = _history(posterior.chains), ["chain", "step", "particle"]
        ranks = [{name: array for name, array in history.items() if array.ndim == rank} for rank in (1, 2, 3)]
        parts = [group(data, lead[: i + 1]) for i, data in enumerate(ranks)]
        groups["smc"] = xarray.merge(parts, combine_attrs="override")
    attrs = arviz_base.base.make_attrs({**library, **_facts(posterior)})
    return xarray.DataTree.from_dict({"/": xarray.Dataset(attrs=attrs), **groups})


def _particles(posterior: Any, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return the particles as they are, by chain, with their weights."""
    sizes = [len(chain.log_weights) for chain in posterior.chains]
    return {
        **{name: _by_chain(array, sizes) for name, array in arrays.items()},
        "log_weight": _by_chain(posterior.log_weights, sizes, -np.inf),
        "log_potential": _by_chain(posterior.log_potential, sizes),
        "complete": _by_chain(posterior.complete, sizes),
    }


def _stats(posterior: Any) -> dict[str, NDArray[Any]]:
    """Return how the draws of Markov chains came about, (particles,), as far as all chains say."""
    found = [chain.stats for chain in posterior.chains] if posterior.serial else []
    names = [name for name in (found[0] if found else ()) if all(name in stats for stats in found)]
    return {name: np.concatenate([stats[name] for stats in found]) for name in names}


def equal_draws(posterior: Any, draws: int, seed: int) -> Index:
    """Draw complete particles (their indices) in proportion to their weights, copies side by side, shape (draws,).

    By systematic resampling: a particle of probability p comes ⌊draws·p⌋ or ⌈draws·p⌉ times. Within a chain they are
    in the order of their ancestors, from the first step on, so that those that share more of them are nearer.
    """
    weights = np.where(posterior.complete, posterior.probabilities, 0.0)
    if not weights.sum() > 0:
        raise ValueError("no particle ran to its end, so there is nothing to draw from; raise the budget")
    first, families = 0, []
    for chain in posterior.chains:
        families.append(first + np.lexsort(chain.lines[::-1]))
        first += len(chain.log_weights)
    order = np.concatenate(families)
    key = _keys.fold(_keys.root(seed), _keys.tag("draws"))
    return order[systematic((weights / weights.sum())[order], draws, key)]


def _dims(found: dict[str, Variable]) -> dict[str, list[str]]:
    """Return the names of the further dimensions of each variable."""
    dims: dict[str, list[str]] = {}
    for key, variable in found.items():
        visits = ["visit"] * variable.visited
        ends = visits + [f"dim_{d}" for d in range(variable.array.ndim - 1 - len(visits))]
        dims[key] = [free(f"{key}_{end}", {*found, *_DIMS}) for end in ends]
    return dims


def _history(chains: Sequence[Chain]) -> dict[str, NDArray[Any]]:
    """Return what happened by chain and step, (chains,), (chains, steps) or (chains, steps, particles)."""
    c, t = len(chains), max(len(chain.history) for chain in chains)
    n = max(len(step.ancestors) for chain in chains for step in chain.history)
    numbers: tuple[str, ...] = ("ess", "entropy", "log_normalizer_increment", "temperature", "khat")
    if any(chain.stages for chain in chains):
        numbers += ("inverse_temperature", "acceptance")
    out: dict[str, NDArray[Any]] = {name: np.full((c, t), np.nan) for name in numbers}
    out["resampled"] = np.zeros((c, t), bool)
    out["n_unique_ancestors"] = np.full((c, t), -1)
    out["ancestor"] = np.full((c, t, n), -1)
    out["log_normalizer"] = np.array([chain.evidence for chain in chains])
    for row, chain in enumerate(chains):
        out["log_normalizer_increment"][row, : len(chain.history)] = _increments(
            [s.log_evidence for s in chain.history]
        )
        for s, step in enumerate(chain.history):
            for name in ("ess", "entropy", "temperature", "acceptance", "resampled"):
                if name in out:
                    out[name][row, s] = getattr(step, name)
            if "inverse_temperature" in out:
                out["inverse_temperature"][row, s] = 1.0 / step.temperature
            out["khat"][row, s] = khat(step.log_weights + step.log_twist)
            out["n_unique_ancestors"][row, s] = step.unique_ancestors
            out["ancestor"][row, s, : len(step.ancestors)] = step.ancestors
    return out


def _increments(log_evidence: Sequence[float]) -> Floats:
    """Return what each step added to log Ẑ; 0 once it is −inf."""
    levels = np.array([0.0, *log_evidence])
    dead = np.isneginf(levels[:-1])
    return np.where(dead, 0.0, levels[1:] - np.where(dead, 0.0, levels[:-1]))


def _by_chain(array: NDArray[Any], sizes: Sequence[int], fill: float = np.nan) -> NDArray[Any]:
    """Cut (particles, …) into (chain, draw, …); where chains differ in size, a shorter one is filled up.

    With NaN (integers become floats then), "" among texts, False among bools.
    """
    n = max(sizes)
    if min(sizes) < n:
        kind = array.dtype.kind
        dtype = np.result_type(array, np.float64) if kind in "iu" else array.dtype
        out = np.full((len(sizes), n, *array.shape[1:]), {"U": "", "b": False}.get(kind, fill), dtype)
        for row, part in zip(out, np.split(array, np.cumsum(sizes)[:-1])):
            row[: len(part)] = part
        return out
    return array.reshape(len(sizes), n, *array.shape[1:])


def _number(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(np.int64) if array.dtype == bool else array


def _facts(posterior: Any) -> dict[str, Any]:
    return {
        "engine": posterior.engine,
        "model": posterior.model,
        "seed": posterior.seed,
        "guarantee": posterior.guarantee,
        "stopped": posterior.stopped or "",
        "log_evidence": posterior.log_evidence,
        "log_evidence_se": posterior.log_evidence_se,
        "warnings": "\n".join(posterior.warnings),
        **{f"cost_{unit}": amount for unit, amount in dataclasses.asdict(posterior.cost).items()},
    }
