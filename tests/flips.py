"""Coins that are flipped by a model which counts what it is asked, and charges for it."""

from __future__ import annotations

from dataclasses import dataclass

import feynkac as fk


class Counted:
    """A model that charges three tokens for each draw, and remembers its calls and what it has charged."""

    def __init__(self):
        self.calls = self.tokens = 0

    def coin(self, p):
        return Flip(self, p)


@dataclass(frozen=True)
class Flip:
    """A request for a flip: all of one model share a call."""

    lm: Counted
    p: float

    @property
    def batch_key(self):
        return self.lm

    def sample_batch(self, requests, keys):
        self.lm.calls += 1
        self.lm.tokens += 3 * len(requests)
        fk.charge(model_calls=1, tokens_out=[3] * len(requests))
        return fk.dist.Bernoulli(0.5).sample_batch([fk.dist.Bernoulli(one.p) for one in requests], keys)

    def log_prob_batch(self, requests, values):
        return fk.dist.Bernoulli(0.5).log_prob_batch([fk.dist.Bernoulli(one.p) for one in requests], values)
