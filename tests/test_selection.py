"""Engines that choose among whole runs: majority and weighted votes, best-of-N by answer, and best-of-k from a pool."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scripted import Queue

import feynkac as fk
from feynkac.inference.base.selection import best_of
from feynkac.ppl.cost import charge
from laws import Z_LIMIT, z_score


def pool(answers, rewards):
    """Given runs, each with an answer and a reward; a value says which run it is, too."""
    return Queue([(a, i) for i, a in enumerate(answers)], rewards)


def answer(value):
    return value[0]


def chosen(engine, answers, rewards):
    return fk.infer(pool(answers, rewards), engine, seed=0).best()


# -- laws -------------------------------------------------------------------------------------------------------


def test_best_majority_and_weighted_disagree_where_they_should():
    """One run of A scores highest, C has the most runs, B the largest sum."""
    answers, rewards = "ABBCCC", (0.9, 0.6, 0.5, 0.4, 0.35, 0.05)
    for order in itertools.islice(itertools.permutations(range(6)), 0, 720, 37):
        a, r = [answers[i] for i in order], [rewards[i] for i in order]
        assert chosen(fk.BestOfN(6), a, r)[0] == "A"
        assert chosen(fk.SelfConsistency(6, key=answer), a, r)[0] == "C"
        assert chosen(fk.SelfConsistency(6, key=answer, weighted=True), a, r) == ("B", order.index(1))
        assert chosen(fk.BestOfN(6, by=answer), a, r) == ("B", order.index(1))  # and the best-scored run of B
    shares = fk.infer(pool(answers, rewards), fk.SelfConsistency(6, key=answer, weighted=True), seed=0).vote()
    assert shares == pytest.approx({"B": 1.1 / 2.8, "A": 0.9 / 2.8, "C": 0.8 / 2.8})
    assert list(shares) == ["B", "A", "C"]
    counts = fk.infer(pool(answers, rewards), fk.SelfConsistency(6, key=answer), seed=0)
    assert counts.vote() == counts.vote(answer) == pytest.approx({"C": 3 / 6, "B": 2 / 6, "A": 1 / 6})


def enumerate_pools(n, law, engine, score):
    """The exact law of the chosen answer, over all pools of n independent runs."""
    found = dict.fromkeys(law, 0.0)
    for answers in itertools.product(law, repeat=n):
        posterior = fk.infer(pool(answers, [score(a) for a in answers]), engine, seed=0)
        probability = math.prod(law[a] for a in answers)
        if isinstance(engine, fk.SelfConsistency):
            found[posterior.best()[0]] += probability
        else:
            for a, weight in posterior.vote(answer).items():
                found[a] += probability * weight
    return [found[a] for a in law]


def test_laws_of_votes_and_of_best_of_n_are_those_of_their_enumeration():
    def vote(n):
        return fk.SelfConsistency(n, key=answer)

    assert enumerate_pools(3, {1: 0.6, 0: 0.4}, vote(3), lambda a: 1.0)[0] == pytest.approx(0.648)
    assert enumerate_pools(2, {1: 0.6, 0: 0.4}, vote(2), lambda a: 1.0)[0] == pytest.approx(0.6)  # ties are fair
    law = {1: 0.5, 2: 0.3, 3: 0.2}
    assert enumerate_pools(2, law, fk.BestOfN(2), math.exp) == pytest.approx([0.25, 0.39, 0.36])
    soft = enumerate_pools(2, law, fk.BestOfN(2, temperature=1.0), math.exp)
    assert soft == pytest.approx([0.35452, 0.34159, 0.30389], abs=5e-6)


@fk.program
async def coin(p=0.6):
    return await fk.sample("x", fk.dist.Bernoulli(p))


@pytest.mark.slow
@pytest.mark.parametrize(("n", "share"), [(2, 0.6), (3, 0.648)])
def test_majorities_of_a_program_follow_their_law(n, share):
    posteriors = fk.infer([coin()] * 4000, fk.SelfConsistency(n), seed=n)
    assert abs(z_score([p.best() for p in posteriors], share)) < Z_LIMIT
    assert abs(z_score([p.vote().get(1, 0.0) for p in posteriors], 0.6)) < Z_LIMIT


@pytest.mark.slow
def test_a_weighted_vote_is_that_of_importance_sampling():
    @fk.program
    async def scored():
        x = await fk.sample(
            "x",
            fk.dist.DiscreteUniform(1, 6),
            proposal=fk.dist.Categorical([0.3, 0.1, 0.1, 0.1, 0.1, 0.3], values=range(1, 7)),
        )
        await fk.factor("G", 0.4 * x)
        return x

    vote, plain = (
        fk.infer(scored(), engine, seed=0)
        for engine in (fk.SelfConsistency(200, weighted=True), fk.ImportanceSampling(200))
    )
    assert vote.vote() == pytest.approx(plain.vote())
    assert (vote.log_evidence, vote.guarantee) == (plain.log_evidence, "heuristic")
    # The votes of a majority estimate the program's own law, whatever the proposal and the potentials.
    majorities = fk.infer([scored()] * 300, fk.SelfConsistency(50), seed=1)
    masses = [np.exp(p.log_weights) @ [v == 1 for v in p.values] / 50 for p in majorities]
    assert abs(z_score(masses, 1 / 6)) < Z_LIMIT
    assert abs(z_score([np.mean([v == 1 for v in p.values]) for p in majorities], 1 / 6)) > Z_LIMIT


def test_an_answer_may_be_nan():
    engine = fk.SelfConsistency(3, key=lambda value: 1 if value[0] == "A" else math.nan)
    posterior = fk.infer(pool("ABB", (1, 1, 1)), engine, seed=0)
    (winner, share), _ = posterior.vote().items()
    assert math.isnan(winner)
    assert share == pytest.approx(2 / 3)
    assert posterior.best() == ("B", 1)


def test_runs_of_weight_zero_have_no_vote():
    posterior = fk.infer(pool("AAAB", (0.0, 0.0, 0.0, 0.2)), fk.SelfConsistency(4, key=answer), seed=0)
    assert posterior.vote() == {"B": 1.0}
    assert posterior.best() == ("B", 3)
    assert chosen(fk.BestOfN(4, by=answer), "AAAB", (0.0, 0.0, 0.0, 0.2)) == ("B", 3)
    for engine in (fk.SelfConsistency(4, key=answer), fk.BestOfN(4, by=answer)):
        with pytest.raises(fk.errors.AllParticlesDead):
            fk.infer(pool("AAAB", [0.0] * 4), engine, seed=0)
    empty = fk.infer(pool("AAAB", [0.0] * 4), fk.SelfConsistency(4, all_dead="zero"), seed=0)
    assert empty.log_evidence == -math.inf
    assert empty.warnings == ("every particle has weight zero: the posterior is empty",)


def test_chains_vote_together():
    posterior = fk.infer(coin(), fk.SelfConsistency(5, chains=7), seed=2)
    assert posterior.vote()[1] == pytest.approx(np.mean(posterior.values))
    assert posterior.best() == round(np.mean(posterior.values))


def test_without_a_key_the_value_is_the_answer_and_it_must_be_hashable():
    assert fk.infer(coin(), fk.SelfConsistency(20), seed=0).best() == 1

    @fk.program
    async def lists():
        return [await fk.sample("x", fk.dist.Bernoulli(0.5))]

    with pytest.raises(TypeError, match=r"the answer of particle 0 is an unhashable .*list: give a key= that"):
        fk.infer(lists(), fk.SelfConsistency(3), seed=0)
    with pytest.raises(TypeError, match=r"BestOfN compares answers, .* let by return another"):
        fk.infer(lists(), fk.BestOfN(3, by=lambda value: value), seed=0)
    assert fk.infer(lists(), fk.SelfConsistency(3, key=str), seed=0).best() in ([0], [1])


def test_a_key_that_fails_names_the_particle_and_nothing_ends_silently():
    with pytest.raises(ZeroDivisionError) as caught:
        fk.infer(pool("AB", (1, 1)), fk.SelfConsistency(2, key=lambda value: 1 / 0), seed=0)
    assert "in the key of SelfConsistency, for the value ('A', 0) of particle 0" in caught.value.__notes__[0]
    with pytest.raises(RuntimeError):
        fk.infer(pool("AB", (1, 1)), fk.SelfConsistency(2, key=lambda value: next(iter([]))), seed=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fk.SelfConsistency(0), "particles must be a positive integer"),
        (lambda: fk.SelfConsistency(2, chains=0), "chains must be a positive integer"),
        (lambda: fk.SelfConsistency(2, all_dead="no"), "all_dead must be"),
        (lambda: fk.SelfConsistency(2, key="answer"), "key must be a function of a value, or None, not 'answer'"),
        (lambda: fk.SelfConsistency(2, weighted="reward"), "weighted must be True or False, not 'reward'"),
        (lambda: fk.BestOfN(2, by=3), "by must be a function of a value, or None, not 3"),
        (lambda: fk.BestOfN(2, by=len, temperature=1.0), "give one of them"),
        (lambda: fk.BestOfN(2, temperature=math.inf), "temperature must be positive and finite"),
    ],
)
def test_settings_are_checked_when_they_are_made(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# -- runs that take several steps ---------------------------------------------------------------------------------


class Meter:
    """A kernel that counts and charges its tokens, and may be interrupted."""

    expensive = True
    fingerprint = None

    def __init__(self, fail_at=None):
        self.batch_key, self.batches, self.fail_at = id(self), [], fail_at

    def sample_batch(self, requests, keys):
        if len(self.batches) == self.fail_at:
            raise KeyboardInterrupt
        self.batches.append(len(requests))
        charge(model_calls=1, tokens_out=np.ones(len(requests), int))
        return fk.Draws((fk.keys.uniform(keys) < 0.4).astype(int), np.full(len(requests), math.log(0.5)))


@fk.program
async def counts(lm, rounds=8):
    """Counts zeros until the first one: most runs are short."""
    zeros = 0
    while zeros < rounds and not await fk.sample("x", lm):
        zeros += 1
        fk.deterministic("output", ("unfinished", zeros))
        await fk.factor("G", 0.2 * zeros)
    return zeros


ENGINES = [
    fk.SelfConsistency(12, chains=2),
    fk.SelfConsistency(24, key=lambda zeros: zeros % 2, weighted=True),
    fk.BestOfN(24, by=lambda zeros: zeros % 2),
    fk.BestOfN(12, chains=2),
    fk.BestOfN(24, temperature=2.0),
]


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_budgets_interrupts_and_callbacks_keep_the_finished_runs(engine):
    whole = fk.infer(counts(Meter()), engine, seed=0)
    assert whole.complete.all()
    assert whole.stopped is None
    cuts = {
        "tokens": lambda: fk.infer(counts(Meter()), engine, seed=0, budget=fk.Budget(tokens=30)),
        "model_calls": lambda: fk.infer(counts(Meter()), engine, seed=0, budget=fk.Budget(model_calls=2)),
        "interrupted": lambda: fk.infer(counts(Meter(fail_at=2)), engine, seed=0),
        "callback": lambda: fk.infer(counts(Meter()), engine, seed=0, callbacks=[lambda step: step.depth == 1]),
    }
    for reason, cut in cuts.items():
        posterior = cut()
        assert posterior.stopped == reason
        assert len(posterior.steps) == 2
        assert 0 < posterior.complete.sum() < 24
        for i, value in enumerate(posterior.values):  # finished ones are those of the whole run
            assert value == (whole.values[i] if posterior.complete[i] else ("unfinished", 2))
        assert isinstance(posterior.best(), int)
        assert posterior.probabilities[posterior.complete].sum() == pytest.approx(1.0)
        assert set(posterior.vote()) <= {0, 1}
        assert "did not run to their end" in posterior.summary()


def test_an_interrupted_majority_is_that_of_the_finished():
    posterior = fk.infer(counts(Meter(fail_at=2)), fk.SelfConsistency(24), seed=0)
    done = [v for v, complete in zip(posterior.values, posterior.complete) if complete]
    assert posterior.vote() == pytest.approx({v: done.count(v) / len(done) for v in set(done)})
    assert posterior.best() == max(set(done), key=done.count)


@pytest.mark.parametrize("engine", [fk.SelfConsistency(6), fk.BestOfN(6, by=lambda value: value)], ids=repr)
def test_before_any_run_has_finished_there_is_no_vote(engine):
    @fk.program
    async def long():
        for t in range(3):
            await fk.factor("G", 0.1 * await fk.sample("x", fk.dist.Bernoulli(0.5)))
            fk.deterministic("output", ("so far", t))
        return 1

    posterior = fk.infer(long(), engine, seed=0, budget=fk.Budget(seconds=0))
    assert not posterior.complete.any()
    assert posterior.vote() == {}
    assert posterior.best() is None or posterior.best()[0] == "so far"
    assert posterior.warnings[0].startswith("no particle ran to its end (stopped: seconds)")
    with pytest.raises(ValueError, match="no particle ran to its end"):
        posterior.expect(float)


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_stepping_and_batching_change_nothing(engine):
    lm = Meter()
    together = fk.infer([counts(lm), counts(lm, 2)], engine, seed=3)
    assert lm.batches[0] == 48  # both models and all chains share a call
    alone = fk.infer(counts(Meter()), engine, seed=3)
    run = fk.steps(counts(Meter()), engine, seed=3)
    list(run)
    for posterior in (together[0], run.posterior):
        assert posterior.values == alone.values
        assert (posterior.log_weights == alone.log_weights).all()
        assert posterior.best() == alone.best()
    assert alone.cost.tokens_out == sum(zeros + (zeros < 8) for zeros in alone.values)


def test_each_finished_run_is_asked_for_its_answer_once():
    asked = []
    fk.infer(counts(Meter()), fk.SelfConsistency(24, key=lambda value: asked.append(value) or value), seed=0)
    assert len(asked) == 24


def test_answers_survive_a_file(tmp_path):
    posterior = fk.infer(
        counts(Meter()), fk.SelfConsistency(24, key=lambda z: ("even", "odd")[z % 2], chains=2), seed=0
    )
    posterior.save(tmp_path / "p.fk")
    loaded = fk.Posterior.load(tmp_path / "p.fk")
    assert loaded.vote() == posterior.vote()
    assert set(loaded.vote()) == {"even", "odd"}
    assert loaded.best() == posterior.best()
    assert "lambda" not in posterior.engine


# -- best of k from one pool --------------------------------------------------------------------------------------


def test_best_of_k_agrees_with_the_tables_and_with_enumeration():
    assert best_of([5, 4, 3, 2, 1], [0, 1, 1, 0, 0], 2) == pytest.approx(0.5)
    rng = np.random.default_rng(0)
    for n in (1, 2, 5, 7):
        scores, quality = rng.integers(0, 4, n).astype(float), rng.normal(size=n)
        for k in range(1, n + 1):
            found = []
            for runs in itertools.combinations(range(n), k):
                best = max(scores[i] for i in runs)
                found.append(np.mean([quality[i] for i in runs if scores[i] == best]))
            assert best_of(scores, quality, k) == pytest.approx(np.mean(found))
    assert best_of(np.arange(50_000.0), np.arange(50_000.0), 50_000) == 49_999.0


@pytest.mark.slow
def test_best_of_k_is_unbiased():
    """P(the better of 3 has x = 1), with reward x + noise, from pools of 8."""

    @fk.program
    async def noisy():
        x = await fk.sample("x", fk.dist.Bernoulli(0.4))
        await fk.factor("G", x + await fk.sample("noise", fk.dist.Normal(0.0, 1.0)))
        return x

    pools = fk.infer([noisy()] * 800, fk.BestOfN(4, chains=2), seed=0)
    direct = fk.infer([noisy()] * 3000, fk.BestOfN(3), seed=1)
    estimates, truth = [p.best_of(3, float) for p in pools], [float(p.best()) for p in direct]
    gap = np.mean(estimates) - np.mean(truth)
    assert abs(gap) < Z_LIMIT * math.sqrt(np.var(estimates) / 800 + np.var(truth) / 3000)
    assert np.mean(truth) > 0.5
    assert np.var(estimates) < np.var(truth)


def test_best_of_k_needs_independent_runs_and_a_pool_large_enough():
    found = fk.infer(pool("AAB", (0.1, 0.0, 0.3)), fk.ImportanceSampling(3), seed=0)
    assert found.best_of(1, lambda value: 3.0) == pytest.approx(2.0)  # the run of weight zero counts as 0
    for k in (0, 4):
        with pytest.raises(ValueError, match=f"between 1 and the 3 runs of the pool, not {k}"):
            found.best_of(k, lambda value: 1.0)
    resampled = fk.infer(counts(Meter()), fk.SMC(8, ess_threshold=1.0), seed=0)
    with pytest.raises(ValueError, match="needs independent runs"):
        resampled.best_of(2, float)
    with pytest.raises(ValueError, match="one score and one quality"):
        best_of([1.0, 2.0], [1.0], 1)
    with pytest.raises(ValueError, match="NaN"):
        best_of([1.0, math.nan], [1.0, 1.0], 1)
