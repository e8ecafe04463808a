"""The law of the next token as a tensor, and drawing from it.

The law is the softmax of the logits after temperature, top-k, top-p and min-p, in that order (as ``generate``
of transformers warps), then conditioned on a mask. A token is drawn by inverting the law's distribution
function at one uniform number per row, so that a draw depends on its own row and key alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .sampling import Mask, Sampling

_BLOCK = 256
_TOP = 1024
_COLD = 1e-20
"""Below this temperature logits divided by it may be beyond float32."""


def warp(logits: Any, sampling: Sampling, mask: Any = None) -> Any:
    """Return the unnormalised log-law, shape (n, V): −inf where a token is cut off or masked out.

    ``logits`` is a float tensor of shape (n, V), left as it is; ``mask`` a boolean one, (n, V), or None.
    Tokens tied at a threshold are all kept. At temperature 0 the law is its limit: the best token that the
    mask allows.
    """
    if sampling.temperature == 0:
        allowed = logits if mask is None else logits.masked_fill(~mask, -math.inf)
        best = allowed.argmax(-1, keepdim=True)
        zero = torch.zeros_like(best, dtype=logits.dtype).masked_fill_(allowed.gather(1, best) == -math.inf, -math.inf)
        return torch.full_like(logits, -math.inf).scatter_(1, best, zero)
    if sampling.temperature < _COLD:
        best = logits.amax(-1, keepdim=True)
        logits = ((logits - best).double() / sampling.temperature).to(logits.dtype)
    elif sampling.temperature != 1:
        logits = logits / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        logits = _cut(logits, logits.topk(sampling.top_k).values[:, -1:])
    if sampling.top_p is not None and sampling.top_p < 1:
        logits = _cut(logits, _nucleus(logits, sampling.top_p))
    if sampling.min_p:
        logits = _cut(logits, logits.amax(-1, keepdim=True) + math.log(sampling.min_p))
    return logits if mask is None else logits.masked_fill(~mask, -math.inf)


def _cut(logits: Any, threshold: Any) -> Any:
    return logits.masked_fill(logits < threshold, -math.inf)


def _nucleus(logits: Any, top_p: float) -> Any:
    """Return the smallest logit kept by top-p, (n, 1): a token stays while those above it have mass < p."""
    log_z = logits.double().logsumexp(-1, keepdim=True)
    k = min(_TOP, logits.shape[-1])
    while True:  # the nucleus is nearly always small: sort the whole vocabulary only where it is not
        top = logits.topk(k).values
        mass = (top.double() - log_z).exp()
        above = mass.cumsum(-1) - mass
        if k == logits.shape[-1] or bool((above[:, -1] >= top_p).all()):
            break
        k = logits.shape[-1]
    last = (above < top_p).sum(-1, keepdim=True).clamp(min=1) - 1
    return top.gather(1, last)


def draw(law: Any, uniforms: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Draw one token per row from an unnormalised log-law, shape (n, V), at one uniform number per row, (n,).

    Returns the tokens (n,) and their log-probabilities (n,): −1 and −inf for a row with no possible token.
    """
    weights, top = _weights(law)
    if missing := -weights.shape[1] % _BLOCK:  # padding by nothing would copy
        weights = torch.nn.functional.pad(weights, (0, missing))
    blocks = weights.view(len(law), -1, _BLOCK)
    sums = blocks.sum(-1).double()
    by_block = sums.cumsum(-1)
    total = by_block[:, -1:]
    target = torch.from_numpy(uniforms).to(law.device)[:, None] * total
    block = _invert(by_block, target)
    before = (by_block.gather(1, block) - sums.gather(1, block)).clamp(min=0)
    rows = torch.arange(len(law), device=law.device)
    inside = blocks[rows, block[:, 0]].double().cumsum(-1)
    token = block * _BLOCK + _invert(inside, target - before)
    token = token.clamp(max=law.shape[1] - 1)
    log_prob = (law.gather(1, token) - top).double() - total.log()
    possible = (total > 0)[:, 0]
    token = torch.where(possible, token[:, 0], -1)
    log_prob = torch.where(possible, log_prob[:, 0], -math.inf)
    return token.cpu().numpy(), log_prob.cpu().numpy()


def _invert(cumulative: Any, target: Any) -> Any:
    """Return the first index whose cumulative weight exceeds the target, never one of weight zero."""
    index = torch.searchsorted(cumulative, target, right=True)
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous(), right=False)
    return torch.minimum(index, last)


def _weights(law: Any) -> tuple[Any, Any]:
    """Return exp(law − max) and max, with weights 0 for a row in which nothing is possible."""
    top = law.amax(-1, keepdim=True)
    if bool(torch.isnan(top).any()):
        raise ValueError("the language model returned NaN logits; try dtype=torch.float32")
    top = top.masked_fill(top == -math.inf, 0.0)
    return (law - top).exp_(), top


def log_normalise(law: Any) -> Any:
    """Return the log-probabilities (n, V) of an unnormalised log-law; a row of −inf stays so."""
    weights, top = _weights(law)
    return (law - top) - weights.sum(-1, keepdim=True).log().clamp(min=-1e30)


def log_prob_of(law: Any, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the log-probability (n,) of one given token per row of an unnormalised log-law (n, V)."""
    weights, top = _weights(law)
    index = torch.from_numpy(tokens).to(law.device)[:, None]
    chosen = (law.gather(1, index) - top).double()
    total = weights.sum(-1, keepdim=True).double().clamp(min=1e-300)
    result: NDArray[np.float64] = (chosen - total.log())[:, 0].cpu().numpy()
    return result


def log_mass(law: Any, mask: Any) -> NDArray[np.float64]:
    """Return the log of the mass (n,) that a law (n, V) gives to the tokens of a boolean mask (n, V)."""
    weights, _ = _weights(law)
    inside = (weights * mask).sum(-1).double()
    result: NDArray[np.float64] = (inside.log() - weights.sum(-1).double().log()).cpu().numpy()
    return result


def on(mask: Mask, device: Any) -> Any:
    """Return a mask as a tensor (V,) on a device."""
    if mask.tensor is None or mask.tensor.device != device:
        mask.tensor = torch.from_numpy(mask.allowed).to(device)
    return mask.tensor


def stack(masks: Sequence[Mask | None], device: Any) -> Any:
    """Return masks as a tensor (n, V) on a device; None where there are none. All are masks, or none is."""
    given = [on(mask, device) for mask in masks if mask is not None]
    return torch.stack(given) if given else None
