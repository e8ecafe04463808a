"""Parameters as unconstrained real numbers, in which optimizers step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import biject_to, constraints

from ...ppl.transforms.params import Declared


class Spaces:
    """The maps between parameters and unconstrained numbers.

    Args:
        declared: what programs say of their parameters.
        known: values to start from, in place of those.

    Raises ValueError, naming the parameter, for a start that is not finite, or does not obey the constraint.
    """

    def __init__(self, declared: Mapping[str, Declared], known: Mapping[str, Any]) -> None:
        self._maps: dict[str, Any] = {}
        self.start: dict[str, Any] = {}
        for name, (init, constraint) in declared.items():
            begin = jax.tree.map(lambda x: jnp.asarray(x, float), known.get(name, init))
            if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(begin)):
                raise ValueError(f"param {name!r} does not begin with finite numbers")
            if constraint is not None:
                self._maps[name] = biject_to(_constraint(name, constraint, begin))
                begin = self._maps[name].inv(begin)
            self.start[name] = begin

    def values(self, free: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters that unconstrained numbers stand for."""
        return {name: self._maps[name](x) if name in self._maps else x for name, x in free.items()}


def _constraint(name: str, asked: Any, begin: Any) -> Any:
    found: Any = getattr(constraints, asked, None) if isinstance(asked, str) else asked
    if not hasattr(found, "feasible_like"):
        raise ValueError(f"param {name!r}: {asked!r} is none of numpyro.distributions.constraints, nor the name of one")
    if isinstance(begin, dict) or not bool(jnp.all(found(begin))):
        raise ValueError(f"param {name!r}: it begins with {begin}, which is not {asked!r}")
    return found
