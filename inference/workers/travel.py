"""Posteriors and steps on their way from a worker: as files have them, so that a posterior is the same everywhere."""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Sequence
from dataclasses import replace

from ...ppl.cost import Cost
from ..base.engine import weaker
from ..base.step import Step
from ..results.keeping.encoding import Decoder, Encoder
from ..results.keeping.files import decode_steps, encode_steps, read, write
from ..results.posterior import Posterior


def pack(posterior: Posterior) -> bytes:
    """Return the bytes of a file that holds a posterior. Raises TypeError, naming it, for what cannot be saved."""
    file = io.BytesIO()
    write(posterior, file)
    return file.getvalue()


def unpack(data: bytes, name: str) -> Posterior:
    """Return a posterior from its bytes, which come from a worker of ours, however large."""
    return Posterior(**read(io.BytesIO(data), name, sys.maxsize))


def pack_steps(steps: Sequence[Step]) -> bytes:
    """Return steps as bytes. Raises TypeError, naming it, for what cannot be saved."""
    encoder = Encoder()
    data = encode_steps(steps, "a run", encoder)
    return pickle.dumps((data, encoder.arrays))


def unpack_steps(data: bytes) -> Sequence[Step]:
    """Return steps from the bytes of a worker of ours."""
    found, arrays = pickle.loads(data)
    return decode_steps(found, Decoder(arrays, sys.maxsize))


def joined(parts: Sequence[Posterior], cost: Cost) -> Posterior:
    """Return the posterior of a model from those of its chains, in their order."""
    begun = [part for part in parts if len(part)] or [parts[0]]
    promise = parts[0].guarantee
    for part in parts:
        promise = weaker(promise, part.guarantee)
    return replace(
        begun[0],
        values=tuple(value for part in begun for value in part.values),
        chains=tuple(chain for part in begun for chain in part.chains),
        cost=cost,
        guarantee=promise,
        stopped=next((part.stopped for part in parts if part.stopped is not None), None),
    )
