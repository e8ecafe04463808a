"""By what function a model attends: another than its own, for the passes of one thread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from threading import Lock
from typing import Any

_attention: ContextVar[str | None] = ContextVar("the function by which this thread attends", default=None)
_kinds: dict[int, tuple[type, int]] = {}
"""Of configs that are asked in some thread's block, by their ids: what they are, and by how many."""
_changing = Lock()


def attention_configs(model: Any) -> list[Any]:
    """Return the configs that tell the parts of a model by what function they attend."""
    found = {id(config): config for part in model.modules() if (config := getattr(part, "config", None)) is not None}
    return [config for config in found.values() if hasattr(config, "_attn_implementation_internal")]


@contextmanager
def attending_by(name: str, configs: Sequence[Any]) -> Iterator[None]:
    """Within the block the parts of a model attend, in this thread, by a function that transformers knows by a name.

    They ask their configs for it. To other threads, which may run the same model, these say what they always do.
    """
    with _changing:
        for config in configs:
            if id(config) not in _kinds:
                _kinds[id(config)] = type(config), 0
                object.__setattr__(config, "__class__", _asking(type(config)))  # type: ignore[arg-type]
            kind, users = _kinds[id(config)]
            _kinds[id(config)] = kind, users + 1
    token = _attention.set(name)
    try:
        yield
    finally:
        _attention.reset(token)
        with _changing:
            for config in configs:
                kind, users = _kinds.pop(id(config))
                if users > 1:
                    _kinds[id(config)] = kind, users - 1
                else:
                    object.__setattr__(config, "__class__", kind)


@cache
def _asking(kind: type) -> type:
    """Return a kind of config that says by what function this thread attends, if by another than its own."""
    own: Any = kind._attn_implementation  # type: ignore[attr-defined]

    def said(config: Any) -> Any:
        return _attention.get() or own.fget(config)

    names = {"__module__": kind.__module__, "__doc__": kind.__doc__, "_attn_implementation": property(said, own.fset)}
    return type(kind.__name__, (kind,), names)
