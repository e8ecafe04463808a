"""What the tests of engines share: toy programs with known targets, and the tests of exactness."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

import feynkac as fk

# A z-test at this threshold raises a false alarm about twice in 100,000 tests; seeds are fixed.
Z_LIMIT = 4.26


def z_score(samples, truth):
    """How far the mean of independent samples is from the truth, in standard errors; 0 if exactly there."""
    samples = np.asarray(samples, float)
    error = samples.std(ddof=1) / math.sqrt(len(samples))
    gap = samples.mean() - truth
    return 0.0 if abs(gap) < 1e-12 else gap / error if error > 0 else math.inf


def check_unbiased(model, engine, law, log_z, runs=2000, seed=0, limit=Z_LIMIT):
    """Assert E[Ẑ]/Z = 1 and E[Ẑ·W(x)]/Z = π(x) for each value x, over independent runs."""
    posteriors = fk.infer([model] * runs, engine, seed=seed)
    ratios = np.exp([p.log_evidence - log_z for p in posteriors])
    assert abs(z_score(ratios, 1.0)) < limit, f"E[Z^]/Z = {ratios.mean()}"
    for value, probability in law.items():
        masses = [
            ratio * sum(w for v, w in zip(p.values, p.probabilities) if v == value) if ratio > 0 else 0.0
            for ratio, p in zip(ratios, posteriors)
        ]
        assert abs(z_score(masses, probability)) < limit, f"{value!r}: {np.mean(masses)}, not {probability}"


@fk.program
async def hopeless():
    """All die at the second of three steps."""
    for step in range(3):
        await fk.sample("x", fk.dist.Bernoulli(0.5))
        await fk.factor("judge", -math.inf if step == 1 else -0.1)
    return 1


def check_all_dead(engine):
    """Assert that the death of all is an error that names step and site, or, where that is asked for, weight zero."""
    with pytest.raises(fk.errors.AllParticlesDead, match=r"weight zero at step 1 \(.*judge"):
        fk.infer(hopeless(), engine, seed=0)
    posterior = fk.infer(hopeless(), replace(engine, all_dead="zero"), seed=0)
    assert np.isneginf(posterior.log_weights).all()


@fk.program
async def deadly():
    """Some die at each of two steps, so that now and then all do."""
    x = await fk.sample("x", fk.dist.Categorical([0.6, 0.3, 0.1]))
    await fk.factor("no zero", -math.inf if x == 0 else 0.0)
    y = await fk.sample("y", fk.dist.Bernoulli(0.3))
    await fk.factor("agree", 1.0 if x == y else -math.inf if x == 2 and y else 0.3)
    return x, y


# T1: two steps, each a or b with probability one half, and a process reward for each prefix.
T1_REWARD = {"a": 0.8, "b": 0.2, "aa": 0.6, "ab": 0.3, "ba": 0.9, "bb": 0.1}


def odds(r):
    return r / (1 - r)


T1_POTENTIALS = {
    "product of r": lambda s: math.log(T1_REWARD[s]),
    "product of odds": lambda s: math.log(odds(T1_REWARD[s])),
    "final r": lambda s: math.log(T1_REWARD[s]) if len(s) == 2 else 0.0,
    "final odds": lambda s: math.log(odds(T1_REWARD[s])) if len(s) == 2 else 0.0,
}
T1_TARGETS = {
    "product of r": ((0.5217, 0.2609, 0.1957, 0.0217), 0.23),
    "product of odds": ((0.6005, 0.1716, 0.2252, 0.0028), 2.4980),
    "final r": ((0.3158, 0.1579, 0.4737, 0.0526), 0.475),
    "final odds": ((0.1359, 0.0388, 0.8152, 0.0101), 2.7599),
}


@fk.program
async def t1(potential, twist=None, proposal=None):
    text = ""
    for _ in range(2):
        law = fk.dist.Categorical([0.5, 0.5], values=["a", "b"])
        q = None if proposal is None else fk.dist.Categorical(proposal, values=["a", "b"])
        text = text + await fk.sample("step", law, proposal=q)
        if twist is not None:
            await fk.twist("guide", twist(text))
        await fk.factor("prm", T1_POTENTIALS[potential](text))
    return text


# T2: a token model over {a, b, $}; after two tokens $ is forced. The reward is the number of a's.
T2_NEXT = {"": (0.5, 0.3, 0.2), "a": (0.2, 0.5, 0.3), "b": (0.5, 0.3, 0.2)}
T2_ORDER = ("$", "a$", "aa$", "ab$", "b$", "ba$", "bb$")
T2_PRIOR = (0.2, 0.15, 0.1, 0.25, 0.06, 0.15, 0.09)
T2_POSTERIOR = (0.02026, 0.11225, 0.55296, 0.18709, 0.00608, 0.11225, 0.00912)
T2_Z = 9.873796


@fk.program
async def t2(beta=0.5, shaping=None, step_factor=True):
    text = ""
    while not text.endswith("$"):
        law = T2_NEXT.get(text, (0.0, 0.0, 1.0))
        text = text + await fk.sample("token", fk.dist.Categorical(law, values=list("ab$")))
        if shaping is not None:
            await fk.twist("shaping", shaping(text))
        elif step_factor:
            await fk.factor("step", 0.0)
    await fk.factor("reward", text.count("a") / beta)
    return text


# T3: one step, weights 9 and 1.
@fk.program
async def t3():
    value = await fk.sample("x", fk.dist.Categorical([0.5, 0.5], values=["a", "b"]))
    await fk.factor("G", math.log(9.0) if value == "a" else 0.0)
    return value
