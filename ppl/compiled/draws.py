"""Draws in JAX: from a key of each particle, or from one key for all of them.

Under `vmap` a draw whose key is the same for all particles is made in one call for all, which takes half the time of a
key for each. They are independent all the same: the words of one counter are.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as nd
from jax.custom_batching import custom_vmap

from ..traced.laws import jax_key


def draw(dist: Any, words: Any, slot: Any) -> Any:
    """Draw one value of a NumPyro distribution for the particle ``slot``, by the words of a key.

    Where the words are a particle's own, the draw depends on nothing else. Where they are those of all particles, each
    has its own draw of the batch.
    """
    base = dist
    while isinstance(base, nd.Independent):
        base = base.base_dist
    names = [name for name in _PARAMETERS.get(type(base), ()) if name in base.__dict__]
    if names:
        parameters = [base.__dict__[name] for name in names]
    else:
        parameters, tree = jax.tree.flatten(dist)

    def own(words: Any, *parameters: Any) -> Any:
        made = _made(base, names, parameters) if names else jax.tree.unflatten(tree, parameters)
        return made.sample(jax_key(words))

    def alone(words: Any, slot: Any, *parameters: Any) -> Any:
        return own(jax.random.key_data(jax.random.fold_in(jax_key(words), slot)), *parameters)

    one = custom_vmap(alone)

    @one.def_vmap  # type: ignore[untyped-decorator]
    def together(size: int, batched: Any, words: Any, slot: Any, *parameters: Any) -> Any:
        axes = [0 if b else None for b in batched]
        if batched[0] and not batched[1]:
            return jax.vmap(own, [axes[0], *axes[2:]])(words, *parameters), True
        if batched[0] or not names:
            return jax.vmap(alone, axes)(words, slot, *parameters), True
        rows = [
            jnp.asarray(x) if b else jnp.broadcast_to(x, (size, *jnp.shape(x))) for x, b in zip(parameters, batched[2:])
        ]
        return _made(base, names, [_aligned(base, name, row) for name, row in zip(names, rows)]).sample(
            jax_key(words)
        ), True

    return one(words, slot, *map(jnp.asarray, parameters))


def _made(base: Any, names: list[str], parameters: Any) -> Any:
    return type(base)(**dict(zip(names, parameters)), validate_args=False)


def _aligned(base: Any, name: str, rows: Any) -> Any:
    """Return a parameter's rows (n, …) with as many axes as the batch of a distribution has, before its own."""
    inner = getattr(base.arg_constraints[name], "event_dim", 0)
    batch = len(base.batch_shape)
    event = rows.shape[rows.ndim - inner :]
    wide = rows.reshape(len(rows), *[1] * (batch + inner + 1 - rows.ndim), *rows.shape[1:])
    return jnp.broadcast_to(wide, (len(rows), *base.batch_shape, *event))


_PARAMETERS: dict[Any, tuple[str, ...]] = {
    nd.Normal: ("loc", "scale"),
    nd.Uniform: ("low", "high"),
    nd.Exponential: ("rate",),
    nd.Laplace: ("loc", "scale"),
    nd.Cauchy: ("loc", "scale"),
    nd.Gumbel: ("loc", "scale"),
    nd.Logistic: ("loc", "scale"),
    nd.HalfNormal: ("scale",),
    nd.Gamma: ("concentration", "rate"),
    nd.BernoulliProbs: ("probs",),
    nd.BernoulliLogits: ("logits",),
    nd.CategoricalProbs: ("probs",),
    nd.CategoricalLogits: ("logits",),
    nd.Poisson: ("rate",),
    nd.MultivariateNormal: ("loc", "scale_tril"),
}
"""Families whose parameters broadcast, by the names of those that make them."""
