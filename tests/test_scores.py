"""Scores: typed, lazy, batched, each distinct input once; errors name the particle, the site and the reward."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import feynkac as fk
from feynkac.ppl.score import evaluate


@fk.reward(kind="probability")
def chance(text):
    return {"a": 0.25, "b": 0.9, "never": 0.0, "always": 1.0}[text]


@fk.reward
def length(text):
    return len(text)


@fk.reward(kind="log_weight", batched=True)
def pairs(inputs):
    return [-0.5 * (x + 2 * y) for x, y in inputs]


def number(score):
    return evaluate([score])[0]


class Counted:
    """A batched reward that notes the inputs of each call."""

    def __init__(self, kind="real", **settings):
        self.calls = []
        self.reward = fk.reward(self.score, kind=kind, batched=True, name="counted", **settings)

    def score(self, inputs):
        self.calls.append(list(inputs))
        return [0.1 * len(str(x)) for x in inputs]


# -- kinds ------------------------------------------------------------------------------------------------------


def test_the_arithmetic_of_scores():
    log_odds = math.log(0.25 / 0.75)
    assert number(chance("a").log()) == pytest.approx(math.log(0.25))
    assert number(chance("a").logit()) == pytest.approx(log_odds)
    assert number(chance("never").log()) == -math.inf
    assert number(chance("never").logit()) == pytest.approx(math.log(1e-7), abs=1e-6)
    assert number(chance("always").logit(clip=0.01)) == pytest.approx(math.log(99))
    assert number(length("abc") / 0.5) == pytest.approx(6.0)
    assert number(chance("a").log() / 2) == pytest.approx(math.log(0.5))
    assert number(2 * chance("a").log()) == number(chance("a").log() * 2) == pytest.approx(math.log(0.0625))
    assert number(-(length("ab") / 1.0)) == -2.0
    assert number(-length("ab") / 2.0) == -1.0
    assert number(length("abc") - length("a")) == 2.0
    assert number(1.5 + length("abc")) == number(length("abc") + 1.5) == 4.5
    assert number(length("abc") - 1) == 2.0
    assert number(chance("never").log() * 0) == 0.0  # p⁰ = 1
    assert number(pairs(1.0, 2.0)) == -2.5


def test_sums_of_several_rewards_keep_their_parts_in_order():
    total = chance("a").log() + 2 * (length("abc") / 1.5) + pairs(1.0, 0.0) - chance("b").logit()
    expected = math.log(0.25) + 4.0 - 0.5 - math.log(9.0)
    assert evaluate([total, chance("b").log(), total]) == pytest.approx([expected, math.log(0.9), expected])
    assert repr(total) == "<log_weight score of chance and length and pairs and chance>"
    assert total.kind == "log_weight"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: chance("a") / 2, r"<probability score of chance> / beta: write \.log\(\) / beta or \.logit"),
        (lambda: chance("a") * 2, r"\* number: write \.log\(\) \* number"),
        (lambda: -chance("a"), r"write \.log\(\)"),
        (lambda: chance("a") + chance("b"), r"probabilities are multiplied; write \.log\(\) \+ …\.log\(\)"),
        (lambda: length("a") + chance("a"), r"cannot add .*probability.*make both log-weights first"),
        (lambda: length("a") + chance("a").log(), r"cannot add <real score of length> to <log_weight score of chance>"),
        (lambda: length("a").log(), r"log\(\) is for a probability, but .* is a real: use / beta"),
        (lambda: chance("a").log().logit(), r"logit\(\) is for a probability, .* is a log_weight: use it as it is"),
        (lambda: float(length("a")), r"has no value yet: await fk\.call\(name, score\)"),
        (lambda: bool(length("a")), "has no value yet"),
        (lambda: 1.0 if length("a") else 0.0, "has no value yet"),
    ],
)
def test_what_does_not_fit_the_kind_is_refused_with_the_fix(make, message):
    with pytest.raises(fk.errors.AmbiguousScore, match=message):
        make()


def test_temperatures_must_be_positive_and_kinds_known():
    for beta in (0, -1.0, math.nan):
        with pytest.raises(fk.errors.InvalidWeight, match="temperature beta must be positive"):
            length("a") / beta
    with pytest.raises(ValueError, match="kind must be 'probability', 'real' or 'log_weight', not 'odds'"):
        fk.reward(kind="odds")(len)


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda: length("a"), r"site 'G': <real score of length> is not a log-weight; say how with / beta"),
        (lambda: chance("a"), r"site 'G': <probability score .*> is not a log-weight; say how with \.log\(\) or"),
    ],
)
@pytest.mark.parametrize("effect", [fk.factor, fk.twist])
def test_only_log_weights_go_into_factors_and_twists(effect, score, message):
    @fk.program
    async def model():
        await effect("G", score())

    with pytest.raises(fk.errors.AmbiguousScore, match=message):
        fk.infer(model(), fk.SMC(2), seed=0)


def test_the_kinds_give_the_targets_that_they_say():
    """T3 in all its guises: the weights of a and b are 9 and 1."""

    @fk.reward(kind="probability")
    def likely(x):
        return 0.9 if x == "a" else 0.1

    @fk.reward(kind="probability")
    def odd(x):
        return 0.9 if x == "a" else 0.5

    @fk.reward
    def real(x):
        return math.log(3.0) if x == "a" else 0.0

    @fk.reward(kind="log_weight")
    def ready(x):
        return math.log(9.0) if x == "a" else 0.0

    for score in (
        lambda x: likely(x).log(),
        lambda x: odd(x).logit(),
        lambda x: real(x) / 0.5,
        lambda x: 2 * (real(x) / 1.0),
        lambda x: ready(x) + 3.0,
        lambda x: likely(x).log() / 2 + real(x) / 1.0,
    ):

        @fk.program
        async def t3(score=score):
            x = await fk.sample("x", fk.dist.Categorical([0.5, 0.5], values=["a", "b"]))
            await fk.factor("G", score(x))
            return x

        assert fk.enumerate_program(t3()).law() == pytest.approx({"a": 0.9, "b": 0.1})


# -- each distinct input once -----------------------------------------------------------------------------------


@fk.program
async def rounds(reward, n=3):
    total = 0
    for _ in range(n):
        total += await fk.sample("x", fk.dist.Categorical([0.6, 0.4]))
        await fk.factor("G", reward(total) / 1.0)
    return total


def test_each_distinct_input_is_scored_once_within_a_wave_and_across_waves():
    counted = Counted()
    posterior = fk.infer(rounds(counted.reward), fk.SMC(50, ess_threshold=1.0), seed=0)
    assert len(counted.calls) <= 3  # one call a wave
    inputs = [x for call in counted.calls for x in call]
    assert sorted(inputs) == [0, 1, 2, 3]
    assert posterior.cost.reward_calls == 4
    again = fk.infer(rounds(counted.reward), fk.SMC(50, ess_threshold=1.0), seed=0)
    assert again.cost.reward_calls == 4  # the same run costs the same


def test_runs_share_what_they_score_where_they_are_asked_to():
    counted = Counted()
    run = rounds(counted.reward)
    with fk.afresh():
        costs = [fk.infer(run, fk.SMC(50), seed=seed).cost.reward_calls for seed in (0, 1)]
        steps = fk.steps(run, fk.SMC(50), seed=2)
    list(steps)
    assert costs == [4, 0]
    assert steps.ledger.total().reward_calls == 0  # begun in the block, it is of it
    assert fk.infer(run, fk.SMC(50), seed=0).cost.reward_calls == 4
    assert sorted(x for call in counted.calls for x in call) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_run_inside_another_one_shares_with_it():
    counted = Counted()

    def inside(x):
        return fk.infer(rounds(counted.reward), fk.SMC(50), seed=0).cost.reward_calls

    @fk.program
    async def outer():
        return await fk.call("inside", inside, 0)

    assert fk.infer(outer(), fk.ImportanceSampling(2), seed=0).values == (4, 0)


def test_threads_that_run_at_once_remember_each_for_itself():
    import threading

    counted = Counted()
    costs = []

    def run():
        costs.append(fk.infer(rounds(counted.reward), fk.SMC(50), seed=0).cost.reward_calls)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert costs == [4] * 4


def test_without_a_cache_each_wave_scores_its_distinct_inputs_again():
    counted = Counted(cache=0)
    posterior = fk.infer(rounds(counted.reward), fk.SMC(50), seed=0)
    assert len(counted.calls) == 3
    assert all(len(call) == len(set(call)) for call in counted.calls)
    assert posterior.cost.reward_calls == sum(map(len, counted.calls)) > 4


def test_a_small_cache_forgets_the_least_recently_used():
    counted = Counted(cache=2)
    for x in (1, 2, 1, 3, 1, 2):  # 3 drives out 2
        number(counted.reward(x))
    assert counted.calls == [[1], [2], [3], [2]]


def test_equal_numbers_of_other_types_are_other_inputs():
    counted = Counted()
    evaluate([counted.reward(1), counted.reward(1.0), counted.reward(True), counted.reward(1)])
    assert [type(x) for x in counted.calls[0]] == [int, float, bool]


def test_two_rewards_in_a_wave_make_one_call_each():
    first, second = Counted(), Counted()

    @fk.program
    async def both():
        x = await fk.sample("x", fk.dist.Categorical([0.2] * 5))
        reward = first.reward if x % 2 else second.reward
        await fk.factor("G", reward(x) / 1.0 + first.reward("all") / 2.0)
        return x

    fk.infer(both(), fk.SMC(40), seed=0)
    assert len(first.calls) == len(second.calls) == 1
    assert sorted(map(str, first.calls[0])) == ["1", "3", "all"]
    assert sorted(second.calls[0]) == [0, 2, 4]


def test_unhashable_inputs_are_scored_afresh_each_time():
    counted = Counted()
    scores = [counted.reward([1, 2]), counted.reward([1, 2]), counted.reward("x"), counted.reward(np.zeros(2))]
    assert len(evaluate(scores)) == 4
    assert len(counted.calls[0]) == 4
    evaluate(scores)
    assert len(counted.calls[1]) == 3  # only the hashable one was remembered


class Draft:
    """An object that is equal to itself alone."""

    def __init__(self, words):
        self.words = words


class Named(Draft):
    """One whose hash says nothing of what it holds."""

    def __hash__(self):
        return 0

    def __eq__(self, other):
        return isinstance(other, Named) and self.words == other.words


@dataclass(frozen=True)
class Frozen:
    """Data that cannot change, if what it holds cannot."""

    words: object


DRAFTS = [Draft([1]), Named([1]), Frozen(Draft([1])), (Draft([1]), "a"), frozenset({Named([1])})]


@pytest.mark.parametrize("draft", DRAFTS)
def test_an_object_that_has_changed_between_calls_is_scored_afresh(draft):
    def words(value):
        (value,) = value if isinstance(value, frozenset) else (value,)
        value = value[0] if isinstance(value, tuple) else value
        return words(value.words) if hasattr(value, "words") else value

    length = fk.reward(lambda value: float(len(words(value))))
    assert evaluate([length(draft), length(draft)]) == [1.0, 1.0]
    words(draft).append(2)
    assert evaluate([length(draft)]) == [2.0]


def test_values_that_cannot_change_are_remembered_and_one_object_is_scored_once_a_wave():
    counted = Counted()
    lasting = ["x", 1, 2.5, None, (1, ("a",)), frozenset({1}), Frozen(("a", 1)), np.float64(2.0), Path("a")]
    for _ in range(2):
        evaluate([counted.reward(value) for value in lasting])
    assert [len(call) for call in counted.calls] == [len(lasting)]
    draft = Draft([1])
    evaluate([counted.reward(draft), counted.reward(draft)])
    assert len(counted.calls[1]) == 1


def test_rewards_of_several_arguments_get_tuples_or_arguments():
    @fk.reward
    def distance(x, y):
        return abs(x - y)

    assert number(distance(3, 5)) == 2.0
    assert evaluate([pairs(1.0, 1.0), pairs(0.0, 1.0)]) == [-1.5, -1.0]
    assert repr(distance) == "<real reward distance>"


# -- errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "bad", "want"),
    [
        ("real", math.nan, r"returned nan for \(1\); a real must be a number below \+inf"),
        ("real", math.inf, r"returned inf for \(1\)"),
        ("log_weight", math.nan, r"returned nan for \(1\); a log_weight must be"),
        ("real", None, r"returned None for \(1\)"),
        ("real", "high", r"returned 'high' for \(1\)"),
        ("probability", 1.2, r"returned 1\.2 for \(1\); a probability must be a number in \[0, 1\]"),
        ("probability", -0.1, r"returned -0\.1"),
        ("probability", math.nan, "returned nan"),
    ],
)
@pytest.mark.parametrize("effect", ["factor", "twist"])
def test_bad_numbers_name_the_particle_the_site_and_the_reward(kind, bad, want, effect):
    @fk.reward(kind=kind)
    def judge(x):
        return bad if x == 1 else 0.5

    @fk.program
    async def model():
        await fk.sample("skip", fk.dist.Bernoulli(0.5))
        x = await fk.sample("x", fk.dist.Bernoulli(0.5))
        score = judge(x)
        score = score.log() if kind == "probability" else score / 1.0
        await getattr(fk, effect)("G", score)
        await getattr(fk, effect)("G", score)

    keys = fk.keys.fold(fk.keys.root(1), np.arange(12))
    draws = [site.value for made in _prior().start(keys).choices for site in made if site.name == "x"]
    first = draws.index(1)
    assert first > 0
    with pytest.raises(
        fk.errors.InvalidWeight, match=rf"particle {first}, {effect} 'G': reward 'judge' {want}"
    ) as caught:
        model().start(keys)
    assert f"particle {first} of 12 of program 'model'" in caught.value.__notes__[0]


@fk.program
async def _prior():
    await fk.sample("skip", fk.dist.Bernoulli(0.5))
    await fk.sample("x", fk.dist.Bernoulli(0.5))


def test_minus_infinity_is_a_real_reward_and_kills():
    @fk.reward
    def strict(x):
        return -math.inf if x else 0.0

    @fk.program
    async def model():
        x = await fk.sample("x", fk.dist.Bernoulli(0.7))
        await fk.factor("G", strict(x) / 0.1)
        return x

    assert fk.enumerate_program(model()).law() == {0: 1.0}
    assert set(fk.infer(model(), fk.SMC(30), seed=0).sample(20, seed=0)) == {0}


@pytest.mark.parametrize("extra", [-1, 1])
def test_a_wrong_count_of_numbers_is_an_error(extra):
    @fk.reward(batched=True)
    def careless(inputs):
        return [0.0] * (len(inputs) + extra)

    with pytest.raises(
        fk.errors.InvalidWeight, match=rf"factor 'G': reward 'careless' got 2 inputs and returned {2 + extra} numbers"
    ):
        fk.infer(rounds(careless), fk.SMC(20), seed=0)


def test_an_exception_in_a_reward_is_the_users_own_with_a_note():
    @fk.reward
    def broken(x):
        raise KeyError(x)

    with pytest.raises(KeyError) as caught:
        fk.infer(rounds(broken), fk.SMC(3), seed=0)
    assert any("of 3 of program 'rounds'" in note for note in caught.value.__notes__)


# -- call -------------------------------------------------------------------------------------------------------


def test_a_call_gives_the_number_of_a_reward_or_score_in_one_batch():
    counted = Counted()

    @fk.program
    async def model():
        x = await fk.sample("x", fk.dist.Categorical([0.5, 0.3, 0.2]))
        raw = await fk.call("raw", counted.reward, 10**x)
        log = await fk.call("log", chance("a").log() * 2)
        prob = await fk.call("prob", chance, "b")
        await fk.factor("G", 10 * raw if raw > 0.1 else -math.inf)
        y = await fk.sample("y", fk.dist.Bernoulli(0.5))
        return x, raw, log, prob, y

    posterior = fk.infer(model(), fk.SMC(60, ess_threshold=1.0), seed=0)
    assert len(counted.calls) == 1
    assert posterior.cost.reward_calls == len(counted.calls[0]) + 2 or posterior.cost.reward_calls == len(
        counted.calls[0]
    )  # `chance` is shared by these tests, so its values may be known
    for x, raw, log, prob, _ in posterior.sample(50, seed=0):
        assert x > 0
        assert raw == pytest.approx(0.1 * (x + 1))
        assert log == pytest.approx(2 * math.log(0.25))
        assert prob == 0.9


def test_a_bad_number_in_a_call_names_the_particle_and_the_reward():
    @fk.reward(kind="probability")
    def judge(x):
        return 2.0

    @fk.program
    async def model():
        return await fk.call("ask", judge, 1)

    with pytest.raises(fk.errors.InvalidWeight, match=r"reward 'judge' returned 2\.0 for \(1\)") as caught:
        fk.infer(model(), fk.SMC(3), seed=0)
    assert any("after site 'ask'" in note for note in caught.value.__notes__)


# -- accounting -------------------------------------------------------------------------------------------------


def test_reward_calls_go_to_the_problem_that_made_them():
    shared = Counted(cache=0)

    @fk.program
    async def ask(lowest, way):
        x = await fk.sample("x", fk.dist.DiscreteUniform(lowest, lowest + 1))
        if way == "call":
            await fk.call("first", lambda: None)
            await fk.factor("G", 0.1 * await fk.call("ask", shared.reward, x))
        else:
            await fk.factor("G", shared.reward(x) / 1.0)

    models = [ask(0, "factor"), ask(10, "factor"), ask(20, "call"), ask(10, "factor")]
    posteriors = fk.infer(models, fk.SMC(30, chains=2), seed=0)
    made = [posterior.cost.reward_calls for posterior in posteriors]
    assert sum(made) == sum(map(len, shared.calls)) == 6
    assert made == [2, 2, 2, 0]  # what two problems share is paid by the first


# -- what is no number ------------------------------------------------------------------------------------------


def strangers():
    """Things that `float` takes, or nearly, and that are no log-weight."""
    import jax.numpy as jnp
    import torch

    return {
        "bool": True,
        "numpy bool": np.True_,
        "numpy array": np.array(True),
        "masked": np.ma.masked,
        "masked array": np.ma.array([1.0], mask=[True]),
        "torch": torch.tensor(True),
        "torch of one": torch.tensor([False]),
        "jax": jnp.array(True),
        "complex": 1 + 0j,
        "numpy complex": np.complex128(1),
        "torch complex": torch.tensor(1 + 0j),
        "string": "1.0",
        "set": {1.0},
        "dict": {1.0: 2},
        "list": [1.0],
        "array of two": np.zeros(2),
        "object": np.array(None, dtype=object),
    }


@pytest.mark.parametrize("effect", ["factor", "twist"])
@pytest.mark.parametrize("name", strangers())
def test_what_is_no_number_is_no_log_weight(name, effect):
    value = strangers()[name]

    @fk.program
    async def model():
        await getattr(fk, effect)("G", value)

    with pytest.raises(fk.errors.AmbiguousScore, match="site 'G': a log-weight is a number or a score, and this is a"):
        fk.infer(model(), fk.SMC(2), seed=0)


@pytest.mark.parametrize("name", strangers())
def test_a_reward_that_is_a_log_weight_must_be_a_number(name):
    value = strangers()[name]
    one = fk.reward(lambda x: value, kind="log_weight", name="odd")
    with pytest.raises(fk.errors.InvalidWeight, match="reward 'odd' returned"):
        evaluate([one("x")])
    changed = fk.reward(lambda x: 0.5, name="plain")("x").map(lambda _: value, "log_weight")
    with pytest.raises(fk.errors.InvalidWeight, match="<log_weight score of plain> became a"):
        evaluate([changed])


@pytest.mark.parametrize("found", [{0.5}, {0.5: 1}, "5", 0.5, None], ids=repr)
def test_a_batched_reward_must_return_numbers_in_order(found):
    together = fk.reward(lambda xs: found, batched=True, kind="log_weight", name="odd")
    with pytest.raises(fk.errors.InvalidWeight, match=r"reward 'odd' returned a .*; it must return a list"):
        evaluate([together("x")])


def test_numbers_of_every_library_are_log_weights():
    import jax.numpy as jnp
    import torch

    known = [1, np.int8(1), np.float16(1), np.array(1.0), np.array([1.0]), torch.tensor(1), jnp.bfloat16(1)]
    known += [torch.tensor(1.0, requires_grad=True), torch.tensor(1.0, dtype=torch.bfloat16), np.array(1.0, ">f8")]
    for value in known:

        @fk.program
        async def model(value=value):
            await fk.factor("G", value)

        assert fk.infer(model(), fk.SMC(2), seed=0).log_evidence == 1.0
        assert evaluate([fk.reward(lambda x, value=value: value, kind="log_weight")("x")]) == [1.0]


def test_a_bool_is_a_probability_and_a_reward():
    for value in (True, np.True_, np.array(True)):
        for kind in ("probability", "real"):
            assert evaluate([fk.reward(lambda x, value=value: value, kind=kind)("x")]) == [1.0]


@pytest.mark.parametrize("field", ["log_prob", "log_proposal", "log_potential", "log_twist"])
def test_a_models_weights_must_be_numbers(field):
    zeros = np.zeros(2)
    terms = {"log_prob": zeros, "log_proposal": zeros, "log_potential": zeros, "log_twist": zeros}
    ends = {"state": None, "choices": [(), ()], "done": np.ones(2, bool), "scored": np.ones(2, bool)}
    assert fk.Advance(**{**terms, field: np.ones(2, np.float32)}, **ends).log_increment.dtype == np.float64
    with pytest.raises(fk.errors.InvalidWeight, match=f"a model's {field} must be an array of numbers"):
        fk.Advance(**{**terms, field: np.ones(2, bool)}, **ends)


def test_a_kernels_log_probabilities_must_be_numbers():
    class Odd:
        batch_key = "odd"
        fingerprint = "odd"

        def sample_batch(self, requests, keys):
            return fk.Draws([0] * len(requests), np.ones(len(requests), bool))

    @fk.program
    async def model():
        await fk.sample("x", Odd())

    with pytest.raises(fk.errors.InvalidWeight, match="Odd: among its log-probabilities there is a bool"):
        fk.infer(model(), fk.SMC(2), seed=0)
