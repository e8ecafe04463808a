"""Masked diffusion: every rule has its exact probability, and draws by it."""

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from masked import REWARD, STATES, F, L, M, P, V, conditionals, distance, law_of, model  # noqa: E402
from scipy import stats  # noqa: E402

import feynkac as fk  # noqa: E402
from feynkac.diffusion import Ancestral, AtRandom, Confident, InOrder, MaskedDiffusion, Network, Steering  # noqa: E402
from feynkac.diffusion.generator import InvalidOutput  # noqa: E402
from feynkac.diffusion.masked.site import Site  # noqa: E402

LOGITS = [[0.2, 1.1, -0.3], [0.9, -0.5, 0.4], [0.0, 0.0, 0.0], [0.1, 0.0, -0.2]]
RULES = [
    Ancestral(1), Ancestral(4), Ancestral(3, "cosine"), Ancestral(4, remask=0.5),
    *(InOrder(order) for order in ("uniform", "left", "probability", "entropy", "margin")),
    AtRandom(1), AtRandom(2), AtRandom(5),
    Confident(1), Confident(2), Confident(3), Confident(2, 0.45), Confident(3, 0.3), Confident(5, 0.0),
    Confident(2, greedy=True),
]  # fmt: skip
KEY = fk.keys.fold(fk.keys.root(0), np.arange(1))


def site(x=(M, M, 1, M), at=0, width=4):
    x = torch.tensor([x])
    log_mu = torch.tensor([LOGITS], dtype=torch.float64).log_softmax(-1)
    log_mu = torch.cat([log_mu, torch.full((1, 4, 1), -torch.inf).double()], -1)
    return Site(x, log_mu, x == M, torch.zeros_like(x, dtype=bool), np.array([at]), width, M)


def probability(rule, x, **where):
    return float(rule.log_prob(site(**where), torch.tensor([x])).exp())


def test_the_probability_of_a_step_is_the_formula():
    made = model(Ancestral(4))
    at = made.start(KEY, [np.array([M, M, M])]).state
    at = made.advance(at, KEY, [np.array([2, M, M])])
    moved = made.advance(at.state, KEY, [np.array([2, 1, M])])
    assert moved.log_prob[0] == pytest.approx(-2.456735772821304, abs=1e-12)
    assert made.advance(at.state, KEY, [np.array([1, 1, M])]).log_prob[0] == -np.inf  # a revealed token changes


@pytest.mark.parametrize(
    ("rule", "total_variation", "mean"),
    [
        (Ancestral(1), 0.13084008125330435, None),
        (Ancestral(4), 0.04081476525667502, 2.368331987541247),
        (Ancestral(16), 0.01081589151700484, None),
        (Ancestral(8, remask=0.5), 0.0313961671498347, None),
        (InOrder("uniform"), 0.0, 2.3636363636363638),
        (InOrder("left"), 0.0, 2.3636363636363638),
        (InOrder("probability"), 0.0, 2.3636363636363638),
        (InOrder("entropy"), 0.0, 2.3636363636363638),
        (InOrder("margin"), 0.0, 2.3636363636363638),
    ],
)
def test_the_law_of_all_steps(rule, total_variation, mean):
    law = law_of(model(rule))
    assert law.sum() == pytest.approx(1, abs=1e-12)
    assert distance(law) == pytest.approx(total_variation, abs=1e-12)
    assert mean is None or law @ F == pytest.approx(mean, abs=1e-12)


def test_the_law_of_the_surest_first():
    untied = P * np.exp(0.1 * np.random.default_rng(0).normal(size=27))
    untied /= untied.sum()
    law = {(M, M, M): 1.0}
    for _ in range(L):
        after = {}
        for x, mass in law.items():
            mu, masks = conditionals(untied, np.array(x)), [i for i in range(L) if x[i] == M]
            for tokens in itertools.product(range(V), repeat=len(masks)):
                p = mu[masks, tokens]
                kept = masks[p.argmax()]
                y = tuple(tokens[p.argmax()] if i == kept else x[i] for i in range(L))
                after[y] = after.get(y, 0.0) + mass * p.prod()
        law = after
    assert law_of(model(Confident(3), untied)) == pytest.approx([law[tuple(s)] for s in STATES.tolist()], abs=1e-12)
    assert distance(law_of(model(Confident(3), untied)), untied) > 0.2  # it looks at the tokens


def test_blocks_are_revealed_from_left_to_right():
    # Blocks {0}, {1, 2}, a step each: as by hand, for a block of two that begins after one position of a prompt.
    after_first = [law_of(model(Ancestral(1), template=[v, M, M])) for v in range(V)]
    first = [P[STATES[:, 0] == v].sum() for v in range(V)]
    law = sum(p * after for p, after in zip(first, after_first))
    assert distance(law) == pytest.approx(0.12190794976718729, abs=1e-12)
    made = model(Ancestral(1), block=2)
    assert (made.blocks, made.steps) == (2, 2)
    moved = made.advance(made.start(KEY).state, KEY)
    assert (moved.state.x[0] == M).tolist() == [False, False, True]
    pairs = np.array([P[(STATES[:, :2] == pair).all(1)].sum() for pair in STATES[:, :2]])
    singles = [np.array([P[STATES[:, i] == v].sum() for v in STATES[:, i]]) for i in (0, 1)]
    assert law_of(made) == pytest.approx(singles[0] * singles[1] * P / pairs, abs=1e-12)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_probabilities_of_a_step_sum_to_one(rule):
    after = torch.tensor(list(itertools.product(range(V + 1), repeat=4)))
    for x, at in ((M, M, 1, M), 0), ((0, M, 1, M), min(1, rule.steps(4) - 1)), ((M, M, M, M), rule.steps(4) - 1):
        where = site(x, at)
        parts = (
            part.expand(len(after), *part.shape[1:]) for part in (where.x, where.log_mu, where.open, where.revealed)
        )
        many = Site(*parts, np.full(len(after), at), 4, M)
        assert float(rule.log_prob(many, after).exp().sum()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_draws_have_the_probability(rule):
    n = 4000
    x = torch.tensor([(M, M, 1, M), (0, M, 1, M)]).repeat_interleave(n, 0)
    where = site()
    many = Site(x, where.log_mu.expand(2 * n, -1, -1), x == M, (x == 0), np.full(2 * n, rule.steps(4) - 1), 4, M)
    uniforms = torch.tensor(np.random.default_rng(0).random((2 * n, 2, 4)))
    drawn = rule.draw(many, uniforms)
    log_prob = rule.log_prob(many, drawn)
    for half in (slice(0, n), slice(n, 2 * n)):
        found, first, count = np.unique(drawn[half].numpy(), axis=0, return_index=True, return_counts=True)
        p = log_prob[half][first].exp().numpy()
        assert p.sum() > 0.98 or len(found) > 30  # nearly all that can be drawn was
        expected = np.append(p, max(1 - p.sum(), 0)) * n
        seen = np.append(count, 0)
        kept = expected > 5
        rest = expected[~kept].sum(), seen[~kept].sum()
        expected, seen = np.append(expected[kept], rest[0]), np.append(seen[kept], rest[1])
        if expected[-1] < 1e-6:
            expected, seen = expected[:-1], seen[:-1]
        statistic = ((seen - expected) ** 2 / expected).sum()
        assert len(seen) == 1 or stats.chi2.sf(statistic, len(seen) - 1) > 1e-5


def test_confident_steps_have_the_published_form():
    assert probability(Confident(2, 0.95), (1, 0, 1, M)) == pytest.approx(0.326420962849739, abs=1e-12)
    assert probability(Confident(2, 0.95), (1, M, 1, 0)) == pytest.approx(0.10525887657922955, abs=1e-12)
    assert probability(Confident(4, 0.95), (1, M, 1, M)) == pytest.approx(0.6048997031966658, abs=1e-12)
    assert probability(Confident(4, 0.45), (1, M, 1, M)) == pytest.approx(0.2784787403469267, abs=1e-12)
    assert probability(Confident(4, 0.3), (1, 0, 1, 0)) == pytest.approx(0.12337998871536883, abs=1e-12)
    assert probability(Confident(2, greedy=True), (1, 0, 1, M)) == 1


def test_remasking_keeps_the_shares_of_the_forward_process():
    made = model(Ancestral(4, remask=0.7))
    states = made.start(fk.keys.fold(fk.keys.root(1), np.arange(6000))).state
    for step in range(1, 4):
        states = made.advance(states, fk.keys.fold(fk.keys.root(step), np.arange(6000))).state
        share, n = (states.x != M).double().mean(), 3 * 6000
        assert (
            abs(share - step / 4) < 4.265 * np.sqrt(step / 4 * (1 - step / 4) / n) * 1.5
        )  # 2e-5; positions go together


@pytest.mark.parametrize(
    ("rule", "evidence", "mean"),
    [
        (Ancestral(4), 3.902128317666415, 3.3708727216331633),
        (Ancestral(2), 3.9152858472555563, None),
        (InOrder(), 3.8865594396582686, None),
    ],
)
@pytest.mark.parametrize("potential", ["difference", "max", "sum", "current"])
def test_steered_all_potentials_have_one_target(rule, evidence, mean, potential):
    table = torch.tensor(REWARD)
    made = model(rule, steering=Steering(lambda x: table[(x * torch.tensor([9, 3, 1])).sum(1)], 1.5, potential))
    mass = law_of(made, weighed=True)
    assert mass.sum() == pytest.approx(evidence, rel=1e-12)
    assert mean is None or mass @ F / mass.sum() == pytest.approx(mean, rel=1e-12)


def test_smc_reaches_the_evidence():
    table = torch.tensor(REWARD)
    made = model(Ancestral(4), steering=Steering(lambda x: table[(x * torch.tensor([9, 3, 1])).sum(1)], 1.5))
    found = np.array(
        [np.exp(fk.infer(made, fk.SMC(16, ess_threshold=1.0), seed=seed).log_evidence) for seed in range(60)]
    )
    assert abs(found.mean() - 3.902128317666415) < 4.265 * found.std(ddof=1) / np.sqrt(len(found))  # 2e-5


def test_prompts_stay_and_are_given_to_the_network():
    made = model(InOrder(), template=[2, M, M])
    law = P * (STATES[:, 0] == 2)
    assert law_of(made) == pytest.approx(law / law.sum(), abs=1e-12)
    assert made.steps == 2
    assert made.start(KEY, [np.array([M, M, M])]).log_prob[0] == -np.inf


@pytest.mark.parametrize("rule", [Ancestral(4), AtRandom(2), InOrder(), InOrder("left"), Confident(3)], ids=str)
def test_masks_put_on_again_are_as_many_as_there_were(rule):
    n = 3000
    made = model(rule, block=2 if rule == AtRandom(2) else None)
    keys = fk.keys.fold(fk.keys.root(5), np.arange(n))
    there, states = made.start(keys).state, []
    for step in range(made.steps):
        states.append(there)
        there = made.advance(there, fk.keys.fold(keys, step)).state
    for depth in range(1, made.steps):
        back = made.renoise(there, fk.keys.fold(keys, 77), depth).state
        assert (back.depth == depth).all()
        assert ((back.x == M) | (back.x == there.x)).all()
        share, was = ((state.x == M).double().mean(0) for state in (back, states[depth]))
        if rule != Confident(3):  # of which the surest are shown first, and any masked again
            assert (abs(share - was) < 4.9 * np.sqrt(0.5 / n)).all()  # 1e-6 each
        assert abs(share.mean() - was.mean()) < 4.9 * np.sqrt(0.5 / n)
    with pytest.raises(ValueError, match="one before it"):
        made.renoise(there, keys, made.steps)


def test_the_network_runs_once_for_each_particle_that_has_masks():
    found = fk.infer(model(Confident(3, 0.0)), fk.ImportanceSampling(10), seed=0)
    assert found.cost.nfe == 10  # all is revealed at once, and nothing is left to ask
    assert fk.infer(model(InOrder()), fk.SMC(10), seed=0).cost.nfe == 30


def test_values_are_what_decode_makes_of_tokens():
    made = model(InOrder(), decode=lambda x: ["".join("abc_"[t] for t in row) for row in x.tolist()])
    values = fk.infer(made, fk.ImportanceSampling(5), seed=0).values
    assert all(len(value) == L and set(value) <= set("abc") for value in values)

    @fk.reward(kind="log_weight")
    def starts_with_c(text):
        return 0.0 if text[0] == "c" else -1e9

    steered = model(InOrder("left"), decode=made.decode, steering=Steering(starts_with_c))
    found = fk.infer(steered, fk.SMC(50), seed=0)
    assert found.expect(lambda text: text[0] == "c") > 0.999


def test_steps_are_kernels_of_programs():
    made = model(InOrder("left"))

    @fk.program
    async def written():
        particle = await fk.sample("masks", fk.diffusion.begin(made))
        while not particle.done:
            particle = await fk.sample("step", fk.diffusion.denoise(particle))
        await fk.factor("reward", float(REWARD[(particle.x * [9, 3, 1]).sum()]))
        return tuple(particle.x.tolist())

    found = np.array([np.exp(fk.infer(written(), fk.SMC(20), seed=seed).log_evidence) for seed in range(40)])
    assert abs(found.mean() - 2.3250770937939653) < 4.265 * found.std(ddof=1) / np.sqrt(40)  # 2e-5


@pytest.mark.parametrize("engine", [fk.SuffixMH(60), fk.ParticleGibbs(4, 60)], ids=str)
def test_chains_run_on_what_was_recorded(engine):
    table = torch.tensor(REWARD)
    made = model(InOrder("left"), steering=Steering(lambda x: table[(x * torch.tensor([9, 3, 1])).sum(1)]))
    found = fk.infer(made, engine, seed=0)
    assert 2.2 < found.expect(lambda x: x[0] + x[1] * x[2]) < 3.9


def test_what_cannot_be_made_right_is_refused():
    good = Network(lambda x, share: torch.zeros(len(x), 3, 4), "logits")
    nan = Network(lambda x, share: torch.full((len(x), 3, 4), torch.nan), "logits")
    small = Network(lambda x, share: torch.zeros(len(x), 3, 3), "logits")
    refusals = [
        (ValueError, 'predicts "logits"', lambda: MaskedDiffusion(Network(lambda x, t: x, "sample"), 3, vocabulary=4)),
        (ValueError, "temperature must be positive", lambda: MaskedDiffusion(good, 3, vocabulary=4, temperature=0)),
        (ValueError, "3 tokens with a mask", lambda: MaskedDiffusion(good, 3, vocabulary=4, template=[1, 2])),
        (ValueError, "3 tokens with a mask", lambda: MaskedDiffusion(good, 3, vocabulary=4, template=[1, 2, 0])),
        (ValueError, "none of the 4", lambda: MaskedDiffusion(good, 3, vocabulary=4, template=[1, 7, 3])),
        (ValueError, "from 0 on, not 9", lambda: MaskedDiffusion(good, 3, vocabulary=4, mask=9)),
        (ValueError, "1 to 3 positions", lambda: MaskedDiffusion(good, 3, vocabulary=4, block=4)),
        (ValueError, "order must be one of", lambda: InOrder("right")),
        (ValueError, "count", lambda: Ancestral(0)),
        (ValueError, "remask", lambda: Ancestral(2, remask=2)),
        (ValueError, "schedule", lambda: Ancestral(2, "quadratic")),
        (ValueError, "threshold", lambda: Confident(2, 1.5)),
        (InvalidOutput, "NaN", lambda: fk.infer(MaskedDiffusion(nan, 3, vocabulary=4), fk.SMC(2), seed=0)),
        (InvalidOutput, "not the logits of 4", lambda: fk.infer(MaskedDiffusion(small, 3, vocabulary=4), fk.SMC(2),
        seed=0)), (ValueError, "use MaskedDiffusion", lambda: fk.diffusion.Diffusion(good, fk.diffusion.Schedule.vp(2),
        (3,))),
    ]  # fmt: skip
    for kind, words, call in refusals:
        with pytest.raises(kind, match=words):
            call()
