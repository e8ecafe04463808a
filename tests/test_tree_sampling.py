"""Tree sampling and tree search: the growth of a tree, its law, its record, and what runs on it."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import feynkac as fk
from chains import LOG_G, MOVES, START, FiniteChain, chain, late_chain, total_variation
from feynkac.inference.search.tree_sampling import TreeSampling, by_promise
from feynkac.inference.search.tree_search import best_leaf, most_promising, uct
from laws import Z_LIMIT, check_unbiased, deadly, t1, t2, z_score

# -- exactness --------------------------------------------------------------------------------------------------


def mortal(dead=-math.inf):
    """Three steps, of which the last two may kill, or nearly so; how often depends on where one comes from."""
    log_g = [[0.0, 0.5, -0.3], [0.2, 0.0, dead], [0.0, 0.8, dead]]
    return FiniteChain((0.5, 0.3, 0.2), ((0.2, 0.1, 0.7), (0.3, 0.4, 0.3), (0.5, 0.1, 0.4)), log_g)


# 8 comparisons of each, see laws: false alarm of all about 1e-3.
@pytest.mark.parametrize("batch", [1, 5])
def test_values_and_masses_are_exact_in_expectation(batch):
    truth = fk.enumerate_program(t2())
    check_unbiased(t2(), TreeSampling(11, width=1.0, growth=0.7, batch=batch), truth.law(), truth.log_evidence, 500)


@pytest.mark.slow
def test_proposals_twists_and_intermediate_potentials_keep_it_so():
    truth = fk.enumerate_program(t1("product of odds"))
    model = t1("product of odds", twist=lambda s: 0.8 * s.count("b"), proposal=[0.15, 0.85])
    check_unbiased(model, TreeSampling(9, width=1.0, growth=0.7, batch=3), truth.law(), truth.log_evidence, 500)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dead", "settings"), [(-math.inf, {}), (-3.0, {"growth": 0.4}), (-math.inf, {"branch_at": (1,)})], ids=repr
)
def test_lines_that_die_or_nearly_so_keep_it_so(dead, settings):
    """Were children visited by what was found below them, E[Ẑ]/Z would be 0.6 to 0.9 here."""
    z, law = mortal(dead).exact()
    engine = TreeSampling(60, all_dead="zero", batch=8, **settings)
    likely = {path: p for path, p in law.items() if p > 0.09}
    check_unbiased(mortal(dead), engine, likely, math.log(z), runs=150)


@pytest.mark.slow
def test_lines_that_end_early_keep_it_so():
    @fk.program
    async def uneven():
        text = ""
        while len(text) < 3 and not text.endswith("$"):
            text += await fk.sample("s", fk.dist.Categorical([0.5, 0.3, 0.2], values=list("ab$")))
            await fk.factor("G", -6.0 if text.endswith("bb") else 0.5 * text.endswith("a"))
        await fk.factor("end", 1.5 * text.count("b") if text.endswith("$") else 0.0)
        return text

    truth = fk.enumerate_program(uneven())
    likely = {value: p for value, p in truth.law().items() if p > 0.03}
    check_unbiased(uneven(), TreeSampling(40), likely, truth.log_evidence, runs=120)


def test_continuous_choices_keep_it_so():
    @fk.program
    async def line():
        x = await fk.sample("x", fk.dist.Normal(0.0, 1.0))
        await fk.factor("Gx", 0.8 * x)
        y = await fk.sample("y", fk.dist.Normal(x, 1.0))
        await fk.factor("Gy", 0.0 if y > 0.5 else -math.inf)
        return x

    # With x tilted to N(0.8, 1), y is N(0.8, 2), and is cut at 0.5.
    cut = 0.3 / math.sqrt(2.0)
    above = 0.5 * math.erfc(-cut / math.sqrt(2.0))
    z = math.exp(0.32) * above
    mean = 0.8 + math.exp(-0.5 * cut**2) / math.sqrt(2.0 * math.pi) / above / math.sqrt(2.0)
    posteriors = fk.infer([line()] * 150, TreeSampling(60), seed=0)
    ratios = np.exp([p.log_evidence for p in posteriors]) / z
    assert abs(z_score(ratios, 1.0)) < Z_LIMIT
    assert abs(z_score(ratios * [p.expect(lambda x: x) for p in posteriors], mean)) < Z_LIMIT


@pytest.mark.slow
@pytest.mark.parametrize("dead", [-math.inf, -3.0])
def test_errors_fall_at_the_stated_rate(dead):
    """By importance sampling with as many runs as the root has children: 1/K, and its root for the total variation."""
    z, law = mortal(dead).exact()
    chain, prior = mortal(dead), {}
    for path in law:
        moves = [chain.moves[a][b] for a, b in itertools.pairwise(path)]
        prior[path] = chain.start_law[path[0]] * math.prod(moves)
    squares = {path: (law[path] * z) ** 2 / p for path, p in prior.items()}  # E[w²; path]
    relative = sum(squares.values()) / z**2 - 1.0
    distance = sum(math.sqrt(squares[path] * (1.0 - prior[path])) for path in law) / z
    found = []
    for rollouts, runs in ((40, 40), (400, 10), (4000, 2)):
        posteriors = fk.infer([mortal(dead) for _ in range(runs)], TreeSampling(rollouts, batch=32), seed=1)
        ratios = np.exp([p.log_evidence for p in posteriors]) / z
        children = 2.0 * rollouts**0.8
        # A mean of squares of normal errors is above this with probability below 1e-5, were it as large as the bound.
        assert ((ratios - 1.0) ** 2).mean() < relative / children * (1.0 + 5.0 * math.sqrt(2.0 / runs) + 10.0 / runs)
        found.append(np.mean([total_variation(p, law) for p in posteriors]))
        assert found[-1] < distance / math.sqrt(children)
    # Ten times the rollouts make it 10^0.4 = 2.5 times less.
    assert found[0] > 1.7 * found[1] > 2.9 * found[2]
    # An estimate that forgot a potential would be far off.
    assert total_variation(posteriors[0], late_chain().exact()[1]) > 0.3


def test_where_a_tree_grows_does_not_depend_on_what_it_finds():
    """But on potentials and twists on the way, that is, and on where lines end."""

    def shape(last, engine=TreeSampling):
        model = FiniteChain(START, MOVES, [*LOG_G[:2], last])
        tree = fk.infer(model, engine(300, growth=0.5), seed=6).chains[0].tree
        return tree.parent.tolist(), tree.visits[tree.depth < 2].tolist(), tree.value[0]

    one, other = shape((0.0, 0.0, 0.0)), shape((-40.0, 3.0, 1.0))
    assert one[:2] == other[:2]
    assert one[2] != other[2]
    assert shape((0.0, 0.0, 0.0), fk.TreeSearch)[:2] != shape((-40.0, 3.0, 1.0), fk.TreeSearch)[:2]


def test_every_child_is_visited_in_proportion_to_its_promise():
    tree = grown(1000, growth=0.4, batch=1, model=mortal())[1]
    children = tree.children(0)[:-1]  # the last is new
    assert (tree.value[children] > -np.inf).all()  # none of them is given up after a first run that died
    shares = tree.visits[children] / np.exp(tree.log_weight[children])
    assert len(children) > 20
    assert shares.max() < 1.2 * shares.min()


def test_a_twist_says_where_to_look():
    def visits(twist):
        tree = grown(300, growth=0.3, batch=1, model=t1("final r", twist=twist))[1]
        first = {x: tree.choices[x][0].value for x in tree.children(0)[:-1].tolist()}
        return {s: np.mean([tree.visits[x] for x, made in first.items() if made == s]) for s in "ab"}

    assert visits(None)["a"] == pytest.approx(visits(None)["b"], rel=0.1)
    found = visits(lambda s: math.log(3.0) * (s == "a"))
    assert found["a"] == pytest.approx(3.0 * found["b"], rel=0.1)


def test_rewards_at_the_end_steer_the_start():
    """Three levels with the reward at the last: earlier states have the law of the target, not that of the model."""
    _, law = late_chain().exact()
    truth = sum(p for path, p in law.items() if path[1] == 2)
    posteriors = fk.infer([late_chain() for _ in range(8)], TreeSampling(600), seed=3)
    middle = np.mean([p.expect(lambda path: path[1] == 2) for p in posteriors])
    assert abs(middle - truth) < 0.08 < 0.2 < abs(np.dot(START, np.array(MOVES)[:, 2]) - truth)


def test_branching_at_the_root_alone_is_importance_sampling_draw_by_draw():
    tree = fk.infer(chain(), TreeSampling(200, width=math.inf, branch_at=(), batch=200), seed=4)
    plain = fk.infer(chain(), fk.ImportanceSampling(200), seed=4)
    assert tree.values == plain.values
    assert tree.log_weights == pytest.approx(plain.log_weights, abs=1e-12)
    assert tree.log_evidence == pytest.approx(plain.log_evidence, abs=1e-12)
    assert tree.log_evidence_se == pytest.approx(plain.log_evidence_se, abs=1e-9)
    for mine, theirs in zip(tree.steps, plain.steps, strict=True):
        assert mine.log_weights == pytest.approx(theirs.log_weights, abs=1e-12)
        assert (mine.ancestors == theirs.ancestors).all()
        assert list(mine.choices) == list(theirs.choices)
    # In waves, too, and with unequal lengths, but for the order.
    several = fk.infer(t2(), TreeSampling(200, width=math.inf, branch_at=(), batch=7), seed=4)
    plain = fk.infer(t2(), fk.ImportanceSampling(200), seed=4)
    assert sorted(zip(several.values, several.log_weights)) == sorted(zip(plain.values, plain.log_weights))


# -- the tree itself --------------------------------------------------------------------------------------------


def grown(rollouts=400, engine=TreeSampling, model=None, seed=6, **settings):
    posterior = fk.infer(model or chain(), engine(rollouts, **settings), seed=seed)
    return posterior, posterior.chains[0].tree


def test_the_root_has_the_evidence_and_values_are_log_means_of_children():
    posterior, tree = grown()
    assert tree.value[0] == pytest.approx(posterior.log_evidence, abs=1e-10)
    assert np.logaddexp.reduce(tree.log_mass[tree.particles]) == pytest.approx(posterior.log_evidence, abs=1e-10)
    for x in range(len(tree)):
        children = tree.children(x)
        if len(children):
            reach = tree.log_weight[children] - tree.log_weight[x] + tree.value[children]
            assert tree.value[x] == pytest.approx(np.logaddexp.reduce(reach) - math.log(len(children)), abs=1e-10)
        else:
            assert tree.value[x] == 0.0
            assert tree.done[x]


@pytest.mark.slow
def test_the_particles_have_the_law_of_descents_of_the_finished_tree():
    posterior, tree = grown(60)
    rng = np.random.default_rng(0)
    counts = dict.fromkeys(tree.particles.tolist(), 0)
    draws = 20_000
    for _ in range(draws):
        x = 0
        while len(children := tree.children(x)):
            reach = tree.log_weight[children] - tree.log_weight[x] + tree.value[children]
            p = np.exp(reach - reach.max())
            x = int(rng.choice(children, p=p / p.sum()))
        counts[x] += 1
    expected = posterior.probabilities * draws
    chi = ((np.array(list(counts.values())) - expected) ** 2 / expected).sum()
    assert chi < 60 + 5 * math.sqrt(2 * 60)  # 60 leaves: a false alarm is below 1e-4


def test_the_child_with_the_least_of_its_share_comes_next():
    def chosen(visits, going):
        fork = SimpleNamespace(promise=np.log([2.0, 1.0, 5.0, 9.0]), visits=visits, going=going)
        return by_promise(fork, sum(visits))

    assert chosen([4, 1, 6, 1], [True, True, True, False]) == 1  # 2/4, 1/1, 5/6; the last has finished
    assert chosen([4, 2, 6, 1], [True, True, True, False]) == 2
    assert chosen([4, 2, 6, 1], [False] * 4) == 3


@pytest.mark.parametrize("batch", [1, 16])
def test_visits_are_conserved_and_children_keep_to_the_widening_rule(batch):
    _, tree = grown(400, width=1.0, growth=0.5, batch=batch)
    assert tree.visits[0] == 400
    for x in range(len(tree)):
        children = tree.children(x)
        if len(children):
            assert tree.visits[x] == tree.visits[children].sum()
            assert len(children) <= math.ceil(tree.visits[x] ** 0.5) + 1
    assert len(tree.particles) < 400  # some descents ended in leaves, which costs nothing


def test_children_continue_their_own_parents_whichever_wave_these_are_of():
    posterior, tree = grown(600, width=1.5, growth=0.5)
    for value, x in zip(posterior.values, tree.particles.tolist()):
        for state in reversed(value):
            assert tree.choices[x] == (state,)
            x = tree.parent[x]
    assert max(len(tree.children(x)) for x in range(1, len(tree))) > 5


def test_only_the_given_depths_branch_and_only_their_states_are_kept():
    kept = []

    class Watched(FiniteChain):
        def select(self, state, index):
            part = super().select(state, index)
            kept.append(part)
            return part

    model = Watched(START, MOVES, LOG_G)
    _, tree = grown(300, model=model, branch_at=(1,))
    crowd = np.bincount(tree.parent[1:], minlength=len(tree))
    assert (crowd[tree.depth == 0] == 1).all()
    assert crowd[tree.depth == 1].max() > 1
    assert crowd[0] > 1
    assert {int(d) for part in kept for d in part.depth} == {1, 2}  # of depth 0 nothing was ever set aside


def test_a_wave_makes_one_call_whatever_its_depths():
    model = chain()
    waves = list(fk.steps(model, TreeSampling(320, growth=0.5, batch=16), seed=0))
    assert len(model.calls) <= 4 * len(waves)  # a start for those of the root, and then steps of all that are left
    assert max(len(depths) for depths in model.depths) >= 2
    assert sum(len(step.done) for step in waves) == len(fk.infer(chain(), TreeSampling(320, growth=0.5), seed=0))


def test_no_key_is_used_twice():
    for engine in (TreeSampling(500, batch=7), fk.TreeSearch(500, batch=7), fk.SVDD(20, 5), fk.RolloverBudget(40)):
        model = chain()
        fk.infer(model, engine, seed=0)
        assert len(set(model.keys)) == len(model.keys) >= 50


def test_a_first_child_does_not_depend_on_when_its_siblings_came():
    small, large = grown(48)[1], grown(400)[1]
    assert list(small.choices) == list(large.choices[: len(small)])


def test_the_cost_is_what_the_model_saw():
    model = chain()
    posterior = fk.infer(model, TreeSampling(200, growth=0.5), seed=1)
    assert posterior.cost.nfe == sum(model.calls) == len(posterior.chains[0].tree) - 1
    assert posterior.cost.model_calls == len(model.calls)


# -- anytime ----------------------------------------------------------------------------------------------------


def test_a_run_can_be_left_looked_at_and_taken_up():
    run = fk.steps(chain(), TreeSampling(400), seed=2)
    sizes = []
    for step in run:
        sizes.append(step.log_evidence)
        if len(sizes) == 3:
            break
    early = run.posterior
    assert len(early) == 48
    assert early.log_evidence == pytest.approx(sizes[-1])
    for _ in run:
        pass
    whole = fk.infer(chain(), TreeSampling(400), seed=2)
    assert run.posterior.values == whole.values
    assert (run.posterior.log_weights == whole.log_weights).all()
    assert early.values == whole.values[:48]


def test_a_report_is_of_its_time_even_while_the_next_wave_is_under_way():
    engine = TreeSampling(400, batch=16)
    model = chain()
    run = engine.run(model, fk.keys.root(0))
    answer, seen = None, []
    for _ in range(30):
        item = run.send(answer)
        answer = None
        if hasattr(item, "report"):
            seen.append((item, item.report()))
        else:
            start = not hasattr(item, "state")
            answer = model.start(item.keys) if start else model.advance(item.state, item.keys)
            for growing, then in seen:
                now = growing.report()
                assert (now.log_weights == then.log_weights).all()
                assert len(now.state) == len(then.state) == growing.finished
    assert len(seen) >= 3


@pytest.mark.parametrize("limit", ["nfe", "callback", "interrupt"])
def test_what_there_is_is_kept(limit):
    def stop(step):
        if step.depth == 4:
            if limit == "interrupt":
                raise KeyboardInterrupt
            return True
        return None

    budget = fk.Budget(nfe=200) if limit == "nfe" else None
    posterior = fk.infer(chain(), TreeSampling(5000), seed=0, budget=budget, callbacks=() if budget else [stop])
    assert posterior.stopped == {"interrupt": "interrupted"}.get(limit, limit)
    assert 16 <= len(posterior) < 200
    assert posterior.complete.all()
    assert posterior.log_evidence == pytest.approx(posterior.chains[0].tree.value[0])


def test_progress_counts_the_leaves_of_the_tree():
    run = fk.steps(chain(), TreeSampling(64), seed=0)
    for _ in run:
        pass
    done, total, _ = run.standing()
    assert done == total == 64


# -- as a posterior ---------------------------------------------------------------------------------------------


def test_traces_and_genealogies_are_read_from_the_tree(tmp_path):
    model = t1("product of r")
    posterior = fk.infer(model, TreeSampling(50), seed=1)
    for i, value in enumerate(posterior.values):
        trace = posterior.trace(i)
        assert trace["step"].value + trace["step[1]"].value == value
        line = posterior.genealogy(i)
        assert posterior.steps[0].choices[line[0]][0].value == value[0]
    assert (posterior.steps[-1].log_weights == posterior.log_weights).all()
    assert len({len(step.ancestors) for step in posterior.steps}) > 1  # fewer nodes above than leaves
    posterior.save(tmp_path / "tree.fk")
    again = fk.Posterior.load(tmp_path / "tree.fk")
    assert again.values == posterior.values
    assert [again.trace(i) for i in range(50)] == [posterior.trace(i) for i in range(50)]
    for name in ("parent", "depth", "visits", "value", "log_mass", "particles"):
        assert (getattr(again.chains[0].tree, name) == getattr(posterior.chains[0].tree, name)).all()
    fk.report(posterior, tmp_path / "tree.html")
    assert posterior._repr_html_()


def test_trees_of_different_sizes_are_pooled_by_evidence_and_go_to_arviz():
    pytest.importorskip("arviz_base")
    posterior = fk.infer(t2(), TreeSampling(200, growth=0.4, chains=3), seed=1)
    sizes = [len(c.log_weights) for c in posterior.chains]
    assert len(set(sizes)) > 1
    shares = [part.sum() for part in np.split(posterior.probabilities, np.cumsum(sizes)[:-1])]
    evidence = np.exp([c.evidence for c in posterior.chains])
    assert shares == pytest.approx(evidence / evidence.sum(), rel=1e-9)
    tree = posterior.to_datatree(draws=50)
    assert tree["particles"]["log_weight"].shape == (3, max(sizes))
    assert np.isneginf(tree["particles"]["log_weight"].values).sum() == 3 * max(sizes) - sum(sizes)


def test_one_tree_says_nothing_of_its_error():
    posterior = fk.infer(t2(), TreeSampling(100), seed=0)
    assert math.isnan(posterior.log_evidence_se)
    assert "one tree says nothing" in posterior.log_evidence_se_reason
    assert fk.infer(t2(), TreeSampling(100, chains=4), seed=0).log_evidence_se > 0


def test_a_drawing_shows_forks_leaves_and_pictures():
    pytest.importorskip("matplotlib")
    posterior, _ = grown(40)
    figure = fk.plots.tree(posterior)
    assert "40 leaves, 40 rollouts" in figure.axes[0].get_title(loc="right")
    pictured = fk.plots.tree(posterior, most=5, image=lambda choices: np.full((4, 4), choices[0] / 2))
    pictured.savefig("/dev/null", format="png")
    assert "5 of 40 leaves" in pictured.axes[0].get_title(loc="right")
    with pytest.raises(ValueError, match="grows no tree"):
        fk.plots.tree(fk.infer(chain(), fk.SMC(4), seed=0))
    with pytest.raises(ValueError, match="is no image"):
        fk.plots.tree(posterior, image=lambda choices: np.zeros(3))


def test_less_can_be_recorded():
    everything, some = grown(50, branch_at=(1,))[1], grown(50, branch_at=(1,), record=False)[1]
    late = FiniteChain(START, MOVES, np.zeros((5, 3)))
    bare = grown(50, model=late, branch_at=(1,), record=False)[1]
    assert list(everything.choices) == list(some.choices)  # starts, depth 1 and leaves are all there is
    assert all((choice == ()) == (depth in (-1, 2, 3)) for choice, depth in zip(bare.choices, bare.depth))


# -- deaths, refusals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("growth", [0.0, 0.7])
def test_dead_ends_count_as_zero_and_are_not_gone_back_to(growth):
    truth = fk.enumerate_program(deadly())
    engine = TreeSampling(7, width=2.0, growth=growth, batch=2, all_dead="zero")
    check_unbiased(deadly(), engine, truth.law(), truth.log_evidence, runs=500)
    posterior = fk.infer(deadly(), TreeSampling(300, growth=growth, width=4.0, batch=3), seed=0)
    tree = posterior.chains[0].tree
    dead = tree.done & np.isneginf(tree.log_weight)
    assert dead.any()
    assert (tree.visits[dead] == 1).all()
    assert posterior.complete.all()


def test_all_dead_is_an_error_that_names_the_site():
    @fk.program
    async def doomed():
        await fk.sample("x", fk.dist.Normal(0.0, 1.0))
        await fk.factor("impossible", -math.inf)

    with pytest.raises(fk.errors.AllParticlesDead, match=r"all 20 leaves .* 20 rollouts \(20 at site 'impossible'\)"):
        fk.infer(doomed(), TreeSampling(20), seed=0)
    assert fk.infer(doomed(), TreeSampling(20, all_dead="zero"), seed=0).log_evidence == -math.inf


def test_a_nan_weight_is_named():
    model = FiniteChain(START, MOVES, [[0.0, 0.0, 0.0], [0.0, math.nan, 0.0]])
    with pytest.raises(fk.errors.InvalidWeight, match=r"weight of rollout \d+ of its wave is nan at depth 1"):
        fk.infer(model, TreeSampling(50), seed=0)


def test_a_nan_twist_is_named():
    class Misled(FiniteChain):
        def _step(self, state, law, keys):
            return replace(super()._step(state, law, keys), log_twist=np.full(len(keys), math.nan))

    with pytest.raises(fk.errors.InvalidWeight, match="twist of rollout 0 of its wave is nan at depth 0"):
        fk.infer(Misled(START, MOVES, LOG_G), TreeSampling(50), seed=0)


@pytest.mark.parametrize(
    "settings",
    [
        {"rollouts": 0},
        {"batch": 0},
        {"width": 0.0},
        {"growth": 1.5},
        {"branch_at": (-1,)},
        {"branch_at": (0.5,)},
        {"all_dead": "ignore"},
    ],
)
@pytest.mark.parametrize("engine", [TreeSampling, fk.TreeSearch])
def test_wrong_settings_are_refused(engine, settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        engine(**{"rollouts": 10, **settings})


# -- search -----------------------------------------------------------------------------------------------------


def test_the_upper_confidence_bound_is_the_formula():
    found = uct(np.array([0.5, 1.0]), np.array([4, 16]), 100, 2.0)
    assert found == pytest.approx([0.5 + 2.0 * math.sqrt(math.log(100) / 4), 1.0 + 2.0 * math.sqrt(math.log(100) / 16)])


def test_the_upper_confidence_bound_divides_pulls_as_it_should():
    """Arms worth 1 and 0, each pulled once, then 18 times by Q + 1.4·√(2·ln N / n): 16 and 4."""
    values, visits = np.array([1.0, 0.0]), np.ones(2)
    for total in range(2, 20):
        visits[np.argmax(uct(values, visits, total, 1.4 * math.sqrt(2.0)))] += 1
    assert visits.tolist() == [16, 4]


def test_the_search_descends_by_that_bound():
    """A root with two children, of values 1 and 0 (their deviation is ½), whose own steps are certain: see above."""

    @fk.program
    async def arms():
        arm = await fk.sample("arm", fk.dist.Bernoulli(0.5))
        await fk.factor("reward", 1.0 * arm)

    for seed in range(20):
        engine = fk.TreeSearch(20, explore=2.0 * 1.4 * math.sqrt(2.0), width=2.0, growth=0.0, batch=1)
        tree = fk.infer(arms(), engine, seed=seed).chains[0].tree
        arms_made = [tree.choices[x][0].value for x in tree.children(0)]
        if sorted(arms_made) == [0, 1]:
            assert tree.visits[tree.children(0)][np.argsort(arms_made)].tolist() == [4, 16]
            return
    pytest.fail("no seed drew both arms")


def test_the_units_of_the_reward_do_not_matter_to_a_search_for_the_best():
    def visits(unit, **settings):
        model = FiniteChain(START, MOVES, unit * LOG_G)
        return grown(300, fk.TreeSearch, model, backup="max", **settings)[1].visits.tolist()

    assert visits(1.0) == visits(1 / 64)
    assert visits(1.0) != visits(1.0, explore=3.0)


def test_rollouts_without_weight_do_not_stop_a_search():
    posterior = fk.infer(deadly(), fk.TreeSearch(60, backup="max", batch=4), seed=0)
    assert posterior.best() == (1, 1)
    assert (posterior.chains[0].tree.log_weight == -math.inf).any()


@pytest.mark.parametrize("backup", ["soft", "max"])
def test_a_search_comes_back_to_a_child_whose_first_run_died(backup):
    """Of two children the better one mostly kills: its first run does, and it is found all the same."""
    log_g = [[0.0, 0.0], [0.0, -math.inf], [1.0, 5.0]]
    model = FiniteChain((0.5, 0.5), ((0.9, 0.1), (0.3, 0.7)), log_g)
    found = 0
    for seed in range(4):
        tree = grown(150, fk.TreeSearch, model, seed, backup=backup, explore=2.0, growth=0.3, batch=1)[1]
        for x in tree.children(0)[:-1].tolist():
            below = x
            while len(tree.children(below)):
                below = int(tree.children(below)[0])  # where its first run ended
            if np.isneginf(tree.log_weight[below]):
                assert tree.visits[x] > 1
                found += 1
    assert found > 4


def test_dead_children_are_not_gone_to_and_hopeless_ones_come_after_the_living():
    def chosen(visits, explore, reach=(-math.inf, 1.0, -math.inf, 1.0)):
        fork = SimpleNamespace(reach=reach, visits=visits, promise=(0.0, 0.0, -math.inf, 0.0))
        return most_promising(fork, sum(visits), explore)

    assert chosen([1, 1, 1, 1], explore=0.0) == 1
    assert chosen([1, 9, 1, 9], explore=0.5) == 0
    assert chosen([2, 1, 1, 1], explore=0.5, reach=[-math.inf] * 4) == 1


def test_search_finds_the_best_with_less_than_best_of_n_needs():
    @fk.program
    async def digits():
        number = 0
        for _ in range(5):
            digit = await fk.sample("digit", fk.dist.DiscreteUniform(0, 9))
            number = 10 * number + digit
            await fk.factor("high", float(digit))
        return number

    def reward(posterior):
        return sum(map(int, str(posterior.best())))

    searched = [reward(p) for p in fk.infer([digits()] * 4, fk.TreeSearch(150, backup="max", growth=0.5), seed=0)]
    plain = [reward(p) for p in fk.infer([digits()] * 4, fk.BestOfN(1500), seed=0)]
    assert np.mean(searched) > np.mean(plain)


@fk.program
async def walk():
    for _ in range(3):
        x = await fk.sample("x", fk.dist.Normal(0.0, 1.0))
        await fk.factor("G", x)


@pytest.mark.parametrize("backup", ["soft", "max"])
def test_all_weight_is_on_the_leaf_of_the_greedy_descent(backup):
    posterior, tree = grown(200, fk.TreeSearch, backup=backup)
    assert tree.particles[np.flatnonzero(posterior.probabilities)].tolist() == [best_leaf(tree)]
    if backup == "max":
        for seed in range(5):  # of rewards that are all different
            found = fk.infer(walk(), fk.TreeSearch(60, backup="max", growth=0.4), seed=seed)
            assert found.log_potential[found.probabilities > 0] == found.log_potential.max()
        assert math.isnan(posterior.log_evidence)
    else:
        assert posterior.log_evidence == pytest.approx(tree.value[0])
    assert posterior.guarantee == "heuristic"
    assert "SMC" in posterior.summary()


# -- other models -----------------------------------------------------------------------------------------------


def test_a_language_model_with_intermediate_rewards():
    pytest.importorskip("transformers")
    from feynkac.models.testing import tiny_lm

    lm = tiny_lm()

    @fk.program
    async def line():
        text = lm.prompt("Once")
        for _ in range(4):
            text = await fk.sample("token", lm.next_token(text))
            await fk.factor("short", 1.0 if len(str(text)) % 2 else 0.0)
        return text

    tree = fk.infer(line(), TreeSampling(24, branch_at=(0, 2), batch=8), seed=0)
    assert len(tree) == 24
    assert tree.cost.tokens_out == len(tree.chains[0].tree) - 1
    for i, value in enumerate(tree.values):
        assert str(tree.trace(i)["token[3]"].value) == str(value)
    assert fk.infer(line(), fk.TreeSearch(16, backup="max"), seed=0).log_potential.max() > 2.0


def test_a_diffusion_tends_to_its_tilted_mixture():
    torch = pytest.importorskip("torch")
    from feynkac.diffusion import Diffusion, Mixture, Schedule, Steering

    data, schedule = Mixture([0.7, 0.3], [[-1.0], [1.5]], [0.2, 0.1]), Schedule.vp(16)
    model = Diffusion(
        data.denoiser(schedule),
        schedule,
        (1,),
        steering=Steering(lambda x: 1.2 * x[:, 0], every=16),
        dtype=torch.float64,
    )
    truth = fk.infer(model, fk.ImportanceSampling(10_000), seed=1).expect(lambda x: x[0])  # with its coarse steps
    engine = TreeSampling(600, branch_at=(4, 8), batch=32, chains=2)
    posterior = fk.infer(model, engine, seed=0)
    assert abs(posterior.expect(lambda x: x[0]) - truth) < 0.35 < 1.2 < abs(data.mean[0] - truth)
    made = sum(len(c.tree) - 1 - len(c.tree.particles) for c in posterior.chains)  # data needs no denoising
    assert posterior.cost.nfe == made
    posterior = fk.infer(model, replace(engine, rollouts=64), seed=0, budget=fk.Budget(nfe=300))
    assert posterior.stopped == "nfe"


def test_programs_and_trees_share_batches():
    both = fk.infer([t2(), t1("product of r")], TreeSampling(64), seed=0)
    alone = fk.infer(t2(), TreeSampling(64), seed=0)
    assert both[0].values == alone.values
    assert list(itertools.chain(*both[1].values[0])) != []
