"""Effect handlers: small transformations of a program's sites, under NumPyro's names and with its meanings.

Each works on a bound program (``condition(model, data={"x": 1.0})`` returns a new model), and, where it has no
model, as a context manager inside a program (``with handlers.scope(prefix="inner"): …``). Handlers see a site from
the innermost to the outermost, each under the address that the site has there: ``"x"``, and ``"x[1]"`` for the
second visit of the same name (``"x[0]"`` is ``"x"``).

Where a program of draws one after another must differ from NumPyro's joint density:

==============  ======================================================================================================
`condition`     The same. Of a site in a `scan`, an array under its bare name holds a value for each iteration, as in
                NumPyro; another length is refused. No ``condition_fn``.
`substitute`    The same: of a latent it forces the value, scored as if drawn; of an observed site it changes the
                observation. Reaches calls (`fk.call`), too. No ``substitute_fn``.
`replay`        The same: observed sites are left alone, and a draw that the trace observed is refused. Reaches calls.
`do`            The same law: evidence on the site still counts (``obs=``, or `condition` on either side), and what
                follows sees the intervention. The site itself is not drawn where it has no evidence, since that
                counts for nothing; the trace has the intervention as ``"x__CF"``, of kind "do". Of nested ones the
                outermost holds, where NumPyro's recursion does not end.
`mask`          Of factors, twists and observations the same; an array masks an observed array by component. A latent
                keeps its law, and is drawn from it: NumPyro drops its density, and has none to draw it from.
`scale`         The same: of a latent the law is p to that power, by a weight, since it is drawn from p.
`block`         ``hide``, ``hide_fn``, ``expose`` as there, but ``hide_fn`` gets the name alone. No ``expose_types``.
`scope`         The same, always with "/", and for all kinds of sites.
`seed`          Around a model for `fk.simulate` and `trace`, innermost first, as there. `fk.infer` has a seed of its
                own, and inside a program a seed is refused: each particle draws from its own key.
`trace`         ``trace(model).get_trace(seed=…)`` takes no arguments of the model, which is bound already.
`propose`       It has none: a guide's laws become the proposals of the model's sites.
==============  ======================================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..distributions.terms import as_mask, as_scale
from ..program import check_bound
from ..running.handling import Block, Condition, Do, Handler, Mask, Replay, Scale, Scope, Seed, Substitute
from ..sites import Site, check_name
from ..values.guard import guard
from .proposing import guided
from .simulation import simulate


def _apply(handler: Handler, model: Any) -> Any:
    if model is None:
        return handler
    if not hasattr(model, "with_handler"):
        raise TypeError(f"handlers work on bound programs, not on {type(model).__name__}; write f(args), not f")
    return model.with_handler(handler)


def seed(model: Any = None, *, rng_seed: int) -> Any:
    """Fix the seed that `simulate` and `trace` use; of nested ones the innermost.

    Inside a program it is refused (Unsupported): there each particle draws from a key of its own.

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

    Args:
        model: a bound program; None makes a context manager.
        data: values by address. For a site in a `scan`, a list or array under its bare name has a value for each
            iteration; so the whole series of one can be given at once.

    Raises ValueError, at the site, for a series of another length than the scan.

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

    Of an observed site the value becomes the observation. Series for scans are as in `condition`.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def coin():
    ...     return await fk.sample("heads", fk.dist.Bernoulli(0.25))
    >>> run = fk.simulate(substitute(coin(), data={"heads": 1}), seed=0)
    >>> run.value, round(run.log_prob, 4), run.log_weight
    (1, -1.3863, 0.0)
    """
    return _apply(Substitute(guard(dict(data))), model)


def replay(model: Any = None, *, trace: Mapping[str, Site]) -> Any:
    """Force samples and calls to the values of a trace, as `substitute` does; observed sites are left alone.

    Raises ValueError, at the site, where the program draws what the trace observed.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def coin():
    ...     return await fk.sample("heads", fk.dist.Bernoulli(0.5))
    >>> first = fk.simulate(coin(), seed=3)
    >>> fk.simulate(replay(coin(), trace=first.trace), seed=4).value == first.value
    True
    """
    values = {address: site.value for address, site in trace.items() if site.kind in ("sample", "call")}
    return _apply(Replay(values, frozenset(a for a, site in trace.items() if site.kind == "observe")), model)


def do(model: Any = None, *, data: Mapping[str, Any]) -> Any:
    """Intervene: what follows a sample site sees the given value, which has no probability and no weight.

    Evidence on the site (``obs=``, or `condition`) still counts, as it is about what would have happened; a site
    without evidence is not drawn. The trace has the intervention as ``"heads__CF"``. Series are as in `condition`.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def coin():
    ...     return await fk.sample("heads", fk.dist.Bernoulli(0.25))
    >>> run = fk.simulate(do(coin(), data={"heads": 1}), seed=0)
    >>> run.value, run.log_prob
    (1, 0.0)
    """
    return _apply(Do(guard(dict(data))), model)


def block(
    model: Any = None,
    *,
    hide_fn: Callable[[str], bool] | None = None,
    hide: Sequence[str] | None = None,
    expose: Sequence[str] | None = None,
) -> Any:
    """Hide sites from traces and outer handlers: all, or those named, or all but those named.

    Args:
        model: a bound program; None makes a context manager.
        hide_fn: tells by its name whether a site is hidden.
        hide: the names that are hidden.
        expose: the names that are not.

    Raises ValueError where more than one of the three is given.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def coins():
    ...     await fk.sample("heads", fk.dist.Bernoulli(0.5))
    ...     return await fk.sample("tails", fk.dist.Bernoulli(0.5))
    >>> list(fk.simulate(block(coins(), hide=["heads"]), seed=0).trace)
    ['tails']
    >>> list(fk.simulate(block(coins(), expose=["heads"]), seed=0).trace)
    ['heads']
    """
    if sum(given is not None for given in (hide_fn, hide, expose)) > 1:
        raise ValueError("block takes one of hide_fn, hide and expose")
    for given in (hide, expose):
        if isinstance(given, str):
            raise ValueError(f"block takes a list of names, not the string {given!r}")
    if hide_fn is None:
        hidden, shown = (None if given is None else frozenset(given) for given in (hide, expose))
        hide_fn = lambda name: name not in shown if shown is not None else hidden is None or name in hidden  # noqa: E731
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


def mask(model: Any = None, *, mask: Any) -> Any:
    """Where ``mask`` is False, let factors, twists and observations count as zero. Samples are drawn as ever.

    Args:
        model: a bound program; None makes a context manager.
        mask: a bool; or an array of bools, for observed arrays of its shape, whose components count where it is
            True. What is missing may then be NaN.

    Raises TypeError for a mask that is neither; at the site, ValueError for another shape and for factors under an
    array, CannotScore for laws whose components are not independent.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def coin(seen):
    ...     with mask(mask=seen):
    ...         await fk.factor("evidence", -2.0)
    >>> fk.simulate(coin(False), seed=0).log_weight, fk.simulate(coin(True), seed=0).log_weight
    (0.0, -2.0)
    >>> import numpy as np
    >>> @fk.program
    ... async def gaps(y):
    ...     with mask(mask=~np.isnan(y)):
    ...         await fk.observe("y", fk.dist.Exponential(np.ones(3)), y)
    >>> fk.simulate(gaps(np.array([1.0, np.nan, 0.5])), seed=0).log_weight
    -1.5
    """
    return _apply(Mask(as_mask(mask)), model)


def scale(model: Any = None, *, scale: float) -> Any:
    """Multiply the log-terms of all sites by a positive number: each likelihood, factor and prior to that power.

    A latent is drawn from its own law p, and the weight makes p to that power of it (which is not normalised). Use it
    for a subsample (``scale=len(data) / len(batch)``) or a power posterior.

    Raises ValueError for a scale that is not positive, CannotScore at a latent without log-probabilities.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def coin():
    ...     with scale(scale=2.0):
    ...         heads = await fk.sample("heads", fk.dist.Bernoulli(0.25))
    ...         await fk.factor("evidence", 1.5 * heads)
    ...     return heads
    >>> run = fk.simulate(coin(), seed=0, given={"heads": 1})
    >>> round(run.log_prob, 4), round(run.log_weight, 4)  # 2 log 1/4; 3 + (2 - 1) log 1/4
    (-2.7726, 1.6137)
    """
    return _apply(Scale(as_scale(scale)), model)


def propose(model: Any, guide: Any) -> Any:
    """Let a guide, fitted or not, propose what a model draws: the result is a model with the same target.

    A guide is a program that draws at the model's addresses. The two are run side by side: where the model comes to a
    draw, the guide is run to its next one, and if it is of the same address its law is the proposal (a `proposal` of
    the model's own is replaced); both go on with the value, be it drawn, forced by ``given`` or observed by
    `condition`. Weights are p/q, so that evidence stays unbiased, whatever the guide's quality. What the guide does not
    draw is drawn from the model.

    The guide has parameters (`param`), its own control flow, calls and subprograms. It draws in the model's order, in
    branches of a `gather` and iterations of a `scan` where the model does.

    Args:
        model: a bound program.
        guide: a bound program, such as what `fit` returns.

    Raises, where the model runs: UnfitGuide for a guide that observes, weighs, draws what the model does not, or
    comes too late with it; UnsupportedProposal for a law that cannot reach all that the model's can.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def model():
    ...     z = await fk.sample("z", fk.dist.Normal(0.0, 1.0))
    ...     await fk.observe("y", fk.dist.Normal(z, 0.5), 1.5)
    >>> @fk.program
    ... async def guide():
    ...     await fk.sample("z", fk.dist.Normal(1.2, 0.2**0.5))  # which is the posterior
    >>> posterior = fk.infer(propose(model(), guide()), fk.ImportanceSampling(3), seed=0)
    >>> round(posterior.log_evidence, 9)
    -1.930510309
    """
    for program in (model, guide):
        check_bound("propose", program)
    return guided(model, guide)


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
