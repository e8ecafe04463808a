"""How tests and the code that they test talk: plain data by value, everything else by a number that stands for it.

Imports nothing of feynkac; `runner` and `examiner`, which are run as scripts, share it. Messages are JSON with their
length before them. What comes from the other end is data, and never code: nothing is unpickled or evaluated.
"""

from __future__ import annotations

import builtins
import json
import os
import socket
import struct
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any
from weakref import WeakValueDictionary

LONGEST = 1 << 26
"""Most bytes of a message."""
PEER, NUMBER = "<peer>", "<number>"
"""What `Remote` calls its own attributes: no code can name one so."""
_CONTAINERS: dict[type, str] = {list: "list", tuple: "tuple", set: "set", frozenset: "frozenset", deque: "deque"}
_MAPPINGS: dict[type, str] = {dict: "dict", Counter: "Counter", OrderedDict: "OrderedDict"}
_TYPES = (bool, int, float, complex, str, bytes, bytearray, list, tuple, set, frozenset, dict, type(None), object)
_BY_NAME: dict[str, Any] = {name: kind for kind, name in (_CONTAINERS | _MAPPINGS).items()}


class Malformed(Exception):
    """What came over the wire is no message."""


class Gone(Exception):
    """There is nobody at the other end."""


class Ended(BaseException):
    """The code ended itself, in a way that its tests cannot catch."""


class Remote:
    """An object at the other end."""

    def __init__(self, peer: Peer, number: int) -> None:
        vars(self)[PEER], vars(self)[NUMBER] = peer, number


class Peer:
    """One end of the wire.

    Args:
        link: the socket.
        remote: makes what stands for an object at the other end.
        operations: what the other end may ask for, by name.
    """

    def __init__(
        self, link: socket.socket, remote: Callable[[Peer, int], Any], operations: dict[str, Callable[..., Any]]
    ) -> None:
        self.link = link
        self._process = os.getpid()
        self._remote = remote
        self._operations = operations
        self._own: dict[int, Any] = {}
        self._numbers: dict[int, int] = {}
        self._theirs: WeakValueDictionary[int, Any] = WeakValueDictionary()
        self._exceptions: dict[tuple[str, ...], type[Exception]] = {}

    # -- messages

    def send(self, message: Any) -> None:
        """Send a message."""
        data = json.dumps(message).encode()
        try:
            self.link.sendall(struct.pack("!I", len(data)) + data)
        except OSError as error:
            raise Gone from error

    def receive(self) -> list[Any]:
        """Return the next message, a list that begins with a word. Raises Gone, Malformed."""
        (size,) = struct.unpack("!I", self._read(4))
        if size > LONGEST:
            raise Malformed
        try:
            message = json.loads(self._read(size))
        except (ValueError, RecursionError) as error:
            raise Malformed from error
        if not (isinstance(message, list) and message and isinstance(message[0], str)):
            raise Malformed
        return message

    def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            try:
                part = self.link.recv(min(size - len(data), 1 << 16))
            except OSError as error:
                raise Gone from error
            if not part:
                raise Gone
            data += part
        return bytes(data)

    def ask(self, what: str, *args: Any) -> Any:
        """Have the other end do something, and return or raise what comes of it; serve what it asks meanwhile."""
        self.send(["ask", what, [self.encode(arg) for arg in args]])
        while True:
            message = self.receive()
            if message[0] == "ask":
                self.answer(message)
                continue
            try:
                kind, value, changed = message
                for i, new in changed:
                    update(args[i], self.decode(new))
                if kind == "value":
                    return self.decode(value)
                error = self._error(*value) if kind == "raise" else None
            except Malformed:
                raise
            except Exception as error:
                raise Malformed from error
            if error is None:
                raise Malformed
            raise error

    def answer(self, message: list[Any]) -> None:
        """Do what the other end asks, and tell it what came of it, and which arguments are changed."""
        try:
            _, what, given = message
            operation = self._operations[what]
            args = [self.decode(one) for one in given]
        except Malformed:
            raise
        except Exception as error:
            raise Malformed from error
        try:
            told, value = "value", self.encode(operation(*args))
        except (Gone, Malformed):
            raise
        except BaseException as error:
            told, value = "raise", self._told(error)
        changed = []
        for i, (arg, before) in enumerate(zip(args, given)):
            if isinstance(arg, list | dict | set | bytearray | deque) and (now := self.encode(arg)) != before:
                changed.append([i, now])
        if os.getpid() != self._process:  # a fork that the code made
            os._exit(0)
        self.send([told, value, changed])

    # -- values

    def encode(self, value: Any) -> Any:
        """Return a value as JSON: plain data, of exactly the types that they seem to be, or a number."""
        kind = type(value)
        if value is None or kind is bool or kind is str or kind is float:
            return value
        if isinstance(value, int):
            return ["int", hex(int.__index__(value))] if kind is not bool else bool(value)
        if isinstance(value, float):
            return float.__float__(value)
        if isinstance(value, str):
            return str.__str__(value)
        if kind in _CONTAINERS:
            return [_CONTAINERS[kind], [self.encode(item) for item in value]]
        if kind in _MAPPINGS or kind.__name__ == "defaultdict":
            pairs = [[self.encode(key), self.encode(item)] for key, item in dict.items(value)]
            return [_MAPPINGS.get(kind, "dict"), pairs]
        if kind in (bytes, bytearray):
            return [kind.__name__, value.hex()]
        if kind is complex:
            return ["complex", [value.real, value.imag]]
        if kind in (Fraction, Decimal, range):
            return [kind.__name__, str(value) if kind is not range else [value.start, value.stop, value.step]]
        if any(value is one for one in _TYPES):
            return ["type", value.__name__]
        if kind.__module__ == "numpy" and hasattr(value, "dtype") and value.dtype.kind in "biufc":
            return ["array", [str(value.dtype), list(value.shape), value.tobytes().hex()]]
        if isinstance(value, type) and issubclass(value, Exception):
            return ["exception", _lineage(value)]
        if isinstance(value, Remote):
            return ["yours", vars(value)[NUMBER]]
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self._own)
            self._own[len(self._own)] = value
        return ["mine", self._numbers[id(value)]]

    def decode(self, told: Any) -> Any:
        """Return the value that JSON stands for. Raises Malformed."""
        if told is None or isinstance(told, bool | float | str):
            return told
        try:
            name, inside = told
            return self._decode(name, inside)
        except Malformed:
            raise
        except Exception as error:
            raise Malformed from error

    def _decode(self, name: str, inside: Any) -> Any:
        if name == "int":
            return int(inside, 16)
        if name in ("dict", "Counter", "OrderedDict"):
            return _BY_NAME[name]({self.decode(key): self.decode(value) for key, value in inside})
        if name in _BY_NAME:
            return _BY_NAME[name]([self.decode(item) for item in inside])
        if name in ("bytes", "bytearray"):
            data = bytes.fromhex(inside)
            return data if name == "bytes" else bytearray(data)
        if name == "complex":
            return complex(*inside)
        if name in ("Fraction", "Decimal"):
            return {"Fraction": Fraction, "Decimal": Decimal}[name](str(inside))
        if name == "range":
            return range(*inside)
        if name == "type":
            return {kind.__name__: kind for kind in _TYPES}[inside]
        if name == "array":
            import numpy as np

            dtype, shape, data = inside
            found = np.frombuffer(bytes.fromhex(data), np.dtype(str(dtype))).reshape(shape)
            return found[()] if not shape else found.copy()
        if name == "exception":
            return self._exception(tuple(inside))
        if name == "yours":
            return self._own[inside]
        if name == "mine":
            known = self._theirs.get(int(inside))
            if known is None:
                known = self._theirs[int(inside)] = self._remote(self, int(inside))
            return known
        raise Malformed

    # -- exceptions

    def _told(self, error: BaseException) -> Any:
        args: Any = error.args
        try:
            encoded = self.encode(tuple(args))
            if "mine" in json.dumps(encoded):
                encoded = self.encode((str(error),))
        except Exception:
            encoded = self.encode(())
        return [_lineage(type(error)), encoded]

    def _error(self, lineage: Any, args: Any) -> BaseException:
        names, given = tuple(lineage), self.decode(args)
        base = getattr(builtins, names[-1])
        if issubclass(base, Exception):
            kind = self._exception(names)
            try:
                return kind(*given)
            except TypeError:  # it takes others, and keeps none
                return kind(str(given))
        if not issubclass(base, BaseException):
            raise Malformed
        shown = ", ".join(map(repr, given))
        return Ended(f"it ended itself: SystemExit({shown})" if base is SystemExit else f"{names[-1]}: {shown}")

    def _exception(self, names: tuple[str, ...]) -> type[Exception]:
        """Return the class of the same name and the same bases, of which the last is Python's own."""
        if names not in self._exceptions:
            if len(names) == 1:
                found = getattr(builtins, names[0])
                if not (isinstance(found, type) and issubclass(found, Exception)):
                    raise Malformed
            else:
                found = type(str(names[0]), (self._exception(names[1:]),), {})
            self._exceptions[names] = found
        return self._exceptions[names]


def _lineage(kind: type) -> list[str]:
    """Return the names of an exception and of its bases, up to the first that is Python's own."""
    names = []
    for base in kind.__mro__:
        names.append(base.__name__)
        if base.__module__ == "builtins":
            break
    return names


def call(fn: Any, names: list[str], *values: Any) -> Any:
    """Call a function with arguments of which the last ones have names."""
    positional = len(values) - len(names)
    return fn(*values[:positional], **dict(zip(names, values[positional:])))


def update(old: Any, new: Any) -> None:
    """Make a container what a call has made of its copy. Raises Malformed where it cannot be that."""
    if type(old) is not type(new):
        raise Malformed
    if isinstance(old, list | bytearray):
        old[:] = new
    elif isinstance(old, dict | set):
        old.clear()
        old.update(new)
    elif isinstance(old, deque):
        old.clear()
        old.extend(new)
    else:
        raise Malformed
