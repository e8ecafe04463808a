"""The small networks that ship with the library: their weights and the record of how they were made.

Each is a safetensors file (float16) and a JSON file in the folder ``weights``, made by a script in the repository's
folder ``training``. The record names data, licence, seed, steps and what was measured.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from importlib.resources import files
from typing import Any

from ...ppl.errors import FeynkacError


class DamagedWeights(FeynkacError):
    """Shipped weights do not match their checksum."""


def shipped() -> list[str]:
    """Return the names of the networks that ship.

    >>> "digits" in shipped()
    True
    """
    return sorted(entry.name[:-5] for entry in _folder().iterdir() if entry.name.endswith(".json"))


def record(name: str) -> dict[str, Any]:
    """Return what is on record of a network: data, licence, training, quality, the checksum of its weights.

    Raises ValueError for a name that does not ship.

    >>> record("digits")["license"]
    'Apache-2.0'
    """
    if name not in shipped():
        raise ValueError(f"no network is called {name!r}; there are: {', '.join(shipped())}")
    found: dict[str, Any] = json.loads((_folder() / f"{name}.json").read_text(encoding="utf-8"))
    return found


@lru_cache(maxsize=8)
def load(name: str, device: str = "cpu") -> Any:
    """Return a network with its weights, float32, frozen and ready to use. Calls with one name share it.

    Raises ImportError without diffusers where the network is one of its own (``pip install feynkac[diffusion]``),
    and DamagedWeights where the file does not match its checksum.
    """
    from safetensors.torch import load as parse

    told = record(name)
    raw = (_folder() / f"{name}.safetensors").read_bytes()
    if hashlib.sha256(raw).hexdigest() != told["sha256"]:
        raise DamagedWeights(f"the weights of {name!r} do not match their checksum: install feynkac again")
    network = _build(told)
    network.load_state_dict({key: value.float() for key, value in parse(raw).items()})
    return network.to(device).requires_grad_(False).eval()


def _build(told: dict[str, Any]) -> Any:
    from . import convnets

    if told["network"] != "UNet2DModel":
        return getattr(convnets, told["network"])()
    try:
        from diffusers import UNet2DModel
    except ImportError as error:
        raise ImportError("this network needs diffusers: pip install 'feynkac[diffusion]'") from error
    return UNet2DModel(**told["config"])


def _folder() -> Any:
    return files(__package__) / "weights"
