"""A language model that draws whole steps and scores given tokens, and says neither laws nor hidden states."""

from __future__ import annotations

import numpy as np

from feynkac.models.language.model import LanguageModel
from feynkac.models.language.texts.tree import Node, Tree
from feynkac.models.testing import tiny_tokenizer
from feynkac.ppl import keys as _keys


class WholeSteps(LanguageModel):
    """A chain of tokens with a random table, as a model behind a server would be: one request a step.

    Attributes:
        law: log-probabilities (V, V) of a token after another.
        requests: steps and texts that it was asked about, one wave an entry.
    """

    def __init__(self, seed=0, **settings):
        tokenizer = tiny_tokenizer()
        size = len(tokenizer)
        super().__init__(
            tokenizer, Tree(Node), name=f"whole-steps-{seed}", vocab_size=size,
            eos=frozenset({tokenizer.eos_token_id}), **settings,
        )  # fmt: skip
        logits = np.random.default_rng(seed).normal(size=(size, size)) * 1.5
        self.law = logits - np.logaddexp.reduce(logits, axis=1)[:, None]
        self.requests = []

    def _log_probs(self, node, sampling):
        scaled = self.law[node.tokens()[-1]] / sampling.temperature
        return scaled - np.logaddexp.reduce(scaled)

    def draw(self, runs, keys, tally):
        """Draw each step by itself, from uniform numbers of its own key."""
        self.requests.append(len(runs))
        tally.calls += 1
        for i, run in enumerate(runs):
            tally.tokens_in[i] += 0 if run.over else run.node.length
            for offset in range(run.request.ending.max_tokens):
                if run.over:
                    break
                log_p = self._log_probs(run.node, run.request.sampling)
                u = _keys.uniform(keys[[i]], 1, offset=offset)[0, 0]
                token = min(int(np.searchsorted(np.exp(log_p).cumsum(), u, side="right")), self.vocab_size - 1)
                run.advance(token, float(log_p[token]))
                tally.tokens_out[i] += 1

    def forced(self, nodes, starts, laws, owners, tally, *, onward=False):
        """Score each text by itself."""
        self.requests.append(len(nodes))
        tally.calls += 1
        result = np.zeros(len(nodes))
        for i, (node, start, (sampling, _)) in enumerate(zip(nodes, starts, laws)):
            tally.tokens_in[owners[i]] += node.length
            for at in range(start, node.length):
                result[i] += self._log_probs(node.ancestor(at), sampling)[node.tokens()[at]]
        return result
