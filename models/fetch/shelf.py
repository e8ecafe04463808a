"""Weights that ship with the library: safetensors files, each with a JSON record of how it was made."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from ...ppl.errors import FeynkacError


class DamagedWeights(FeynkacError):
    """Shipped weights do not match their checksum."""


class Shelf:
    """A folder of weights (safetensors, float16), each with its record (JSON): data, licence, training, quality.

    Args:
        folder: a path, or the like of ``importlib.resources``.

    >>> from importlib.resources import files
    >>> Shelf(files("feynkac.models.tasks") / "weights").names()
    ['countdown_reasoner', 'countdown_verifier', 'countdown_verifier_early', 'sudoku_reasoner']
    """

    def __init__(self, folder: Any) -> None:
        self._folder = folder

    def names(self) -> list[str]:
        """Return the names of the networks that ship."""
        return sorted(entry.name[:-5] for entry in self._folder.iterdir() if entry.name.endswith(".json"))

    def record(self, name: str) -> dict[str, Any]:
        """Return what is on record of a network. Raises ValueError for a name that does not ship."""
        if name not in self.names():
            raise ValueError(f"no network is called {name!r}; there are: {', '.join(self.names())}")
        found: dict[str, Any] = json.loads((self._folder / f"{name}.json").read_text(encoding="utf-8"))
        return found

    def weights(self, name: str) -> dict[str, Any]:
        """Return the weights of a network by name, as float32 tensors.

        Raises DamagedWeights where the file does not match its checksum, ValueError for a name that does not ship.
        """
        from safetensors.torch import load

        told = self.record(name)
        raw = (self._folder / f"{name}.safetensors").read_bytes()
        if hashlib.sha256(raw).hexdigest() != told["sha256"]:
            raise DamagedWeights(f"the weights of {name!r} do not match their checksum: install feynkac again")
        return {key: value.float() for key, value in load(raw).items()}
