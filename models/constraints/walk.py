"""A constrained step on its way, token by token, and the wave that moves many of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...ppl import keys as _keys
from ...ppl.distributions.batching import groups
from ...ppl.errors import InvalidWeight
from ...ppl.keys import Keys
from ..language.drawing.laws import drawn, log_normalise, log_prob_of, read
from ..language.drawing.runs import Run, is_text, tokens_after
from ..language.host import Tally
from ..language.stepping.steps import Step
from ..language.texts.text import Text
from . import awrs
from .awrs import AWRS
from .constraint import Constraint
from .laws import END, Context, Floats
from .potential import Potential
from .potential import weights as weights_of

Tokens = NDArray[np.int64]
_LAWS = 2**24
"""Most entries of laws, (n, V), that are weighed at once."""


@dataclass(frozen=True)
class Request:
    """A step of a language model, the potential that it is weighed by, and how tokens are drawn.

    Attributes:
        step: tokens, a line, a whole text.
        potential: multiplies the law of the step; where ``alone``, it is the law.
        sampler: rejection; None draws under a mask.
    """

    step: Step
    potential: Potential
    sampler: AWRS | None
    alone: bool


class Walk:
    """One request on its way: the run of its step, the context of its potential, and log γ and log q so far."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.run = Run(request.step)
        self.context: Context = self.run.start.tokens
        self.log_prob = 0.0
        self.log_proposal = 0.0
        # What fills the context already has no room for the end that is asked for.
        self.dead = self.run.finish_reason == "context" and request.step.ending.whole
        if self.dead:
            self.log_prob = self.log_proposal = -math.inf

    @property
    def ending(self) -> bool:
        """Whether the step is out of tokens, and only the end may follow."""
        run = self.run
        return run.request.ending.whole and run.over and run.finish_reason is None and not self.dead

    @property
    def over(self) -> bool:
        """Whether the step is over."""
        return self.dead or (self.run.over and not self.ending)

    def take(self, token: int, log_prob: float, log_proposal: float) -> None:
        """Take one token; −1, or a log-probability of −inf, says that there is none to take."""
        self.log_prob += log_prob
        self.log_proposal += log_proposal
        if token < 0 or log_prob == -math.inf:
            self.dead, self.log_prob, self.log_proposal = True, -math.inf, -math.inf
            return
        self.run.advance(token, log_prob)
        if self.run.finish_reason != "eos":
            self.context = (*self.context, token)
        if self.run.finish_reason == "context" and self.run.request.ending.whole:
            self.dead, self.log_prob = True, -math.inf  # there is no room for the end

    def text(self) -> Text:
        """Return the text reached."""
        return self.run.text()


def retrace(request: Request, value: Any) -> Walk | None:
    """Walk a request along a given text, see `replay`; None unless the step ends exactly where the text does."""
    if not is_text(request.step, value):
        return None
    walk = Walk(request)
    lm, added = request.step.lm, tokens_after(walk.run.start, value)
    if added is None:
        return None
    for token in added:
        if walk.over or not 0 <= token < lm.vocab_size or (walk.ending and token not in lm.eos):
            return None
        walk.take(token, 0.0, 0.0)
    return walk if walk.over else None


def begin(walks: Sequence[Walk]) -> None:
    """Weigh walks by what their potentials multiply in before the first token."""
    for rows in groups(walk.request.potential.fingerprint for walk in walks):
        part = [walks[i] for i in rows]
        potential, contexts = part[0].request.potential, [walk.context for walk in part]
        opening = _valid(potential, contexts, potential.opening_batch(contexts))
        for walk, log_weight in zip(part, opening.tolist()):
            walk.log_prob = log_weight
            if log_weight == -math.inf:
                walk.dead, walk.log_proposal = True, -math.inf


def move(
    walks: Sequence[Walk], owners: NDArray[np.intp], keys: Keys, offset: int, tally: Tally, given: Tokens | None = None
) -> None:
    """Move each walk by one token: one wave of the language model, one batch of each potential, of a few walks or all.

    ``given`` (n,) forces the tokens, and nothing is drawn. The draws of a walk depend on its own key and on ``offset``
    alone.
    """
    most = max(1, _LAWS // walks[0].request.step.lm.vocab_size)
    for first in range(0, len(walks), most):
        some = slice(first, first + most)
        _move(walks[some], owners[some], keys[some], offset, tally, None if given is None else given[some])


def _move(
    walks: Sequence[Walk], owners: NDArray[np.intp], keys: Keys, offset: int, tally: Tally, given: Tokens | None
) -> None:
    law = _own_laws(walks, owners, tally)
    alike = groups((w.request.potential.fingerprint, w.request.sampler, w.request.alone, w.ending) for w in walks)
    for rows in alike:
        part = [walks[i] for i in rows]
        request, contexts = part[0].request, [walk.context for walk in part]
        own = law[torch.from_numpy(rows).to(law.device)] if len(alike) > 1 else law
        if request.sampler is not None and given is None and not part[0].ending:
            rngs = _keys.generators(_keys.fold(keys[rows], _keys.tag("awrs"), offset))
            drawn = _rejected(request, contexts, own, rngs)
        else:
            total = _ends(request, contexts, own) if part[0].ending else _weighed(request, contexts, own)
            uniforms = _keys.uniform(keys[rows], 1, offset=offset)[:, 0]
            drawn = _drawn(total, uniforms, None if given is None else given[rows])
        tally.tokens_out[owners[rows]] += drawn[0] >= 0
        for walk, token, log_prob, log_proposal in zip(part, *(column.tolist() for column in drawn)):
            walk.take(token, log_prob, log_proposal)


def total(walks: Sequence[Walk], owners: NDArray[np.intp], tally: Tally) -> Any:
    """Return log γ of every next token of walks of one request, (n, V)."""
    contexts = [walk.context for walk in walks]
    return _weighed(walks[0].request, contexts, _own_laws(walks, owners, tally))


def _own_laws(walks: Sequence[Walk], owners: NDArray[np.intp], tally: Tally) -> Any:
    """Return the log-law of the next token under each walk's own step, (n, V); zeros where it does not count."""
    lm = walks[0].request.step.lm
    rows = [i for i, walk in enumerate(walks) if not walk.request.alone]
    if not rows:
        return torch.zeros((1, 1)).expand(len(walks), lm.vocab_size)
    law: Any = None
    own = np.array(rows, np.intp)

    def weigh(found: NDArray[np.intp], logits: Any) -> None:
        nonlocal law
        for part in groups(walks[i].request.step.sampling for i in own[found]):
            sampling = walks[own[found[part[0]]]].request.step.sampling
            if law is None:
                law = logits.new_zeros((len(walks), lm.vocab_size))
            law[own[found[part]]] = log_normalise(logits[part], sampling)

    lm.laws([walks[i].run.node for i in rows], owners[rows], tally, weigh)
    return law


def _weighed(request: Request, contexts: Sequence[Context], own: Any) -> Any:
    """Return log γ of every next token, (n, V): the step's own law times the potential."""
    potential = request.potential
    if isinstance(potential, Constraint):
        mask = _by_id(request, potential.allowed_batch(contexts), False)
        return own.masked_fill(~torch.from_numpy(mask).to(own.device), -math.inf)
    weights = _valid(potential, contexts, potential.logw_next_batch(contexts))
    return own.double() + torch.from_numpy(_by_id(request, weights, -math.inf)).to(own.device)


def _ends(request: Request, contexts: Sequence[Context], own: Any) -> Any:
    """Return log γ of the end alone, (n, V)."""
    ends = _end_ids(request)
    total = torch.full(own.shape, -math.inf, dtype=torch.float64, device=own.device)
    if ends:
        potential = request.potential
        weights = _valid(potential, contexts, potential.logw_token_batch(contexts, [END] * len(contexts)))
        total[:, ends] = own[:, ends].double() + torch.from_numpy(weights).to(own.device)[:, None]
    return total


def _by_id(request: Request, rows: NDArray[Any], nothing: Any) -> NDArray[Any]:
    """Return rows of tokens and the end, (n, V+1), as rows over the ids of the model, (n, its V)."""
    size = request.potential.vocabulary.size
    by_id = np.full((len(rows), request.step.lm.vocab_size), nothing, rows.dtype)
    by_id[:, :size] = rows[:, :size]
    by_id[:, sorted(request.step.lm.eos)] = nothing
    by_id[:, _end_ids(request)] = rows[:, size:]
    return by_id


def _end_ids(request: Request) -> list[int]:
    """Return the ids that the end is drawn as: all end tokens, or one where the model's own law does not count."""
    ends = sorted(request.step.lm.eos)
    return ends[:1] if request.alone else ends


def _drawn(total: Any, uniforms: Floats, given: Tokens | None) -> tuple[Tokens, Floats, Floats]:
    """Draw from the normalised law, or take what is given: tokens, log γ and log q, each (n,)."""
    if given is None:
        found = drawn(total, torch.from_numpy(uniforms).to(total.device))
        chosen, log_q = found[:, 0].long(), found[:, 1]
    else:
        chosen = torch.from_numpy(given).to(total.device)
        log_q = log_prob_of(total, chosen)
    log_gamma = total.gather(1, chosen.clamp(min=0)[:, None])[:, 0].double()
    tokens, gamma, q = read(torch.stack((chosen.double(), log_gamma, log_q), -1)).T
    return tokens.astype(np.int64), np.where(tokens < 0, -math.inf, gamma), q


def _rejected(
    request: Request, contexts: Sequence[Context], own: Any, rngs: Sequence[np.random.Generator]
) -> tuple[Tokens, Floats, Floats]:
    """Draw by rejection: tokens, log γ and the log of a random q with E[γ/q·1{x}] = γ(x), each (n,)."""
    potential, ends = request.potential, request.step.lm.eos
    size = potential.vocabulary.size
    p = read(own.double().exp())
    known: dict[tuple[int, int], float] = {}

    def accepts(rows: Sequence[int], tokens: Sequence[int]) -> list[bool]:
        asked = [(row, token) for row, token in zip(rows, tokens) if token < size or token in ends]
        where = [contexts[row] for row, _ in asked]
        weights = potential.logw_token_batch(where, [END if token in ends else token for _, token in asked])
        known.update(zip(asked, _valid(potential, where, weights).tolist()))
        return [known.get((row, token), -math.inf) > -math.inf for row, token in zip(rows, tokens)]

    assert request.sampler is not None
    tokens, log_w = awrs.sample(p, accepts, rngs, request.sampler)
    rows = np.arange(len(tokens))
    with np.errstate(divide="ignore"):
        log_p = np.log(p[rows, tokens.clip(min=0)])
    weights = np.array([known[row, token] if token >= 0 else -math.inf for row, token in enumerate(tokens.tolist())])
    dead = tokens < 0
    log_q = log_p - np.where(dead, 0.0, log_w)
    return tokens, np.where(dead, -math.inf, log_p + weights), np.where(dead, -math.inf, log_q)


def _valid(potential: Potential, contexts: Sequence[Context], weights: Floats) -> Floats:
    """Raise `InvalidWeight` unless all are log-weights: the largest of a row is NaN or +inf where any entry is."""
    weights = weights_of(potential, weights)
    if weights.size and not weights.max() < math.inf:
        rows = weights.reshape(len(contexts), -1).max(axis=1)
        row = int(np.flatnonzero(~(rows < math.inf))[0])
        raise InvalidWeight(f"{potential!r}: after the tokens {contexts[row]} a log-weight is {rows[row]}")
    return weights
