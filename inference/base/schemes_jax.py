"""The resampling schemes of `resampling` in JAX: the same laws, not the same draws."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def resample(weights: Any, key: Any, scheme: str) -> Any:
    """Draw n ancestors, int32, in proportion to n weights, which need not sum to 1; see `resampling`."""
    n = len(weights)
    if scheme == "systematic":
        return _invert(weights, (jnp.arange(n) + jax.random.uniform(key)) / n)
    if scheme == "stratified":
        return _invert(weights, (jnp.arange(n) + jax.random.uniform(key, (n,))) / n)
    if scheme == "multinomial":
        return _invert(weights, jax.random.uniform(key, (n,)))
    expected = weights * (n / weights.sum())
    whole = jnp.floor(expected)
    return (_residual if scheme == "residual" else _ssp)(whole.astype(jnp.int32), expected - whole, key)


def _invert(weights: Any, points: Any) -> Any:
    """Find the particle whose share of [0, 1) holds each point; one of weight zero has none."""
    edges = jnp.cumsum(weights)
    total = edges[-1]
    below = jnp.minimum(points * total, jnp.nextafter(total, 0.0))
    return jnp.searchsorted(edges, below, side="right").astype(jnp.int32)


def _copies(counts: Any) -> Any:
    """Return the ancestors of so many copies of each."""
    n = len(counts)
    return jnp.searchsorted(jnp.cumsum(counts), jnp.arange(n), side="right").astype(jnp.int32)


def _residual(counts: Any, rest: Any, key: Any) -> Any:
    n = len(counts)
    drawn = _invert(rest, jax.random.uniform(key, (n,)))
    whole = jnp.minimum(_copies(counts), n - 1)
    return jnp.where(jnp.arange(n) < counts.sum(), whole, drawn)


def _ssp(counts: Any, fractions: Any, key: Any) -> Any:
    n = len(counts)

    def settle(carry: Any, pair: Any) -> Any:
        unsettled, a, counts = carry
        j, b, u = pair
        both = a + b
        takes = u * both >= a
        up = jnp.where(u * (2.0 - both) < 1.0 - b, unsettled, j)
        small = both < 1.0
        counts = counts.at[up].add(jnp.where(small, 0, 1))
        kept = jnp.where(up == unsettled, j, unsettled)
        unsettled = jnp.where(small, jnp.where(takes, j, unsettled), kept)
        return (unsettled, jnp.where(small, both, both - 1.0), counts), None

    pairs = jnp.arange(1, n, dtype=jnp.int32), fractions[1:], jax.random.uniform(key, (n,))[1:]
    (unsettled, _, counts), _ = jax.lax.scan(settle, (jnp.int32(0), fractions[0], counts), pairs)
    # The last fraction is 0 or 1 but for rounding, which is what counts still miss.
    return _copies(counts.at[unsettled].add((n - counts.sum()).astype(jnp.int32)))
