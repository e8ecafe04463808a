"""Serves what the engines of a wave ask for: of all programs together, of other models alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..ppl import keys as _keys
from ..ppl.model import Advance
from ..ppl.running.particle import Particles
from .base.engine import Ask, Start
from .problem import Task


def together(serve: Any, pooled: Sequence[tuple[int, Task, Any]]) -> dict[int, Advance[Any]]:
    """Serve the requests of several programs in one wave, and cut the answer up again."""
    if len(pooled) == 1:
        ((i, task, request),) = pooled
        n = len(request.keys)
        of = [task.model] * n if isinstance(request, Start) else request.state
        return {i: serve(of, request.keys, request.given, np.full(n, task.owner))}
    requests = [request for _, _, request in pooled]
    sizes = [len(request.keys) for request in requests]
    keys = _keys.concat([request.keys for request in requests])
    owners = [task.owner for (_, task, _), size in zip(pooled, sizes) for _ in range(size)]
    given: list[Any] = []
    for request, size in zip(requests, sizes):
        given += list(request.given) if request.given is not None else [None] * size
    subject: Any
    if isinstance(requests[0], Start):
        subject = [task.model for (_, task, _), size in zip(pooled, sizes) for _ in range(size)]
    else:
        subject = Particles([item for request in requests for item in request.state.items])
    whole: Advance[Any] = serve(subject, keys, given, owners)
    ends = np.cumsum(sizes)
    return {i: _slice(whole, end - size, end) for (i, _, _), size, end in zip(pooled, sizes, ends.tolist())}


def alone(model: Any, request: Any) -> Advance[Any]:
    """Serve a request of a model of its own kind."""
    if isinstance(request, Ask):
        made: Advance[Any] = getattr(model, request.method)(request.state, request.keys, *request.args)
        return made
    if isinstance(request, Start):
        return model.start(request.keys, request.given)  # type: ignore[no-any-return]
    return model.advance(request.state, request.keys, request.given)  # type: ignore[no-any-return]


def _slice(whole: Advance[Any], start: int, end: int) -> Advance[Any]:
    rows = slice(start, end)
    return Advance(
        Particles(whole.state.items[rows]),
        whole.choices[rows],
        whole.log_prob[rows],
        whole.log_proposal[rows],
        whole.log_potential[rows],
        whole.log_twist[rows],
        whole.done[rows],
        whole.scored[rows],
    )
