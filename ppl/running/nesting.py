"""Inference inside a program: the effect. What serves it is in ``inference``, which this room does not know."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from ..effects import Call, fingerprint
from ..keys import Keys
from ..model import FeynmanKac
from ..sites import Running

Service = Callable[[Sequence["Nested"], Keys], list[Any]]
"""Runs what the particles of a wave ask for, each with its key; returns a posterior of each, or `Failed`."""
_services: list[Service] = []


class Nested(Call):
    """See `nested`."""

    __slots__ = ()
    kind = "nested"

    def __init__(self, name: str, model: Any, engine: Any, steps: int | None) -> None:
        super().__init__(name, None, (model, engine, steps))
        if hasattr(model, "claim"):
            model.claim()

    @property
    def request(self) -> Any:
        """The model or the run that is continued, the engine with its settings, and the steps."""
        model, engine, steps = self.args
        known = fingerprint(model) if hasattr(model, "fingerprint") else type(model).__qualname__
        return (known, repr(engine) if hasattr(engine, "__dataclass_fields__") else type(engine).__qualname__, steps)


def nested(name: str, model: FeynmanKac[Any] | Any, engine: Any = None, *, steps: int | None = None) -> Awaitable[Any]:
    """Run an engine on a model within a program, and return its `Posterior`.

    The runs of all particles that wait for one are made together and share their batches. Each has a key of its own,
    folded from the particle's key and the site's address: ``fk.infer(model, engine, seed=inner.seed)`` makes the same
    run again. What it costs is counted where the particle belongs, and the budget of the outer run sees it (between
    waves: a nested run is not cut short). The posterior is recorded like the value of a `call`: a forked particle gets
    it back, and ``given`` replays it. Handlers of the outer program do not reach into it.

    A model whose `scan` is compiled in `infer` is compiled here, too, once for all particles.

    By itself it weighs nothing. ``inner.draw`` is one value, drawn by weight: in the law of the program it has the law
    that the engine draws from. With ``await fk.factor("Z", inner.log_evidence)`` the outer target is that of the model
    with the inner one marginalised, exactly (pseudo-marginal: Andrieu and Roberts 2009, doi:10.1214/07-AOS574), where
    the inner engine's guarantee is "unbiased". A program that reads the log evidence of any other makes the outer
    posterior "heuristic". As the estimate is recorded, and never made anew for a run that stays as it is, any
    Metropolis–Hastings on the outer program is particle marginal Metropolis–Hastings (PMMH: Andrieu, Doucet and
    Holenstein 2010, doi:10.1111/j.1467-9868.2009.00736.x). It moves well where Var(log Ẑ) is about 1.

    **Step by step.** With ``steps=t`` the engine makes the first t steps alone (fewer where all particles have
    finished), and its evidence is that of the model cut there. ``await fk.nested(name, run, steps=t + 1)`` goes on from
    such a posterior, which stays as it is: the factor of the new step is ``after.log_evidence - before.log_evidence``.
    Each call that goes on has a key of its own, from its particle and site, and is recorded as the first is; so twins
    of a fork go on independently. The posterior is that of the whole run (values, history, cost), but for its seed,
    which is that of the last call. Under ``SMC(n, move=…)`` on the outer program this is SMC² (Chopin, Jacob and
    Papaspiliopoulos 2013, doi:10.1111/j.1467-9868.2012.01046.x, arXiv:1101.1528): a move that changes what the inner
    model depends on makes a fresh inner run from its first step, which is kept with its state if it is accepted. A long
    series belongs in a `scan` whose carry is the run: the record of a loop keeps the state of each step. The engines
    that can go on are `SMC` without ``move``, and `ImportanceSampling`.

    Args:
        name: the site's name.
        model: the inner model; or the posterior of a call with ``steps``, to go on from it, without ``engine``.
        engine: an engine with its settings.
        steps: of the inner model, from its start; None: all.

    Raises, where it is awaited and can be caught: `AllParticlesDead`, and whatever else the inner run raises.
    `Unsupported` for ``steps`` of an engine that cannot go on, ValueError for steps that are not more than those made,
    and for a posterior that has no live run to go on from (one that was read from a file, or from a finished run).
    `enumerate_program` refuses it, and so do engines that need the probability of every choice.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def die(sides):
    ...     face = await fk.sample("face", fk.dist.DiscreteUniform(1, sides))
    ...     await fk.factor("high", float(face >= 4))
    ...     return face
    >>> @fk.program
    ... async def which():
    ...     sides = await fk.sample("sides", fk.dist.Categorical([0.5, 0.5], values=[4, 6]))
    ...     inner = await fk.nested("throw", die(sides), fk.SMC(50))
    ...     await fk.factor("Z", inner.log_evidence)
    ...     return sides, inner.draw
    >>> posterior = fk.infer(which(), fk.SMC(200), seed=0)
    >>> posterior.guarantee, abs(posterior.expect(lambda value: value[0] == 6) - 0.565) < 0.1
    ('unbiased', True)

    A filter inside, one observation after the other:

    >>> @fk.program
    ... async def walk(drift, ys):
    ...     x = 0.0
    ...     for y in ys:
    ...         x = await fk.sample("x", fk.dist.Normal(x + drift, 1.0))
    ...         await fk.observe("y", fk.dist.Normal(x, 0.5), y)
    >>> @fk.program
    ... async def learns(ys):
    ...     drift = await fk.sample("drift", fk.dist.Normal(0.0, 1.0))
    ...     run = await fk.nested("filter", walk(drift, ys), fk.SMC(20), steps=1)
    ...     await fk.factor("Z", run.log_evidence)
    ...     for t in range(2, len(ys) + 1):
    ...         before, run = run, await fk.nested("filter", run, steps=t)
    ...         await fk.factor("Z", run.log_evidence - before.log_evidence)
    ...     return drift
    >>> posterior = fk.infer(learns((1.1, 2.3, 2.8)), fk.SMC(20, move=fk.SuffixMH(1)), seed=0)
    >>> posterior.guarantee, 0.3 < posterior.expect(float) < 1.3
    ('unbiased', True)
    """
    return Nested(name, model, engine, steps)


def provide(service: Service) -> None:
    """Say what serves nested runs."""
    _services[:] = [service]


def serve(requests: Sequence[Nested], keys: Keys) -> list[Any]:
    """Run what particles ask for."""
    return _services[0](requests, keys)


def rely() -> None:
    """Note that the program that now runs, if any, builds on an estimate that is not unbiased."""
    fiber = Running.fiber
    if fiber is not None:
        fiber.run.relies = True
