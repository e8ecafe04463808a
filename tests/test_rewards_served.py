"""Rewards behind a server: the same numbers and types as of those that run here, a wave in one request."""

import math
import subprocess
import sys

import numpy as np
import pytest

import feynkac as fk
from feynkac.models.rewards.servers.served import Served
from feynkac.models.rewards.servers.served_prm import ServedPRM
from feynkac.models.rewards.stepwise import ProcessReward
from feynkac.models.served.client import Client
from feynkac.models.testing import FakeServer, Faults
from feynkac.ppl.cost import Ledger, recording
from feynkac.ppl.errors import ContextOverflow, ServerError, UnusableAnswer
from feynkac.ppl.score import evaluate

TAG = "?"


def reward(string):
    """Two logits that tell what was read: its length, and how often it says "sea"."""
    return [0.1 * len(string) - 2.0, 0.7 * string.count("sea") - 0.3]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


@pytest.fixture(scope="module")
def running():
    with FakeServer(reward=reward) as server:
        [server._model.step_token] = server.tokenizer(TAG)["input_ids"]
        yield server


@pytest.fixture
def server(running):
    running.faults = Faults()
    running.requests.clear()
    return running


@pytest.fixture
def client(server):
    return Client(server.url, backoff=0.001, retries=12)


TEXTS = ["the sea", "the hill and the sea, the sea", "a", "the river"]


def softmax(string):
    bad, good = reward(string)
    return sigmoid(good - bad)


@pytest.mark.parametrize(
    ("task", "settings", "expected"),
    [
        ("classify", {"label": 1}, [softmax(text) for text in TEXTS]),
        ("classify", {"label": 0, "kind": "real"}, [reward(text)[0] for text in TEXTS]),
        ("pooling", {"label": -1}, [softmax(text) for text in TEXTS]),
        ("pooling", {"label": 1, "kind": "real"}, [reward(text)[1] for text in TEXTS]),
    ],
)
@pytest.mark.parametrize("batch", [1024, 3])
def test_numbers_of_texts(server, client, task, settings, expected, batch):
    server.faults = Faults(reorders=True, unavailable=0.2)
    scorer = Served(client, task, max_batch=batch, **settings)
    with recording(Ledger()) as ledger:
        assert evaluate([scorer(text) for text in TEXTS]) == pytest.approx(expected, rel=1e-12)
    assert ledger.total().reward_calls == 4
    assert ledger.total().model_calls == (1 if batch > 4 else 2)
    assert [path for path, _ in server.requests] == [f"/{task}"] * ledger.total().requests
    assert scorer(TEXTS[0]).kind == settings.get("kind", "probability")


def test_pairs_are_scored(server, client):
    scorer = Served(client, "score", template=lambda text: ("who?", str(text)))
    assert evaluate([scorer(text) for text in TEXTS]) == pytest.approx(
        [sigmoid(reward(f"who?\n{text}")[0]) for text in TEXTS]
    )
    plain = Served(client, "score", kind="real")
    assert evaluate([plain("who?", "the sea")]) == pytest.approx([reward("who?\nthe sea")[0]])
    assert len(server.requests) == 2


@pytest.mark.parametrize("reduce", ["max", "mean"])
def test_similarity_to_references(server, client, reduce):
    scorer = Served(client, "embed", references=["the sea", "the hill"], reduce=reduce)
    units = {text: np.array(reward(text)) / np.linalg.norm(reward(text)) for text in [*TEXTS, "the hill"]}
    cosines = [[units[text] @ units[ref] for ref in ("the sea", "the hill")] for text in TEXTS]
    for _ in range(2):
        assert evaluate([scorer(text) for text in TEXTS]) == pytest.approx(getattr(np, reduce)(cosines, axis=1))
    assert len(server.requests) == 2  # the references, and the texts
    assert evaluate([scorer("the sea")])[0] == pytest.approx(1.0 if reduce == "max" else cosines[0][1] / 2 + 0.5)


ANSWERS = [("Who", ["The sea.", " The hill. ", "", "The sea, the sea."]), ("Why", ["So."])]


@pytest.mark.parametrize("logits", [True, False])
@pytest.mark.parametrize("aggregate", ["last", "min", "prod", "mean"])
def test_every_step_has_a_score_and_a_wave_one_request(server, client, logits, aggregate):
    server.faults.reorders = True
    prm = ServedPRM(client, tag=TAG, logits=logits, aggregate=aggregate)
    assert isinstance(prm, ProcessReward)
    read = ["Who The sea.?", "Who The sea.?The hill.?", "Who The sea.?The hill.?The sea, the sea.?"]
    steps = tuple(map(softmax, read)), (softmax("Why So.?"),)
    with recording(Ledger()) as ledger:
        found = evaluate([prm(*answer) for answer in ANSWERS])
    how = {"last": lambda x: x[-1], "min": min, "prod": math.prod, "mean": np.mean}[aggregate]
    assert found == pytest.approx([how(each) for each in steps], rel=1e-12)
    assert (len(server.requests), ledger.total().requests) == (1, 1)
    assert prm.details(list(ANSWERS)) == [pytest.approx(each) for each in steps]
    assert len(server.requests) == 1  # they were known


def test_an_answer_as_one_step_and_one_as_a_chat(server, client):
    prm = ServedPRM(client, tag=TAG, aggregate="model", between=" ")
    assert evaluate([prm("Who", ["The sea.", "The hill."])]) == pytest.approx([softmax("Who The sea. The hill.?")])
    chat = ServedPRM(
        client,
        tag=TAG,
        render=lambda question, steps: [
            {"role": "user", "content": question},
            {"role": "assistant", "content": "".join(f"{step}{TAG}" for step in steps)},
        ],
    )
    read = "<user>user: Who\n<user>assistant: The sea.?"
    assert evaluate([chat("Who", ["The sea."])]) == pytest.approx([softmax(read)])
    assert [path for path, _ in server.requests][1:] == ["/tokenize", "/pooling"]


def test_no_score_for_a_step_is_an_error_that_names_the_token(server, client):
    (number,) = server.tokenizer("!")["input_ids"]
    with pytest.raises(UnusableAnswer, match=rf"2 steps were given no scores.*the token '!' \(\[{number}\]\)"):
        evaluate([ServedPRM(client, tag="!")("Who", ["The sea.", "The hill."])])
    with pytest.raises(UnusableAnswer, match="1 steps were given 2 scores"):  # the question holds one
        evaluate([ServedPRM(client, tag=TAG)("Who?", ["The sea."])])


def test_probabilities_where_logits_were_asked_for_are_refused(server, client):
    server.faults.lacks = {"use_activation"}  # an older server, which takes no notice
    with pytest.raises(UnusableAnswer, match=r"though logits were asked for.*kind='probability'"):
        evaluate([Served(client, "classify", kind="real", label=0)("a")])
    with pytest.raises(UnusableAnswer, match=r"though logits were asked for.*logits=False"):
        evaluate([ServedPRM(client, tag=TAG)("Who", ["The sea."])])


@pytest.mark.parametrize("said", [None, float("nan"), "0.5", True, [], {}, [0.5, None]])
def test_what_is_no_number_is_an_error(server, client, said, monkeypatch):
    answer = {"data": [{"index": 0, "probs": said, "score": said, "embedding": said, "data": [said]}]}
    monkeypatch.setattr(client, "post", lambda path, payloads: [answer])
    scorers = [Served(client, task, kind="real") for task in ("classify", "score")]
    scorers += [Served(client, "embed", references="a")]
    for scorer in scorers:
        with pytest.raises(UnusableAnswer, match=f"reward '{scorer.task}'.*no finite number"):
            evaluate([scorer("a", "b") if scorer.task == "score" else scorer("a")])
    with pytest.raises(UnusableAnswer, match="a step's score is"):
        evaluate([ServedPRM(client)("Who", ["a"])])


@pytest.mark.parametrize(
    "answer", [{}, [], {"data": None}, {"data": []}, {"data": [{"index": 1, "probs": [1.0]}]}, {"data": [1.0]}]
)
def test_answers_of_another_form_are_errors(client, answer, monkeypatch):
    monkeypatch.setattr(client, "post", lambda path, payloads: [answer])
    with pytest.raises(UnusableAnswer, match="reward 'classify', http://"):
        evaluate([Served(client, "classify")("a")])


def test_labels_and_settings(client):
    with pytest.raises(ValueError, match="2 numbers for an input: say which by label="):
        evaluate([Served(client, "classify")("a")])
    with pytest.raises(ValueError, match="no label 2"):
        evaluate([Served(client, "classify", label=2)("a")])
    for task, settings in [
        ("rank", {}),
        ("classify", {"kind": "log_weight"}),
        ("embed", {"references": "a", "kind": "probability"}),
        ("embed", {}),
        ("embed", {"references": []}),
        ("classify", {"references": "a"}),
        ("embed", {"references": "a", "reduce": "sum"}),
    ]:
        with pytest.raises(ValueError):
            Served(client, task, **settings)
    with pytest.raises(TypeError, match="a pair of strings"):
        Served(client, "score")("a")
    with pytest.raises(TypeError, match="a string or a text"):
        Served(client, "classify")("a", "b")


def test_an_unknown_path_or_model_is_named(server, client):
    server.faults.lacks = {"/classify"}
    with pytest.raises(ServerError, match=r"/classify was answered by status 404.*has this path"):
        evaluate([Served(client, "classify", label=0)("a")])
    with pytest.raises(ServerError, match="model `other` does not exist"):
        evaluate([Served(client, "pooling", label=0, model="other")("a")])


def test_an_input_that_is_too_long_ends_its_particle_alone(server, client, monkeypatch):
    honest = server._model.pooling

    def pooling(asked):
        from feynkac.models.testing.fake_model import Refused

        if any(len(given) > 20 for given in asked["input"]):
            raise Refused(400, "maximum context length is 20", "input_tokens")
        return honest(asked)

    monkeypatch.setattr(server._model, "pooling", pooling)
    scorer = Served(client, "pooling", label=1)
    with pytest.raises(ContextOverflow, match="reward 'pooling': an input is too long for the server"):
        evaluate([scorer("a" * 30)])

    @fk.program
    async def model():
        n = await fk.sample("n", fk.dist.Categorical(probs=np.array([0.5, 0.5])))
        await fk.factor("reward", scorer("a" * (1 + 29 * int(n))).log())
        return n

    with pytest.warns(fk.errors.ContextWarning):
        posterior = fk.infer(model(), fk.ImportanceSampling(8), seed=0)
    alive = posterior.log_weights > -np.inf
    assert 0 < alive.sum() < 8
    assert not any(int(value) for value, lives in zip(posterior.values, alive) if lives)


def test_served_rewards_need_no_torch(server):
    code = f"""
import sys
import feynkac as fk
from feynkac.ppl.score import evaluate
assert evaluate([fk.rewards.Served({server.url!r}, "classify", label=0)("a")])
assert evaluate([fk.rewards.ServedPRM({server.url!r}, tag="?")("Who", ["a"])])
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
