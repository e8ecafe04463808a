"""Masked diffusion at its edges: laws without a common token, steps that reveal nothing, numbers that are no tokens."""

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from masked import STATES, Exact, L, M, P, V, law_of, model  # noqa: E402

import feynkac as fk  # noqa: E402
from feynkac.diffusion import (  # noqa: E402
    Ancestral,
    AtRandom,
    Confident,
    Diffusion,
    InOrder,
    MaskedDiffusion,
    Mixture,
    Network,
    Schedule,
    Steering,
    TokenNetwork,
    anneal,
    guide,
    product,
    tilt,
)
from feynkac.diffusion.generator import InvalidOutput  # noqa: E402
from feynkac.diffusion.laws import Laws  # noqa: E402
from feynkac.diffusion.masked.site import Site  # noqa: E402
from feynkac.diffusion.tokens import laws  # noqa: E402

KEY = fk.keys.fold(fk.keys.root(0), np.arange(1))


def constant(logits, order="left", length=2):
    """Return a model of tokens that are drawn alike and independently at each position."""
    logits = torch.tensor([*logits, 0.0])
    network = Network(lambda x, share: logits.expand(*x.shape, len(logits)), "logits")
    return MaskedDiffusion(network, length, InOrder(order), vocabulary=len(logits))


def test_probabilities_are_no_nan_where_rounding_passes_one():
    for count in (11, 15, 18):
        rule, masks = Ancestral(count, remask=1.0), torch.full((count, 2), M)
        law = torch.tensor([0.2, 0.3, 0.5, 0.0]).log().expand(count, 2, 4)
        site = Site(masks, law, masks == M, masks != M, np.arange(count), 2, M)
        one = torch.tensor([0, M]).expand(count, 2)
        assert not rule.log_prob(site, one).isnan().any()


@pytest.mark.parametrize("threshold", [None, 0.3, 0.0, 1.0])
def test_a_step_that_has_no_share_to_reveal_has_a_law(threshold):
    after = torch.tensor(list(itertools.product(range(4), repeat=2)))
    n, masks = len(after), torch.full((len(after), 2), M)
    law = torch.tensor([0.2, 0.3, 0.5, 0.0]).log().double().expand(n, 2, 4)
    site = Site(masks, law, masks == M, masks != M, np.full(n, 4), 2, M)
    assert float(Confident(5, threshold).log_prob(site, after).exp().sum()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("order", ["uniform", "left", "probability", "entropy", "margin"])
def test_a_product_without_a_common_token_is_empty(order):
    never = -torch.inf
    empty = product([constant([0.0, never], order), constant([never, 0.0], order)])
    found = fk.infer(empty, fk.SMC(4, all_dead="zero"), seed=0)
    assert found.log_evidence == -np.inf
    state = empty.start(KEY).state
    forced = empty.advance(state, KEY, [np.array([0, 2])])
    assert (forced.log_prob[0], forced.log_increment[0]) == (-np.inf, -np.inf)


@pytest.mark.parametrize("order", ["uniform", "left", "entropy"])
def test_particles_without_a_common_token_die_and_others_do_not(order):
    even = np.where(STATES[:, 0] == STATES[:, 1], P, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        known, other = Exact(even / even.sum()), Exact(np.where(STATES.sum(1) < 4, P, 0.0))
    for one in (known, other):  # as networks do, they say something of what cannot be
        one.table = one.table.nan_to_num(nan=0.0, neginf=-torch.inf)
    laws = [MaskedDiffusion(Network(one, "logits"), L, InOrder(order), vocabulary=V + 1) for one in (known, other)]
    exact = law_of(product(laws), weighed=True)
    found = np.exp([fk.infer(product(laws), fk.SMC(8), seed=seed).log_evidence for seed in range(40)])
    assert abs(found.mean() - exact.sum()) < 4.265 * found.std(ddof=1) / np.sqrt(40) + 1e-9  # 2e-5


def test_negative_powers_are_of_laws_of_masked_positions():
    def revealed(x, share):  # certain of tokens that are there already
        logits, there = torch.zeros(*x.shape, 3), x < 2
        logits[there] = -torch.inf
        logits[there, x[there]] = 0.0
        return logits

    known = MaskedDiffusion(Network(revealed, "logits"), 2, InOrder("left"), vocabulary=3)
    found = fk.infer(product([constant([0.0, 0.0]), known], [2.0, -1.0]), fk.SMC(4), seed=0)
    assert found.log_evidence == pytest.approx(0.0, abs=1e-6)  # Σ (1/4)² / (1/4)


def test_what_is_read_otherwise_by_the_others_of_a_product_is_refused():
    one, other = (constant([0.0, 1.0]) for _ in range(2))
    other.decode = lambda x: [row.sum() for row in x]
    tilted = tilt(other, lambda sums: [float(s) for s in sums], of="estimate")
    with pytest.raises(ValueError, match="decodes otherwise"):
        product([one, tilted])
    assert np.isfinite(fk.infer(product([tilted, one]), fk.SMC(4), seed=0).log_evidence)
    schedule = Schedule.vp(4)
    gaussian = [
        Diffusion(Mixture([1.0], [[0.0]], [1.0]).denoiser(schedule), schedule, (1,), decode=decode)
        for decode in (None, torch.abs)
    ]
    with pytest.raises(ValueError, match="decodes otherwise"):
        product([gaussian[0], tilt(gaussian[1], lambda x: x[:, 0])])
    with pytest.raises(ValueError, match="not of both"):
        product([one, gaussian[0]])
    with pytest.raises(ValueError, match="a condition to guide to"):
        guide(gaussian[0], 2.0, torch.zeros(1))


def test_what_is_no_token_is_refused():
    good = Network(lambda x, share: torch.zeros(len(x), 3, 4), "logits")
    short = model(InOrder(), decode=lambda x: ["one"])
    state = short.start(KEY).state
    refusals = [
        (ValueError, "none of the 4", lambda: MaskedDiffusion(good, 3, vocabulary=4, template=[0.7, 3, 3])),
        (ValueError, "not 2.5", lambda: MaskedDiffusion(good, 3, vocabulary=4, mask=2.5)),
        (TypeError, "block must be a whole", lambda: MaskedDiffusion(good, 3, vocabulary=4, block=1.5)),
        (TypeError, "vocabulary must be a whole", lambda: MaskedDiffusion(good, 3, vocabulary=4.0)),
        (ValueError, "vocabulary must be at least 2", lambda: MaskedDiffusion(good, 3, vocabulary=1)),
        (TypeError, "length must be a whole", lambda: MaskedDiffusion(good, 3.0, vocabulary=4)),
        (ValueError, "finite", lambda: MaskedDiffusion(good, 3, vocabulary=4, temperature=np.inf)),
        (ValueError, "finite", lambda: anneal(model(InOrder()), float("nan"))),
        (ValueError, "a condition to guide to", lambda: guide(model(InOrder()), 2.0, torch.zeros(1))),
        (ValueError, "got 4 samples and returned 1", lambda: fk.infer(short, fk.SMC(4), seed=0).values),
        *((ValueError, "particle 0 was given .*tokens are 0 to 3", lambda x=x: short.advance(state, KEY, [np.array(x)]))
          for x in ([7, M, M], [-1, M, M], [0.9, M, M])),
    ]  # fmt: skip
    for kind, words, call in refusals:
        with pytest.raises(kind, match=words):
            call()


def test_a_journal_keeps_what_a_model_of_tokens_says(tmp_path):
    class Model(torch.nn.Module):
        calls = 0

        def forward(self, input_ids):
            self.calls += 1
            return type("Out", (), {"logits": torch.arange(12.0).reshape(3, 4).sin().expand(len(input_ids), 3, 4)})

    torch_model = Model()
    first, again, shifted = (
        fk.infer(
            MaskedDiffusion(TokenNetwork(torch_model, shift=shift), 3, vocabulary=4),
            fk.SMC(8),
            seed=0,
            journal=tmp_path / "journal",
        )
        for shift in (False, False, True)
    )
    assert torch_model.calls == 3 + 3
    np.testing.assert_array_equal(first.values, again.values)
    assert not np.array_equal(first.values, shifted.values)


def test_trajectories_are_drawn_backward():
    made = model(Ancestral(3), steering=Steering(lambda x: x.double().sum(1)))
    smoothed = fk.smooth(fk.infer(made, fk.SMC(300), seed=0), 300, seed=1, model=made)
    exact = law_of(made, weighed=True)
    assert abs(np.sum(smoothed.values, 1).mean() - exact @ STATES.sum(1) / exact.sum()) < 0.3


def test_forced_choices_that_are_no_numbers_are_refused_by_particle():
    with pytest.raises(ValueError, match="particle 0 was given"):
        model(InOrder()).start(fk.keys.fold(fk.keys.root(0), np.arange(1)), [["a", "b", "c"]])


def test_unmasking_a_text_of_floats_gives_tokens():
    step = fk.diffusion.unmask(model(InOrder()), np.array([0.0, float(M), float(M)]))
    assert all(type(token) is int for token in step.text)


def test_laws_are_those_of_the_logits_wherever_they_are_asked_for():
    logits = torch.tensor([[[0.3, -1.0, torch.nan, 0.5], [0.1, 0.2, 9.0, -torch.inf]]]).expand(3, 2, 4).clone()
    kept, found = logits.clone(), laws(logits, 0.7, mask=2)
    whole = logits / 0.7
    whole[..., 2] = -torch.inf
    whole, where = whole.log_softmax(-1), torch.tensor([[True, False], [False, False], [True, True]])
    rows = torch.tensor([2, 0])
    both = Laws.join([found.select(rows), found])
    assert torch.equal(found.likeliest, torch.tensor([[3, 1]] * 3))
    for _ in range(2):  # in parts, and once all is there
        assert torch.allclose(found[where], whole[where])
        assert torch.allclose(found[rows], whole[rows])
        assert torch.allclose(both[1:3], torch.cat([whole[rows], whole])[1:3])
        assert torch.allclose(found[...], whole)
        both = Laws.join([found.select(rows), laws(logits, 0.7, mask=2)])
    assert torch.equal(logits.nan_to_num(7.0), kept.nan_to_num(7.0))
    for bad in (torch.nan, torch.inf):
        with pytest.raises(InvalidOutput, match="particle 1"):
            laws(torch.tensor([[[0.0, 1.0, 0.0]], [[bad, 1.0, 0.0]]]), 1.0, mask=2)
    for mask in (0, 2):
        never = torch.full((1, 1, 3), -torch.inf)
        never[..., mask] = 1.0
        with pytest.raises(InvalidOutput, match="all tokens at -inf"):
            laws(never, 1.0, mask=mask)


@pytest.mark.parametrize("rule", [Ancestral(3), InOrder(), InOrder("left"), AtRandom(2)])
def test_laws_are_normalised_only_of_what_a_step_reveals(rule, monkeypatch):
    network, asked, normalised = Network(lambda x, share: torch.ones(*x.shape, 5), "logits"), [], Laws._normalised

    def noted(self, logits):
        asked.append(len(logits))
        return normalised(self, logits)

    monkeypatch.setattr(Laws, "_normalised", noted)
    made = MaskedDiffusion(network, 6, rule, vocabulary=5)
    fk.infer(made, fk.SMC(10), seed=0)
    assert sum(asked) == 2 * 10 * 6  # to be drawn, and for its probability
