"""SciPy, PyTorch and NumPyro distributions as kernels: their log-probabilities, and the law of the draws.

Every statistical test here fails by chance at most once in 1 / TEST_FAILURE_RATE choices of its fixed seed.
"""

import math

import numpy as np
import pytest

from feynkac.ppl import keys
from feynkac.ppl.distributions import dist
from feynkac.ppl.distributions.adapters import as_kernel
from feynkac.ppl.model import Kernel

stats = pytest.importorskip("scipy.stats")
torch = pytest.importorskip("torch")
td = pytest.importorskip("torch.distributions")
nd = pytest.importorskip("numpyro.distributions")

TEST_FAILURE_RATE = 2e-5
N = 4000


def particles(n, seed=0):
    return keys.fold(keys.root(seed), np.arange(n))


def name(case):
    return f"{type(case).__module__.partition('.')[0]}-{type(case).__name__}"


class Mine(td.Normal):
    """A user's own subclass, whose parameters must not be guessed at."""


t = torch.tensor
TABLE = stats.rv_discrete(values=([0, 1, 4], [0.2, 0.5, 0.3]))
HISTOGRAM = stats.rv_histogram(np.histogram([1.0, 2.0, 2.5, 3.0, 3.0, 3.5], bins=3))

# Each with its law as SciPy has it, and whether a draw depends on its own key alone.
UNIVARIATE = [
    (stats.norm(1, scale=2), stats.norm(1, 2), True),
    (stats.gamma(2.0, scale=3.0), stats.gamma(2.0, scale=3.0), True),
    (stats.norm, stats.norm, True),
    (HISTOGRAM, HISTOGRAM, True),
    (stats.poisson(3.5), stats.poisson(3.5), True),
    (stats.binom(5, 0.3), stats.binom(5, 0.3), True),
    (TABLE, TABLE, True),
    (td.Normal(t(1.0), t(2.0)), stats.norm(1, 2), True),
    (td.Uniform(t(-3.0), t(0.5)), stats.uniform(-3.0, 3.5), True),
    (td.Exponential(t(2.5)), stats.expon(scale=0.4), True),
    (td.LogNormal(t(0.3), t(0.5)), stats.lognorm(0.5, scale=math.exp(0.3)), True),
    (td.Laplace(t(0.5), t(2.0)), stats.laplace(0.5, 2.0), True),
    (td.Gamma(t(2.0), t(3.0)), stats.gamma(2.0, scale=1 / 3), False),
    (td.Beta(t(2.0), t(0.7)), stats.beta(2.0, 0.7), False),
    (td.StudentT(t(4.0), t(1.0), t(2.0)), stats.t(4.0, 1.0, 2.0), False),
    (td.Poisson(t(3.5)), stats.poisson(3.5), False),
    (td.Binomial(5, t(0.3)), stats.binom(5, 0.3), False),
    (td.Bernoulli(t(0.13)), stats.bernoulli(0.13), True),
    (td.Bernoulli(logits=t(-1.9)), stats.bernoulli(1 / (1 + math.exp(1.9))), True),
    (
        td.Categorical(t([0.2, 0.5, 0.0, 0.0, 0.3])),
        stats.rv_discrete(values=([0, 1, 4], [0.2, 0.5, 0.3])),
        True,
    ),
    (td.Categorical(logits=t([1.0, 0.0])), stats.bernoulli(1 / (1 + math.e)), True),
    (
        td.TransformedDistribution(td.Normal(t(0.0), t(1.0)), [td.AffineTransform(1.0, 2.0)]),
        stats.norm(1, 2),
        True,
    ),
    (Mine(t(1.0), t(2.0)), stats.norm(1, 2), True),
    (nd.Normal(1.0, 2.0), stats.norm(1, 2), True),
    (nd.Exponential(2.5), stats.expon(scale=0.4), True),
    (nd.Gamma(2.0, 3.0), stats.gamma(2.0, scale=1 / 3), True),
    (nd.Bernoulli(0.13), stats.bernoulli(0.13), True),
    (nd.Categorical(probs=np.array([0.2, 0.5, 0.0, 0.0, 0.3])), TABLE, True),
    (nd.Poisson(3.5), stats.poisson(3.5), True),
]
VECTORS = [
    stats.norm([0.0, 1.0], [1.0, 2.0]),
    stats.multivariate_normal([1.0, -1.0], [[2.0, 0.9], [0.9, 1.0]]),
    stats.dirichlet([1.0, 2.0, 0.5]),
    stats.multinomial(5, [0.2, 0.8]),
    td.Normal(t([0.0, 1.0]), t(2.0)),
    td.Independent(td.Normal(t([0.0, 1.0]), t(2.0)), 1),
    td.MultivariateNormal(t([1.0, -1.0]), t([[2.0, 0.9], [0.9, 1.0]])),
    td.LowRankMultivariateNormal(t([0.0, 1.0]), t([[1.0], [2.0]]), t([1.0, 1.0])),
    td.Dirichlet(t([1.0, 2.0, 0.5])),
    td.OneHotCategorical(t([0.2, 0.8])),
    td.MixtureSameFamily(td.Categorical(t([0.3, 0.7])), td.Normal(t([0.0, 5.0]), t([1.0, 2.0]))),
    nd.Normal(np.array([0.0, 1.0]), 2.0).to_event(1),
    nd.MultivariateNormal(np.array([1.0, -1.0]), np.array([[2.0, 0.9], [0.9, 1.0]])),
    nd.Normal(0.0, 1.0).expand([3]),
]


@pytest.mark.parametrize(("d", "truth", "own_key"), UNIVARIATE, ids=name)
def test_law_and_log_prob(d, truth, own_key):
    kernel = as_kernel(d)
    assert isinstance(kernel, Kernel)
    draws = kernel.sample_batch([kernel] * N, particles(N))
    assert draws.values.shape == draws.log_prob.shape == (N,)
    assert draws.log_prob.dtype == np.float64
    if hasattr(truth, "pmf"):
        assert draws.values.dtype.kind == "i"
        values, counts = np.unique(draws.values, return_counts=True)
        np.testing.assert_allclose(draws.log_prob, truth.logpmf(draws.values), rtol=2e-5)
        keep = N * truth.pmf(values) > 5
        expected = np.append(N * truth.pmf(values[keep]), N * (1 - truth.pmf(values[keep]).sum()))
        observed = np.append(counts[keep], counts[~keep].sum())
        parts = expected > 1e-6
        assert not observed[~parts].any()
        total = expected[parts] * observed.sum() / expected[parts].sum()
        assert stats.chisquare(observed[parts], total).pvalue > TEST_FAILURE_RATE
    else:
        np.testing.assert_allclose(draws.log_prob, truth.logpdf(draws.values), rtol=2e-5, atol=2e-5)
        assert stats.kstest(draws.values, truth.cdf).pvalue > TEST_FAILURE_RATE
    again = kernel.log_prob_batch([kernel] * N, draws.values.tolist())
    np.testing.assert_allclose(again, draws.log_prob, rtol=1e-5, atol=1e-5)
    if kernel.support() is None:
        assert not hasattr(truth, "pmf") or math.isinf(truth.support()[1])
    else:
        assert kernel.support() == [v for v in range(10) if truth.pmf(v) > 0]
        assert kernel.log_prob(50) == kernel.log_prob(0.5) == -math.inf
    few = kernel.sample_batch([kernel] * 3, particles(N)[5:8])
    assert (few.values.tolist() == draws.values[5:8].tolist()) is own_key
    assert kernel.sample_batch([kernel] * 3, particles(N)[5:8]).values.tolist() == few.values.tolist()


@pytest.mark.parametrize("d", VECTORS, ids=name)
def test_vectors(d):
    kernel = as_kernel(d)
    n = 2000
    draws = kernel.sample_batch([kernel] * n, particles(n, 1))
    values = np.asarray(draws.values)
    np.testing.assert_allclose(kernel.log_prob_batch([kernel] * n, list(draws.values)), draws.log_prob, rtol=1e-4)
    base = d.base_dist if isinstance(d, td.Independent) else d
    if hasattr(d, "logpdf") or hasattr(d, "logpmf"):
        score = d.logpmf if hasattr(d, "logpmf") else d.logpdf
        theirs = [float(np.sum(score(v))) for v in values[:20]]
        mean, cov = np.asarray(d.mean() if callable(d.mean) else d.mean), None
    else:
        cast = torch.tensor if isinstance(d, td.Distribution) else np.array
        theirs = [float(np.sum(np.asarray(base.log_prob(cast(v, dtype=cast(0.5).dtype))))) for v in values[:20]]
        mean, cov = np.asarray(d.mean), np.asarray(d.variance)
    np.testing.assert_allclose(draws.log_prob[:20], theirs, rtol=1e-3, atol=1e-4)
    z = (values.mean(0) - mean) / (values.std(0) / math.sqrt(n))
    assert np.all(np.abs(z) < stats.norm.isf(TEST_FAILURE_RATE / 2 / 3))
    if cov is not None:
        squares = (values - mean) ** 2
        z = (squares.mean(0) - cov) / (squares.std(0) / math.sqrt(n))
        assert np.all(np.abs(z) < stats.norm.isf(TEST_FAILURE_RATE / 2 / 3))
    if values.ndim > 1:
        assert not draws.values[0].flags.writeable


def test_covariance_of_a_stacked_multivariate_normal():
    cov = np.array([[2.0, 0.9], [0.9, 1.0]])
    for d in (td.MultivariateNormal(t([1.0, -1.0]), t(cov).float()), nd.MultivariateNormal(np.zeros(2), cov)):
        kernel = as_kernel(d)
        x = np.asarray(kernel.sample_batch([kernel] * N, particles(N, 2)).values)
        products = (x[:, 0] - x[:, 0].mean()) * (x[:, 1] - x[:, 1].mean())
        z = (products.mean() - 0.9) / (products.std() / math.sqrt(N))
        assert abs(z) < stats.norm.isf(TEST_FAILURE_RATE / 4)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: stats.norm(x, 0.1 + x),
        lambda x: stats.norm(loc=x, scale=0.1 + x),
        lambda x: td.Normal(t(float(x)), t(0.1 + x)),
        lambda x: td.Poisson(t(1.0 + x)),
        lambda x: td.Categorical(t([0.2, 0.3 + x / 10, 0.5 - x / 10])),
        lambda x: nd.Normal(float(x), 0.1 + x),
        lambda x: dist.Normal(x, 0.1 + x),
    ],
)
def test_one_family_shares_a_call(make):
    kernels = [as_kernel(make(x)) for x in range(5)]
    assert len({k.batch_key for k in kernels}) == 1
    assert len({k.fingerprint for k in kernels}) == 5
    assert [as_kernel(make(x)).fingerprint for x in range(5)] == [k.fingerprint for k in kernels]
    draws = kernels[0].sample_batch(kernels, particles(5, 3))
    alone = [k.log_prob(v) for k, v in zip(kernels, draws.values.tolist())]
    np.testing.assert_allclose(draws.log_prob, alone, rtol=1e-5, atol=1e-6)


def test_families_and_shapes_are_kept_apart():
    kernels = [
        stats.norm(0, 1),
        stats.norm(loc=0, scale=1),
        stats.norm([0, 1], 1),
        stats.expon(0, 1),
        TABLE,
        HISTOGRAM,
        td.Normal(0.0, 1.0),
        td.Normal(torch.zeros(2), 1.0),
        td.Laplace(0.0, 1.0),
        Mine(0.0, 1.0),
        td.Bernoulli(t(0.5)),
        td.Bernoulli(logits=t(0.5)),
        nd.Normal(0.0, 1.0),
        nd.Normal(np.zeros(2), 1.0),
        nd.Laplace(0.0, 1.0),
    ]
    assert len({as_kernel(d).batch_key for d in kernels}) == len(kernels)


def test_impossible_values():
    for d in (stats.expon(), td.Exponential(t(1.0)), nd.Exponential(1.0), td.LogNormal(t(0.0), t(1.0))):
        assert as_kernel(d).log_prob(-1.0) == -math.inf
    for d in (td.Categorical(t([1.0, 0.0])), nd.Categorical(probs=np.array([1.0, 0.0]))):
        assert as_kernel(d).log_prob(1) == as_kernel(d).log_prob(2) == as_kernel(d).log_prob(-1) == -math.inf
    assert as_kernel(td.Bernoulli(t(1.0))).log_prob(0) == -math.inf
    assert as_kernel(td.OneHotCategorical(t([0.5, 0.5]))).log_prob([1.0, 1.0]) == -math.inf


def test_supports_and_covers_across_libraries():
    half = as_kernel(td.Bernoulli(t(0.5)))
    sure = as_kernel(td.Bernoulli(t(1.0)))
    assert (half.support(), sure.support()) == ([0, 1], [1])
    assert half.covers(sure)
    assert not sure.covers(half)
    assert half.covers(dist.Bernoulli(0.3))
    assert dist.Bernoulli(0.3).covers(half)
    wide = [stats.norm(3, 1), td.Normal(0.0, 1.0), nd.Normal(0.0, 1.0), dist.Normal()]
    narrow = [stats.uniform(1, 2), td.Uniform(1.0, 3.0), nd.Uniform(1.0, 3.0), dist.Uniform(1.0, 3.0)]
    for a in map(as_kernel, wide):
        for b in map(as_kernel, narrow):
            assert a.covers(b)
            assert not b.covers(a)
        assert not a.covers(half)
        assert all(a.covers(as_kernel(b)) for b in wide)
    assert as_kernel(stats.poisson(2.0)).covers(as_kernel(nd.Poisson(1.0)))
    assert not as_kernel(stats.binom(5, 0.5)).covers(as_kernel(stats.poisson(2.0)))
    assert as_kernel(stats.binom(5, 0.5)).covers(as_kernel(TABLE))
    assert not as_kernel(TABLE).covers(as_kernel(stats.binom(5, 0.5)))
    assert not as_kernel(nd.Delta(1.0)).covers(as_kernel(nd.Normal(0.0, 1.0)))
    plane = [stats.multivariate_normal([0, 0]), td.MultivariateNormal(torch.zeros(2), torch.eye(2))]
    assert all(as_kernel(a).covers(as_kernel(b)) for a in plane for b in [*plane, dist.Normal([0.0, 0.0], 1.0)])


def test_torch_is_left_as_it_was():
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    for d in (td.Gamma(t(2.0), t(3.0)), Mine(0.0, 1.0)):
        kernel = as_kernel(d)
        kernel.sample_batch([kernel], particles(1))
    assert torch.equal(before, torch.random.get_rng_state())


def test_gradients_and_tensor_values():
    kernel = as_kernel(td.Normal(torch.tensor(0.5, requires_grad=True), t(1.0)))
    draws = kernel.sample_batch([kernel], particles(1))
    assert isinstance(draws.values, np.ndarray)
    assert kernel.log_prob(t(0.5)) == pytest.approx(stats.norm.logpdf(0.0))
    assert as_kernel(stats.norm(0, 1)).log_prob(t([0.0, 1.0])) == pytest.approx(stats.norm.logpdf([0, 1]).sum())


def test_scipy_scores_independent_data():
    data = [0.5, -1.0, 2.0]
    assert as_kernel(stats.norm(1, 2)).log_prob(data) == pytest.approx(stats.norm(1, 2).logpdf(data).sum())


@pytest.mark.parametrize("d", [td.Normal(torch.zeros(2), 1.0), nd.Normal(np.zeros(2), 1.0), stats.norm([0, 1])])
def test_wrong_shapes_are_named(d):
    with pytest.raises(ValueError, match=r"a value of shape \(3,\) for draws of \(2,\)"):
        as_kernel(d).log_prob(np.zeros(3))


def test_bad_parameters_are_named():
    kernels = [as_kernel(stats.norm(0, 1)), as_kernel(stats.norm(0, -1))]
    with pytest.raises(ValueError, match=r"scipy.stats.norm: no distribution has parameters \(0.0, -1.0\)"):
        kernels[0].sample_batch(kernels, particles(2))


@pytest.mark.parametrize("bad", [3, "normal", None, stats, dist.Normal, np.random.default_rng(0), td.ExpTransform()])
def test_what_is_no_distribution_is_refused(bad):
    with pytest.raises(TypeError, match=r"not something to sample from; give .* scipy.stats .* NumPyro"):
        as_kernel(bad)


def test_a_kernel_is_returned_as_it_is():
    d = dist.Normal()
    assert as_kernel(d) is d
    assert as_kernel(as_kernel(stats.norm())) is not None
