"""What a run costs on hardware, from the shape of its model and of its texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..base.checks import positive
from ..results.posterior import Posterior
from .curves import independent

Floats = NDArray[np.float64]
_INTENSITY = 562.5
"""Floating-point operations that a byte of memory traffic costs (FLOPs per byte of a B200), times bytes of a number."""


@dataclass(frozen=True)
class Kinetics:
    """The cost of n answers of L tokens to a prompt of c tokens, where attention reads memory: the kinetics model.

    compute = n·(2P·L + 2(2c + L)·L·H·d) and memory = 562.5·2·(2c + n·L)·L·H_kv·d, in equivalents of FLOPs, with d the
    head's size times the number of layers. Prompts are shared, and reads of parameters left out. So long answers are
    dear by memory, which grows as L², where a count of parameters sees none of it.

    Attributes:
        parameters: P.
        heads: H, of queries.
        kv_heads: H_kv.
        width: d = size of a head × layers.

    Source: Kinetics: Rethinking Test-Time Scaling Laws (2025), arXiv:2506.05333.
    Guarantee: closed form; a model of costs, not a measurement.
    Engines: all: n is the number of particles, L their length.
    Not shown here: it describes accelerators, and none was at hand. By it one answer of 16,000 tokens reads 16
        times the memory of 16 answers of 1,000.

    >>> cost = Kinetics(parameters=1e9, heads=16, kv_heads=8, width=3584)
    >>> cost(prompt=100, length=1000, n=4)
    (8550502400000.0, 135475200000000.0)
    """

    parameters: float
    heads: int
    kv_heads: int
    width: int

    def __post_init__(self) -> None:
        for name in ("parameters", "heads", "kv_heads", "width"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is positive, not {getattr(self, name)!r}")

    @classmethod
    def of(cls, model: Any) -> Kinetics:
        """Return the costs of a model of transformers, or of an lm that runs one (``lm.model``).

        Raises TypeError for what has no configuration and weights to count, such as a model behind a server.
        """
        inner = model if hasattr(model, "config") else getattr(model, "model", model)
        if not hasattr(inner, "config") or not hasattr(inner, "parameters"):
            raise TypeError(
                f"{type(model).__name__} has no configuration and weights here: give Kinetics its four numbers"
            )
        config = inner.config.get_text_config()
        heads = config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        count = sum(p.numel() for p in inner.parameters())
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        return cls(count, heads, kv_heads, size * config.num_hidden_layers)

    def __call__(self, prompt: float, length: ArrayLike, n: int | None = None) -> tuple[float, float]:
        """Return (compute, memory) of n answers of one length, or of answers of lengths (n,), in FLOPs.

        The shared prompt is read as long as the longest answer is written.

        >>> cost = Kinetics(parameters=1e9, heads=16, kv_heads=8, width=3584)
        >>> cost(100, [1000] * 4) == cost(100, 1000, n=4)
        True
        """
        lengths = np.asarray(length, float)
        if lengths.ndim == 0:
            positive("n", 1 if n is None else n)
            lengths = np.full(1 if n is None else n, float(lengths))
        elif n is not None:
            raise ValueError("n is the number of answers of one length, so it goes without a row of lengths")
        if lengths.ndim != 1 or not len(lengths) or not (lengths >= 0).all() or not prompt >= 0:
            raise ValueError(f"prompt and lengths are numbers of tokens, not {prompt!r} and {length!r}")
        squares = float((lengths**2).sum())
        scored = 2 * prompt * lengths.sum() + squares  # twice the positions that attention looks at
        read = 2 * prompt * lengths.max() + squares
        compute = 2 * self.parameters * lengths.sum() + 2 * scored * self.heads * self.width
        return float(compute), float(_INTENSITY * 2 * read * self.kv_heads * self.width)

    def run(self, posterior: Posterior) -> tuple[float, float]:
        """Return (compute, memory) of the independent runs of a posterior whose values are texts of one prompt.

        Raises ValueError for runs that were resampled or belong to a Markov chain, since what they dropped is not among
        the values (`steps` counts it), for prompts that differ, and TypeError for values that are no texts.
        """
        independent(posterior)
        return self(_prompt(posterior), [len(text.tokens) for text in posterior.values])

    def steps(self, posterior: Posterior) -> Floats:
        """Return (compute, memory) of each step of a particle filter, (T, 2), by the tokens that its step drew.

        Their sum is what the run cost, with what it drew and dropped. As if the particles that go on had one length,
        which is the mean of what they drew, and each its own memory; n answers of one length cost what a call says.

        Raises ValueError for several chains, which share a ledger, and for steps that do not know what they cost, as
        those of Markov chains and searches; TypeError for values that are no texts.
        """
        history = posterior.steps
        if len(posterior.chains) > 1 or not history or any(step.cost is None for step in history):
            raise ValueError(f"{posterior.engine} does not say what each of its steps cost, or has several chains")
        prompt, drawn, length, found = _prompt(posterior), 0, 0.0, []
        for before, step in zip((None, *history), history):
            assert step.cost is not None
            going = len(step.done) if before is None else int((~before.done[step.ancestors]).sum())
            more = (step.cost.tokens_out - drawn) / max(going, 1)
            own = going * ((length + more) ** 2 - length**2)  # twice the positions of its own that attention looks at
            scored, read = 2 * prompt * going * more + own, 2 * prompt * more + own
            compute = 2 * self.parameters * going * more + 2 * scored * self.heads * self.width
            found.append((compute, _INTENSITY * 2 * read * self.kv_heads * self.width))
            drawn, length = step.cost.tokens_out, length + more
        return np.array(found)


def _prompt(posterior: Posterior) -> int:
    """Return the length of the prompt that all texts of a posterior share."""
    texts = posterior.values
    if not texts or not all(hasattr(text, "prompt_tokens") for text in texts):
        raise TypeError("the values of the posterior are no texts of a language model: give prompt and lengths")
    if len({tuple(text.prompt_tokens) for text in texts}) > 1:
        raise ValueError("the texts have different prompts, which are not shared: add up the cost of each")
    return len(texts[0].prompt_tokens)


@dataclass(frozen=True)
class Runtime:
    """Seconds of an answer, as the idealised runtime has it: a + b·p + Σ_{i=1}^{o−1} (c + d·(p + i)).

    The prompt of p tokens is read in one pass that costs a + b·p; each of the o − 1 tokens after the first costs c,
    and d for each position that it attends to.

    Attributes:
        start: a.
        read: b, for each token of the prompt.
        write: c, for each token.
        attend: d, for each token and position before it.

    Source: Idealised inference runtime, Narayanan et al. (2023), arXiv:2305.02440.
    Guarantee: closed form; `fit` is least squares.
    Engines: none; it is a model's time, alone on its machine.
    Not shown here: on cores shared with others the times of the reasoner (16 pairs of lengths, medians of 5) lie
        off their fit by .18 in the median, which says more of the machine than of the model.

    >>> round(float(Runtime(0.1, 2e-4, 0.02, 1e-6)(prompt=512, out=64)), 6)
    1.496672
    """

    start: float
    read: float
    write: float
    attend: float

    def __call__(self, prompt: ArrayLike, out: ArrayLike) -> Any:
        """Return seconds for prompts and outputs of so many tokens; arrays give arrays."""
        p, o = np.asarray(prompt, float), np.asarray(out, float)
        return (_terms(p, o) @ np.array([self.start, self.read, self.write, self.attend]))[()]

    @classmethod
    def fit(cls, prompt: ArrayLike, out: ArrayLike, seconds: ArrayLike) -> Runtime:
        """Return the runtime nearest to what was measured, (k,) each. Raises ValueError where that says too little."""
        terms = _terms(np.asarray(prompt, float), np.asarray(out, float))
        found, _, rank, _ = np.linalg.lstsq(terms, np.asarray(seconds, float), rcond=None)
        if rank < terms.shape[1]:
            raise ValueError("the four numbers cannot be told from so few lengths of prompts and outputs")
        return cls(*map(float, found))


def _terms(p: Any, o: Any) -> Any:
    steps = o - 1
    return np.stack(np.broadcast_arrays(1.0, p, steps, steps * p + steps * o / 2), -1)
