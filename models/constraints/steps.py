"""Constrained steps: kernels whose law is a language model's times a potential, or a potential alone."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from ...ppl.cost import charge
from ...ppl.errors import CannotScore
from ...ppl.keys import Keys, root
from ...ppl.model import Draws
from ..language.host import Tally, require
from ..language.stepping.drafted import Drafted
from ..language.stepping.steps import MOST_SUPPORT, Step
from ..language.texts.text import Text
from .awrs import AWRS
from .laws import Context, Floats
from .potential import Potential, ratio
from .vocabulary import Vocabulary
from .walk import Request, Walk, begin, move, retrace, total

_SAMPLERS = {"mask": None, "awrs": AWRS()}


@dataclass(frozen=True)
class Constrained(Request):
    """A kernel over texts with an unnormalised law γ. Made by `constrained` and `targeting`.

    For a step of tokens x_1 … x_k after a text c it is γ = Π_t p(x_t | …) · exp logw_next(…)[x_t], which by the
    laws of potentials is p times the potential of the whole, relative to that of c; from the beginning on, times
    exp prefix(()), so that it is the potential of the whole. Each token is drawn from
    γ normalised over the vocabulary, or by rejection; the weight p/q that the engine forms is the product of
    the masses that were left, so that no weight is lost or made up. Where nothing is left the particle dies.
    """

    expensive: ClassVar[bool] = True

    @property
    def batch_key(self) -> Hashable:
        """All constrained steps of one model share a call."""
        return (Constrained, id(self.step.lm))

    @property
    def fingerprint(self) -> Hashable:
        """The step's, the potential's, and how tokens are drawn."""
        return (self.step.fingerprint, self.potential.fingerprint, self.sampler, self.alone)

    def __repr__(self) -> str:
        return f"<{self.step!r} {'under' if self.alone else 'times'} {self.potential!r}>"

    def sample_batch(self, requests: Sequence[Constrained], keys: Keys) -> Draws:
        """Draw the next text for each request: texts, log γ (n,) and log q (n,); −inf where nothing is allowed."""
        walks = [Walk(request) for request in requests]
        _run(walks, keys)
        log_prob = np.array([walk.log_prob for walk in walks])
        return Draws([walk.text() for walk in walks], log_prob, np.array([walk.log_proposal for walk in walks]))

    def log_prob_batch(self, requests: Sequence[Constrained], values: Sequence[Any]) -> Floats:
        """Return log γ of each text under its request, (n,); −inf for what the step cannot give."""
        result = np.full(len(requests), -math.inf)
        walks = [retrace(request, v) for request, v in zip(requests, values)]
        going = {i: walk for i, walk in enumerate(walks) if walk is not None and not walk.dead}
        result[list(going)] = 0.0
        own = [i for i, walk in going.items() if walk.run.count and not walk.request.alone]
        if own:
            tally = Tally(len(requests))
            nodes = [going[i].run.node for i in own]
            starts = [going[i].run.node.length - going[i].run.count for i in own]
            laws = [(requests[i].step.sampling, None) for i in own]
            result[own] = self.step.lm.forced(nodes, starts, laws, own, tally)
            charge(**tally.amounts)
        groups: dict[tuple[Hashable, bool], list[int]] = defaultdict(list)
        for i, walk in going.items():
            if walk.run.count:
                groups[requests[i].potential.fingerprint, walk.run.finish_reason == "eos"].append(i)
        for (_, ended), rows in groups.items():
            potential = requests[rows[0]].potential
            before: list[Context] = [going[i].run.start.tokens for i in rows]
            after = [going[i].context for i in rows]
            whole = potential.complete_batch(after) if ended else potential.prefix_batch(after)
            result[rows] += potential.opening_batch(before) + ratio(whole, potential.prefix_batch(before))
        return result

    def log_proposal_batch(self, requests: Sequence[Constrained], values: Sequence[Text]) -> Floats:
        """Return log q of each text under its request's proposal, (n,).

        Raises `CannotScore` for draws by rejection, whose q is random.
        """
        for request in requests:
            if request.sampler is not None:
                raise CannotScore(
                    f"{request!r}: a text drawn by rejection cannot be forced, since the weight of its draw is "
                    'random: use sampler="mask"'
                )
        walks = [Walk(request) for request in requests]
        _run(walks, np.tile(root(0), len(walks)), values)
        return np.array([walk.log_proposal for walk in walks])

    def observing(self, value: Any) -> tuple[Constrained, Any]:
        """Return the kernel and the text that it means to observe a string, see `Step.observing`."""
        step, text = self.step.observing(value)
        return (self if step is self.step else replace(self, step=step)), text

    def fits(self, value: Any) -> bool:
        """Whether a value is a text."""
        return self.step.fits(value)

    def covers(self, other: Any) -> bool:
        """Whether this kernel can reach all that ``other`` can, as far as can be told.

        It can where it starts and ends as the other does, its own law cuts nothing off that the other's does not, and
        its potential has weight wherever the other's has: the same grammar at another temperature, say, or fewer of
        the factors of a product.
        """
        if not isinstance(other, Constrained) or not _spans(self.step, other.step, 0):
            return False
        if self.sampler is not None and not self.sampler.proper_weights:
            return False  # its q is not that of its draws
        same = self.step.sampling == other.step.sampling and not other.alone
        return (self.alone or same or not self.step.sampling.truncates) and self.potential.covers(other.potential)

    def within(self, step: Step) -> bool:
        """Whether a step without a potential can reach all that this kernel can."""
        same = step.sampling == self.step.sampling and not self.alone
        return (same or not step.sampling.truncates) and step.mask is None and _spans(step, self.step, 1)

    def support(self) -> list[Text] | None:
        """Return all texts that one token can lead to; None for longer steps, and a vocabulary above 512."""
        if self.step.ending.max_tokens > 1 or self.step.lm.vocab_size > MOST_SUPPORT:
            return None
        start = Walk(self)
        if start.over:
            return [start.text()]
        tally = Tally(1)
        with torch.inference_mode():
            row = total([start], np.zeros(1, np.intp), tally)[0].tolist()
        charge(**tally.sums)
        texts = []
        for token, log_gamma in enumerate(row):
            if log_gamma > -math.inf:
                walk = Walk(self)
                walk.take(token, log_gamma, 0.0)
                if not walk.over:  # of a whole text, the end is a token more
                    return None
                texts.append(walk.text())
        return texts


def _spans(step: Step, other: Step, end: int) -> bool:
    """Whether a step goes as far as another from the same text; the end of a whole one may take ``end`` tokens."""
    if step.lm is not other.lm or step.text != other.text:
        return False
    if not other.ending.whole:
        return step.ending == other.ending
    enough = other.ending.max_tokens + end
    return step.ending.max_tokens >= enough and replace(step.ending, max_tokens=enough) == replace(
        other.ending, max_tokens=enough
    )


def _run(walks: Sequence[Walk], keys: Keys, values: Sequence[Text] | None = None) -> None:
    """Move walks to their ends, freely or along given texts; charge what it took."""
    tally = Tally(len(walks))
    offset = 0
    paths = None if values is None else [v.tokens[len(w.run.start.tokens) :] for v, w in zip(values, walks)]
    begin([walk for walk in walks if not walk.over])
    with torch.inference_mode():
        while active := [i for i, walk in enumerate(walks) if not walk.over]:
            owners = np.array(active, np.intp)
            given = None if paths is None else np.array([paths[i][offset] for i in active], np.int64)
            move([walks[i] for i in active], owners, keys[owners], offset, tally, given)
            offset += 1
    if values is not None:
        tally.tokens_out[:] = 0
    charge(**tally.amounts)


def constrained(step: Step, potential: Potential, *, sampler: Literal["mask", "awrs"] | AWRS = "mask") -> Constrained:
    """Return the kernel of a step whose law is the model's times a potential; over whole texts, not token by token.

    Args:
        step: a step of a language model: ``lm.next_token(text)``, ``lm.tokens(text, k)``, ``lm.line(text)``,
            ``lm.sentence(text)``, ``lm.until(text, …)`` or ``lm.complete(text)``. Its own law, with its temperature
            and truncation, is p.
        potential: what is multiplied in; its contexts are the tokens of the response from its beginning
            (``potential.after(text)`` lets them begin later).
        sampler: "mask" draws from the normalised product over the vocabulary; "awrs" by adaptive weighted rejection,
            which asks the potential about few tokens, and has weights that are random but right (see `AWRS`).

    The steps of a text, from the beginning of the response on, multiply to p times the potential of the whole. What a
    text held before its first constrained step has no weight: multiply it in by ``fk.factor("before",
    potential.score(text))``, or leave it out by ``potential.after(text)``.

    Every kind of step gives a text whose prefix has weight. ``lm.complete`` gives a complete one: after ``max_tokens``
    the end is forced, with its own probability and weight, so that the target is that of texts of at most so many
    tokens (particles that cannot end there die). Each wave makes one batched call to the model.

    Raises ValueError for other tokens than the model's, temperature 0 and masks, TypeError for what is no step, and
    Unsupported for a model that gives no law of the next token.

    >>> import feynkac as fk
    >>> from feynkac.models.testing import tiny_lm
    >>> lm = tiny_lm()
    >>> yes_or_no = fk.constraints.regex(lm, " (yes|no)")
    >>> @fk.program
    ... async def ask(text):
    ...     return await fk.sample("answer", constrained(lm.complete(text, max_tokens=4), yes_or_no))
    >>> posterior = fk.infer(ask(lm.prompt("Is it so?")), fk.SMC(8), seed=0)
    >>> {str(text) for text in posterior.values} <= {" yes", " no"}, posterior.log_evidence < -5
    (True, True)
    """
    if isinstance(step, Step) and step.sampling.temperature == 0:
        raise ValueError(
            "a step at temperature 0 gives a constraint no token but its best one: use a small temperature, or "
            "lm.next_token(text, mask=…), which takes the best token of a mask"
        )
    return _made(step, potential, sampler, alone=False)


def targeting(step: Step, potential: Potential) -> Constrained:
    """Return the kernel of a step whose law is a potential alone: a product or mixture of language models, say.

    The step says where a text begins and how the step ends; its own law is not used, and its model computes
    nothing, unless it is in the potential as a `Language`. Each model in it makes one batched call a wave.

    The target is the product over whole texts, not that of the products normalised at each token: what the
    normalisation leaves out goes into the weight.

    Raises ValueError for other tokens than the model's, for masks and for keywords of `Sampling` (these belong to
    `Language`), and TypeError for what is no step.

    >>> import feynkac as fk
    >>> from feynkac.models.testing import tiny_lm
    >>> large, small = tiny_lm(0), tiny_lm(1)
    >>> text = large.prompt("Once")
    >>> experts = fk.constraints.Language(large, text) * fk.constraints.Language(small, small.prompt("Once")) ** 0.5
    >>> @fk.program
    ... async def both(text):
    ...     return await fk.sample("text", targeting(large.tokens(text, 3), experts))
    >>> len(fk.infer(both(text), fk.SMC(4), seed=0).best().tokens)
    3
    """
    if isinstance(step, Step) and step.sampling != step.lm.sampling:
        raise ValueError("the law is the potential alone: give temperature and the like to its Language")
    return _made(step, potential, "mask", alone=True)


def _made(step: Step, potential: Potential, sampler: Any, alone: bool) -> Constrained:
    if not isinstance(step, Step):
        raise TypeError(f"a step of a language model is needed, such as lm.complete(text), not {step!r}")
    if not isinstance(potential, Potential):
        raise TypeError(
            f"a Potential is needed, not {potential!r}; Where makes one of a function, Rewarded of a reward"
        )
    if isinstance(step, Drafted):
        raise ValueError("a constrained step draws each token from its own law: leave draft= out of the step")
    if step.mask is not None:
        raise ValueError("the step has a mask already: leave it out, and put what it says into the potential")
    Vocabulary.of(step.lm).require(potential.vocabulary)
    if not alone:
        require(step.lm, "law", f"a step times {potential!r}")
    if not isinstance(sampler, AWRS) and sampler not in _SAMPLERS:
        raise ValueError(f'sampler must be "mask", "awrs" or AWRS(…), not {sampler!r}')
    return Constrained(step, potential, sampler if isinstance(sampler, AWRS) else _SAMPLERS[sampler], alone)
