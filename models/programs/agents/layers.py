"""Layers of Archon: calls to language models, each of which works on what the one before it left."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ....ppl.words import call, gather, sample
from ...language.host import Host
from ..asking import ask, numbered


@dataclass(frozen=True)
class Draft:
    """What a layer hands on: candidates, and what was said of them (empty, or one for each)."""

    candidates: tuple[str, ...] = ()
    critiques: tuple[str, ...] = ()
    tests: str = ""


Layer = Callable[[str, Draft], Awaitable[Draft]]


async def _say(lm: Host, name: str, prompt: str, law: dict[str, Any]) -> str:
    return str(await sample(name, lm.complete(ask(lm, prompt), **law))).strip()


def _distinct(candidates: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(candidates))


def generate(lm: Host, samples: int = 1, **law: Any) -> Layer:
    """Return a layer that adds candidates, drawn side by side; equal ones count once."""

    async def layer(question: str, draft: Draft) -> Draft:
        found = await gather(*(_say(lm, "generate", question, law) for _ in range(samples)), name="generators")
        return Draft(_distinct((*draft.candidates, *found)))

    return layer


def order_of(said: str, n: int) -> list[int]:
    """Return the order that a ranking says, as "[2] [1]": each of n items once, and those not named at the end.

    >>> [i + 1 for i in order_of("[2] [2] [9]", 3)]
    [2, 1, 3]
    """
    named = [int(number) - 1 for number in re.findall(r"\[(\d+)\]", said)]
    return list(dict.fromkeys([i for i in named if 0 <= i < n] + list(range(n))))


def rank(
    lm: Host, keep: int, prompt: str = "{question}\n{answers}\nRank them, best first, such as [2] [1].", **law: Any
) -> Layer:
    """Return a layer that keeps the best candidates, by one list-wise ranking."""

    async def layer(question: str, draft: Draft) -> Draft:
        said = await _say(lm, "rank", prompt.format(question=question, answers=numbered(draft.candidates)), law)
        best = order_of(said, len(draft.candidates))[:keep]
        return Draft(
            tuple(draft.candidates[i] for i in best),
            tuple(draft.critiques[i] for i in best) if draft.critiques else (),
            draft.tests,
        )

    return layer


def critique(lm: Host, prompt: str = "{question}\n{answer}\nSay what is good and bad in it.", **law: Any) -> Layer:
    """Return a layer that says what is good and bad in each candidate."""

    async def layer(question: str, draft: Draft) -> Draft:
        prompts = [prompt.format(question=question, answer=answer) for answer in draft.candidates]
        return replace(draft, critiques=await gather(*(_say(lm, "critique", p, law) for p in prompts), name="critics"))

    return layer


def fuse(lm: Host, samples: int = 1, prompt: str = "{question}\n{answers}\nWrite a better one.", **law: Any) -> Layer:
    """Return a layer that makes new candidates of all, with what was said of them."""

    async def layer(question: str, draft: Draft) -> Draft:
        said = draft.critiques or ("",) * len(draft.candidates)
        shown = tuple(f"{a}\n{c}".strip() for a, c in zip(draft.candidates, said))
        text = prompt.format(question=question, answers=numbered(shown))
        return Draft(_distinct(await gather(*(_say(lm, "fuse", text, law) for _ in range(samples)), name="fusers")))

    return layer


def verify(lm: Host, prompt: str = "{question}\n{answer}\nSay [Correct] or [Incorrect].", **law: Any) -> Layer:
    """Return a layer that keeps the candidates that are called correct; all of them, if none is."""

    async def layer(question: str, draft: Draft) -> Draft:
        prompts = [prompt.format(question=question, answer=answer) for answer in draft.candidates]
        said = await gather(*(_say(lm, "verify", p, law) for p in prompts), name="verifiers")
        return Draft(tuple(a for a, s in zip(draft.candidates, said) if "[Correct]" in s) or draft.candidates)

    return layer


def unit_test(
    lm: Host,
    passes: Callable[[str, str], Any],
    keep: int | None = None,
    prompt: str = "{question}\nWrite tests, one in each line.",
    **law: Any,
) -> Layer:
    """Return a layer that writes tests and sorts candidates by ``passes(answer, tests)``, a number or a score."""

    async def layer(question: str, draft: Draft) -> Draft:
        tests = await _say(lm, "tests", prompt.format(question=question), law)
        numbers = await gather(*(call("passes", passes, answer, tests) for answer in draft.candidates), name="runs")
        best = sorted(range(len(numbers)), key=lambda i: -numbers[i])[:keep]
        return Draft(tuple(draft.candidates[i] for i in best), tests=tests)

    return layer
