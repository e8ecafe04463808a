"""Rows and scales of images inside programs: the same law, cost and evidence as the model's own."""

import itertools
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import feynkac as fk  # noqa: E402
from feynkac.models import ByScale, ByToken, ImageTokens, digit_tokens  # noqa: E402
from feynkac.models.images import begin, draw  # noqa: E402
from feynkac.models.testing import tiny_lm  # noqa: E402
from feynkac.ppl.errors import JournalWarning  # noqa: E402
from laws import Z_LIMIT, z_score  # noqa: E402

ALL = np.array(list(itertools.product(range(3), repeat=3)))
X, Y, W = ALL.T
RNG = np.random.default_rng(5)
FIRST, NEXT = RNG.normal(size=(2, 3)), RNG.normal(size=(2, 3, 2, 3))


def network(tokens, memory, condition):
    """A first token, and two more that are independent given it, under a condition or none."""
    network.calls.append(len(tokens))
    if not tokens.shape[1]:
        return torch.tensor(FIRST)[condition][:, None], ()
    return torch.tensor(NEXT)[condition, tokens[:, 0]], ()


network.calls = []


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


LAWS = [softmax(FIRST[c])[X] * softmax(NEXT[c])[X, 0, Y] * softmax(NEXT[c])[X, 1, W] for c in (0, 1)]


def toy(condition=1, **settings):
    return ImageTokens(ByScale(network, (1, 2), 3, condition=condition, unconditional=0), **settings)


def forced(model, string):
    """log p and log q of the steps to a string, each from the kernels, and the drawing."""
    drawing, keys = begin(model), fk.keys.fold(fk.keys.root(0), np.arange(1))
    log_p = log_q = 0.0
    for tokens in (string[:1], string[1:]):
        stroke = draw(drawing)
        there = type(drawing)(model, model.advance(drawing.canvas, keys, [tokens]).state)
        log_p += stroke.log_prob_batch([stroke], [there])[0]
        own = getattr(stroke, "log_proposal_batch", stroke.log_prob_batch)
        log_q += own([stroke], [there])[0]
        drawing = there
    return log_p, log_q


def test_steps_have_the_law_of_the_model():
    found = np.array([forced(toy(), string) for string in ALL])
    np.testing.assert_allclose(np.exp(found), np.stack([LAWS[1]] * 2, 1))
    product = np.array([forced(toy(guidance=2.0, way="exact"), string) for string in ALL])
    np.testing.assert_allclose(np.exp(product[:, 0]), LAWS[1] ** 3 * LAWS[0] ** -2.0)
    usual = np.array([forced(toy(guidance=2.0), string) for string in ALL])
    np.testing.assert_allclose(usual[:, 0], product[:, 1])
    assert np.exp(usual[:, 0]).sum() == pytest.approx(1.0)


def test_what_is_drawn_is_what_the_model_draws_and_says_its_probability():
    model, keys = toy(guidance=0.3, way="exact"), fk.keys.fold(fk.keys.root(3), np.arange(9))
    strokes = [draw(begin(model))] * 9
    first = strokes[0].sample_batch(strokes, keys)
    native = model.advance(model.start(keys).state, keys)
    np.testing.assert_array_equal([d.tokens for d in first.values], native.choices)
    np.testing.assert_allclose(first.log_prob - first.log_proposal, native.log_potential)
    # Images that are not as far share a request of the same key; whole ones stay.
    mixed = [draw(first.values[0]), strokes[1], draw(first.values[2])]
    assert len({stroke.batch_key for stroke in mixed}) == 1
    second = mixed[0].sample_batch(mixed, keys[:3])
    assert [d.step for d in second.values] == [2, 1, 2]
    np.testing.assert_allclose(mixed[0].log_prob_batch(mixed, second.values), second.log_prob)
    np.testing.assert_allclose(mixed[0].log_proposal_batch(mixed, second.values), second.log_proposal)
    whole = second.values[0]
    again = draw(whole).sample_batch([draw(whole)], keys[:1])
    assert again.values[0] is whole
    assert again.log_prob[0] == again.log_proposal[0] == 0.0
    # What is no step further has no probability: of another past, of a step too few or too many.
    other = next(d for d in first.values if d.tokens[0] != whole.tokens[0])
    tried = [draw(other), draw(other), draw(begin(model)), draw(whole), draw(whole)]
    values = [whole, other, whole, whole, other]
    assert tried[0].log_prob_batch(tried, values).tolist() == [-np.inf, -np.inf, -np.inf, 0.0, -np.inf]


MODELS = (toy(0), toy(1, guidance=1.0, way="exact"))


@fk.program
async def chosen():
    """Which model draws is drawn, too; the second token is rewarded as soon as it is there."""
    which = await fk.sample("which", fk.dist.Bernoulli(0.4))
    drawing = begin(MODELS[which])
    drawing = await fk.sample("first", draw(drawing))
    await fk.factor("early", 0.7 * float(drawing.tokens[0]))
    drawing = await fk.sample("rest", draw(drawing))
    await fk.factor("late", 0.9 * float(drawing.tokens[1]) - 0.7 * float(drawing.tokens[0]))
    return which, tuple(drawing.tokens.tolist())


MASS = np.exp(0.9 * Y) * np.stack([0.6 * LAWS[0], 0.4 * LAWS[1] ** 2 / LAWS[0]])


@pytest.mark.parametrize("engine", [fk.SMC(20, ess_threshold=1.0), fk.ImportanceSampling(20)], ids=repr)
def test_a_program_has_the_evidence_and_the_law_of_what_it_says(engine):
    """E[Ẑ]/Z and E[Ẑ f]/Z by z-scores over 80 runs: 4 comparisons in all, each false with probability 2e-5."""
    runs = fk.infer([chosen()] * 80, engine, seed=2)
    z = np.exp([run.log_evidence for run in runs]) / MASS.sum()
    assert abs(z_score(z, 1.0)) < Z_LIMIT
    moments = z * np.array([run.expect(lambda v: v[0] * (1 + v[1][0] + v[1][1] * v[1][2])) for run in runs])
    assert abs(z_score(moments, (MASS[1] * (1 + X + Y * W)).sum() / MASS.sum())) < Z_LIMIT


@pytest.mark.slow
def test_a_chain_over_such_programs_has_their_law():
    """Forced images on other pasts are weighed right; 20 chains, one comparison false with probability 2e-5."""
    runs = [fk.infer(chosen(), fk.SuffixMH(40, burn_in=20), seed=seed) for seed in range(20)]
    truth = (MASS[1] * (1 + X)).sum() / MASS.sum()
    assert abs(z_score([run.expect(lambda v: v[0] * (1 + v[1][0])) for run in runs], truth)) < Z_LIMIT


@fk.program
async def alone(model):
    drawing = begin(model)
    while not drawing.done:
        drawing = await fk.sample("row", draw(drawing))
        await fk.factor("ink", 0.1 * float(drawing.tokens[-1]))
    return drawing


def test_all_particles_of_a_step_share_a_call_and_cost_is_the_models():
    network.calls.clear()
    posterior = fk.infer(alone(toy()), fk.SMC(6), seed=0)
    assert network.calls == [6, 6]
    native = fk.infer(toy(), fk.SMC(6), seed=0)
    for unit in ("model_calls", "nfe", "tokens_out"):
        assert getattr(posterior.cost, unit) == getattr(native.cost, unit) > 0
    lm = ImageTokens(ByToken(tiny_lm(), tiny_lm().prompt("An"), (2, 2), (70, 80, 90)))
    assert len(fk.infer(alone(lm), fk.SMC(3), seed=0).values[0].tokens) == 4


def test_a_program_with_drawings_is_kept_in_a_file(tmp_path):
    posterior = fk.infer(alone(digit_tokens(4)), fk.SMC(3), seed=0)
    assert posterior.values[0].image.shape == (14, 14)
    with pytest.raises(ValueError, match="read-only"):
        posterior.values[0].image[0] = 1.0
    posterior.save(tmp_path / "run")
    again = fk.Posterior.load(tmp_path / "run")
    half = [p.trace(1)["row[2]"].value for p in (posterior, again)]
    for mine, theirs in [*zip(posterior.values, again.values), half]:
        assert (mine.step, mine.done) == (theirs.step, theirs.done)
        np.testing.assert_array_equal(mine.tokens, theirs.tokens)
    assert (half[1].step, half[1].done, len(half[1].tokens)) == (3, False, 21)
    assert repr(half[1]) == "<image of a file after 3 steps>"
    for act in (draw, lambda drawing: drawing.image):
        with pytest.raises(ValueError, match="from a file has no model"):
            act(half[1])


def test_what_cannot_be_drawn_in_a_program_is_refused():
    with pytest.raises(ValueError, match="a model with a reward weighs images itself"):
        begin(toy(reward=lambda images: images.sum(1)))
    with pytest.raises(TypeError, match="begin takes a model of image tokens"):
        begin(tiny_lm())


def test_a_journal_says_that_it_does_not_keep_them(tmp_path):
    with pytest.warns(JournalWarning, match="does not keep draws of a Stroke"):
        kept = fk.infer(alone(toy()), fk.SMC(3), seed=0, journal=tmp_path / "run.fkj")
    plain = fk.infer(alone(toy()), fk.SMC(3), seed=0)
    assert kept.log_evidence == plain.log_evidence
    assert math.isfinite(plain.log_evidence)
