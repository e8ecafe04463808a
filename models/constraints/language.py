"""Language models as potentials, so that several of them, with one tokenizer, multiply and mix."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any, cast
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from ...ppl.cost import charge
from ...ppl.errors import AmbiguousScore, ContextOverflow
from ...ppl.memory import Recall
from ...ppl.score import Score, evaluate
from ...ppl.values.memo import Memo
from ..language.drawing.laws import log_normalise, read
from ..language.drawing.sampling import Sampling
from ..language.host import Host, Tally, require
from ..language.texts.text import Text
from ..language.texts.tree import Node
from .laws import END, Context, Floats
from .potential import Batched, Potential
from .vocabulary import Vocabulary


def begun(lm: Host, start: Text) -> Text:
    """Return a text of the model that responses come after. Raises ValueError for one that is finished."""
    text = lm.attach(start)
    if text.finished:
        raise ValueError(
            f"{start!r} is finished, so that no response comes after it: begin with a prompt, or cut() its end"
        )
    return text


class Language(Batched):
    """The law of a language model: the probability of a response after a text.

    Its weights of the next token are log-probabilities; the end is the model's end tokens together, which as tokens
    have weight zero. The models of a product or mixture need the same tokenizer, and may have different
    prompts and end tokens. Every wave makes one batched call to each model.

    Args:
        lm: the language model.
        start: the text that the response comes after; its own prompt, usually.
        sampling: keywords of `Sampling`; by default the model's own.

    Raises Unsupported for a model that gives no law of the next token, and ValueError for a finished text.

    >>> from feynkac.models.testing import tiny_lm
    >>> large, small = tiny_lm(0), tiny_lm(1)
    >>> contrast = Language(large, large.prompt("Once")) ** 2 / Language(small, small.prompt("Once"))
    >>> contrast.logw_next((60, 61)).shape
    (301,)
    """

    def __init__(self, lm: Host, start: Text, **sampling: Any) -> None:
        require(lm, "law", "a Language")
        self.lm = lm
        self.start = begun(lm, start)
        self.sampling: Sampling = replace(lm.sampling, **sampling)
        self.vocabulary = Vocabulary.of(lm)
        # Nothing else holds the nodes of a model that is not that of the program's texts, and caches go with nodes.
        self._nodes = Memo[Context, Node](2048)
        self._prefix: WeakKeyDictionary[Node, float] = WeakKeyDictionary()
        self._recall = Recall(lm.version())

    def __repr__(self) -> str:
        return f"<law of {self.lm.identity} after {self.start!r}>"

    @property
    def fingerprint(self) -> Hashable:
        """The model, the text and the settings."""
        return ("language", id(self.lm), self.start.digest, self.sampling)

    def covers(self, other: Potential) -> bool:
        """Whether it is the same, or cuts nothing off and knows no end tokens that ``other`` does not know."""
        ends = getattr(getattr(other, "lm", None), "eos", None)
        return super().covers(other) or (ends == self.lm.eos and bool(ends) and not self.sampling.truncates)

    def _node(self, context: Context) -> Node:
        node = self._nodes.get(context)
        if node is None:
            before = self._nodes.get(context[:-1]) if context else None
            top = self.start.node
            assert top is not None
            longest = self.lm.context
            if longest is not None and top.length + len(context) > longest:
                raise ContextOverflow(
                    f"{self!r}: {top.length + len(context)} tokens are more than its context of {longest}: use a "
                    "shorter prompt or fewer tokens, or a model with a longer context"
                )
            node = self.lm.tree.extend(top, context) if before is None else self.lm.tree.child(before, context[-1])
            self._nodes[context] = node
        return node

    def prefix_batch(self, contexts: Sequence[Context]) -> Floats:
        """Return `prefix` of each context, (n,)."""
        if self._recall.lapsed(self.lm.version()):
            self._prefix = WeakKeyDictionary()
        prefix = self._prefix
        result = _alive(self.lm, contexts)
        going = [i for i in np.flatnonzero(result == 0.0).tolist() if contexts[i]]
        nodes = [self._node(contexts[i]) for i in going]
        missing = list(dict.fromkeys(node for node in nodes if node not in prefix))
        if missing:
            known = [self._known(node, prefix) for node in missing]
            tally = Tally(len(missing))
            starts = [before.length for before in known]
            laws = [(self.sampling, None)] * len(missing)
            more = self.lm.forced(missing, starts, laws, range(len(missing)), tally)
            charge(**tally.sums)
            for node, before, log_prob in zip(missing, known, more.tolist()):
                prefix[node] = prefix.get(before, 0.0) + log_prob
        result[going] = [prefix[node] for node in nodes]
        return result

    def complete_batch(self, contexts: Sequence[Context]) -> Floats:
        """Return `complete` of each context, (n,)."""
        return self.prefix_batch(contexts) + self.logw_token_batch(contexts, [END] * len(contexts))

    def logw_next_batch(self, contexts: Sequence[Context]) -> Floats:
        """Return the log-probabilities of what may follow, (n, V+1)."""
        ends, size = sorted(self.lm.eos), self.vocabulary.size
        laws = np.empty((len(contexts), self.lm.vocab_size))

        def note(found: NDArray[np.intp], logits: Any) -> None:
            laws[found] = read(log_normalise(logits, self.sampling).double())

        tally = Tally(len(contexts))
        self.lm.laws([self._node(context) for context in contexts], np.arange(len(contexts)), tally, note)
        charge(**tally.sums)
        rows = np.empty((len(contexts), size + 1))
        rows[:, :-1] = laws[:, :size]
        rows[:, -1] = np.logaddexp.reduce(laws[:, ends], axis=1) if ends else -math.inf
        rows[:, [end for end in ends if end < size]] = -math.inf
        rows[np.isneginf(_alive(self.lm, contexts))] = -math.inf
        return rows

    def logw_token_batch(self, contexts: Sequence[Context], tokens: Sequence[int]) -> Floats:
        """Return the log-probability of one token after each context, (n,)."""
        return self.logw_next_batch(contexts)[np.arange(len(contexts)), list(tokens)]  # END is the last entry

    def _known(self, node: Node, prefix: WeakKeyDictionary[Node, float]) -> Node:
        """Return the longest beginning of a history whose log-probability is known."""
        while node is not self.start.node and node not in prefix:
            assert node.parent is not None
            node = node.parent
        return node


def _alive(lm: Host, contexts: Sequence[Context]) -> Floats:
    """Return 0 for each context, or −inf past an end token, (n,)."""
    return np.array([0.0 if lm.eos.isdisjoint(context) else -math.inf for context in contexts])


class Rewarded(Batched):
    """A reward of the finished response, as a potential: 1 along the way, the reward's weight at the end.

    Args:
        start: the text that the response comes after.
        score: makes a log-weight of a text: ``lambda text: judge(text).log()``, say.

    The end is weighed wherever it is asked for: with ``sampler="mask"`` at every token, with "awrs" only where it is
    drawn. Where the reward is dear, use ``fk.factor`` after the step instead: the target is the same.

    Raises AmbiguousScore where the score is no log-weight, and TypeError where it is no score.

    >>> import feynkac as fk
    >>> from feynkac.models.testing import tiny_lm
    >>> @fk.reward
    ... def brief(text):
    ...     return -len(str(text)) / 10
    >>> lm = tiny_lm()
    >>> Rewarded(lm.prompt("Once"), lambda text: brief(text) / 0.5).complete(lm.encode("upon"))
    -0.8
    """

    def __init__(self, start: Text, score: Callable[[Text], Score]) -> None:
        if start.lm is None:
            raise ValueError("this text has no language model: use lm.attach(text)")
        self.lm = cast("Host", start.lm)
        self.start = self.lm.attach(start)
        self.make = score
        self.vocabulary = Vocabulary.of(self.lm)

    @property
    def fingerprint(self) -> Hashable:
        """The text and the function."""
        return ("rewarded", self.start.digest, self.make)

    def prefix_batch(self, contexts: Sequence[Context]) -> Floats:
        """Return 0 for each context, or −inf past an end token, (n,)."""
        return _alive(self.lm, contexts)

    def complete_batch(self, contexts: Sequence[Context]) -> Floats:
        """Return the reward's log-weight of each response, (n,), in one batch."""
        result = self.prefix_batch(contexts)
        going = np.flatnonzero(result > -math.inf)
        if len(going):
            result[going] = evaluate([self._score(self._text(contexts[i])) for i in going.tolist()])
        return result

    def _score(self, text: Text) -> Score:
        score = self.make(text)
        if not isinstance(score, Score):
            raise TypeError(f"the score of a Rewarded must be that of a reward, and it returned {score!r:.200}")
        if score.kind != "log_weight":
            how = ".log() or .logit()" if score.kind == "probability" else "/ beta"
            raise AmbiguousScore(f"the score of a Rewarded, {score!r}, is not a log-weight; say how with {how}")
        return score

    def logw_next_batch(self, contexts: Sequence[Context]) -> Floats:
        """Return 0 for each token after each context, and the reward's log-weight for the end, (n, V+1)."""
        rows = np.zeros((len(contexts), self.vocabulary.size + 1))
        rows[:, [end for end in self.lm.eos if end < self.vocabulary.size]] = -math.inf
        rows[:, -1] = self.complete_batch(contexts)
        rows[np.isneginf(self.prefix_batch(contexts))] = -math.inf
        return rows

    def _text(self, context: Context) -> Text:
        node = self.start.node
        assert node is not None
        reading = self.start.reading.read(self.lm.decode, context) if context else self.start.reading
        step, end = reading.raw[self.start.begin :], (None, len(reading.raw))
        return self.start.grow(self.lm.tree.extend(node, context), reading, step, end)
