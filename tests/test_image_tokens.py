"""Images as tokens: their laws, guidance both ways, forced choices, forks, and the digits that ship."""

import itertools
import json
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import feynkac as fk  # noqa: E402
from feynkac.models import ByScale, ByToken, ImageTokens  # noqa: E402
from feynkac.models.constraints import Language, guide, targeting  # noqa: E402
from feynkac.models.images import (  # noqa: E402
    Picture,
    digit_class_log_probs,
    digit_lm,
    digit_tokens,
    shipped,
)
from feynkac.models.images.patches import images_of, tokens_of  # noqa: E402
from feynkac.models.testing import tiny_lm  # noqa: E402
from feynkac.ppl.errors import ContextOverflow, InvalidWeight  # noqa: E402

# -- a law of three tokens, asymmetric, under a condition (p) and under none (p2) --------------------------------------

ALL = np.array(list(itertools.product(range(3), repeat=3)))
X, Y, W = ALL.T
P = 1 + (7 * X + 3 * Y + 5 * W + 2 * X * Y + 4 * Y * W) % 11
P2 = 1 + (2 * X + 7 * Y + 4 * W + 5 * X * W) % 7
P, P2 = P / P.sum(), P2 / P2.sum()
F = X + Y * W


class Exact:
    """The conditionals of a law of strings, by scales of some sizes whose tokens are independent given those before."""

    def __init__(self, laws, sizes=(1, 1, 1)):
        self.laws, self.sizes, self.calls = laws, sizes, []

    def __call__(self, tokens, memory, condition):
        self.calls.append(len(tokens))
        seen = tokens.shape[1]
        size = next(s for s, end in zip(self.sizes, np.cumsum(self.sizes)) if end > seen)
        rows = []
        for row, which in zip(tokens.tolist(), condition.tolist()):
            fits = (ALL[:, :seen] == row).all(1) * self.laws[which]
            rows.append([[fits[ALL[:, seen + k] == v].sum() / fits.sum() for v in range(3)] for k in range(size)])
        if memory:  # what it remembers is how many tokens it has read, and of whom
            assert memory[0].tolist() == [[sum(row[:-1] if size == 1 else []), 0] for row in tokens.tolist()]
        return torch.tensor(rows).log(), (torch.tensor([[sum(row), 0] for row in tokens.tolist()]),)


def toy(sizes=(1, 1, 1), laws=(P2, P), **settings):
    return ImageTokens(ByScale(Exact(laws, sizes), sizes, 3, condition=1, unconditional=0), **settings)


def forced(model, strings):
    """log p and Σ log G of strings that are forced, each (n,)."""
    n = len(strings)
    keys = fk.keys.fold(fk.keys.root(0), np.arange(n))
    advance = model.start(keys)
    log_prob, log_g = advance.log_prob.copy(), advance.log_potential.copy()
    ends = np.cumsum([0, *map(sum, model.source.bursts)])
    for t in range(model.steps):
        advance = model.advance(advance.state, keys, list(strings[:, ends[t] : ends[t + 1]]))
        np.testing.assert_array_equal(advance.log_prob, advance.log_proposal)
        log_prob, log_g = log_prob + advance.log_prob, log_g + advance.log_potential
    assert advance.done.all()
    return log_prob, log_g


def test_a_law_is_that_of_its_conditionals():
    log_prob, log_g = forced(toy(), ALL)
    np.testing.assert_allclose(np.exp(log_prob), P)
    assert not log_g.any()


def test_exact_guidance_is_the_product_and_the_usual_one_is_not():
    product = P**4 * P2**-3.0
    log_prob, log_g = forced(toy(guidance=3.0, way="exact"), ALL)
    found = np.exp(log_prob + log_g)
    np.testing.assert_allclose(found, product, rtol=1e-9)
    assert found.sum() == pytest.approx(8.795037018178439, rel=1e-12)
    assert found @ F / found.sum() == pytest.approx(1.4825552669446964, rel=1e-12)
    usual, nothing = forced(toy(guidance=3.0), ALL)
    assert not nothing.any()
    assert np.exp(usual).sum() == pytest.approx(1.0)
    assert np.exp(usual) @ F == pytest.approx(1.9586592231006863, rel=1e-12)
    np.testing.assert_allclose(usual, log_prob, rtol=1e-12)


def test_evidence_of_exact_guidance_is_unbiased_and_both_laws_share_a_call():
    model = toy(guidance=3.0, way="exact")
    found = [fk.infer(model, fk.SMC(20, ess_threshold=1.0), seed=seed) for seed in range(100)]
    z = np.array([posterior.log_evidence for posterior in found])
    ratios = np.exp(z) / 8.795037018178439
    moments = np.array([p.expect(lambda v: v[0] + v[1] * v[2]) for p in found]) * ratios - 1.4825552669446964 * ratios
    # 2 comparisons at |z| < 4.265: a correct engine fails with probability 2 × 2.0e-5.
    for mean in (ratios - 1.0, moments):
        assert abs(mean.mean()) / (mean.std(ddof=1) / math.sqrt(len(mean))) < 4.265
    assert set(model.source.network.calls) == {40}  # 20 particles under both, thrice a run
    assert len(model.source.network.calls) == 100 * 3


def test_tokens_of_a_scale_are_independent_given_scales_before():
    log_prob, _ = forced(toy((1, 2)), ALL)
    first = np.array([P[x == X].sum() for x in range(3)])
    second = np.array([[P[(x == X) & (y == Y)].sum() for y in range(3)] for x in range(3)]) / first[:, None]
    third = np.array([[P[(x == X) & (w == W)].sum() for w in range(3)] for x in range(3)]) / first[:, None]
    np.testing.assert_allclose(np.exp(log_prob), first[X] * second[X, Y] * third[X, W])


def test_draws_have_their_probability_and_depend_on_their_own_key():
    model, n = toy((1, 2)), 4000
    keys = fk.keys.fold(fk.keys.root(1), np.arange(n))
    state = model.start(keys).state
    for t in range(2):
        state = model.advance(state, fk.keys.fold(keys, t)).state
    counts = np.bincount(state.tokens @ [9, 3, 1], minlength=27)
    p = np.exp(forced(model, ALL)[0])
    # 27 comparisons at |z| < 5: fails with probability 27 × 5.7e-7 = 1.5e-5.
    assert (np.abs(counts - n * p) / np.sqrt(n * p * (1 - p)) < 5).all()
    one = model.start(keys[7:8]).state
    for t in range(2):
        one = model.advance(one, fk.keys.fold(keys[7:8], t)).state
    assert (one.tokens[0] == state.tokens[7]).all()


def test_forks_and_joins_take_along_what_is_known():
    model = toy(guidance=1.0, way="exact", reward=lambda tokens: (tokens == 1).sum(1))
    keys = fk.keys.fold(fk.keys.root(2), np.arange(4))
    early = model.advance(model.start(keys).state, keys).state
    late = model.advance(early, fk.keys.fold(keys, 1))
    before = late.state.tokens.copy()
    mixed = model.concat([model.select(late.state, np.array([3, 0])), model.select(early, np.array([1, 1, 2]))])
    assert mixed.depth.tolist() == [2, 2, 1, 1, 1]
    moved = model.advance(mixed, fk.keys.fold(keys[[0, 1, 2, 3, 0]], 2))
    alone = model.advance(model.select(early, np.array([2])), fk.keys.fold(keys[[0]], 2))
    np.testing.assert_allclose(moved.log_potential[4], alone.log_potential[0])
    assert (moved.state.tokens[4] == alone.state.tokens[0]).all()
    assert moved.done.tolist() == [True, True, False, False, False]
    again = model.advance(moved.state, keys[[0, 1, 2, 3, 0]])
    assert not again.log_prob[:2].any()
    assert not again.log_potential[:2].any()
    assert (late.state.tokens == before).all()


def test_rewards_along_the_way_multiply_to_that_of_the_whole():
    seen = []

    def reward(images):
        seen.append(np.isnan(images).sum(1).max())
        return np.nansum(images, 1) - 1.0

    def decode(tokens):
        return torch.where(tokens < 0, torch.nan, tokens.double())

    model = toy(decode=decode, blank=-1, reward=reward, scale=0.7)
    log_prob, log_g = forced(model, ALL)
    np.testing.assert_allclose(log_g, 0.7 * (ALL.sum(1) - 1.0))
    np.testing.assert_allclose(np.exp(log_prob), P)
    assert seen == [2, 1, 0]
    log_z = math.log((P * np.exp(0.7 * (ALL.sum(1) - 1.0))).sum())
    assert fk.infer(model, fk.SMC(2000), seed=0).log_evidence == pytest.approx(log_z, abs=0.1)


def test_an_image_of_reward_minus_infinity_is_dead_for_good():
    model = toy(reward=lambda tokens: np.where(tokens[:, 1] == 2, -np.inf, tokens[:, 0]) * 1.0)
    with np.errstate(invalid="ignore"):
        _, log_g = forced(model, ALL)
    np.testing.assert_allclose(log_g, np.where(Y == 2, -np.inf, X))
    flips = [0.0, -np.inf, 1.0]
    model = toy(reward=lambda tokens: np.full(len(tokens), flips[int((tokens[0] >= 0).sum()) - 1]))
    assert np.isneginf(forced(model, ALL[:2])[1]).all()


# -- a language model --------------------------------------------------------------------------------------------------

ALPHABET = (70, 80, 90)


def test_an_image_that_is_impossible_on_the_way_stays_so_by_every_engine():
    def reward(images):
        begun = (images >= 0).sum(1) == 1
        return np.where(begun & (images[:, 0] == 0), -np.inf, 0.1 * images.clip(0).sum(1))

    weight = P * np.exp(0.1 * ALL.sum(1)) * (X > 0)
    for engine in (fk.ImportanceSampling(400), fk.SMC(400, ess_threshold=0.05), fk.SMC(400, ess_threshold=1.0)):
        posterior = fk.infer(toy(reward=reward, blank=-1), engine, seed=0)
        assert posterior.log_evidence == pytest.approx(np.log(weight.sum()), abs=0.15)
        assert not any(w for value, w in zip(posterior.values, posterior.probabilities) if value[0] == 0)
    never = toy(reward=lambda images: np.where(images[:, 0] == 0, -np.inf, 0.0), scale=0.0)
    assert fk.infer(never, fk.SMC(400), seed=0).log_evidence == pytest.approx(np.log(P[X > 0].sum()), abs=0.15)


def by_token(lm, **settings):
    row_end = settings.pop("row_end", ())
    source = ByToken(lm, lm.prompt("a cat"), (2, 2), ALPHABET, unconditional=lm.prompt("nothing else"), row_end=row_end)
    return ImageTokens(source, **settings)


def law_of(lm, prompt, string, row_end=()):
    """The log-probability of image tokens after a prompt, by one pass of the model over all."""
    ids = list(lm.prompt(prompt).prompt_tokens)
    total = 0.0
    for i, v in enumerate(string):
        with torch.no_grad():
            logits = lm.model(torch.tensor([ids])).logits[0, -1, list(ALPHABET)].double()
        total += float(logits.log_softmax(-1)[v])
        ids += [ALPHABET[v], *(row_end if i == 1 else ())]
    return total


@pytest.mark.parametrize("row_end", [(), (200,)])
def test_a_language_model_draws_rows_and_its_guidance_is_exact(row_end):
    lm = tiny_lm()
    strings = np.array([[0, 2, 1, 1], [2, 2, 0, 1], [0, 2, 0, 0]])
    log_prob, log_g = forced(by_token(lm, guidance=0.8, way="exact", row_end=row_end), strings)
    own = [1.8 * law_of(lm, "a cat", s, row_end) - 0.8 * law_of(lm, "nothing else", s, row_end) for s in strings]
    np.testing.assert_allclose(log_prob + log_g, own, atol=1e-4)
    plain, _ = forced(by_token(lm, row_end=row_end), strings)
    np.testing.assert_allclose(plain, [law_of(lm, "a cat", s, row_end) for s in strings], atol=1e-4)


def test_what_is_known_of_a_history_is_kept():
    lm = tiny_lm()
    posterior = fk.infer(by_token(lm), fk.SMC(8, ess_threshold=1.0), seed=0)
    assert posterior.cost.tokens_out == 8 * 4
    assert posterior.cost.tokens_in <= len(lm.prompt("a cat").prompt_tokens) + 8 * 3  # once each, the last never


def test_what_cannot_be_right_is_refused_by_name():
    lm = tiny_lm()
    with pytest.raises(ValueError, match="guidance needs the law under no condition"):
        ImageTokens(ByToken(lm, lm.prompt("a"), (2, 2), ALPHABET), guidance=1.0)
    with pytest.raises(ValueError, match='way must be "usual" or "exact"'):
        toy(way="best")
    with pytest.raises(ValueError, match="an alphabet is two or more different tokens"):
        ByToken(lm, lm.prompt("a"), (2, 2), (3, 3))
    with pytest.raises(ContextOverflow, match="do not fit"):
        ByToken(lm, lm.prompt("a"), (400, 400), ALPHABET)
    with pytest.raises(ValueError, match="the scales have 1 token or more"):
        ByScale(Exact((P2, P)), (1, 0), 3, condition=1)
    with pytest.raises(ValueError, match="no step of 1 tokens from 0 to 2"):
        forced(toy(), ALL + 1)
    with pytest.raises(TypeError, match="a reward is a function"):
        toy(reward=3)
    none = np.where(ALL[:, 0] == 2, 0.0, P2) / P2[ALL[:, 0] != 2].sum()
    with pytest.raises(InvalidWeight, match="image token 2 has no probability under one"):
        forced(toy(laws=(none, P), guidance=1.0, way="exact"), ALL)
    log_prob, log_g = forced(toy(laws=(P2, none), guidance=1.0, way="exact"), ALL[:18])  # zero stays zero
    np.testing.assert_allclose(np.exp(log_prob + log_g), (none**2 / P2)[:18])
    apart = (np.where(X == 0, P, 0.0), np.where(X == 0, 0.0, P))
    with pytest.raises(InvalidWeight, match="no image token has some probability both"):
        fk.infer(toy(laws=apart, guidance=-0.5), fk.SMC(3), seed=0)
    few = ByScale(lambda tokens, *_: (torch.zeros(len(tokens), 1, 3), ()), [2], 3, condition=1)
    with pytest.raises(ValueError, match="laws must be logits of 2 of 3 tokens"):
        fk.infer(ImageTokens(few), fk.SMC(3), seed=0)
    with pytest.raises(InvalidWeight, match="as many numbers below infinity"):
        fk.infer(toy(reward=lambda images: [math.nan] * len(images)), fk.SMC(3), seed=0)


def test_guidance_of_texts_is_the_product_of_whole_texts():
    lm = tiny_lm()
    start = lm.prompt("Once")
    a, b = Language(lm, start), Language(lm, lm.prompt("ran to the sea"))
    both, n = guide(a, b, 0.6), lm.vocab_size
    both.check([(60,), ()], tokens=[61, 70])
    first = both.logw_next(())[:n]
    assert guide(a, b, 0.0) is a
    second = np.array([np.logaddexp.reduce(row[:-1]) for row in both.logw_next_batch([(v,) for v in range(n)])])
    alive = [v for v in range(n) if v not in lm.eos]
    z = np.exp(first + second)[alive].sum()

    @fk.program
    async def two():
        return await fk.sample("two", targeting(lm.tokens(start, 2), both))

    found = np.array([math.exp(fk.infer(two(), fk.SMC(30), seed=seed).log_evidence) / z for seed in range(12)])
    # |z| < 6 on 11 degrees of freedom: a correct engine fails with probability 9e-5; without weights it is 1/z = 0.03.
    assert abs(found.mean() - 1.0) / (found.std(ddof=1) / math.sqrt(len(found))) < 6.0
    assert found.mean() > 0.5
    with pytest.raises(ValueError, match="guidance is a finite number"):
        guide(a, b, math.inf)


# -- the digits that ship ----------------------------------------------------------------------------------------------


def test_patches_are_images_and_back():
    images = (torch.rand(3, 14, 14, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    assert torch.equal(images_of(tokens_of(images)), images)
    assert images_of(torch.tensor([[8] + [0] * 48]))[0, 0, 0] == 1  # the first of four pixels is the highest bit


def test_digits_are_drawn_and_are_their_own_judge():
    posterior = fk.infer(digit_tokens(3), fk.ImportanceSampling(40), seed=0)
    images = np.stack(posterior.values)
    assert isinstance(posterior.values[0], Picture)
    assert (tokens_of(images).numpy() == [value.tokens for value in posterior.values]).all()
    judged = digit_class_log_probs(images)
    np.testing.assert_allclose(np.exp(judged).sum(1), 1.0)
    assert (judged.argmax(1) == 3).mean() > 0.85
    log_prob, _ = forced(digit_tokens(3), np.stack([value.tokens for value in posterior.values])[:3])
    other, _ = forced(digit_tokens(8), np.stack([value.tokens for value in posterior.values])[:3])
    np.testing.assert_allclose(log_prob - other, judged[:3, 3] - judged[:3, 8], atol=1e-3)


@fk.program
async def row(lm):
    return await fk.sample("row", lm.tokens(lm.prompt([19]), 7))


def test_the_language_model_of_digits_is_one_like_any_other():
    lm = digit_lm()
    text = fk.infer(row(lm), fk.ImportanceSampling(2), seed=0).values[0]
    assert len(text.tokens) == 7
    with pytest.raises(ValueError, match="a digit is one of"):
        digit_tokens(10)
    with pytest.raises(ValueError, match="guidance needs a digit"):
        digit_tokens(guidance=1.0)


def test_the_record_says_how_good_they_are():
    told = shipped.record()
    assert {"about", "license", "data", "training", "sha256", "parameters"} <= set(told)
    assert told["measured"]["nats_given_class"] < 27.4
    assert told["measured"]["nats_without"] < 31.5
    assert told["measured"]["accuracy_of_likeliest_class"] > 0.92


def test_training_writes_weights_and_a_record(training):
    import data
    import digits_raster
    import loop

    images = (torch.rand(12, 1, 28, 28, generator=torch.Generator().manual_seed(0)) < 0.3).float() * 2.0 - 1.0
    some = data.Digits(images, torch.arange(12) % 10)
    assert digits_raster.tokens(some).shape == (12, 49)
    path = digits_raster.main(some, some, loop.Settings(2, batch=4, save_every=1), training / "weights")
    told = json.loads(path.with_suffix(".json").read_text())
    assert told["parameters"] == 155008
    assert told["measured"]["nats_given_class"] > 50.0
