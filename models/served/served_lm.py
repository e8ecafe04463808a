"""A language model that is not here: its steps are requests to an engine, which draws from seeds and tells its odds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from ...ppl.cost import rows
from ...ppl.errors import ContextOverflow, Unsupported, UnusableAnswer
from ...ppl.keys import Keys, fold
from ...ppl.score import Score
from ..language.drawing.runs import Run
from ..language.drawing.sampling import Law, Sampling, as_mask, canonical
from ..language.host import Floats, Offer, Tally, require
from ..language.model import LanguageModel
from ..language.texts.text import Text
from ..language.texts.tree import Node, Tree
from .abilities import Abilities, meet
from .transport import Draw, Drawn, Scored, Transport

_AHEAD = 16
"""Tokens that are drawn at once where nothing that an engine knows of ends the step."""
_FEW = 128
"""Most tokens whose log-probabilities are asked for at once."""
_COLDEST = 0.01
"""Engines take a lower temperature, unless it is 0, for this one."""
_OWN: Law = (Sampling(), None)


class Heard(Node):
    """A history, and the log-probabilities that its last token was heard to have after those before it, by laws."""

    __slots__ = ("log_probs",)

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.log_probs: dict[Law, float] = {}


class ServedLM(LanguageModel):
    """A language model over a `Transport`: what all models behind servers and engines have in common.

    A step is one request, with a seed of its own that its key gives, so that what is drawn depends on nothing else; the
    requests of a wave go out together. The tokens that come back are replayed through the same endings as those of
    every model. An ending is a stopping time, so that the tokens up to it have the law of the step, whatever was drawn
    beyond; where none of the tokens ends the step, another request goes on from the last.

    What was heard of a token's log-probability is kept with its text, while that is held: a text that was drawn is
    given again (by a replay, a Markov chain, particle Gibbs) without a request.

    Args:
        transport: what carries the requests.
        tokenizer: the model's own, as transformers has them.
        sampling: the default law of the next token; every step may override it.
        eos: the tokens that end a text; that of the tokenizer by default.
        vocab_size: how many tokens the model has; as many as the tokenizer by default.
        context: most tokens of a text; what the engine says by default.
        score_warped: whether given tokens may be scored under other laws than the model's own, by a request for each.
        tolerance: how far two log-probabilities of one token may lie apart that were computed in two ways.

    Attributes:
        can: what the engine was seen to do, when it was met.
        lacks: what it does not do, each with what to do about it.
    """

    tree: Tree[Heard]

    def __init__(
        self,
        transport: Transport,
        tokenizer: Any,
        *,
        sampling: Sampling | None = None,
        eos: Sequence[int] | None = None,
        vocab_size: int | None = None,
        context: int | None = None,
        score_warped: bool = False,
        tolerance: float = 0.05,
    ) -> None:
        self.transport = transport
        size = len(tokenizer) if vocab_size is None else vocab_size
        context = transport.context if context is None else context
        given = [tokenizer.eos_token_id] if eos is None else eos
        ends = frozenset(token for token in given if token is not None and 0 <= token < size)
        super().__init__(
            tokenizer,
            Tree(Heard),
            name=transport.identity,
            vocab_size=size,
            eos=ends,
            context=context,
            prompt_context=context,
        )
        met: Abilities = meet(transport, self._writer.codec, tolerance)
        self.can, self.lacks = met.can, met.lacks
        self.offers = frozenset({"few"} if "few" in met.can else ())
        self._score_warped = score_warped
        if sampling is not None:
            self.admits((sampling, None))
            self.sampling = sampling

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.identity} at {self.transport.where}>"

    # What it can say

    def admits(self, law: Law) -> None:
        """Raise Unsupported unless the engine draws from a law as `Sampling` describes it."""
        sampling, mask = law = self._canonical(law)
        if 0 < sampling.temperature < _COLDEST:
            self._refuse(f"temperature={sampling.temperature:g}", f"engines round it to {_COLDEST}", "use 0, or more")
        if sampling.min_p and sampling.top_p is not None:
            self._refuse("min_p and top_p together", "engines cut by min_p first, and feynkac by top_p", "use one")
        if mask is None:
            return
        if "mask" not in self.can:
            raise Unsupported(f"a draw under a mask is not offered by {self!r}: {self.lacks['mask']}")
        if sampling.truncates and sampling.temperature:
            self._refuse(
                "a draw under a mask with top_k, top_p or min_p",
                "engines mask first and cut off then, and feynkac the other way round",
                "leave them out",
            )

    def scores(self, law: Law) -> bool:
        """Return whether the log-probabilities of draws under a law are known."""
        law = self._canonical(law)
        if law[0].temperature == 0:
            return True
        return ("log_prob" if law == _OWN else "log_prob_warped") in self.can

    @property
    def place(self) -> str:
        """Where it is, and what it is called if it was asked for by name."""
        where = self.transport.where
        return f"{where} ({self.identity})" if getattr(self.transport, "named", False) else where

    def revision(self) -> Any:
        """Return what the engine calls the model, and what it was loaded from: where it is, if nobody says that."""
        return [self.identity, getattr(self.transport, "root", None) or self.transport.where]

    def recall(self, run: Run) -> None:
        """Take note of the log-probabilities of a step that a journal has played, as of one that was drawn."""
        law = self._canonical((run.request.sampling, run.request.mask))
        if self.scores(law):
            path = _path(run.node, run.node.length - run.count)
            for node, log_prob in zip(path, run.log_probs):
                self._note(node, law, log_prob)

    def remedy(self, offer: Offer) -> str:
        """Return what to do where something is not offered."""
        return self.lacks["few"] if offer == "few" else super().remedy(offer)

    def log_mass(self, text: Text, mask: Any, **sampling: Any) -> Score:
        """Return the log of the mass of a mask, see `LanguageModel.log_mass`.

        Raises Unsupported for a mask of more than 128 tokens, too, and for a law that the engine tells no
        log-probabilities of.
        """
        require(self, "few", "lm.log_mass")
        count = int(as_mask(mask, self.vocab_size).allowed.sum())
        if count > _FEW:
            self._refuse(
                f"lm.log_mass of {count} tokens", f"{_FEW} can be asked about", "use fewer, or a model that runs here"
            )
        self._check_few(self._law(sampling), "lm.log_mass")
        return super().log_mass(text, mask, **sampling)

    def _check_few(self, sampling: Sampling, who: str) -> None:
        if sampling.temperature == 0:
            self._refuse(f"{who} at temperature 0", "engines tell the law before the best is taken", "use another")
        if not self.scores((sampling, None)):
            raise Unsupported(f"{who} under {sampling} is not offered by {self!r}: {self.lacks['log_prob_warped']}")

    def _refuse(self, what: str, why: str, remedy: str) -> NoReturn:
        raise Unsupported(f"{what} is not offered by {self!r}, as {why}: {remedy}")

    def _canonical(self, law: Law) -> Law:
        return canonical(law, self.vocab_size)

    # Steps

    def draw(self, runs: Sequence[Run], keys: Keys, tally: Tally) -> None:
        """Advance each run to the end of its step: see `Host`, and the class."""
        for run in runs:
            mask = run.request.mask
            if not run.over and mask is not None and not mask.allowed.any():
                run.advance(-1, -math.inf)
        while going := [i for i, run in enumerate(runs) if not run.over]:
            wanted = [self._wanted(runs[i], keys[i]) for i in going]
            with rows(going):
                found = self.transport.draw(wanted)
            tally.calls += 1
            for i, request, drawn in zip(going, wanted, found, strict=True):
                tally.tokens_in[i] += drawn.forwarded
                tally.tokens_out[i] += len(drawn.tokens)
                self._replay(runs[i], request, drawn)

    def _wanted(self, run: Run, key: np.uint64) -> Draw:
        """Return the request for a run's next tokens: another seed where it goes on from what was drawn before."""
        request, ending = run.request, run.request.ending
        most = ending.max_tokens - run.count
        if self.context is not None:
            most = min(most, self.context - run.node.length)
        sampling, mask = self._canonical((request.sampling, request.mask))
        return Draw(
            run.node.tokens(),
            int(fold(key, run.count)[0] if run.count else key) >> 2,
            min(most, _AHEAD) if ending.sentence else most,
            sampling,
            () if ending.sentence else ending.stops,
            tuple(sorted(self.eos | ending.stop_tokens)),
            None if mask is None else tuple(np.flatnonzero(mask.allowed).tolist()),
        )

    def _replay(self, run: Run, asked: Draw, drawn: Drawn) -> None:
        """Advance a run by what was drawn for it, up to its end."""
        law = self._canonical((run.request.sampling, run.request.mask))
        known = self.scores(law)
        for token, log_prob in zip(drawn.tokens, self._log_probs(asked, drawn, known)):
            if not 0 <= token < self.vocab_size:
                self._unusable(
                    f"drew the token {token}, but the tokenizer has {self.vocab_size}",
                    "give tokenizer=, or vocab_size= where the model has more tokens than its tokenizer",
                )
            if asked.allowed is not None and token not in asked.allowed:
                self._unusable(f"drew the token {token}, which the mask does not allow", "use another engine")
            run.advance(token, log_prob)
            if known:
                self._note(run.node, law, log_prob)
            if run.over:
                return
        if drawn.ended:
            spelled = self.spelled(drawn.tokens[-1:])
            self._unusable(
                f"ends texts at the token {drawn.tokens[-1]}, {spelled}, which {self!r} takes for no end",
                f"give all tokens that end a text by eos=, now {sorted(self.eos)}",
            )

    def _log_probs(self, asked: Draw, drawn: Drawn, known: bool) -> Sequence[float]:
        """Return the log-probabilities of drawn tokens under the law that they were drawn from."""
        if asked.sampling.temperature == 0:
            return [0.0] * len(drawn.tokens)
        if not known:
            return [math.nan] * len(drawn.tokens)
        if drawn.log_probs is None or len(drawn.log_probs) != len(drawn.tokens):
            self._unusable("drew tokens without their log-probabilities", "it told them before: see its log")
        if -math.inf in drawn.log_probs:
            self._unusable("drew a token to which it gives no probability", "report it to those who make the engine")
        return drawn.log_probs

    def _unusable(self, what: str, remedy: str) -> NoReturn:
        raise UnusableAnswer(f"{self.transport.where} {what}: {remedy}")

    @staticmethod
    def _note(node: Any, law: Law, log_prob: float) -> None:
        node.log_probs.setdefault(law, log_prob)

    # Scores

    def forced(
        self, nodes: Sequence[Node], starts: Sequence[int], laws: Sequence[Law], owners: Sequence[int], tally: Tally,
        *, onward: bool = False,
    ) -> Floats:  # fmt: skip
        """Return the log-probability (n,) of the tokens of histories from certain positions on, see `Host`.

        What was drawn or scored before, and is held by some text, is known. The rest is a request for each text under
        the model's own law, and one for each token under any other, where that is allowed (``score_warped=True``).
        """
        laws = [self._canonical(law) for law in laws]
        paths: list[list[Any]] = [_path(node, start) for node, start in zip(nodes, starts)]
        open_at = [[node for node in path if law not in node.log_probs] for path, law in zip(paths, laws)]
        for law, missing in zip(laws, open_at):
            if missing:
                self.weighs(law)
        whole: dict[Any, int] = {}
        each: dict[tuple[Any, Law], int] = {}
        for law, missing, owner in zip(laws, open_at, owners):
            if law == _OWN and missing and missing[-1].length == self.context:  # no engine reads a full context
                require(self, "few", "the log-probability of the last token of a full context")
                each[missing.pop(), law] = owner
            if law == _OWN and missing:
                whole[missing[-1]] = owner
            elif law != _OWN:
                each |= {(node, law): owner for node in missing}
        if whole:
            self._score(list(whole), list(whole.values()), tally)
        if each:
            self._try(list(each), list(each.values()), tally)
        return np.array([sum(node.log_probs[law] for node in path) for path, law in zip(paths, laws)], float)

    def weighs(self, law: Law) -> None:
        """Raise Unsupported unless given tokens can be scored under a law."""
        sampling, mask = law = self._canonical(law)
        what = f"the log-probability of given tokens under {sampling if mask is None else law}"
        if law == _OWN:
            if "score" not in self.can:
                raise Unsupported(f"{what} is not told by {self!r}: {self.lacks['score']}")
            return
        self.admits(law)
        if not self.scores(law):
            raise Unsupported(f"{what} is not told by {self!r}: {self.lacks['log_prob_warped']}")
        if sampling.temperature:
            require(self, "few", what)
        if not self._score_warped:
            self._refuse(
                what,
                "it would take a request for each token",
                "use the model's own law (temperature=1, nothing cut off), or allow it by score_warped=True",
            )

    def _score(self, nodes: list[Any], owners: list[int], tally: Tally) -> None:
        """Hear of the model's own law of all tokens of some histories."""
        histories = [node.tokens() for node in nodes]
        with rows(owners):
            found: list[Scored] = self.transport.score(histories)
        tally.calls += 1
        for node, history, owner, scored in zip(nodes, histories, owners, found, strict=True):
            if len(scored.log_probs) != len(history) - 1:
                self._unusable(f"scored {len(scored.log_probs)} of {len(history)} tokens", "see its log")
            tally.tokens_in[owner] += scored.forwarded
            for place in _path(node, node.top.length):
                self._note(place, _OWN, scored.log_probs[place.length - 2])

    def _try(self, places: list[tuple[Any, Law]], owners: list[int], tally: Tally) -> None:
        """Hear of any law of some tokens, each by a draw in its place."""
        wanted = [_in_place(node, law) for node, law in places]
        with rows(owners):
            found = self.transport.draw(wanted)
        tally.calls += 1
        for (node, law), owner, drawn in zip(places, owners, found, strict=True):
            tally.tokens_in[owner] += drawn.forwarded
            tally.tokens_out[owner] += len(drawn.tokens)
            if law[1] is not None and not law[1].allowed[node.token]:
                log_prob = -math.inf
            elif law[0].temperature == 0:
                log_prob = 0.0 if drawn.tokens[0] == node.token else -math.inf
            else:
                log_prob = drawn.shown[node.token]
            self._note(node, law, log_prob)

    def few(
        self,
        nodes: Sequence[Node],
        tokens: Sequence[Sequence[int]],
        laws: Sequence[Sampling],
        owners: NDArray[np.intp],
        tally: Tally,
    ) -> list[Floats]:
        """Return the log-probabilities of some tokens after each history, see `Host`."""
        for node, sampling, asked in zip(nodes, laws, tokens):
            self._check_few(sampling, "the law of a few tokens")
            if len(asked) > _FEW:
                self._refuse(f"the law of {len(asked)} tokens", f"{_FEW} can be asked about", "ask about fewer")
            if node.length == self.context:
                raise ContextOverflow(f"a history fills the context of {self!r}, {self.context}: nothing follows it")
        wanted = [
            Draw(node.tokens(), 0, 1, self._canonical((sampling, None))[0], shown=tuple(asked))
            for node, sampling, asked in zip(nodes, laws, tokens)
        ]
        going = [i for i, request in enumerate(wanted) if request.shown]
        with rows(owners[going].tolist()):
            found = dict(zip(going, self.transport.draw([wanted[i] for i in going]), strict=True))
        tally.calls += 1
        for i, drawn in found.items():
            tally.tokens_in[owners[i]] += drawn.forwarded
            tally.tokens_out[owners[i]] += len(drawn.tokens)
        return [np.array([found[i].shown[token] for token in request.shown], float) for i, request in enumerate(wanted)]


def _path(node: Any, start: int) -> list[Any]:
    """Return the histories that end at each token of a history from position ``start`` on, the shortest first."""
    path = []
    while node.length > start and node.parent is not None:
        path.append(node)
        node = node.parent
    return path[::-1]


def _in_place(node: Any, law: Law) -> Draw:
    """Return the request that tells the log-probability of a history's last token under a law."""
    sampling, mask = law
    allowed = None if mask is None else tuple(np.flatnonzero(mask.allowed).tolist())
    shown = (node.token,) if sampling.temperature else ()
    return Draw(node.tokens()[:-1], 0, 1, sampling, allowed=allowed, shown=shown)
