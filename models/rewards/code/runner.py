"""Runs a piece of Python under limits, in a process of its own, for its tests in another. Run as a script.

The argument is the descriptor of the socket to the tests (see `examiner`), from which the limits and the code come.
Then each message asks for one thing to be done with an object of the code. Nothing of what is done here can make a
test pass but the right answers: what this process says of itself is not heeded.
"""

from __future__ import annotations

import builtins
import errno
import operator
import os
import resource
import socket
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .wire import PEER, Gone, Malformed, Peer, Remote, call
else:  # a script of its own has no package
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    from wire import PEER, Gone, Malformed, Peer, Remote, call

    del sys.path[0]


class Theirs(Remote):
    """An object of the tests: to be called, gone through, and (of their own classes) asked for attributes."""

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Call it."""
        return vars(self)[PEER].ask("call", self, list(named), *args, *named.values())

    def __iter__(self) -> Any:
        return vars(self)[PEER].ask("iter", self)

    def __next__(self) -> Any:
        return vars(self)[PEER].ask("next", self)

    def __getattr__(self, name: str) -> Any:
        return vars(self)[PEER].ask("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        vars(self)[PEER].ask("set", self, name, value)


def _limit(memory: int, output: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (output, output))
    if sys.platform == "linux":  # elsewhere it is not heeded, or refused
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def _load(code: str) -> dict[str, Any]:
    """Run the code, and return its names with what they stand for."""
    space: dict[str, Any] = {"__name__": "__main__", "__builtins__": builtins}
    exec(compile(code, "<code>", "exec"), space)
    named = {name: value for name, value in space.items() if not name.startswith("__")}
    return {name: ("module", value.__name__) if isinstance(value, types.ModuleType) else ("name", value)
            for name, value in named.items()}  # fmt: skip


def _flush() -> str:
    """Write out what is left, and return why that fails, or an empty string."""
    try:
        sys.stdout.flush()
    except OSError as error:
        return "output" if error.errno == errno.EFBIG else f"OSError: {error}"
    except (AttributeError, ValueError):  # the code has closed or replaced it
        pass
    return ""


def _operations() -> dict[str, Any]:
    found: dict[str, Any] = {
        "limit": _limit,
        "load": _load,
        "flush": _flush,
        "call": call,
        "get": getattr,
        "set": setattr,
        "item": operator.getitem,
        "put": operator.setitem,
        "delete": operator.delitem,
        "len": len,
        "iter": iter,
        "next": next,
        "bool": bool,
        "str": str,
        "repr": repr,
        "isinstance": isinstance,
        "enter": lambda thing: type(thing).__enter__(thing),
        "exit": lambda thing: type(thing).__exit__(thing, None, None, None),
    }
    names = "eq lt le gt ge add sub mul truediv floordiv mod pow and_ or_ xor matmul lshift rshift neg pos invert"
    return found | {name: getattr(operator, name) for name in names.split()}


def main() -> None:
    """Serve until the tests are over."""
    link = socket.socket(fileno=int(sys.argv[1]))
    sys.argv = ["candidate.py"]
    peer = Peer(link, Theirs, _operations())
    try:
        while True:
            peer.answer(peer.receive())
    except (Gone, Malformed):
        pass


if __name__ == "__main__":
    main()
