"""Q-exit: the first layer by which the probability of having exited has reached a quantile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ....ppl.program import program
from ....ppl.words import call
from ...language.model import LanguageModel
from ...language.texts.text import Text


class Exit(NamedTuple):
    """Where a text was exited from.

    Attributes:
        layer: counted from 1, the first one; the last where the quantile was never reached.
        state: its hidden state, (d,).
        mass: the probability of having exited by then.
    """

    layer: int
    state: Any
    mass: float


@program
async def q_exit(
    lm: LanguageModel,
    hazard: Callable[[int, Any], float],
    text: Text,
    *,
    q: float = 0.5,
    layers: Sequence[int] | None = None,
) -> Exit:
    """Read the hidden states of a text layer by layer, and return the first by which the exit's mass has reached q.

    Layer i is the exit with probability λ_i · Π_{j<i} (1 − λ_j). PonderNet draws it from this law; Q-exit takes its
    q-quantile, the first i with 1 − Π_{j≤i} (1 − λ_j) ≥ q. It draws nothing. Each layer is read by a pass of the whole
    model: it says where a model could stop, and saves nothing here.

    Args:
        lm: a model that gives hidden states.
        hazard: from a layer and its state to λ in [0, 1]: a trained head.
        text: what is read.
        q: the quantile, in (0, 1].
        layers: those that have a head; None: all.

    Raises ValueError for q and hazards out of range, and `Unsupported` for a model that has no hidden states.

    Source: PALBERT: Teaching ALBERT to Ponder (2022), arXiv:2204.03276; PonderNet: Learning to Ponder (2021),
    arXiv:2107.05407.

    Guarantee: closed form. It draws nothing, and its value is a function of the text.

    Engines: any, as a part of a program that draws something; by itself it has one run.

    Not shown here: without trained heads there is nothing to claim.

    >>> import feynkac as fk
    >>> from feynkac.models.testing import tiny_lm
    >>> lm = tiny_lm()  # of two layers
    >>> found = fk.simulate(fk.programs.q_exit(lm, lambda layer, state: 0.3, lm.prompt("Once")), seed=0).value
    >>> found.layer, round(found.mass, 2), found.state.shape
    (2, 0.51, (32,))
    """
    if not 0.0 < q <= 1.0:
        raise ValueError(f"q is a quantile in (0, 1], not {q}")
    rows = range(1, lm.depth) if layers is None else layers
    if not rows:
        raise ValueError("layers names no layer to exit from")
    stay = 1.0
    for layer in rows:
        state = await call("state", lm.read(text, "hidden", layer=layer))
        risk = float(hazard(layer, state))
        if not 0.0 <= risk <= 1.0:
            raise ValueError(f"the hazard of layer {layer} is {risk}, which is no probability")
        stay *= 1.0 - risk
        if 1.0 - stay >= q:
            break
    return Exit(layer, state, 1.0 - stay)
