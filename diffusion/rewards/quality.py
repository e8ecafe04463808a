"""How natural an image looks, without a reference: BRISQUE, through the PyPI package of that name."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch

from .images import check_range, colours


class ImageQuality:
    """Minus the BRISQUE score of an image: about 0 for a clean photograph, −100 for a bad one.

    BRISQUE (Mittal, Moorthy and Bovik 2012, doi:10.1109/TIP.2012.2214050) compares the statistics of neighbouring
    pixels with those of natural images; a support vector machine that comes with the package reads a score from them.
    It is no function that torch could differentiate. It knows photographs: of drawings and digits it says little.

    Args:
        value_range: what black and white are in the images; what lies beyond is clipped.

    Raises ImportError without the package (``pip install 'feynkac[quality]'``) and ValueError for a range that is none.
    An image, or half of it, that is all of one colour has no such statistics: its reward is NaN, which `Steering` makes
    an error that names the particle.

    >>> quality = ImageQuality()
    >>> waves = torch.sin(torch.arange(4096.0).reshape(1, 1, 64, 64) / 5)
    >>> noisy = waves + torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    >>> bool(quality(waves / 2) > quality(noisy / 2))
    True
    """

    differentiable = False
    name = "image_quality"

    def __init__(self, value_range: tuple[float, float] = (-1.0, 1.0)) -> None:
        self.value_range = check_range(value_range)
        self._model = _brisque()

    def __call__(self, images: Any) -> Any:
        """Return minus the BRISQUE score (n,) of images (n, h, w), (n, 1, h, w) or (n, 3, h, w), float64."""
        seen = colours(images.detach(), self.value_range, self.name).clamp(0.0, 1.0)
        pixels = (255.0 * seen).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # of fits to flat images; their NaN is dealt with by name
            return torch.tensor([-float(self._model.score(one)) for one in pixels], dtype=torch.float64)


def _brisque() -> Any:
    """Return the package's model, mended: as it is, it does not run beside NumPy 2.4."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            from brisque import BRISQUE
        except ImportError as error:
            raise ImportError("ImageQuality needs brisque and OpenCV: pip install 'feynkac[quality]'") from error

    class Mended(BRISQUE):  # type: ignore[misc]
        def scale_features(self, features: Any) -> Any:
            """Scale features, of which some are arrays of one number."""
            return super().scale_features(np.concatenate([np.ravel(np.asarray(one, float)) for one in features]))

    return Mended(url=False)
