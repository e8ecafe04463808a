"""The contract can say what engines of every kind need: toy engines written on start, advance, select, concat,
values and given alone, and a check of the laws that any `FeynmanKac` model must keep."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest

import chains
import feynkac as fk
from laws import T2_NEXT, T2_ORDER, T2_POSTERIOR, Z_LIMIT, t3, z_score

CHAINS = 20_000


def keys_of(n, *data):
    return fk.keys.fold(fk.keys.root(17), *data, np.arange(n))


# -- best-first search ------------------------------------------------------------------------------------------


def random_tree(seed, depth=4):
    """For each prefix, the law of the next letter and a log-factor ≤ 0 of each; some branches end early."""
    rng = np.random.default_rng(seed)
    tree, level = {}, [""]
    for d in range(depth):
        inner = [prefix for prefix in level if d < 2 or rng.random() < 0.7]
        for prefix in inner:
            letters = "abc"[: rng.integers(2, 4)]
            law = rng.dirichlet(np.ones(len(letters)))
            tree[prefix] = {x: (p, -rng.exponential(0.7)) for x, p in zip(letters, law.tolist())}
        level = [prefix + x for prefix in inner for x in tree[prefix]]
    return tree


@fk.program
async def walk(tree):
    text = ""
    while text in tree:
        options = tree[text]
        law = fk.dist.Categorical([p for p, _ in options.values()], values=list(options))
        letter = await fk.sample("letter", law)
        text += letter
        fk.deterministic("output", text)
        await fk.factor("G", options[letter][1])
    return text


def remaining(tree, prefix):
    """The least cost from a prefix to an end of the tree: the perfect heuristic."""
    if prefix not in tree:
        return 0.0
    return min(-math.log(p) - g + remaining(tree, prefix + x) for x, (p, g) in tree[prefix].items())


def a_star(model, options, heuristic):
    """Best-first search; the frontier is one state, whose particles lie at different depths.

    Returns the best value, its cost, the f of each expanded node, and the frontier with the costs.
    """

    def cost(step):
        return -(step.log_prob + step.log_potential)

    def forced(value, depth):
        return [{f"letter[{depth}]" if depth else "letter": x} for x in options(value)]

    given = forced("", 0)
    step = model.start(keys_of(len(given)), given)
    frontier, g, expanded = step.state, cost(step), [heuristic("")]
    queue = list(range(len(g)))
    while True:
        values = model.values(frontier)
        i = min(queue, key=lambda node: g[node] + heuristic(values[node]))
        queue.remove(i)
        if frontier.done[i]:
            return values[i], g[i], expanded, frontier, g
        expanded.append(g[i] + heuristic(values[i]))
        given = forced(values[i], int(frontier.depth[i]) + 1)
        node = model.select(frontier, np.full(len(given), i))
        step = model.advance(node, keys_of(len(given), len(expanded)), given)
        queue += range(len(g), len(g) + len(given))
        g = np.concatenate([g, g[i] + cost(step)])
        frontier = model.concat([frontier, step.state])


@pytest.mark.parametrize("seed", range(8))
def test_a_star_finds_the_brute_force_best_and_expands_nothing_worse(seed):
    tree = random_tree(seed)
    model = walk(tree)
    exact = fk.enumerate_program(model)
    best = exact.values[int(exact.log_weights.argmax())]
    optimum = -float(exact.log_weights.max())
    assert optimum == pytest.approx(remaining(tree, ""))
    sizes = []
    for trust in (0.0, 0.7, 1.0):
        value, cost, expanded, _, _ = a_star(model, lambda v: tree[v], lambda v, u=trust: u * remaining(tree, v))
        assert value == best
        assert cost == pytest.approx(optimum)
        assert max(expanded) <= optimum + 1e-9
        assert expanded == sorted(expanded) or trust  # without a heuristic it is Dijkstra's search
        sizes.append(len(expanded))
    assert sizes[0] >= sizes[1] >= sizes[2] == len(best)  # the perfect heuristic walks straight to the goal


def test_a_misleading_heuristic_is_seen():
    tree = random_tree(3)
    best = a_star(walk(tree), lambda v: tree[v], lambda v: 0.0)[0]
    wrong = a_star(walk(tree), lambda v: tree[v], lambda v: 50.0 * best.startswith(v) * bool(v))[0]
    assert wrong != best


def test_old_nodes_can_be_expanded_again_in_one_batch_of_different_depths():
    tree = random_tree(5)
    model = walk(tree)
    _, _, _, frontier, _ = a_star(model, lambda v: tree[v], lambda v: 0.0)
    values = model.values(frontier)
    live = np.flatnonzero(~frontier.done)
    assert len(set(frontier.depth[live].tolist())) > 1
    twice = np.repeat(live, 2)
    keys = keys_of(len(twice), 99)
    together = model.advance(model.select(frontier, twice), keys)
    for row, i in enumerate(twice):
        alone = model.advance(model.select(frontier, np.array([i])), keys[[row]])
        assert_same(together, alone, model, [row], [0])
        prefix, made = values[i], model.values(together.state)[row]
        assert made[:-1] == prefix
        p, g = tree[prefix][made[-1]]
        assert (together.log_prob[row], together.log_potential[row]) == pytest.approx((math.log(p), g))
    assert model.values(frontier) == values


# -- suffix Metropolis–Hastings ---------------------------------------------------------------------------------


@fk.program
async def tokens(beta=0.5):
    """T2 with one step for each token, the end token included."""
    text = ""
    while not text.endswith("$"):
        law = T2_NEXT.get(text, (0.0, 0.0, 1.0))
        text += await fk.sample("token", fk.dist.Categorical(law, values=list("ab$")))
        await fk.factor("reward", text.count("a") / beta if text.endswith("$") else 0.0)
    return text


def complete(model, n, seed, kept=None, until=None):
    """Run n particles to their end: each repeats its first ``until`` steps of ``kept``, and is free from then on.

    Returns the values, each particle's choices by step, and its total log-potential.
    """

    def given(t):
        return [kept[i][t] if t < until[i] else None for i in range(n)] if kept else None

    step = model.start(keys_of(n, seed, 0), given(0))
    choices, total, t = [[made] for made in step.choices], step.log_potential.copy(), 0
    while not step.done.all():
        t += 1
        live = ~step.done
        step = model.advance(step.state, keys_of(n, seed, t), given(t))
        total += step.log_potential
        for i in np.flatnonzero(live):
            choices[i].append(step.choices[i])
    return model.values(step.state), choices, total


def suffix_move(model, choices, log_potential, seed, length_factor=True):
    """Keep the choices before a uniform step, regenerate the rest from the model, and accept or stay."""
    n = len(choices)
    lengths = np.array([len(made) for made in choices])
    u = fk.keys.uniform(keys_of(n, seed, 1000), 2)
    cut = (u[:, 0] * lengths).astype(int)
    values, proposed, potential = complete(model, n, seed, choices, cut)
    ratio = potential - log_potential
    if length_factor:
        ratio = ratio + np.log(lengths / np.array([len(made) for made in proposed]))
    for i in range(n):
        assert proposed[i][: cut[i]] == choices[i][: cut[i]]
    return values, np.log(u[:, 1]) < ratio


def exact_start(model, seed):
    """Draw chains from the enumerated posterior, as values and as choices to be given back."""
    exact = fk.enumerate_program(model)
    u = fk.keys.uniform(keys_of(CHAINS, seed, 7))
    index = np.searchsorted(np.cumsum(exact.probabilities)[:-1], u, side="right")
    values = [exact.values[i] for i in index]
    kept = [[{f"token[{t}]" if t else "token": letter} for t, letter in enumerate(value)] for value in values]
    again, choices, potential = complete(model, CHAINS, seed, kept, [len(k) for k in kept])
    assert again == values
    return values, choices, potential


def drift(before, after, outcomes):
    """z-scores of the change of each outcome's frequency, paired chain by chain."""
    return [z_score([(b == x) - 1.0 * (a == x) for a, b in zip(before, after)], 0.0) for x in outcomes]


@pytest.mark.slow
def test_suffix_metropolis_hastings_leaves_the_posterior_invariant():
    model = tokens()
    assert fk.enumerate_program(model).law() == pytest.approx(dict(zip(T2_ORDER, T2_POSTERIOR)), abs=5e-6)
    before, choices, potential = exact_start(model, 1)
    proposed, accept = suffix_move(model, choices, potential, 2)
    after = [new if ok else old for old, new, ok in zip(before, proposed, accept)]
    assert np.mean([a != b for a, b in zip(before, after)]) > 0.2
    assert max(map(abs, drift(before, after, T2_ORDER))) < Z_LIMIT
    # The same test sees the move without its length factor, and one that always accepts.
    proposed, accept = suffix_move(model, choices, potential, 2, length_factor=False)
    careless = [new if ok else old for old, new, ok in zip(before, proposed, accept)]
    assert max(map(abs, drift(before, careless, T2_ORDER))) > Z_LIMIT
    assert max(map(abs, drift(before, proposed, T2_ORDER))) > 10


# -- conditional SMC --------------------------------------------------------------------------------------------


def conditional_smc(model, reference, seed, weigh_twice=False):
    """One sweep of each chain with N = 2: particle 0 repeats the reference, particle 1 is free; pick one ∝ w."""
    n = len(reference)
    given = [item for kept in reference for item in (kept, None)]
    step = model.start(keys_of(2 * n, seed), given)
    assert step.done.all()
    pairs = np.arange(2 * n).reshape(n, 2)
    u = fk.keys.uniform(keys_of(n, seed, 1), 2)
    weights = np.exp(step.log_increment)

    def pick(rows, u):
        w = weights[rows]
        return rows[np.arange(n), (u * w.sum(1) >= w[:, 0]).astype(int)]

    if weigh_twice:  # the classic mistake: resample the free particle after the last step, then select again
        pairs = np.stack([pairs[:, 0], pick(pairs, u[:, 1])], 1)
    return model.values(model.select(step.state, pick(pairs, u[:, 0])))


@pytest.mark.parametrize("twice", [False, True])
def test_conditional_smc_has_the_exact_kernel_on_t3_and_double_weighting_is_rejected(twice):
    chains = 6000  # what it is to tell apart is 13 standard errors apart
    moves = {(0.05, 0.45): False, (0.005, 0.405): True}
    to_b = [v == "b" for v in conditional_smc(t3(), [{"x": "a"}] * chains, 1, twice)]
    to_a = [v == "a" for v in conditional_smc(t3(), [{"x": "b"}] * chains, 2, twice)]
    for (k_ab, k_ba), of_twice in moves.items():
        fits = abs(z_score(to_b, k_ab)) < Z_LIMIT and abs(z_score(to_a, k_ba)) < Z_LIMIT
        assert fits == (of_twice == twice)
    stationary = np.mean(to_a) / (np.mean(to_a) + np.mean(to_b))
    assert stationary == pytest.approx(81 / 82 if twice else 0.9, abs=0.025)  # five standard errors
    start = [{"x": "a"}] * (9 * chains // 10) + [{"x": "b"}] * (chains // 10)
    after = conditional_smc(t3(), start, 3, twice)
    moved = z_score([(v == "a") - 1.0 * (s["x"] == "a") for v, s in zip(after, start)], 0.0)
    assert (abs(moved) < Z_LIMIT) != twice


@pytest.mark.slow
def test_conditional_smc_with_resampling_at_each_step_keeps_the_reference_and_the_posterior():
    """N = 2 on T2 with unequal lengths: the free particle draws its ancestor, the reference is forced along."""
    model, n = tokens(), CHAINS
    before, choices, _ = exact_start(model, 11)
    step = model.start(keys_of(2 * n, 12, 0), [item for kept in choices for item in (kept[0], None)])
    weights, t = step.log_increment.reshape(n, 2).copy(), 0
    while not step.done.all():
        t += 1
        share = 1.0 / (1.0 + np.exp(weights[:, 1] - weights[:, 0]))
        free = (fk.keys.uniform(keys_of(n, 13, t)) >= share).astype(int)
        ancestors = np.stack([np.arange(n) * 2, np.arange(n) * 2 + free], 1).ravel()
        given = [item for kept in choices for item in (kept[t] if t < len(kept) else None, None)]
        step = model.advance(model.select(step.state, ancestors), keys_of(2 * n, 12, t), given)
        weights = step.log_increment.reshape(n, 2).copy()
        # A particle that was done before the resampling keeps an equal share of the weight: log-increment 0.
    values = model.values(step.state)
    assert values[::2] == before
    share = 1.0 / (1.0 + np.exp(weights[:, 1] - weights[:, 0]))
    pick = (fk.keys.uniform(keys_of(n, 14)) >= share).astype(int)
    after = [values[2 * i + k] for i, k in enumerate(pick)]
    assert np.mean([a != b for a, b in zip(before, after)]) > 0.05
    assert max(map(abs, drift(before, after, T2_ORDER))) < Z_LIMIT


# -- the laws of the contract -----------------------------------------------------------------------------------

TERMS = ("log_prob", "log_proposal", "log_potential", "log_twist", "done", "scored")


def values_of(choices):
    """What a particle chose, without the terms that depend on how it was found."""
    return [getattr(site, "value", site) for site in choices]


def assert_same(a, b, model, rows_a, rows_b):
    for name in TERMS:
        assert (getattr(a, name)[rows_a] == getattr(b, name)[rows_b]).all(), name
    assert [values_of(a.choices[i]) for i in rows_a] == [values_of(b.choices[i]) for i in rows_b]
    values = model.values(a.state), model.values(b.state)
    assert [values[0][i] for i in rows_a] == [values[1][i] for i in rows_b]
    assert (a.state.depth[rows_a] == b.state.depth[rows_b]).all()


def check_contract(model, n=6, seed=0, scores=True):
    """Assert what every `FeynmanKac` model promises; use it on a model of your own.

    Advancing changes nothing and can be repeated; a fork carries all that belongs to a particle; particles of
    different depths share a batch; done particles pass through; what was chosen is scored alike when forced.
    """
    keys = keys_of(n, seed)
    step, t = model.start(keys), 0
    states, made = [step.state], [step]
    index = np.array([n - 1, 0, 0, n // 2, n - 1])
    everyone = np.arange(n)
    while not step.done.all():
        t += 1
        assert t < 1000, "the model does not end"
        here = keys_of(n, seed, t)
        was = model.values(step.state), step.state.depth.copy(), step.state.done.copy()
        live = model.advance(step.state, here)
        again = model.advance(step.state, here)
        assert_same(live, again, model, everyone, everyone)
        fork = model.advance(model.select(step.state, index), here[index])
        assert_same(live, fork, model, index, np.arange(len(index)))
        mixed = model.advance(model.concat([states[0], step.state]), np.concatenate([keys_of(n, seed, 1), here]))
        assert_same(mixed, live, model, everyone + n, everyone)
        assert_same(mixed, made[1] if len(made) > 1 else live, model, everyone, everyone)
        other = model.advance(step.state, keys_of(n, seed, t, 1))  # other keys leave it as it is, too
        assert len(other.state) == n
        values, depth, done = was
        assert model.values(step.state) == values
        assert (step.state.depth == depth).all()
        assert (step.state.done == done).all()
        for name in ("log_prob", "log_proposal", "log_potential", "log_twist"):
            assert (getattr(live, name)[done] == 0).all(), name
        assert [model.values(live.state)[i] for i in np.flatnonzero(done)] == [values[i] for i in np.flatnonzero(done)]
        assert (live.state.depth[done] == depth[done]).all()
        assert (live.state.depth[~done] == depth[~done] + 1).all()
        assert (live.done >= done).all()
        assert np.isfinite(live.log_twist).all()
        assert (live.log_twist[live.done] == 0).all()
        step = live
        states.append(step.state)
        made.append(step)
    if scores:
        replayed = model.start(keys_of(n, seed, 77), made[0].choices)
        for t, first in enumerate(made):
            assert_same(replayed, first, model, everyone, everyone)
            if t + 1 < len(made):
                replayed = model.advance(replayed.state, keys_of(n, seed, 78, t), made[t + 1].choices)
    return t


@fk.program
async def plain():
    x = 0
    for i in range(4):
        k = await fk.sample("k", fk.dist.Categorical([0.5, 0.3, 0.2]), proposal=fk.dist.Categorical([0.2, 0.2, 0.6]))
        z = await fk.sample("z", fk.dist.Normal(float(x), 1.0))
        x += k
        note = await fk.call("note", lambda a, b: [a, b], x, i)
        await fk.twist("guide", 0.3 * x)
        fk.deterministic("output", (x, tuple(note)))
        await fk.factor("G", -0.1 * x - 0.05 * z * z)
        if x >= 3:
            return "early", x
    return "late", x


@fk.program
async def scanned():
    async def step(carry, x):
        z = await fk.sample("z", fk.dist.Normal(carry["mean"], 1.0))
        fk.deterministic("output", (z, carry["last"]))
        await fk.observe("y", fk.dist.Normal(z, 0.5), x)
        return {"mean": 0.5 * z, "last": carry["last"] + 1}, z

    n = await fk.sample("n", fk.dist.Categorical([0.3, 0.3, 0.4]))
    last, zs = await fk.scan(step, {"mean": 0.0, "last": 0}, [0.3, -0.2, 1.0][: n + 1])
    a, b = await fk.gather(step(last, 0.1), step(last, 0.2))
    return zs[-1], a[1], b[1]


@dataclass(frozen=True)
class Cloud:
    """The state of `Native`: particles with identities and a cached quantity of each."""

    ident: np.ndarray
    x: np.ndarray
    cached: np.ndarray
    depth: np.ndarray
    done: np.ndarray

    def __len__(self):
        return len(self.x)


class Native:
    """A random walk that ends at |x| > 1.5 or at step 4; its potential needs a cached quantity of the parent."""

    def __init__(self, forgets=False):
        self.forgets = forgets

    def start(self, keys, given=None):
        n = len(keys)
        zero = np.zeros(n)
        empty = Cloud(keys.copy(), zero, zero, np.full(n, -1), np.zeros(n, bool))
        return self.advance(empty, keys, given)

    def advance(self, state, keys, given=None):
        noise = fk.keys.normal(fk.keys.fold(keys, 5))
        if given is not None:
            noise = np.array([z if g is None or not len(g) else g[0] for z, g in zip(noise, given)])
        live = ~state.done
        x = np.where(live, state.x + noise, state.x)
        cached = np.where(live, np.sin(x) + state.ident % 7, state.cached)
        depth = state.depth + live
        done = state.done | (np.abs(x) > 1.5) | (depth == 4)
        log_p = np.where(live, -0.5 * noise**2, 0.0)
        potential = np.where(live, -0.1 * x**2 - 0.01 * state.cached, 0.0)
        twist = np.where(done, 0.0, 0.2 * x)
        choices = [(z,) if alive else () for z, alive in zip(noise.tolist(), live)]
        new = Cloud(state.ident, x, cached, depth, done)
        return fk.Advance(new, choices, log_p, log_p.copy(), potential, twist, done.copy(), np.ones(len(keys), bool))

    def select(self, state, index):
        new = Cloud(*(getattr(state, name)[index] for name in Cloud.__dataclass_fields__))
        return replace(new, cached=np.resize(state.cached, len(index))) if self.forgets else new

    def concat(self, states):
        return Cloud(*(np.concatenate([getattr(s, name) for s in states]) for name in Cloud.__dataclass_fields__))

    def values(self, state):
        return list(zip(state.ident.tolist(), state.x.tolist()))


@pytest.mark.parametrize(
    "model",
    [plain(), scanned(), tokens(), t3(), Native()],
    ids=lambda value: None if " at 0x" in repr(value) else repr(value),
)
def test_models_keep_the_laws_of_the_contract(model):
    for seed in range(3):
        # The identities of the native model come from the keys, which a replay from the start has not.
        check_contract(model, seed=seed, scores=not isinstance(model, Native))


def test_particles_done_at_different_steps_were_among_them():
    for model in (plain(), scanned(), Native()):
        step = model.start(keys_of(30))
        while not step.done.all():
            assert not step.done.all()
            step = model.advance(step.state, keys_of(30, 1))
        assert len(set(step.state.depth.tolist())) > 1


def test_a_fork_that_forgets_a_cached_quantity_is_caught():
    with pytest.raises(AssertionError, match="log_potential"):
        check_contract(Native(forgets=True))


def test_the_state_of_a_native_model_is_its_own_business(monkeypatch):
    model = chains.chain()
    found = fk.infer(model, fk.SMC(4), seed=0)
    monkeypatch.setattr(chains.Paths, "items", lambda self: (), raising=False)  # as a dictionary of arrays has it
    assert fk.infer(model, fk.SMC(4), seed=0).values == found.values


def test_a_native_model_can_be_forced_too():
    model, n = Native(), 5
    step = model.start(keys_of(n))
    forced = model.advance(step.state, keys_of(n, 3), [(0.25,), None, (-0.5,), None, None])
    free = model.advance(step.state, keys_of(n, 3))
    live = np.flatnonzero(~step.done)
    for i in live:
        assert (forced.choices[i] == free.choices[i]) == (i not in (0, 2))
    assert forced.log_prob[0] == (-0.5 * 0.25**2 if 0 in live else 0.0)
