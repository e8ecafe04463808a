"""A server's answers without a server: requests go to the fake model in this process, through all but HTTP."""

from __future__ import annotations

from feynkac.models.served.completions import Completions
from feynkac.models.served.served_lm import ServedLM
from feynkac.models.testing import Bigram, FakeServer, Faults, tiny_tokenizer
from feynkac.ppl.cost import charge
from feynkac.ppl.errors import ServerError


class Direct:
    """A client whose requests are answered by a `FakeServer` that listens to nobody.

    Attributes:
        asked: what was posted, one list of bodies a call.
        server: what answers.
    """

    url = "http://nowhere"

    def __init__(self, server):
        self.server = server
        self.asked = []

    def get(self, path):
        return self.server.models()

    def post(self, path, payloads, *, weights=None, same_seed=True, refusals=False):
        self.asked.append([{**payload, "path": path} for payload in payloads])
        charge(requests=[1] * len(payloads))
        return [self._answer(path, payload, refusals) for payload in payloads]

    def _answer(self, path, payload, refusals):
        status, said = self.server.answer(path, payload)
        if status == 200:
            return said
        error = ServerError(f"status {status}: {said}", path, status, str(said))
        if refusals and status in (400, 422):
            return error
        raise error


def served(law=None, *, lacks=(), log_prob=None, context=512, mode="processed_logprobs", **settings):
    """A `ServedLM` over a fake model, and its client."""
    faults = Faults(lacks=lacks) if log_prob is None else Faults(lacks=lacks, log_prob=log_prob)
    client = Direct(FakeServer(law, context=context, logprobs_mode=mode, faults=faults))
    lm = ServedLM(Completions(client, None), settings.pop("tokenizer", tiny_tokenizer()), **settings)
    client.asked.clear()
    return lm, client


def few_tokens(lm_or_tokenizer=None, n=3, seed=1, scale=1.0):
    """A law of n letters and the end token, and these tokens, the end token last."""
    tokenizer = lm_or_tokenizer or tiny_tokenizer()
    letters = tokenizer.convert_tokens_to_ids(list("abcdefgh"[:n]))
    support = (*letters, tokenizer.eos_token_id)
    return Bigram(len(tokenizer), support, seed=seed, scale=scale), support
