"""Pools that stop early: first finish, adaptive consistency, best-of-N that knows when to stop; and budget forcing."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scripted import Queue, Scripted

import feynkac as fk
from chains import chain
from feynkac.inference.pools.adaptive_consistency import majority
from laws import Z_LIMIT, check_all_dead, t2, z_score

ENGINES = [
    fk.FirstFinish(8, first=3),
    fk.FirstFinish(4, chains=2),
    fk.AdaptiveConsistency(12, batch=2),
    fk.AdaptiveConsistency(6, chains=2),
    fk.AdaptiveBestOfN(6, threshold=0.95, batch=2),
    fk.AdaptiveBestOfN(8, threshold=1.0, batch=4, prune={0: 0.5, 1: 0.5}),
]


# -- first finish -------------------------------------------------------------------------------------------------


@fk.program
async def race(p=0.7):
    """Right in ten steps, or wrong in twenty."""
    right = await fk.sample("right", fk.dist.Bernoulli(p))
    for _ in range(10 if right else 20):
        await fk.factor("tick", 0.0)
    return right


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2, 4])
def test_the_first_to_finish_is_right_as_often_and_as_late_as_it_should_be(n):
    """Accuracy 1 − 0.3ⁿ, latency 10 + 10·0.3ⁿ. Two comparisons: a false alarm is below 5e-5."""
    posteriors = fk.infer([race()] * 400, fk.FirstFinish(n), seed=n)
    assert all(len(p) == 1 and p.complete.all() for p in posteriors)
    assert abs(z_score([p.best() for p in posteriors], 1 - 0.3**n)) < Z_LIMIT
    assert abs(z_score([len(p.steps) for p in posteriors], 10 + 10 * 0.3**n)) < Z_LIMIT


def test_the_first_k_vote_and_the_others_stop():
    lengths = (5, 2, 4, 2, 3, 9, 9, 9)
    model = Scripted(lambda path: 0.0, lambda path: len(path) >= lengths[path[0]])
    posterior = fk.infer(model, fk.FirstFinish(8, first=4, key=lambda path: path[0] in (1, 2)), seed=0)
    assert [path[0] for path in posterior.values] == [1, 3, 4, 2]
    assert posterior.vote() == {True: 0.5, False: 0.5}
    assert len(model.waves) == 4  # nobody waits for the others
    assert [len(wave) for wave in model.waves] == [8, 8, 6, 5]
    assert posterior.cost.nfe == 27
    assert fk.infer(model, fk.FirstFinish(8, first=3, key=lambda path: path[0] > 2), seed=0).best()[0] == 3


def test_those_that_finish_together_are_put_in_order_by_length():
    values = ["longest one", "short", "longer"]
    for engine, expected in (
        (fk.FirstFinish(3), "longest one"),
        (fk.FirstFinish(3, length=len), "short"),
    ):
        assert fk.infer(Queue(values), engine, seed=0).values == (expected,)
    two = fk.infer(Queue(values), fk.FirstFinish(3, first=2, length=len), seed=0)
    assert two.values == ("short", "longer")


def test_the_dead_do_not_finish():
    posterior = fk.infer(Queue("abc", [0.0, 0.0, 1.0]), fk.FirstFinish(3), seed=0)
    assert posterior.values == ("c",)
    three = fk.infer(Queue("abc", [0.0, 1.0, 1.0]), fk.FirstFinish(3, first=3), seed=0)
    assert three.values == ("b", "c")


# -- adaptive consistency -----------------------------------------------------------------------------------------


def test_the_chance_of_a_majority_is_that_of_the_beta_law():
    stats = pytest.importorskip("scipy.stats")
    for first, second in itertools.product(range(12), repeat=2):
        assert majority(first, second) == pytest.approx(stats.beta(first + 1, second + 1).sf(0.5), abs=1e-12)


@pytest.mark.parametrize("batch", [1, 3])
def test_it_stops_at_the_first_look_at_which_the_majority_is_safe(batch):
    """Every sequence of nine answers, against the rule."""
    for sequence in itertools.product("ab", repeat=9):
        if sequence[0] == "b":
            continue
        expected = 9
        for drawn in [*range(batch, 9, batch), 9]:
            counts = sorted((sequence[:drawn].count(x) for x in "ab"), reverse=True)
            if majority(*counts) >= 0.95:
                expected = drawn
                break
        posterior = fk.infer(Queue(sequence), fk.AdaptiveConsistency(9, batch=batch), seed=0)
        assert len(posterior) == expected
        assert posterior.values == sequence[:expected]
        assert posterior.vote()["a"] == pytest.approx(sequence[:expected].count("a") / expected)


def test_only_the_two_answers_ahead_are_compared_and_the_dead_have_no_vote():
    assert len(fk.infer(Queue("abababcccccccc"), fk.AdaptiveConsistency(14), seed=0)) == 14
    assert len(fk.infer(Queue("abcdaaaaaaaa"), fk.AdaptiveConsistency(12), seed=0)) == 4 + 5
    dead = fk.infer(Queue("aaaaaaaa", [1, 0, 1, 0, 1, 0, 1, 1]), fk.AdaptiveConsistency(8), seed=0)
    assert dead.values == ("a",) * 4
    assert dead.complete.all()


def test_it_draws_what_self_consistency_draws():
    whole = fk.infer(t2(), fk.SelfConsistency(24), seed=3)
    adaptive = fk.infer(t2(), fk.AdaptiveConsistency(24, threshold=0.999999, batch=5), seed=3)
    assert len(adaptive) == 24
    assert sorted(adaptive.values) == sorted(whole.values)
    assert adaptive.vote() == pytest.approx(whole.vote())
    early = fk.infer(t2(), fk.AdaptiveConsistency(24, threshold=0.8, batch=5), seed=3)
    assert sorted(early.values) == sorted(whole.values[: len(early)])
    assert 5 <= len(early) < 24
    assert math.isnan(adaptive.log_evidence)


# -- best-of-N that knows when to stop ------------------------------------------------------------------------------


@pytest.mark.parametrize(("a", "most", "mean"), [(0.5, 3, 1.75), (0.3, 4, (1 - 0.7**4) / 0.3)])
def test_the_mean_number_of_draws_is_that_of_the_geometric_law(a, most, mean):
    found = 0.0
    for passes in itertools.product([True, False], repeat=most):
        rewards = [0.8 + 0.01 * i if ok else 0.3 + 0.01 * i for i, ok in enumerate(passes)]
        posterior = fk.infer(Queue(range(most), rewards), fk.AdaptiveBestOfN(most, threshold=0.7), seed=0)
        found += math.prod(a if ok else 1 - a for ok in passes) * len(posterior)
        assert posterior.best() == int(np.argmax(rewards[: len(posterior)]))
    assert found == pytest.approx(mean)


def test_a_judge_of_values_does_as_well_and_is_asked_once_for_each():
    asked = []

    def judge(value):
        asked.append(value)
        return value / 10

    engine = fk.AdaptiveBestOfN(6, threshold=0.65, batch=2, judge=judge)
    posterior = fk.infer(Queue([3, 5, 1, 7, 9, 9]), engine, seed=0)
    assert posterior.values == (3, 5, 1, 7)
    assert posterior.best() == 7
    assert asked == [3, 5, 1, 7]
    worthless = fk.infer(Queue([0, 0]), fk.AdaptiveBestOfN(2, threshold=0.5, judge=judge), seed=0)
    assert worthless.best() == 0
    assert worthless.complete.all()
    with pytest.raises(fk.errors.InvalidWeight, match=r"the judge of AdaptiveBestOfN returned 2.0 for 20"):
        fk.infer(Queue([20]), fk.AdaptiveBestOfN(1, threshold=0.5, judge=judge), seed=0)
    with pytest.raises(ZeroDivisionError) as caught:
        fk.infer(Queue([1]), fk.AdaptiveBestOfN(1, threshold=0.5, judge=lambda value: 1 / 0), seed=0)
    assert "in the judge of AdaptiveBestOfN, for the value 1" in caught.value.__notes__[0]


def test_the_dead_are_not_judged():
    asked = []
    engine = fk.AdaptiveBestOfN(2, threshold=0.5, judge=lambda value: asked.append(value) or 1.0, all_dead="zero")
    posterior = fk.infer(Queue("ab", [0.0, 0.0]), engine, seed=0)
    assert (posterior.log_weights == -math.inf).all()
    assert asked == []


@pytest.mark.parametrize("judged", [False, True])
def test_the_poor_are_dropped_on_their_way(judged):
    """Eight runs of four steps; half go on after the first step, half of those after the third."""
    worth = (0.2, 0.9, 0.4, 0.7, 0.1, 0.6, 0.3, 0.5)

    def level(path):
        return worth[path[0]]

    model = Scripted(lambda path: 0.0 if judged else math.log(level(path)), lambda path: len(path) == 4)
    engine = fk.AdaptiveBestOfN(8, threshold=1.0, batch=8, prune={0: 0.5, 2: 0.5}, judge=level if judged else None)
    posterior = fk.infer(model, engine, seed=0)
    assert [sorted(path[0] for path in wave) for wave in model.waves] == [
        list(range(8)), [1, 3, 5, 7], [1, 3, 5, 7], [1, 3],
    ]  # fmt: skip
    assert posterior.best()[0] == 1
    assert len(posterior) == 2
    again = fk.infer(Scripted(lambda path: -1.0, model.ends), fk.AdaptiveBestOfN(8, 1.0, 3, prune={0: 0.34}), seed=0)
    assert len(again) == 2 + 2 + 1  # a third of three, rounded up


def test_a_twist_guides_the_pruning_and_the_factor_decides():
    model = Scripted(
        lambda path: math.log(0.9 if path[0] == 2 else 0.2) if len(path) == 3 else 0.0,
        lambda path: len(path) == 3,
        twist=lambda path: math.log((0.1, 0.8, 0.7, 0.2)[path[0]]),
    )
    posterior = fk.infer(model, fk.AdaptiveBestOfN(4, threshold=0.99, batch=4, prune={1: 0.5}), seed=0)
    assert {path[0] for path in posterior.values} == {1, 2}
    assert posterior.best()[0] == 2


# -- what they share ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_keys_costs_seeds_and_files(engine, tmp_path):
    model = chain()
    posterior = fk.infer(model, engine, seed=3)
    assert len(model.keys) == len(set(model.keys)) == posterior.cost.nfe
    assert posterior.complete.all()
    again = fk.infer(chain(), engine, seed=3)
    assert again.values == posterior.values
    posterior.save(tmp_path / "p.fk")
    loaded = fk.Posterior.load(tmp_path / "p.fk")
    assert loaded.values == posterior.values
    assert loaded.best() == posterior.best()
    assert loaded.vote() == posterior.vote()
    assert posterior.guarantee == "heuristic"
    alone = fk.infer(t2(), engine, seed=5)
    together = fk.infer([t2(), race()], engine, seed=5)
    assert together[0].values == alone.values


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_a_run_can_be_cut_at_any_wave(engine):
    whole = chain()
    fk.infer(whole, engine, seed=6)
    for calls in range(1, len(whole.calls) - engine.chains + 1):
        posterior = fk.infer(chain(), engine, seed=6, budget=fk.Budget(model_calls=calls))
        assert posterior.stopped == "model_calls"
        assert posterior.probabilities.sum() == pytest.approx(1.0)
        if posterior.complete.any():
            assert posterior.complete[np.argmax(posterior.log_weights)]
            assert posterior.vote()
        assert posterior.best() is not None


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_all_dead(engine):
    check_all_dead(engine)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fk.FirstFinish(0), "particles must be a positive integer"),
        (lambda: fk.FirstFinish(3, first=4), "first must not be above the 3 particles, not 4"),
        (lambda: fk.FirstFinish(3, key="x"), "key must be a function"),
        (lambda: fk.FirstFinish(3, length=3), "length must be a function"),
        (lambda: fk.FirstFinish(3, all_dead="no"), "all_dead must be"),
        (lambda: fk.AdaptiveConsistency(3, threshold=0.5), "threshold is a probability between 1/2 and 1"),
        (lambda: fk.AdaptiveConsistency(3, batch=0), "batch must be a positive integer"),
        (lambda: fk.AdaptiveBestOfN(3, threshold=0.0), "threshold is a probability above 0"),
        (lambda: fk.AdaptiveBestOfN(3, threshold=0.5, prune={1: 0.0}), "prune gives for depths"),
        (lambda: fk.AdaptiveBestOfN(3, threshold=0.5, judge=1), "judge must be a function"),
    ],
)
def test_settings_are_checked_when_they_are_made(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# -- on a language model ------------------------------------------------------------------------------------------


@fk.program
async def chatter(lm):
    text = lm.prompt("Once upon a river there was")
    while "r" not in str(text) and len(text.tokens) < 12:
        text = await fk.sample("token", lm.tokens(text, 2))
        await fk.factor("prm", math.log(0.05 + 0.9 / (1.0 + str(text).count("e"))))
    return text


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_runs_of_a_language_model_keep_its_cache(engine):
    pytest.importorskip("torch")
    from feynkac.models.testing import tiny_lm
    from feynkac.ppl.score import evaluate

    lm = tiny_lm()
    posterior = fk.infer(chatter(lm), engine, seed=8)
    prompt = len(lm.prompt("Once upon a river there was").prompt_tokens)
    assert posterior.cost.tokens_in <= prompt + posterior.cost.tokens_out
    fresh = evaluate([tiny_lm().score(text) for text in posterior.values])
    assert [text.log_prob for text in posterior.values] == pytest.approx(fresh, abs=1e-3)


def scripted_lm(monkeypatch, *script):
    """A model that says the given tokens, one after another; None is the end token."""
    torch = pytest.importorskip("torch")
    from feynkac.models.local.passes import drawing
    from feynkac.models.testing import tiny_lm

    lm = tiny_lm()
    (eos,) = lm.eos
    tokens = iter(token for part in script for token in ([eos] if part is None else lm.encode(part)))
    monkeypatch.setattr(
        drawing, "drawn", lambda logits, uniforms, *_: torch.tensor([[float(next(tokens)), -1.0] for _ in uniforms])
    )
    return lm


@pytest.mark.parametrize("stop", [None, "."])
def test_a_thought_that_would_end_is_told_to_wait(monkeypatch, stop):
    """A model that stops after five tokens, ignored twice: three segments and two "Wait"s."""
    lm = scripted_lm(monkeypatch, *[*"abcd", stop] * 3)
    start = lm.prompt("Why").append(" -")
    run = fk.simulate(fk.models.think(lm, start, end=".", wait=" Wait ", ignore=2), seed=0)
    assert [site.name for site in run.sites] == ["thought"] * 3
    assert str(run.value) == " -abcd Wait abcd Wait abcd."
    assert run.value.steps == (" -", "abcd", " Wait ", "abcd", " Wait ", "abcd", ".")
    assert run.value.log_prob == -15.0
    # The tokens are what they would have been, had nobody said the end.
    assert run.value.tokens == tuple(
        t for part in (" -", *"abcd", " Wait ", *"abcd", " Wait ", *"abcd", ".") for t in lm.encode(part)
    )
    assert lm.attach(run.value.detach()) == run.value


def test_a_thought_is_ended_at_its_budget(monkeypatch):
    lm = scripted_lm(monkeypatch, *"abcdefgh", ".")
    run = fk.simulate(fk.models.think(lm, lm.prompt("Why"), end=".", ignore=5, max_tokens=6), seed=0)
    assert str(run.value) == "abcdef."
    lm = scripted_lm(monkeypatch, *"abc", ".", *"defgh")
    run = fk.simulate(fk.models.think(lm, lm.prompt("Why"), end=".", wait="-", ignore=5, max_tokens=6), seed=0)
    assert str(run.value) == "abc-de."  # four tokens, and the two that were left


def test_what_stands_before_the_end_in_its_token_is_kept(monkeypatch):
    lm = scripted_lm(monkeypatch, *"ab", "is so", *"cd", None)
    assert len(lm.encode("is so")) < 5
    run = fk.simulate(fk.models.think(lm, lm.prompt("Why"), end="s so", wait="+", ignore=1), seed=0)
    assert str(run.value) == "abi+cds so"
    lm = scripted_lm(monkeypatch, *"ab", "he", *"cd", "he")
    assert len(lm.encode("he")) == 1
    run = fk.simulate(fk.models.think(lm, lm.prompt("Why"), end="e", wait="+", ignore=1), seed=0)
    assert str(run.value) == "abh+cdhe"


def test_every_segment_is_counted_and_none_begins_without_tokens(monkeypatch):
    lm = scripted_lm(monkeypatch, *"ab.", *"cd.", *"efghij")
    start = lm.prompt("Why").append("0123")  # what is given does not count
    run = fk.simulate(fk.models.think(lm, start, end=".", wait="-", ignore=5, max_tokens=8), seed=0)
    assert str(run.value) == "0123ab-cd-ef."
    lm = scripted_lm(monkeypatch, *"ab.")
    run = fk.simulate(fk.models.think(lm, lm.prompt("Why"), end=".", max_tokens=3), seed=0)
    assert str(run.value) == "ab."  # it ended itself, and there is nothing left to think with


def test_a_thought_that_ends_at_once_leaves_no_empty_step(monkeypatch):
    lm = scripted_lm(monkeypatch, ".", *"ab.")
    run = fk.simulate(fk.models.think(lm, lm.prompt("Why"), end="."), seed=0)
    assert run.value.steps == ("Wait", "ab", ".")


def test_a_thought_that_is_imposed_and_has_no_end_is_ended(monkeypatch):
    lm = scripted_lm(monkeypatch, *"cd.")
    start = lm.prompt("Why")
    imposed = fk.handlers.do(fk.models.think(lm, start, end="."), data={"thought": start.append("ab")})
    assert str(fk.simulate(imposed, seed=0).value) == "ab."


def test_a_thought_is_sampled_as_it_is_told():
    pytest.importorskip("torch")
    from feynkac.models.testing import tiny_lm

    lm = tiny_lm()
    cold = fk.models.think(lm, lm.prompt("Why"), end="§", max_tokens=8, temperature=0)
    assert len({str(fk.simulate(cold, seed=seed).value) for seed in range(3)}) == 1


def test_a_thought_runs_under_engines_and_stops_at_the_context():
    pytest.importorskip("torch")
    from feynkac.models.testing import tiny_lm

    lm = tiny_lm()

    @fk.program
    async def answer(lm):
        text = await fk.models.think(lm, lm.prompt("Why?"), end="e", wait=" Wait", max_tokens=12)
        await fk.factor("short", -0.1 * len(text.tokens))
        return await fk.sample("answer", lm.tokens(text, 2))

    for engine in (fk.SMC(6, ess_threshold=1.0), fk.BestOfN(4), fk.BeamSearch(4, 2)):
        posterior = fk.infer(answer(lm), engine, seed=1)
        assert posterior.complete.all()
        assert all("e" in str(text) for text in posterior.values)
    small = tiny_lm(context=16)
    full = fk.simulate(fk.models.think(small, small.prompt("Why?"), end="§", max_tokens=100), seed=0).value
    assert full.finish_reason == "context"
    for bad in ({"ignore": -1}, {"max_tokens": 0}):
        with pytest.raises(ValueError, match="must be at least"):
            fk.simulate(fk.models.think(lm, lm.prompt("Why?"), **bad), seed=0)
