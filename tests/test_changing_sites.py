"""Programs whose sites depend on values: choices that are tried on another past, and may not fit it."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from branching import CHANCE, Coin, outcomes

import feynkac as fk
from feynkac.inference.base.paths import run_on
from feynkac.inference.base.weights import normalize
from feynkac.inference.mcmc import suffix_mh
from feynkac.inference.particles import path_filter
from feynkac.ppl.model import retry
from walks import drive, keys_of, value_of

FAIR, BENT = (0.4, 0.6), (0.7, 0.3)


@fk.program
async def other_name(coin=Coin):
    a = await fk.sample("a", coin(FAIR))
    await fk.factor("A", 0.3 * a)
    b = await fk.sample("b" if a else "c", coin(BENT))
    await fk.factor("B", 0.8 * b - 0.4 * a)
    d = await fk.sample("d", coin(FAIR))
    await fk.factor("D", 1.0 * (a == d) + 0.5 * b * d)
    return a, b, d


@fk.program
async def one_more(coin=Coin):
    """One site more on one side, which the other side does not force."""
    a = await fk.sample("a", coin(FAIR))
    await fk.factor("A", 0.3 * a)
    b = await fk.sample("b", coin(BENT))
    more = await fk.sample("more", coin(FAIR)) if a else None
    await fk.factor("B", 0.8 * b - 0.4 * a)
    return a, b, more


@fk.program
async def other_support(coin=Coin):
    a = await fk.sample("a", coin(FAIR))
    await fk.factor("A", 0.3 * a)
    b = await fk.sample("b", coin((0.2, 0.3, 0.5) if a else BENT))
    await fk.factor("B", 0.8 * b - 0.4 * a)
    return a, b


@fk.program
async def branches(coin=Coin):
    """A gather of one branch or two."""

    @fk.program
    async def branch(a):
        x = await fk.sample("x", coin(BENT))
        await fk.factor("X", 0.4 * x - 0.3 * a)
        return x

    a = await fk.sample("a", coin(FAIR))
    await fk.factor("A", 0.3 * a)
    xs = await fk.gather(*(branch(a) for _ in range(1 + a)))
    await fk.factor("B", 0.9 * (sum(xs) == 1))
    return a, xs


@fk.program
async def scanned(coin=Coin):
    """A scan of one step or two."""

    async def step(carry, x):
        y = await fk.sample("y", coin(BENT if carry else FAIR))
        await fk.factor("Y", 0.6 * y * carry - 0.2)
        return y, y

    a = await fk.sample("a", coin(FAIR))
    await fk.factor("A", 0.3 * a)
    return a, (await fk.scan(step, a, range(1 + a)))[1]


@fk.program
async def called(coin=Coin):
    """A call whose value depends on the past: it is made anew, and not taken over."""
    a = await fk.sample("a", coin(FAIR))
    await fk.factor("A", 0.3 * a)
    score = await fk.call("score", lambda x: 1.5 * x - 0.4, a)
    b = await fk.sample("b", coin(BENT))
    await fk.factor("B", score * (b - 0.3))
    return a, b


PROGRAMS = [other_name, one_more, other_support, branches, scanned, called]


def whole_runs(model):
    """Every whole run of a program by its value, as a path, and the exact target."""
    found = outcomes(lambda: drive(model, [run_on(model, [None], keys_of(1))])[0][0])
    paths = {value_of(model, path): path for _, path in found}
    law = np.array([p * math.exp(path.log_potential) for p, path in found])
    return paths, law / law.sum()


def suffix_matrix(model, paths, engine, monkeypatch, blocks=None):
    """The exact kernel of one move: all that the engine draws is enumerated, and acceptance is its own ratio."""
    ratios, lengths = [], []

    class Scripted:
        """Stands for the keys in the engine's file: where to begin, to accept, and suffix or block."""

        def __getattr__(self, name):
            return getattr(fk.keys, name)

        def uniform(self, keys, columns):
            assert columns == 3
            begin = (CHANCE.choose([1 / lengths[-1]] * lengths[-1]) + 0.5) / lengths[-1]
            coin = CHANCE.choose([0.5, 0.5]) if blocks is None else int(not blocks)
            return np.array([[begin, 1e-300, 0.25 + 0.5 * coin]])

    own = fk.SuffixMH._log_ratio
    monkeypatch.setattr(suffix_mh, "_keys", Scripted())
    monkeypatch.setattr(fk.SuffixMH, "_log_ratio", lambda self, *args: ratios.append(own(self, *args)) or ratios[-1])
    names = list(paths)
    kernel = np.zeros((len(names), len(names)))
    for a, old in enumerate(paths.values()):
        lengths.append(old.length)

        def move(old=old):
            ratios.clear()
            ((moved,), _), *_ = drive(model, [engine.move(model, [old], keys_of(1), None, np.ones(1))])
            return value_of(model, moved), min(1.0, math.exp(ratios[-1])) if ratios else 0.0

        for p, (new, accept) in outcomes(move):
            kernel[a, names.index(new)] += p * accept
        kernel[a, a] += 1.0 - kernel[a].sum()
    return kernel


@pytest.mark.parametrize("block", [1, 2])
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
def test_moves_of_blocks_leave_the_target_as_an_exact_matrix(program, block, monkeypatch):
    model = program()
    paths, law = whole_runs(model)
    kernel = suffix_matrix(model, paths, fk.SuffixMH(1, block=block), monkeypatch)
    assert np.abs(law @ kernel - law).max() < 1e-12
    assert (kernel >= -1e-15).all()
    flow = law[:, None] * kernel
    assert np.abs(flow - flow.T).max() < 1e-12


def test_a_move_of_a_block_is_made_where_the_rest_fits_and_not_where_it_does_not(monkeypatch):
    model = other_name()
    paths, _ = whole_runs(model)
    kernel = suffix_matrix(model, paths, fk.SuffixMH(1, block=1), monkeypatch, blocks=True)
    names = list(paths)
    for a, old in enumerate(names):
        for b, new in enumerate(names):
            apart = sum(x != y for x, y in zip(old, new))
            assert (kernel[a, b] > 0) == (apart <= 1 and old[0] == new[0])


SAME_NAMES = [other_support, called]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
def test_an_ancestor_that_the_future_does_not_fit_has_no_chance(program, monkeypatch):
    """The chances of both pasts, by the formula w·p·G of the future, are those of the enumerated runs."""
    monkeypatch.setattr(path_filter, "resample", lambda logs, n, key, scheme: [CHANCE.choose(normalize(logs))])
    model = program()
    paths, _ = whole_runs(model)
    zero, one = (next(p for value, p in paths.items() if value[0] == a) for a in (0, 1))
    for reference in paths.values():
        own, other = (reference, one if reference.steps()[0].choices[0].value == 0 else zero)
        pasts, log_weights = [own.cut(1), other.cut(1)], np.array([0.2, -0.1])
        found = outcomes(partial(ancestor, model, pasts, log_weights, reference))
        chances = np.zeros(2)
        for p, (chosen, line) in found:
            chances[chosen] += p
            assert line[0] is pasts[chosen]
            assert line[-1].done
        fits = [path for path in paths.values() if moved(path, reference, other)]
        worth = [math.exp(log_weights[0] + after(reference)), sum(math.exp(log_weights[1] + after(p)) for p in fits)]
        assert len(fits) <= 1
        assert chances == pytest.approx(np.array(worth) / sum(worth))
        if program not in SAME_NAMES:
            assert chances.tolist() == [1.0, 0.0]


def ancestor(model, pasts, log_weights, reference):
    return drive(model, [path_filter._ancestor(model, pasts, log_weights, reference.steps(), keys_of(1))])[0]


def after(path):
    """log p·G of all steps but the first."""
    first = path.cut(1)
    return path.log_prob + path.log_potential - first.log_prob - first.log_potential


def moved(path, reference, past):
    """Whether a run is the reference's future on another past."""
    future = [[(s.address, s.value) for x in p.steps()[1:] for s in x.choices if s.kind == "sample"]
              for p in (path, reference)]  # fmt: skip
    return path.steps()[0].choices == past.steps()[0].choices and future[0] == future[1]


# -- what the model says -----------------------------------------------------------------------------------------------


def test_choices_on_trial_kill_the_particle_that_they_do_not_fit_and_no_other():
    model = other_name()
    begun = model.start(keys_of(3), [{"a": 0}, {"a": 1}, {"a": 0}])
    step = model.advance(begun.state, keys_of(3, 1), [retry(model.advance(begun.state, keys_of(3, 1)).choices[0])] * 3)
    assert step.done.tolist() == [False, True, False]
    assert np.isneginf(step.log_prob).tolist() == np.isneginf(step.log_increment).tolist() == [False, True, False]
    assert [site.name for site in step.choices[2]] == ["c", "B"]
    # By hand, and given plainly, they must be met.
    for given in ({"c": 1}, step.choices[0]):
        with pytest.raises(fk.errors.ImpossibleChoice, match=r"forced choices \['c'\] were not met"):
            model.advance(begun.state, keys_of(3, 1), [None, given, None])


@fk.program
async def one_site(first, second):
    a = await fk.sample("a", fk.dist.Bernoulli(0.5))
    await fk.factor("A", 0.0)
    x = await fk.sample("x", second if a else first)
    await fk.factor("X", 0.0)
    return a, x


def laws():
    from scipy import stats

    d, zeros = fk.dist, np.zeros(3)
    yield from [d.Normal(0.0, 1.0), d.Bernoulli(0.5), d.Normal(zeros, 1.0), d.Normal(zeros[:2], 1.0)]
    yield from [d.Categorical([0.5, 0.5], values=["u", "v"]), d.Categorical(np.full((3, 2), 0.5)), d.Delta("w")]
    yield from [stats.norm(np.zeros(4), 1.0), stats.multivariate_normal(np.zeros(5)), stats.binom([3, 4, 5, 6], 0.5)]


def torch_laws():
    torch = pytest.importorskip("torch")
    t = torch.distributions
    yield from [t.Normal(0.0, 1.0), t.Categorical(torch.ones(2) / 2), t.Bernoulli(torch.ones(2) / 2)]
    yield from [t.TransformedDistribution(t.Normal(torch.zeros(4), 1.0), [t.AffineTransform(0.0, 2.0)])]


def numpyro_laws():
    n = pytest.importorskip("numpyro").distributions
    yield from [n.Normal(0.0, 1.0), n.Categorical(np.ones(2) / 2), n.Normal(np.zeros(3), 1.0)]


@pytest.mark.parametrize("made", [laws, torch_laws, numpyro_laws])
def test_a_value_of_another_form_is_none_of_a_law_whoever_made_the_law(made):
    """A number is no vector, an integer no real number (they have no density in common), a word neither."""
    chosen = list(made())
    for first in chosen:
        for second in chosen:
            if first is second:
                continue
            model = one_site(first, second)
            begun = model.start(keys_of(2), [{"a": 0}, {"a": 1}])
            drawn = model.advance(begun.state, keys_of(2, 1)).choices[0]
            step = model.advance(begun.state, keys_of(2, 1), [retry(drawn)] * 2)
            assert np.isneginf(step.log_prob).tolist() == [False, True], (first, second)


def test_what_a_handler_sets_need_not_have_the_form_of_a_draw():
    model = fk.handlers.substitute(one_site(fk.dist.Normal(0.0, 1.0), fk.dist.Normal(1.0, 1.0)), data={"x": 1})
    begun = model.start(keys_of(2), [{"a": 0}, {"a": 1}])
    drawn = model.advance(begun.state, keys_of(2, 1)).choices[0]
    step = model.advance(begun.state, keys_of(2, 1), [retry(drawn)] * 2)
    assert np.exp(step.log_prob) == pytest.approx(np.exp([-0.5, 0.0]) / math.sqrt(2 * math.pi))


@pytest.mark.parametrize(
    "engine",
    [
        fk.SuffixMH(60, block=1),
        fk.SMC(20, 1.0, move=fk.SuffixMH(2, block=1)),
        fk.ParallelTempering((1, 3), 30, kernel=fk.SuffixMH(1, block=1)),
        fk.ParticleGibbs(4, 80, ancestor_sampling=True),
    ],
    ids=lambda engine: type(engine).__name__,
)
def test_engines_go_on_where_sites_change(engine):
    for program in PROGRAMS:
        posterior = fk.infer(program(fk.dist.Categorical), engine, seed=0)
        assert posterior.complete.all()
        assert {value[0] for value in posterior.values} == {0, 1}
