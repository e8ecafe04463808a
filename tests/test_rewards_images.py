"""Rewards of images: CLIP and its heads on tiny random models, BRISQUE, and who needs a gradient."""

from __future__ import annotations

import json

import numpy as np
import pytest

import feynkac as fk

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from random_models import random_weights  # noqa: E402

from feynkac.diffusion import (  # noqa: E402
    Aesthetic,
    ClipScore,
    Diffusion,
    Mixture,
    Schedule,
    Steering,
    tilt,
)
from feynkac.diffusion.rewards.base import as_reward  # noqa: E402
from feynkac.diffusion.rewards.images import colours, fitted  # noqa: E402
from feynkac.models.testing import tiny_tokenizer  # noqa: E402
from feynkac.ppl.errors import ContextOverflow, FeynkacError, InvalidWeight, Unsupported  # noqa: E402


def tiny_clip(seed=0):
    """A random CLIP of its own configuration, whose vectors differ enough for a test to notice."""
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config=small | {"vocab_size": 300, "eos_token_id": 2, "max_position_embeddings": 20},
        vision_config=small | {"image_size": 24, "patch_size": 8},
        projection_dim=8,
    )
    return random_weights(lambda: transformers.CLIPModel(config), seed, std=0.3).eval()


def processor():
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    return CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size=24)


def photograph(height, width, seed=0):
    """Smooth colours (height, width, 3), uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 20.0
    waves = [np.sin(rng.normal() * x + rng.normal() * y + k) for k in range(3)]
    return np.uint8(127.5 + 127.5 * np.stack(waves, -1))


def as_images(*pixels):
    return torch.stack([torch.tensor(one).permute(2, 0, 1) / 127.5 - 1.0 for one in pixels])


@pytest.fixture(scope="module")
def clip():
    return tiny_clip()


# -- CLIP -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(24, 24), (40, 64), (77, 50), (12, 18)])
def test_similarity_is_that_of_transformers_own_model_and_processor(clip, shape):
    pictures = [photograph(*shape, seed) for seed in range(3)]
    text = "the sea said no"
    with torch.no_grad():
        seen = processor()(images=pictures, return_tensors="pt")["pixel_values"]
        own = clip(pixel_values=seen, **tiny_tokenizer()([text], return_tensors="pt")).logits_per_image[:, 0]
    expected = own / clip.logit_scale.exp()
    assert expected.std() > 0.01
    images = as_images(*pictures)
    found = ClipScore(clip, tiny_tokenizer(), text)(images)
    assert torch.allclose(found, expected, atol=0.01)  # Pillow rounds to whole colours on its way
    unit = ClipScore(clip, tiny_tokenizer(), text, value_range=(0.0, 1.0), batch=2)(images / 2 + 0.5)
    assert torch.allclose(unit, found, atol=1e-5)


def test_resizing_agrees_with_pillow():
    pixels = np.random.default_rng(0).integers(0, 256, (61, 40, 3)).astype(np.uint8)  # fine grain, to be averaged
    seen = processor()(images=[pixels], return_tensors="pt", do_normalize=False)["pixel_values"]
    found = fitted(colours(as_images(pixels), (-1.0, 1.0), "r"), 24)
    assert (found.clamp(0, 1) - seen).abs().max() < 2.0 / 255  # Pillow rounds, and clips


def test_grey_images_are_colours_that_are_alike(clip):
    grey = as_images(photograph(28, 28))[:, :1]
    score = ClipScore(clip, tiny_tokenizer(), "the hill")
    assert torch.equal(score(grey), score(grey.expand(-1, 3, -1, -1)))
    assert torch.equal(score(grey), score(grey[:, 0]))
    with pytest.raises(ValueError, match=r"'clip_score' takes images .* not \(1, 2, 28, 28\)"):
        score(grey.expand(-1, 2, -1, -1))


def test_gradients_are_those_of_finite_differences(clip):
    score = ClipScore(clip.double(), tiny_tokenizer(), "the rain")
    try:
        images = as_images(photograph(30, 30), photograph(30, 30, 1)).double().requires_grad_(True)
        (gradient,) = torch.autograd.grad(score(images).sum(), images)
        rng = torch.Generator().manual_seed(0)
        step = torch.randn(images.shape, generator=rng, dtype=torch.float64)
        with torch.no_grad():
            change = (score(images + 1e-3 * step) - score(images - 1e-3 * step)) / 2e-3
        assert torch.allclose((gradient * step).flatten(1).sum(1), change, rtol=0.02, atol=1e-4)
        assert change.abs().max() > 0.01
    finally:
        clip.float()


def test_a_whole_wave_is_one_call(clip):
    score = ClipScore(clip, tiny_tokenizer(), "the sea")
    seen = []
    handle = clip.vision_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    try:
        model = fk.diffusion.digits(3, steering=Steering(score, 5.0))
        posterior = fk.infer(model, fk.SMC(4), seed=0)
    finally:
        handle.remove()
    assert seen == [4] * 4
    assert posterior.cost.reward_calls == 16
    assert np.ptp(posterior.log_potential) > 0


def test_a_model_is_loaded_with_its_tokenizer_and_its_colours(clip, tmp_path):
    clip.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(FeynkacError, match=r"no preprocessor_config\.json"):
        ClipScore.from_pretrained(str(tmp_path), "the sea", device="cpu")
    told = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "image_processor_type": "CLIPImageProcessor"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(told))
    images = as_images(photograph(28, 28))
    loaded = ClipScore.from_pretrained(str(tmp_path), "the sea", device="cpu")
    by_hand = ClipScore(clip, tiny_tokenizer(), "the sea", mean=[0.5] * 3, std=[0.25] * 3)
    assert torch.allclose(loaded(images), by_hand(images), atol=1e-6)
    assert not torch.allclose(loaded(images), ClipScore(clip, tiny_tokenizer(), "the sea")(images), atol=1e-4)
    with pytest.raises(FeynkacError, match="cannot be loaded"):
        ClipScore.from_pretrained(str(tmp_path / "nowhere"), "the sea")


def test_a_text_too_long_for_the_model_is_an_error(clip):
    with pytest.raises(ContextOverflow, match="tokens, and the model reads 20"):
        ClipScore(clip, tiny_tokenizer(), "Who are you? " * 20)
    with pytest.raises(ValueError, match="low < high"):
        ClipScore(clip, tiny_tokenizer(), "sea", value_range=(1.0, 1.0))


# -- heads ------------------------------------------------------------------------------------------------------


def write(path, layers):
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in layers.items()}, path)
    return path


def test_the_head_is_applied_to_the_unit_vector(clip, tmp_path):
    torch.manual_seed(0)
    network = torch.nn.Sequential(*[torch.nn.Linear(8, 8) for _ in range(11)], torch.nn.Linear(8, 1))
    layers = {f"layers.{name}": tensor for name, tensor in network.state_dict().items()}  # 10 comes after 9
    path = write(tmp_path / "head.safetensors", layers)
    images = as_images(photograph(40, 30), photograph(40, 30, 1))
    score = Aesthetic(clip, path)
    with torch.no_grad():
        seen = torch.stack([processor()(images=[photograph(40, 30, s)])["pixel_values"][0] for s in (0, 1)] and [
            (one - torch.tensor(fk.diffusion.rewards.clip.MEAN)[:, None, None])
            / torch.tensor(fk.diffusion.rewards.clip.STD)[:, None, None]
            for one in fitted(images / 2 + 0.5, 24)
        ])  # fmt: skip
        vectors = clip.visual_projection(clip.vision_model(pixel_values=seen).pooler_output)
        expected = network(vectors / vectors.norm(dim=1, keepdim=True))[:, 0]
    assert torch.allclose(score(images), expected, atol=1e-5)
    images.requires_grad_(True)
    assert torch.autograd.grad(score(images).sum(), images)[0].abs().sum() > 0


def test_a_linear_head_and_an_activation(clip, tmp_path):
    weight = torch.randn(1, 8, generator=torch.Generator().manual_seed(0))
    images = as_images(photograph(24, 24))
    plain = Aesthetic(clip, write(tmp_path / "a.safetensors", {"weight": weight, "bias": torch.tensor([5.0])}))
    assert torch.allclose(plain(images), plain.embed(images) @ weight[0] + 5.0, atol=1e-6)
    two = {"0.weight": -torch.eye(8), "2.weight": weight}
    bent = Aesthetic(clip, write(tmp_path / "b.safetensors", two), activation=torch.relu)
    assert torch.allclose(bent(images), torch.relu(-bent.embed(images)) @ weight[0], atol=1e-6)


def test_heads_that_do_not_fit_are_named(clip, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no head at .*none\.safetensors"):
        Aesthetic(clip, tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match=r"weight is \(1, 7\), but a layer of 8 inputs"):
        Aesthetic(clip, write(tmp_path / "a.safetensors", {"weight": torch.ones(1, 7)}))
    with pytest.raises(ValueError, match="last layer must have one output, and it has 2"):
        Aesthetic(clip, write(tmp_path / "b.safetensors", {"weight": torch.ones(2, 8)}))
    with pytest.raises(ValueError, match="no head"):
        Aesthetic(clip, write(tmp_path / "c.safetensors", {"bias": torch.ones(1)}))


# -- quality ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quality():
    pytest.importorskip("brisque")
    pytest.importorskip("cv2")
    return fk.diffusion.ImageQuality()


def test_blur_noise_and_flatness_lower_the_quality_of_a_photograph(quality):
    from scipy.ndimage import gaussian_filter

    data = pytest.importorskip("skimage.data")
    clean = data.astronaut()[100:356, 100:356].astype(float)
    noisy = clean + 40 * np.random.default_rng(0).normal(size=clean.shape)
    batch = as_images(*(np.uint8(x.clip(0, 255)) for x in (clean, gaussian_filter(clean, (4, 4, 0)), noisy)))
    scores = quality(batch)
    assert scores.shape == (3,)
    assert scores[0] > scores[1] + 20
    assert scores[0] > scores[2] + 20
    unit = fk.diffusion.ImageQuality((0.0, 1.0))(batch / 2 + 0.5)
    assert torch.allclose(unit, scores, atol=0.5)
    assert quality(batch[:, :1]).shape == quality(batch[:, 0]).shape == (3,)


def test_an_image_of_one_colour_is_an_error_that_names_the_particle(quality):
    images = as_images(photograph(64, 64), np.full((64, 64, 3), 100, np.uint8))
    with pytest.raises(InvalidWeight, match="'image_quality' returned nan for particle 7"):
        as_reward(quality)(images, None, np.array([3, 7]))


# -- who needs a gradient ---------------------------------------------------------------------------------------


def gaussian(steering=None):
    schedule = Schedule.vp(4)
    data = Mixture([1.0], [[0.0, 0.0]], [1.0])
    return Diffusion(data.denoiser(schedule), schedule, (2,), dtype=torch.float64, steering=steering)


def by_numpy(x):
    return np.sum(np.asarray(x), axis=-1)


@pytest.mark.parametrize("what", ["brisque", "feynkac.reward"])
def test_what_needs_a_gradient_refuses_a_reward_that_is_known_to_have_none(what, request):
    reward = request.getfixturevalue("quality") if what == "brisque" else fk.reward(lambda x: float(x.sum()))
    name = as_reward(reward).name
    with pytest.raises(Unsupported, match=rf"'{name}' cannot be differentiated, and Steering\(gradient=True\)"):
        Steering(reward, gradient=True)
    with pytest.raises(Unsupported, match=f"'{name}' cannot be differentiated, and tilt needs its gradient"):
        tilt(gaussian(), reward)
    Steering(reward)  # needs none


def test_what_needs_a_gradient_names_a_numpy_function_when_it_meets_it():
    with pytest.raises(Unsupported, match=r"'by_numpy' cannot be differentiated.*compute it by torch"):
        fk.infer(gaussian(Steering(by_numpy, gradient=True)), fk.SMC(3), seed=0)
    with pytest.raises(Unsupported, match="'by_numpy' cannot be differentiated"):
        fk.infer(tilt(gaussian(), by_numpy), fk.SMC(3), seed=0)
    posterior = fk.infer(gaussian(Steering(by_numpy)), fk.SMC(3), seed=0)
    assert posterior.log_potential == pytest.approx([float(value.sum()) for value in posterior.values])


def test_an_error_of_the_reward_itself_stays_what_it_is():
    def broken(x):
        raise RuntimeError("numpy is not to blame")

    with pytest.raises(RuntimeError, match="not to blame"):
        fk.infer(gaussian(Steering(broken)), fk.SMC(2), seed=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_name_reward_and_particle(bad):
    def odd(x):
        return torch.where(torch.arange(len(x)) == 2, bad, 0.0)

    with pytest.raises(InvalidWeight, match=r"'odd' returned (nan|inf) for particle 2"):
        fk.infer(gaussian(Steering(odd)), fk.SMC(4), seed=0)
