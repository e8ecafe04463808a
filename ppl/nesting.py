"""Inference inside a program: the effect. What serves it is in ``inference``, which this room does not know."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from .effects import Call, fingerprint
from .keys import Keys
from .model import FeynmanKac
from .sites import Running

Service = Callable[[Sequence["Nested"], Keys], list[Any]]
"""Runs what the particles of a wave ask for, each with its key; returns a posterior of each, or `Failed`."""
_services: list[Service] = []


class Nested(Call):
    """See `nested`."""

    __slots__ = ()
    kind = "nested"

    def __init__(self, name: str, model: Any, engine: Any) -> None:
        super().__init__(name, None, (model, engine))
        if hasattr(model, "claim"):
            model.claim()

    @property
    def request(self) -> Any:
        """The model, and the engine with its settings."""
        model, engine = self.args
        known = fingerprint(model) if hasattr(model, "fingerprint") else type(model).__qualname__
        return (known, repr(engine) if hasattr(engine, "__dataclass_fields__") else type(engine).__qualname__)


def nested(name: str, model: FeynmanKac[Any], engine: Any) -> Awaitable[Any]:
    """Run an engine on a model within a program, and return its `Posterior`.

    The runs of all particles that wait for one are made together and share their batches. Each has a key of its own,
    folded from the particle's key and the site's address: ``fk.infer(model, engine, seed=inner.seed)`` makes the same
    run again. What it costs is counted where the particle belongs, and the budget of the outer run sees it (between
    waves: a nested run is not cut short). The posterior is recorded like the value of a `call`: a forked particle gets
    it back, and ``given`` replays it. Handlers of the outer program do not reach into it.

    By itself it weighs nothing. ``inner.draw`` is one value, drawn by weight: in the law of the program it has the law
    that the engine draws from. With ``await fk.factor("Z", inner.log_evidence)`` the outer target is that of the model
    with the inner one marginalised, exactly (pseudo-marginal: Andrieu and Roberts 2009, doi:10.1214/07-AOS574), where
    the inner engine's guarantee is "unbiased". A program that reads the log evidence of any other makes the outer
    posterior "heuristic".

    Raises, where it is awaited and can be caught: `AllParticlesDead`, and whatever else the inner run raises.
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
    """
    return Nested(name, model, engine)


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
