"""A chat behind an API of strings: whole answers, and nothing of their tokens or log-probabilities."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NoReturn

from ...ppl.cost import charge, rows
from ...ppl.errors import CannotScore, ContextOverflow, ServerError, TokenizerMismatch, Unsupported, UnusableAnswer
from ...ppl.keys import Keys
from ...ppl.model import Draws
from ...ppl.sites import short
from ...ppl.values.canonical import form
from ...ppl.values.reals import whole_number
from ...ppl.values.recording import current, served
from ..language.drawing.sampling import Sampling
from ..language.host import Offer
from ..language.texts.text import End, FinishReason, Reading, Text
from ..language.writing import Message
from .client import Client, client_of, too_long
from .transport import used

_BYTES = "utf-8"
"""The fingerprint of texts whose tokens are bytes."""
_MOST_SHOWN = 20
_NO_ANSWER = ("content_filter", "tool_calls", "function_call", "error")
"""How answers end that somebody cut off, or that are none."""
_NOTHING = -9999.0
_REMEDY = (
    "an API of strings draws whole answers alone (lm.complete) and gives no log-probabilities: use fk.models.ServerLM, "
    "where the server gives token ids, or a model that runs here (TransformersLM)"
)


class _Refused:
    """What other language models can, and this one refuses by name."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, lm: Any, owner: type) -> Callable[..., NoReturn]:
        def refuse(*_: Any, **__: Any) -> NoReturn:
            raise Unsupported(f"{lm!r} has no lm.{self._name}: {_REMEDY}")

        return refuse


class ChatLM:
    """A language model behind ``/v1/chat/completions``, of which strings are all that is known.

    Its one step is ``lm.complete``: the whole answer to a prompt or to messages. What comes of it are texts, as from
    any model; their tokens are the bytes of UTF-8, as an API of strings has no others. Log-probabilities are not known:
    programs run under engines that need none (best of N, self-consistency, SMC and searches that rank by rewards), and
    everything else refuses by name. A conversation of several answers is one of several prompts, each with what was
    said so far. `Judge` and `Grader` read the first token of an answer by ``top_logprobs``, where the server has them.

    Answers are asked for with a seed of the particle's key. Few servers promise that equal seeds give equal answers:
    unless this one is said to, an answer that is late or cut short is an error, as asking again would favour short
    ones, and a run cannot be repeated but by its journal.

    Args:
        url: of the server, such as ``"https://api.openai.com/v1"``, or a `Client`, which has limits of its own. A rate
            that the server limits is waited for, as ``Retry-After`` asks.
        model: what the server calls the model.
        sampling: the default law; every step may override it.
        seeded: whether the server promises equal answers to equal seeds.
        extra: fields that every request has besides; None takes one away, as in ``{"seed": None}``.
        api_key: what lets us in; by default that of the environment, see `Client`. It is neither shown nor saved.
        path: where chats are, below the URL.

    >>> import feynkac as fk
    >>> from feynkac.models.testing import FakeServer
    >>> @fk.program
    ... async def answer(lm, question):
    ...     text = await fk.sample("answer", lm.complete(lm.prompt(question), max_tokens=8))
    ...     await fk.factor("short", -0.1 * len(str(text)))
    ...     return text
    >>> with FakeServer() as server:
    ...     lm = ChatLM(server.url, "fake")
    ...     posterior = fk.infer(answer(lm, "Who?"), fk.BestOfN(4), seed=0)
    >>> len(posterior.values), posterior.best().prompt
    (4, 'Who?')
    """

    chats: ClassVar[bool] = True
    offers: ClassVar[frozenset[Offer]] = frozenset()
    context: ClassVar[None] = None

    append, cut, encode, spelled = _Refused(), _Refused(), _Refused(), _Refused()
    tokens, until, line, sentence, next_token = _Refused(), _Refused(), _Refused(), _Refused(), _Refused()
    score, log_mass, read, next_log_probs, together = _Refused(), _Refused(), _Refused(), _Refused(), _Refused()

    def __init__(
        self,
        url: str | Client,
        model: str,
        *,
        sampling: Sampling | None = None,
        seeded: bool = False,
        extra: Mapping[str, Any] | None = None,
        api_key: str | None = None,
        path: str = "/v1/chat/completions",
    ) -> None:
        self.client = client_of(url, api_key)
        self.identity = model
        self.sampling = sampling or Sampling()
        self.seeded = seeded
        self._extra = dict(extra or {})
        self._path = path

    def __repr__(self) -> str:
        return f"<ChatLM {self.identity} at {self.client.url}>"

    @property
    def tokenizer(self) -> NoReturn:
        """Raise Unsupported: an API of strings keeps its tokens to itself."""
        raise Unsupported(f"{self!r} has no lm.tokenizer: {_REMEDY}")

    def version(self) -> int:
        """Return a number that stays, as a server does not tell of changes."""
        return 0

    def remedy(self, offer: Offer) -> str:
        """Return what to do where something is not offered."""
        return _REMEDY

    def prompt(self, prompt: str | Sequence[Message]) -> Text:
        """Return a text with an empty response: to a user's message, or to messages, whose contents may be texts.

        Raises TypeError for what is neither, ValueError for none.
        """
        if isinstance(prompt, str):
            said = [{"role": "user", "content": prompt}]
        else:
            said = [_message(self, message) for message in prompt]
        if not said:
            raise ValueError(f"{self!r} answers a message or several, not none")
        string = prompt if isinstance(prompt, str) else "\n\n".join(f"{m['role']}: {m['content']}" for m in said)
        known = json.dumps(said, ensure_ascii=False).encode(errors="replace")
        return Text(self.identity, string, tuple(known), lm=self, fingerprint=_BYTES)

    def attach(self, text: Text) -> Text:
        """Return an equal text that belongs to this model: one that was loaded, or one of another chat.

        Raises TokenizerMismatch for a text of a model of another kind.
        """
        if not isinstance(text, Text):
            raise TypeError(f"{self!r} goes on from a text, such as lm.prompt('Who?'), not from {short(text, 80)}")
        if text.fingerprint != _BYTES:
            raise TokenizerMismatch(
                f"{text!r} is of {text.identity}, and no chat: use lm.prompt(text.prompt), or messages that say it"
            )
        return text if text.lm is self else replace(text, identity=self.identity, lm=self)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the string of some bytes."""
        return bytes(tokens).decode(errors="replace")

    def complete(self, text: Text, *, max_tokens: int = 256, **sampling: Any) -> Answer:
        """Return the kernel of the answer, of so many of the server's tokens at most.

        A text that was cut off there is not finished. It has no other end, as nothing can go on from a part of an
        answer. Keywords are those of `Sampling`; servers other than vLLM may not know ``top_k`` and ``min_p``.
        """
        law = replace(self.sampling, **sampling) if sampling else self.sampling
        return Answer(self, self.attach(text), whole_number("max_tokens", max_tokens), law)

    def first_tokens(self, prompts: Sequence[Sequence[Message]]) -> list[dict[str, float]]:
        """Return the log-probabilities of the most probable first tokens of answers, by how they are spelled.

        Raises UnusableAnswer where the server does not tell them.
        """
        shape = {"max_tokens": 1, "temperature": 1.0, "top_p": 1.0, "logprobs": True, "top_logprobs": _MOST_SHOWN}
        payloads = [self._payload({"messages": list(prompt), **shape}) for prompt in prompts]
        choices = self._post(payloads, same_seed=True)[0]
        return [self._shown(choice) for choice in choices]

    @property
    def journal_key(self) -> Any:
        """What tells it from other models in a journal: where it is, what it is called, and what is always asked."""
        return (self.client.url, self._path, self.identity, self._extra)

    def answers(self, wanted: Sequence[Answer], seeds: Sequence[int]) -> list[tuple[str, FinishReason | None]]:
        """Return what the server answers, all requests at once, each with a seed of its own, and whether it ended."""
        payloads = []
        for request, seed in zip(wanted, seeds):
            law = request.sampling
            shape = {"messages": json.loads(bytes(request.text.prompt_tokens)), "max_tokens": request.max_tokens}
            shape |= {"temperature": float(law.temperature), "seed": seed}
            shape |= {"top_p": 1.0 if law.top_p is None else float(law.top_p)}
            shape |= {} if law.top_k is None else {"top_k": int(law.top_k)}
            shape |= {} if law.min_p is None else {"min_p": float(law.min_p)}
            payloads.append(self._payload(shape))
        choices, drawn = self._post(payloads, same_seed=self.seeded)
        charge(tokens_out=drawn)
        return [self._answered(choice) for choice in choices]

    def _payload(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        said = {"model": self.identity, **fields, **self._extra}
        return {name: value for name, value in said.items() if value is not None}

    def _post(self, payloads: list[dict[str, Any]], *, same_seed: bool) -> tuple[list[Mapping[str, Any]], list[int]]:
        """Return the one choice of each answer, and the tokens drawn for it. What was read and drawn is charged."""
        answers = self.client.post(self._path, payloads, same_seed=same_seed, refusals=True)
        choices, read, drawn = [], [], []
        for answer in answers:
            if isinstance(answer, ServerError):
                if too_long(answer):
                    raise ContextOverflow(f"a prompt is too long for {self!r}: {answer}") from answer
                raise answer
            said = answer.get("choices") if isinstance(answer, Mapping) else None
            if not isinstance(said, list) or len(said) != 1 or not isinstance(said[0], Mapping):
                self._unusable(f"there is not one choice in {short(answer, 200)}")
            choices.append(said[0])
            new, out = used(answer)
            drawn.append(out)
            read.append(new + out)
        charge(model_calls=1, tokens_in=read)
        return choices, drawn

    def _answered(self, choice: Mapping[str, Any]) -> tuple[str, FinishReason | None]:
        message = choice.get("message")
        content = message.get("content", 0) if isinstance(message, Mapping) else 0
        if not isinstance(content, str | None):
            self._unusable(f"there is no content in {short(choice, 200)}")
        reason = choice.get("finish_reason")
        if reason in _NO_ANSWER:
            self._unusable(f"an answer ended by {reason!r}, so that it is not the whole one of the model")
        string = (content or "").encode(errors="replace").decode()
        return string, None if reason == "length" else "eos"

    def _shown(self, choice: Mapping[str, Any]) -> dict[str, float]:
        said = ((choice.get("logprobs") or {}).get("content") or [{}])[0].get("top_logprobs")
        if not said:
            self._unusable("there are no top_logprobs of the answer's first token: a judge needs a model that has them")
        shown: dict[str, float] = {}
        for entry in said:
            number = entry.get("logprob")
            if type(number) not in (int, float) or math.isnan(number) or number > 1e-3:
                self._unusable(f"a log-probability is {number!r}")
            shown[entry["token"]] = -math.inf if number <= _NOTHING else float(number)
        return shown

    def _unusable(self, what: str) -> NoReturn:
        raise UnusableAnswer(f"{self!r}: {what}")


@dataclass(frozen=True)
class Answer:
    """A request for a whole answer: a kernel over texts, whose log-probabilities are not known.

    Made by ``ChatLM.complete``. A finished text gives itself, with no request. Raises Unsupported for a text with a
    part of an answer.
    """

    lm: ChatLM
    text: Text
    max_tokens: int
    sampling: Sampling
    expensive: ClassVar[bool] = True
    journalled: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.text.steps and not self.text.finished:
            raise Unsupported(
                f"{self.text!r} was cut off at its most tokens, and {self.lm!r} cannot go on from there: raise "
                "max_tokens=, or stop at texts that are not finished"
            )

    @property
    def batch_key(self) -> Hashable:
        """All answers of one model share a wave of requests."""
        return (Answer, id(self.lm))

    @property
    def journal_key(self) -> Any:
        """All that its law depends on: the model, the messages and the settings."""
        return (self.lm, bytes(self.text.prompt_tokens), self.max_tokens, self.sampling)

    @property
    def fingerprint(self) -> Hashable:
        """The messages and the settings."""
        return (self.text.digest, self.max_tokens, self.sampling)

    def __repr__(self) -> str:
        return f"<answer of {self.lm.identity} to {short(self.text.prompt, 40)}>"

    def sample_batch(self, requests: Sequence[Answer], keys: Keys) -> Draws:
        """Draw an answer for each request, with a seed of its own key; no log-probabilities come with them."""
        going = [i for i, request in enumerate(requests) if not request.text.finished]
        texts = [request.text for request in requests]

        def make(places: list[int]) -> Sequence[tuple[str, FinishReason | None]]:
            mine = [going[place] for place in places]
            return self.lm.answers([requests[i] for i in mine], [int(keys[i]) >> 2 for i in mine])

        if going:
            with rows(going):
                if current() is None:
                    drawn = make(list(range(len(going))))
                else:
                    drawn = served("draw", [form((requests[i], int(keys[i]))) for i in going], make, going)
            for i, (string, reason) in zip(going, drawn):
                texts[i] = requests[i].ended(string, reason)
        return Draws(texts, None)

    def ended(self, string: str, reason: FinishReason | None) -> Text:
        """Return the text with an answer."""
        known = string.encode()
        return replace(
            self.text,
            steps=(string,),
            finish_reason=reason,
            reading=Reading(raw=string),
            ends=(End(len(known), None, len(string)),),
            _tokens=tuple(known),
        )

    def log_prob_batch(self, requests: Sequence[Answer], values: Sequence[Any]) -> NoReturn:
        """Raise CannotScore: an observed, forced or proposed answer has no log-probability that is known."""
        raise CannotScore(f"{self!r} cannot score an answer that is given: {_REMEDY}")

    def fits(self, value: Any) -> bool:
        """Return whether a value is a text."""
        return isinstance(value, Text)


def _message(lm: ChatLM, message: Any) -> dict[str, str]:
    if not (isinstance(message, Mapping) and {"role", "content"} <= message.keys()):
        raise TypeError(f"{lm!r} answers a string or messages with a role and a content, not {short(message, 80)}")
    role, content = message["role"], message["content"]
    if not (isinstance(role, str) and isinstance(content, str | Text)):
        raise TypeError(f"{lm!r} reads contents that are strings or texts, not {short(content, 80)}")
    if more := message.keys() - {"role", "content"}:
        raise TypeError(f"{lm!r} reads role and content of a message, and not its {', '.join(sorted(map(str, more)))}")
    return {"role": role, "content": str(content)}
