"""Small convolutional classifiers of 28×28 digits: one to reward by, another to judge by."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn


class Classifier(nn.Module):  # type: ignore[misc]
    """A network from images (n, 1, 28, 28) in [−1, 1] to the logits (n, 10) of their classes, by way of features."""

    body: nn.Module
    head: nn.Module

    def features(self, images: Any) -> Any:
        """Return the features (n, d) that the classes are read from."""
        return self.body(images)

    def forward(self, images: Any) -> Any:
        """Return logits (n, 10)."""
        return self.head(self.features(images))

    def log_prob(self, classes: int | Iterable[int]) -> Callable[[Any], Any]:
        """Return a reward: the log-probability (n,) that an image is of a class, or of any of several.

        It is differentiable. Raises ValueError for a class that does not exist.

        >>> import torch
        >>> network = RewardNet()
        >>> images = torch.zeros(3, 1, 28, 28)
        >>> both = network.log_prob(4)(images).exp() + network.log_prob(7)(images).exp()
        >>> torch.allclose(network.log_prob([4, 7])(images).exp(), both)
        True
        """
        chosen = [classes] if isinstance(classes, int) else list(classes)
        if not chosen or not all(0 <= label <= 9 for label in chosen):
            raise ValueError(f"classes are digits, 0…9, and at least one of them, not {classes!r}")

        def log_prob(images: Any) -> Any:
            return torch.log_softmax(self(images), -1)[:, chosen].logsumexp(-1)

        return log_prob


class RewardNet(Classifier):
    """Two 5×5 convolutions of 16 and 32 channels; 288 features."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 5, padding=2), nn.SiLU(), nn.AvgPool2d(2),
            nn.Conv2d(16, 32, 5, padding=2), nn.SiLU(), nn.AvgPool2d(4), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(288, 10)


class JudgeNet(Classifier):
    """Five 3×3 convolutions with strides and group norm; 64 features."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after, stride in ((1, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1)):
            layers += [nn.Conv2d(before, after, 3, stride, 1), nn.GroupNorm(8, after), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.MaxPool2d(7), nn.Flatten())
        self.head = nn.Linear(64, 10)
