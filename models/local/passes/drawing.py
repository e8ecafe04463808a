"""The loop over the tokens of a wave of steps: passes of the model, draws from what each gives, and on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from ....ppl.keys import Keys, uniform
from ...language.drawing.laws import drawn, read, tokens_of
from ...language.drawing.runs import Run
from ...language.drawing.sampling import Mask, Sampling
from ...language.host import Floats, Tally
from ..memory.histories import histories
from ..weights.staging import send
from .forward import Forwarder

_SOON = 16
"""Tokens that a step is expected to have at least."""
Which: TypeAlias = slice | NDArray[np.intp]


def draw_steps(forwarder: Forwarder, runs: Sequence[Run], keys: Keys, tally: Tally) -> None:
    """Advance runs to the ends of their steps. Each leaves as its step ends, and those that remain go on together.

    Each pass is drawn from as it comes, so that its logits need not stay; a token of all runs is read at once. Where
    memory is short, some wait until the others have ended their steps, so that no two evict each other in turn.
    """
    laws = Laws([run.request.sampling for run in runs], [run.request.mask for run in runs])
    active = np.array([i for i, run in enumerate(runs) if not run.over], np.intp)
    waiting = active[:0]
    most = max((run.request.ending.max_tokens for run in runs), default=0)
    forwarder.begin()
    with torch.inference_mode():
        while len(active):
            counts = np.array([runs[i].count for i in active])
            wave = _Wave(laws, active, _uniforms(keys[active], counts))
            # Few are expected as long as none has drawn many, as steps may end early.
            more = min(most - 1 - int(counts.min()), max(_SOON, int(counts.max())))
            forwarder.next_logits(histories([runs[i].node for i in active]), active, tally, wave.take, more)
            gone, tokens, log_prob = wave.read()
            if len(gone) < len(active):
                waiting = np.concatenate([waiting, np.delete(active, gone)])
                active = active[gone]
            tally.tokens_out[active] += tokens >= 0
            for i, token, value in zip(active, tokens.tolist(), log_prob.tolist()):
                runs[i].advance(token, value)
            active = active[[not runs[i].over for i in active]]
            if not len(active):
                active, waiting = waiting, active


def _uniforms(keys: Keys, counts: NDArray[np.int64]) -> Floats:
    """Return the number by which each run draws its next token, (n,); they may have drawn unequally many before."""
    least = int(counts[0])
    if (counts == least).all():
        return uniform(keys, 1, offset=least)[:, 0]
    found = np.empty(len(counts))
    for count in set(counts.tolist()):
        which = counts == count
        found[which] = uniform(keys[which], 1, offset=count)[:, 0]
    return found


class Laws:
    """How tokens are drawn for some requests: the laws that differ are told apart once, for all their tokens."""

    def __init__(self, samplings: Sequence[Sampling], masks: Sequence[Mask | None]) -> None:
        self._masks = masks
        known: dict[tuple[Sampling, bool], int] = {}
        kinds = [known.setdefault((law, mask is not None), len(known)) for law, mask in zip(samplings, masks)]
        self._kinds = np.array(kinds, np.intp)
        self._known = list(known)

    def alike(
        self, requests: NDArray[np.intp]
    ) -> Iterator[tuple[slice | NDArray[np.intp], Sampling, list[Mask] | None]]:
        """Yield which of some requests (k,) share a law, the law, and their masks, if they have any."""
        kinds = self._kinds[requests]
        for kind, (sampling, masked) in enumerate(self._known):
            which = slice(None) if len(self._known) == 1 else np.flatnonzero(kinds == kind)
            own = requests[which]
            if len(own):
                masks = [mask for i in own if (mask := self._masks[i]) is not None]
                yield which, sampling, masks if masked else None


class _Wave:
    """One token for each of some requests, as the passes come that it is drawn from."""

    def __init__(self, laws: Laws, requests: NDArray[np.intp], uniforms: Floats) -> None:
        self._laws = laws
        self._requests = requests
        self._uniforms = uniforms
        self._drawn: list[Any] = []
        self._places: list[NDArray[np.intp]] = []

    def take(self, places: NDArray[np.intp], logits: Any, rows: NDArray[np.intp] | None) -> None:
        """Draw for the requests at some places from the logits of a pass; nobody waits for the draws."""
        index = np.arange(len(places)) if rows is None else rows
        for which, sampling, masks in self._laws.alike(self._requests[places]):
            own = places[which]
            whole = rows is None and len(own) == len(places)
            uniforms, *where = send(logits.device, self._uniforms[own], *(() if whole else (index[which],)))
            self._drawn.append(drawn(logits, uniforms, sampling, masks, *where))
            self._places.append(own)

    def read(self) -> tuple[NDArray[np.intp], NDArray[np.int64], Floats]:
        """Return which requests were drawn for, in order, their tokens and log-probs: the device is waited for."""
        places = np.concatenate(self._places)
        order = np.argsort(places)
        return places[order], *tokens_of(read(torch.cat(self._drawn))[order])
