"""What may change about a model while it is in use, noticed before each of its passes.

Weights are trained, loaded and moved, adapters switched and merged, hooks set, modules replaced, dropout switched on.
What was computed by the model as it was must not be taken for what it would compute now.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from operator import attrgetter, is_, itemgetter
from typing import Any
from weakref import WeakSet

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim.optimizer import register_optimizer_step_post_hook

_ADAPTER = ("active_adapter", "_active_adapter", "_disable_adapters", "merged_adapters", "scaling")
"""What peft calls the state of its models and layers."""
_CAPTURING = "transformers.utils.output_capturing"
_expired = torch.UntypedStorage._expired
_count = attrgetter("_version")
_mode = itemgetter("training")
_locks: dict[Any, threading.RLock] = {}
_watched: WeakSet[Live] = WeakSet()
_watching = threading.Lock()


class Live:
    """A model that may change between passes.

    Seen are changes of parameters and persistent buffers (by the version that torch counts, their place in memory, and
    the steps of optimisers, of which the fused ones do not count), modules added, removed and replaced, forward hooks,
    and adapters of peft switched, scaled and merged. Not seen are changes of other Python attributes, and what is
    written in place through ``.data`` or into a tensor that was made in inference mode: say `refresh` after these.

    To look at all that takes about a tenth of a millisecond for a model of 400 modules.

    >>> layer = torch.nn.Linear(2, 2)
    >>> live = Live(layer)
    >>> before = live.version()
    >>> _ = layer.requires_grad_(False).weight.zero_()
    >>> before, live.version()
    (0, 1)
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._version = 0
        self._lock = threading.Lock()
        self._placed: list[Any] = list(islice(model.parameters(), 1)) if isinstance(model, torch.nn.Module) else []
        with self._turn():
            self._walk()
        with _watching:
            _watched.add(self)

    def version(self) -> int:
        """Return a number that is another one whenever the model has been seen to change."""
        with self._lock:
            if not self._stale and self._same():
                return self._version
        with self._turn(), self._lock:  # a pass may have it otherwise for as long as it takes (see `Varied`)
            if self._stale or not self._same():
                self._version += 1
                self._walk()
            return self._version

    def refresh(self) -> None:
        """Take the model for changed."""
        self._stale = True

    @contextmanager
    def hold(self) -> Iterator[int]:
        """Within the block the model is in eval mode and its device is this thread's; gives the `version`.

        What was in training mode is put back into it afterwards.
        """
        with self._turn():
            version = self.version()
            training = self._training()
            for module in training:
                module.training = False
            try:
                yield version
            finally:
                for module in training:
                    module.training = True

    def stepped(self, parameters: set[int]) -> None:
        """Take the model for changed if it has one of some parameters, given by their ids."""
        if not parameters.isdisjoint(self._ids):
            self.refresh()

    def _turn(self) -> threading.RLock:
        """Return the lock of the model's device."""
        return _lock_of(self._placed[0].device if self._placed else None)

    def _training(self) -> list[Any]:
        # Most are not, and to say so once is quicker than to look at each in Python.
        return [module for module in self._modules if module.training] if any(map(_mode, self._modal)) else []

    def _walk(self) -> None:
        """Note the model as it is."""
        self._stale = False
        self._modules = list(self.model.modules()) if isinstance(self.model, torch.nn.Module) else []
        self._plain = [vars(module) for module in self._modules]
        self._modal = [own for own in self._plain if "training" in own]  # a compiled one has that of what it holds
        held = [(own["_parameters"], own["_modules"], _persistent(own)) for own in self._plain]
        self._dicts = [part for part in chain.from_iterable(held) if part]
        self._parts = list(chain.from_iterable(map(dict.values, self._dicts)))
        tensors = [part for part in self._parts if isinstance(part, torch.Tensor)]
        self._ids = set(map(id, tensors))
        self._counted = [tensor for tensor in tensors if _has(_count, tensor)]
        self._versions = list(map(_count, self._counted))
        self._placed = [tensor for tensor in tensors if _has(torch.Tensor.data_ptr, tensor)]
        self._places = list(map(torch.Tensor.data_ptr, self._placed))
        # A storage at the same address may be another one, where the first is gone.
        self._storages = [StorageWeakRef(tensor.untyped_storage()) for tensor in self._placed]
        self._handles = [storage.cdata for storage in self._storages]
        self._hooks = [hooks for own in self._plain for hooks in (own["_forward_hooks"], own["_forward_pre_hooks"])]
        self._hooked = self._hook_ids()
        self._adapted = [
            own
            for module, own in zip(self._modules, self._plain)
            if hasattr(type(module), "merged_adapters") or "peft_config" in own
        ]
        self._adapters = self._adapter_states()

    def _same(self) -> bool:
        parts = list(chain.from_iterable(map(dict.values, self._dicts)))
        return (
            len(parts) == len(self._parts)
            and all(map(is_, parts, self._parts))
            and list(map(_count, self._counted)) == self._versions
            and list(map(torch.Tensor.data_ptr, self._placed)) == self._places
            and not any(map(_expired, self._handles))
            and self._hook_ids() == self._hooked
            and self._adapter_states() == self._adapters
        )

    def _hook_ids(self) -> list[int]:
        if not any(self._hooks):
            return []
        # Those by which transformers gives hidden states, where they are asked for, change nothing.
        held = chain.from_iterable(hooks.items() for hooks in self._hooks)
        return [handle for handle, hook in held if getattr(hook, "__module__", "") != _CAPTURING]

    def _adapter_states(self) -> list[Any]:
        return [tuple(_still(own.get(name)) for name in _ADAPTER) for own in self._adapted]


def _persistent(own: dict[str, Any]) -> dict[str, Any]:
    """Return a module's buffers, but not those of one that computes them itself, as it may do in a pass."""
    found: dict[str, Any] = {} if own["_non_persistent_buffers_set"] else own["_buffers"]
    return found


def _has(what: Callable[[Any], Any], tensor: Any) -> bool:
    """Whether a tensor has a version, which those made in inference mode lack, or a place: some are made of others."""
    try:
        what(tensor)
    except (RuntimeError, NotImplementedError):
        return False
    return True


def _still(state: Any) -> Any:
    """Return an adapter's state as it is now."""
    return tuple(state.items()) if isinstance(state, dict) else tuple(state) if isinstance(state, list) else state


def _lock_of(device: Any) -> threading.RLock:
    """Return the lock of a device: models that share modules are on one, and so do not pass at the same time."""
    return _locks.setdefault(device, threading.RLock())


def _tell(optimizer: Any, args: Any, kwargs: Any) -> None:
    """Tell the models that an optimiser trains of its step."""
    stepped = {id(tensor) for group in optimizer.param_groups for tensor in group["params"]}
    with _watching:
        lives = list(_watched)
    for live in lives:
        live.stepped(stepped)


register_optimizer_step_post_hook(_tell)
