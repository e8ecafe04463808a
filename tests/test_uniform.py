"""Diffusion with uniform noise: every rule has its exact probability, draws by it, and reaches the law that it says."""

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from masked import STATES, L, P, V  # noqa: E402
from scipy import stats  # noqa: E402

import feynkac as fk  # noqa: E402
from feynkac.diffusion import BlockRefinement, DiscreteDDIM, EntropyBound, Network, Steering, UniformDiffusion  # noqa: E402
from feynkac.diffusion.masked.site import Site  # noqa: E402

LOGITS = [[0.2, 1.1, -0.3], [0.9, -0.5, 0.4], [-1.0, 0.3, 1.3], [0.1, 0.0, -0.2]]
RULES = [
    DiscreteDDIM(1), DiscreteDDIM(4), EntropyBound(4, 1.0), EntropyBound(4, 0.0), EntropyBound(4, 1.0, settle=False),
    BlockRefinement(1), BlockRefinement(2, None), BlockRefinement(4), BlockRefinement(4, 0.45), BlockRefinement(3, 0.3),
    BlockRefinement(7, 0.0), BlockRefinement(2, 0.5, greedy=True),
]  # fmt: skip
KEY = fk.keys.fold(fk.keys.root(0), np.arange(1))
LAW = torch.tensor(np.random.default_rng(0).normal(size=(V**L, L, V)))
TABLE = torch.tensor(0.8 * np.random.default_rng(1).normal(size=V**L))


def network(x, share):
    """Random laws that depend on all tokens and, a little, on the time."""
    return LAW[(x * torch.tensor([9, 3, 1])).sum(1)] * (1 + 0.5 * share[:, None, None])


def model(rule, fn=network, length=L, **settings):
    return UniformDiffusion(Network(fn, "logits"), length, rule, vocabulary=V, **settings)


def reward(x):
    return TABLE[(x * torch.tensor([9, 3, 1])).sum(1)]


def site(rule, x=(0, 1, 1, 2), at=0, settled=()):
    """A step of four positions; ``settled`` ones are committed."""
    settled = torch.tensor([[i in settled for i in range(4)]])
    log_mu = torch.tensor([LOGITS], dtype=torch.float64) / rule.temperature(np.array([at]))[0]
    return Site(torch.tensor([x]), log_mu.log_softmax(-1), ~settled, settled, np.array([at]), 4, -1)


def many(where, n):
    parts = (part.expand(n, *part.shape[1:]) for part in (where.x, where.log_mu, where.open, where.revealed))
    return Site(*parts, np.full(n, where.at[0]), 4, -1)


def probability(rule, x, **where):
    return float(rule.log_prob(site(rule, **where), torch.tensor([x])).exp())


def law_of(made, weighed=False):
    """The probability (27,) of each final state by all paths; with ``weighed`` times their weights."""
    lowest = -V if made.rule.commits else 0
    states = np.array(list(itertools.product(range(lowest, V), repeat=L)))
    starts = states[(states < 0).all(1)] if made.rule.commits else states
    start = made.start(np.zeros(len(starts), np.uint64), [*starts])
    batch, mass = start.state, np.exp(start.log_prob + (start.log_increment if weighed else 0.0))
    for _ in range(made.steps):
        index = np.repeat(np.arange(len(batch)), len(states))
        moved = made.advance(made.select(batch, index), np.zeros(len(index), np.uint64), [*states] * len(batch))
        total = mass[index] * np.exp(moved.log_prob + (moved.log_increment if weighed else 0.0))
        batch, mass = made.select(moved.state, np.flatnonzero(total > 0)), total[total > 0]
        keep = ("trace", "given") if weighed and made.steering.potential != "difference" else ()
        seen = np.column_stack([batch.x.numpy(), *(batch.fields[name].numpy().round(12) for name in keep)])
        _, first, inverse = np.unique(seen, axis=0, return_index=True, return_inverse=True)  # paths that meet go on
        mass, batch = np.bincount(inverse.ravel(), mass), made.select(batch, first)
    final = np.zeros(len(STATES))
    np.add.at(final, (batch.x.numpy() * [9, 3, 1]).sum(1), mass)
    return final


def posterior(x, share):
    """The exact network of uniform noise: the law of each clean token given all noisy ones."""
    alpha = (1 - share.double().numpy())[:, None, None]
    kept = alpha * (x.numpy()[:, None] == STATES[None]) + (1 - alpha) / V
    joint = P * kept.prod(-1)
    mass = np.stack([[joint[:, STATES[:, i] == v].sum(1) for v in range(V)] for i in range(L)])
    return torch.tensor(np.log(mass).transpose(2, 0, 1))


def test_ddim_has_the_published_form():
    x = [[s, 1, 1, 2] for s in range(V)]
    others = probability(DiscreteDDIM(4), x[0], at=1) / 0.5537483816
    found = [probability(DiscreteDDIM(4), one, at=1) / others for one in x]
    assert found == pytest.approx([0.55374838, 0.29908135, 0.14717026], abs=1e-8)
    mu, a, before, after = np.exp(LOGITS[0]) / np.exp(LOGITS[0]).sum(), 1 / 2, 1 / 4, 1 / 2
    for s in range(V):  # as the sum over x0 reads
        forward = [(a * (s == 0) + (1 - a) / V) * (after * (s == k) + (1 - after) / V) for k in range(V)]
        kept = [before * (k == 0) + (1 - before) / V for k in range(V)]
        assert found[s] == pytest.approx(sum(mu[k] * forward[k] / kept[k] for k in range(V)), abs=1e-8)


def test_an_entropy_bound_takes_what_the_laws_say():
    rule, where = EntropyBound(4, 1.0), site(EntropyBound(4, 1.0), at=1)
    assert rule.temperature(np.array([0, 1, 3])) == pytest.approx([0.8, 0.7, 0.5])
    entropy = torch.special.entr(where.log_mu.exp()).sum(-1)
    assert entropy[0].tolist() == pytest.approx([0.7883, 0.8672, 0.6089, 1.0836], abs=1e-4)
    assert rule.taken(where).tolist() == [[True, False, True, False]]
    mu = where.log_mu[0].exp()
    assert probability(rule, (1, 2, 2, 0), at=1) == pytest.approx(float(mu[0, 1] * mu[2, 2]) / V**2, abs=1e-12)
    assert probability(rule, (1, 0, 2, 0), at=3) == 1  # settled: the likeliest
    assert probability(EntropyBound(4, 9.0, settle=False), (0, 0, 0, 0), at=3) > 0


def test_refinement_has_the_published_form():
    def found(x, settled, rule, at):
        logits = [*LOGITS[:2], [0.0, 0.0, 0.0], LOGITS[3]]
        where = site(rule, x=(0, 0, 1, 0), at=at, settled=settled)
        law = torch.tensor([logits], dtype=torch.float64).log_softmax(-1)
        return float(rule.log_prob(Site(where.x, law, where.open, where.revealed, where.at, 4, -1), x).exp())

    # Position 2 is committed; each that is not committed is noise, of probability 1/3. Owed: ⌈(i + 1)·4/4⌉ − 1.
    for at, tau, x, p, noise in [
        (2, 0.95, (1, 0, 1, -1), 0.326420962849739, 1),
        (2, 0.95, (1, -3, 1, 0), 0.10525887657922955, 1),
        (1, 0.95, (1, -1, 1, -2), 0.6048997031966658, 2),
        (1, 0.45, (1, -1, 1, -2), 0.2784787403469267, 2),
        (1, 0.30, (1, 0, 1, 0), 0.12337998871536883, 0),
    ]:
        assert found(torch.tensor([x]), (2,), BlockRefinement(4, tau), at) == pytest.approx(p / 3**noise, abs=1e-12)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("settled", [(), (2,), (0, 3)])
def test_probabilities_of_a_step_sum_to_one_and_draws_have_them(rule, settled):
    settled, n = settled if rule.commits else (), 20_000
    after = torch.tensor(list(itertools.product(range(-V if rule.commits else 0, V), repeat=4)))
    for at in sorted({0, 1 % rule.count, rule.count - 1}):
        where = site(rule, at=at, settled=settled)
        after = after[(torch.where(where.open, where.x, after) == where.x).all(1)]
        p = rule.log_prob(many(where, len(after)), after).exp().numpy()
        assert p.sum() == pytest.approx(1, abs=1e-12)
        drawn = rule.draw(many(where, n), torch.tensor(np.random.default_rng(at).random((n, 2, 4))))
        codes, drawn = ((x + V).numpy() @ (2 * V) ** np.arange(4) for x in (after, drawn))
        order = codes.argsort()
        place = np.searchsorted(codes[order], drawn)
        assert (codes[order][place] == drawn).all()
        seen = np.bincount(order[place], minlength=len(p))
        often = p * n > 5
        expected, count = np.append(p[often], p[~often].sum()) * n, np.append(seen[often], seen[~often].sum())
        assert (count[expected < 1e-9] == 0).all()
        count, expected = count[expected > 1e-9], expected[expected > 1e-9]
        statistic = ((count - expected) ** 2 / expected).sum()
        # 80 tests at 1e-6: a correct rule fails with probability 8e-5
        assert len(count) == 1 or stats.chi2.sf(statistic, len(count) - 1) > 1e-6


def test_the_law_of_ddim_goes_to_that_of_the_data():
    one = law_of(model(DiscreteDDIM(1), posterior))
    singles = [np.array([P[STATES[:, i] == v].sum() for v in range(V)]) for i in range(L)]
    assert one == pytest.approx(np.prod([singles[i][STATES[:, i]] for i in range(L)], 0), abs=1e-7)
    apart = [0.5 * abs(law_of(model(DiscreteDDIM(steps), posterior)) - P).sum() for steps in (1, 2, 4, 8)]
    assert apart == sorted(apart, reverse=True)
    assert apart[-1] < 0.35 * apart[1]


@pytest.mark.parametrize(
    ("rule", "potential"),
    [
        (DiscreteDDIM(3), "difference"), (EntropyBound(3, 1.0), "difference"), (BlockRefinement(3), "difference"),
        (BlockRefinement(2, 0.4), "difference"), (DiscreteDDIM(2), "max"), (DiscreteDDIM(2), "sum"),
        (DiscreteDDIM(2), "current"), (EntropyBound(2, 1.0), "current"),
    ],
    ids=str,
)  # fmt: skip
def test_steered_all_potentials_have_one_target(rule, potential):
    plain = law_of(model(rule))
    assert plain.sum() == pytest.approx(1, abs=1e-12)
    mass = law_of(model(rule, steering=Steering(reward, 1.5, potential)), weighed=True)
    assert mass == pytest.approx(plain * np.exp(1.5 * TABLE.numpy()), rel=1e-9)
