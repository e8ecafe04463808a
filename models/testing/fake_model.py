"""What a `FakeServer` answers: completions, chats, tokens and rewards, as vLLM does."""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from .bigram import Floats, drawn, normalised, warped

Law: TypeAlias = Callable[[tuple[int, ...]], Floats]
_LEAST = -9999.0
_SAID: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "max_tokens": 16, "n": 1}


class Refused(Exception):
    """A request that is answered by an error."""

    def __init__(self, status: int, message: str, param: str | None = None) -> None:
        super().__init__(message)
        kind = "NotFoundError" if status == 404 else "BadRequestError"
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": status}}


@dataclass
class Writing:
    """A completion: its tokens, what was said of each, and why it ended."""

    tokens: list[int]
    log_probs: list[dict[int, float]]
    text: str
    finish_reason: str = "length"
    stop_reason: str | int | None = None


def default_reward(string: str) -> list[float]:
    """Return two logits that look random, and are those of the string."""
    digest = hashlib.sha256(string.encode()).digest()
    return [int.from_bytes(digest[i : i + 2], "big") / 2**14 - 2.0 for i in (0, 2)]


class FakeModel:
    """A language model with vLLM's conventions, and rewards; see `FakeServer` for the settings."""

    def __init__(
        self,
        law: Law,
        tokenizer: Any,
        *,
        eos: int,
        context: int,
        processed: bool,
        reward: Callable[[str], Sequence[float]],
        step_token: int | None,
    ) -> None:
        self.law, self.tokenizer, self.eos, self.context = law, tokenizer, eos, context
        self.processed, self.reward, self.step_token = processed, reward, step_token
        self._chance = np.random.default_rng(0)
        self._turn = threading.Lock()

    # Texts

    def completions(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Answer ``/v1/completions``."""
        said = _SAID | {name: value for name, value in asked.items() if value is not None}
        given = said["prompt"]
        prompts = [given] if isinstance(given, str) or not given or isinstance(given[0], int) else given
        choices: list[dict[str, Any]] = []
        read = 0
        for prompt in prompts:
            ids = tuple(self.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt)
            room = self._room(ids)
            read += len(ids)
            for child in range(said["n"]):
                echo = bool(said.get("echo"))
                most = min(said["max_tokens"], room)
                writing = self._write(ids, said, most, self._noise(said.get("seed"), child))
                choices.append(self._choice(len(choices), ids, writing, said, echo))
        written = sum(len(choice.get("token_ids", ())) for choice in choices)
        for choice in choices:
            if not said.get("return_token_ids"):
                choice.pop("token_ids"), choice.pop("prompt_token_ids")
        usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        return {"object": "text_completion", "choices": choices, "usage": usage}

    def chat(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Answer ``/v1/chat/completions``."""
        ids = tuple(self._chat_ids(asked))
        wanted = int(asked.get("top_logprobs") or 0)
        if wanted > 20:
            raise Refused(400, "top_logprobs must be at most 20", "top_logprobs")
        most = asked.get("max_completion_tokens") or asked.get("max_tokens") or self.context
        said = _SAID | {name: value for name, value in asked.items() if value is not None}
        said |= {"logprobs": wanted if asked.get("logprobs") else None}
        room = self._room(ids)
        choices: list[dict[str, Any]] = []
        written = 0
        for child in range(said["n"]):
            writing = self._write(ids, said, min(most, room), self._noise(said.get("seed"), child))
            written += len(writing.tokens)
            choices.append(
                {
                    "index": child,
                    "message": {"role": "assistant", "content": writing.text},
                    "logprobs": {"content": self._content(writing, wanted)} if asked.get("logprobs") else None,
                    "finish_reason": writing.finish_reason,
                }
            )
        usage = {"prompt_tokens": len(ids), "completion_tokens": written, "total_tokens": len(ids) + written}
        return {"object": "chat.completion", "choices": choices, "usage": usage}

    def _content(self, writing: Writing, wanted: int) -> list[dict[str, Any]]:
        """Return what a chat says of each token, with the best ones there."""
        content = []
        for token, law in zip(writing.tokens, writing.log_probs):
            best = sorted(law, key=lambda other: -law[other])[:wanted]
            content.append({**self._named(token, law), "top_logprobs": [self._named(other, law) for other in best]})
        return content

    def tokenize(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Answer ``/tokenize``."""
        if "messages" in asked:
            ids = self._chat_ids(asked)
        else:
            ids = self.tokenizer(asked["prompt"], add_special_tokens=asked.get("add_special_tokens", True))["input_ids"]
        return {"tokens": list(ids), "count": len(ids), "max_model_len": self.context}

    def detokenize(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Answer ``/detokenize``."""
        return {"prompt": self.tokenizer.decode(asked["tokens"])}

    # Rewards

    def pooling(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Answer ``/pooling``: scores of the steps of each text, or the vector of each."""
        data: list[Any] = []
        inputs = _inputs(asked)
        for given in inputs:
            ids = self.tokenizer(given)["input_ids"] if isinstance(given, str) else list(given)
            if asked.get("task") == "token_classify":
                ends = [i + 1 for i, token in enumerate(ids) if self.step_token in (token, None)]
                data.append([self._activated(self.tokenizer.decode(ids[:end]), asked) for end in ends])
            else:
                data.append(self._activated(self.tokenizer.decode(ids), asked))
        return _listed("pooling", [{"data": each} for each in data])

    def classify(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Answer ``/classify``."""
        probs = [self._activated(given, asked) for given in _inputs(asked)]
        data = [{"label": f"LABEL_{np.argmax(p)}", "probs": p, "num_classes": len(p)} for p in probs]
        return _listed("classify", data)

    def score(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Answer ``/score``: of each pair, the second of which may be many for one first."""
        one, two = _inputs(asked, "text_1"), _inputs(asked, "text_2")
        if len(one) == 1:
            one = one * len(two)
        logits = [self.reward(f"{a}\n{b}")[0] for a, b in zip(one, two, strict=True)]
        raw = asked.get("use_activation") is False
        return _listed("score", [{"score": x if raw else 1.0 / (1.0 + math.exp(-x))} for x in logits])

    def embeddings(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Answer ``/v1/embeddings``: unit vectors."""
        vectors = [np.array(self.reward(given)) for given in _inputs(asked)]
        return _listed("embedding", [{"embedding": (v / np.linalg.norm(v)).tolist()} for v in vectors])

    # What these have in common

    def _chat_ids(self, asked: dict[str, Any]) -> list[int]:
        on = bool(asked.get("continue_final_message"))
        begun = bool(asked.get("add_generation_prompt", not on))
        string = self.tokenizer.apply_chat_template(
            asked["messages"], tokenize=False, add_generation_prompt=begun, continue_final_message=on
        )
        ids: list[int] = self.tokenizer(string, add_special_tokens=False)["input_ids"]
        return ids

    def _room(self, ids: Sequence[int]) -> int:
        if not ids:
            raise Refused(400, "the prompt must not be empty", "prompt")
        if len(ids) >= self.context:
            message = f"This model's maximum context length is {self.context} tokens. Your request has {len(ids)}."
            raise Refused(400, message, "input_tokens")
        return self.context - len(ids)

    def _noise(self, seed: int | None, child: int) -> np.random.Generator:
        if seed is not None and not -(2**63) <= seed < 2**63:
            raise Refused(400, "seed must be a number of 64 bits", "seed")
        if seed is None or seed == -1:
            with self._turn:
                return np.random.default_rng(self._chance.integers(2**63))
        return np.random.default_rng((seed + child) % 2**64)

    def _logits(self, ids: tuple[int, ...]) -> Floats:
        with self._turn:  # a law may be a model that is for one thread
            return np.asarray(self.law(ids), float)

    def _write(self, ids: tuple[int, ...], said: dict[str, Any], most: int, noise: np.random.Generator) -> Writing:
        stops = said.get("stop") or []
        stops = [stops] if isinstance(stops, str) else stops
        ends = {self.eos, *(said.get("stop_token_ids") or [])}
        writing = Writing([], [], "")
        while len(writing.tokens) < most:
            logits = self._logits((*ids, *writing.tokens))
            law = warped(logits, said)
            token = drawn(law, said["temperature"] == 0, noise)
            told = law if self.processed else normalised(logits)
            writing.tokens.append(token)
            writing.log_probs.append(self._told(token, told, said))
            if token in ends:
                writing.finish_reason, writing.stop_reason = "stop", None if token == self.eos else token
                break
            writing.text = self.tokenizer.decode(writing.tokens, skip_special_tokens=True)
            found = [(at, stop) for stop in stops if (at := writing.text.find(stop)) >= 0]
            if found:
                at, stop = min(found)
                writing.text = writing.text[: at + len(stop) * bool(said.get("include_stop_str_in_output"))]
                writing.finish_reason, writing.stop_reason = "stop", stop
                break
        return writing

    def _told(self, token: int, law: Floats, said: dict[str, Any]) -> dict[int, float]:
        """Return what is said of one position: the token first, then those that were asked for, or the best."""
        others = said.get("logprob_token_ids") or self._best(law, int(said.get("logprobs") or 0))
        return {token: float(law[token])} | {int(other): float(law[other]) for other in others}

    def _best(self, law: Floats, n: int) -> list[int]:
        best: list[int] = np.argsort(-law, kind="stable")[:n].tolist()
        return best

    def _choice(
        self, index: int, ids: tuple[int, ...], writing: Writing, said: dict[str, Any], echo: bool
    ) -> dict[str, Any]:
        wanted = said.get("prompt_logprobs")
        if wanted is None and echo:
            wanted = said.get("logprobs")
        before: list[dict[int, float] | None] = []
        if wanted is not None:  # of the law itself, whatever is drawn from
            said_of = {"logprobs": wanted}
            laws = [normalised(self._logits(ids[:i])) for i in range(1, len(ids))]
            before = [None, *(self._told(ids[i + 1], law, said_of) for i, law in enumerate(laws))]
        tokens = [*(ids if echo else ()), *writing.tokens]
        told = [*(before if echo else ()), *writing.log_probs]
        as_ids = bool(said.get("return_tokens_as_token_ids"))
        choice = {
            "index": index,
            "text": (self.tokenizer.decode(ids) if echo else "") + writing.text,
            "finish_reason": writing.finish_reason,
            "stop_reason": writing.stop_reason,
            "token_ids": writing.tokens,
            "prompt_token_ids": list(ids),
            "logprobs": None,
            "prompt_logprobs": None,
        }
        if said.get("logprobs") is not None:
            choice["logprobs"] = {
                "tokens": [self._name(token, as_ids) for token in tokens],
                "token_logprobs": [None if at is None else _least(at[token]) for token, at in zip(tokens, told)],
                "top_logprobs": [
                    None if at is None else {self._name(token, as_ids): _least(x) for token, x in at.items()}
                    for at in told
                ],
            }
        if said.get("prompt_logprobs") is not None:
            choice["prompt_logprobs"] = [at and self._entries(at) for at in before]
        return choice

    def _entries(self, law: dict[int, float]) -> dict[str, Any]:
        return {
            str(token): {"logprob": _least(log_prob), "rank": 1, "decoded_token": self._name(token, False)}
            for token, log_prob in law.items()
        }

    def _name(self, token: int, as_id: bool) -> str:
        return f"token_id:{token}" if as_id else str(self.tokenizer.decode([token]))

    def _named(self, token: int, law: dict[int, float]) -> dict[str, Any]:
        name = self._name(token, False)
        return {"token": name, "logprob": _least(law[token]), "bytes": list(name.encode())}

    def _activated(self, string: str, asked: dict[str, Any]) -> list[float]:
        logits = np.array(self.reward(string), float)
        raw = asked.get("use_activation") is False
        numbers: list[float] = (logits if raw else np.exp(normalised(logits))).tolist()
        return numbers


def _least(log_prob: float) -> float:
    return max(log_prob, _LEAST)


def _inputs(asked: dict[str, Any], name: str = "input") -> list[Any]:
    given = asked[name]
    return [given] if isinstance(given, str) or (given and isinstance(given[0], int)) else list(given)


def _listed(kind: str, items: list[dict[str, Any]]) -> dict[str, Any]:
    return {"object": "list", "data": [{"index": i, "object": kind, **item} for i, item in enumerate(items)]}
