"""Speaking to a server: everything at once, again where it got lost, and a clear error where it cannot be."""

import pytest

from feynkac.models.served.client import Client
from feynkac.models.testing import FakeServer, Faults
from feynkac.ppl.cost import Ledger, recording

KEY = "sk-very-secret"


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    for name in ("FEYNKAC_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def asked(n, **settings):
    defaults = {"prompt": [5, 6], "max_tokens": 3, "logprobs": 0, "return_token_ids": True}
    return [{**defaults, "seed": i, **settings} for i in range(n)]


def drawn(answers):
    return [answer["choices"][0]["token_ids"] for answer in answers]


def quick(server, **settings):
    return Client(server.url, **{"backoff": 0.001, **settings})


@pytest.mark.parametrize(
    "faults",
    [Faults(unavailable=0.2), Faults(reset=0.2), Faults(half=0.2), Faults(limited=20, retry_after="0")],
    ids=["503", "reset", "half", "429"],
)
def test_what_is_lost_is_sent_again_with_its_seed(faults):
    with FakeServer() as server:
        expected = drawn(quick(server).post("/v1/completions", asked(60)))
        assert len({*map(tuple, expected)}) > 50
        server.seeds.clear()
        server.faults = faults
        client = quick(server, retries=12)
        with recording(Ledger()) as ledger:
            assert drawn(client.post("/v1/completions", asked(60))) == expected
        assert 60 < len(server.seeds) == ledger.total().requests
        assert {*server.seeds} == {*range(60)}
        client.close()
