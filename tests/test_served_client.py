"""Speaking to a server: everything at once, again where it got lost, and a clear error where it cannot be."""

import asyncio
import copy
import os
import pickle
import signal
import ssl
import subprocess
import sys
import threading
import time

import cloudpickle
import pytest

import feynkac as fk
from feynkac.models.served.client import Client
from feynkac.models.served.gate import Gate
from feynkac.models.testing import FakeServer, Faults
from feynkac.ppl.cost import Ledger, recording
from feynkac.ppl.errors import ServerError

KEY = "sk-very-secret"


pytestmark = pytest.mark.usefixtures("no_keys")


@pytest.fixture(scope="module")
def running():
    with FakeServer() as server:
        yield server


@pytest.fixture
def server(running):
    running.faults = Faults()
    for kept in (running.requests, running.seeds, running.paths):
        kept.clear()
    running.most_open = running.aborted = 0
    return running


def asked(n, **settings):
    defaults = {"prompt": [5, 6], "max_tokens": 3, "logprobs": 0, "return_token_ids": True}
    return [{**defaults, "seed": i, **settings} for i in range(n)]


def draw(client, n, settings=None, **options):
    answers = client.post("/v1/completions", asked(n, **settings or {}), **options)
    return [answer["choices"][0]["token_ids"] for answer in answers]


def quick(server, **settings):
    return Client(server.url, **{"backoff": 0.001, **settings})


def soon(condition):
    """Wait for what other threads are about to do."""
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.mark.parametrize(
    "faults",
    [Faults(unavailable=0.2), Faults(reset=0.2), Faults(half=0.2), Faults(limited=20, retry_after="0")],
    ids=["503", "reset", "half", "429"],
)
def test_what_is_lost_is_sent_again_with_its_seed(server, faults):
    expected = draw(quick(server), 60)
    assert len({*map(tuple, expected)}) > 50
    server.seeds.clear()
    server.faults = faults
    with recording(Ledger()) as ledger:
        assert draw(quick(server, retries=12), 60) == expected
    assert 60 < len(server.seeds) == ledger.total().requests
    assert {*server.seeds} == {*range(60)}


def test_requests_are_charged_to_their_rows(server):
    from feynkac.ppl.cost import assign

    server.faults.limited = 2
    with recording(Ledger(3)) as ledger:
        assign([2, 0, 2])
        draw(quick(server, limit=1), 3)
    assert [ledger.of(i).requests for i in range(3)] in ([2, 0, 3], [1, 0, 4])
    assert ledger.total().requests == 5


def test_a_server_that_never_answers_is_an_error_that_says_what_to_do(server):
    server.faults.unavailable = 1.0
    with pytest.raises(ServerError, match=r"status 503, 3 times: .*overloaded.*check the URL") as caught:
        draw(quick(server, retries=2), 1)
    assert (caught.value.url, caught.value.status) == (server.url + "/v1/completions", 503)
    assert "overloaded" in caught.value.body
    assert len(server.requests) == 3
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.url, again.status, again.body) == (str(caught.value), *list(vars(caught.value).values()))


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://there-is-no-such-host.invalid"], ids=["port", "name"])
def test_a_server_that_is_not_there(url):
    with pytest.raises(ServerError, match=r"did not get through \(.+\), 2 times; check the URL"):
        Client(url, retries=1, backoff=0.001).get("/v1/models")


def test_what_the_server_does_not_take_is_not_sent_again(server):
    client = quick(server)
    with pytest.raises(ServerError, match="maximum context length") as caught:
        draw(client, 1, {"prompt": [5] * 600})
    assert caught.value.status == 400
    assert len(server.requests) == 1
    with pytest.raises(ServerError, match=r"model `other` does not exist.*check the URL, model="):
        draw(client, 1, {"model": "other"})
    with pytest.raises(ServerError, match="Not Found"):
        client.post("/nowhere", [{}])
    assert len(server.requests) == 3
    good, bad = client.post("/v1/completions", [asked(1)[0], {"prompt": [5] * 600}], refusals=True)
    assert len(good["choices"]) == 1
    assert (type(bad), bad.status) == (ServerError, 400)
    server.faults.half = 1.0  # a refusal that was cut off is none
    with pytest.raises(ServerError, match="by half"):
        client.post("/v1/completions", [{"prompt": [5] * 600}], refusals=True)


def test_one_failure_cancels_what_is_under_way(server):
    server.faults.seconds = 30.0
    begun = time.monotonic()
    with pytest.raises(ServerError, match="context"):
        quick(server).post("/v1/completions", [*asked(5), {"prompt": [5] * 600}])
    assert time.monotonic() - begun < 5
    soon(lambda: server.aborted == 5)


def test_an_interrupt_cancels_what_is_under_way(server):
    server.faults.seconds = 30.0

    def interrupt():
        soon(lambda: len(server.requests) == 8)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=interrupt)
    thread.start()
    with recording(Ledger()) as ledger, pytest.raises(KeyboardInterrupt):
        draw(quick(server), 8)
    signal.signal(signal.SIGINT, before)
    thread.join()
    assert ledger.total().requests == 8
    soon(lambda: server.aborted == 8)


def test_late_answers_are_asked_for_again_with_more_time_and_the_same_seed(server):
    server.faults.seconds_per_token = 0.01
    settings = {"max_tokens": 12, "stop": ["e", "a", "o", " "]}
    slow = draw(quick(server), 12, settings)
    lengths = [len(tokens) for tokens in slow]
    assert min(lengths) < 5 < 8 < max(lengths)  # so that the time-out of five tokens tells
    server.seeds.clear()
    assert draw(quick(server, timeout=0.05), 12, settings) == slow
    assert len(server.seeds) > 12
    with pytest.raises(ServerError, match=r"not answered in 0\.05 s.*promises no seeds.*raise timeout"):
        draw(quick(server, timeout=0.05), 12, settings, same_seed=False)


def test_without_seeds_half_an_answer_is_an_error_and_a_reset_is_not(server):
    server.faults = Faults(reset=0.2)
    assert len(draw(quick(server, retries=12), 30, same_seed=False)) == 30
    server.faults = Faults(half=1.0)
    with pytest.raises(ServerError, match=r"by half.*promises no seeds"):
        draw(quick(server), 1, same_seed=False)


def test_all_wait_as_long_as_the_server_asks(server):
    server.faults = Faults(limited=1, retry_after="0.05")
    begun = time.monotonic()
    draw(quick(server, limit=1), 4)
    assert time.monotonic() - begun > 0.05
    assert len(server.requests) == 5
    server.faults = Faults(limited=1, retry_after="Fri, 31 Dec 2060 23:59:59 GMT")
    with pytest.raises(ServerError, match=r"status 429 and asks to wait [\d,]+ s.*come back then"):
        draw(quick(server), 1)


def test_a_limited_rate_is_no_failure_while_others_get_through(server):
    """Two of three requests are turned away, each far more often than it may be sent again."""
    fates = iter(["answered", "limited", "limited"] * 200)
    honest = server.fate
    server.fate = lambda path, body: (honest(path, body), next(fates))[1]
    try:
        assert len(draw(quick(server, retries=3, limit=4), 60)) == 60
    finally:
        del server.fate
    assert len(server.requests) > 150


def test_no_more_than_the_limit_go_at_once():
    with FakeServer(faults=Faults(seconds=0.002)) as server:
        client = quick(server, limit=5)
        draw(client, 40)
        assert server.most_open == 5
        client.close()
        soon(lambda: server.open == 0)
        assert len(draw(client, 2)) == 2  # it opens new ones


def test_a_gate_counts_requests_and_tokens_and_keeps_the_order():
    async def main():
        gate, inside, most, order = Gate(3, 10), [], [], []

        async def pass_through(i, weight):
            async with gate.through(weight):
                inside.append(weight)
                order.append(i)
                most.append((len(inside), sum(inside)))
                try:
                    await asyncio.sleep(0.001)
                finally:
                    inside.remove(weight)

        weights = [4, 4, 4, 25, 1, 1, 1, 1, 9, 9]
        tasks = [asyncio.ensure_future(pass_through(i, weight)) for i, weight in enumerate(weights)]
        await asyncio.sleep(0)
        tasks[2].cancel()  # waits, and is gone
        tasks[0].cancel()  # is inside
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(x) for x in done if x is not None] == [asyncio.CancelledError] * 2
        assert order == [0, 1, *range(3, 10)]
        assert max(n for n, _ in most) == 3
        assert max(total for _, total in most if total != 25) <= 10
        assert (1, 25) in most  # more than may be inside goes alone

    asyncio.run(main())


def test_threads_share_a_client(server):
    client = quick(server)
    expected = draw(client, 20)
    found = [None] * 4

    def work(i):
        found[i] = draw(client, 20)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_has_connections_of_its_own(server):
    code = """
import os, sys, warnings
from feynkac.models.served.client import Client
client = Client(sys.argv[1])
ask = lambda: client.post("/v1/completions", [{"prompt": [5], "max_tokens": 4, "seed": i} for i in range(8)])
before = ask()
warnings.simplefilter("ignore")  # of forks beside threads
child = os.fork()
same = ask() == before
if not child:
    os._exit(not same)
assert same and os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-c", code, server.url], check=True, timeout=60)


# Keys


def test_a_key_is_sent_and_nowhere_seen(monkeypatch, caplog):
    caplog.set_level("DEBUG")
    with FakeServer(api_key=KEY) as server:
        client = quick(server, api_key=KEY)
        assert client.get("/v1/models")["data"]
        server.api_key = "another"  # from now on the answer repeats what was sent
        with pytest.raises(ServerError, match="the server refuses the key") as caught:
            client.get("/v1/models")
        shown = [repr(client), repr(client.key), str(vars(client)), str(caught.value), caught.value.body]
        shown += [repr(caught.value.__cause__), repr(caught.value.__context__), caplog.text]
        saved = [pickle.dumps(client), cloudpickle.dumps(client), pickle.dumps(caught.value)]
        assert not any(KEY in part for part in shown)
        assert not any(KEY.encode() in part for part in saved)
        assert copy.deepcopy(client) is copy.copy(client) is client
        server.api_key = KEY
        with pytest.raises(ServerError, match=r"wants a key, and there is none.*FEYNKAC_API_KEY"):
            pickle.loads(saved[0]).get("/v1/models")
        monkeypatch.setenv("FEYNKAC_API_KEY", KEY + "\n")
        assert pickle.loads(saved[1]).get("/v1/models")["data"]


def test_a_key_that_is_no_secret_leaves_words_alone():
    """Servers that want any key are given "x" or "token", and say of a long prompt that it exceeds input_tokens."""
    for given in ("x", "token"):
        key = Client("http://host", api_key=given).key
        said = "maximum context length: input_tokens exceeds 512 tokens"
        assert key.hide(said) == said
        assert given not in key.hide(f"no such key: {given}").split()


def test_a_key_beside_a_client_is_not_lost():
    client = Client("http://host")
    for make in (
        lambda: fk.models.ServerLM(client, api_key=KEY),
        lambda: fk.models.ChatLM(client, "some", api_key=KEY),
        lambda: fk.rewards.Served(client, "classify", api_key=KEY),
    ):
        with pytest.raises(ValueError, match="has its key already") as caught:
            make()
        assert KEY not in str(caught.value)


def test_openai_alone_gets_the_key_of_openai(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert Client("https://api.openai.com/v1").key
    assert not Client("https://openai.com.example.org/v1").key
    assert not Client("http://localhost:8000").key
    assert not Client("https://api.openai.com/v1", api_key="").key


@pytest.mark.parametrize("url", [f"https://user:{KEY}@host", f"https://host/?key={KEY}", "ftp://host", ""])
def test_urls_that_are_refused(url):
    with pytest.raises(ValueError, match="URL") as caught:
        Client(url)
    assert KEY not in str(caught.value)


def test_settings_that_are_refused():
    for settings in ({"limit": 0}, {"tokens_in_flight": 0}, {"timeout": 0}, {"retries": -1}):
        with pytest.raises(ValueError):
            Client("http://host", **settings)
    with pytest.raises(ValueError, match="header") as caught:
        Client("http://host", api_key=KEY + "\n\nX: y")
    assert KEY not in str(caught.value)


def test_a_url_may_end_in_v1(server):
    assert Client(server.url + "/v1/").get("/v1/models") == Client(server.url).get("/v1/models")


def test_certificates_are_checked(tmp_path):
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    made += ["-keyout", "key.pem", "-out", "cert.pem", "-subj", "/CN=here", "-addext", "subjectAltName=IP:127.0.0.1"]
    try:
        subprocess.run(made, cwd=tmp_path, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no openssl to make a certificate with")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    with FakeServer(tls=tls) as server:
        with pytest.raises(ServerError, match=r"CERTIFICATE_VERIFY_FAILED.*verify="):
            Client(server.url).get("/v1/models")
        trusting = Client(server.url, verify=ssl.create_default_context(cafile=tmp_path / "cert.pem"))
        assert trusting.get("/v1/models")["data"]
        trusting.close()
