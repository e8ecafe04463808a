"""Models behind wrappers: adapters of peft, `torch.compile`, modules and methods of a user's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import nn
from transformers import PreTrainedModel

FAULTS = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What a model may raise that is run otherwise than it can be."""

COMPILED: WeakSet[Any] = WeakSet()
"""Models whose layers are compiled, see `compiled.compile_layers`."""

_FORMS = 64
"""Most forms of what a layer is given that it is compiled for: one row or several, one query or several, masks."""


def core(model: Any) -> Any:
    """Return the model of transformers that a wrapper holds, or that the model is; else the model."""
    return next((module for module in model.modules() if isinstance(module, PreTrainedModel)), model)


def accepted(model: Any) -> set[str]:
    """Return the names of what a model's forward pass takes; what goes through ``**kwargs`` is looked up behind it.

    A wrapper may yet drop what the model behind it takes.
    """
    names: set[str] = set()
    for forward in _forwards(model):
        parameters = inspect.signature(forward).parameters
        names.update(parameters)
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters.values()):
            break
    return names


def first_position(module: Any) -> int:
    """Return the number of a text's first position: RoBERTa and its like count from the one after padding's."""
    tables = (getattr(part, "position_embeddings", None) for part in module.modules())
    found = (table.padding_idx for table in tables if isinstance(table, nn.Embedding))
    return next((padding + 1 for padding in found if padding is not None), 0)


def _forwards(model: Any) -> Iterator[Callable[..., Any]]:
    """The forward methods that a call may go through, from the outermost on."""
    inner = core(model)
    for module in (model,) if inner is model else (model, inner):
        yield module.forward
        for kind in type(module).__mro__:
            if kind is nn.Module:
                break
            if "forward" in vars(kind):
                yield vars(kind)["forward"]
    base = getattr(inner, "base_model", inner)
    if base is not inner:
        yield base.forward


@contextmanager
def running(model: Any) -> Iterator[None]:
    """Within the block layers that are compiled are compiled for a layer of any number, and for every form of mask."""
    if core(model) not in COMPILED:
        yield
        return
    with torch._dynamo.config.patch(allow_unspec_int_on_nn_module=True, recompile_limit=_FORMS):
        yield
