"""Races: branches run side by side until some of them have returned, and the others are cancelled."""

from __future__ import annotations

from collections.abc import Awaitable, Iterator
from typing import Any

from .effects import Gather
from .fibers import Fiber, Finished, Run
from .reals import whole_number


class Race(Gather):
    """See `race`."""

    __slots__ = ("k",)
    kind = "race"

    def __init__(self, name: str, branches: tuple[Any, ...], k: int) -> None:
        super().__init__(name, branches)
        self.k = k

    @property
    def request(self) -> Any:
        """The number of branches, and how many of them are waited for."""
        return len(self.branches), self.k


def race(*branches: Any, k: int = 1, name: str = "race") -> Awaitable[tuple[tuple[int, Any], ...]]:
    """Run sub-programs side by side until ``k`` of them have returned, and cancel the others.

    The branches go on as those of a `gather`, a step of all of them at a time. The first are those that have returned
    by the earliest step end, and of those that have done so by the same one the first by their order: never by a clock,
    so that a particle's race does not depend on what else is in the batch. The others are closed at that step end. What
    they weighed, drew and wrote to cells until then stays; the levels of their twists are 0 from then on.

    A race is a part of the model: its law is that of what comes first. Its branches end their steps by `factor`,
    `observe` or `twist`, as anywhere; where they have none, all of them run to their ends, and the order decides.

    Args:
        branches: coroutines, bound programs or effects, one or more.
        k: how many are waited for.
        name: a prefix of the branches' sites, ``race.0/x`` and so on.

    Returns an awaitable of ((index, value), …), the k first, the first one first.

    Raises ValueError for k below 1 or above the number of branches; SharedMutation and WriteConflict as `gather` does.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def tries(p):
    ...     n = 0
    ...     while not await fk.sample("done", fk.dist.Bernoulli(p)):
    ...         n += 1
    ...         await fk.factor("go on", 0.0)
    ...     return n
    >>> @fk.program
    ... async def first():
    ...     ((winner, n),) = await fk.race(tries(0.5), tries(0.1))
    ...     return winner
    >>> posterior = fk.infer(first(), fk.ImportanceSampling(2000), seed=0)
    >>> round(posterior.expect(lambda winner: winner == 0), 1)  # 0.5 / (1 − 0.5 · 0.9)
    0.9
    """
    k = whole_number("k", k)
    if k > len(branches):
        raise ValueError(f"race {name!r} waits for {k} of its {len(branches)} branches: k may be as many as there are")
    return Race(name, branches, k)


def settle(run: Run) -> list[tuple[Fiber, Any]]:
    """Close the races of a run that are decided at a step end, innermost first.

    Returns the fibers that waited for them, each with what it is to be given.
    """
    decided: list[tuple[Fiber, Any]] = []
    for fiber in list(_racing(run.root)):
        rank(fiber)
        effect = fiber.effect
        found = winners(fiber)
        if len(found) < effect.k:
            continue
        gone: set[int] = set()
        for child in fiber.children:
            if child is not None:
                gone.update(map(id, _family(child)))
        run.held = [pair for pair in run.held if id(pair[0]) not in gone]
        decided = [pair for pair in decided if id(pair[0]) not in gone]
        for child in fiber.children:
            if child is not None:
                child.drop()
        fiber.children = []
        decided.append((fiber, found[: effect.k]))
    return decided


def rank(fiber: Fiber) -> None:
    """Note of the branches that have returned since the last step end that they came after those before."""
    known = sum(isinstance(one, Finished) and one.rank is not None for one in fiber.results)
    for i, one in enumerate(fiber.results):
        if isinstance(one, Finished) and one.rank is None:
            fiber.results[i] = one._replace(rank=known)


def winners(fiber: Fiber) -> tuple[tuple[int, Any], ...]:
    """Return the branches that have returned, the first one first, and their values."""
    order = sorted((one.rank, i) for i, one in enumerate(fiber.results) if isinstance(one, Finished))
    return tuple((i, fiber.results[i].value) for _, i in order)


def _racing(fiber: Fiber) -> Iterator[Fiber]:
    for child in fiber.children:
        if child is not None:
            yield from _racing(child)
    if type(fiber.effect) is Race and fiber.children:
        yield fiber


def _family(fiber: Fiber) -> Iterator[Fiber]:
    yield fiber
    for child in fiber.children:
        if child is not None:
            yield from _family(child)
