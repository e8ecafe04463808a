"""The law of the next token as a tensor, and drawing from it.

The law is the softmax of the logits after temperature, top-k, top-p and min-p, in that order (as ``generate``
of transformers warps), then conditioned on a mask. A token is drawn by inverting the law's distribution
function at one uniform number per row, so that a draw depends on its own row and key alone.

All goes by blocks of rows, so that what is needed on the way stays small, and on a CPU within its caches. Nothing here
waits for a GPU but `read`: NaN, where a model returned it, is carried along and found there.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .sampling import Mask, Sampling

Floats = NDArray[np.float64]
AS_IT_IS = Sampling()
"""The law that the logits are."""

_BLOCK = 256
_COLD = 1e-20
"""Below this temperature logits divided by it may be beyond float32."""
_FEW = 32
"""Where top-k keeps fewer than one of so many tokens, finding them is cheaper than counting."""
_WHOLE = 2.0**61
"""What a row's masses sum to as whole numbers, whose sums do not depend on their order."""
_LARGE = 2**14
"""From this size of a vocabulary on its logits are counted by digits of two bytes, below by digits of one."""
_AT_ONCE = {"cpu": 2**20}
"""Most logits in work at once, by the type of device: on a CPU as many as keep the memory that they had."""
_COUNTED_AT_ONCE = {"cpu": 2**18}
"""The same where they are counted: on a CPU as many as a core's cache holds."""
_AT_ONCE_ELSEWHERE = 2**24


def parts(n: int, logits: Any, limits: dict[str, int] = _AT_ONCE) -> Iterator[slice]:
    """Cut n rows as long as those of some logits into blocks that are worked on at once."""
    step = max(1, limits.get(logits.device.type, _AT_ONCE_ELSEWHERE) // logits.shape[-1])
    for first in range(0, n, step):
        yield slice(first, first + step)


def warp(logits: Any, sampling: Sampling, mask: Any = None) -> Any:
    """Return the unnormalised log-law, shape (n, V): −inf where a token is cut off or masked out.

    ``logits`` is a float tensor of shape (n, V), left as it is; ``mask`` a boolean one, (n, V), or None.
    Tokens tied at a threshold are all kept. At temperature 0 the law is its limit: the best token that the
    mask allows.
    """
    if sampling.temperature == 0:
        best, at = _allowed(logits, mask).max(-1, keepdim=True)
        return torch.full_like(logits, -math.inf).scatter_(1, at, _certain(best))
    if sampling.temperature < _COLD:
        best = logits.amax(-1, keepdim=True)
        logits = ((logits - best).double() / sampling.temperature).to(logits.dtype)
    elif sampling.temperature != 1:
        logits = logits / sampling.temperature
    floor = _floor(logits, sampling)
    if floor is not None:
        logits = _from(logits, floor)
    return _allowed(logits, mask)


def _certain(best: Any) -> Any:
    """Return the log-probability of the best tokens at temperature 0: 0, −inf where there is none, or NaN."""
    return (best * 0).masked_fill_(best == -math.inf, -math.inf)


def _allowed(logits: Any, mask: Any) -> Any:
    return logits if mask is None else _only(logits, mask.view(torch.uint8).to(logits.dtype))


def _from(logits: Any, floor: Any) -> Any:
    return _only(logits, torch.ge(logits, floor, out=torch.empty_like(logits)))


def _only(logits: Any, kept: Any) -> Any:
    """Return logits with −inf where ``kept``, as floats, is 0 and not 1: on a CPU ten times as fast as by a mask."""
    return torch.addcdiv(logits, kept - 1, kept)


def _floor(logits: Any, sampling: Sampling) -> Any:
    """Return the smallest logit kept by top-k, top-p and min-p, (n, 1); None where all are."""
    size = logits.shape[-1]
    k = sampling.top_k if sampling.top_k is not None and sampling.top_k < size else None
    top_p = sampling.top_p if sampling.top_p is not None and sampling.top_p < 1 else None
    floor: Any = None
    if k is not None and k * _FEW <= size:
        best = logits.topk(k).values
        floor = best[:, -1:] if top_p is None else _nucleus_of(best, logits, top_p)
    elif k is not None or top_p is not None:
        floor = torch.cat([_counted(logits[rows], k, top_p) for rows in parts(len(logits), logits, _COUNTED_AT_ONCE)])
    if sampling.min_p:
        least = logits.amax(-1, keepdim=True) + math.log(sampling.min_p)
        floor = least if floor is None else torch.maximum(least, floor)
    return floor


def _counted(logits: Any, k: int | None, top_p: float | None) -> Any:
    """Return the smallest logit kept by top-k, if that is, and then by top-p, if that is, (n, 1)."""
    floor: Any = None
    if k is not None:
        one = torch.ones((1, 1), dtype=torch.int64, device=logits.device)
        floor = _least(logits, one.expand(logits.shape), k * one.expand(len(logits), 1))
    return floor if top_p is None else _nucleus(logits if floor is None else _from(logits, floor), top_p)


def _nucleus_of(best: Any, logits: Any, top_p: float) -> Any:
    """Return the smallest logit kept by top-p of those that the best ones (n, k), sorted, and their ties are."""
    tied = torch.ge(logits, best[:, -1:], out=torch.empty_like(logits)).sum(-1, keepdim=True) - best.shape[1]
    mass = best.to(torch.float64, copy=True).sub_(best[:, :1]).exp_()
    above = mass.cumsum(-1) - mass
    total = mass.sum(-1, keepdim=True) + tied * mass[:, -1:]
    last = (above < top_p * total).sum(-1, keepdim=True).clamp_(min=1) - 1
    return best.gather(1, last)


def _nucleus(logits: Any, top_p: float) -> Any:
    """Return the smallest logit kept by top-p, (n, 1): a token stays while those above it have mass < p."""
    top = logits.amax(-1, keepdim=True)
    mass = logits.to(torch.float64, copy=True).sub_(top).clamp_(min=math.log(_least_normal(torch.float64))).exp_()
    total = mass.sum(-1, keepdim=True)
    mass = mass.mul_(_WHOLE / total).long()
    least = _least(logits, mass, (top_p * mass.sum(-1, keepdim=True).double()).ceil_().long())
    return least.masked_fill_(total.isnan(), -math.inf)  # a row of NaN stays one, and so does a row of −inf


def _least(logits: Any, weights: Any, enough: Any) -> Any:
    """Return the largest logit at and above which the weights sum to ``enough``, (n, 1).

    ``weights`` are whole numbers (n, V), ``enough`` (n, 1). The bytes of a float, one or two at a time, are its digits:
    the weights are summed by the first digit, which finds that of the result, then by the second among the logits that
    begin with the first, and so on.
    """
    digit_type = torch.uint16 if logits.shape[-1] >= _LARGE else torch.uint8
    base = 256**digit_type.itemsize
    digits = logits.contiguous().view(digit_type).unflatten(-1, (logits.shape[-1], -1))
    places = range(digits.shape[-1])
    first, *rest = reversed(places) if sys.byteorder == "little" else places
    digit = digits[..., first].long()
    sums = _sums(weights, digit, base)
    # From high to low: the positive, whose digits fall, then the negative, whose digits rise.
    at, enough = _reach(torch.cat([sums[:, : base // 2].flip(-1), sums[:, base // 2 :]], -1), enough)
    negative = at >= base // 2
    found = torch.where(negative, at, base // 2 - 1 - at)
    bits = torch.where(negative, found - base, found)
    for place in rest:
        inside = digit == found
        if _at_hand(logits.device):  # a shape may depend on the data, as nobody waits for it
            columns = inside.any(0).nonzero()[:, 0]
            inside, weights, digits = inside[:, columns], weights[:, columns], digits[:, columns]
        weights = torch.where(inside, weights, 0)
        digit = digits[..., place].long()
        sums = _sums(weights, digit, base)
        at, enough = _reach(torch.where(negative, sums, sums.flip(-1)), enough)
        found = torch.where(negative, at, base - 1 - at)
        bits = bits * base + found
    return bits.to(torch.int32 if logits.dtype == torch.float32 else torch.int64).view(logits.dtype)


def _at_hand(device: Any) -> bool:
    """Return whether numbers on a device can be read without waiting for it."""
    return bool(device.type == "cpu")


def _sums(weights: Any, digit: Any, base: int) -> Any:
    """Return the sum of the weights at each digit, (n, base)."""
    return torch.zeros((len(digit), base), dtype=weights.dtype, device=weights.device).scatter_add_(1, digit, weights)


def _reach(sums: Any, enough: Any) -> tuple[Any, Any]:
    """Return where the running sum first is enough, (n, 1), and what is still wanted there."""
    running = sums.cumsum(-1)
    at = torch.searchsorted(running, enough).clamp_(max=sums.shape[1] - 1)  # NaN may ask for more than there is
    return at, enough - (running.gather(1, at) - sums.gather(1, at))


def laws(
    logits: Any, sampling: Sampling = AS_IT_IS, masks: Sequence[Mask] | None = None, rows: Any = None
) -> Iterator[tuple[slice, Any]]:
    """Yield log-laws (k, V), not normalised, by blocks: the slice of the result that a block is, and the block.

    The i-th is that of row ``rows[i]`` of the logits, or of row i, within ``masks[i]``, where these are given.
    """
    for part in parts(len(logits if rows is None else rows), logits):
        mask = None if masks is None else stack(masks[part], logits.device)
        yield part, warp(logits[part if rows is None else rows[part]], sampling, mask)


def drawn(
    logits: Any, uniforms: Any, sampling: Sampling = AS_IT_IS, masks: Sequence[Mask] | None = None, rows: Any = None
) -> Any:
    """Draw one token from each of some `laws`, at one uniform number each: a float64 tensor (n,).

    Returns a float64 tensor (n, 2) on their device, to be `read`: the tokens, which float64 holds exactly, and their
    log-probabilities. They are −1 and −inf where no token is possible; the log-probability is NaN where a logit is.
    """
    result = torch.empty((len(uniforms), 2), dtype=torch.float64, device=logits.device)
    if sampling.temperature == 0:
        for part, law in laws(logits, sampling, masks, rows):
            log_prob, token = law.max(-1)
            result[part, 0], result[part, 1] = token.masked_fill_(log_prob == -math.inf, -1), log_prob
        return result
    for part, law in laws(logits, sampling, masks, rows):
        result[part, 0], result[part, 1] = _invert_law(law, uniforms[part, None])
    return result


def read(tensor: Any) -> Floats:
    """Return results as an array: what is computed on a GPU is waited for here.

    Raises ValueError where a row's last number is NaN, as it is where the logits are.
    """
    array: Floats = tensor.cpu().numpy()
    if np.isnan(array if array.ndim == 1 else array[..., -1]).any():
        raise ValueError("the language model returned NaN logits; try dtype=torch.float32")
    return array


def tokens_of(drawn: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Return the tokens and log-probabilities of draws that were read, each (n,)."""
    return drawn[:, 0].astype(np.int64), drawn[:, 1]


def _invert_law(law: Any, uniforms: Any) -> tuple[Any, Any]:
    """Return the token (n,) at which a log-law's distribution function reaches a number (n, 1), and its log-prob."""
    size = law.shape[1]
    weights, top = _weights(law, _BLOCK)
    blocks = weights.view(len(law), -1, _BLOCK)
    least = 2 * _least_normal(law.dtype)
    sums = torch.threshold_(blocks.sum(-1), _BLOCK * least, 0.0).double()
    by_block = sums.cumsum(-1)
    total = by_block[:, -1:]
    target = uniforms * total
    block = invert(by_block, target)
    before = (by_block.gather(1, block) - sums.gather(1, block)).clamp_(min=0)
    chosen = blocks.gather(1, block[..., None].expand(-1, -1, _BLOCK))[:, 0]
    inside = torch.threshold_(chosen, least, 0.0).double().cumsum(-1)
    token = (block * _BLOCK + invert(inside, target - before)).clamp_(max=size - 1)
    log_prob = (law.gather(1, token) - top).double() - total.log()
    nothing = total == 0
    return token.masked_fill_(nothing, -1)[:, 0], log_prob.masked_fill_(nothing, -math.inf)[:, 0]


def invert(cumulative: Any, target: Any) -> Any:
    """Return the first index whose cumulative weight exceeds the target, never one of weight zero."""
    index = torch.searchsorted(cumulative, target, right=True)
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous(), right=False)
    return torch.minimum(index, last).clamp_(max=cumulative.shape[1] - 1)  # NaN exceeds nothing


def _weights(law: Any, block: int = 1) -> tuple[Any, Any]:
    """Return exp(law − max), (n, whole blocks), with next to nothing at the end, and max: 0 where all is −inf."""
    width = -(-law.shape[1] // block) * block
    top = law.amax(-1, keepdim=True)
    top = top.masked_fill(top == -math.inf, 0.0)
    weights = torch.empty((len(law), width), dtype=law.dtype, device=law.device)
    torch.sub(law, top, out=weights[:, : law.shape[1]])
    weights[:, law.shape[1] :] = -math.inf
    return weights.clamp_(min=math.log(_least_normal(law.dtype))).exp_(), top


def _least_normal(dtype: Any) -> float:
    """Return about the least number that `exp` gives at full speed on a CPU: what is rarer has probability zero."""
    return 2 * float(torch.finfo(dtype).tiny)


def log_normalise(logits: Any, sampling: Sampling = AS_IT_IS) -> Any:
    """Return the log-probabilities (n, V) of the `laws` of some logits; NaN all over a row where a logit is."""
    result = torch.empty_like(logits)
    for part, law in laws(logits, sampling):
        weights, top = _weights(law)
        torch.sub(law, top, out=result[part]).sub_(weights.sum(-1, keepdim=True).log_())
    return result


def log_prob_of(
    logits: Any, tokens: Any, sampling: Sampling = AS_IT_IS, masks: Sequence[Mask] | None = None, rows: Any = None
) -> Any:
    """Return the log-probability of one given token under each of some `laws`, a float64 tensor (n,), to be `read`."""
    result = torch.empty(len(tokens), dtype=torch.float64, device=logits.device)
    for part, law in laws(logits, sampling, masks, rows):
        weights, top = _weights(law)
        chosen = law.gather(1, tokens[part, None]) - top
        result[part] = (chosen.double() - weights.sum(-1, keepdim=True).double().log_())[:, 0]
    return result


def log_mass(logits: Any, masks: Sequence[Mask], sampling: Sampling = AS_IT_IS) -> Any:
    """Return the log of the mass that `laws` give to the tokens of a mask each, a float64 tensor (n,), to be `read`."""
    result = torch.empty(len(logits), dtype=torch.float64, device=logits.device)
    for part, law in laws(logits, sampling):
        weights, _ = _weights(law)
        weights = torch.threshold_(weights, 2 * _least_normal(law.dtype), 0.0)
        inside = (weights * stack(masks[part], law.device).view(torch.uint8)).sum(-1).double()
        result[part] = inside.log_() - weights.sum(-1).double().log_()
    return result


def summary(logits: Any, sampling: Sampling, what: str) -> Floats:
    """Return what the `laws` of some logits are summed up by, (n,): see `LanguageModel.read`; (n, V) for "law"."""
    if what == "law":
        return read(log_normalise(logits, sampling).double())
    result = torch.empty(len(logits), dtype=torch.float64, device=logits.device)
    for part, law in laws(logits, sampling):
        result[part] = _SUMMARIES[what](law.double().softmax(-1))
    return read(result)


def _margin(law: Any) -> Any:
    two = law.topk(min(2, law.shape[-1])).values
    return two[:, 0] - two[:, 1:].sum(-1)


_SUMMARIES: Mapping[str, Callable[[Any], Any]] = {
    "entropy": lambda law: torch.special.entr(law).sum(-1),
    "top": lambda law: law.amax(-1),
    "margin": _margin,
}


def on(mask: Mask, device: Any) -> Any:
    """Return a mask as a tensor (V,) on a device, where it is kept."""
    if mask.tensor is None or mask.tensor.device != device:
        mask.tensor = torch.from_numpy(mask.allowed).to(device)
    return mask.tensor


def stack(masks: Sequence[Mask], device: Any) -> Any:
    """Return masks as a tensor (n, V) on a device, without a copy where all are one."""
    lead = masks[0]
    if all(mask is lead for mask in masks):
        return on(lead, device).expand(len(masks), -1)
    return torch.stack([on(mask, device) for mask in masks])
