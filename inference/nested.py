"""Serves `fk.nested`: the runs that the particles of a wave ask for, as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..ppl import keys as _keys
from ..ppl.cost import rows
from ..ppl.fibers import Failed
from ..ppl.guard import guard
from ..ppl.keys import Keys
from ..ppl.nesting import Nested
from .base.checks import check_run
from .session import Problem, Tolerant


def run_nested(requests: Sequence[Nested], keys: Keys) -> list[Any]:
    """Return the posterior of each request, or the error of its run in a `Failed`."""
    try:
        return _together(requests, keys)
    except Exception as error:
        if len(requests) == 1:
            return [Failed(error)]
    # An error in a shared batch is of one of them: each is run alone, which gives what it would have beside others.
    found = []
    for i, request in enumerate(requests):
        with rows([i]):
            found += run_nested([request], keys[i : i + 1])
    return found


def _together(requests: Sequence[Nested], keys: Keys) -> list[Any]:
    problems = []
    for request, seed in zip(requests, keys.tolist()):
        model, engine = request.args
        check_run("nested", [model], engine, None)
        # As `infer` would with this seed.
        problems.append(Problem(model, engine, seed, _keys.fold(_keys.root(seed), 0)))
    session = Tolerant(problems)
    for _ in session:
        pass
    return [
        Failed(session.failures[i]) if i in session.failures else replace(posterior, values=guard(posterior.values))
        for i, posterior in enumerate(session.attached())
    ]
