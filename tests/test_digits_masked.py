"""The masked diffusion of digits that ships: what it knows, what it completes, and what weighs it exactly."""

import itertools
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import feynkac as fk  # noqa: E402
from feynkac.diffusion import NO_DIGIT, AtRandom, InOrder, Steering, digits_masked, guide  # noqa: E402
from feynkac.diffusion.shipped.masked_digits import levels, pictures  # noqa: E402
from feynkac.diffusion.shipped.store import load, record  # noqa: E402
from laws import Z_LIMIT, z_score  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def real():
    """200 digits that no network was trained on, 20 of each class."""
    kept = np.load(ROOT / "tests" / "data" / "digits.npz")
    return torch.tensor(kept["images"][:, None] / 127.5 - 1.0, dtype=torch.float32), torch.tensor(kept["labels"]).long()


def judged(values):
    return fk.diffusion.digit_judge()(torch.tensor(np.stack(values))).argmax(1).numpy()


def gaps(image, *pixels):
    """Return an image whose tokens at some places are not known."""
    tokens = levels(image[None])
    tokens[0, list(pixels)] = 4
    return pictures(tokens)[0].numpy()


def test_tokens_and_pictures_are_each_others_inverse(real):
    tokens = levels(real[0])
    tokens[torch.rand(tokens.shape, generator=torch.Generator().manual_seed(0)) < 0.3] = 4
    assert torch.equal(levels(pictures(tokens)), tokens)
    for network in (fk.diffusion.digit_classifier(), fk.diffusion.digit_judge()):  # which read what it draws
        assert (network(pictures(levels(real[0]))).argmax(1) == real[1]).float().mean() > 0.93


def test_the_bound_of_digits_held_out_is_as_on_record(real, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "training"))
    from digits_masked import bound

    told, tokens, network = record("digits_masked")["measured"], levels(real[0]), load("digits_masked")
    found = {}
    for name, classes in (("class", real[1]), ("none", torch.full_like(real[1], NO_DIGIT))):
        with torch.no_grad():
            found[name] = bound(network, tokens, classes, torch.Generator().manual_seed(0))
        # 2 comparisons at |z| < 4.265: 200 other digits than the record's 1,000, of the same kind, 4e-5
        assert abs(z_score(found[name].numpy(), told[f"nats_given_{name}"])) < Z_LIMIT
    assert found["class"].mean() + 2.0 < found["none"].mean()


def test_a_class_is_drawn_as_asked():
    classes = list(range(10)) * 4
    values = fk.infer(digits_masked(AtRandom(14), classes), fk.ImportanceSampling(40), seed=0).values
    assert values[0].shape == (1, 28, 28)
    assert np.allclose((np.stack(values) + 1.0) * 1.5 % 1.0 % 0.9999, 0.0, atol=1e-3)  # four grey levels
    assert (judged(values) == classes).mean() >= 0.6


def test_half_a_digit_is_completed_and_what_is_known_stays(real):
    images, labels = real
    image = pictures(levels(images[labels == 3][:1]))[0].numpy()
    upper = np.where(np.arange(28)[:, None] < 14, image, np.nan)
    found = fk.infer(digits_masked(AtRandom(7), 3, template=upper), fk.ImportanceSampling(8), seed=0).values
    assert all((value[:, :14] == image[:, :14]).all() and np.isfinite(value).all() for value in found)
    assert len({value.tobytes() for value in found}) > 1
    assert (judged(found) == 3).mean() >= 0.5


@pytest.mark.slow
def test_guidance_is_exact(real):
    # A 4 of which all but two tokens are known, so that the product of powers can be counted up.
    places, gamma = (90, 104), 2.0
    template = gaps(real[0][real[1] == 4][0], *places)
    tokens = levels(torch.from_numpy(template)[None])
    combinations = torch.tensor(list(itertools.product(range(4), repeat=2)))
    law = torch.zeros(2, len(combinations), dtype=torch.float64)
    for i, place in enumerate(places):
        seen = tokens.repeat(len(combinations), 1)
        seen[:, list(places[:i])] = combinations[:, :i]
        for j, label in enumerate((4, NO_DIGIT)):
            out = load("digits_masked")(seen, None, torch.full((len(seen),), label))[:, place, :4]
            law[j] += out.double().log_softmax(-1).gather(1, combinations[:, i : i + 1])[:, 0]
    weight = (gamma * law[0] + (1.0 - gamma) * law[1]).exp().numpy()
    model = guide(digits_masked(InOrder("left"), 4, template=template), gamma, torch.tensor([NO_DIGIT]))
    runs = fk.infer([model] * 60, fk.SMC(4), seed=0)
    z = np.exp([run.log_evidence for run in runs])
    mean = [np.exp(run.log_evidence) * run.expect(np.mean) for run in runs]
    whole = tokens.repeat(len(weight), 1)
    whole[:, list(places)] = combinations
    # 2 comparisons at |z| < 4.265, 4e-5
    assert abs(z_score(z, weight.sum())) < Z_LIMIT
    assert abs(z_score(mean, weight @ pictures(whole).double().mean((1, 2, 3)).numpy())) < Z_LIMIT


def test_rewards_of_images_steer_it(real):
    upper = np.where(np.arange(28)[:, None] < 14, real[0][real[1] == 9][0], np.nan)
    light = Steering(lambda images: 100.0 * images.flatten(1).mean(1))
    plain, bright = (
        fk.infer(digits_masked(AtRandom(7), template=upper, steering=by), fk.SMC(12), seed=0).expect(np.mean)
        for by in (None, light)
    )
    assert bright > plain + 0.02


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"digit": 10}, "one of 0…9"),
        ({"template": np.zeros((14, 14))}, r"an image \(1, 28, 28\), not \(14, 14\)"),
        ({"template": np.full((28, 28), 255.0)}, "from −1"),
        ({"template": np.zeros((28, 28))}, "with a mask"),
    ],
)
def test_bad_requests_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        digits_masked(**settings)


@pytest.mark.parametrize("digit", [True, 1.5, [1.5], [], 10, -1, [3, True]])
def test_classes_that_are_no_digits_are_refused_by_name(digit):
    for make in (lambda: fk.diffusion.digits_masked(digit=digit), lambda: fk.diffusion.digits(5, digit)):
        with pytest.raises(ValueError, match="a digit is one of 0…9"):
            make()
    if not isinstance(digit, list):
        with pytest.raises(ValueError, match="a digit is one of 0…9"):
            fk.models.digit_tokens(digit)
