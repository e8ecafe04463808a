"""Numbers about posteriors and budgets: closed forms against sums and simulations written another way."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

import feynkac as fk
from feynkac import scaling


@pytest.mark.parametrize(("s", "v"), [(1, 1), (2, 3), (3, 2), (4, 0), (3, 0)])
def test_verdicts_and_votes_are_what_counting_says(s, v):
    p, tpr, fpr = 0.6, 0.8, 0.3
    truth = 0.0
    for right in itertools.product([0, 1], repeat=s):
        chance = math.prod(p if r else 1 - p for r in right)
        if v == 0:
            truth += chance * (sum(right) > s / 2) + chance * (sum(right) == s / 2) / 2
            continue
        for counts in itertools.product(range(v + 1), repeat=s):
            rates = [tpr if r else fpr for r in right]
            law = math.prod(math.comb(v, c) * q**c * (1 - q) ** (v - c) for c, q in zip(counts, rates))
            best = [r for r, c in zip(right, counts) if c == max(counts)]
            truth += chance * law * sum(best) / len(best)
    accuracy, cost = scaling.verify_or_vote(s, v, p=p, tpr=tpr, fpr=fpr, ratio=0.5)
    assert accuracy == pytest.approx(truth, abs=1e-12)
    assert cost == s * (1 + 0.5 * v)


def test_votes_of_thousands_are_counted():
    stats = pytest.importorskip("scipy.stats")
    assert scaling.majority(0.52, 3001) == pytest.approx(stats.binom.sf(1500, 3001, 0.52), rel=1e-9)
    assert [scaling.majority(p, 4) for p in (0.0, 0.5, 1.0)] == pytest.approx([0.0, 0.5, 1.0])
    assert scaling.verify_or_vote(2000, 3, p=0.01, tpr=1.0, fpr=0.5)[0] < 0.1


def test_the_judges_errors_are_what_a_simulation_finds():
    judge = scaling.Judge(0.3, 1.5, peak=2.0, truth=1.0)
    y = np.random.default_rng(0).normal(0.3, 1.5, (200_000, 5))
    chosen = y[np.arange(len(y)), np.abs(y - 2.0).argmin(1)]
    error = (chosen - 1.0) ** 2
    assert abs(error.mean() - judge.best_of(5)) < 4.3 * error.std() / math.sqrt(len(error))  # 2e-5
    weights = np.exp(-((y[:, 0] - 2.0) ** 2) / 0.7)
    mean, tilted = judge.tilted(0.7)
    assert np.average(y[:, 0], weights=weights) == pytest.approx(mean, abs=0.02)
    assert np.average((y[:, 0] - 1.0) ** 2, weights=weights) == pytest.approx(tilted, abs=0.02)


@pytest.mark.parametrize(("k", "error"), [(4, 0.29627), (64, 0.00199057), (256, 0.000128793)])
def test_a_judge_that_knows_the_truth_errs_by_one_over_k_squared(k, error):
    assert scaling.Judge(0.0, 1.0, 1.0).best_of(k) == pytest.approx(error, rel=1e-4)


def test_conformal_thresholds_cover_exactly_as_much_as_they_say():
    rng = np.random.default_rng(0)
    draws = rng.random((20_000, 10))
    covered = np.array([row[9] <= scaling.conformal(row[:9], 0.1) for row in draws])
    assert abs(covered.mean() - 0.9) < 4.3 * math.sqrt(0.09 / len(covered))  # 2e-5
    assert scaling.conformal([0.1] * 8, 0.1) == math.inf


def test_bounds_of_subsets_are_what_counting_says():
    right, k = [1, 0, 1, 0, 0, 1, 0], 4
    subsets = list(itertools.combinations(right, k))
    found = scaling.bounds_at_k(right, k)
    assert found.worst == pytest.approx(np.mean([all(s) for s in subsets]))
    assert found.best == pytest.approx(np.mean([any(s) for s in subsets]))
    assert found.mean == pytest.approx(np.mean([np.mean(s) for s in subsets]))
    assert found.majority == pytest.approx(np.mean([(sum(s) > 2) + 0.5 * (sum(s) == 2) for s in subsets]))


def test_variance_is_shared_out_as_a_simulation_says():
    p = np.array([[0.9, 0.5], [0.1, 0.3], [0.6, 0.6]])
    found = scaling.Variability.of(p)
    assert found.total == pytest.approx(p.mean() * (1 - p.mean()))
    assert found.sampling == pytest.approx((p * (1 - p)).mean())


@pytest.mark.parametrize("seed", range(3))
def test_allocations_are_the_best_of_all(seed):
    rng = np.random.default_rng(seed)
    p, norms, budget = rng.uniform(0.05, 0.95, 3), rng.uniform(0.5, 2.0, 3), 9
    options = [n for n in itertools.product(range(budget + 1), repeat=3) if sum(n) == budget]
    solved = [sum(1 - (1 - q) ** k for q, k in zip(p, n)) for n in options]
    assert options[int(np.argmax(solved))] == tuple(scaling.greedy(p, budget).tolist())
    n = scaling.gvm(p, norms, 9_000, alpha=0.0)
    assert n.sum() == 9_000
    at_best = float((norms / np.sqrt(p)).sum() ** 2 / 9_000)
    assert float((norms**2 / (p * n)).sum()) == pytest.approx(at_best, rel=1e-5)


def test_a_share_that_cannot_be_used_goes_elsewhere():
    assert scaling.gvm([0.0, 0.5, 0.5], [1.0, 0.0, 1.0], 7).tolist() == [0, 0, 7]
    assert scaling.gvm([1.0] * 3, [1.0] * 3, 10).sum() == 10


def test_kinetics_reads_a_models_configuration():
    torch = pytest.importorskip("torch")
    from feynkac.models.testing import tiny_lm

    lm = tiny_lm()
    config = lm.model.config
    cost = scaling.Kinetics.of(lm)
    assert isinstance(torch, type(math))
    assert cost.heads == config.num_attention_heads
    assert cost.kv_heads == config.num_key_value_heads
    assert cost.width == config.hidden_size // config.num_attention_heads * config.num_hidden_layers
    assert cost.parameters == sum(p.numel() for p in lm.model.parameters())
    assert cost(100, 20, n=3)[0] == 3 * cost(100, 20)[0]
    assert cost(0, 20, n=3)[1] == 3 * cost(0, 20)[1]


def test_the_runtime_is_found_from_its_own_times():
    truth = scaling.Runtime(0.1, 2e-4, 0.02, 1e-6)
    prompts, outs = np.array([10, 100, 500, 500, 50]), np.array([5, 50, 10, 200, 100])
    assert truth(prompts, outs)[1] == pytest.approx(truth(100, 50))
    slow = 0.1 + 2e-4 * 100 + sum(0.02 + 1e-6 * (100 + i) for i in range(1, 50))
    assert truth(100, 50) == pytest.approx(slow)
    found = scaling.Runtime.fit(prompts, outs, truth(prompts, outs))
    assert found(300, 70) == pytest.approx(truth(300, 70), rel=1e-8)
    with pytest.raises(ValueError, match="cannot be told"):
        scaling.Runtime.fit([10, 20], [5, 5], [1.0, 2.0])


def test_a_mixture_is_no_saturation_and_the_fit_says_so():
    n = np.array([1, 2, 4, 8, 16, 32, 64])
    mixture = 1 - (0.95**n + 0.5**n) / 2
    found = scaling.Saturation.fit(n, mixture)
    assert mixture[3] == pytest.approx(0.666, abs=1e-3)
    assert scaling.Saturation(1.0, 0.275)(8) == pytest.approx(0.924, abs=1e-3)
    assert found.residual > 0.02
    gains = np.diff(found(np.arange(200)))
    assert gains[found.enough(0.01)] < 0.01 <= gains[found.enough(0.01) - 1]


def test_the_best_setting_is_the_best_that_the_budget_allows():
    fit = scaling.Allocation(np.array([0.5, 0.1]), np.zeros(2), -1.0, 0.0)
    options = list(itertools.product([1, 2, 4, 8], repeat=2))
    assert fit.best(options, [0, 0], lambda s: s[0] * s[1], 8) == (8.0, 1.0)
    with pytest.raises(ValueError, match="no setting costs"):
        fit.best(options, [0, 0], lambda s: 10, 8)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: scaling.verify_or_vote(4, 1, p=1.2),
        lambda: scaling.verify_or_vote(4, -1, p=0.5),
        lambda: scaling.majority(math.nan, 3),
        lambda: scaling.Judge(0.0, 0.0, 1.0),
        lambda: scaling.conformal([]),
        lambda: scaling.conformal([math.nan]),
        lambda: scaling.conformal([0.1], 1.0),
        lambda: scaling.regret([]),
        lambda: scaling.regret([0.1, 0.2], tokens=[1]),
        lambda: scaling.anytime([0.1, 0.2], [0, 0]),
        lambda: scaling.anytime([0.1, 0.2], "other"),
        lambda: scaling.Saturation(0.5, 1.0),
        lambda: scaling.bounds_at_k([True], 2),
        lambda: scaling.Variability.of([0.5]),
        lambda: scaling.gvm([0.5], [1.0, 2.0], 4),
        lambda: scaling.gvm([0.0], [1.0], 4),
        lambda: scaling.greedy([0.5], 0),
        lambda: scaling.length_gap([1, 2, 3], [1, 1, 0]),
        lambda: scaling.prefix_diversity([], 2),
        lambda: scaling.Allocation.fit([[0, 1]], [0, 0], [0.5]),
        lambda: scaling.Kinetics(0, 1, 1, 1),
    ],
)
def test_what_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError):
        wrong()


def test_texts_are_told_apart_by_their_tokens():
    pytest.importorskip("transformers")
    from feynkac.models.testing import ScriptedLM

    lm = ScriptedLM(lambda before: {"ab": 0.5, "ac": 0.5})

    @fk.program
    async def write():
        return await fk.sample("text", lm.complete(lm.prompt("Q")))

    texts = fk.infer(write(), fk.ImportanceSampling(40), seed=0).values
    assert scaling.prefix_diversity(texts, 1) == 1 / 40
    assert scaling.prefix_diversity(texts, 2) == 2 / 40
