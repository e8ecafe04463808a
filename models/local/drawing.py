"""The loop over the tokens of a wave of steps: a pass of the model, a draw for every history, and on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...ppl.keys import Keys, uniform
from ..language.host import Floats, Tally
from ..language.laws import draw, stack, warp
from ..language.runs import Request, Run
from ..language.sampling import Sampling
from .forward import Forwarder
from .histories import histories


def draw_steps(forwarder: Forwarder, runs: Sequence[Run], keys: Keys, tally: Tally) -> None:
    """Advance runs to the ends of their steps. Each leaves as its step ends, and those that remain go on together."""
    active = [i for i, run in enumerate(runs) if not run.over]
    offset = 0
    with torch.inference_mode():
        while active:
            owners = np.array(active, np.intp)
            logits = forwarder.next_logits(histories([runs[i].node for i in active]), owners, tally)
            uniforms = uniform(keys[owners], 1, offset=offset)[:, 0]
            tokens, log_prob = _draw(logits, [runs[i].request for i in active], uniforms)
            for i, token, value in zip(active, tokens.tolist(), log_prob.tolist()):
                runs[i].advance(token, value)
                tally.tokens_out[i] += token >= 0
            active = [i for i in active if not runs[i].over]
            offset += 1


def _draw(logits: Any, requests: Sequence[Request], uniforms: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Draw a token per row, each by its request's law: shapes (n,) and (n,)."""
    groups: dict[tuple[Sampling, bool], list[int]] = defaultdict(list)
    for i, request in enumerate(requests):
        groups[request.sampling, request.mask is not None].append(i)
    tokens, log_prob = np.zeros(len(requests), np.int64), np.zeros(len(requests))
    for (sampling, _), rows in groups.items():
        part = logits if len(groups) == 1 else logits[torch.tensor(rows, device=logits.device)]
        mask = stack([requests[i].mask for i in rows], logits.device)
        tokens[rows], log_prob[rows] = draw(warp(part, sampling, mask), uniforms[rows])
    return tokens, log_prob
