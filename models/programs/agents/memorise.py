"""ArcMemo: concepts that were abstracted from solved tasks are carried on to the next ones."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ....ppl.program import program
from ....ppl.words import scan


@dataclass(frozen=True)
class Memory:
    """Concepts, oldest first: those in use, and those that wait for the next update.

    >>> Memory().learn("a").learn("b", hold=True).learn("a").concepts
    ('a', 'b')
    """

    concepts: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()

    def learn(self, concept: str | None, *, hold: bool = False) -> Memory:
        """Return the memory with a concept, or None, at once with all that wait, or held until the next update."""
        waiting = self.waiting if concept is None else (*self.waiting, concept)
        if hold:
            return Memory(self.concepts, waiting)
        return Memory(tuple(dict.fromkeys((*self.concepts, *waiting))))


@program
async def memorise(
    solve: Callable[[Any, tuple[str, ...]], Awaitable[Any]],
    abstract: Callable[[Any, Any], Awaitable[str | None]],
    select: Callable[[Any, tuple[str, ...]], Sequence[str]],
    tasks: Sequence[Any],
    *,
    every: int = 1,
    memory: Memory | None = None,
) -> tuple[Memory, tuple[Any, ...]]:
    """Solve tasks one after the other, each with the concepts that were selected for it from those before.

    The memory is the carry of a `scan`, so that a particle that is resampled takes its own memory along. After
    ``every`` tasks what was abstracted since is put in use.

    Args:
        solve: from a task and concepts to an answer; a coroutine function, such as a program's factory.
        abstract: from a task and its answer to a concept, or None where nothing is to be learned (a wrong answer).
        select: from a task and all concepts to those that are to be used.
        tasks: in their order.
        every: how often the memory is updated, in tasks.
        memory: what is known at the start.

    Returns the memory after the last task, and the answers. Raises ValueError where ``every`` is not positive.

    Source: ArcMemo: Abstract Reasoning Composition with Lifelong LLM Memory (2025), arXiv:2509.04439.
    Guarantee: exact for the law that the program defines.
    Engines: ImportanceSampling, SMC, BestOfN, BeamSearch, SuffixMH; particle filters where tasks are weighed as they
        come.
    Not shown here: the reasoner that comes with the library does not read concepts.

    >>> import feynkac as fk
    >>> async def solve(task, concepts):
    ...     return await fk.sample("solved", fk.dist.Bernoulli(0.8 if concepts else 0.2))
    >>> async def abstract(task, solved):
    ...     return "a concept" if solved else None
    >>> model = fk.programs.memorise(solve, abstract, lambda task, concepts: concepts, range(3))
    >>> posterior = fk.infer(model, fk.ImportanceSampling(4000), seed=0)
    >>> abs(posterior.expect(lambda value: sum(value[1])) - 0.936) < 0.06  # 0.2 + 0.32 + 0.416
    True
    """

    if every < 1:
        raise ValueError(f"the memory is updated after every task or more, not after {every}")

    async def step(known: Memory, numbered: tuple[int, Any]) -> tuple[Memory, Any]:
        number, task = numbered
        answer = await solve(task, tuple(select(task, known.concepts)))
        concept = await abstract(task, answer)
        return known.learn(concept, hold=number % every != 0), answer

    last, answers = await scan(step, memory or Memory(), list(enumerate(tasks, 1)), name="tasks", compiled=False)
    return last, answers
