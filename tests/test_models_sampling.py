"""The law of the next token: warping as transformers does, exact draws. False alarms below 1e-4 a test."""

import math

import numpy as np
import pytest
import torch
import transformers as hf

from feynkac.models.language.drawing import laws
from feynkac.models.language.drawing.laws import drawn, log_normalise, read, warp
from feynkac.models.language.drawing.sampling import Mask, Sampling
from feynkac.ppl import keys

LAWS = [
    Sampling(),
    Sampling(temperature=0.6),
    Sampling(top_k=7),
    Sampling(top_p=0.8),
    Sampling(min_p=0.1),
    Sampling(temperature=1.5, top_k=40, top_p=0.9, min_p=0.05),
]


def draw(law, uniforms):
    """Tokens and log-probabilities of draws from a law that is as it is."""
    tokens, log_prob = read(drawn(law, torch.from_numpy(uniforms))).T
    return tokens.astype(np.int64), log_prob


def log_prob_of(law, tokens):
    return read(laws.log_prob_of(law, torch.from_numpy(tokens)))


def log_mass(law, mask):
    return read(laws.log_mass(law, as_masks(mask)))


def as_masks(mask):
    return [Mask(row) for row in mask.numpy()]


def random_logits(n, size, seed=0, spread=2.0):
    return spread * torch.randn(n, size, generator=torch.Generator().manual_seed(seed))


def by_transformers(logits, sampling):
    warpers = [hf.TemperatureLogitsWarper(sampling.temperature)]
    warpers += [hf.TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
    warpers += [hf.TopPLogitsWarper(sampling.top_p)] if sampling.top_p else []
    warpers += [hf.MinPLogitsWarper(sampling.min_p)] if sampling.min_p else []
    for warper in warpers:
        logits = warper(None, logits)
    return logits


@pytest.mark.parametrize("sampling", LAWS)
@pytest.mark.parametrize(("size", "spread"), [(300, 2.0), (5000, 0.01), (5000, 6.0)])
def test_warping_agrees_with_transformers(sampling, size, spread):
    logits = random_logits(20, size, spread=spread).double()
    ours, theirs = warp(logits, sampling), by_transformers(logits.clone(), sampling)
    assert torch.equal(ours == -math.inf, theirs == -math.inf)
    torch.testing.assert_close(log_normalise(ours), theirs.log_softmax(-1))


@pytest.mark.parametrize("sampling", LAWS)
@pytest.mark.parametrize("size", [5, 700])
def test_draws_follow_the_law(sampling, size):
    logits = random_logits(1, size, seed=size)
    mask = torch.rand(1, size, generator=torch.Generator().manual_seed(1)) < 0.7
    n = 15_000
    for allowed in (None, mask):
        law = warp(logits, sampling, allowed)
        if not (law > -math.inf).any():
            continue
        tokens, log_prob = draw(law.expand(n, -1), keys.uniform(keys.fold(keys.root(3), np.arange(n))))
        exact = law[0].double().softmax(-1).numpy()
        np.testing.assert_allclose(log_prob, np.log(exact[tokens]), atol=1e-5)
        np.testing.assert_allclose(log_prob_of(law.expand(n, -1), tokens), log_prob, atol=1e-6)
        counts = np.bincount(tokens, minlength=size)
        assert (counts[exact == 0] == 0).all()
        common = n * exact > 5
        chi = ((counts - n * exact)[common] ** 2 / (n * exact)[common]).sum()
        free = max(common.sum() - 1, 1)
        # Wilson–Hilferty: the cube root is nearly normal; 4.4 standard deviations are 5e-6 on one side.
        z = ((chi / free) ** (1 / 3) - (1 - 2 / (9 * free))) / math.sqrt(2 / (9 * free))
        assert z < 4.4


def test_a_draw_depends_on_its_own_uniform_alone():
    law, u = random_logits(9, 1000), keys.uniform(keys.fold(keys.root(0), np.arange(9)))
    together, _ = draw(law, u)
    alone = [draw(law[i : i + 1], u[i : i + 1])[0][0] for i in range(9)]
    assert together.tolist() == alone


def test_extreme_uniforms_never_give_a_token_of_probability_zero():
    law = torch.full((1, 1000), -math.inf)
    law[0, [3, 255, 256, 700]] = torch.tensor([0.0, -40.0, -2.0, -60.0])
    for u in (2.0**-60, 1e-12, 0.5, 1 - 2.0**-53):
        token, log_prob = draw(law, np.array([u]))
        assert token[0] in (3, 255, 256, 700)
        assert log_prob[0] > -math.inf


def test_greedy_takes_the_best_token_allowed():
    logits = random_logits(4, 50)
    greedy = Sampling(temperature=0)
    tokens, log_prob = draw(warp(logits, greedy), np.full(4, 0.3))
    assert tokens.tolist() == logits.argmax(-1).tolist()
    assert (log_prob == 0).all()
    mask = torch.ones(4, 50, dtype=torch.bool).scatter_(1, logits.argmax(-1, keepdim=True), False)
    tokens, log_prob = draw(warp(logits, greedy, mask), np.full(4, 0.3))
    assert tokens.tolist() == logits.masked_fill(~mask, -math.inf).argmax(-1).tolist()
    nothing = torch.zeros(4, 50, dtype=torch.bool)
    tokens, log_prob = draw(warp(logits, greedy, nothing), np.full(4, 0.3))
    assert (tokens == -1).all()
    assert np.isneginf(log_prob).all()


def kept_by_sorting(logits, top_k, top_p):
    """What top-k, then top-p keep, ties included, in float64 from the whole vocabulary in order."""
    logits = logits.double()
    if top_k is not None:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -math.inf)
    if top_p is None:
        return logits > -math.inf
    ordered = logits.sort(-1, descending=True).values
    mass = ordered.softmax(-1)
    last = (mass.cumsum(-1) - mass < top_p).sum(-1, keepdim=True) - 1
    return logits >= ordered.gather(1, last)


@pytest.mark.parametrize("size", [5, 700, 20_000])
@pytest.mark.parametrize("form", ["flat", "peaked", "rounded", "negative", "far", "double"])
def test_what_is_counted_is_what_sorting_keeps(form, size):
    logits = random_logits(6, size, seed=size)
    logits = {
        "flat": 0.01 * logits,
        "peaked": 4 * logits,
        "rounded": logits.bfloat16().float(),  # many ties, and no digit after the first two bytes
        "negative": logits - 50,
        "far": 1e4 * logits,
        "double": logits.double(),
    }[form]
    for top_k in (None, 3, size // 2):
        for top_p in (None, 1e-9, 0.3, 0.9, 0.999):
            ours = warp(logits, Sampling(top_k=top_k, top_p=top_p)) > -math.inf
            assert torch.equal(ours, kept_by_sorting(logits, top_k, top_p)), (top_k, top_p)


@pytest.mark.parametrize("top_p", [0.3, 0.9])
def test_zeros_of_both_signs_are_tied(top_p):
    logits = torch.tensor([[0.0, -0.0, 1.0, -1.0, 0.0, -0.0]])
    kept = warp(logits, Sampling(top_p=top_p)) > -math.inf
    assert torch.equal(kept, kept_by_sorting(logits, None, top_p))


def test_nothing_waits_for_a_gpu_before_results_are_read():
    # On "meta" there are no numbers: to ask for one, or for a shape that depends on one, is an error.
    logits = torch.empty((3, 20_000), device="meta")
    masks = [Mask(np.ones(20_000, bool))] * 3
    uniforms = torch.empty(3, dtype=torch.float64, device="meta")
    rows = torch.empty(3, dtype=torch.int64, device="meta")
    for sampling in (*LAWS, Sampling(top_k=15_000, top_p=0.8), Sampling(temperature=0), Sampling(temperature=1e-30)):
        assert drawn(logits, uniforms, sampling, masks, rows).shape == (3, 2)


def test_an_impossible_row_leaves_the_others_alone():
    law = random_logits(3, 300)
    law[1] = -math.inf
    tokens, log_prob = draw(law, np.full(3, 0.4))
    assert tokens[1] == -1
    assert np.isneginf(log_prob).tolist() == [False, True, False]


def test_the_mass_of_a_mask():
    law = random_logits(3, 300)
    mask = torch.zeros(3, 300, dtype=torch.bool)
    mask[:, :10] = True
    mask[2] = False
    exact = (law.double().softmax(-1) * mask).sum(-1).log().numpy()
    np.testing.assert_allclose(log_mass(law, mask), exact, atol=1e-6)


@pytest.mark.parametrize("size", [300, 20_000])
@pytest.mark.parametrize("sampling", [*LAWS, Sampling(top_k=250, top_p=0.8), Sampling(temperature=0)])
def test_nan_logits_are_an_error_and_a_row_without_tokens_is_none(sampling, size):
    logits, uniforms = random_logits(3, size), torch.full((3,), 0.5, dtype=torch.float64)
    mask = torch.ones(3, size, dtype=torch.bool)
    mask[1] = False
    packed = read(drawn(logits, uniforms, sampling, as_masks(mask)))
    assert (packed[:, 0] < 0).tolist() == [False, True, False]
    assert np.isneginf(packed[:, 1]).tolist() == [False, True, False]
    packed = read(drawn(logits.masked_fill(~mask, -math.inf), uniforms, sampling))
    assert packed[1].tolist() == [-1, -math.inf]
    logits[2, 7] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        read(drawn(logits, uniforms, sampling))


def test_what_is_cut_off_or_far_below_the_best_has_no_mass():
    logits = random_logits(1, 300)
    logits[0, 5] = -200.0
    law, mask = warp(logits, Sampling(top_k=3)), torch.ones(1, 300, dtype=torch.bool)
    mask.scatter_(1, law.topk(3).indices, False)
    assert np.isneginf(log_mass(law, mask)).all()
    only = torch.zeros_like(mask)
    only[0, 5] = True
    assert draw(warp(logits, Sampling(), only), np.array([0.3]))[0] == 5  # allowed, it is all there is


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"temperature": math.inf},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"min_p": -0.1},
    ],
)
def test_settings_out_of_range_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sampling(**wrong)
