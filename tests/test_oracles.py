"""Exact oracles against brute force: all paths of a chain, and the joint Gaussian of a linear model."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from feynkac.ppl.exact.oracles import forward_filter, kalman


def all_paths(initial, transition, log_potentials):
    """log Z, filtering and smoothing marginals, by enumeration; potentials (T, K, K)."""
    steps, states = len(log_potentials), len(initial)
    filtered, smoothed, evidence = np.zeros((steps, states)), np.zeros((steps, states)), np.zeros(steps)
    for length in range(1, steps + 1):
        for path in itertools.product(range(states), repeat=length):
            weight = initial[path[0]] * math.exp(log_potentials[0][0][path[0]])
            for t in range(1, length):
                weight *= transition[t - 1][path[t - 1]][path[t]]
                weight *= math.exp(log_potentials[t][path[t - 1]][path[t]])
            evidence[length - 1] += weight
            filtered[length - 1, path[-1]] += weight
            if length == steps:
                smoothed[np.arange(steps), path] += weight
    return evidence, filtered / evidence[:, None], smoothed / evidence[-1]


@pytest.mark.parametrize("kind", ["constant", "varying", "pairs"])
def test_forward_filter_against_all_paths(kind):
    rng = np.random.default_rng(3)
    steps, states = 5, 3
    initial = rng.dirichlet([0.5, 1.0, 2.0])
    moves = rng.dirichlet([0.3, 1.0, 0.6], size=(steps - 1, states))
    if kind == "constant":
        moves = np.broadcast_to(moves[0], moves.shape)
    logs = rng.normal(size=(steps, states, states)) * 3 - 500
    logs[2, 1, 0] = logs[3, :, 2] = -math.inf
    if kind != "pairs":
        logs = np.broadcast_to(logs[:, :1], logs.shape)
    evidence, filtered, smoothed = all_paths(initial, moves, logs + 500)
    given = logs if kind == "pairs" else logs[:, 0]
    chain = forward_filter(initial, moves[0] if kind == "constant" else moves, given)
    np.testing.assert_allclose(np.cumsum(chain.log_increments), np.log(evidence) - 500 * np.arange(1, 6))
    assert chain.log_evidence == pytest.approx(math.log(evidence[-1]) - 2500, rel=1e-13)
    np.testing.assert_allclose(chain.filtered, filtered, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(chain.smoothed, smoothed, rtol=1e-12, atol=1e-15)


def test_forward_filter_of_one_step():
    chain = forward_filter([0.2, 0.8], np.eye(2), [[math.log(0.5), -math.inf]])
    assert chain.log_evidence == pytest.approx(math.log(0.1))
    assert chain.filtered.tolist() == chain.smoothed.tolist() == [[1.0, 0.0]]


def test_forward_filter_refuses():
    half = [0.5, 0.5]
    with pytest.raises(ValueError, match="every state has potential 0 at step 1"):
        forward_filter(half, [half, half], [[0.0, 0.0], [-math.inf, -math.inf]])
    with pytest.raises(ValueError, match="no path has positive weight at step 1"):
        forward_filter([1.0, 0.0], np.eye(2), [[0.0, 0.0], [-math.inf, 0.0]])
    with pytest.raises(ValueError, match="initial must hold probabilities"):
        forward_filter([0.5, 0.6], np.eye(2), [[0.0, 0.0]])
    with pytest.raises(ValueError, match="transition must hold probabilities"):
        forward_filter(half, [half, [0.5, 0.4]], [[0.0, 0.0]])
    with pytest.raises(ValueError, match="transition of shape"):
        forward_filter(half, np.eye(3), [[0.0, 0.0]])
    with pytest.raises(ValueError, match="log_potentials of"):
        forward_filter(half, np.eye(2), [[0.0, 0.0, 0.0]])
    with pytest.raises(ValueError, match=r"less than \+inf"):
        forward_filter(half, np.eye(2), [[0.0, math.nan]])


def joint_gaussian(steps, m, p, f, q, h, r, b, c):
    """Mean and covariance of (x_0…x_{T−1}, y_0…y_{T−1}), all of it a linear map of the noises."""
    d, k = len(m), len(c)
    noise = np.zeros((steps * (d + k), steps * (d + k)))
    x_map = np.zeros((steps, d, steps * (d + k)))
    x_mean = np.zeros((steps, d))
    for t in range(steps):
        own = slice(t * d, (t + 1) * d)
        noise[own, own] = p if t == 0 else q
        x_mean[t] = m if t == 0 else f @ x_mean[t - 1] + b
        if t:
            x_map[t] = f @ x_map[t - 1]
        x_map[t][:, own] += np.eye(d)
    y_map = h @ x_map
    for t in range(steps):
        own = slice(steps * d + t * k, steps * d + (t + 1) * k)
        noise[own, own] = r
        y_map[t][:, own] += np.eye(k)
    linear = np.concatenate([x_map.reshape(steps * d, -1), y_map.reshape(steps * k, -1)])
    return np.concatenate([x_mean.ravel(), (x_mean @ h.T + c).ravel()]), linear @ noise @ linear.T


@pytest.mark.parametrize(("d", "k", "singular"), [(1, 1, False), (2, 1, False), (2, 3, False), (3, 2, True)])
def test_kalman_against_the_joint_gaussian(d, k, singular):
    rng = np.random.default_rng(10 * d + k)
    steps = 5

    def spread(n):
        root = rng.normal(size=(n, n))
        return root @ root.T + 0.1 * np.eye(n)

    m, p, f, q = rng.normal(size=d), spread(d), rng.normal(size=(d, d)) * 0.7, spread(d)
    if singular:
        q = np.zeros((d, d))
    h, r, b, c = rng.normal(size=(k, d)), spread(k), rng.normal(size=d), rng.normal(size=k)
    y = rng.normal(size=(steps, k)) * 2
    exact = kalman(
        y if k > 1 else y[:, 0],
        initial_mean=m,
        initial_cov=p,
        transition=f,
        transition_cov=q,
        emission=h,
        emission_cov=r,
        transition_offset=b,
        emission_offset=c,
    )
    mean, cov = joint_gaussian(steps, m, p, f, q, h, r, b, c)
    split = steps * d
    assert exact.log_evidence == pytest.approx(
        stats.multivariate_normal(mean[split:], cov[split:, split:]).logpdf(y.ravel()), rel=1e-10
    )
    for seen in range(1, steps + 1):
        data = slice(split, split + seen * k)
        gain = cov[:split, data] @ np.linalg.inv(cov[data, data])
        means = (mean[:split] + gain @ (y.ravel()[: seen * k] - mean[data])).reshape(steps, d)
        covs = (cov[:split, :split] - gain @ cov[data, :split]).reshape(steps, d, steps, d)
        t = seen - 1
        np.testing.assert_allclose(exact.filtered_means[t], means[t], atol=1e-8)
        np.testing.assert_allclose(exact.filtered_covs[t], covs[t, :, t], atol=1e-8)
    for t in range(steps):
        np.testing.assert_allclose(exact.smoothed_means[t], means[t], atol=1e-8)
        np.testing.assert_allclose(exact.smoothed_covs[t], covs[t, :, t], atol=1e-8)
    for t in range(steps - 1):
        np.testing.assert_allclose(exact.lag_covs[t], covs[t, :, t + 1], atol=1e-8)
    if not singular:
        check_rauch_tung_striebel(exact, f, q, b)


def check_rauch_tung_striebel(exact, f, q, b):
    """Their own recursion, which inverts the predicted covariances."""
    for t in range(len(exact.lag_covs)):
        mean, cov = exact.filtered_means[t], exact.filtered_covs[t]
        predicted = f @ cov @ f.T + q
        gain = cov @ f.T @ np.linalg.inv(predicted)
        means, covs = exact.smoothed_means, exact.smoothed_covs
        np.testing.assert_allclose(means[t], mean + gain @ (means[t + 1] - f @ mean - b), atol=1e-8)
        np.testing.assert_allclose(covs[t], cov + gain @ (covs[t + 1] - predicted) @ gain.T, atol=1e-8)
        np.testing.assert_allclose(exact.lag_covs[t], gain @ covs[t + 1], atol=1e-8)


def test_smoothed_moments_of_an_autoregression():
    exact = kalman(
        [0.5, -1.0, 2.0, 1.0],
        initial_mean=0.0,
        initial_cov=1 / 0.19,
        transition=0.9,
        transition_cov=1.0,
        emission=1.0,
        emission_cov=1.0,
    )
    known = {
        "filtered_means": (0.420168, -0.485893, 1.028125, 0.969969),
        "filtered_covs": (0.840336, 0.626959, 0.601250, 0.597911),
        "smoothed_means": (0.280862, 0.068581, 1.044376, 0.969969),
        "smoothed_covs": (0.597911, 0.483512, 0.483512, 0.597911),
        "lag_covs": (0.217580, 0.180940, 0.217580),
    }
    assert exact.log_evidence == pytest.approx(-7.561096823, abs=1e-9)
    for name, numbers in known.items():
        np.testing.assert_allclose(getattr(exact, name).ravel(), numbers, atol=6e-7)
    assert math.fsum(exact.log_increments) == pytest.approx(exact.log_evidence)


def test_kalman_names_the_matrix_that_does_not_fit():
    with pytest.raises(ValueError, match=r"emission must have shape \(1, 2\), not \(2, 2\)"):
        kalman(
            [0.0, 1.0],
            initial_mean=[0.0, 0.0],
            initial_cov=np.eye(2),
            transition=np.eye(2),
            transition_cov=np.eye(2),
            emission=np.eye(2),
            emission_cov=1.0,
        )
