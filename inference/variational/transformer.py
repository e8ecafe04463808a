"""The Distribution Transformer: from a prior and data to the posterior, learned from simulations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as nd

from ..base.checks import positive

Weights = Mapping[str, Any]


@dataclass(frozen=True)
class DistributionTransformer:
    """A network that turns a mixture of normal laws (the prior of a number) and data into another (its posterior).

    Each component is a token (its logit, mean and log standard deviation), and so is each datum. In every layer the
    components attend to each other and to the data; what comes out is a change of each component. A network that is not
    trained leaves the prior as it is.

    It is the law of a guide that `fit` trains by `ForwardKL`, on a model whose priors are drawn, too; then it is a
    posterior for any prior and data of these kinds, and through `handlers.propose` an exact proposal, however good.

    Args:
        width: numbers that a token is turned into.
        layers: of attention.
        heads: of each attention; they divide the width.
        numbers: in a datum.

    Source: Whittle et al. (2025), arXiv:2502.02463.

    >>> import feynkac as fk
    >>> net = DistributionTransformer(width=8, layers=1, heads=2)
    >>> @fk.program
    ... async def guide(logits, means, log_scales, y):
    ...     weights = fk.param("net", net.init(seed=0))
    ...     await fk.sample("z", net(weights, logits, means, log_scales, y))
    >>> run = fk.simulate(guide(np.zeros(2), np.array([-1.0, 1.0]), np.zeros(2), np.array([0.4])), seed=0)
    >>> round(run.log_prob, 4) == round(float(np.log(0.5 * sum(np.exp(-0.5 * (run.trace["z"].value + s) ** 2)
    ...     / np.sqrt(2 * np.pi) for s in (-1, 1)))), 4)
    True
    """

    width: int = 32
    layers: int = 2
    heads: int = 4
    numbers: int = 1

    def __post_init__(self) -> None:
        for name in ("width", "layers", "heads", "numbers"):
            positive(name, getattr(self, name))
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} must divide width={self.width}")

    def init(self, seed: int) -> dict[str, Any]:
        """Return weights to begin with: dictionaries of arrays."""
        rng = np.random.default_rng(seed)
        n = self.width

        def dense(ins: int, outs: int, size: float = 1.0) -> dict[str, Any]:
            return {"w": rng.normal(0.0, size / np.sqrt(ins), (ins, outs)), "b": np.zeros(outs)}

        def attention() -> dict[str, Any]:
            return {name: dense(n, n) for name in ("query", "key", "value", "out")}

        layers = {
            str(i): {"self": attention(), "data": attention(), "up": dense(n, 4 * n), "down": dense(4 * n, n)}
            for i in range(self.layers)
        }
        ends = {"token": dense(3, n), "datum": dense(self.numbers, n), "change": dense(n, 3, 0.0)}
        return {**ends, "layers": layers}

    def __call__(self, weights: Weights, logits: Any, means: Any, log_scales: Any, data: Any) -> Any:
        """Return a mixture of NumPyro: the posterior of a number.

        Args:
            weights: the network's.
            logits: (components,) of the prior; so are ``means`` and ``log_scales``.
            means: see above.
            log_scales: logarithms of standard deviations.
            data: (n,) or (n, numbers).
        """
        prior = jnp.stack([jnp.asarray(x, float) for x in (logits, means, log_scales)], -1)
        logit, mean, log_scale = self._posterior(dict(weights), prior, jnp.asarray(data, float))
        return mixture(logit, mean, log_scale)

    @partial(jax.jit, static_argnums=0)
    def _posterior(self, weights: Weights, prior: Any, data: Any) -> Any:
        prior = prior.at[:, 0].add(-jax.nn.logsumexp(prior[:, 0]))
        x = _dense(weights["token"], prior)
        y = _dense(weights["datum"], data.reshape(-1, self.numbers))
        for i in range(self.layers):
            layer = weights["layers"][str(i)]
            x = x + self._attend(layer["self"], _normed(x), _normed(x))
            x = x + self._attend(layer["data"], _normed(x), y)
            x = x + _dense(layer["down"], jax.nn.gelu(_dense(layer["up"], _normed(x))))
        return tuple((prior + _dense(weights["change"], _normed(x))).T)

    def _attend(self, weights: Weights, x: Any, to: Any) -> Any:
        """Return what each of x (n, width) takes from those it attends to (m, width)."""

        def split(name: str, of: Any) -> Any:
            return _dense(weights[name], of).reshape(len(of), self.heads, -1)

        query, key, value = split("query", x), split("key", to), split("value", to)
        scores = jnp.einsum("nhd,mhd->hnm", query, key) / np.sqrt(self.width / self.heads)
        taken = jnp.einsum("hnm,mhd->nhd", jax.nn.softmax(scores), value)
        return _dense(weights["out"], taken.reshape(len(x), self.width))


def mixture(logits: Any, means: Any, log_scales: Any) -> Any:
    """Return a mixture of normal laws as NumPyro has it, from logits, means and log standard deviations."""
    parts = nd.Normal(jnp.asarray(means, float), jnp.exp(jnp.asarray(log_scales, float)))
    return nd.MixtureSameFamily(nd.Categorical(logits=jnp.asarray(logits, float)), parts)


def _dense(weights: Weights, x: Any) -> Any:
    return x @ weights["w"] + weights["b"]


def _normed(x: Any) -> Any:
    centred = x - x.mean(-1, keepdims=True)
    return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
