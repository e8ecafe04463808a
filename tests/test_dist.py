"""The light distributions: exact log-probabilities, the law of the draws, batching, supports and messages.

Every statistical test here fails by chance at most once in 1 / TEST_FAILURE_RATE choices of its fixed seed.
"""

import math

import numpy as np
import pytest
from scipy import stats

import feynkac as fk
from feynkac.ppl import keys
from feynkac.ppl.distributions import batching
from feynkac.ppl.distributions.dist import (
    Bernoulli,
    Categorical,
    Delta,
    DiscreteUniform,
    Exponential,
    MultivariateNormal,
    Normal,
    Permutation,
    Uniform,
)
from feynkac.ppl.model import Kernel

TEST_FAILURE_RATE = 2e-5
N = 20_000

COV = np.array([[2.0, 0.9, 0.1], [0.9, 1.0, -0.3], [0.1, -0.3, 0.5]])
CONTINUOUS = [
    (Normal(-1.5, 0.3), stats.norm(-1.5, 0.3)),
    (Normal(2, 7), stats.norm(2, 7)),
    (Uniform(-3.0, 0.5), stats.uniform(-3.0, 3.5)),
    (Exponential(2.5), stats.expon(scale=0.4)),
]
DISCRETE = [
    (Bernoulli(0.13), stats.bernoulli(0.13)),
    (DiscreteUniform(-2, 4), stats.randint(-2, 5)),
    (Categorical(probs=[0.1, 0.0, 0.65, 0.25]), stats.rv_discrete(values=(range(4), [0.1, 0.0, 0.65, 0.25]))),
    (
        Categorical(logits=np.log([1.0, 2.0, 5.0])),
        stats.rv_discrete(values=(range(3), [0.125, 0.25, 0.625])),
    ),
]
ALL = [d for d, _ in CONTINUOUS + DISCRETE] + [
    Normal(np.array([0.0, 5.0]), 2.0),
    Uniform(np.zeros((2, 3)), 1.0),
    Bernoulli([0.1, 0.9, 0.5]),
    Categorical([[0.2, 0.8], [1.0, 0.0]]),
    Categorical(probs=[0.2, 0.8], values=["a", "b"]),
    MultivariateNormal([1.0, -1.0, 0.0], COV),
    Permutation(4),
    Permutation(log_weights=[0.0, 1.0, -2.0]),
    Delta("x"),
    Delta(np.arange(3)),
]


def particles(n, seed=0):
    return keys.fold(keys.root(seed), np.arange(n))


def name(case):
    return type(case).__name__ if " at 0x" in repr(case) else repr(case).replace("\n", "")


@pytest.mark.parametrize("d", ALL, ids=name)
def test_kernels(d):
    assert isinstance(d, Kernel)
    assert hash(d.fingerprint) == hash(d.fingerprint)
    assert d.covers(d)


@pytest.mark.parametrize(("d", "truth"), CONTINUOUS, ids=name)
def test_density_and_law_of_continuous(d, truth):
    draws = d.sample_batch([d] * N, particles(N))
    assert draws.values.shape == draws.log_prob.shape == (N,)
    assert draws.log_prob.dtype == np.float64
    np.testing.assert_allclose(draws.log_prob, truth.logpdf(draws.values), rtol=1e-12, atol=1e-12)
    assert stats.kstest(draws.values, truth.cdf).pvalue > TEST_FAILURE_RATE
    assert d.log_prob(0.25) == pytest.approx(truth.logpdf(0.25))


@pytest.mark.parametrize(("d", "truth"), DISCRETE, ids=name)
def test_mass_and_law_of_discrete(d, truth):
    draws = d.sample_batch([d] * N, particles(N, 1))
    assert draws.values.dtype.kind == "i"
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(draws.log_prob, truth.logpmf(draws.values), rtol=1e-12)
    support = np.array(d.support())
    expected = N * truth.pmf(support)
    assert expected.sum() == pytest.approx(N)
    counts = [(draws.values == value).sum() for value in support]
    assert sum(counts) == N
    assert stats.chisquare(counts, expected).pvalue > TEST_FAILURE_RATE
    assert math.fsum(math.exp(d.log_prob(v)) for v in support) == pytest.approx(1.0, abs=1e-12)
    for outside in (-50, 50, 0.5, math.inf):
        assert d.log_prob(outside) == -math.inf


def test_law_of_vectors_is_independent_by_component():
    d = Normal(np.array([0.0, 3.0]), np.array([1.0, 0.2]))
    values = d.sample_batch([d] * N, particles(N, 2)).values
    pvalues = [stats.kstest(values[:, j], stats.norm([0, 3][j], [1, 0.2][j]).cdf).pvalue for j in (0, 1)]
    assert min(pvalues) > TEST_FAILURE_RATE / 3
    assert stats.pearsonr(values[:, 0], values[:, 1]).pvalue > TEST_FAILURE_RATE / 3
    np.testing.assert_allclose(d.log_prob_batch([d] * N, values), stats.norm.logpdf(values, [0, 3], [1, 0.2]).sum(1))


def test_multivariate_normal():
    mean = np.array([1.0, -2.0, 0.5])
    d, truth = MultivariateNormal(mean, COV), stats.multivariate_normal(mean, COV)
    draws = d.sample_batch([d] * N, particles(N, 3))
    np.testing.assert_allclose(draws.log_prob, truth.logpdf(draws.values))
    np.testing.assert_allclose(d.log_prob_batch([d] * N, draws.values), draws.log_prob)
    # Whitened along the eigenvectors, not by the Cholesky factor that made the draws.
    spread, axes = np.linalg.eigh(COV)
    white = (draws.values - mean) @ axes / np.sqrt(spread)
    for z in (*white.T, (white.sum(1)) / math.sqrt(3)):
        assert stats.kstest(z, "norm").pvalue > TEST_FAILURE_RATE / 5
    assert stats.kstest((white**2).sum(1), stats.chi2(3).cdf).pvalue > TEST_FAILURE_RATE / 5


@pytest.mark.parametrize("d", ALL, ids=name)
def test_a_draw_depends_on_its_own_key_alone(d):
    ks = particles(33, 4)
    together = d.sample_batch([d] * 33, ks)
    order = np.random.default_rng(0).permutation(33)[:7]
    shuffled = d.sample_batch([d] * 7, ks[order])
    for j, i in enumerate(order):
        alone = d.sample_batch([d], ks[i : i + 1])
        np.testing.assert_array_equal(alone.values[0], together.values[i])
        np.testing.assert_array_equal(shuffled.values[j], together.values[i])
    np.testing.assert_allclose(d.log_prob_batch([d] * 33, list(together.values)), together.log_prob)


def test_parameters_and_shapes_may_differ_within_a_batch():
    requests = [Normal(0.0, 1.0), Normal([1.0, 2.0], 0.5), Normal(5, [[0.1], [0.2]]), Normal(-3.0, 2.0)]
    ks = particles(4, 5)
    draws = requests[0].sample_batch(requests, ks)
    assert [np.shape(v) for v in draws.values] == [(), (2,), (2, 1), ()]
    assert type(draws.values[0]) is float
    for i, request in enumerate(requests):
        alone = request.sample_batch([request], ks[i : i + 1])
        np.testing.assert_array_equal(alone.values[0], draws.values[i])
        assert request.log_prob(draws.values[i]) == pytest.approx(draws.log_prob[i])
    np.testing.assert_allclose(requests[0].log_prob_batch(requests, draws.values), draws.log_prob)


def test_categoricals_of_all_kinds_share_a_batch():
    requests = [
        Categorical([0.5, 0.5]),
        Categorical(logits=[0.0, 1.0, -math.inf]),
        Categorical([0.2, 0.3, 0.5], values="abc"),
        Categorical([[0.0, 1.0], [1.0, 0.0]]),
    ]
    draws = requests[0].sample_batch(requests, particles(4, 6))
    assert draws.values[2] in "abc"
    assert draws.values[3].tolist() == [1, 0]
    np.testing.assert_allclose(requests[0].log_prob_batch(requests, draws.values), draws.log_prob)


def test_independent_data_under_one_distribution():
    data = np.array([0.3, -1.0, 2.0])
    assert Normal(0.5, 2.0).log_prob(data) == pytest.approx(stats.norm(0.5, 2.0).logpdf(data).sum())
    rows = np.stack([data, data + 1])
    scale = np.array([1.0, 2.0, 3.0])
    assert Normal(0.0, scale).log_prob(rows) == pytest.approx(stats.norm.logpdf(rows, 0.0, scale).sum())
    assert Categorical([0.25, 0.75]).log_prob([0, 1, 1]) == pytest.approx(math.log(0.25 * 0.75**2))
    for wrong in (0.0, np.zeros(2), np.zeros((3, 2))):
        with pytest.raises(ValueError, match=r"Normal: a value of shape .* for draws of shape \(3,\)"):
            Normal(data, 1.0).log_prob(wrong)


def test_values_of_a_categorical():
    d = Categorical(probs=[0.2, 0.0, 0.5, 0.3], values=["a", "b", "c", "a"])
    assert d.support() == ["a", "c"]
    assert math.exp(d.log_prob("a")) == pytest.approx(0.5)
    assert d.log_prob("b") == d.log_prob("z") == d.log_prob(0) == -math.inf
    draws = d.sample_batch([d] * N, particles(N, 7))
    counts = [draws.values.count("a"), draws.values.count("c")]
    assert stats.chisquare(counts, [N / 2, N / 2]).pvalue > TEST_FAILURE_RATE
    np.testing.assert_allclose(draws.log_prob, math.log(0.5))


def test_no_category_of_probability_zero_at_the_ends_of_the_uniform():
    probs = np.array([[0.0, 0.1, 0.0, 0.2, 0.7, 0.0]] * 4)
    ends = np.array([2.0**-54, 0.1, np.nextafter(0.1, 0), 1 - 2.0**-53])
    assert batching.invert(probs, ends).tolist() == [1, 3, 1, 4]
    thirds = np.array([[1 / 3] * 3 + [0.0] * 3])
    assert batching.invert(thirds, np.array([1 - 2.0**-53])).tolist() == [2]


def test_tiny_logits_keep_their_log_probability():
    d = Categorical(logits=[0.0, -1000.0])
    assert d.log_prob(1) == -1000.0
    assert Categorical(logits=[1e4, 1e4]).log_prob(0) == pytest.approx(math.log(0.5))


def test_supports():
    assert Bernoulli(0.0).support() == [0]
    assert Bernoulli(1.0).support() == [1]
    assert Categorical([0.0, 1.0]).support() == [1]
    assert DiscreteUniform(3, 5).support() == [3, 4, 5]
    assert DiscreteUniform(0, 10**9).support() is None
    assert Bernoulli([0.5, 0.5]).support() is None
    assert Normal().support() is None
    assert Delta(None).support() == [None]


def test_orders_are_drawn_and_scored_one_by_one():
    weights = np.array([0.5, 0.3, 0.2])
    law = Permutation(log_weights=np.log(7 * weights))
    draws = law.sample_batch([law] * N, particles(N))
    for order in law.support():
        truth, left = 1.0, 1.0
        for item in order:
            truth, left = truth * weights[item] / left, left - weights[item]
        assert math.exp(law.log_prob(order)) == pytest.approx(truth)
        share = np.mean([value == order for value in draws.values])
        # 6 comparisons at |z| < 4.42: a correct law fails with probability 6e-5.
        assert abs(share - truth) < 4.42 * math.sqrt(truth * (1 - truth) / N)
        mine = draws.log_prob[[value == order for value in draws.values]]
        np.testing.assert_allclose(np.exp(mine), truth)
    mixed = Permutation(2).sample_batch([Permutation(2), law], particles(2))
    assert [len(value) for value in mixed.values] == [2, 3]
    for value in ((0, 1), (0, 1, 1), (0, 1, 3), (0, "1", 2), (0, None, 2), "012", None):
        assert not law.fits(value)
        assert law.log_prob(value) == -math.inf
    assert Permutation(7).support() is None
    for wrong in ({}, {"n": 2, "log_weights": [0.0, 0.0]}):
        with pytest.raises(ValueError, match="give either"):
            Permutation(**wrong)
    with pytest.raises(ValueError, match="finite"):
        Permutation(log_weights=[0.0, -math.inf]).log_prob((0, 1))
    with pytest.raises(ValueError, match="one for each item"):
        Permutation(0).log_prob(())


def test_an_order_is_a_site_that_engines_enumerate_and_move():
    @fk.program
    async def shown():
        order = await fk.sample("order", Permutation(3))
        await fk.factor("first", math.log([1.0, 2.0, 5.0][order[0]]))
        return order

    exact = fk.enumerate_program(shown())
    assert math.exp(exact.log_evidence) == pytest.approx(8 / 3)
    posterior = fk.infer(shown(), fk.SuffixMH(400), seed=0)
    assert posterior.expect(lambda order: order[0] == 2) == pytest.approx(5 / 8, abs=0.12)


@pytest.mark.parametrize(
    ("proposal", "target", "answer"),
    [
        (Normal(), Normal(5.0, 0.1), True),
        (Normal(), Uniform(), True),
        (Uniform(), Normal(), False),
        (Exponential(), Normal(), False),
        (Exponential(), Uniform(0.0, 2.0), True),
        (Exponential(), Uniform(-1.0, 2.0), False),
        (Uniform(0, 3), Uniform(1, 2), True),
        (Uniform(1, 2), Uniform(0, 3), False),
        (Normal([0.0, 0.0], 1.0), MultivariateNormal([0.0, 0.0], np.eye(2)), True),
        (MultivariateNormal([0.0, 0.0], np.eye(2)), Normal(0.0, 1.0), False),
        (Normal(), Bernoulli(0.5), False),
        (Normal(), Delta(0.0), False),
        (Bernoulli(0.5), Normal(), False),
        (Bernoulli(0.5), Bernoulli(1.0), True),
        (Bernoulli(1.0), Bernoulli(0.5), False),
        (Bernoulli([0.5, 1.0]), Bernoulli([1.0, 1.0]), True),
        (Bernoulli([0.5, 1.0]), Bernoulli([0.5, 0.5]), False),
        (Categorical([0.5, 0.5, 0.0]), Bernoulli(0.5), True),
        (Categorical([0.5, 0.0, 0.5]), Bernoulli(0.5), False),
        (DiscreteUniform(0, 3), Categorical([0.5, 0.5]), True),
        (DiscreteUniform(0, 10**6), DiscreteUniform(5, 10**6), True),
        (DiscreteUniform(5, 10**6), DiscreteUniform(0, 10**6), False),
        (Categorical([0.5, 0.5]), DiscreteUniform(0, 10**6), False),
        (Categorical([0.5, 0.5], values="ab"), Categorical([1.0], values="b"), True),
        (Categorical([0.5, 0.5], values="ab"), Categorical([0.5, 0.5], values="bc"), False),
        (Bernoulli(0.5), Categorical([0.5, 0.5], values="ab"), False),
        (Categorical([[0.5, 0.5], [0.1, 0.9]]), Categorical([[0.5, 0.5], [0.0, 1.0]]), True),
        (Categorical([[0.5, 0.5], [0.0, 1.0]]), Categorical([[0.5, 0.5], [0.1, 0.9]]), False),
        (Permutation(3), Permutation(log_weights=[0.0, 1.0, 2.0]), True),
        (Permutation(3), Permutation(4), False),
        (Delta(1), Bernoulli(0.5), False),
        (Bernoulli(0.5), Delta(1), True),
    ],
    ids=name,
)
def test_covers(proposal, target, answer):
    assert proposal.covers(target) is answer


@pytest.mark.parametrize(
    ("d", "message"),
    [
        (Normal(0.0, -1.0), "Normal: scale must be positive and finite, got -1.0"),
        (Normal(0.0, math.nan), "Normal: scale must be positive and finite, got nan"),
        (Normal(math.inf, 1.0), "Normal: loc must be finite, got inf"),
        (Normal(0.0, [1.0, 0.0]), "Normal: scale must be positive and finite, got 0.0"),
        (Normal("zero", 1.0), "Normal: loc must be a number or an array of them, got 'zero'"),
        (Normal(np.zeros(2), np.ones(3)), r"Normal: shapes do not broadcast: loc of \(2,\), scale of \(3,\)"),
        (Uniform(1.0, 1.0), "Uniform: high must be finite and above low, got 1.0"),
        (Exponential(0.0), "Exponential: rate must be positive and finite, got 0.0"),
        (Bernoulli(1.5), r"Bernoulli: probs must be in \[0, 1\], got 1.5"),
        (DiscreteUniform(0.5, 2), "DiscreteUniform: low must be an integer"),
        (DiscreteUniform(3, 2), "DiscreteUniform: high must be at least low, got 2.0"),
        (Categorical([0.5, 0.6]), r"Categorical: the sum of probs must be 1 within 1e-6, got 1\.1"),
        (Categorical([1.5, -0.5]), "Categorical: probs must be nonnegative and finite, got -0.5"),
        (Categorical(logits=[math.nan, 0.0]), "Categorical: logits must be a number less than"),
        (Categorical(logits=[-math.inf]), "Categorical: the largest of logits must be finite"),
        (Categorical([0.5, 0.5], values="abc"), "Categorical: values must be as many as probs"),
        (Categorical(0.5), "Categorical: probs must list the categories"),
        (MultivariateNormal([0.0, 0.0], [[1.0, 2.0], [2.0, 1.0]]), "must be positive definite, got an eigen"),
        (MultivariateNormal([0.0, 0.0], [[1.0, 0.2], [0.1, 1.0]]), "cov must be symmetric"),
        (MultivariateNormal([0.0], np.eye(2)), r"loc of shape \(1,\), cov of \(2, 2\)"),
    ],
    ids=name,
)
def test_bad_parameters_are_named(d, message):
    with pytest.raises(ValueError, match=message):
        d.sample_batch([d], particles(1))
    with pytest.raises(ValueError, match=message):
        d.log_prob_batch([d], [np.zeros(np.shape(d.loc)) if hasattr(d, "cov") else 0.0])


def test_one_bad_request_in_a_batch_is_found():
    with pytest.raises(ValueError, match=r"got -2\.0"):
        Normal().sample_batch([Normal(), Normal(0.0, -2.0)], particles(2))


def test_categorical_takes_one_kind_of_parameter():
    for given in ({}, {"probs": [1.0], "logits": [0.0]}):
        with pytest.raises(ValueError, match="either probs or logits"):
            Categorical(**given)


def test_vectors_are_read_only():
    for d in (Normal(np.zeros(2), 1.0), MultivariateNormal(np.zeros(2), np.eye(2)), Bernoulli([0.5, 0.5])):
        (value,) = d.sample_batch([d], particles(1)).values
        with pytest.raises(ValueError, match="read-only"):
            value[0] = 1.0


def test_fingerprints_tell_parameters_apart():
    pairs = [
        (Normal(0.0, 1.0), Normal(0.0, 2.0)),
        (Normal(np.zeros(2), 1.0), Normal(np.zeros(3), 1.0)),
        (Normal(np.zeros(2), 1.0), Normal(np.array([0.0, 1.0]), 1.0)),
        (Categorical([0.5, 0.5]), Categorical(logits=[0.5, 0.5])),
        (Categorical([0.5, 0.5], values=["a", "b"]), Categorical([0.5, 0.5], values=["a", "c"])),
        (Exponential(1.0), Bernoulli(1.0)),
        (Delta("a"), Delta("b")),
    ]
    for a, b in pairs:
        assert a.fingerprint != b.fingerprint
    assert Normal(np.zeros(2), 1.0).fingerprint == Normal(np.zeros(2), 1.0).fingerprint
    assert Delta(object()).fingerprint == Delta(object()).fingerprint
