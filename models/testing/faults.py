"""What goes wrong at a `FakeServer`."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

AS_IT_IS: Final = "as it is"


@dataclass
class Faults:
    """What goes wrong at a `FakeServer`, to be changed while it runs. Only what is posted meets any of it.

    Attributes:
        unavailable: part of the requests that are answered by status 503.
        reset: part of them whose connection is closed without an answer.
        half: part of them whose answer is cut off in the middle.
        limited: how many requests, from the next on, are answered by status 429.
        retry_after: what these are told to wait, as the header says it.
        seconds: before every answer.
        seconds_per_token: before an answer, for each token drawn.
        dies_at: the request, counted from 1, at which the server stops.
        back_after: seconds after which it is there again; None is never.
        lacks: what it does not know, and ignores if it is asked for: a field of an answer ("token_ids", "logprobs",
            "prompt_logprobs", "usage", "max_model_len"), one of a request ("seed", "top_k", "echo",
            "allowed_token_ids", "logprob_token_ids", …), or a path ("/tokenize"), which is not found.
        log_prob: stands for the first log-probability of every completion, such as −9999.0, None or NaN.
        reorders: whether lists come in reverse, with their index.
        seed: of what is left to chance here.
    """

    unavailable: float = 0.0
    reset: float = 0.0
    half: float = 0.0
    limited: int = 0
    retry_after: str | None = None
    seconds: float = 0.0
    seconds_per_token: float = 0.0
    dies_at: int | None = None
    back_after: float | None = None
    lacks: Collection[str] = ()
    log_prob: Any = AS_IT_IS
    reorders: bool = False
    seed: int = 0
