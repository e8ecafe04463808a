"""What an engine really does, found out by asking: servers take fields that they do not know, and say nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias, TypeVar

import numpy as np

from ...ppl.errors import TokenizerMismatch, Unsupported, UnusableAnswer
from ..language.drawing.sampling import Sampling
from ..language.texts.encoding import Codec
from .transport import Draw, Drawn, Transport

Ability: TypeAlias = Literal["seed", "log_prob", "log_prob_warped", "score", "few", "mask"]
"""What an engine may do: draw the same from the same seed; tell log-probabilities of draws under the model's own law,
and under any other; score given tokens; tell log-probabilities of tokens of one's choice; draw under a mask."""

T = TypeVar("T")
REMEDIES: dict[Ability, str] = {
    "seed": "equal seeds gave unequal draws, so that runs cannot be repeated and a late answer is an error: start "
    "vLLM with VLLM_BATCH_INVARIANT=1",
    "log_prob": "it tells no log-probabilities of what it draws: use a server with logprobs on /v1/completions, "
    "such as vLLM",
    "log_prob_warped": "its log-probabilities are not those of the law after temperature and cuts: start vLLM with "
    "--logprobs-mode processed_logprobs, or use temperature=1 with nothing cut off",
    "score": "its scores of given tokens (echo with max_tokens=0) are missing, or not those that its draws have: use a "
    "server that has them, such as vLLM, and see tolerance= where its model is in 16 bits",
    "few": "it does not take logprob_token_ids: use a newer vLLM, or a model that runs here, such as TransformersLM",
    "mask": "it does not take allowed_token_ids, or tells log-probabilities that are not those under the mask: start "
    "vLLM with --logprobs-mode processed_logprobs, or use a model that runs here, such as TransformersLM",
}
_PROBES = ("Once upon a time", "x = f(y)\n", "Übermäßig 12345 🎉")
_LONG = 8
"""Tokens of a trial draw."""
_SEEDS = (11, 11, 12, 13, 14)
_CUT = Sampling(temperature=0.25, top_k=3)
_SURE = -math.log(1e6)
"""Draws that are less probable than this are not met again under another seed by chance."""


class Abilities(NamedTuple):
    """What an engine can do, and what to do about what it cannot."""

    can: frozenset[Ability]
    lacks: dict[Ability, str]


def meet(transport: Transport, codec: Codec, tolerance: float) -> Abilities:
    """Find out what an engine does, by some requests of a few tokens.

    Args:
        transport: to the engine.
        codec: the tokenizer that its tokens are read by.
        tolerance: how far apart two log-probabilities of one token may be that were computed in two ways.

    Raises TokenizerMismatch where the engine's own tokenizer is another, and UnusableAnswer where all seeds give the
    same draws.
    """
    _check_tokens(transport, codec)
    bos = codec.tokenizer.bos_token_id
    history = (*(() if bos is None else (bos,)), *codec.tokens(_PROBES[0]))
    room = _LONG
    if transport.context is not None:
        history = history[: max(1, transport.context // 2)]
        room = min(_LONG, transport.context - len(history) - 1)  # an echo is of less than a full context
    drawn = transport.draw([Draw(history, seed, room) for seed in _SEEDS])
    _check_seeds(transport, drawn)
    can: set[Ability] = set()
    if list(drawn[0].tokens) == list(drawn[1].tokens):
        can.add("seed")
    log_probs = drawn[0].log_probs
    if log_probs is not None:
        can.add("log_prob")
        can |= _laws(transport, history, tolerance)
        scores = _asked(lambda: transport.score([(*history, *drawn[0].tokens)])[0].log_probs)
        if scores is not None and np.allclose(scores[-len(log_probs) :], log_probs, rtol=0, atol=tolerance):
            can.add("score")
    return Abilities(frozenset(can), {what: why for what, why in REMEDIES.items() if what not in can})


def _laws(transport: Transport, history: tuple[int, ...], tolerance: float) -> set[Ability]:
    """Return what an engine tells of laws other than the model's own."""
    can: set[Ability] = set()
    shown = transport.draw([Draw(history, 1, 1, top=5)])[0].shown
    own = {token: log_prob for token, log_prob in shown.items() if log_prob > -math.inf}
    if len(own) < 3:
        return can
    ranked = sorted(own, key=lambda token: -own[token])
    best, rest = ranked[:3], (ranked[0], ranked[-1])
    if _as_cut(own, best, _asked(lambda: transport.draw([Draw(history, 2, 1, _CUT, top=3)])[0]), tolerance):
        can.add("log_prob_warped")
    few = _asked(lambda: transport.draw([Draw(history, 3, 1, shown=rest)])[0].shown)
    if few is not None and all(abs(few[token] - own[token]) < tolerance for token in rest):
        can.add("few")
    # Two tokens that are not the best, so that a server which takes no mask does not meet it by chance.
    pair = tuple(ranked[-2:])
    masked = _asked(lambda: transport.draw([Draw(history, seed, 1, allowed=pair) for seed in (4, 5, 6, 7)]))
    if masked is not None and "log_prob_warped" in can and all(_as_masked(own, pair, one, tolerance) for one in masked):
        can.add("mask")
    return can


def _as_cut(own: Mapping[int, float], best: Sequence[int], drawn: Drawn | None, tolerance: float) -> bool:
    """Whether the best tokens have the log-probabilities that they have when colder, with all others cut off."""
    if drawn is None or any(token not in drawn.shown for token in best):
        return False
    log_probs = np.array([drawn.shown[token] for token in best])
    if abs(np.logaddexp.reduce(log_probs)) > 0.01:  # others have a part
        return False
    warm = np.array([own[token] for token in best])
    cold = warm / _CUT.temperature
    off, if_warm = (np.abs(log_probs - (w - np.logaddexp.reduce(w))).max() for w in (cold, warm))
    return bool(off < tolerance / _CUT.temperature and off < if_warm)


def _as_masked(own: Mapping[int, float], pair: Sequence[int], drawn: Drawn, tolerance: float) -> bool:
    """Whether one of two allowed tokens was drawn, with its log-probability among them."""
    [token] = drawn.tokens
    if token not in pair or drawn.log_probs is None:
        return False
    log_prob = own[token] - float(np.logaddexp.reduce([own[one] for one in pair]))
    return abs(drawn.log_probs[0] - log_prob) < 2 * tolerance


def _asked(ask: Callable[[], T]) -> T | None:
    """Return an answer; None where the engine refuses the request, or leaves out what it was asked for."""
    try:
        return ask()
    except (Unsupported, UnusableAnswer):
        return None


def _check_tokens(transport: Transport, codec: Codec) -> None:
    for string in _PROBES:
        theirs, ours = transport.tokenize(string), codec.tokens(string)
        if theirs is not None and tuple(theirs) != ours:
            raise TokenizerMismatch(
                f"{transport.where} reads {string!r} as {list(theirs)}, and the tokenizer as {list(ours)}: give "
                "tokenizer= the one of the model"
            )


def _check_seeds(transport: Transport, drawn: Sequence[Drawn]) -> None:
    """Raise UnusableAnswer where draws that are not all but certain are the same under all seeds."""
    first, *others = (tuple(one.tokens) for one in drawn)
    log_probs = drawn[0].log_probs
    if any(other != first for other in others) or log_probs is None:
        return
    if (len(set(_SEEDS)) - 1) * sum(log_probs) < _SURE:
        raise UnusableAnswer(
            f"{transport.where} draws the same under all seeds, as if temperature and seed were ignored: its draws "
            "would be copies of each other; use another server"
        )
