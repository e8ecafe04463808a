"""What goes wrong between here and a server: nothing is lost or counted twice, and an error says what to do."""

import math
import os
import signal
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest

pytest.importorskip("httpx2")
from served import few_tokens

import feynkac as fk
from feynkac.models.testing import FakeServer, Faults, tiny_tokenizer
from feynkac.ppl.errors import ContextWarning, ServerError, Unsupported, UnusableAnswer
from laws import Z_LIMIT

KEY = "sk-very-secret"
TOKENIZER = tiny_tokenizer()
LAW, SUPPORT = few_tokens(TOKENIZER)
LAW.logits[:, SUPPORT[-1]] -= 2.0  # so that texts have some tokens


pytestmark = pytest.mark.usefixtures("no_keys")


@pytest.fixture(scope="module")
def running():
    with FakeServer(LAW) as server:
        yield server


@pytest.fixture
def server(running):
    running.faults = Faults()
    running.context = running._model.context = 512
    for kept in (running.requests, running.seeds, running.paths):
        kept.clear()
    running.aborted = 0
    return running


def connected(server):
    client = fk.models.Client(server.url, retries=12, backoff=0.001)
    lm = fk.models.ServerLM(client, tokenizer=TOKENIZER)
    server.requests.clear()
    server.seeds.clear()
    server.paths.clear()
    return lm


@pytest.fixture
def lm(server):
    return connected(server)


@fk.program
async def words(lm, steps=3, most=4):
    text = lm.prompt("Who")
    for _ in range(steps):
        text = await fk.sample("step", lm.tokens(text, most))
        await fk.factor("weight", 0.8 * str(text).count("a") - 0.3 * str(text).count("c"))
    return text


def soon(condition):
    """Wait for what other threads are about to do."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


@contextmanager
def started(server):
    """Have it run again after the block."""
    try:
        yield
    finally:
        soon(lambda: server._server is None and not server.open)
        server.start()


def same(one, two):
    assert [text.tokens for text in one.values] == [text.tokens for text in two.values]
    assert one.log_weights.tolist() == two.log_weights.tolist()
    assert one.log_evidence == two.log_evidence
    for unit in ("model_calls", "tokens_in", "tokens_out", "reward_calls"):
        assert getattr(one.cost, unit) == getattr(two.cost, unit)


@pytest.mark.parametrize(
    "faults",
    [
        Faults(unavailable=0.2),
        Faults(limited=7, retry_after="0.005"),
        Faults(reset=0.2),
        Faults(half=0.2),
        Faults(dies_at=11, back_after=0.03),
        Faults(reorders=True),
    ],
    ids=["503", "429", "reset", "half", "restart", "reordered"],
)
def test_a_run_is_what_it_is_without_faults(server, lm, faults):
    lm.transport.client.backoff = 0.01 if faults.dies_at else 0.001
    expected = fk.infer(words(lm), fk.SMC(8), seed=0)
    asked = sorted(server.seeds)
    assert len({*asked}) == len(asked) == expected.cost.requests  # one seed a draw
    server.seeds.clear()
    server.requests.clear()
    server.faults = faults
    posterior = fk.infer(words(lm), fk.SMC(8), seed=0)
    same(posterior, expected)
    assert {*server.seeds} == {*asked}
    if not (faults.reorders or faults.dies_at):
        assert expected.cost.requests < posterior.cost.requests == len(server.requests)


def test_time_outs_leave_the_law_as_it_is(server, lm):
    """Long answers are late. Redrawn with new seeds they would come out short: 0.4 tokens and more, of 3.1."""
    lm.transport.client.limit = 8
    server.faults = Faults(seconds_per_token=0.01)
    lm.transport.client.timeout = 0.035

    @fk.program
    async def whole():
        return await fk.sample("answer", lm.complete(lm.prompt("Who"), max_tokens=12))

    texts = fk.infer(whole(), fk.ImportanceSampling(40), seed=0).values
    assert len(server.requests) > 50
    lm.transport.client.timeout = 60.0
    server.faults = Faults()
    assert [text.tokens for text in fk.infer(whole(), fk.ImportanceSampling(40), seed=0).values] == [
        text.tokens for text in texts
    ]


def test_without_seeds_a_late_answer_is_an_error(server):
    server.faults.lacks = {"seed"}
    lm = connected(server)
    assert "seed" not in lm.can
    server.faults.seconds = 0.06
    lm.transport.client.timeout = 0.03
    with pytest.raises(ServerError, match=r"not answered in 0\.03 s.*promises no seeds"):
        fk.infer(words(lm), fk.SMC(2), seed=0)


def test_a_server_that_dies_leaves_the_steps_that_were_made(server, lm):
    lm.transport.client.retries = 1
    expected = fk.infer(words(lm), fk.SMC(8), seed=0)
    server.requests.clear()
    server.faults = Faults(dies_at=18)
    with (
        started(server),
        pytest.raises(
            ServerError, match=r"did not get through.*2 times; check the URL, that the server runs"
        ) as caught,
    ):
        fk.infer(words(lm), fk.SMC(8), seed=0)
    kept = caught.value.posterior
    assert kept.stopped == "error"
    assert len(kept.values) == 8
    assert [step.ess for step in kept.steps] == [step.ess for step in expected.steps[: len(kept.steps)]]
    assert 1 <= len(kept.steps) < 3
    assert any("attribute `posterior`" in note for note in caught.value.__notes__)


def test_ctrl_c_keeps_the_posterior_and_leaves_no_request(server, lm):
    def interrupt():
        soon(lambda: len(server.requests) > 8)
        time.sleep(0.03)  # for the others of the second wave
        os.kill(os.getpid(), signal.SIGINT)

    def slow_down(step):
        server.faults.seconds = 30.0

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        posterior = fk.infer(words(lm), fk.SMC(8), seed=0, callbacks=[slow_down])
    finally:
        signal.signal(signal.SIGINT, before)
        thread.join()
    assert posterior.stopped == "interrupted"
    assert len(posterior.steps) == 1
    soon(lambda: server.aborted == len(server.requests) - 8 > 0)


def test_a_budget_of_requests(server, lm):
    server.faults = Faults(unavailable=0.2)
    posterior = fk.infer(words(lm), fk.SMC(8), seed=0, budget=fk.Budget(requests=8))
    assert (posterior.stopped, len(posterior.steps)) == ("requests", 1)
    assert posterior.cost.requests == len(server.requests) >= 8
    assert f"{posterior.cost.requests} requests" in posterior.summary()


def test_a_budget_of_seconds_gives_up_what_is_under_way(server, lm):
    run = fk.steps(words(lm), fk.SMC(8), seed=0, budget=fk.Budget(seconds=1000.0))
    while not run.wave():
        pass
    server.faults.seconds = 30.0
    run.budget = fk.Budget(seconds=run.ledger.total().seconds + 0.05)
    assert run.wave() is None
    assert run.stopped == "seconds"
    assert len(run.posterior.steps) == 1
    assert run.posterior.guarantee == "prefix"
    soon(lambda: server.aborted == len(server.requests) - 8 > 0)


def test_the_seconds_of_a_run_outside_count_for_one_inside(server, lm):
    @fk.program
    async def outer():
        for seed in range(2):
            await fk.call("inner", lambda seed: fk.infer(words(lm, 1), fk.SMC(2), seed=seed), seed)
            await fk.factor("weight", 0.0)

    run = fk.steps(outer(), fk.SMC(1), seed=0, budget=fk.Budget(seconds=1000.0))
    while not run.wave():
        pass
    server.faults.seconds = 30.0
    run.budget = fk.Budget(seconds=run.ledger.total().seconds + 0.05)
    assert run.wave() is None
    assert run.stopped == "seconds"


# What a server says


def test_a_wrong_model_is_named(server):
    with pytest.raises(ServerError, match="there is no model 'llama', and it serves 'fake'"):
        fk.models.ServerLM(server.url, "llama", tokenizer=TOKENIZER)
    lm = connected(server)
    server.model = "another"  # it was restarted with another model
    try:
        with pytest.raises(ServerError, match="The model `fake` does not exist"):
            fk.infer(words(lm), fk.SMC(2), seed=0)
    finally:
        server.model = "fake"


def test_a_context_that_is_shorter_than_was_said_ends_particles_alone(server, lm):
    server._model.context = 9  # and it said 512

    @fk.program
    async def model():
        n = await fk.sample("n", fk.dist.Categorical(probs=np.array([0.5, 0.5])))
        await fk.sample("step", lm.tokens(lm.prompt("Who" + " who" * 4 * int(n)), 2))
        await fk.factor("weight", 0.0)
        return int(n)

    with pytest.warns(ContextWarning, match="too long for the server.*maximum context length is 9"):
        posterior = fk.infer(model(), fk.ImportanceSampling(8), seed=0)
    alive = posterior.log_weights > -np.inf
    assert 0 < alive.sum() < 8
    assert {value for value, lives in zip(posterior.values, alive) if lives} == {0}


@pytest.mark.parametrize(
    ("log_prob", "what"),
    [
        (-9999.0, "drew a token to which it gives no probability"),
        (None, "a log-probability is None"),
        (math.nan, "a log-probability is nan"),
        (0.5, "a log-probability is 0.5"),
    ],
)
def test_a_log_probability_that_cannot_be_is_an_error(server, lm, log_prob, what):
    server.faults.log_prob = log_prob
    with pytest.raises(UnusableAnswer, match=what):
        fk.infer(words(lm), fk.SMC(2), seed=0)


@pytest.mark.parametrize("field", ["token_ids", "logprobs"])
def test_what_a_server_begins_to_leave_out_is_an_error(server, lm, field):
    server.faults.lacks = {field}
    with pytest.raises((UnusableAnswer, Unsupported), match=r"token_ids|log-probabilities"):
        fk.infer(words(lm), fk.SMC(2), seed=0)


def test_no_name_no_port(server):
    for url in ("http://there-is-no-such-host.invalid", "http://127.0.0.1:9"):
        with pytest.raises(ServerError, match=r"/v1/models did not get through \(.+\); check the URL|1 times"):
            fk.models.ServerLM(fk.models.Client(url, retries=0), tokenizer=TOKENIZER)


def test_a_key_is_in_no_file(server, tmp_path, monkeypatch):
    with FakeServer(LAW, api_key=KEY) as guarded:
        with pytest.raises(ServerError, match=r"wants a key, and there is none: give api_key=, or set FEYNKAC_API_KEY"):
            fk.models.ServerLM(guarded.url, tokenizer=TOKENIZER)
        monkeypatch.setenv("FEYNKAC_API_KEY", KEY)
        lm = connected(guarded)
        posterior = fk.infer(words(lm), fk.SMC(4), seed=0)
        posterior.save(tmp_path / "kept")
        for path in (path for path in tmp_path.rglob("*") if path.is_file()):
            assert KEY.encode() not in path.read_bytes()
        assert KEY not in repr(lm) + repr(posterior) + posterior._repr_html_() + str(vars(lm.transport.client))


@pytest.mark.slow
def test_the_evidence_is_right_while_requests_get_lost(server, lm):
    """E[Ẑ] of SMC against all texts of two tokens, counted up, with a fifth of the requests refused."""
    prompt = lm.prompt("Who").prompt_tokens
    exact = 0.0
    law = {token: np.exp(LAW((token,)) - np.logaddexp.reduce(LAW((token,)))) for token in (*SUPPORT, prompt[-1])}

    def weight(tokens):
        string = TOKENIZER.decode(tokens, skip_special_tokens=True)
        return math.exp(0.8 * string.count("a") - 0.3 * string.count("c"))

    eos = SUPPORT[-1]
    for one in SUPPORT:
        if one == eos:
            exact += law[prompt[-1]][one] * weight([]) ** 2
            continue
        for two in SUPPORT:
            exact += law[prompt[-1]][one] * law[one][two] * weight([one]) * weight([one, two])
    server.faults = Faults(unavailable=0.2)
    runs = fk.infer([words(lm, 2, 1)] * 40, fk.SMC(6), seed=0)
    ratios = [math.exp(run.log_evidence) / exact for run in runs]
    # One comparison at |z| < Z_LIMIT: a correct client fails with the probability that is written there.
    error = np.std(ratios, ddof=1) / math.sqrt(len(ratios))
    assert abs(np.mean(ratios) - 1) < Z_LIMIT * error
    assert error < 0.07
