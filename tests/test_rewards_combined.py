"""Several rewards as one; a batched Python library as a reward; the front door."""

from __future__ import annotations

import math
from statistics import median

import pytest

import feynkac as fk
from feynkac.models.rewards import Ensemble
from feynkac.ppl.score import evaluate
from laws import check_unbiased

VALUES = {"a": (0.2, 0.9, 0.5), "b": (0.8, 0.1, 0.6), "c": (0.0, 1.0, 0.3)}


def member(i, kind="probability"):
    return fk.reward(lambda text: VALUES[text][i], kind=kind, name=f"r{i}")


@pytest.mark.parametrize("kind", ["probability", "real", "log_weight"])
@pytest.mark.parametrize(
    ("how", "weights", "reduce"),
    [
        ("mean", None, lambda v: sum(v) / 3),
        ("mean", [1, 2, 5], lambda v: (v[0] + 2 * v[1] + 5 * v[2]) / 8),
        ("min", None, min),
        ("max", None, max),
        ("median", None, median),
        ("product", None, math.prod),
        ("geometric", None, lambda v: math.prod(v) ** (1 / 3)),
        ("geometric", [0, 1, 3], lambda v: (v[1] * v[2] ** 3) ** 0.25),
    ],
)
def test_ensembles_are_what_they_say(kind, how, weights, reduce):
    ensemble = Ensemble([member(i, kind) for i in range(3)], how=how, weights=weights)
    if kind != "probability" and how in ("product", "geometric"):
        with pytest.raises(fk.errors.AmbiguousScore, match=f"a {how} is of probabilities, but .* is a {kind}"):
            ensemble("a")
        return
    scores = [ensemble(text) for text in VALUES]
    assert {score.kind for score in scores} == {kind}
    assert evaluate(scores) == pytest.approx([reduce(values) for values in VALUES.values()])


def test_scores_at_hand_are_combined_and_combinations_again():
    a, b, c = (member(i) for i in range(3))
    inner = fk.combine([a("a"), b("b")], "min")
    outer = fk.combine([inner, c("a"), a("b")])
    assert evaluate([outer, outer.log(), inner.log() * 2]) == pytest.approx(
        [(0.1 + 0.5 + 0.8) / 3, math.log(1.4 / 3), 2 * math.log(0.1)]
    )
    assert repr(outer) == "<probability score of r0 and r1 and r2 and r0>"
    logs = fk.combine([a("a").log(), b("a").log()], weights=[3, 1])
    assert evaluate([logs]) == pytest.approx([0.75 * math.log(0.2) + 0.25 * math.log(0.9)])


def test_members_share_inputs_and_caches():
    calls = []

    @fk.reward(kind="probability", batched=True)
    def counted(texts):
        calls.append(list(texts))
        return [0.5] * len(texts)

    ensemble = Ensemble([counted, member(0), counted])
    evaluate([ensemble("a"), ensemble("b"), ensemble("a")])
    assert calls == [["a", "b"]]
    assert repr(ensemble) == "<mean of counted and r0 and counted>"


def test_what_cannot_be_combined_is_refused():
    a, real = member(0), member(1, "real")
    with pytest.raises(fk.errors.AmbiguousScore, match="of different kinds; make all log-weights and add them"):
        fk.combine([a("a"), real("a")])
    for how, weights, message in [
        ("mode", None, "how must be"),
        ("min", [1, 2], "weights are for a mean"),
        ("mean", [1], "weights must be 2 numbers"),
        ("mean", [1, -1], "not negative"),
        ("mean", [0, 0], "not all 0"),
        ("mean", [1, math.nan], "weights must be"),
    ]:
        with pytest.raises(ValueError, match=message):
            Ensemble([a, a], how=how, weights=weights)
    with pytest.raises(ValueError, match="no scores to combine"):
        fk.combine([])


def test_an_ensemble_in_a_program_is_exact():
    ensemble = Ensemble([member(0), member(1)], how="geometric", weights=[2, 1])

    @fk.program
    async def model():
        text = await fk.sample("x", fk.dist.Categorical([0.5, 0.3, 0.2], values=["a", "b", "c"]))
        await fk.factor("G", ensemble(text).log())
        return text

    exact = fk.enumerate_program(model())
    truth = [p * (VALUES[x][0] ** 2 * VALUES[x][1]) ** (1 / 3) for x, p in (("a", 0.5), ("b", 0.3))]
    assert exact.log_evidence == pytest.approx(math.log(sum(truth)))
    assert exact.law() == pytest.approx({"a": truth[0] / sum(truth), "b": truth[1] / sum(truth)})
    engine = fk.SMC(4, all_dead="zero")
    check_unbiased(model(), engine, exact.law(), exact.log_evidence, runs=500)


def test_vader_is_a_batched_python_reward():
    module = pytest.importorskip("vaderSentiment.vaderSentiment")
    analyser = module.SentimentIntensityAnalyzer()
    seen = []

    @fk.reward(batched=True)
    def sentiment(texts):
        seen.append(list(texts))
        return [analyser.polarity_scores(str(text))["compound"] for text in texts]

    @fk.program
    async def review():
        text = await fk.sample("text", fk.dist.Categorical([0.5, 0.3, 0.2], values=["awful", "fine", "wonderful"]))
        await fk.factor("sentiment", sentiment(text) / 0.5)
        return text

    low, middle, high = evaluate([sentiment(text) for text in ("awful", "fine", "wonderful")])
    assert low < -0.3 < 0 < middle < high
    law = fk.enumerate_program(review()).law()
    assert law["wonderful"] / law["awful"] == pytest.approx(0.4 * math.exp((high - low) / 0.5))
    assert seen == [["awful", "fine", "wonderful"]]


def test_the_front_door():
    for name in fk.rewards.__all__:
        assert getattr(fk.rewards, name).__doc__
    assert fk.models.Judge is fk.rewards.Judge
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        fk.rewards.Nothing
