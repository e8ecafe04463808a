"""A language model as programs use it: its texts, its steps and its scores, whatever draws the tokens."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from ...ppl.errors import Unsupported
from ...ppl.keys import Keys
from ...ppl.running.calls import Pending
from ...ppl.score import Score
from ...ppl.sites import Running
from ...ppl.words import batched
from .drawing.endings import Ending
from .drawing.runs import Run
from .drawing.sampling import Law, Sampling, as_mask
from .host import Floats, Offer, Sink, Tally, require
from .journalled import Journalled
from .reads import Read, What, read_all
from .scoring import Likelihood, Mass
from .stepping.drafted import drafted
from .stepping.steps import Step
from .stepping.together import Ticks, Together, Workers
from .texts.bytewise import spellings
from .texts.text import Text
from .texts.tree import Node, Tree
from .writing import Message, Writer

_A_TOKEN = Ending(1)


class LanguageModel(Journalled, ABC):
    """What all language models have in common. Their steps are kernels for ``fk.sample``.

    Steps of tokens, a line, a sentence, up to a stop or to the end take as keywords those of `Sampling`, and ``draft=``
    with ``gamma=``: a small model with an equal tokenizer proposes so many tokens at a time (None: all), this one
    scores them in one pass, and the weight p/q comes with the draw, see `Drafted`.

    Those who inherit from it draw steps (`draw`) and score given tokens (`forced`), and say by ``offers`` what else
    they can do; what needs more refuses with `Unsupported` before anything is drawn.

    Args:
        tokenizer: as transformers has them.
        tree: where histories are kept.
        name: tells texts of this model from those of others.
        vocab_size: how many tokens the model knows.
        eos: the tokens that end a text.
        context: most tokens of a history; None is any.
        prompt_context: most tokens of a prompt.
        start: the tokens that a decoder begins with where an encoder reads the prompt; else None.
        sampling: the default law of the next token; every step may override it.
    """

    offers: frozenset[Offer] = frozenset()

    def __init__(
        self,
        tokenizer: Any,
        tree: Tree[Any],
        *,
        name: str,
        vocab_size: int,
        eos: frozenset[int],
        context: int | None = None,
        prompt_context: int | None = None,
        start: tuple[int, ...] | None = None,
        sampling: Sampling | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.tree = tree
        self.identity = name
        self.vocab_size = vocab_size
        self.eos = eos
        self.context, self.prompt_context = context, prompt_context
        self.sampling = sampling or Sampling()
        self._writer = Writer(self, start)
        self._likelihood = Likelihood(self)
        self._mass = Mass(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.identity}>"

    @property
    def chats(self) -> bool:
        """Whether the model has a chat template."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    # What a model does itself

    def version(self) -> int:
        """Return a number that is another one whenever the model has been seen to change."""
        return 0

    def admits(self, law: Law) -> None:
        """Raise Unsupported unless steps can be drawn under a law, see `Host`."""
        if law[1] is not None:
            require(self, "law", "a draw under a mask")

    def weighs(self, law: Law) -> None:  # most score under all laws
        """Raise Unsupported unless given tokens can be scored under a law, see `Host`."""

    def scores(self, law: Law) -> bool:
        """Return whether the model tells the log-probabilities of what it draws under a law, see `Host`."""
        return True

    def remedy(self, offer: Offer) -> str:
        """Return what to do where something is not offered."""
        return "use a model that runs here, such as TransformersLM, or steps and scores alone"

    @abstractmethod
    def draw(self, runs: Sequence[Run], keys: Keys, tally: Tally) -> None:
        """Advance each run to the end of its step, see `Host`."""

    @abstractmethod
    def forced(
        self, nodes: Sequence[Node], starts: Sequence[int], laws: Sequence[Law], owners: Sequence[int], tally: Tally,
        *, onward: bool = False,
    ) -> Floats:  # fmt: skip
        """Return the log-probability (n,) of the tokens of histories from certain positions on, see `Host`."""

    def laws(self, nodes: Sequence[Node], owners: NDArray[np.intp], tally: Tally, sink: Sink) -> None:
        """Say the law of the next token after each history, see `Host`. Raises Unsupported where it is not offered."""
        require(self, "law", "this")

    def few(
        self,
        nodes: Sequence[Node],
        tokens: Sequence[Sequence[int]],
        laws: Sequence[Sampling],
        owners: NDArray[np.intp],
        tally: Tally,
    ) -> list[Floats]:
        """Return the log-probabilities of some tokens after each history, see `Host`. Raises Unsupported likewise."""
        raise Unsupported(f"{self!r} does not give the law of a few tokens: {self.remedy('few')}")

    @property
    def workers(self) -> Workers:
        """What writes texts side by side, for `together`. Raises Unsupported where there is nothing that does."""
        raise Unsupported(f"{self!r} cannot write texts side by side: use a model that runs here (TransformersLM)")

    def variant(self, *, experts: int | None = None, layers: int | None = None, adapter: Any = ...) -> LanguageModel:
        """Return a model with the same weights that runs them otherwise. Raises Unsupported where none are here."""
        raise Unsupported(
            f"{self!r} has no weights here that could be run otherwise: use a model that runs here (TransformersLM), "
            "or serve the other one, too"
        )

    @property
    def depth(self) -> int:
        """How many hidden states a token has, see `Host`. Raises Unsupported where they are not offered."""
        require(self, "hidden", "this")
        return 0

    def hidden(
        self, nodes: Sequence[Node], layers: Sequence[int], owners: NDArray[np.intp], tally: Tally, sink: Sink
    ) -> None:
        """Say a hidden state at the end of each history, see `Host`. Raises Unsupported where they are not offered."""
        require(self, "hidden", "this")

    # Texts

    def prompt(self, prompt: str | Sequence[Message] | Sequence[int], *, tokens: Sequence[int] | None = None) -> Text:
        """Return a text with an empty response.

        A string is encoded as the tokenizer does by default; messages go through the model's chat template (a
        last message from the assistant is continued); token ids are taken as they are, and read as the tokenizer reads
        them, special ones included. An empty string gives the begin token alone.

        Args:
            prompt: a string, messages or ids.
            tokens: ids that the model reads instead of those that the tokenizer would give to a string or messages,
                such as those of a log, whose words were cut otherwise. The text's prompt stays the string.

        Raises ContextOverflow, Unsupported (no chat template), TypeError for what is none of these, ValueError for an
        empty prompt without a begin token, for an empty list, a lone surrogate and tokens that the model does not have.
        Warns (`PromptWarning`) of two begin tokens, and where the tokenizer ends the prompt with an end token.
        """
        return self._writer.prompt(prompt, tokens)

    def attach(self, text: Text) -> Text:
        """Return a text that belongs to this model: one that was detached or loaded, or one of another model.

        A text of another model, such as a `variant`, keeps its tokens, its steps and the log-probability that they were
        drawn with. It needs an equal tokenizer, so that the tokens read as the same; what either is called does not
        matter. A text that ended goes on where its last token is no end to this model. Steps attach the texts that they
        go on from themselves.

        Raises TokenizerMismatch, ContextOverflow where this model's context is shorter than the text, and ValueError
        for tokens that this model does not have.
        """
        return self._writer.attach(text)

    def append(self, text: Text, string: str) -> Text:
        """Return ``text.append(string)``."""
        return self._writer.append(text, string)[0]

    def cut(self, text: Text, to: int) -> Text:
        """Return ``text.cut(to=to)``."""
        return self._writer.cut(text, to)

    def encode(self, string: str, after: Text | None = None) -> tuple[int, ...]:
        """Return the tokens of a string that stands alone, or those that ``after.append(string)`` adds.

        They may differ: the tokenizer of Llama-2, for one, puts a space before a string that stands alone. No special
        tokens are added; those that the string spells are read as such.
        """
        return self._writer.encode(string, after)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the string of tokens that stand alone, special ones left out.

        Raises ValueError for tokens that the model does not have.
        """
        codec = self._writer.codec
        try:
            return codec.joined(tokens)
        except KeyError:
            return codec.decode(codec.known(tokens, "what is to be decoded"))

    def decode_response(self, tokens: Sequence[int]) -> str:
        """Return the string of a response's tokens: as they read after the prompt, special ones left out.

        Raises ValueError for tokens that the model does not have.
        """
        return self._writer.decode_response(self._writer.codec.known(tokens, "what is to be decoded"))

    def spelled(self, tokens: Iterable[int]) -> list[str]:
        """Return how tokens are spelled, special ones included."""
        found: list[str] = self.tokenizer.convert_ids_to_tokens(sorted(tokens))
        return found

    @cached_property
    def token_bytes(self) -> tuple[bytes, ...]:
        """The bytes that each token stands for within a response, (V,); none for those that are not displayed.

        Raises Unsupported for a tokenizer whose strings are not those of its tokens, one after another (BERT's).
        """
        return spellings(self.tokenizer, self.vocab_size, self.decode_response)

    def finish_reason(self, node: Node, last: int) -> Any:
        """Return why a history whose last sampled token is ``last`` (−1: none) is finished, or None."""
        if last in self.eos:
            return "eos"
        return "context" if node.length == self.context else None

    # Steps

    def next_token(self, text: Text, *, mask: Any = None, **sampling: Any) -> Step:
        """Return the kernel of one token.

        ``mask`` (V,), boolean, conditions the law on a set of tokens; where the law gives them nothing, the
        draw is the text itself with log-probability −inf. Other keywords are those of `Sampling`.

        Raises Unsupported where the model cannot draw under a mask.
        """
        allowed = None if mask is None else as_mask(mask, self.vocab_size)
        return Step(self, text, _A_TOKEN, self._law(sampling), allowed)

    def tokens(self, text: Text, k: int, **settings: Any) -> Step:
        """Return the kernel of k tokens, or fewer where the text finishes."""
        return self._step(text, Ending(k), settings)

    def until(
        self,
        text: Text,
        stop: str | Sequence[str],
        *,
        max_tokens: int = 128,
        include_stop: bool = False,
        **settings: Any,
    ) -> Step:
        """Return the kernel of the tokens up to the first stop, ``max_tokens``, or the text's end.

        A stop is a string, or a special token as it is spelled, such as ``"<|im_end|>"``. The token in which a stop
        string is completed is kept whole, in the text and its log-probability; the display ends before the stop string,
        or after it with ``include_stop``. Special tokens are never displayed.

        Raises TypeError for a stop that is no string, ValueError for one in which a special token is only a part.
        """
        stops, special = self._writer.stops(stop)
        return self._step(text, Ending(max_tokens, stops, include_stop, stop_tokens=special), settings)

    def line(self, text: Text, *, max_tokens: int = 64, **settings: Any) -> Step:
        """Return the kernel of the rest of the line."""
        return self.until(text, "\n", max_tokens=max_tokens, **settings)

    def sentence(self, text: Text, *, max_tokens: int = 128, **settings: Any) -> Step:
        """Return the kernel of the rest of the sentence: to a ``.``, ``!``, ``?``, ``؟`` or ``…`` that ends it.

        It does so before white space, a closing quote or bracket (kept), or the text's end. A ``。``, ``！`` or ``？``
        does before any other character. What the last token holds beyond is displayed with the next step.
        """
        return self._step(text, Ending(max_tokens, sentence=True), settings)

    def complete(self, text: Text, *, max_tokens: int = 256, **settings: Any) -> Step:
        """Return the kernel of the rest of the response: to an end token or ``max_tokens``."""
        return self._step(text, Ending(max_tokens, whole=True), settings)

    def together(self, texts: Together | Sequence[Text], k: int, **sampling: Any) -> Ticks:
        """Return the kernel of k tokens for each of some texts, which see each other's tokens as they come.

        The texts share a prompt, and have after it what opens the block of each (by ``text.append``), or nothing in any
        of them. At a tick all draw a token each, from what all had after the tick before: keys and values are shared,
        and nothing is read twice. Its value is a `Together`, a sequence of the texts, to go on from; which text stands
        where for whom, and what a finished text means to the others, is told where `Together` is made
        (`feynkac.models.language.stepping.together`).
        Its log-probability is that of all tokens. A tick forwards a token of each text.

        Source: Rodionov et al. (2025), Hogwild! Inference, arXiv:2504.06261. It needs a model with rotary embeddings.

        Raises TypeError for what are no texts, ValueError for texts of different prompts and where some have a block
        and others none, ContextOverflow where all together leave no room, `Unsupported` for a model that cannot.

        >>> import feynkac as fk
        >>> from feynkac.models.testing import tiny_lm
        >>> @fk.program
        ... async def pair(lm):
        ...     task = lm.prompt("Who ran to the sea?")
        ...     team = task.append(" Alice:"), task.append(" Bob:")
        ...     for _ in range(3):
        ...         team = await fk.sample("ticks", lm.together(team, 8))
        ...         await fk.factor("judge", -0.1 * sum(len(text.tokens) for text in team))
        ...     return team
        >>> alice, bob = fk.infer(pair(tiny_lm()), fk.SMC(4), seed=0).values[0]
        >>> alice.full.startswith("Who ran to the sea? Alice:"), len(bob.tokens) > 8
        (True, True)
        """
        return Ticks(self, texts, k, self._law(sampling))

    # Scores

    def score(self, text: Text, continuation: str | None = None) -> Score:
        """Return log p of the text's response, or of a continuation after the text, as a log-weight.

        p is the model's own law, with no temperature and nothing cut off. A continuation has the tokens that
        ``text.append(continuation)`` gives it. The scores of a wave are computed in one batch when awaited.
        """
        if continuation is None:
            text = self.attach(text)
            return Score(((self._likelihood, (text, text.offset)),), "log_weight")
        return Score(((self._likelihood, self._writer.append(text, continuation)),), "log_weight")

    def log_mass(self, text: Text, mask: Any, **sampling: Any) -> Score:
        """Return the log of the mass that the law of the next token gives to those of ``mask`` (V,), a
        log-weight.

        This is the weight that makes a masked draw exact: ``lm.next_token(text, mask=mask)`` draws from the
        law conditioned on the mask. Give both the same keywords of `Sampling`, or neither. For a finished text it
        is 0, as no token is drawn. Raises Unsupported where the model gives no law, nor that of as many tokens.
        """
        require(self, "few", "lm.log_mass")
        return Score(
            ((self._mass, (self.attach(text), as_mask(mask, self.vocab_size), self._law(sampling))),), "log_weight"
        )

    # What programs may read

    def read(self, text: Text, what: What = "law", layer: int = -1, **sampling: Any) -> Any:
        """Return what the model makes of a text: a law, a number that says how sure it is, or a hidden state.

        Inside a program it is still to be computed: ``await fk.call("sure", lm.read(text, "entropy"))`` gives the
        value, with one pass of the model for all particles. It is the pass that the next step needs: where one
        follows, the value costs nothing. It is a value, never a weight.

        Args:
            text: what the model has read.
            what: "law": the log-probabilities of the next token, (V,); "entropy": theirs, in nats; "top": the largest
                probability; "margin": by how much it is larger than the second; "hidden": the hidden state of the last
                token, (d,).
            layer: of the hidden state: 0 is that of the embedding, 1 that after the first layer, −1 the last, as
                transformers has them (of the decoder, where an encoder reads the prompt). The first read of a layer
                that is not what goes into the output embedding (any but the last; the last, too, of BERT and T5) costs
                one more position for each text whose law was known before.
            sampling: keywords of `Sampling`, of the law that is read or summed up.

        Raises ValueError for a layer that the model does not have and for what cannot be read, TypeError for settings
        that do not belong to what is read, and Unsupported where the model does not give it.

        >>> import feynkac as fk
        >>> from feynkac.models.testing import tiny_lm
        >>> lm = tiny_lm()
        >>> lm.read(lm.prompt("Once"), "hidden").shape, round(lm.read(lm.prompt("Once"), "top"), 3)
        ((32,), 0.177)
        >>> @fk.program
        ... async def careful(text):
        ...     while await fk.call("sure", lm.read(text, "entropy")) > 4.0:
        ...         text = await fk.sample("token", lm.next_token(text))
        ...     return text
        >>> run = fk.simulate(careful(lm.prompt("Once")), seed=0)
        >>> lm.read(run.value, "entropy") <= 4.0
        True
        """
        if what not in get_args(What):
            raise ValueError(f"what is read is one of {', '.join(map(repr, get_args(What)))}, not {what!r}")
        if what == "hidden":
            require(self, "hidden", 'lm.read(text, "hidden")')
            if sampling:
                raise TypeError(f"a hidden state is not drawn: leave out {', '.join(sampling)}")
            read = Read(what, None, self._layer(layer))
        else:
            require(self, "law", f"lm.read(text, {what!r})")
            if layer != -1:
                raise TypeError(f'a layer belongs to "hidden", not to {what!r}')
            read = Read(what, self._law(sampling), None)
        text = self.attach(text)
        if Running.fiber is None:
            return self._read([(text, read)])[0]
        return Pending(f"{what} of {self!r}", self._read, (text, read), (text.digest, read), self)

    def next_log_probs(self, text: Text, **sampling: Any) -> Any:
        """Return the log-probabilities of the next token, an array (V,): ``lm.read(text, "law")``."""
        return self.read(text, "law", **sampling)

    @batched
    def _read(self, items: list[tuple[Text, Read]]) -> list[Any]:
        return read_all(self, items)

    def _layer(self, layer: Any) -> int:
        """Return a layer as counted from the embeddings."""
        if isinstance(layer, bool) or not hasattr(type(layer), "__index__"):
            raise TypeError(f"a layer is a whole number, not {layer!r}")
        depth = self.depth
        if not -depth <= operator.index(layer) < depth:
            raise ValueError(f"{self!r} has the layers {-depth} to {depth - 1}, and {layer} is none of them")
        return operator.index(layer) % depth

    def _step(self, text: Text, ending: Ending, settings: dict[str, Any]) -> Step:
        draft = [settings.pop(name, None) for name in ("draft", "gamma")]
        return drafted(Step(self, text, ending, self._law(settings)), *draft)

    def _law(self, overrides: dict[str, Any]) -> Sampling:
        return replace(self.sampling, **overrides) if overrides else self.sampling
