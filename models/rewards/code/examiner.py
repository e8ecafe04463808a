"""Runs the tests of a piece of Python, in a process of their own, where its code does not run. Run as a script.

The arguments are the descriptors of two sockets: to the code (see `runner`), and to the process that wants to know.
From there comes a job, as JSON: the code, the tests and the limits; there goes the verdict: why the code failed, an
empty string where it did not, null where it is gone. What the code defines is here by proxy: a call is made there, and
its value comes back as plain data, to be compared here. The code is sent to its process after the job was read, and
sockets are not for it to open.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import ctypes
import errno
import importlib
import json
import os
import resource
import socket
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .wire import PEER, Ended, Gone, Malformed, Peer, Remote, call
else:  # a script of its own has no package
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    from wire import PEER, Ended, Gone, Malformed, Peer, Remote, call

    del sys.path[0]

_UNLIKE = "an object of the code is compared and reckoned with its like alone, not with data of the tests"


class Ours(Remote):
    """An object of the code. What would show it a value of the tests and let it answer for itself is refused."""

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Call it; containers among the arguments become what it has made of them."""
        return vars(self)[PEER].ask("call", self, list(named), *args, *named.values())

    def __getattr__(self, name: str) -> Any:
        return vars(self)[PEER].ask("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        vars(self)[PEER].ask("set", self, name, value)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Ours) and vars(self)[PEER].ask("eq", self, other) is True)

    def __hash__(self) -> int:
        return id(self)

    def __contains__(self, value: object) -> bool:
        return any(item is value or item == value for item in iter(self))

    def __instancecheck__(self, value: object) -> bool:
        return isinstance(value, Ours) and vars(self)[PEER].ask("isinstance", value, self) is True

    def __enter__(self) -> Any:
        return vars(self)[PEER].ask("enter", self)

    def __exit__(self, *_: object) -> None:
        vars(self)[PEER].ask("exit", self)


def _forward(special: str, what: str, kinds: tuple[type, ...]) -> None:
    def method(self: Ours, *args: Any) -> Any:
        found = vars(self)[PEER].ask(what, self, *args)
        if not isinstance(found, kinds):
            raise TypeError(f"{special} of an object of the code returned a {type(found).__name__}")
        return found

    setattr(Ours, special, method)


for _special, _what, _kinds in (
    ("__len__", "len", (int,)), ("__bool__", "bool", (bool,)), ("__str__", "str", (str,)), ("__repr__", "repr", (str,)),
    ("__getitem__", "item", (object,)), ("__setitem__", "put", (object,)), ("__delitem__", "delete", (object,)),
    ("__iter__", "iter", (Ours,)), ("__next__", "next", (object,)),
    ("__neg__", "neg", (Ours,)), ("__pos__", "pos", (Ours,)), ("__invert__", "invert", (Ours,)),
):  # fmt: skip
    _forward(_special, _what, _kinds)


def _reckon(name: str) -> None:
    def method(self: Ours, other: Any) -> Any:
        if not isinstance(other, Ours):
            raise TypeError(_UNLIKE)
        return vars(self)[PEER].ask(name, self, other)

    setattr(Ours, f"__{name.rstrip('_')}__", method)


for _name in (
    "lt", "le", "gt", "ge", "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and_", "or_", "xor", "matmul",
    "lshift", "rshift",
):  # fmt: skip
    _reckon(_name)


def _of_tests(thing: Any, name: str) -> None:
    """Raise unless a thing is of a class that the tests define, and the name is none of Python's own."""
    if type(thing).__module__ != "__main__" or isinstance(thing, Remote) or name.startswith("_"):
        raise AttributeError(f"{name!r} of an object of the tests is not for the code")


def _get(thing: Any, name: str) -> Any:
    _of_tests(thing, name)
    return getattr(thing, name)


def _set(thing: Any, name: str, value: Any) -> None:
    _of_tests(thing, name)
    setattr(thing, name, value)


def _run(peer: Peer, code: str, tests: str) -> str:
    """Return why the code failed, or an empty string."""
    try:
        space = _names(peer.ask("load", code), tests)
        exec(compile(tests, "<tests>", "exec"), space)
        return str(peer.ask("flush"))
    except MemoryError:
        return "memory"
    except Ended as error:
        return str(error)
    except (Gone, Malformed) as error:
        raise error
    except BaseException as error:
        if isinstance(error, OSError) and error.errno == errno.EFBIG:
            return "output"
        return f"{type(error).__name__}: {error}"[:500]


def _names(exported: Any, tests: str) -> dict[str, Any]:
    """Return the namespace of the tests: what the code defines, but for Python's own names."""
    if not isinstance(exported, dict):
        raise Malformed
    space: dict[str, Any] = {"__name__": "__main__", "__builtins__": builtins}
    used = {node.id for node in ast.walk(ast.parse(tests)) if isinstance(node, ast.Name)}
    for name, (kind, value) in exported.items():
        if name.startswith("__"):
            continue
        if hasattr(builtins, name):
            if name in used:
                raise Ended(f"it redefines {name!r}, which is Python's own in its tests")
        elif kind == "name":
            space[name] = value
        elif value in sys.stdlib_module_names or value == "numpy":
            space[name] = importlib.import_module(value)
    return space


def _withdraw() -> None:
    """Keep processes of the same user out of this one's memory and descriptors, where the system can (Linux)."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)


def main() -> None:
    """Examine the code, and tell the verdict."""
    _withdraw()
    link, parent = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
    with parent.makefile("rb") as file:
        job = json.load(file)
    sys.argv = ["tests.py"]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (job["output"], job["output"]))
    peer = Peer(link, Ours, {"call": call, "iter": iter, "next": next, "get": _get, "set": _set})
    try:
        peer.ask("limit", job["memory"], job["output"])
        reason = _run(peer, job["code"], job["tests"])
    except Gone:
        reason = None
    except Malformed:
        reason = "its answers were written over"
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    parent.sendall(json.dumps(reason).encode())


if __name__ == "__main__":
    main()
