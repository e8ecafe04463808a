"""What a model of image tokens gives: an array that knows which tokens it was drawn from."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class Picture(np.ndarray[Any, Any]):
    """An image as an array, with the ``tokens`` that it was decoded from; arrays that are made from it have none.

    >>> import pickle
    >>> image = Picture.of(np.ones((2, 2)), np.array([3]))
    >>> pickle.loads(pickle.dumps(image)).tokens, (2 * image).tokens is None
    (array([3]), True)
    """

    tokens: NDArray[np.int64] | None = None

    @classmethod
    def of(cls, image: Any, tokens: NDArray[np.int64]) -> Picture:
        """Return an image with its tokens."""
        made = np.array(image).view(cls)
        made.tokens = tokens
        return made

    def __reduce__(self) -> Any:
        return Picture.of, (np.asarray(self), self.tokens)
