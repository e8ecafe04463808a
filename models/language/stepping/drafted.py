"""Steps that a small model drafts and the large one weighs: what was drafted is never drawn anew, its weight is p/q.

The step goes by blocks. The large model draws the first token of a block, whose law it knows since its last pass; the
draft goes on for ``gamma`` tokens; and one pass of the large model scores them all, and finds the law of the token that
follows them. So it makes a pass for each block, where plain steps make one for each token. Speculative decoding
(Leviathan et al. 2023, arXiv:2211.17192) has the same passes, and throws away what follows the first token that it
rejects; here nothing is rejected, and engines resample what the weights say.

Source: Emara et al. (2026), Faster LLM inference via sequential Monte Carlo, arXiv:2604.15672. There the large model
draws the last token of a block, after the draft; as the first one of the next it is drawn after resampling, and copies
of a text part at once.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ....ppl.cost import charge, rows
from ....ppl.errors import Unsupported, UnsupportedProposal
from ....ppl.keys import Keys, fold
from ....ppl.model import Draws
from ....ppl.sites import short
from ....ppl.values.canonical import form
from ....ppl.values.reals import whole_number
from ....ppl.values.recording import current, served
from ..drawing.runs import Run, played, replay
from ..drawing.sampling import Sampling
from ..host import Floats, Tally
from ..texts.text import Text
from .steps import Step


@dataclass(frozen=True)
class Drafted(Step):
    """A step whose law p is the model's, and whose texts are drawn with a draft: a kernel with a q of its own.

    Made by the methods of `LanguageModel`, from ``draft`` and ``gamma``. The weight p/q comes with every draw, so that
    engines which weigh have the law of the plain step; where all weights are kept, nothing is approximate.

    Attributes:
        draft: the same step of the small model.
        gamma: tokens that it goes on for before the large model scores them; None: to the end of the step.

    Raises ValueError for temperature 0, which leaves nothing to weigh, and for a gamma below 1; TokenizerMismatch, and
    `UnsupportedProposal` for a draft that cannot reach all that the step can (by its settings: a draft whose own law
    gives zero to what the model can say is not known as such); Unsupported where the model does not score given tokens
    under the step's law, or either does not tell the log-probabilities of its draws.
    """

    draft: Step = field(kw_only=True)
    gamma: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gamma is not None:
            whole_number("gamma", self.gamma)
        if self.sampling.temperature == 0:
            raise ValueError(
                f"{self!r} has temperature 0, so that what a draft writes is either its one value or worth nothing: "
                "leave the draft out"
            )
        if not self.draft.covers(self.plain):
            self.draft.lm.attach(self.text)  # which names a tokenizer that is another
            raise UnsupportedProposal(
                f"{self.draft!r} cannot reach all that {self.plain!r} can, so that the weights would be wrong: the "
                "draft is the same step from the same text, cuts nothing off, and has the model's end tokens and "
                "context"
            )
        self.lm.weighs((self.sampling, None))
        for step in (self.plain, self.draft):
            if not step.lm.scores((step.sampling, None)):
                raise Unsupported(
                    f"a drafted step needs the log-probabilities of what is drawn, which {step.lm!r} does not tell "
                    f"under {step.sampling}: use the model's own law, or a model that runs here"
                )

    @property
    def plain(self) -> Step:
        """The step without its draft."""
        return Step(self.lm, self.text, self.ending, self.sampling)

    @property
    def batch_key(self) -> Hashable:
        """All drafted steps of one pair of models share a call."""
        return (Drafted, id(self.lm), id(self.draft.lm))

    @property
    def fingerprint(self) -> Hashable:
        """The step's, the draft's, and how far that goes."""
        return (super().fingerprint, self.draft.fingerprint, self.gamma)

    @property
    def journal_key(self) -> Any:
        """All that p and q depend on."""
        return (super().journal_key, self.draft.journal_key, self.gamma)

    def __repr__(self) -> str:
        return f"<step of {self.lm.identity}, drafted by {self.draft.lm.identity}, from {self.text!r}>"

    def sample_batch(self, requests: Sequence[Step], keys: Keys) -> Draws:
        """Draw the next text for each request, from its own key: texts, log p (n,) and log q (n,)."""
        pairs = [_Pair(request) for request in requests if isinstance(request, Drafted)]
        if current() is None:
            _write(pairs, keys)
        else:
            _recorded(pairs, keys)
        texts = [pair.text() for pair in pairs]
        return Draws(texts, np.array([pair.log_p for pair in pairs]), np.array([pair.log_q for pair in pairs]))

    def log_proposal_batch(self, requests: Sequence[Drafted], values: Sequence[Text]) -> Floats:
        """Return log q of each text under its request, (n,); −inf for what the step cannot give."""
        result = np.full(len(requests), -math.inf)
        places = [i for i, pair in enumerate(zip(requests, values)) if replay(*pair) is not None]
        pairs = [_Pair(requests[i]) for i in places]
        given = [values[i].tokens[len(pair.own.start.tokens) :] for i, pair in zip(places, pairs)]
        with rows(places):
            _write(pairs, None, given)
        result[places] = [pair.log_q for pair in pairs]
        return result

    def observing(self, value: Any) -> tuple[Step, Any]:
        """Return the step and the text that it means to observe a string, see `Step.observing`: nothing is drafted."""
        return self.plain.observing(value)


def drafted(step: Step, draft: Any = None, gamma: int | None = None) -> Step:
    """Return a step that a draft writes: a small model, at the step's temperature, or a step of it; None: the step.

    Raises TypeError for what is neither, ValueError for a gamma alone, and what `Drafted` does.
    """
    if draft is None:
        if gamma is not None:
            raise ValueError("gamma says how far a draft goes before it is scored: give draft=, too")
        return step
    if not isinstance(draft, Step):
        if not hasattr(draft, "admits"):
            raise TypeError(f"a draft is a language model, or a step of one, not {short(draft, 80)}")
        draft = Step(draft, step.text, step.ending, Sampling(step.sampling.temperature))
    return Drafted(step.lm, step.text, step.ending, step.sampling, draft=draft, gamma=gamma)


class _Halting(Run):
    """A run that halts after some tokens and goes on later: to the model its step seems to end there.

    Attributes:
        ended: whether the step is over, and not just halted.
    """

    def __init__(self, step: Step) -> None:
        super().__init__(step)
        self.step, self.ended = step, self.over

    def go_on(self, by: int | None) -> None:
        """Let it take so many tokens more, at most to the end of its step; None: to that."""
        ending = self.step.ending
        most = ending.max_tokens if by is None else min(ending.max_tokens, self.count + by)
        self.request = replace(self.step, ending=replace(ending, max_tokens=most))
        self.over = self.ended

    def advance(self, token: int, log_prob: float) -> None:
        """Take one token."""
        super().advance(token, log_prob)
        full = self.count == self.step.ending.max_tokens
        self.ended = self.over and (full or self.stopped or self.finish_reason is not None)

    def follow(self, path: Sequence[int]) -> int:
        """Take tokens of a path until it halts, and return how many."""
        before = self.count
        while not self.over and self.count < len(path):
            self.advance(path[self.count], 0.0)
        return self.count - before

    @property
    def path(self) -> Sequence[int]:
        """The tokens taken so far."""
        return self.node.tokens(self.node.length - self.count)


class _Pair:
    """A drafted step on its way, as both models read it.

    Attributes:
        request: the step.
        own: the run of the large model.
        draft: that of the small one.
        log_p: log-probability of the tokens so far under the large model.
        log_q: that of their draws.
    """

    def __init__(self, request: Drafted) -> None:
        self.request = request
        self.own, self.draft = _Halting(request.plain), _Halting(request.draft)
        self.log_p = self.log_q = 0.0

    def text(self) -> Text:
        """Return the text reached. As long as it is held, so is what the draft knows of it."""
        self.own.node.beside(self.draft.node)
        self.own.log_prob = self.log_p
        return self.own.text()


def _write(pairs: Sequence[_Pair], keys: Keys | None, given: Sequence[Sequence[int]] | None = None) -> None:
    """Draw what pairs write, block by block; or walk along given tokens, for their log q alone."""
    while going := [i for i, pair in enumerate(pairs) if not pair.own.ended]:
        with rows(going):
            _write_block(
                [pairs[i] for i in going],
                None if keys is None else keys[going],
                None if given is None else [given[i] for i in going],
            )


def _write_block(pairs: Sequence[_Pair], keys: Keys | None, paths: Sequence[Sequence[int]] | None) -> None:
    """Take a token of the large model and as many of the draft's as it may propose, and score them in one pass."""
    own, starts = [pair.own for pair in pairs], [pair.own.node.length for pair in pairs]
    for pair, log_prob in zip(pairs, _take(own, [1] * len(own), keys, paths)):
        pair.log_q += sum(log_prob)
        pair.draft.go_on(1)
        pair.draft.follow(pair.own.path)
    going = [i for i, pair in enumerate(pairs) if not pair.own.ended]
    if going:
        ahead, most = [pairs[i].draft for i in going], [pairs[i].request.gamma for i in going]
        with rows(going):
            found = _take(ahead, most, None if keys is None else keys[going], paths and [paths[i] for i in going])
        for i, run, by, log_prob in zip(going, ahead, most, found):
            own[i].go_on(by)
            taken = own[i].follow(run.path)  # what the draft wrote beyond the end of the step is left out
            pairs[i].log_q += sum(log_prob[:taken])
    if paths is None:
        scored = _forced(own, starts, onward=any(run.finish_reason is None for run in own))
        for pair, log_p in zip(pairs, scored):
            pair.log_p += log_p


def _take(
    runs: Sequence[_Halting], most: Sequence[int | None], keys: Keys | None, paths: Sequence[Sequence[int]] | None
) -> list[Sequence[float]]:
    """Let runs of one model take tokens, drawn or given; return log-probabilities: of each drawn, of all given."""
    before, starts = [run.count for run in runs], [run.node.length for run in runs]
    for run, by in zip(runs, most):
        run.go_on(by)
    if paths is not None:
        for run, path in zip(runs, paths):
            run.follow(path)
        return [[log_prob] for log_prob in _forced(runs, starts).tolist()]
    assert keys is not None
    tally = Tally(len(runs))
    runs[0].step.lm.draw(runs, fold(keys, np.array(before)), tally)  # no two takes of a pair begin at one count
    charge(**tally.amounts)
    return [run.log_probs[count:] for run, count in zip(runs, before)]


def _forced(runs: Sequence[_Halting], starts: Sequence[int], onward: bool = False) -> Floats:
    """Return the log-probability of what runs of one model took from certain positions on, (n,)."""
    tally = Tally(len(runs))
    laws = [(run.step.sampling, None) for run in runs]
    nodes = [run.node for run in runs]
    found = runs[0].step.lm.forced(nodes, starts, laws, range(len(runs)), tally, onward=onward)
    charge(**tally.amounts)
    return found


def _recorded(pairs: Sequence[_Pair], keys: Keys) -> None:
    """Write what no journal knows, and play the rest."""
    going = [i for i, pair in enumerate(pairs) if not pair.own.ended]

    def make(places: list[int]) -> list[Any]:
        mine = [going[place] for place in places]
        with rows(mine):
            _write([pairs[i] for i in mine], keys[mine])
        return [(np.array(pairs[i].own.path, np.int32), np.array([pairs[i].log_p, pairs[i].log_q])) for i in mine]

    answers = served("draft", [form((pairs[i].request, int(keys[i]))) for i in going], make, going)
    for i, (tokens, (log_p, log_q)) in zip(going, answers):
        pair = pairs[i]
        if not pair.own.ended:
            played(pair.request.plain, (tokens, np.zeros(max(1, len(tokens)))))  # which checks them
            for run in (pair.own, pair.draft):
                run.go_on(None)
                run.follow(tokens.tolist())
            pair.log_p, pair.log_q = float(log_p), float(log_q)
