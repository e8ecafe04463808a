"""Budgets shared out over problems: exact on known curves, learned without seeing its own problem, and kept."""

from __future__ import annotations

import itertools
import math
from functools import cache

import numpy as np
import pytest

import feynkac as fk
from feynkac import scaling
from feynkac.inference.scaling.allocate import Options, joined
from feynkac.inference.scaling.foretelling import alike, gain
from feynkac.inference.scaling.policy import ComputeOptimal, Record
from laws import Z_LIMIT, z_score

SIZES = [fk.BestOfN(n) for n in (4, 8, 16)]


@fk.program
async def guess(p, price=1, sure=0.0, wrong=-5.0):
    right = await fk.sample("right", fk.dist.Bernoulli(p))
    await fk.call("pay", lambda: fk.charge(tokens_out=price + (price > 1 and bool(right))))
    await fk.factor("verifier", sure if right else wrong)
    return bool(right)


def right(value, problem):
    return value


# -- spending on curves that are known ----------------------------------------------------------------------------


def everything(values, costs, budget):
    """Return the best value of all choices, by trying each."""
    rows = np.arange(len(values))
    choices = itertools.product(range(values.shape[1]), repeat=len(values))
    return max(values[rows, c].sum() for c in map(list, choices) if costs[rows, c].sum() <= budget)


def test_concave_curves_are_shared_out_exactly_and_as_greedy_shares_them():
    p, n = np.array([0.9, 0.3, 0.05]), np.arange(13)
    values, costs = 1 - (1 - p[:, None]) ** n, np.tile(n, (3, 1))
    for budget in range(1, 13):
        chosen = scaling.spend(values, costs, budget)
        assert chosen.tolist() == scaling.greedy(p, budget).tolist()
        assert values[np.arange(3), chosen].sum() == pytest.approx(everything(values, costs, budget))


def test_any_options_are_within_one_step_of_the_best_keep_the_budget_and_never_fall_with_it():
    rng, rows = np.random.default_rng(0), np.arange(4)
    for _ in range(5):
        values, costs = rng.random((4, 4)), rng.integers(1, 9, (4, 4)).astype(float)
        costs[:, 0] = 0.0
        before, step = -math.inf, max(values.max(1) - values[:, 0])
        for budget in np.arange(0.0, 34.0, 2.5):
            chosen = scaling.spend(values, costs, budget)
            worth = values[rows, chosen].sum()
            assert costs[rows, chosen].sum() <= budget
            assert before <= worth + 1e-12
            assert everything(values, costs, budget) - step <= worth <= everything(values, costs, budget) + 1e-12
            before = worth
        assert worth == pytest.approx(values.max(1).sum())


def test_what_is_not_on_offer_is_not_taken():
    assert scaling.spend([[0.0, -math.inf, 2.0]], [[1.0, 0.0, 3.0]], 3).tolist() == [2]
    with pytest.raises(ValueError, match="no option"):
        scaling.spend([[-math.inf]], [[0.0]], 1)
    with pytest.raises(ValueError, match="cheapest options cost"):
        scaling.spend([[1.0], [1.0]], [[2.0], [2.0]], 3)
    with pytest.raises(ValueError, match="tables"):
        scaling.spend([1.0], [1.0], 3)


def test_its_other_objective_is_gvm():
    p, norms, n = np.array([0.9, 0.25, 0.04]), np.array([1.0, 1.0, 2.0]), np.arange(1, 400)
    values = -(norms[:, None] ** 2) / (p[:, None] * n)
    shared = 1 + scaling.spend(values, np.tile(n, (3, 1)), 400)
    assert np.abs(shared - scaling.gvm(p, norms, 400, alpha=0.0)).max() <= 1


# -- what the verifier alone foretells ------------------------------------------------------------------------------


def test_the_gain_foretold_is_that_of_an_urn():
    rng = np.random.default_rng(1)
    law, kappa, n, m = np.array([0.1, 0.3, 0.8]), 1.5, 3, 4
    seen = np.array([0.1, 0.3, 0.1])
    rises = []
    for _ in range(4000):
        best, own = seen.max(), list(seen)
        for _ in range(m):  # a draw is of the urn's own, or a new one of the law
            fresh = rng.random() < kappa / (len(own) + kappa)
            own.append(rng.choice(law) if fresh else rng.choice(own))
        rises.append(max(own) - best)
    found = gain(np.array([seen.max()]), n, np.array([0, m]), law, kappa)
    assert found[0, 0] == 0.0
    assert abs(z_score(np.array(rises), found[0, 1])) < Z_LIMIT  # at most 2e-5 by chance


def test_how_alike_problems_are_is_found_from_their_rewards():
    rng = np.random.default_rng(2)
    kappa = 3.0
    p = rng.beta(kappa * 0.4, kappa * 0.6, 4000)  # of Bernoulli rewards the process is a Beta law
    assert alike((rng.random((4000, 4)) < p[:, None]).astype(float)) == pytest.approx(kappa, rel=0.1)
    assert alike((rng.random((4000, 4)) < 0.4).astype(float)) > 30
    assert alike(np.ones((5, 4))) == 0.2


# -- a run ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["reward", "variance"])
@pytest.mark.parametrize("look", [fk.BestOfN(4), fk.ImportanceSampling(4)])
def test_the_budget_is_kept_and_all_of_it_is_in_the_ledger(objective, look):
    models = [guess(p, price=3) for p in (0.95, 0.5, 0.1, 0.02, 0.3)]
    engines = [type(look)(n) for n in (8, 16, 32)]
    before = 0
    for tokens in (100, 160, 300, 2000):
        found = fk.allocate(models, engines, fk.Budget(tokens=tokens), first_look=look, objective=objective, seed=3)
        posteriors, plan = found
        assert repr(found) == f"Allocated(5 posteriors, plan={plan!r})"
        spent = [posterior.cost.tokens_out for posterior in posteriors]
        assert [share.cost for share in plan.shares] == spent
        assert before <= sum(spent) == plan.used <= tokens + 4 * 28  # by at most a wave: a token more where it is right
        for posterior, share in zip(posteriors, plan.shares):
            assert len(posterior) == share.size
            paid = 3 * share.size + sum(map(bool, posterior.values))
            assert share.cost == paid  # every run that was paid for is in the posterior
        before = plan.used
        assert plan.table().endswith("on the first look")


def test_known_costs_never_exceed_the_budget():
    models = [guess(p) for p in (0.9, 0.3, 0.1, 0.02)]
    for tokens in range(16, 80, 7):
        _, plan = fk.allocate(models, SIZES, fk.Budget(tokens=tokens), seed=tokens)
        assert plan.used <= tokens
        assert plan.stopped is None


def test_what_a_verifier_is_sure_of_gets_no_more_and_what_it_doubts_does():
    models = [guess(p) for p in (1.0, 0.0, 1.0, 0.5)]
    _, plan = fk.allocate(models, SIZES, fk.Budget(tokens=1000), seed=0)
    assert [share.size for share in plan.shares] == [4, 16, 4, 4]
    assert plan.used < 1000
    assert math.isnan(plan.shares[0].expected)


def test_a_problem_ends_as_best_of_n_of_its_size_would():
    # A policy that always goes on: the best of 4 + 4 runs has the law of the best of 8.
    rows = [Record(i, (0.0, 0.0), repr(e), e.particles, e.particles - 4.0, float(e.particles)) for i in range(4)
            for e in Options([guess(0.5)], SIZES[1:2], fk.BestOfN(4), known=True).options]  # fmt: skip
    policy = ComputeOptimal.fit(rows, folds=2)
    models = [guess(0.1)] * 300
    posteriors, plan = fk.allocate(models, SIZES[1:2], fk.Budget(tokens=8 * 300), policy=policy, seed=5)
    assert {share.size for share in plan.shares} == {8}
    found = np.array([float(posterior.best()) for posterior in posteriors])
    assert abs(z_score(found, 1 - 0.9**8)) < Z_LIMIT
    assert {posterior.guarantee for posterior in posteriors} == {"heuristic"}
    weighed = [np.exp(posterior.log_weights) @ [value == posterior.best() for value in posterior.values]
               for posterior in posteriors]  # fmt: skip
    assert min(weighed) >= 1.0


def test_runs_whose_number_depends_on_what_they_found_do_not_promise_to_be_unbiased():
    look = fk.ImportanceSampling(4)
    posteriors, plan = fk.allocate(
        [guess(1.0), guess(0.0)], [fk.ImportanceSampling(8)], fk.Budget(tokens=99), first_look=look, seed=0
    )
    assert [(share.size, posterior.guarantee) for share, posterior in zip(plan.shares, posteriors)] == [
        (4, "consistent"),
        (8, "consistent"),
    ]


def test_two_sets_of_runs_are_one_importance_sample():
    one, more = (fk.infer(guess(0.3), fk.ImportanceSampling(n), seed=n) for n in (4, 12))
    both = joined(one, more, fk.ImportanceSampling(16))
    assert both.log_weights.tolist() == [*one.log_weights, *more.log_weights]
    assert both.guarantee == "consistent"
    assert both.cost.tokens_out == 16
    assert both.log_evidence == pytest.approx(np.log(np.mean(np.exp([one.log_evidence, more.log_evidence]))))


def test_a_look_that_spends_all_is_all_there_is():
    posteriors, plan = fk.allocate([guess(0.5)] * 3, SIZES, fk.Budget(tokens=12), seed=0)
    assert plan.used == plan.looked == 12
    assert [len(posterior) for posterior in posteriors] == [4, 4, 4]


def test_the_same_seed_gives_the_same():
    models = [guess(p) for p in (0.9, 0.3, 0.1)]
    one, other = (fk.allocate(models, SIZES, fk.Budget(tokens=40), seed=9) for _ in "ab")
    assert one.plan.table() == other.plan.table()
    assert [p.values for p in one.posteriors] == [p.values for p in other.posteriors]


# -- a policy -------------------------------------------------------------------------------------------------------


@cache
def learned(seed=0, problems=60):
    rng = np.random.default_rng(seed)
    chances = rng.choice([0.02, 0.2, 0.9], problems)
    models = [guess(p) for p in chances]
    return scaling.records(models, [*SIZES, fk.SMC(6)], right, seed=seed)


def test_records_are_of_the_look_and_of_what_each_engine_costs_on_top():
    rows = learned()
    assert len(rows) == 60 * 4
    price = {repr(SIZES[i]).replace("error", "zero"): cost for i, cost in enumerate((0, 4, 12))}
    assert {(row.engine, row.cost) for row in rows} == {*price.items(), (repr(fk.SMC(6)), 6)}
    for problem in range(60):  # what the look has found is not lost by more
        mine = [row.success for row in rows if row.problem == problem][:3]
        assert mine == sorted(mine)


def test_cross_fitting_never_sees_its_own_problem():
    rows = learned()
    whole = ComputeOptimal.fit(rows)
    for problem in (0, 17, 41):
        lied = [row._replace(success=1 - row.success, cost=99.0) if row.problem == problem else row for row in rows]
        for before, after in zip(whole.cross_fitted, ComputeOptimal.fit(lied).cross_fitted):
            assert np.array_equal(before[problem], after[problem])
            assert not np.array_equal(before, after)  # others do
    success, cost = whole.cross_fitted
    chosen = scaling.spend(success, cost, 5.0 * len(cost))
    assert whole.foretell(5.0)[0] == pytest.approx(whole.success[np.arange(60), chosen].mean())
    assert whole.foretell(5.0)[1] <= 6.0


def test_a_policy_gives_runs_to_those_that_gain():
    policy = ComputeOptimal.fit(learned(0) + [row._replace(problem=("b", row.problem)) for row in learned(1)])
    posteriors, plan = fk.allocate(
        [guess(p) for p in [0.9] * 6 + [0.1] * 6], [*SIZES, fk.SMC(6)], fk.Budget(tokens=120), policy=policy, seed=2
    )
    assert plan.used <= 120
    extra = np.array([share.cost - 4 for share in plan.shares])
    assert extra[6:].sum() > 3 * extra[:6].sum()
    assert [posterior.cost.tokens_out for posterior in posteriors] != [share.cost for share in plan.shares] or all(
        share.engine == "BestOfN" for share in plan.shares
    )  # the look is paid for where another engine answers


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"engines": [fk.SMC(8)]}, "not known"),
        ({"engines": [fk.BestOfN(2)]}, "smaller"),
        ({"engines": [fk.BestOfN(8), fk.BestOfN(8)]}, "twice"),
        ({"budget": fk.Budget(seconds=3)}, "one limit"),
        ({"budget": fk.Budget(tokens=3, nfe=2)}, "one limit"),
        ({"first_look": fk.SMC(4)}, "first_look"),
        ({"first_look": fk.BestOfN(4, temperature=1.0)}, "temperature"),
        ({"first_look": fk.BestOfN(1)}, "two runs"),
        ({"models": []}, "no problems"),
        ({"gradients": [1.0, 1.0]}, "gradients"),
        ({"objective": "variance", "gradients": [1.0]}, "norm for each"),
        ({"budget": fk.Budget(nfe=30)}, "cost no nfe"),
        ({"objective": "variance", "models": [guess(0.5, 1, 2.0)] * 2}, "probabilities"),
        ({"policy": True}, "differ by"),
        ({"policy": True, "budget": fk.Budget(nfe=3)}, "counts tokens"),
        ({"policy": True, "objective": "variance"}, "what is right"),
    ],
)
def test_what_cannot_be_made_right_is_refused(change, words):
    given = {"models": [guess(0.5)] * 2, "engines": SIZES, "budget": fk.Budget(tokens=30), "seed": 0, **change}
    if "policy" in given:
        given["policy"] = ComputeOptimal.fit(learned())
    with pytest.raises(ValueError, match=words):
        fk.allocate(given.pop("models"), given.pop("engines"), given.pop("budget"), **given)


def test_other_kinds_of_things_are_refused():
    for budget, policy in ((30, None), (fk.Budget(tokens=30), "best")):
        with pytest.raises(TypeError):
            fk.allocate([guess(0.5)], SIZES, budget, policy=policy, seed=0)
    for wrong in (learned()[:4], learned()[:-1], [row._replace(success=math.nan) for row in learned()]):
        with pytest.raises(ValueError):
            ComputeOptimal.fit(wrong)
    with pytest.raises(ValueError, match="numbers"):
        ComputeOptimal.fit(learned()).predict([[1.0]])
