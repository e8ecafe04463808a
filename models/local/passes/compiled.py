"""Layers of a model, compiled by torch for all lengths and batches at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from transformers.modeling_layers import GradientCheckpointingLayer

from ....ppl.errors import Unsupported
from ..memory.histories import Histories
from ..memory.jobs import Job
from ..weights.wrappers import COMPILED, core
from .attention import AttentionForwarder
from .forward import Forwarder
from .trial import distance, most_by_rounding, ordinary, trying

_TOKENS = 10


def compile_layers(forwarder: Forwarder, backend: str) -> None:
    """Compile the layers of a model in place, each for any number of rows and positions.

    Keys and values are written between the compiled parts. The layers share what is compiled: a model of many is ready
    as soon as one of few. The model is tried then: a whole text, against the plain pass, and piece by piece.

    Raises Unsupported, and leaves the model as it was, where it cannot be compiled, or gives other logits.
    """
    model = core(forwarder.model)
    name = type(model).__name__
    layers = [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]
    if type(forwarder) is not AttentionForwarder or not layers:
        raise Unsupported(
            f"{name} cannot be compiled: only layers of causal models with attention are, as transformers makes them; "
            "leave compile out"
        )
    tree = Histories()
    tokens = np.random.default_rng(0).choice(ordinary(forwarder), _TOKENS)
    job = Job(tree.root(tuple(tokens.tolist())), 0, None, None)
    try:
        with forwarder.live.hold(), trying(forwarder.model):
            plain = forwarder.bare(job, True)
            for layer in layers:
                layer.compile(backend=backend, dynamic=True)
            COMPILED.add(model)
            gap = distance(forwarder.bare(job, True), plain)
        if not gap <= most_by_rounding(forwarder.model):
            raise Unsupported(f"its compiled layers give other logits: off by {gap:.2g} of their spread")
        forwarder.measure()
    except Unsupported as error:
        _undo(model, layers)
        forwarder.measure()
        raise Unsupported(f"{name} cannot be compiled by {backend!r}: {error}; leave compile out") from error


def _undo(model: Any, layers: list[Any]) -> None:
    for layer in layers:
        layer._compiled_call_impl = None
    COMPILED.discard(model)
