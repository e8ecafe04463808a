"""Distributions from the libraries that users know, as kernels: SciPy, PyTorch and NumPyro.

`as_kernel` tells a library by the module of an object's class, so that nothing is imported before it is used.
Requests of one family and shape are stacked and served by one call. Draws and log-probabilities are NumPy's.
Vectors of independent components (a ``batch_shape``) count as one draw, with their log-probabilities summed.

    library   drawn by                                                  a draw depends on
    scipy     the inverse distribution function of uniforms             its own key
              (multivariate: ``rvs`` with a generator of the key)       its own key
    numpyro   ``sample`` under ``vmap``, with the keys as JAX keys      its own key
    torch     ``icdf``, or inversion, or a linear map of normals        its own key
              other families that stack: one seeded ``sample``          all keys of the batch
              what does not stack: ``sample``, seeded one by one        its own key
"""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import Any

from ..model import Kernel
from ..sites import Running


def as_kernel(dist: Any) -> Kernel:
    """Return a kernel that draws from ``dist``.

    Accepts a kernel (returned as it is; ``fk.dist`` distributions and model steps are kernels), a frozen
    SciPy distribution, a ``torch.distributions.Distribution`` and a NumPyro ``Distribution``. Raises
    ``TypeError`` on anything else.

    >>> from .dist import Normal
    >>> as_kernel(Normal(0.0, 1.0))
    Normal(loc=0.0, scale=1.0)
    """
    if hasattr(dist, "sample_batch") and not isinstance(dist, type):
        return dist  # type: ignore[no-any-return]
    if Running.fiber is not None and Running.fiber.traced:
        return dist  # type: ignore[no-any-return]  # a law of symbols, see `feynkac.ppl.traced`
    library = library_of(type(dist))  # type: ignore[arg-type]
    if library == "scipy":
        from .adapt_scipy import adapt
    elif library == "torch":
        from .adapt_torch import adapt
    elif library == "numpyro":
        from .adapt_numpyro import adapt
    else:
        raise _refuse(dist)
    kernel = adapt(dist)
    if kernel is None:
        raise _refuse(dist)
    return kernel


def quicken() -> None:
    """Have the laws of libraries that are loaded made quickly, where that can be."""
    if "numpyro.distributions" in sys.modules:
        from . import quick_numpyro

        quick_numpyro.install()


@lru_cache(maxsize=1024)
def library_of(cls: type) -> str | None:
    """Return the library that a class belongs to or builds on: "scipy", "torch" or "numpyro", else None."""
    roots = [base.__module__.partition(".")[0] for base in cls.__mro__]
    return next((root for root in roots if root in ("scipy", "torch", "numpyro")), None)


def _refuse(dist: Any) -> TypeError:
    cls = dist if isinstance(dist, type) else type(dist)
    what = f"{'the class' if cls is dist else 'an object of'} {cls.__module__}.{cls.__qualname__}"
    return TypeError(
        f"{what} is not something to sample from; give a model step, "
        "an fk.dist distribution, a frozen scipy.stats distribution, a torch.distributions or NumPyro "
        "distribution, or any object with sample_batch(requests, keys)"
    )
