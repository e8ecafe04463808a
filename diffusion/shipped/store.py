"""The small networks that ship with the library: their weights and the record of how they were made.

Each is a safetensors file (float16) and a JSON file in the folder ``weights``, made by a script in the repository's
folder ``training``. The record names data, licence, seed, steps and what was measured.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files
from typing import Any

from ...models.fetch.shelf import DamagedWeights as DamagedWeights
from ...models.fetch.shelf import Shelf
from ...models.local.weights.devices import find


def shipped() -> list[str]:
    """Return the names of the networks that ship.

    >>> "digits" in shipped()
    True
    """
    return _shelf().names()


def record(name: str) -> dict[str, Any]:
    """Return what is on record of a network: data, licence, training, quality, the checksum of its weights.

    Raises ValueError for a name that does not ship.

    >>> record("digits")["license"]
    'Apache-2.0'
    """
    return _shelf().record(name)


@lru_cache(maxsize=8)
def load(name: str, device: str = "cpu") -> Any:
    """Return a network with its weights, float32, frozen and ready to use. Calls with one name share it.

    Raises ImportError without diffusers where the network is one of its own (``pip install feynkac[diffusion]``),
    and DamagedWeights where the file does not match its checksum.
    """
    device = find(device)
    weights = _shelf().weights(name)
    network = _build(record(name))
    network.load_state_dict(weights)
    return network.to(device).requires_grad_(False).eval()


def _build(told: dict[str, Any]) -> Any:
    from .convnets import JudgeNet, RewardNet
    from .latent_digits import LatentDigits
    from .masked_digits import MaskedDigitNet
    from .strings import StringNet

    own = {kind.__name__: kind for kind in (JudgeNet, LatentDigits, MaskedDigitNet, RewardNet, StringNet)}
    if told["network"] in own:
        return own[told["network"]]()
    try:
        from diffusers import UNet2DModel
    except ImportError as error:
        raise ImportError("this network needs diffusers: pip install 'feynkac[diffusion]'") from error
    return UNet2DModel(**told["config"])


def _shelf() -> Shelf:
    return Shelf(_folder())


def _folder() -> Any:
    return files(__package__) / "weights"
