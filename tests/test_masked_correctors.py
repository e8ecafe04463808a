"""Products of powers of masked-diffusion models have the law that they say, by enumeration."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from masked import P2, REWARD, STATES, Exact, F, L, M, P, V, conditionals, law_of, model  # noqa: E402

import feynkac as fk  # noqa: E402
from feynkac.diffusion import InOrder, Network, Steering, anneal, guide, product, tilt  # noqa: E402
from feynkac.ppl.errors import InvalidWeight, Unsupported  # noqa: E402

ORDERS = ("uniform", "left", "entropy")


def of_state(table):
    """Return the reward of finished tokens that a table (27,) holds."""
    table = torch.tensor(table)
    return lambda x: table[(x * torch.tensor([9, 3, 1])).sum(1)]


def both(order="uniform"):
    """Return a model with conditions: 1 for the law P, 0 for the other."""
    known, other = Exact(P), Exact(P2)

    def network(x, share, condition):
        return torch.where(condition[:, None, None] == 1, known(x, share), other(x, share))

    return fk.diffusion.MaskedDiffusion(
        Network(network, "logits"), L, InOrder(order), vocabulary=V + 1, condition=torch.ones(1)
    )


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("made", "evidence", "mean"),
    [
        (lambda order: anneal(model(InOrder(order)), 2.0), 0.0441791653912866, 2.561200923787529),
        (lambda order: anneal(model(InOrder(order)), 0.5), 5.0242694940892045, 2.211531852938937),
        (lambda order: product([model(InOrder(order)), model(InOrder(order), P2)]), 0.03823320928584087,
        2.6488991888760136), (lambda order: product([model(InOrder(order)), model(InOrder(order), P2)], [2.5, -1.5]),
        2.0821500819025656, 1.9172255803617544), (lambda order: guide(both(order), 2.5, torch.zeros(1)),
        2.0821500819025656, 1.9172255803617544), (lambda order: tilt(model(InOrder(order)), of_state(REWARD),
        of="estimate"), 2.3250770937939653, 3.034170901591366), (lambda order: tilt(anneal(model(InOrder(order)), 2.0),
         of_state(REWARD), of="estimate"), (P**2 * np.exp(REWARD)).sum(), (P**2 * np.exp(REWARD)) @ F / (P**2 *
         np.exp(REWARD)).sum()),
        (lambda order: anneal(tilt(model(InOrder(order)), of_state(REWARD), of="estimate"), 2.0),
         (P**2 * np.exp(2 * REWARD)).sum(), (P**2 * np.exp(2 * REWARD)) @ F / (P**2 * np.exp(2 * REWARD)).sum()),
    ],
)  # fmt: skip
def test_the_target_is_the_product(order, made, evidence, mean):
    mass = law_of(made(order), weighed=True)
    assert mass.sum() == pytest.approx(evidence, rel=1e-11)
    assert mass @ F / mass.sum() == pytest.approx(mean, rel=1e-11)


def test_rewards_may_read_masks():
    def seen(x):  # what is revealed already, as it will be at the end
        return 0.7 * (x[:, 0] == 1).double() + 0.5 * (x == 2).double().sum(1) - 0.4 * (x[:, 1] == 0).double()

    mass = law_of(tilt(model(InOrder("left")), seen, lambda s: 1.0), weighed=True)
    assert mass == pytest.approx(P * np.exp(REWARD), rel=1e-11)


def test_without_weights_the_law_is_another():
    unweighted = law_of(anneal(model(InOrder()), 2.0))
    assert unweighted @ F == pytest.approx(2.6581002335723185, rel=1e-11)
    guided = product([model(InOrder("left")), model(InOrder("left"), P2)], [2.5, -1.5])
    assert law_of(guided) @ F == pytest.approx(2.2526096652366054, rel=1e-11)


def test_guidance_from_left_to_right():
    mass = law_of(guide(both("left"), 4.0, torch.zeros(1)), weighed=True)
    assert mass == pytest.approx(P**4 / P2**3, rel=1e-10)
    assert mass.sum() == pytest.approx(8.795037018178439, rel=1e-10)
    assert mass @ F / mass.sum() == pytest.approx(1.4825552669446964, rel=1e-10)


def test_the_exact_twist_leaves_no_variance():
    """With φ the log of what the reward will come to, every particle has the weight Z."""
    weights = P * np.exp(REWARD)

    def hope(x):  # log E[e^r | revealed]
        fits = ((torch.tensor(STATES)[None] == x[:, None]) | (x[:, None] == M)).all(2).double()
        return ((fits @ torch.tensor(weights)) / (fits @ torch.tensor(P))).log()

    made = tilt(model(InOrder("left")), hope, lambda share: 1.0)
    found = fk.infer(made, fk.ImportanceSampling(20), seed=0)
    assert np.exp(found.log_evidence) == pytest.approx(2.3250770937939653, rel=1e-11)
    assert found.ess == pytest.approx(20)


def test_smc_is_unbiased():
    made = tilt(product([model(InOrder()), model(InOrder(), P2)]), of_state(2 * REWARD), of="estimate")
    exact = (P * P2 * np.exp(2 * REWARD)).sum()
    found = np.array(
        [np.exp(fk.infer(made, fk.SMC(8, ess_threshold=1.0), seed=seed).log_evidence) for seed in range(60)]
    )
    assert abs(found.mean() - exact) < 4.265 * found.std(ddof=1) / np.sqrt(60)  # 2e-5


def test_draws_are_as_their_probability_says():
    made = tilt(model(InOrder()), of_state(REWARD), of="estimate")
    n = 6000
    keys = fk.keys.fold(fk.keys.root(0), np.arange(n))
    state = made.start(keys).state
    moved = made.advance(state, keys)
    tokens, first, count = np.unique(moved.state.x.numpy(), axis=0, return_index=True, return_counts=True)
    p = np.exp(moved.log_prob[first])
    assert p.sum() == pytest.approx(1, abs=1e-12)
    assert len(tokens) == 9
    assert (np.abs(count / n - p) < 4.9 * np.sqrt(p * (1 - p) / n)).all()  # 1e-6 each
    again = made.advance(state, keys, [*moved.state.x.numpy()])
    assert again.log_prob == pytest.approx(moved.log_prob)
    assert again.log_increment == pytest.approx(moved.log_increment)


def test_what_has_no_product_is_refused():
    half = P * (STATES[:, 0] == 1) + 1e-300
    some = np.where(STATES[:, 0] == 1, P, 0.0)
    refusals = [
        (ValueError, "one position at a time", lambda: anneal(model(fk.diffusion.AtRandom(3)), 2.0)),
        (Unsupported, "replace steering", lambda: anneal(model(InOrder(), steering=Steering(of_state(REWARD))), 2.0)),
        (Unsupported, "varies in time", lambda: anneal(model(InOrder()), lambda s: s)),
        (ValueError, "one template", lambda: product([model(InOrder()), model(InOrder("left"))])),
        (TypeError, "zeta", lambda: anneal(model(InOrder()), 2.0, zeta=1.0)),
        (InvalidWeight, "must be finite", lambda: fk.infer(tilt(model(InOrder()), lambda x: x[:, 0].double().log(),
                                                          of="estimate"), fk.SMC(4), seed=0)),
    ]  # fmt: skip
    for kind, words, call in refusals:
        with pytest.raises(kind, match=words):
            call()
    assert conditionals(half / half.sum(), np.array([M, M, M]))[0].argmax() == 1
    with np.errstate(divide="ignore", invalid="ignore"):
        narrow = model(InOrder("left"), some / some.sum(), template=[M, 1, 1])
        wide = model(InOrder("left"), P, template=[M, 1, 1])
    with pytest.raises(InvalidWeight, match="no probability of token 0 at position 0"):
        fk.infer(product([wide, narrow], [2.0, -1.0]), fk.SMC(4), seed=0)
