"""Effect handlers, as in NumPyro: small transformations of a program's sites.

Each works on a bound program (``condition(model, data={"x": 1.0})`` returns a new model), and, where it has no
model, as a context manager inside a program (``with handlers.scope(prefix="inner"): …``). Handlers see a site from
the innermost to the outermost, each under the address that the site has there: ``"x"``, and ``"x[1]"`` for the
second visit of the same name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .guard import guard
from .handling import Block, Condition, Do, Handler, Mask, Replay, Scope, Seed
from .simulation import simulate
from .sites import Site, check_name


def _apply(handler: Handler, model: Any) -> Any:
    if model is None:
        return handler
    if not hasattr(model, "with_handler"):
        raise TypeError(f"handlers work on bound programs, not on {type(model).__name__}; write f(args), not f")
    return model.with_handler(handler)


def seed(model: Any = None, *, rng_seed: int) -> Any:
    """Fix the seed that `simulate` and `trace` use.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def coin():
    ...     return await fk.sample("heads", fk.dist.Bernoulli(0.3))
    >>> fk.simulate(seed(coin(), rng_seed=1)).value == fk.simulate(coin(), seed=1).value
    True
    """
    return _apply(Seed(rng_seed), model)


def condition(model: Any = None, *, data: Mapping[str, Any]) -> Any:
    """Observe sample sites at the given values: their log p become potentials, and end a step each.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def coin():
    ...     return await fk.sample("heads", fk.dist.Bernoulli(0.25))
    >>> run = fk.simulate(condition(coin(), data={"heads": 1}), seed=0)
    >>> run.value, round(run.log_weight, 4)
    (1, -1.3863)
    """
    return _apply(Condition(guard(dict(data))), model)


def substitute(model: Any = None, *, data: Mapping[str, Any]) -> Any:
    """Force sample sites to the given values, scored as if drawn: log p counts, and there is no weight.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def coin():
    ...     return await fk.sample("heads", fk.dist.Bernoulli(0.25))
    >>> run = fk.simulate(substitute(coin(), data={"heads": 1}), seed=0)
    >>> run.value, round(run.log_prob, 4), run.log_weight
    (1, -1.3863, 0.0)
    """
    return _apply(Replay(guard(dict(data))), model)


def replay(model: Any = None, *, trace: Mapping[str, Site]) -> Any:
    """Force samples and calls to the values of a trace, as `substitute` does.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def coin():
    ...     return await fk.sample("heads", fk.dist.Bernoulli(0.5))
    >>> first = fk.simulate(coin(), seed=3)
    >>> fk.simulate(replay(coin(), trace=first.trace), seed=4).value == first.value
    True
    """
    values = {address: site.value for address, site in trace.items() if site.kind in ("sample", "call")}
    return _apply(Replay(values), model)


def do(model: Any = None, *, data: Mapping[str, Any]) -> Any:
    """Intervene: fix sample sites at the given values, with no probability and no weight.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def coin():
    ...     return await fk.sample("heads", fk.dist.Bernoulli(0.25))
    >>> run = fk.simulate(do(coin(), data={"heads": 1}), seed=0)
    >>> run.value, run.log_prob
    (1, 0.0)
    """
    return _apply(Do(guard(dict(data))), model)


def block(model: Any = None, *, hide: Sequence[str] | None = None, hide_fn: Callable[[str], bool] | None = None) -> Any:
    """Hide sites (all, those named, or those of which ``hide_fn(name)`` holds) from traces and outer handlers.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def coin():
    ...     return await fk.sample("heads", fk.dist.Bernoulli(0.5))
    >>> list(fk.simulate(block(coin(), hide=["heads"]), seed=0).trace)
    []
    """
    if hide_fn is None:
        names = None if hide is None else frozenset(hide)
        hide_fn = lambda name: names is None or name in names  # noqa: E731
    return _apply(Block(hide_fn), model)


def scope(model: Any = None, *, prefix: str) -> Any:
    """Put ``prefix/`` before the names of all sites.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def coin():
    ...     with scope(prefix="first"):
    ...         return await fk.sample("heads", fk.dist.Bernoulli(0.5))
    >>> list(fk.simulate(coin(), seed=0).trace)
    ['first/heads']
    """
    check_name(prefix, "a scope")
    if prefix.rpartition(".")[2].isdecimal() and "." in prefix:
        raise ValueError(f"the scope {prefix!r} ends like a branch of fk.gather; choose another name")
    return _apply(Scope(prefix), model)


def mask(model: Any = None, *, mask: bool) -> Any:
    """Where ``mask`` is False, let factors, twists and observations count as zero. Samples are drawn as ever.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def coin(seen):
    ...     with mask(mask=seen):
    ...         await fk.factor("evidence", -2.0)
    >>> fk.simulate(coin(False), seed=0).log_weight, fk.simulate(coin(True), seed=0).log_weight
    (0.0, -2.0)
    """
    return _apply(Mask(bool(mask)), model)


class Trace:
    """See `trace`."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def get_trace(self, *, seed: int | None = None) -> dict[str, Site]:
        """Run the program once and return its sites by address, in order."""
        return simulate(self._model, seed=seed).trace


def trace(model: Any) -> Trace:
    """Record the sites of one run.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def coin():
    ...     heads = await fk.sample("heads", fk.dist.Bernoulli(0.3))
    ...     await fk.factor("score", 1.0 + heads)
    >>> sites = trace(seed(coin(), rng_seed=0)).get_trace()
    >>> {address: site.kind for address, site in sites.items()}
    {'heads': 'sample', 'score': 'factor'}
    """
    return Trace(model)
