"""Values as JSON and arrays, without pickle: what a list holds in common stands in one array, and all arrays in few.

Lists are cut by the kind of their items: numbers of a kind become an array, texts an index into the different ones,
arrays of a shape a larger array, sites a list for each of their fields, tuples, lists and dictionaries their lengths
and a list of all that is in them. So the history of thousands of particles is a few arrays, whatever it holds.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....ppl.sites import Site

CLASSES = {
    "feynkac.models.text:Text": "feynkac.models.language.texts.text:Text",
    "feynkac.models.together:Together": "feynkac.models.language.stepping.together:Together",
    "feynkac.diffusion.kernels:Particle": "feynkac.diffusion.kernels:Particle",
    "feynkac.models.images.kernels:Drawing": "feynkac.models.images.kernels:Drawing",
}
"""Those that are made from a file (by ``from_json``), by their names in files, which stay the same wherever they move.

Of others, what they wrote is returned.
"""
_NAMES = {place: name for name, place in CLASSES.items()}
KINDS = "biufcUSmM"
"""Kinds of arrays that a file may hold."""
_FEW = 4
"""Shorter lists are written item by item."""
_MOST = 64
"""Kinds in a list: with more of them, it is written item by item."""
_SIMPLE = frozenset((bool, int, float, str, Site, tuple, list))
"""Types whose items can stand in one list, whatever they are."""
_ITEM = 64
"""Bytes of an item of a list, roughly."""


class Encoder:
    """Turns values into JSON, and keeps the numbers of arrays aside, in one long array for each type."""

    def __init__(self) -> None:
        self._parts: dict[str, list[NDArray[Any]]] = {}
        self._sizes: dict[str, int] = {}

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays kept aside, by their type."""
        return {kind: np.concatenate(parts) for kind, parts in self._parts.items()}

    def array(self, array: NDArray[Any]) -> list[Any]:
        """Keep an array, and return where it is: its type, where it begins, and its shape."""
        kind = array.dtype.str
        begin = self._sizes.get(kind, 0)
        self._parts.setdefault(kind, []).append(np.ascontiguousarray(array).reshape(-1))
        self._sizes[kind] = begin + array.size
        return [kind, begin, list(array.shape)]

    def encode(self, value: Any, where: str) -> Any:
        """Return JSON for a value; ``where`` names it in errors."""
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else {"~float": repr(value)}
        if isinstance(value, Site):
            return {"~site": [self.encode(item, where) for item in value]}
        if isinstance(value, list):
            return self.many(value, where)
        if isinstance(value, tuple | set | frozenset):
            kind = "set" if isinstance(value, set) else "frozenset" if isinstance(value, frozenset) else "tuple"
            return {f"~{kind}": self.many(list(value), where)}
        if isinstance(value, dict):
            return {"~dict": [self.many(list(value), where), self.many(list(value.values()), where)]}
        if isinstance(value, np.ndarray) and value.dtype.kind in KINDS:
            return {"~array": self.array(value)}
        if hasattr(value, "to_json"):
            return {"~object": [_class_of(value), self.encode(value.to_json(), where)]}
        raise TypeError(
            f"cannot save {where}: a {type(value).__name__} is not a text, number, string, array or container of "
            "them. Return something plainer from the program, or give the class to_json() and from_json()"
        )

    def many(self, items: Sequence[Any], where: str) -> Any:
        """Return JSON for a list."""
        kinds: list[Any] = list(map(type, items)) if len(items) >= _FEW else []
        if not _SIMPLE.issuperset(kinds):
            kinds = [_kind(item) for item in items]
        found = list(dict.fromkeys(kinds))
        if len(found) == 1 and (column := self._column(found[0], items, where)) is not None:
            return column
        if 1 < len(found) <= min(_MOST, len(items) // 2):
            index = np.array([found.index(kind) for kind in kinds], np.uint8)
            parts = [self.many([x for x, k in zip(items, kinds) if k == kind], where) for kind in found]
            return {"~mixed": [self.array(index), parts]}
        return [self.encode(item, where) for item in items]

    def _column(self, kind: Any, items: Sequence[Any], where: str) -> Any:
        """Return JSON for a list of items of one kind, or None where there is no better form than one by one."""
        name, *rest = kind if isinstance(kind, tuple) else (kind,)
        if name in (bool, float) or (name is int and max(map(abs, items)) < 2**63):
            return {"~numbers": self.array(np.array(items, {bool: bool, float: float, int: np.int64}[name]))}
        if name is str:
            words = {word: i for i, word in enumerate(dict.fromkeys(items))}
            return {"~words": [list(words), self.array(np.array([words[item] for item in items], np.int32))]}
        if name is np.ndarray:
            return {"~rows": self.array(np.stack(items))}
        if name is Site:
            return {"~sites": [self.many(field, where) for field in zip(*items)]}
        if name in (tuple, list):
            lengths = np.array([len(item) for item in items], np.int32)
            inside = [part for item in items for part in item]
            return {"~tuples" if name is tuple else "~lists": [self.array(lengths), self.many(inside, where)]}
        if name is dict:
            inside = [part for item in items for part in item.values()]
            return {"~dicts": [list(rest), len(items), self.many(inside, where)]}
        if name is object:
            return {"~objects": [rest[0], self.many([item.to_json() for item in items], where)]}
        return None


def _kind(item: Any) -> Any:
    """Return what items have in common that can stand in one list: their type, and more where that does not do."""
    kind = type(item)
    if kind in _SIMPLE:
        return kind
    if kind is np.ndarray:
        return (kind, item.dtype.str, item.shape) if item.dtype.kind in KINDS else (None,)
    if kind is dict:
        return (kind, *item) if all(type(key) is str for key in item) else (None,)
    return (object, _class_of(item)) if hasattr(item, "to_json") else (None,)


def _class_of(value: Any) -> str:
    place = f"{type(value).__module__}:{type(value).__qualname__}"
    return _NAMES.get(place, place)


class Decoder:
    """Turns JSON and arrays back into values. It trusts neither: what does not fit raises ValueError or its like.

    Args:
        arrays: those kept aside, by their type. All that is taken of one may not be more than there is.
        limit: bytes that the items of all lists may take, roughly.
    """

    def __init__(self, arrays: dict[str, NDArray[Any]], limit: int) -> None:
        self._arrays = arrays
        self._left = {kind: array.size for kind, array in arrays.items()}
        self._items = limit // _ITEM

    def array(self, place: Any) -> NDArray[Any]:
        """Return the array at a place; see `Encoder.array`."""
        kind, begin, shape = place
        if not all(type(n) is int and n >= 0 for n in (begin, *shape)):
            raise ValueError(f"no array is at {begin} with the shape {shape}")
        size = math.prod(shape)
        self._left[kind] -= size
        if self._left[kind] < 0 or begin + size > self._arrays[kind].size:
            raise ValueError("an array lies beyond what is there, or is there twice")
        return self._arrays[kind][begin : begin + size].reshape(shape)

    def decode(self, data: Any) -> Any:
        """Return the value of a piece of JSON."""
        if isinstance(data, list):
            return [self.decode(item) for item in self._spend(data)]
        if not isinstance(data, dict):
            return data
        ((tag, inner),) = data.items()
        return _TAGS[tag](self, inner)

    def many(self, data: Any, count: int | None = None) -> list[Any]:
        """Return a list, of so many items where that is known."""
        found = self.decode(data)
        if type(found) is not list or (count is not None and len(found) != count):
            raise ValueError(f"a list of {count or 'any'} items is another")
        return found

    def _spend(self, items: Sequence[Any]) -> Sequence[Any]:
        """Count the items of a list that is made; a file that would make too many is refused."""
        self._items -= len(items)
        if self._items < 0:
            raise ValueError("it holds more than the limit allows; if you trust it, load it with a larger limit")
        return items

    def _float(self, inner: Any) -> float:
        return {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[inner]

    def _dict(self, inner: Any) -> dict[Any, Any]:
        keys, values = map(self.many, inner)
        return dict(zip(keys, values, strict=True))

    def _object(self, inner: Any) -> Any:
        return _made(inner[0])(self.decode(inner[1]))

    def _objects(self, inner: Any) -> list[Any]:
        return list(map(_made(inner[0]), self.many(inner[1])))

    def _numbers(self, inner: Any) -> list[Any]:
        numbers = self.array(inner)
        if numbers.ndim != 1 or numbers.dtype.kind not in "bif":
            raise ValueError("numbers are not numbers")
        self._spend(range(len(numbers)))
        found: list[Any] = numbers.tolist()
        return found

    def _words(self, inner: Any) -> list[str]:
        words, index = inner[0], self.indices(inner[1], len(inner[0]))
        if not all(type(word) is str for word in words):
            raise ValueError("words are not words")
        return [words[i] for i in self._spend(index.tolist())]

    def _rows(self, inner: Any) -> list[NDArray[Any]]:
        rows = self.array(inner).copy()
        return [rows[i, ...] for i in self._spend(range(len(rows)))]

    def _mixed(self, inner: Any) -> list[Any]:
        parts = [iter(self.many(part)) for part in inner[1]]
        return [next(parts[i]) for i in self._spend(self.indices(inner[0], len(parts)).tolist())]

    def _sites(self, inner: Any) -> list[Site]:
        fields = [self.many(field) for field in inner]
        if len(fields) != len(Site._fields):
            raise ValueError("a site has other fields")
        return [Site._make(found) for found in zip(*fields, strict=True)]

    def _cut(self, inner: Any, kind: Callable[[list[Any]], Any]) -> list[Any]:
        """Cut a list into pieces of the lengths given."""
        lengths, inside = self.array(inner[0]), self.many(inner[1])
        if lengths.ndim != 1 or lengths.dtype.kind != "i" or (lengths < 0).any() or lengths.sum() != len(inside):
            raise ValueError("lengths do not add up to what is there")
        ends = np.cumsum(lengths).tolist()
        return [kind(inside[end - n : end]) for end, n in zip(self._spend(ends), lengths.tolist())]

    def _dicts(self, inner: Any) -> list[dict[str, Any]]:
        keys, count = inner[0], inner[1]
        self._spend(range(count))
        inside = self.many(inner[2], count * len(keys))
        return [dict(zip(keys, inside[i * len(keys) : (i + 1) * len(keys)])) for i in range(count)]

    def indices(self, place: Any, below: int) -> NDArray[Any]:
        """Return an array of indices, from 0 to below a number."""
        index = self.array(place)
        good = index.ndim == 1 and index.dtype.kind in "iu"
        if not good or (index.size and not 0 <= index.min() <= index.max() < below):
            raise ValueError("an index points beyond what is there")
        return index


_TAGS: dict[str, Callable[[Decoder, Any], Any]] = {
    "~float": Decoder._float,
    "~array": lambda decoder, inner: decoder.array(inner).copy(),
    "~tuple": lambda decoder, inner: tuple(decoder.many(inner)),
    "~set": lambda decoder, inner: set(decoder.many(inner)),
    "~frozenset": lambda decoder, inner: frozenset(decoder.many(inner)),
    "~dict": Decoder._dict,
    "~site": lambda decoder, inner: Site(*decoder.many(inner, len(Site._fields))),
    "~object": Decoder._object,
    "~objects": Decoder._objects,
    "~numbers": Decoder._numbers,
    "~words": Decoder._words,
    "~rows": Decoder._rows,
    "~mixed": Decoder._mixed,
    "~sites": Decoder._sites,
    "~tuples": lambda decoder, inner: decoder._cut(inner, tuple),
    "~lists": lambda decoder, inner: decoder._cut(inner, list),
    "~dicts": Decoder._dicts,
}


def _made(kind: str) -> Callable[[Any], Any]:
    """Return what makes an object of a class from what it wrote."""
    if kind not in CLASSES:
        return lambda data: data
    module, _, name = CLASSES[kind].partition(":")
    made: Callable[[Any], Any] = getattr(importlib.import_module(module), name).from_json
    return made
