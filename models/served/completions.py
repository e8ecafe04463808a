"""Requests to a server that speaks OpenAI's ``/v1/completions`` as vLLM extends it: token ids in, token ids out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from ...ppl.errors import ContextOverflow, ServerError, Unsupported, UnusableAnswer
from ...ppl.sites import short
from ..language.drawing.sampling import Sampling
from .client import Client, too_long
from .transport import Draw, Drawn, Scored, as_log_prob, spelled, used

_PATH = "/v1/completions"
_NAMED = "token_id:"
_STOPS = 4
"""Most stop strings of a request. They save tokens and decide nothing, so that the others can be left out."""
_NEUTRAL = {
    "n": 1,
    "stream": False,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "return_token_ids": True,
    "return_tokens_as_token_ids": True,
}
"""What is the same in all requests; said, since a server's defaults are those of the model's generation_config."""


class Completions:
    """A `Transport` to a server by its ``/v1/completions``.

    Args:
        client: what speaks to the server.
        model: what the server calls the model; None where it has only one.

    Attributes:
        seeded: whether a request may be sent again although its loss may depend on what was drawn, as equal seeds give
            equal draws.
        root: what the server says that the model was loaded from; None where it does not say.

    Raises ServerError where the server has no such model, or several and none is named.
    """

    def __init__(self, client: Client, model: str | None) -> None:
        self.client = client
        self.where = client.url
        self.seeded = True
        self.named = model is not None
        known = {str(entry.get("id")): entry for entry in _entries(client.get("/v1/models"), self.where)}
        if model is None and len(known) == 1:
            [model] = known
        if model is None or model not in known:
            asked = "no model= was given" if model is None else f"there is no model {model!r}"
            served = ", ".join(map(repr, known)) or "none"
            raise ServerError(f"{self.where}: {asked}, and it serves {served}", self.where)
        self.identity = model
        length = known[model].get("max_model_len")
        self.context: int | None = length if isinstance(length, int) else None
        self.root: str | None = known[model].get("root")

    def draw(self, wanted: Sequence[Draw]) -> list[Drawn]:
        """Draw tokens, each request from its own seed."""
        payloads = [self._payload(request) for request in wanted]
        weights = [len(request.history) + request.most for request in wanted]
        return [self._drawn(request, answer) for request, answer in zip(wanted, self._post(payloads, weights))]

    def score(self, histories: Sequence[tuple[int, ...]]) -> list[Scored]:
        """Score given histories under the model's own law."""
        fixed = {"model": self.identity, **_NEUTRAL, **spelled(Sampling())}
        payloads = [
            {**fixed, "prompt": list(tokens), "max_tokens": 0, "echo": True, "logprobs": 0} for tokens in histories
        ]
        answers = self._post(payloads, [len(tokens) for tokens in histories])
        return [self._scored(tokens, answer) for tokens, answer in zip(histories, answers)]

    def tokenize(self, string: str) -> tuple[int, ...] | None:
        """Return the server's own tokens of a string; None where it does not say."""
        payload = {"model": self.identity, "prompt": string, "add_special_tokens": False}
        try:
            answer = self.client.post("/tokenize", [payload])[0]
        except ServerError as error:
            if error.status in (400, 404, 405, 422, 501):
                return None
            raise
        tokens = answer.get("tokens") if isinstance(answer, Mapping) else None
        if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
            return None
        return tuple(tokens) or None

    def _payload(self, request: Draw) -> dict[str, Any]:
        payload = {
            "model": self.identity,
            **_NEUTRAL,
            "prompt": list(request.history),
            "max_tokens": request.most,
            "seed": request.seed,
            **spelled(request.sampling),
            "stop": list(request.stops[:_STOPS]),
            "stop_token_ids": list(request.ends),
            "logprobs": request.top,
        }
        if request.allowed is not None:
            payload["allowed_token_ids"] = list(request.allowed)
        if request.shown:
            payload["logprob_token_ids"] = list(request.shown)
        return payload

    def _post(self, payloads: list[dict[str, Any]], weights: list[int]) -> list[Any]:
        answers = self.client.post(_PATH, payloads, weights=weights, same_seed=self.seeded, refusals=True)
        for answer in answers:
            if isinstance(answer, ServerError):
                if too_long(answer):
                    raise ContextOverflow(f"a text is too long for the server: {answer}") from answer
                raise Unsupported(str(answer)) from answer
        return answers

    def _drawn(self, request: Draw, answer: Any) -> Drawn:
        choice, told = self._choice(answer)
        tokens = choice.get("token_ids")
        if not isinstance(tokens, list) or not tokens or any(type(token) is not int for token in tokens):
            self._unusable(
                f"token_ids are {short(tokens, 80)}: a server must say what it drew by return_token_ids, as vLLM does; "
                "an API of strings serves by fk.models.ChatLM"
            )
        log_probs = told.get("token_logprobs")
        if log_probs is not None:
            log_probs = [self._number(number) for number in log_probs]
            if len(log_probs) != len(tokens):
                self._unusable(f"there are {len(log_probs)} log-probabilities for {len(tokens)} tokens")
        reason = choice.get("finish_reason")
        if reason not in ("stop", "length"):
            self._unusable(f"a draw ended by {reason!r}, so that what is lost may have depended on what was drawn")
        by_string = isinstance(choice.get("stop_reason"), str) or (bool(request.stops) and "stop_reason" not in choice)
        stopped = reason == "stop" and not by_string
        shown = self._shown(told)
        lacks = [token for token in request.shown if token not in shown]
        if lacks:
            self._unusable(f"there are no log-probabilities of the tokens {lacks[:8]} that logprob_token_ids asks for")
        return Drawn(tokens, log_probs, stopped, shown, sum(used(answer)))

    def _shown(self, told: Mapping[str, Any]) -> dict[int, float]:
        first = (told.get("top_logprobs") or [None])[0] or {}
        named = {name.removeprefix(_NAMED): number for name, number in first.items() if name.startswith(_NAMED)}
        return {int(name): self._number(number) for name, number in named.items() if name.isdecimal()}

    def _scored(self, tokens: tuple[int, ...], answer: Any) -> Scored:
        log_probs = self._choice(answer)[1].get("token_logprobs")
        if not isinstance(log_probs, list) or len(log_probs) != len(tokens):
            count = len(log_probs) if isinstance(log_probs, list) else "no"
            self._unusable(f"there are {count} log-probabilities for the {len(tokens)} tokens of an echo")
        return Scored([self._number(number) for number in log_probs[1:]], sum(used(answer)))

    def _choice(self, answer: Any) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """Return the one choice of an answer, and what it tells of log-probabilities."""
        choices = answer.get("choices") if isinstance(answer, Mapping) else None
        if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], Mapping):
            self._unusable(f"there is not one choice in {short(answer, 200)}")
        if answer.get("model", self.identity) != self.identity:
            self._unusable(f"the answer is by {answer['model']!r}, not by {self.identity!r}: check the URL")
        told = choices[0].get("logprobs")
        return choices[0], told if isinstance(told, Mapping) else {}

    def _number(self, number: Any) -> float:
        """Return a log-probability."""
        return as_log_prob(number, self.where + _PATH)

    def _unusable(self, what: str) -> NoReturn:
        raise UnusableAnswer(f"{self.where}{_PATH}: {what}")


def _entries(answer: Any, where: str) -> list[Mapping[str, Any]]:
    entries = answer.get("data") if isinstance(answer, Mapping) else None
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise ServerError(f"{where}/v1/models lists no models, but {short(answer, 200)}: check the URL", where)
    return entries
