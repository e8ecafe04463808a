"""Fitted guides: a program with its parameters."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...ppl.errors import UnreadableGuide
from ...ppl.program import Program
from ...ppl.transforms.params import Parameters, steady
from ...ppl.transforms.simulation import simulate

_KIND = "feynkac guide 1"


class Guide(Program):
    """A guide with the parameters that were found for it: a program, to be simulated, proposed from or awaited.

    Attributes:
        program: the guide as it was written.
        params: the parameters by name: numbers, read-only arrays, or dictionaries of them.
        losses: (steps,) the estimate of the loss at each step, before it.
        stopped: None where all steps were made; "interrupted" after Ctrl-C.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def q():
    ...     return await fk.sample("z", fk.dist.Normal(fk.param("loc", 0.0), 1e-6))
    >>> guide = Guide(q(), {"loc": 2.5}, [])
    >>> round(fk.simulate(guide, seed=0).value, 3), guide
    (2.5, Guide(q(), loc=2.5))
    """

    program: Program
    params: Mapping[str, Any]
    losses: NDArray[np.float64]
    stopped: str | None

    def __init__(
        self, program: Program, params: Mapping[str, Any], losses: Sequence[float], stopped: str | None = None
    ) -> None:
        values = {name: steady(value) for name, value in params.items()}
        history = np.array(losses, np.float64)
        history.flags.writeable = False
        self.__dict__.update(vars(program.with_handler(Parameters(values))))
        self.__dict__.update(program=program, params=MappingProxyType(values), losses=history, stopped=stopped)

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "_inside":
            raise AttributeError(f"a fitted guide is frozen: {name} cannot be set")
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        few = [f"{name}={value:.4g}" for name, value in self.params.items() if isinstance(value, float)]
        rest = len(self.params) - len(few)
        return f"Guide({', '.join([repr(self.program), *few, *[f'and {rest} arrays'] * bool(rest)])})"

    def bind(self, program: Program) -> Program:
        """Return another program with these parameters, such as the model where it has some of its own."""
        return program.with_handler(Parameters(self.params))

    def loss_plot(self, *, ax: Any = None, figsize: tuple[float, float] | None = None) -> Any:
        """Draw the losses by step, with their running mean. Needs matplotlib (``pip install feynkac[plots]``)."""
        from ..drawing.figure import axes, label
        from ..drawing.palette import BLUE, ORANGE

        ax = axes(ax, figsize, (6.0, 2.6))
        steps = np.arange(len(self.losses))
        ax.plot(steps, self.losses, color=BLUE, linewidth=0.6, alpha=0.5)
        width = max(1, len(steps) // 50)
        means = np.convolve(self.losses, np.ones(width) / width, mode="valid")
        ax.plot(steps[width - 1 :], means, color=ORANGE, linewidth=1.4)
        label(ax, "Loss", "step", "")
        return ax.figure

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write parameters and losses to a file, whole or not at all; `load` reads it. Nothing in it is pickled."""
        arrays: list[NDArray[Any]] = [self.losses]
        head = {"kind": _KIND, "params": _packed(dict(self.params), arrays), "stopped": self.stopped}
        target = Path(path)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("guide.json", json.dumps(head))
                for i, array in enumerate(arrays):
                    buffer = io.BytesIO()
                    np.save(buffer, array, allow_pickle=False)
                    archive.writestr(f"{i}.npy", buffer.getvalue())
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)

    @staticmethod
    def load(path: str | os.PathLike[str], program: Program, limit: int = 2**30) -> Guide:
        """Read what `save` wrote, for the program that it was fitted for, which is run once.

        Args:
            path: of the file.
            program: bound to whatever arguments.
            limit: bytes that the file may hold, unpacked.

        Raises:
            FileNotFoundError: if there is no file.
            UnreadableGuide: if it is no saved guide, or damaged, or its parameters are not those of the program.
        """
        with open(path, "rb") as file:
            try:
                with zipfile.ZipFile(file) as archive:
                    if sum(member.file_size for member in archive.infolist()) > limit:
                        raise ValueError(f"it unpacks to more than {limit:,} bytes")
                    head = json.loads(archive.read("guide.json"))
                    if head["kind"] != _KIND:
                        raise ValueError(f"its kind is {head['kind']!r}")
                    count = len(archive.infolist()) - 1
                    arrays = [np.load(io.BytesIO(archive.read(f"{i}.npy")), allow_pickle=False) for i in range(count)]
                params = _unpacked(head["params"], arrays)
                guide = Guide(program, params, arrays[0].tolist(), head["stopped"])
            except Exception as error:  # what is damaged fails in many ways
                raise UnreadableGuide(
                    f"{os.fspath(path)} is no saved guide, or it is damaged: {error!r:.300}"
                ) from error
        asked = Parameters({})
        simulate(program.with_handler(asked), seed=0)
        for name, declared in asked.declared.items():
            if name not in params or _shapes(params[name]) != _shapes(declared.init):
                raise UnreadableGuide(
                    f"{os.fspath(path)} has no parameter {name!r} as {program!r} has it: it is that of another guide"
                )
        return guide


def _packed(value: Any, arrays: list[NDArray[Any]]) -> Any:
    """Return JSON for a tree of parameters, with the places of its arrays."""
    if isinstance(value, dict):
        return {key: _packed(part, arrays) for key, part in value.items()}
    arrays.append(np.asarray(value))
    return len(arrays) - 1


def _unpacked(told: Any, arrays: Sequence[NDArray[Any]]) -> Any:
    if isinstance(told, dict):
        return {key: _unpacked(part, arrays) for key, part in told.items()}
    return number(arrays[told])


def number(array: Any) -> Any:
    """Return an array as parameters have it: one without axes is a number of Python's."""
    array = np.asarray(array)
    return array.item() if array.ndim == 0 else array


def _shapes(value: Any) -> Any:
    return {key: _shapes(part) for key, part in value.items()} if isinstance(value, dict) else np.shape(value)
