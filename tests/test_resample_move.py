"""SMC with moves, SMC steering, twisted SMC with its induced proposal, and bounds on the evidence from both sides."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

import feynkac as fk
from chains import chain
from feynkac.inference.base.resampling import CONDITIONAL, conditional, optimal
from feynkac.inference.mcmc.conditional_smc import ConditionalSMC
from laws import T1_TARGETS, T2_NEXT, T2_ORDER, T2_POSTERIOR, T2_PRIOR, T2_Z, Z_LIMIT, check_unbiased, t1, t2, z_score
from walks import choices_of, keys_of, tokens

T2_LAW = dict(zip(T2_ORDER, T2_POSTERIOR))

# -- resample–move ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 4])
def test_smc_with_moves_is_unbiased_and_finds_the_posterior(n):
    # 16 comparisons in all at |z| < 4.26: 3e-4.
    engine = fk.SMC(n, ess_threshold=1.0, move=fk.SuffixMH(2))
    check_unbiased(tokens(heat=0.6), engine, T2_LAW, math.log(T2_Z), runs=350, seed=n)


def test_progress_counts_the_particles_that_have_finished():
    run = fk.steps(t2(), fk.SMC(4, move=fk.SuffixMH(1)), seed=0)
    shown = [(run.standing()[0], int(step.done.sum())) for step in run]
    assert all(counted == done for counted, done in shown)
    assert shown[0][0] < shown[-1][0] == 4


@pytest.mark.slow
def test_moves_keep_the_target_under_twists():
    model = t2(shaping=lambda text: 0.8 * text.count("a") - 0.5 * text.count("b"))
    check_unbiased(model, fk.SMC(3, 0.8, move=fk.SuffixMH(1)), T2_LAW, math.log(T2_Z), runs=350, seed=5)


@pytest.mark.slow
def test_a_native_model_that_cannot_force_choices_can_be_moved_and_swept():
    model = chain()
    z, law = model.exact()
    few = dict(sorted(law.items(), key=lambda item: -item[1])[:4])
    check_unbiased(chain(), fk.SMC(3, 1.0, move=fk.SuffixMH(1)), few, math.log(z), runs=400, seed=6)
    posterior = fk.infer(chain(), fk.ParticleGibbs(6, sweeps=500), seed=0)
    for path, p in few.items():
        assert posterior.expect(lambda v, x=path: v == x) == pytest.approx(p, abs=0.08)


def test_moves_bring_back_what_resampling_lost():
    """One of many first draws survives; moves make others, and the history shows them as a tree."""

    @fk.program
    async def long():
        text = ""
        for t in range(6):
            text += await fk.sample("x", fk.dist.Categorical([0.4, 0.6], values=["a", "b"]))
            await fk.factor("G", 1.5 * text.endswith("a") + 0.1 * t)
        return text

    first = {}
    for move in (None, fk.SuffixMH(4)):
        posterior = fk.infer(long(), fk.SMC(12, 1.0, move=move), seed=3)
        first[move] = len({id(posterior.trace(i)["x"]) for i in range(12)})
        for i, value in enumerate(posterior.values):
            trace = posterior.trace(i)
            sites = ["x" if t == 0 else f"x[{t}]" for t in range(6)]
            assert "".join(trace[site].value for site in sites) == value
            assert posterior.log_potential[i] == pytest.approx(1.5 * value.count("a") + 1.5)
        assert posterior.guarantee == "unbiased"
    assert first[None] <= 6 < first[fk.SuffixMH(4)]


def test_a_weight_that_is_no_number_is_refused():
    model = chain()
    model.log_g = model.log_g * np.array([1.0, 1.0, np.nan])[:, None]
    for engine in (fk.SuffixMH(3), fk.SMC(3, move=fk.SuffixMH(1)), fk.ParticleGibbs(3, 2)):
        with pytest.raises(fk.errors.InvalidWeight):
            fk.infer(model, engine, seed=0)


# -- resampling ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_conditional_resampling_is_the_law_of_the_scheme_given_what_is_kept():
    """Of systematic resampling in a random order: counts weighed by the copies of the one that is kept."""
    p, m, n = np.array([0.15, 0.45, 0.4]), 4, 6000
    from feynkac.inference.base.resampling import systematic

    plain = {}
    for i in range(n):
        order = np.argsort(fk.keys.uniform(keys_of(1, 1, i), 3)[0])
        counts = tuple(np.bincount(order[systematic(p[order], m, keys_of(1, 2, i))], minlength=3))
        plain[counts] = plain.get(counts, 0) + 1
    for kept in range(3):
        weighed = {c: k / n * c[kept] / (m * p[kept]) for c, k in plain.items()}
        assert sum(weighed.values()) == pytest.approx(1.0, abs=0.03)
        found: dict = {}
        for i in range(n // 3):
            drawn = conditional(p, m, keys_of(1, 3, kept, i), "systematic", kept)
            assert drawn[0] == kept
            counts = tuple(np.bincount(drawn, minlength=3))
            found[counts] = found.get(counts, 0) + 3 / n
        assert set(found) <= {c for c in plain if c[kept]}
        for counts, share in weighed.items():
            # Two samples: about four and a half standard errors of either.
            assert found.get(counts, 0.0) == pytest.approx(share, abs=4.5 * math.sqrt(0.25 * 4 / n) + 0.005)


@pytest.mark.parametrize("scheme", CONDITIONAL)
def test_conditional_resampling_never_draws_a_weight_of_zero(scheme):
    p = np.array([0.0, 1.0, 0.0])
    assert conditional(p, 5, keys_of(1), scheme, 1).tolist() == [1] * 5
    tiny = np.array([1e-20, 0.0, 0.5, 0.5])  # kept all the same, beside others whose copies come out whole
    assert conditional(tiny, 2, keys_of(1), scheme).tolist()[1] in (2, 3)
    drawn = conditional(tiny, 4, keys_of(1), scheme)
    assert sorted(drawn.tolist())[0] == drawn[0] == 0
    assert set(drawn[1:].tolist()) <= {2, 3}
    with pytest.raises(ValueError, match="multinomial"):
        conditional(p, 5, keys_of(1), "ssp", 1)


@pytest.mark.slow
def test_optimal_resampling_keeps_each_once_and_every_weight_in_expectation():
    w = np.array([0.45, 0.02, 0.2, 0.0, 0.13, 0.1, 0.1])
    total, n = np.zeros(len(w)), 4000
    for i in range(n):
        index, chance = optimal(w, 4, keys_of(1, i))
        assert len(index) == len(set(index.tolist())) == 4
        assert 0 in index  # c·w ≥ 1
        total[index] += w[index] / chance
    # With c = 3/.55 the chances are 1, .109, 1 (c·.2 = 1.09), …: the largest are kept until the rest is below one.
    for k, mean in enumerate(total / n):
        assert mean == pytest.approx(w[k], abs=4.5 * math.sqrt(0.18 * 0.18 / n))
    assert optimal(w, 6, keys_of(1))[0].tolist() == [0, 1, 2, 4, 5, 6]
    assert optimal(np.ones(9), 3, keys_of(1))[1].tolist() == pytest.approx([1 / 3] * 3)


# -- SMC steering ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("n", "beam"), [(1, 1), (2, 3), (3, 2)])
def test_smc_steering_is_unbiased(n, beam):
    # 24 comparisons at |z| < 4.26: 5e-4.
    exact = fk.enumerate_program(t1("product of odds"))
    assert [exact.probability(x) for x in ("aa", "ab", "ba", "bb")] == pytest.approx(
        T1_TARGETS["product of odds"][0], abs=5e-5
    )
    check_unbiased(t1("product of odds"), fk.SMCSteer(n, beam), exact.law(), exact.log_evidence, runs=700)
    if beam > 1:
        check_unbiased(
            t2(shaping=lambda text: 0.7 * text.count("a")), fk.SMCSteer(n, beam), T2_LAW, math.log(T2_Z), runs=400
        )


def test_smc_steering_of_one_continuation_never_resamples_and_many_are_better():
    assert not any(
        step.resampled and len(step.done) > 5 for step in fk.infer(tokens(), fk.SMCSteer(5, 1), seed=0).steps
    )
    spread = {}
    for beam in (1, 4):
        found = fk.infer([t1("product of r")] * 300, fk.SMCSteer(3, beam), seed=1)
        spread[beam] = np.std([math.exp(p.log_evidence) for p in found])
        assert all(len(p) <= 3 * beam for p in found)
    assert spread[4] < 0.75 * spread[1]
    two = fk.infer(t1("product of odds"), fk.SMCSteer(3, 4, chains=2), seed=1)
    means = [chain.evidence for chain in two.chains]
    shares = [two.probabilities[: len(two.chains[0].log_weights)].sum(), 0]
    assert shares[0] == pytest.approx(np.exp(means[0]) / np.exp(means).sum())


def test_steering_without_survivors_says_so():
    @fk.program
    async def doomed():
        await fk.sample("x", fk.dist.Bernoulli(0.5))
        await fk.factor("G", -math.inf)

    with pytest.raises(fk.errors.AllParticlesDead):
        fk.infer(doomed(), fk.SMCSteer(3), seed=0)
    assert fk.infer(doomed(), fk.SMCSteer(3, all_dead="zero"), seed=0).log_evidence == -math.inf
    with pytest.raises(ValueError, match="beam"):
        fk.SMCSteer(3, beam=0)


# -- twisted SMC -----------------------------------------------------------------------------------------------------

GAIN = {text: math.exp(text.count("a") / 0.5) for text in T2_ORDER}


def expected(text):
    """E[φ | prefix] under the model: the optimal twist."""
    if text.endswith("$"):
        return GAIN[text]
    return sum(p * expected(text + x) for p, x in zip(T2_NEXT.get(text, (0.0, 0.0, 1.0)), "ab$") if p > 0)


@fk.program
async def twisted(level):
    """T2 drawn from the proposal that a twist induces."""
    text = ""
    while not text.endswith("$"):
        law = fk.dist.Categorical(T2_NEXT.get(text, (0.0, 0.0, 1.0)), values=list("ab$"))
        q = fk.induced(law, lambda x, text=text: level(text + x))
        text += await fk.sample("token", law, proposal=q)
        await fk.twist("psi", level(text))
    await fk.factor("reward", text.count("a") / 0.5)
    return text


@pytest.mark.parametrize("engine", [fk.SMC(1), fk.SMC(5, 1.0), fk.SMC(4, 0.5, "multinomial"), fk.SMCSteer(3, 2)])
def test_with_the_optimal_twist_and_its_proposal_every_run_gives_z(engine):
    assert sum(p * GAIN[x] for p, x in zip(T2_PRIOR, T2_ORDER)) == pytest.approx(T2_Z, abs=1e-6)
    for posterior in fk.infer([twisted(lambda text: math.log(expected(text)))] * 20, engine, seed=0):
        assert math.exp(posterior.log_evidence) == pytest.approx(T2_Z, abs=1e-6)


@pytest.mark.slow
def test_another_twist_changes_the_variance_and_not_the_target():
    rough = twisted(lambda text: 0.9 * text.count("a") + 0.3 * text.endswith("b"))
    check_unbiased(rough, fk.SMC(3, 0.7), T2_LAW, math.log(T2_Z), runs=700, seed=2)


def test_the_induced_proposal_of_a_law_that_it_cannot_tilt_is_refused():
    with pytest.raises(fk.errors.Unsupported, match="finite support"):
        fk.induced(fk.dist.Normal(0.0, 1.0), lambda x: 0.0)
    with pytest.raises(fk.errors.InvalidWeight, match="twist of 'b'"):
        fk.induced(fk.dist.Categorical([0.5, 0.5], values=["a", "b"]), lambda x: -math.inf if x == "b" else 0.0)

    class Mute:
        batch_key, fingerprint = "mute", "mute"

        def support(self):
            return [0, 1]

        def sample_batch(self, requests, keys):
            return fk.Draws([0] * len(keys), None)

    with pytest.raises(fk.errors.CannotScore):
        fk.induced(Mute(), lambda x: 0.0)


# -- bounds ----------------------------------------------------------------------------------------------------------


def draws(n, seed):
    """Exact draws of T2's posterior, as values by address."""
    index = np.searchsorted(np.cumsum(T2_POSTERIOR)[:-1], fk.keys.uniform(keys_of(n, seed)), side="right")
    return [{("token" if t == 0 else f"token[{t}]"): x for t, x in enumerate(T2_ORDER[i])} for i in index.tolist()]


@pytest.mark.parametrize("engine", [fk.SMC(2, 1.0, "multinomial"), fk.SMC(4, 0.5)])
def test_the_evidence_lies_between_the_bounds(engine):
    found = fk.bounds(tokens(), engine, exact_sample=draws(150, 1), seed=0, runs=150)
    assert found.lower + 5 * found.lower_se < math.log(T2_Z) < found.upper - 5 * found.upper_se
    assert found.lower > math.log(T2_Z) - 1.0
    tight = fk.bounds(
        twisted(lambda text: math.log(expected(text))), fk.SMC(3), exact_sample=draws(5, 2), seed=0, runs=5
    )
    assert tight[:2] == pytest.approx([math.log(T2_Z)] * 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "smc", [fk.SMC(2, 1.0, "multinomial"), fk.SMC(3, 1.0, "systematic"), fk.SMC(3, 0.6, "multinomial")]
)
def test_conditional_smc_from_exact_draws_is_unbiased_for_the_inverse_evidence(smc):
    """E[1/Ẑ] = 1/Z, whatever the scheme: a plain systematic draw with a pinned slot would fail."""
    model, inverse = tokens(heat=0.6), []
    count = dict.fromkeys(T2_ORDER, 0)
    for sample in draws(900, 3):
        count["".join(sample.values())] += 1
    for text, k in count.items():
        if k:
            found = fk.infer([model] * k, ConditionalSMC(smc, choices_of(text)), seed=T2_ORDER.index(text))
            inverse += [math.exp(-p.log_evidence) for p in found]
            assert all(p.values[0] == text for p in found)
    assert abs(z_score(np.array(inverse) * T2_Z, 1.0)) < Z_LIMIT


def test_draws_that_are_no_whole_run_are_refused():
    model, engine = tokens(), fk.SMC(3)
    with pytest.raises(ValueError, match=r"lacks.*token"):
        fk.bounds(model, engine, exact_sample={"token": "a"}, seed=0)
    for given in ([{"token": "a"}], [*choices_of("a$"), {}, {}]):
        with pytest.raises(fk.errors.ImpossibleChoice):
            fk.bounds(model, engine, exact_sample=[given], seed=0, runs=2)
    with pytest.raises(ValueError, match="runs"):
        fk.bounds(model, engine, exact_sample=[], seed=0, runs=0)
    with pytest.raises(ValueError, match="no draw"):
        fk.bounds(model, engine, exact_sample=[], seed=0)
    with pytest.raises(ValueError, match="resampling of conditional SMC must be"):
        fk.bounds(model, fk.SMC(3, resampling="ssp"), exact_sample=draws(1, 1), seed=0)
    with pytest.raises(TypeError, match="programs"):
        fk.bounds(chain(), engine, exact_sample={"x": 1}, seed=0)
    assert len(list(itertools.chain(fk.bounds(model, engine, exact_sample=draws(2, 1), seed=0, runs=2)))) == 4


@pytest.mark.slow
def test_runs_that_share_an_exact_draw_count_as_one():
    """The reported variance of the upper bound is that of its repetitions, where each of 3 draws serves 5 runs."""
    repeats = 100
    found = [fk.bounds(tokens(), fk.SMC(2), exact_sample=draws(3, seed), seed=seed, runs=15) for seed in range(repeats)]
    uppers, variances = np.array([b.upper for b in found]), np.array([b.upper_se**2 for b in found])
    # E[variance] = Var(upper): z-score of their difference by repetition; a correct one fails once in 50,000 times.
    # As if all 15 were independent it is a quarter of that, some 5 standard errors away.
    squares = (uppers - uppers.mean()) ** 2 * repeats / (repeats - 1)
    assert abs(z_score(variances - squares, 0.0)) < Z_LIMIT
    one = fk.bounds(tokens(), fk.SMC(2), exact_sample=draws(1, 0), seed=0, runs=8)
    assert math.isnan(one.upper_se)
    assert one.lower_se > 0
