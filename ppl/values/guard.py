"""Values that many particles share are made read-only, so that one particle cannot change another."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, NoReturn

import numpy as np

from ..errors import SharedMutation


def _refuse(kind: str, copy: str) -> Any:
    def method(self: Any, *_: Any, **__: Any) -> NoReturn:
        raise SharedMutation(
            f"this {kind} is shared by all particles, so a particle must not change it; "
            f"make the particle's own copy first: mine = {copy}(shared)"
        )

    return method


class SharedList(list[Any]):
    """A list that refuses to change; equal to, and copied as, a plain list."""

    __slots__ = ()

    def __reduce__(self) -> Any:
        return (list, (list(self),))

    def __copy__(self) -> list[Any]:
        return list(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> list[Any]:
        return [deepcopy(item, memo) for item in self]


class SharedDict(dict[Any, Any]):
    """A dict that refuses to change; equal to, and copied as, a plain dict."""

    __slots__ = ()

    def __reduce__(self) -> Any:
        return (dict, (dict(self),))

    def __copy__(self) -> dict[Any, Any]:
        return dict(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[Any, Any]:
        return {key: deepcopy(value, memo) for key, value in self.items()}


class SharedSet(set[Any]):
    """A set that refuses to change; equal to, and copied as, a plain set."""

    __slots__ = ()

    def __reduce__(self) -> Any:
        return (set, (set(self),))

    def __copy__(self) -> set[Any]:
        return set(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> set[Any]:
        return set(self)


_CHANGERS = {
    SharedList: "append extend insert pop remove clear sort reverse __setitem__ __delitem__ __iadd__ __imul__",
    SharedDict: "pop popitem clear update setdefault __setitem__ __delitem__ __ior__",
    SharedSet: (
        "add discard remove pop clear update difference_update intersection_update "
        "symmetric_difference_update __ior__ __iand__ __isub__ __ixor__"
    ),
}
for _type, _names in _CHANGERS.items():
    _plain = _type.__mro__[1].__name__
    for _name in _names.split():
        setattr(_type, _name, _refuse(_plain, _plain))

LEAVES = (float, int, str, type(None), bool, bytes, complex)
_CONTAINERS = frozenset((list, tuple, dict, set, SharedList, SharedDict, SharedSet))


def guard(value: Any) -> Any:
    """Return ``value`` with lists, dicts, sets and arrays (also nested in them) made read-only.

    Containers are copied once; arrays become read-only views; anything else is passed as it is.

    >>> shared = guard({"xs": [1, 2]})
    >>> shared["xs"].append(3)
    Traceback (most recent call last):
    ...
    feynkac.ppl.errors.SharedMutation: this list is shared by all particles, so a particle must not change it; \
make the particle's own copy first: mine = list(shared)
    """
    kind = type(value)
    if kind not in _CONTAINERS:
        if isinstance(value, np.ndarray) and value.flags.writeable:
            view = value.view()
            view.flags.writeable = False
            return view
        return value
    if kind is list or kind is SharedList:
        return SharedList([guard(item) for item in value])
    if kind is tuple:
        items = [guard(item) for item in value]
        return value if all(a is b for a, b in zip(items, value)) else tuple(items)
    if kind is dict or kind is SharedDict:
        return SharedDict({key: guard(item) for key, item in value.items()})
    return SharedSet(value)
