"""Programs: an ``async def`` function becomes a Feynman–Kac model.

The step of a program ends at a ``factor``, ``twist`` or observation, and when the program returns. M_t is the law
of all that is drawn within the step, and G_t the product of its factors and observed likelihoods.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Generic, ParamSpec

import numpy as np

from .density import Density, Kept
from .effects import fingerprint
from .errors import OutsideProgram, UncloseableProgram
from .keys import Keys
from .model import Advance, Index
from .running.fibers import Run
from .running.forks import Forks
from .running.particle import Particle, Particles
from .running.wave import Wave
from .sites import Running, Site
from .values.guard import guard
from .values.reach import Place, around, surroundings, tensors

P = ParamSpec("P")


class Program:
    """A bound program: a Feynman–Kac model (see `FeynmanKac`). Made by calling a `program`.

    Containers and arrays among the arguments are shared by all particles, so the program sees them read-only.
    Awaiting a bound program inside another one runs it in place.
    """

    def __init__(
        self,
        fn: Callable[..., Coroutine[Any, Any, Any]],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        handlers: tuple[Any, ...] = (),
    ) -> None:
        inspect.signature(fn).bind(*args, **kwargs)  # a wrong call fails here, not in a particle
        self._fn = fn
        self._args = tuple(guard(arg) for arg in args)
        self._kwargs = {name: guard(arg) for name, arg in kwargs.items()}
        self.handlers = handlers
        self.name = fn.__name__
        self.compiled: Any = None  # see `compiled.deciding`
        self.kept_densities = Kept()
        # Made by a running program, it is to be awaited there, like an effect.
        self._inside = Running.fiber is not None
        if self._inside:
            Running.fiber.run.unawaited += 1

    def __reduce__(self) -> Any:
        # What is kept of it speaks of objects of this process; and what it is given is made read-only anew.
        return Program, (self._fn, self._args, self._kwargs, self.handlers)

    def __repr__(self) -> str:
        with np.printoptions(threshold=20, edgeitems=2):  # to write a long array takes longer than many a run
            shown = [repr(arg) for arg in self._args] + [f"{k}={v!r}" for k, v in self._kwargs.items()]
        return f"{self.name}({', '.join(shown)})"

    @property
    def reachable(self) -> tuple[Any, ...]:
        """The function, and all that it is given."""
        return (self._fn, *self._args, *self._kwargs.values())

    def coroutine(self) -> Coroutine[Any, Any, Any]:
        """Start the program's function afresh."""
        self.claim()
        return self._fn(*self._args, **self._kwargs)

    @functools.cached_property
    def tensors(self) -> dict[str, Any]:
        """The arguments and the variables around it that hold tensors of torch, which nothing can make read-only."""
        given = inspect.signature(self._fn).bind(*self._args, **self._kwargs)
        given.apply_defaults()
        found = {**around(self._fn), **{f"the argument {name}": value for name, value in given.arguments.items()}}
        return {name: value for name, value in found.items() if tensors(value, name)}

    def kept(self) -> tuple[Place, ...]:
        """Picture these tensors, as they are now."""
        return tuple(place for name, value in self.tensors.items() for place in tensors(value, name))

    @functools.cached_property
    def surroundings(self) -> tuple[frozenset[str], dict[int, Any]]:
        """See `surroundings`."""
        return surroundings(self.reachable)

    def inline(self) -> Coroutine[Any, Any, Any]:
        """Return what runs the program within another one, under its own handlers."""
        self.claim()
        for handler in self.handlers:
            handler.inside()
        return self._inline()

    async def _inline(self) -> Any:
        fiber = Running.fiber
        if fiber is None:
            if Running.insists():
                await _leave()
            raise OutsideProgram(f"{self!r} was awaited where no program is running")
        fiber.handlers.extend(self.handlers)
        try:
            return await self.coroutine()
        finally:
            del fiber.handlers[len(fiber.handlers) - len(self.handlers) :]

    def __await__(self) -> Any:
        return self.inline().__await__()

    def with_handler(self, handler: Any) -> Program:
        """Return the program under one more handler, outside those it has."""
        self.claim()
        return Program(self._fn, self._args, self._kwargs, (handler, *self.handlers))

    def rebind(self, **given: Any) -> Program:
        """Return the program with other values for some of its arguments, by name.

        Raises TypeError for one that it has not.
        """
        bound = inspect.signature(self._fn).bind(*self._args, **self._kwargs)
        unknown = sorted(set(given) - set(bound.signature.parameters))
        if unknown:
            raise TypeError(f"{self.name!r} has no argument {unknown[0]!r}")
        bound.arguments.update(given)
        return Program(self._fn, bound.args, bound.kwargs, self.handlers)

    @property
    def fingerprint(self) -> Any:
        """What is compared when a program that runs this one is replayed: the function and its arguments."""
        return (self.name, fingerprint(self._args), fingerprint(self._kwargs))

    def claim(self) -> None:
        """Note that it is used by the program that made it, if one did."""
        if self._inside:
            self._inside = False
            Running.fiber.run.unawaited -= 1

    # -- the contract -------------------------------------------------------------------------------------------

    def start(self, keys: Keys, given: Sequence[Any] | None = None) -> Advance[Particles]:
        """Run one particle per key to its first step end."""
        return launch([self] * len(keys), keys, given)

    def advance(self, state: Particles, keys: Keys, given: Sequence[Any] | None = None) -> Advance[Particles]:
        """Run each particle to its next step end; those done pass through."""
        return resume(state, keys, given)

    def unconstrained(self, paths: Sequence[Any], horizon: int | None) -> list[Density]:
        """Return the densities over the continuous choices of paths; see `Unconstrained`.

        The program's code is traced by JAX, once for each signature (addresses and shapes of its latents), and what is
        compiled is kept with the program. Discrete values go in as numbers; where the code branches on them, each has a
        density of its own. Texts, and other values of laws that JAX cannot trace, stay as they are, and so do their
        log-probs and scores, which must not depend on the coordinates. A program of ``torch.distributions`` whose
        parameters depend on values is traced by torch, anew for each evaluation of all paths together; it may loop but
        not `fk.scan`, and each set of its discrete values has a density of its own. A program that neither can trace is
        run once for each path and evaluation, and has no gradient (NotDifferentiable says at which site).
        """
        from .traced.routes import unconstrained

        return unconstrained(self, paths, horizon, launch)

    def select(self, state: Particles, index: Index) -> Particles:
        """Keep, duplicate or reorder particles."""
        return Particles([state.items[i] for i in index])

    def concat(self, states: Sequence[Particles]) -> Particles:
        """Join batches."""
        return Particles([item for state in states for item in state.items])

    def values(self, state: Particles) -> list[Any]:
        """Return what each particle returned; its last ``"output"`` where it has not."""
        return [item.result if item.done and not item.dead else item.output for item in state.items]


def launch(
    programs: Sequence[Program],
    keys: Keys,
    given: Sequence[Any] | None = None,
    owners: Sequence[int] | None = None,
) -> Advance[Particles]:
    """Start one particle of each program, all in one wave. ``owners`` are their rows in the cost ledger."""
    runs = [Run(program) for program in programs]
    for row, run in enumerate(runs):
        run.begin(row, len(runs), None if given is None else given[row])
    Running.stuck = None
    particles = Wave(runs, keys, owners).run(lambda: Particles([Particle(run, 0) for run in runs]))
    _check_closed()
    return _advance(particles, runs)


def resume(
    state: Particles, keys: Keys, given: Sequence[Any] | None = None, owners: Sequence[int] | None = None
) -> Advance[Particles]:
    """Advance a batch whose particles may belong to several programs, all in one wave."""
    live = [i for i, item in enumerate(state.items) if not item.done]
    runs: list[Run] = []
    wave = Wave(runs, keys[live], None if owners is None else [owners[i] for i in live])
    forks = Forks(wave)
    for row, i in enumerate(live):
        item = state.items[i]
        run, item.run = item.run, None
        fresh = run is None
        if run is None:
            run = Run(item.program)
        run.begin(row, len(live), None if given is None else given[i])
        runs.append(run)
        if fresh:
            assert item.snapshot is not None
            forks.restore(run, item.snapshot)
            run.output = item.output
            run.cells = item.cells
        if forks.few:
            forks.stands(item, run)
    items = list(state.items)
    moved = wave.run(lambda: [Particle(run, items[i].depth + 1) for i, run in zip(live, runs)])
    for i, particle in zip(live, moved):
        items[i] = particle
    _check_closed()
    return _advance(Particles(items), runs, live)


def _check_closed() -> None:
    """Raise where a program that is gone would not be closed."""
    stuck, Running.stuck = Running.stuck, None
    if stuck is not None:
        raise UncloseableProgram(
            f"`{stuck}` catches what closes a particle that is gone, and tries again for ever: in its loop, write "
            "`except Exception:` in place of a bare `except:` or of `except BaseException:`"
        )


@types.coroutine
def _leave() -> Any:
    """Await nothing: a coroutine that is being closed, and awaits, is left by Python."""
    yield


def _advance(state: Particles, runs: list[Run], live: list[int] | None = None) -> Advance[Particles]:
    n = len(state)
    rows = np.arange(n) if live is None else np.array(live, np.intp)
    numbers = np.zeros((4, n))
    if runs:
        numbers[:, rows] = np.array(
            [
                (run.log_prob, run.log_proposal, run.log_potential, 0.0 if run.done else run.root.levels())
                for run in runs
            ]
        ).T
    scored = np.ones(n, bool)
    scored[rows] = [run.scored for run in runs]
    choices: list[tuple[Site, ...]] = [()] * n
    for row, run in zip(rows.tolist(), runs):
        choices[row] = tuple(run.sites)
    log_prob, log_proposal, log_potential, log_twist = numbers
    return Advance(state, choices, log_prob, log_proposal, log_potential, log_twist, state.done, scored)


class ProgramFactory(Generic[P]):
    """What `program` makes of a function: calling it binds arguments and gives a `Program`."""

    def __init__(self, fn: Callable[P, Coroutine[Any, Any, Any]]) -> None:
        if not inspect.iscoroutinefunction(fn):
            raise TypeError(f"@fk.program needs an `async def` function; {fn!r} is not one")
        self._fn = fn
        functools.update_wrapper(self, fn)

    @property
    def reachable(self) -> tuple[Any, ...]:
        """The function."""
        return (self._fn,)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        # As a method, a program binds its object like any other.
        return self if instance is None else functools.partial(self, instance)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Program:
        """Bind arguments: the result is a Feynman–Kac model."""
        return Program(self._fn, args, kwargs)


def program(fn: Callable[P, Coroutine[Any, Any, Any]]) -> ProgramFactory[P]:
    """Make a generative program of an ``async def`` function.

    Every ``await`` in it is a point where the engine may batch, weigh, fork or resample, and nothing else is. The
    code between awaits must be a function of the arguments and of what the awaits returned, since a fork may run
    it again (prints are then repeated). A fork compares the sites and their arguments, what `deterministic` records,
    and in a few particles of each wave the variables, and raises `NonDeterministicProgram` where they differ. Chance
    that is in none of these when a particle is forked is not found: used up in an expression, or rare. What particles
    share (arguments, what awaits return) they must not change: containers and arrays are read-only, and a torch tensor,
    or an object of the program's own package, that was changed in place raises `SharedMutation` at the step's end
    (changes through a tensor's ``.data`` or its NumPy view, and within other libraries' objects, are not seen).

    >>> import feynkac as fk
    >>> @fk.program
    ... async def walk(steps):
    ...     x = 0.0
    ...     for _ in range(steps):
    ...         x = await fk.sample("x", fk.dist.Normal(x, 1.0))
    ...         await fk.observe("y", fk.dist.Normal(x, 0.5), 1.0)
    ...     return x
    >>> posterior = fk.infer(walk(3), fk.SMC(100), seed=0)
    >>> bool(0.5 < posterior.expect(lambda x: x) < 1.5)
    True
    """
    return ProgramFactory(fn)


def check_bound(who: str, model: Any) -> None:
    """Raise TypeError unless a model is a program with its arguments."""
    if not isinstance(model, Program):
        raise TypeError(f"{who} takes a bound program, such as f(args), not {type(model).__name__}")
