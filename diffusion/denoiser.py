"""Denoisers: what a network predicts at a level of noise, as an estimate of the data."""

from __future__ import annotations

from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch

from ..ppl.cost import charge, rows
from ..ppl.errors import NotRecorded
from ..ppl.values.canonical import form
from ..ppl.values.recording import Unkept, current, form_of, served
from .laws import Laws

Prediction = Literal["epsilon", "sample", "v", "flow", "logits", "log_ratios"]
"""What a network predicts: the noise ε, the data x, v = α·ε − σ·x, the velocity ε − x; of tokens their logits, or by
how much likelier the noisy data were with each of them, log q(x with v at l) − log q(x)."""


class Denoiser(Protocol):
    """A network that predicts from a noisy batch.

    ``evaluations`` is how often one call runs it per particle; 0 where the denoiser charges its cost itself.
    """

    prediction: Prediction
    evaluations: int

    def __call__(self, x: Any, time: Any, condition: Any) -> Any:
        """Return the prediction (n, …) for noisy ``x`` (n, …) at times (n,), under a batch of n conditions or None.

        Each particle may be at a level of its own.
        """


class Network:
    """Any function of ``(x, time)`` or ``(x, time, condition)`` as a denoiser.

    Args:
        fn: takes a batch (n, …), its times (n,) and, where there are conditions, these.
        prediction: what it returns.
        soft: of tokens, whether it takes them one-hot, too, as (n, L, V) of numbers: gradients then go through it.

    Raises ValueError for a prediction that is not one of `Prediction`.

    >>> denoiser = Network(lambda x, time: torch.zeros_like(x), "epsilon")
    >>> denoiser(torch.ones(2, 3), torch.ones(2), None).shape
    torch.Size([2, 3])
    """

    evaluations = 1

    def __init__(self, fn: Any, prediction: Prediction, *, soft: bool = False) -> None:
        if prediction not in get_args(Prediction):
            raise ValueError(f"prediction must be one of {', '.join(get_args(Prediction))}, not {prediction!r}")
        self._fn = fn
        self.prediction: Prediction = prediction
        self.soft = soft

    @property
    def journal_key(self) -> Any:
        """What tells it from other denoisers in a journal: its function or network."""
        return (self.prediction, self._fn)

    def __call__(self, x: Any, time: Any, condition: Any) -> Any:
        """Return the prediction; what libraries' networks give, with ``sample`` or ``logits``, is unwrapped."""
        out = self._fn(x, time) if condition is None else self._fn(x, time, condition)
        return getattr(out, "logits", getattr(out, "sample", out))


class Guided:
    """Classifier-free guidance: γ·prediction(condition) + (1 − γ)·prediction(no condition), in one call of 2n rows.

    Ho and Salimans (2022), arXiv:2207.12598. This is what pipelines do. The law that it samples is not
    p(x)^(1−γ)·p(x|c)^γ; `guide` in `feynkac.diffusion.correctors` corrects for that.
    """

    def __init__(self, denoiser: Denoiser, gamma: float, unconditional: Any) -> None:
        self.evaluations = 2 * denoiser.evaluations
        self._denoiser = denoiser
        self.gamma = gamma
        self.unconditional = unconditional
        self.prediction: Prediction = denoiser.prediction

    @property
    def journal_key(self) -> Any:
        """What tells it from other denoisers in a journal."""
        return (self._denoiser, self.gamma, self.unconditional)

    def __call__(self, x: Any, time: Any, condition: Any) -> Any:
        """Return the guided prediction. Raises ValueError where there is no condition to guide to."""
        if condition is None:
            raise ValueError("guidance needs a condition to guide to: give the model one, or leave Guided out")
        empty = repeat(self.unconditional, len(x))
        with rows([*range(len(x))] * 2):
            both = self._denoiser(torch.cat([x, x]), torch.cat([time, time]), join([condition, empty]))
        conditional, free = both.chunk(2)
        return free + self.gamma * (conditional - free)


def predict(denoiser: Denoiser, x: Any, time: Any, condition: Any) -> Any:
    """Return what a denoiser predicts, or what a journal knows that it did; each row of a batch counts for itself.

    A prediction that a gradient goes through is made anew.
    """
    if current() is None or torch.is_grad_enabled():
        return _evaluated(denoiser, x, time, condition)

    def make(places: list[int]) -> list[Any]:
        index = torch.as_tensor(places, device=x.device)
        out = _evaluated(denoiser, x[index], time[index], select(condition, index))
        good = out.shape[1 : x.dim()] == x.shape[1:]  # others are refused by whoever asks
        return [_numpy(row) if good and bool((row < torch.inf).all()) else Unkept(row) for row in out]

    asked = form_of(denoiser, f"predictions of a {type(denoiser).__name__}")
    given = [None] * len(x) if condition is None else [select(condition, [i]) for i in range(len(x))]
    parts = [form((_numpy(x[i]), _numpy(time[i]), given[i])) for i in range(len(x))]
    try:
        found = served("prediction", [None if asked is None else [asked, part] for part in parts], make)
    except NotRecorded as error:
        error.row = None  # finished particles are not in this batch, so that it says nothing
        raise
    dtype = x.dtype if x.is_floating_point() else None  # that of logits is their own
    return torch.stack([torch.as_tensor(row, dtype=dtype, device=x.device) for row in found])


def _evaluated(denoiser: Denoiser, x: Any, time: Any, condition: Any) -> Any:
    out = denoiser(x, time, condition)
    if denoiser.evaluations:
        charge(model_calls=1, nfe=np.full(len(x), denoiser.evaluations))
    return out


def _numpy(tensor: Any) -> Any:
    """Return a tensor as an array, in float32 where NumPy has not got its type."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def estimate(prediction: Prediction, out: Any, x: Any, alpha: Any, sigma: Any) -> Any:
    """Return the estimate of the data, E[x_data | x], from a network's output; all batches of one shape."""
    if prediction == "sample":
        return out
    if prediction == "epsilon":
        return (x - sigma * out) / alpha
    if prediction == "v":
        return (alpha * x - sigma * out) / (alpha**2 + sigma**2)
    return (x - sigma * out) / (alpha + sigma)


def select(batch: Any, index: Any) -> Any:
    """Return rows of a batch: a tensor, laws, None, or a dict, list or tuple of batches."""
    if batch is None:
        return None
    if isinstance(batch, Laws):
        return batch.select(torch.as_tensor(index, device=batch.likeliest.device))
    if isinstance(batch, torch.Tensor):
        return batch[torch.as_tensor(index, device=batch.device)]
    if isinstance(batch, dict):
        return {name: select(part, index) for name, part in batch.items()}
    return type(batch)(select(part, index) for part in batch)


def join(batches: Any) -> Any:
    """Return batches of one structure joined along their rows."""
    first = batches[0]
    if first is None:
        return None
    if isinstance(first, Laws):
        return Laws.join(batches)
    if isinstance(first, torch.Tensor):
        return torch.cat(list(batches))
    if isinstance(first, dict):
        return {name: join([batch[name] for batch in batches]) for name in first}
    return type(first)(join(parts) for parts in zip(*batches))


def repeat(row: Any, n: int) -> Any:
    """Return a batch of n equal rows from a batch of one."""
    return select(row, torch.zeros(n, dtype=torch.long))
