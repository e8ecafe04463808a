"""Runs of a model whose data are drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from ....ppl.traced.listeners import Record, Weigher
from ....ppl.traced.met import Met


class Simulated(Weigher):
    """Draws all that a model draws and, in the shapes of the data, what it would observe."""

    def __init__(self, key: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__(key)
        self.shapes = shapes

    def choose(self, site: Met) -> tuple[Any, Any]:
        """Draw a value from the model's law."""
        law, shape = site.law, self.shapes.get(site.slot)
        if shape is not None and law.covers_rows:
            return law.dist.sample(site.key(self.key), shape[: len(shape) - len(law.shape)]), None
        return law.draw(site.key(self.key)), None

    def iterate(self, extra: Any) -> Simulated:
        """Return the listener of an iteration."""
        return Simulated(self.key, self.shapes)


def series(records: Sequence[Record]) -> Any:
    """Return the value of a name, or of a name with several visits the values in their order, stacked."""
    if len(records) == 1 and not records[0].spot.lengths:
        return records[0].value
    visits = [record.spot.at(at)[1] for record in records for at in np.ndindex(record.spot.lengths)]
    parts = []
    for record in records:
        value, loops = jnp.asarray(record.value), len(record.spot.lengths)
        parts.append(value.reshape(-1, *value.shape[loops:]))
    return jnp.concatenate(parts)[np.argsort(visits)]
