"""Curves over problems with their intervals, judges by another quadrature, variances from draws, costs of runs."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

import feynkac as fk
from feynkac import scaling
from feynkac.models.testing import ScriptedLM


@fk.program
async def guess(p):
    right = await fk.sample("right", fk.dist.Bernoulli(p))
    await fk.factor("judge", 0.5 * right)
    return right


def correct(value, problem):
    return bool(value)


def test_intervals_of_curves_cover_what_they_say():
    """40 problems of known law: the mean of a curve, and its area, lie in the intervals as often as they should."""
    rng, k = np.random.default_rng(0), np.array([1, 2, 4])
    mean, area, runs = 0, 0, 150
    truth = np.array([np.mean(1 - (1 - np.linspace(0.0, 1.0, 10_001)) ** n) for n in k])
    for run in range(runs):
        p = rng.random(40)
        curve = scaling.Curve(k, rng.random((40, 3)) < 1 - (1 - p[:, None]) ** k)
        _, low, high = curve.interval(0)
        mean += low <= truth[0] <= high
        _, low, high = curve.estimate(scaling.anytime, seed=run, draws=200)
        area += low <= truth.mean() <= high
    # An interval that covers .95 (.92 by percentiles of 40) fails these with probability below 2e-5.
    assert mean / runs > 0.95 - 4.3 * math.sqrt(0.95 * 0.05 / runs)
    assert area / runs > 0.92 - 4.3 * math.sqrt(0.92 * 0.08 / runs)


def test_a_difference_is_paired_by_problem():
    rng = np.random.default_rng(0)
    table = rng.random((50, 1)) + np.array([0.0, 0.1])
    one, other = scaling.Curve([1, 2], table), scaling.Curve([1, 2], table + 0.05)
    gap = (other - one).estimate(np.mean, seed=0)
    assert gap.low == pytest.approx(0.05)
    assert gap.high == pytest.approx(0.05)
    assert one.estimate(np.mean, seed=0).high - one.estimate(np.mean, seed=0).low > 0.1
    with pytest.raises(ValueError, match="same sizes"):
        one - scaling.Curve([1, 3], one.table)


def test_one_problem_has_a_curve_but_no_interval():
    curve = scaling.Curve([1, 2], [[0.3, 0.4]])
    assert math.isnan(curve.estimate(np.mean, seed=0).low)
    assert np.isnan(curve.error).all()
    assert curve.interval().mean.tolist() == [0.3, 0.4]


def test_curves_of_posteriors_are_what_subsets_say():
    posteriors = fk.infer([guess(0.3), guess(0.6)], fk.ImportanceSampling(7), seed=1)
    seen = [p.values for p in posteriors]
    truth = [np.mean([max(s) for s in itertools.combinations(values, 3)]) for values in seen]
    assert scaling.pass_at_k(posteriors, correct, [3]).table[:, 0].tolist() == pytest.approx(truth)
    assert scaling.best_of_k(posteriors, correct, [3]).table[:, 0].tolist() == pytest.approx(truth)  # it knows
    worst = [np.mean([min(s) for s in itertools.combinations(values, 3)]) for values in seen]
    assert scaling.pass_at_k(posteriors, correct, [3], "worst").table[:, 0].tolist() == pytest.approx(worst)


@pytest.mark.parametrize("engine", [fk.SMC(8, ess_threshold=1.0), fk.SuffixMH(8), fk.MCMC(fk.SuffixMH(1), 8)])
@pytest.mark.parametrize("tool", [scaling.pass_at_k, scaling.best_of_k])
def test_runs_that_depend_on_each_other_are_refused(engine, tool):
    @fk.program
    async def twice():
        first = await fk.sample("first", fk.dist.Bernoulli(0.5))
        await fk.factor("a", 1.0 * first)
        return first + await fk.sample("second", fk.dist.Bernoulli(0.5))

    with pytest.raises(ValueError, match="depend on each other"):
        tool([fk.infer(twice(), engine, seed=0)], correct, [2])


@pytest.mark.parametrize(
    ("mean", "sd", "peak", "truth", "k"),
    [(0, 1, 2, 1, 4), (0, 1, 2, 1, 6), (0, 1, 2, 1, 16), (0.3, 1.5, 2, 1, 5), (0, 0.1, 3, 1, 7), (0, 1, 1, 1, 10**5)],
)
def test_the_error_of_best_of_k_is_what_scipy_integrates(mean, sd, peak, truth, k):
    integrate, stats = pytest.importorskip("scipy.integrate"), pytest.importorskip("scipy.stats")
    law = stats.norm(mean, sd)

    def integrand(u):
        farther = law.cdf(peak - u) + law.sf(peak + u)
        return k * farther ** (k - 1) * sum(law.pdf(y) * (y - truth) ** 2 for y in (peak + u, peak - u))

    end = abs(peak - mean) + 12 * sd
    points = [end * share for share in (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 0.5)]
    found = integrate.quad(integrand, 0, end, points=points, limit=500, epsabs=1e-15, epsrel=1e-11)[0]
    assert scaling.Judge(mean, sd, peak, truth).best_of(k) == pytest.approx(found, rel=1e-9)


@pytest.mark.parametrize(("k", "asymptote"), [(4, 0.53373), (64, 0.00208490), (256, 0.000130306)])
def test_a_judge_that_knows_errs_as_the_asymptote_says_in_the_end(k, asymptote):
    assert math.pi * math.e / k**2 == pytest.approx(asymptote, rel=1e-4)
    found = scaling.Judge(0.0, 1.0, 1.0).best_of(k)
    assert found < asymptote
    assert k < 64 or found == pytest.approx(asymptote, rel=3.0 / k)


def test_variances_estimated_from_draws_are_unbiased():
    rng = np.random.default_rng(0)
    p = np.array([[0.9, 0.5], [0.1, 0.3], [0.6, 0.6]])
    truth = scaling.Variability.of(p)
    found = np.array(
        [
            (v.task, v.paraphrase, v.sampling)
            for v in (scaling.Variability.estimate(rng.random((3, 2, 3)) < p[:, :, None]) for _ in range(2_000))
        ]
    )
    z = (found.mean(0) - [truth.task, truth.paraphrase, truth.sampling]) / (found.std(0) / math.sqrt(len(found)))
    assert np.abs(z).max() < 4.5  # 3 comparisons: 3 × 6.8e-6 = 2.0e-5


def test_lengths_are_compared_within_problems():
    """A hard problem of long answers makes wrong ones longer overall; within each problem they are shorter."""
    lengths = [10, 10, 10, 9, 30, 29, 29, 29]
    right = [1, 1, 1, 0, 1, 0, 0, 0]
    assert scaling.length_gap(lengths, right).difference < 0
    within = scaling.length_gap(lengths, right, [0] * 4 + [1] * 4)
    assert within.difference == pytest.approx(1.0)
    assert (within.right, within.wrong) == (20.0, 19.0)


def test_kinetics_counts_the_positions_that_attention_reads():
    cost, lengths, prompt = scaling.Kinetics(5.0, 3, 2, 7), [4, 9, 1], 6
    steps = [(n, t) for n in lengths for t in range(n)]
    pairs = sum(prompt + t + 0.5 for _, t in steps)  # a step at t reads t to t + 1 positions beside the prompt
    compute, memory = cost(prompt, lengths)
    assert compute == pytest.approx(2 * 5.0 * len(steps) + 4 * pairs * 3 * 7)
    reads = prompt * max(lengths) + sum(t + 0.5 for _, t in steps)  # the prompt once for all at each step
    assert memory == pytest.approx(562.5 * 2 * 2 * reads * 2 * 7)


def test_kinetics_of_a_run_is_that_of_its_lengths():
    pytest.importorskip("torch")
    from feynkac.models.testing import tiny_lm

    lm = tiny_lm()

    @fk.program
    async def write(prompt):
        return await fk.sample("text", lm.complete(lm.prompt(prompt), max_tokens=5))

    cost = scaling.Kinetics.of(lm)
    posterior = fk.infer(write("one"), fk.ImportanceSampling(3), seed=0)
    prompt = len(posterior.values[0].prompt_tokens)
    assert cost.run(posterior) == cost(prompt, [len(text.tokens) for text in posterior.values])
    with pytest.raises(TypeError, match="no texts"):
        cost.run(fk.infer(guess(0.5), fk.ImportanceSampling(2), seed=0))
    with pytest.raises(TypeError, match="four numbers"):
        scaling.Kinetics.of(object())


@fk.program
async def three_lines(lm):
    text = lm.prompt("Q: ")
    for _ in range(3):
        text = await fk.sample("line", lm.line(text))
        await fk.factor("a", float(str(text).count("a")))
        if text.finished:
            break
    return text


def test_kinetics_of_a_particle_filter_is_told_by_its_steps():
    """Lines of two tokens, resampled each time: what was drawn and dropped is counted; level ones are the formula's."""
    lm = ScriptedLM(lambda before: {"a\n": 0.5, "b\n": 0.5})
    cost = scaling.Kinetics(5.0, 3, 2, 7)
    posterior = fk.infer(three_lines(lm), fk.SMC(4, ess_threshold=1.0), seed=0)
    assert any(step.resampled for step in posterior.steps)
    with pytest.raises(ValueError, match="depend on each other"):
        cost.run(posterior)
    drawn = posterior.cost.tokens_out // 4
    steps = cost.steps(posterior)
    assert steps.shape == (len(posterior.steps), 2)
    assert steps.sum(0) == pytest.approx(cost(len(posterior.values[0].prompt_tokens), drawn, n=4))
    assert (np.diff(steps[:3], axis=0) > 0).all()  # later lines read more


def test_kinetics_of_steps_counts_those_that_go_on():
    """One ends after its first line, which is known by its length: the rest is that of three."""
    lm = ScriptedLM(lambda before: {"a\n": 0.5, "b": 0.5} if before.endswith(": ") else "a\n")
    posterior = fk.infer(three_lines(lm), fk.ImportanceSampling(8), seed=1)
    first = posterior.steps[0]
    going = int((~first.done).sum())
    assert 0 < going < 8
    steps = scaling.Kinetics(1.0, 1, 1, 1).steps(posterior)
    prompt, length = len(posterior.values[0].prompt_tokens), first.cost.tokens_out / 8
    more = (posterior.steps[1].cost.tokens_out - first.cost.tokens_out) / going
    own = going * ((length + more) ** 2 - length**2)
    assert steps[1] == pytest.approx([2 * going * more * (1 + 2 * prompt) + 2 * own, 1125 * (2 * prompt * more + own)])
    with pytest.raises(ValueError, match="each of its steps"):
        scaling.Kinetics(1.0, 1, 1, 1).steps(fk.infer(three_lines(lm), fk.SMC(4, chains=2), seed=0))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: scaling.Curve([1, 2], [[0.1]]),
        lambda: scaling.Curve([2, 1], [[0.1, 0.2]]),
        lambda: scaling.Curve([1], [[math.nan]]),
        lambda: scaling.Curve([], [[]]),
        lambda: scaling.pass_at_k([], correct, [1]),
        lambda: scaling.pass_at_k([], correct, [1], "other"),
        lambda: scaling.Variability.estimate([[[1], [0]]]),
        lambda: scaling.Variability.estimate([[[0.5, 0.2]]]),
        lambda: scaling.length_gap([1, 2], [1, 0], [0, 0]),
        lambda: scaling.length_gap([1, 2], [1, 0], [0]),
        lambda: scaling.length_gap([1, 2, 3], [1, 0]),
        lambda: scaling.Kinetics(1, 1, 1, 1)(3, [1, 2], n=2),
        lambda: scaling.Kinetics(1, 1, 1, 1)(3, []),
        lambda: scaling.Kinetics(1, 1, 1, 1)(-3, 1),
    ],
)
def test_what_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError):
        wrong()


def test_curves_and_judges_are_drawn():
    pytest.importorskip("matplotlib")
    curve = scaling.Curve([1, 2, 4, 16], np.arange(12).reshape(3, 4) / 12)
    figure = curve.plot("one", fit=scaling.Saturation(0.6, 0.2))
    assert (curve - curve).plot("two", ax=figure.axes[0]) is figure
    assert {text.get_text() for text in figure.axes[0].texts} == {"one", "two"}
    assert len(figure.axes[0].containers) == 2
    assert "k = 6" in {text.get_text() for text in scaling.Judge(0.0, 1.0, 2.0, 1.0).plot(32).axes[0].texts}
