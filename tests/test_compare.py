"""Comparisons of engines: counts, intervals, failures, interruption and budget."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest

import feynkac as fk
from feynkac.inference.comparison import intervals
from feynkac.inference.comparison.plot_comparison import front, spread
from feynkac.inference.comparison.trials import Row
from laws import Z_LIMIT


@fk.program
async def coin(p=0.5, steps=1):
    heads = 0
    for _ in range(steps):
        heads = await fk.sample("heads", fk.dist.Bernoulli(p))
        await fk.factor("G", 0.0)
    return heads


@fk.program
async def needle(p=0.0):
    """Dies unless a rare event comes true."""
    found = await fk.sample("found", fk.dist.Bernoulli(p))
    await fk.factor("G", 0.0 if found else -math.inf)
    return found


def first_value(posterior):
    return float(posterior.values[0])


# -- counts -----------------------------------------------------------------------------------------------------


def test_each_engine_runs_with_each_seed_on_each_problem_as_infer_does():
    models, engines = [coin(0.3), coin(0.6), coin(0.9)], [fk.SMC(4), fk.BestOfN(3)]
    found = fk.compare(models, engines, metric=lambda p: p.expect(float), seeds=(5, 7))
    assert found.engines == ("SMC(4)", "BestOfN(3)")
    assert [(t.seed, t.engine, t.model) for t in found.trials] == [
        (seed, name, i) for seed in (5, 7) for name in found.engines for i in range(3)
    ]
    for trial in found.trials:
        engine = engines[found.engines.index(trial.engine)]
        posterior = fk.infer(models, engine, seed=trial.seed)[trial.model]
        assert trial.quality == posterior.expect(float)
        assert trial.log_evidence == posterior.log_evidence
        assert trial.ess == posterior.ess
        assert trial.particles == len(posterior)
    assert [(run.engine, run.seed) for run in found.runs] == [(n, s) for s in (5, 7) for n in found.engines]


def test_means_are_those_of_the_trials_and_costs_those_of_a_run():
    scored = fk.reward(kind="probability")(lambda value: 0.5 + 0.4 * value)

    @fk.program
    async def judged(p, steps):
        total = 0
        for t in range(steps):
            total += 10**t * await fk.sample("heads", fk.dist.Bernoulli(p))
            await fk.factor("G", scored(total / 10**steps).log())
        return total

    models = [judged(0.5, 2), judged(0.5, 3)]
    found = fk.compare(models, [fk.SMC(8), fk.SMC(30)], metric=lambda p: p.ess, seeds=range(4))
    for row in found.table():
        trials = [t for t in found.trials if t.engine == row.engine]
        assert row.quality.mean == pytest.approx(np.mean([t.ess for t in trials]))
        assert row.ess == pytest.approx(row.quality.mean)
        assert row.log_evidence == pytest.approx(np.mean([t.log_evidence for t in trials]))
        assert row.reward_calls == pytest.approx(sum(t.cost.reward_calls for t in trials) / 4)
        assert row.reward_calls > 0
        assert row.trials == 8
        assert row.seconds == pytest.approx(np.mean([r.cost.seconds for r in found.runs if r.engine == row.engine]))
        assert row.cpu_seconds > 0
    first, second = found.table()
    assert first.difference is None
    assert second.difference.mean == pytest.approx(second.quality.mean - first.quality.mean)


def test_a_metric_may_be_given_for_each_problem():
    metrics = [lambda p: 10.0, lambda p: 20.0]
    found = fk.compare([coin(), coin()], [fk.SMC(2)], metric=metrics, seeds=(0,))
    assert [t.quality for t in found.trials] == [10.0, 20.0]


def test_names_tell_engines_apart():
    engines = [fk.SMC(4), fk.SMC(4, chains=2), fk.SMC(4), fk.SMC(4)]
    found = fk.compare(coin(), engines, metric=first_value, seeds=(0,))
    assert found.engines == ("SMC(4)", "SMC(4, chains=2)", "SMC(4) #2", "SMC(4) #3")
    named = fk.compare(coin(), {"ours": fk.SMC(4), "theirs": fk.SMC(9)}, metric=first_value, reference="theirs")
    assert named.engines == ("ours", "theirs")
    assert named.table()[1].difference is None
    assert named.table()[0].difference is not None


# -- budget -----------------------------------------------------------------------------------------------------


def test_the_budget_is_that_of_each_run():
    scored = fk.reward(batched=True)(lambda values: [0.0 for _ in values])

    @fk.program
    async def long():
        for t in range(50):
            x = await fk.sample("x", fk.dist.Normal(0.0, 1.0))
            await fk.factor("G", scored(x) / 1.0)
            fk.deterministic("output", t)

    found = fk.compare(
        [long(), long()], [fk.SMC(5), fk.SMC(10)], metric=lambda p: len(p.steps), budget=fk.Budget(reward_calls=100)
    )
    for run in found.runs:
        assert run.stopped == "reward_calls"
        assert 100 <= run.cost.reward_calls < 100 + 2 * 10
    assert [row.quality.mean for row in found.table()] == [10.0, 5.0]
    assert [row.stopped for row in found.table()] == [3, 3]
    assert "cut short" in repr(found)


def test_no_engine_is_spared_what_another_one_had_scored():
    scored = fk.reward(kind="real")(lambda value: 0.0)

    @fk.program
    async def judged():
        x = await fk.sample("x", fk.dist.Normal(0.0, 1.0))
        await fk.factor("G", scored(x) / 1.0)

    fk.infer(judged(), fk.SMC(10), seed=0)
    found = fk.compare(judged(), {"a": fk.SMC(10), "b": fk.SMC(10)}, metric=lambda p: 1.0, seeds=(0, 1))
    assert [run.cost.reward_calls for run in found.runs] == [10] * 4
    with fk.afresh():
        fk.infer(judged(), fk.SMC(10), seed=0)
        fk.compare(judged(), [fk.SMC(10)], metric=lambda p: 1.0, seeds=(0,))
        assert fk.infer(judged(), fk.SMC(10), seed=0).cost.reward_calls == 0  # what was known before still is


# -- failures ---------------------------------------------------------------------------------------------------


def test_an_engine_that_fails_on_a_problem_is_recorded_there_and_the_rest_goes_on():
    models = [coin(), needle(0.0), needle(0.5), coin()]
    found = fk.compare(models, [fk.SMC(2, chains=3), fk.SMC(20)], metric=lambda p: 1.0, seeds=range(5))
    for trial in found.trials:
        if trial.model == 1:
            assert trial.error.startswith("AllParticlesDead: all ")
            assert math.isnan(trial.quality)
        elif trial.model in (0, 3) or trial.engine == "SMC(20)":
            assert trial.error is None
            assert trial.quality == 1.0
    alone = [t for t in found.trials if t.model == 3 and t.engine == "SMC(20)"]
    whole = [fk.infer([coin()] * 4, fk.SMC(20), seed=seed)[3].log_evidence for seed in range(5)]
    assert [t.log_evidence for t in alone] == whole
    row = found.table()[1]
    assert (row.failures, row.trials) == (5, 20)
    assert "5 of 20" in repr(found)
    assert "AllParticlesDead" in repr(found)
    assert "AllParticlesDead" in found._repr_html_()


def test_a_failure_may_count_as_a_quality():
    models = [coin(), needle(0.0)]
    found = fk.compare(models, [fk.SMC(4)], metric=lambda p: 1.0, failure=0.0)
    assert found.table()[0].quality.mean == 0.5
    assert found.table()[0].failures == 3
    without = fk.compare(models, [fk.SMC(4)], metric=lambda p: 1.0)
    assert without.table()[0].quality.mean == 1.0


@dataclass(frozen=True)
class Choosy:
    """An engine that refuses some models."""

    particles: int = 2
    chains: int = 1
    guarantee = "heuristic"

    def run(self, model, key):
        if "needle" in repr(model):
            raise fk.errors.Unsupported("Choosy needs a coin")
        yield from fk.SMC(self.particles).run(model, key)


def test_a_model_that_an_engine_refuses_is_a_failure_there():
    found = fk.compare([needle(1.0), coin()], [Choosy(), fk.SMC(2)], metric=lambda p: 1.0, seeds=(0,))
    assert [t.error for t in found.trials] == ["Unsupported: Choosy needs a coin", None, None, None]
    all_failed = fk.compare(needle(1.0), [Choosy()], metric=lambda p: 1.0, seeds=(0,))
    assert math.isnan(all_failed.table()[0].quality.mean)
    assert "1 of 1" in repr(all_failed)
    assert all_failed._repr_html_()


def test_an_error_of_ours_in_a_shared_batch_fails_those_that_still_ran():
    @fk.program
    async def broken(late):
        for t in range(3):
            x = await fk.sample("x", fk.dist.Normal(0.0, 1.0))
            await fk.factor("G", math.nan if late and t == 2 else 0.0 * x)

    found = fk.compare([coin(), broken(True)], [fk.SMC(2)], metric=lambda p: 1.0, seeds=(0,))
    assert found.trials[0].error is None
    assert found.trials[1].error.startswith("InvalidWeight")


def test_a_metric_that_finds_nothing_is_a_failure_and_one_that_is_wrong_is_an_error():
    def picky(posterior):
        raise ValueError("no answer in it")

    found = fk.compare(coin(), [fk.SMC(2)], metric=picky)
    assert {t.error for t in found.trials} == {"the metric raised ValueError: no answer in it"}
    found = fk.compare(coin(), [fk.SMC(2)], metric=lambda p: math.nan)
    assert found.table()[0].failures == 3
    with pytest.raises(TypeError, match="must return a number, not 'good'"):
        fk.compare(coin(), [fk.SMC(2)], metric=lambda p: "good")


def test_an_error_keeps_the_runs_before_it():
    calls = []

    def metric(posterior):
        calls.append(posterior)
        return [1.0, 2.0][len(calls) - 1]

    with pytest.raises(IndexError) as caught:
        fk.compare(coin(), [fk.SMC(2)], metric=metric, seeds=range(5))
    assert [t.quality for t in caught.value.comparison.trials] == [1.0, 2.0]
    assert "comparison" in caught.value.__notes__[0]


# -- interruption -----------------------------------------------------------------------------------------------


def interrupting(after):
    seen = []

    def metric(posterior):
        seen.append(posterior)
        if len(seen) > after:
            raise KeyboardInterrupt
        return 1.0

    return metric


def test_ctrl_c_keeps_the_finished_runs_of_every_engine():
    found = fk.compare(coin(), [fk.SMC(2), fk.SMC(3)], metric=interrupting(5), seeds=range(10))
    assert found.stopped == "interrupted"
    assert [(run.seed, run.engine) for run in found.runs] == [
        (0, "SMC(2)"), (0, "SMC(3)"), (1, "SMC(2)"), (1, "SMC(3)"), (2, "SMC(2)"),
    ]  # fmt: skip
    assert len(found.trials) == 5
    assert [row.trials for row in found.table()] == [3, 2]
    assert "interrupted" in repr(found)
    only_first = fk.compare(coin(), [fk.SMC(2), fk.SMC(3)], metric=interrupting(1))
    assert [row.engine for row in only_first.table()] == ["SMC(2)"]
    with pytest.raises(KeyboardInterrupt):
        fk.compare(coin(), [fk.SMC(2)], metric=interrupting(0))


# -- intervals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("df", [1, 2, 3, 4, 5, 9, 10, 29, 30, 120, 499])
def test_quantiles_of_students_t(df):
    stats = pytest.importorskip("scipy.stats")
    assert intervals.t_quantile(df) == pytest.approx(stats.t.ppf(0.975, df), rel=1e-9)


def test_wilson_and_student_agree_with_statsmodels_figures():
    # Newcombe (1998), doi:10.1002/(SICI)1097-0258(19980430)17:8<857::AID-SIM777>3.0.CO;2-E, table I.
    for k, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        found = intervals.mean_interval([1.0] * k + [0.0] * (n - k), range(n), binary=True)
        assert found == pytest.approx((k / n, low, high), abs=6e-5)
    stats = pytest.importorskip("scipy.stats")
    sample = [0.3, 1.7, -0.4, 2.4, 1.0]  # without skewness, so that it is Student's own
    low, high = stats.t.interval(0.95, 4, np.mean(sample), stats.sem(sample))
    assert intervals.mean_interval(sample, range(5), binary=False) == pytest.approx((np.mean(sample), low, high))


def test_intervals_of_skewed_numbers_cover_more_than_students():
    """Coverage of 95% intervals over 10 problems: exponential, and normal, against plain t's of the same samples."""
    stats = pytest.importorskip("scipy.stats")
    rng, runs, half = np.random.default_rng(3), 3000, stats.t.ppf(0.975, 9) / math.sqrt(10)
    for draw, mean, least in ((rng.exponential, 1.0, 0.912), (rng.normal, 0.0, 0.938)):
        samples = draw(size=(runs, 10))
        found = [intervals.mean_interval(list(sample), range(10), binary=False) for sample in samples]
        covers = np.array([low <= mean <= high for _, low, high in found])
        # True coverages are 0.925 and 0.95; standard error 0.005: a correct one fails with probability 2 × 0.005.
        assert covers.mean() > least
    samples = rng.exponential(size=(runs, 10))
    plain = np.abs(samples.mean(1) - 1.0) <= half * samples.std(1, ddof=1)
    assert plain.mean() < 0.91


def test_a_skewed_interval_is_halls_inverted():
    """The ends are where Hall's polynomial of T is ± t."""
    sample = np.array([0.1, 0.2, 0.4, 0.5, 3.0, 0.9])
    mean, low, high = intervals.mean_interval(list(sample), range(6), binary=False)
    se, skew, root = sample.std(ddof=1) / math.sqrt(6), ((sample - mean) ** 3).mean() / sample.std() ** 3, math.sqrt(6)
    for end, want in ((low, 1), (high, -1)):
        t = (mean - end) / se
        hall = t + skew * t**2 / (3 * root) + skew**2 * t**3 / 162 + skew / (6 * root)
        assert hall == pytest.approx(want * intervals.t_quantile(5))
    assert high - mean > mean - low
    assert intervals.mean_interval([1.0, 3.0], [0, 1], binary=False)[1:] == pytest.approx(
        (2 - 12.706, 2 + 12.706), abs=1e-3
    )


def test_every_problem_counts_alike():
    found = intervals.mean_interval([1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"], binary=False)
    assert found.mean == 0.5
    assert intervals.mean_interval([], [], binary=False)[0] is math.nan or math.isnan(found.low) is False
    single = intervals.mean_interval([2.0], [0], binary=False)
    assert single.mean == 2.0
    assert math.isnan(single.low)


def coverage(draw, interval, truth, runs=1500):
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(runs):
        found = interval(*draw(rng))
        hits += found.low <= truth <= found.high
    return hits, runs


def below(hits, runs, level):
    """How far the coverage is below a level, in standard errors."""
    return (level - hits / runs) / math.sqrt(level * (1 - level) / runs)


def clustered(rng, problems=12, seeds=5, spread=True):
    """Problems of unequal difficulty (mean 0.6), solved or not."""
    p = rng.beta(1.2, 0.8, problems) if spread else np.full(problems, 0.6)
    solved = (rng.random((problems, seeds)) < p[:, None]).astype(float)
    return solved, np.repeat(np.arange(problems), seeds)


# Six comparisons, each one-sided at z < 4.26: a correct interval fails these tests with probability 6 × 1.0e-5.
# Intervals of 95% are asked for 93%: Wilson's and the effective size are approximations.
@pytest.mark.parametrize("spread", [True, False])
def test_intervals_of_a_metric_that_is_zero_or_one_cover_the_truth(spread):
    def draw(rng):
        solved, problems = clustered(rng, spread=spread)
        return solved.ravel(), problems, True

    assert below(*coverage(draw, intervals.mean_interval, 0.6), 0.93) < Z_LIMIT


def test_trials_that_are_taken_for_independent_do_not_cover():
    """The power of the test above: problems differ, and an interval that forgets it is too short."""

    def draw(rng):
        solved, _ = clustered(rng)
        return solved.ravel(), range(solved.size), True

    assert below(*coverage(draw, intervals.mean_interval, 0.6), 0.93) > 10


def test_intervals_of_a_number_cover_the_truth():
    def draw(rng):
        values = rng.normal(2.0, 1.0, 8)[:, None] + rng.normal(0.0, 0.5, (8, 3))
        return values.ravel(), np.repeat(np.arange(8), 3), False

    assert below(*coverage(draw, intervals.mean_interval, 2.0), 0.95) < Z_LIMIT


@pytest.mark.parametrize("seeds", [1, 4])
def test_intervals_of_a_paired_difference_cover_the_truth(seeds):
    def draw(rng):
        a, problems = clustered(rng, 20, seeds)
        return (a - np.where(rng.random(a.shape) < 0.3, 0.0, a)).ravel(), problems, True

    assert below(*coverage(draw, intervals.difference_interval, 0.3 * 0.6), 0.93) < Z_LIMIT


@pytest.mark.slow
def test_intervals_of_the_whole_comparison_cover_the_truth():
    """One model over seeds, through compare itself: P(heads) = 0.3."""
    hits = 0
    for k in range(100):
        found = fk.compare(coin(0.3), [fk.SMC(1)], metric=first_value, seeds=range(20 * k, 20 * k + 20))
        quality = found.table()[0].quality
        hits += quality.low <= 0.3 <= quality.high
    # One comparison more, as above.
    assert below(hits, 100, 0.93) < Z_LIMIT


def test_intervals_stay_within_bounds_that_are_said():
    def share(posterior):
        return 1.0 - 0.4 * first_value(posterior)

    def run(**options):
        return fk.compare([coin(0.2)], [fk.SMC(1), fk.SMC(2)], metric=share, seeds=range(6), **options).table()

    free, held = run(), run(bounds=(0.0, 1.0))
    assert {row.quality.mean for row in free} == {row.quality.mean for row in held}
    assert max(row.quality.high for row in free) > 1.0
    for before, after in zip(free, held):
        assert after.quality.high == min(before.quality.high, 1.0)
        assert after.quality.low == before.quality.low
    beyond = fk.compare([coin(1.0)], [fk.SMC(1)], metric=lambda p: 1.5, seeds=(0, 1), bounds=(0.0, 1.0))
    assert [trial.error for trial in beyond.trials] == ["the metric is 1.5, outside of its bounds (0.0, 1.0)"] * 2
    with pytest.raises(ValueError, match="in this order"):
        run(bounds=(1.0, 0.0))


def test_intervals_are_over_problems_or_over_seeds():
    models = [coin(p) for p in (0.02, 0.98)] * 3
    found = fk.compare(models, [fk.SMC(1)], metric=first_value, seeds=range(10))
    assert found.over == "problems"
    assert fk.compare(coin(), [fk.SMC(1)], metric=first_value).over == "seeds"
    wide, narrow = found.table()[0].quality, replace(found, over="seeds").table()[0].quality
    assert wide.mean == pytest.approx(narrow.mean)
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


# -- showing ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small():
    return fk.compare([coin(0.4), coin(0.7)], {"<few>": fk.SMC(2), "many": fk.SMC(9)}, metric=lambda p: p.expect(float))


def test_the_table_is_aligned_and_leaves_out_what_is_nought(small):
    head, *rows, _ = repr(small).splitlines()
    assert len(rows) == 2
    assert head.split()[:2] == ["engine", "quality"]
    assert "tokens" not in head
    assert "failed" not in head
    assert head.index("ESS") + 3 == rows[0].index(f"{small.table()[0].ess:.1f}") + 3
    assert "&lt;few&gt;" in small._repr_html_()
    assert small._repr_html_().count("<tr>") == 3


def test_trials_become_flat_dictionaries(small):
    flat = small.to_dicts()
    assert len(flat) == 12
    assert set(flat[0]) >= {"engine", "model", "seed", "quality", "tokens_out", "seconds", "cpu_seconds", "error"}
    assert flat[3]["quality"] == small.trials[3].quality
    frame = pytest.importorskip("pandas").DataFrame(flat)
    assert frame.groupby("engine").quality.mean()["many"] == pytest.approx(small.table()[1].quality.mean)


def test_the_pareto_front_has_the_engines_that_none_beats():
    assert front([(1.0, 0.2), (2.0, 0.9), (3.0, 0.5), (2.0, 0.7)]) == [0, 1]
    assert front([(1.0, 0.5), (1.0, 0.5)]) == [0]
    assert front([]) == []


def test_the_plot_shows_each_engine_with_its_interval(small, tmp_path):
    pytest.importorskip("matplotlib")
    figure = small.plot("cpu_seconds")
    (ax,) = figure.axes
    assert {text.get_text() for text in ax.texts} == {"<few>", "many"}
    drawn = [line for line in ax.lines if line.get_transform() is not ax.transAxes]
    points = [(line.get_xdata()[0], line.get_ydata()[0]) for line in drawn if line.get_marker() == "o"]
    assert points == [(row.cpu_seconds, row.quality.mean) for row in small.table()]
    bars = [
        tuple(line.get_ydata()) for line in ax.lines if len(set(line.get_xdata())) == 1 and len(line.get_xdata()) == 2
    ]
    assert bars[-2:] == [row.quality[1:] for row in small.table()]
    figure.savefig(tmp_path / "pareto.png")
    with pytest.raises(ValueError, match="x must be one of tokens_in"):
        small.plot("money")


def boxes(texts):
    from matplotlib.text import Text

    return [Text.get_window_extent(text) for text in texts]  # without the lines to the points


@pytest.mark.parametrize("x", ["model_calls", "seconds"])
def test_long_names_at_one_cost_stand_clear_of_each_other_and_of_the_axes(x):
    pytest.importorskip("matplotlib")
    names = {f"an engine whose name is rather long, number {i}, and its settings": fk.BestOfN(4) for i in range(12)}
    found = fk.compare(coin(), names, metric=lambda p: float(p.best()), seeds=range(2))
    figure = found.plot(x)
    (ax,) = figure.axes
    figure.canvas.draw()
    shown = boxes(ax.texts)
    assert len(shown) == 12
    assert not any(a.overlaps(b) for i, a in enumerate(shown) for b in shown[:i])
    assert not any(ax.get_window_extent().overlaps(box) for box in shown)
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in shown)
    assert ax.get_window_extent().width > 0.5 * figure.bbox.width  # which long names do not shrink
    assert all(len(line) <= 30 for text in ax.texts for line in text.get_text().split("\n"))
    low, high = ax.get_xlim()
    assert min(tick for tick in ax.get_xticks() if low <= tick <= high) >= 0
    points = [line for line in ax.lines if line.get_marker() == "o" and line.get_transform() is not ax.transAxes]
    at = sorted(line.get_transform().transform([(line.get_xdata()[0], line.get_ydata()[0])])[0][0] for line in points)
    if x == "model_calls":  # which is 0 for all
        assert np.diff(at).min() > 5
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["Pareto front"]


def test_boxes_that_want_one_place_share_it_out():
    assert spread([], []) == []
    assert spread([0.1, 0.9], [0.2, 0.2]) == [0.1, 0.9]
    rng = np.random.default_rng(0)
    for _ in range(50):
        wanted, tall = np.sort(rng.uniform(size=6)).tolist(), rng.uniform(0.02, 0.16, 6).tolist()
        ends = [(at - h / 2, at + h / 2) for at, h in zip(spread(wanted, tall), tall)]
        assert all(before[1] <= after[0] + 1e-6 for before, after in pairwise(ends))
        assert ends[0][0] >= -1e-6
        assert ends[-1][1] <= 1 + 1e-6


def test_a_comparison_is_frozen(small):
    with pytest.raises(AttributeError):
        small.trials = ()
    assert all(isinstance(row, Row) for row in small.table())


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"engines": []}, ValueError, "at least one engine"),
        ({"seeds": ()}, ValueError, "at least one seed"),
        ({"seeds": (1, 1)}, ValueError, "seeds must differ"),
        ({"model": []}, ValueError, "at least one model"),
        ({"model": coin}, TypeError, "call the program with its arguments first"),
        ({"engines": [fk.SMC]}, TypeError, "an engine with its settings"),
        ({"budget": 5}, TypeError, "budget says what it limits"),
        ({"metric": 3}, ValueError, "metric must be a function"),
        ({"metric": [first_value, first_value]}, ValueError, "each of the 1 problems"),
        ({"reference": "nobody"}, ValueError, "reference must be one of"),
        ({"over": "time"}, ValueError, "over must be"),
    ],
)
def test_wrong_arguments_are_refused(change, error, match):
    arguments = {"model": coin(), "engines": [fk.SMC(2)], "metric": first_value, **change}
    with pytest.raises(error, match=match):
        fk.compare(arguments.pop("model"), arguments.pop("engines"), **arguments)
