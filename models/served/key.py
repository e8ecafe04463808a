"""The key that a server asks for: from an argument or the environment, and in nothing that is shown or saved."""

from __future__ import annotations

import os
import re

_ANY = "FEYNKAC_API_KEY"
_OPENAI = "OPENAI_API_KEY"
_HIDDEN = "***"
_SHORT = 8
"""A key of fewer characters, such as "x" where a server wants any, is hidden where it is a word alone."""


class Key:
    """What a host is told to be let in, or nothing. It is never shown, and a copy in another process finds its own.

    Args:
        host: whose key it is.
        given: the key; by default that of the environment, ``FEYNKAC_API_KEY``, or ``OPENAI_API_KEY`` where the host is
            OpenAI's own, so that no other gets it. An empty string is no key.

    Raises ValueError, which does not show it, for a key that cannot stand in a header.

    >>> key = Key("localhost", "sk-secret")
    >>> key, key.hide("no such key: sk-secret")
    (<a key for localhost>, 'no such key: ***')
    """

    __slots__ = ("_value", "host")

    def __init__(self, host: str, given: str | None = None) -> None:
        openai = host == "openai.com" or host.endswith(".openai.com")
        known = os.environ.get(_ANY) or (os.environ.get(_OPENAI) if openai else None) or ""
        self.host = host
        self._value = (known if given is None else given).strip()
        if not (self._value.isascii() and self._value.isprintable()):
            raise ValueError(f"the key for {host} has characters that no header can have: see api_key= and {_ANY}")

    def __repr__(self) -> str:
        return f"<{'a' if self else 'no'} key for {self.host}>"

    def __bool__(self) -> bool:
        return bool(self._value)

    def __reduce__(self) -> tuple[type[Key], tuple[str]]:
        return Key, (self.host,)

    def __copy__(self) -> Key:
        return self

    def __deepcopy__(self, _: object) -> Key:
        return self

    @property
    def headers(self) -> dict[str, str]:
        """What is sent."""
        return {"Authorization": f"Bearer {self._value}"} if self else {}

    @property
    def remedy(self) -> str:
        """What to do where it does not fit."""
        state = "the server refuses the key" if self else "the server wants a key, and there is none"
        return f"{state}: give api_key=, or set {_ANY} in the environment of this process"

    def hide(self, string: str) -> str:
        """Return a string without the key."""
        if len(self._value) < _SHORT:
            return re.sub(rf"(?<!\w){re.escape(self._value)}(?!\w)", _HIDDEN, string) if self else string
        return string.replace(self._value, _HIDDEN)
