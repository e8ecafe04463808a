"""Names that are imported from their files when they are first used, so that heavy libraries wait until then."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any


def find(package: str, home: Mapping[str, str], name: str, extra: str) -> Any:
    """Return a package's name from the file that ``home`` gives for it, for a module's ``__getattr__``.

    Raises AttributeError for a name that is not there, and ImportError, naming the extra, where a library is missing.
    """
    if name not in home:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    with needing(f"fk.{package.rpartition('.')[2]}.{name}", extra):
        return getattr(import_module(f".{home[name]}", package), name)


@contextmanager
def needing(what: str, extra: str) -> Iterator[None]:
    """Within the block a library that is missing is an ImportError that names the extra.

    >>> with needing("fk.models.Oracle", "text"):
    ...     import delphi
    Traceback (most recent call last):
    ...
    ImportError: fk.models.Oracle needs delphi: pip install 'feynkac[text]'
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", "feynkac"):
            raise
        raise ImportError(f"{what} needs {missing}: pip install 'feynkac[{extra}]'") from error
