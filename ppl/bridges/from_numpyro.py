"""`from_numpyro`: a NumPyro model as a Feynman–Kac model of one step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from ..density import Density, Evaluation
from ..distributions.batching import digest, unstack
from ..errors import ImpossibleChoice, Unsupported
from ..keys import Keys
from ..lazy import needing
from ..model import Advance, Floats, Index
from ..sites import Site, short

if TYPE_CHECKING:
    from .joint import Arrays

_RETURNED = "output"


@dataclass(frozen=True, eq=False)
class Draws:
    """``size`` particles of a NumPyro model: the columns of their values, each (n, …)."""

    columns: dict[str, Any]
    size: int

    def __len__(self) -> int:
        return self.size

    @property
    def depth(self) -> NDArray[np.int64]:
        """Zeros: there is one step."""
        return np.zeros(len(self), np.int64)

    @property
    def done(self) -> NDArray[np.bool_]:
        """All of them."""
        return np.ones(len(self), bool)


class NumPyroModel:
    """See `from_numpyro`."""

    def __init__(self, model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._model, self._args, self._kwargs = model, args, kwargs
        self.name = getattr(model, "__name__", type(model).__name__)
        with needing("fk.from_numpyro", "jax"):
            from .joint import Joint
        self.joint = Joint(model, args, kwargs)  # what cannot be run is refused here, before anything is drawn

    def __repr__(self) -> str:
        shown = [_shown(arg) for arg in self._args] + [f"{key}={_shown(arg)}" for key, arg in self._kwargs.items()]
        return f"{self.name}({', '.join(shown)})"

    @property
    def fingerprint(self) -> Any:
        """What is compared when a program that runs it in `nested` is replayed: the function and its arguments."""
        import jax

        leaves, structure = jax.tree_util.tree_flatten((self._args, self._kwargs))
        return self.name, structure, tuple(digest(leaf) for leaf in leaves)

    def __await__(self) -> NoReturn:
        raise Unsupported(
            f"{self!r} is a model with a weight of its own, and cannot be awaited: run it by fk.nested(name, model, "
            "engine), or write its sites in the program, where fk.sample takes NumPyro's distributions"
        )

    # -- the contract -------------------------------------------------------------------------------------------

    def start(self, keys: Keys, given: Sequence[Any] | None = None) -> Advance[Draws]:
        """Draw all latents of each particle, or take those given, and weigh what is observed."""
        if given is None or all(item is None for item in given):
            return self._free(keys)
        free = np.array([item is None for item in given])
        forced = self._forced([item for item in given if item is not None])
        return forced if not free.any() else self._joined(self._free(keys[free]), forced, free)

    def advance(self, state: Draws, keys: Keys, given: Sequence[Any] | None = None) -> Advance[Draws]:
        """Return the particles as they are: all have finished."""
        zeros = np.zeros(len(state))
        true = np.ones(len(state), bool)
        return Advance(state, [()] * len(state), zeros, zeros, zeros, zeros, true, true)

    def select(self, state: Draws, index: Index) -> Draws:
        """Keep, duplicate or reorder particles."""
        import jax

        columns = {
            name: jax.tree_util.tree_map(lambda leaf: leaf[index], column) for name, column in state.columns.items()
        }
        return Draws(columns, len(index))

    def concat(self, states: Sequence[Draws]) -> Draws:
        """Join batches of particles."""
        import jax

        columns = {
            name: jax.tree_util.tree_map(lambda *leaves: np.concatenate(leaves), *(one.columns[name] for one in states))
            for name in states[0].columns
        }
        return Draws(columns, sum(map(len, states)))

    def values(self, state: Draws) -> list[Any]:
        """Return the sites that each particle drew or recorded, by name, and what the model returned as "output"."""
        import jax

        rows: list[list[Any]] = []
        for column in state.columns.values():
            leaves, structure = jax.tree_util.tree_flatten(column)
            rows.append([jax.tree_util.tree_unflatten(structure, row) for row in zip(*map(unstack, leaves))])
        return [dict(zip(state.columns, row)) for row in zip(*rows)] if rows else [{} for _ in range(len(state))]

    def unconstrained(self, paths: Sequence[Any], horizon: int | None) -> list[Density]:
        """Return the density of what paths drew at continuous sites; what is discrete stays. See `Unconstrained`."""
        joint = self.joint
        drawn = self._given([path.choices for path in paths])
        free = {latent.name for latent in joint.free}
        fixed = {name: column for name, column in drawn.items() if name not in free}

        def evaluate(u: Floats, gradients: bool) -> Evaluation:
            return Evaluation(*joint.evaluate(u, fixed, gradients))

        def choices(u: Floats) -> list[list[Any]]:
            values, _ = joint.spread(u, fixed)
            return [[{name: column[i] for name, column in values.items()}] for i in range(len(u))]

        return [
            Density(
                rows=np.arange(len(paths)),
                position=joint.locate(drawn),
                evaluate=evaluate,
                choices=choices,
                log_jacobian=lambda u: joint.spread(u, fixed)[1],
                fixed=fixed,
                logdensity=joint.logdensity,
                gaussian=joint.gaussian,
                tolerance=joint.tolerance,
                sites=tuple(latent.name for latent in joint.free for _ in range(latent.size)),
            )
        ]

    # -- rows ---------------------------------------------------------------------------------------------------

    def _given(self, rows: Sequence[Any]) -> Arrays:
        """Read forced choices, tuples of sites or mappings by name, as columns of the latents."""
        from .joint import stacked

        found = [row if isinstance(row, Mapping) else _drawn(row) for row in rows]
        names = {latent.name for latent in self.joint.latents}
        for row in found:
            if set(row) != names:
                lacking, more = sorted(names - set(row)), sorted(set(row) - names)
                what = f"lack {lacking}" if lacking else f"have {more}, too"
                raise ImpossibleChoice(f"{self!r:.200} draws {sorted(names)}; the given choices {what}")
        try:
            return stacked(found, self.joint.latents)
        except (TypeError, ValueError) as error:
            raise ImpossibleChoice(f"{self!r:.200} cannot take the given choices: {error}") from error

    def _joined(self, drawn: Advance[Draws], forced: Advance[Draws], free: NDArray[np.bool_]) -> Advance[Draws]:
        """Put the rows of both back into their order."""
        order = np.argsort(np.concatenate([np.flatnonzero(free), np.flatnonzero(~free)]))
        sites = [*drawn.choices, *forced.choices]
        terms = ("log_prob", "log_proposal", "log_potential", "log_twist", "done", "scored")
        joined = (np.concatenate([getattr(drawn, term), getattr(forced, term)])[order] for term in terms)
        state = self.select(self.concat([drawn.state, forced.state]), order)
        return Advance(state, [sites[i] for i in order], *joined)

    def _forced(self, rows: Sequence[Any]) -> Advance[Draws]:
        values = self._given(rows)
        if not values:
            return self._free(np.zeros(len(rows), np.uint64))
        made = self.joint.force(values)
        for name in values:
            if np.isneginf(made["log_prob"][name]).any():
                raise ImpossibleChoice(f"site {name!r} of {self!r:.200}: a given value has probability 0")
        return self._weighed(made, len(rows))

    def _free(self, keys: Keys) -> Advance[Draws]:
        words = np.ascontiguousarray(keys).view(np.uint32).reshape(-1, 2)
        return self._weighed(self.joint.draw(words), len(keys))

    def _weighed(self, made: dict[str, Any], n: int) -> Advance[Draws]:
        kinds, log_prob = self.joint.kinds, made["log_prob"]
        drawn = [name for name, kind in kinds.items() if kind == "sample"]
        log_p = np.sum([np.zeros(n), *(log_prob[name] for name in drawn)], axis=0)
        log_q = np.sum([np.zeros(n), *(made["log_proposal"][name] for name in drawn)], axis=0)
        log_g = np.sum([np.zeros(n), *(terms for name, terms in log_prob.items() if name not in drawn)], axis=0)
        columns = {name: made["values"][name] for name, kind in kinds.items() if kind not in ("observe", "factor")}
        if "returned" in made:
            columns[_RETURNED] = made["returned"]
        true = np.ones(n, bool)
        return Advance(Draws(columns, n), self._sites(made, log_g), log_p, log_q, log_g, np.zeros(n), true, true)

    def _sites(self, made: dict[str, Any], log_potential: Floats) -> list[tuple[Site, ...]]:
        """Return the sites of each row, up to the one where it died, which errors then name."""
        n, columns = len(log_potential), []
        for name, kind in self.joint.kinds.items():
            log_p = made["log_prob"].get(name, np.zeros(n)).tolist()
            log_q = made["log_proposal"][name].tolist() if kind == "sample" else [0.0] * n
            if name in self.joint.constants:
                values = [self.joint.constants[name]] * n
            else:
                values = log_p if kind == "factor" else unstack(made["values"][name])
            said = "deterministic" if kind == "delta" else kind
            shown = [0.0] * n if kind == "factor" else log_p
            columns.append([Site(name, 0, said, *row) for row in zip(values, shown, log_q)])
        rows = list(zip(*columns)) or [()] * n
        for i in np.flatnonzero(np.isneginf(log_potential)).tolist():
            weights = [site.value if site.kind == "factor" else site.log_prob for site in rows[i]]
            rows[i] = rows[i][: weights.index(-np.inf) + 1]
        return rows


def _drawn(sites: Sequence[Site]) -> dict[str, Any]:
    return {site.name: site.value for site in sites if site.kind == "sample"}


def _shown(value: Any) -> str:
    """Show an argument: arrays by their shape."""
    shape = getattr(value, "shape", ())
    return f"<{type(value).__name__} {'×'.join(map(str, shape))}>" if shape else short(value, 60)


def from_numpyro(model: Callable[..., Any], *args: Any, **kwargs: Any) -> NumPyroModel:
    """Make a Feynman–Kac model of a NumPyro model and its arguments.

    Feynman–Kac mapping: one step. M_0 draws every latent site, plates and ``numpyro.contrib.control_flow`` included, in
    one compiled call for all particles; G_0 is the product of the observed likelihoods and factors. A particle's value
    is the dict of what it drew and of its deterministic sites, with what the model returned as ``"output"`` (if that
    is numeric). Choices can be forced (``given``: a mapping by name, or the sites of a run). Every engine takes it, and
    moves by gradient find its density: continuous sites move, and discrete ones stay as they were drawn. All of it is
    in float64.

    Handlers of NumPyro (condition, reparam, scale, mask, scope, do, block) may be around the model or within. As in
    `handlers`, a latent under ``scale`` has its law to that power, by a weight, and one that is masked keeps its law,
    from which it is drawn, while NumPyro's density leaves it out. What is observed outside its support has weight zero,
    also where NumPyro's validation is off.

    The arguments are constants of what is compiled, as in ``numpyro.infer.MCMC``: make the model once for many runs.
    Its observations come in one step; for a filter that takes them one by one, write a program with `scan`, in which
    `sample` takes NumPyro's distributions.

    Args:
        model: a function of NumPyro's primitives.
        args: its arguments, with the data; floating arrays are taken in float64. So are ``kwargs``.

    Raises:
        ImportError: without NumPyro (``pip install feynkac[jax]``).
        Unsupported: at once, by the name of the site: for a plate that subsamples, ``numpyro.param``, an improper law,
            a site that ``handlers.substitute`` fixes, and a key or a state of the model's own. Also where it is
            awaited in a program: there `nested` runs it.

    Source: Phan, Pradhan and Jankowiak (2019), arXiv:1912.11554.

    >>> import feynkac as fk, numpyro, numpyro.distributions as dist
    >>> def coin(flips):
    ...     p = numpyro.sample("p", dist.Beta(2.0, 2.0))
    ...     with numpyro.plate("flips", len(flips)):
    ...         numpyro.sample("flip", dist.Bernoulli(p), obs=flips)
    >>> posterior = fk.infer(fk.from_numpyro(coin, np.array([1, 1, 0, 1])), fk.SMC(2000), seed=0)
    >>> round(posterior.expect(lambda value: value["p"]), 2)  # 5/8
    0.62
    """
    if not callable(model):
        raise TypeError(f"from_numpyro takes a NumPyro model, a function and its arguments, not {model!r:.200}")
    return NumPyroModel(model, args, kwargs)
