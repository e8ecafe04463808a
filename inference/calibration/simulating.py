"""Simulations of a program with its observations: they are drawn from their laws, and conditioned on after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...ppl import keys as _keys
from ...ppl.effects import Effect, Sample
from ...ppl.errors import Unsupported
from ...ppl.keys import Keys
from ...ppl.program import Program, launch, resume
from ...ppl.running.handling import Given, Handler
from ...ppl.sites import MISSING, Site


@dataclass(frozen=True)
class Simulated:
    """One draw of latents and data from a program's joint law.

    Attributes:
        model: the program, conditioned on the data.
        sites: the latents by address.
        value: what the program returned.
        log_likelihood: log p(data | latents).
    """

    model: Program
    sites: Mapping[str, Any]
    value: Any
    log_likelihood: float


class _Draw(Handler):
    """Draws what a program observes, and draws everything from its own law; ``shapes`` has the data's by address."""

    sees_hidden = True

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...] | None] = {}
        self.latents: set[str] = set()

    def touch(self, effect: Effect, address: str, length: int) -> bool:
        """Take the observation away, and the proposal."""
        if type(effect) is not Sample:
            return False
        effect.proposal = None
        if effect.terms is not None and effect.terms.scale != 1.0:
            raise Unsupported(f"calibrate simulates from a program's own law, and site {address!r} is under a scale")
        if effect.obs is MISSING:
            self.latents.add(address)
        else:
            if effect.fixed is not MISSING:
                raise Unsupported(f"calibrate cannot draw site {address!r}, which is observed and intervened on")
            if hasattr(effect.kernel, "observing"):
                raise Unsupported(f"calibrate draws numbers and categories, and site {address!r} observes a text")
            self.shapes[address] = _shape(effect.obs)
            effect.obs = MISSING
        if address in self.latents and address in self.shapes:
            raise Unsupported(f"site {address!r} is drawn in one run and observed in another: name it apart")
        return False


class _Observe(Handler):
    """Gives a program other data."""

    sees_hidden = True

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.data = data

    def touch(self, effect: Effect, address: str, length: int) -> bool:
        """Put the simulated observation in place of the program's."""
        if type(effect) is Sample and effect.obs is not MISSING:
            if address not in self.data:
                raise Unsupported(f"site {address!r} is observed here, and was not in the simulation")
            effect.obs = self.data[address]
        return False


def simulate_jointly(program: Program, keys: Keys) -> list[Simulated]:
    """Draw latents and data, one of each for each key, and the program conditioned on them.

    Raises Unsupported for programs whose joint law is not that of their draws and observations: for factors, scales,
    laws that are not normalised, and observations of another shape than draws.
    """
    draw = _Draw()
    runs = [sites for sites, _, _ in _run([program.with_handler(draw)] * len(keys), keys)]
    if not draw.shapes:
        raise Unsupported(f"calibrate simulates what a program observes, and {program!r} observes nothing")
    found = []
    for sites in runs:
        latents: dict[str, Any] = {}
        data: dict[str, Any] = {}
        for site in sites:
            _check(site, draw.shapes)
            if site.kind in ("sample", "call"):
                (data if site.address in draw.shapes else latents)[site.address] = site.value
        found.append((latents, data))
    models = [program.with_handler(_Observe(data)) for _, data in found]
    forced = [model.with_handler(Given(latents)) for model, (latents, _) in zip(models, found)]
    again = _run(forced, _keys.fold(keys, _keys.tag("given")))
    return [
        Simulated(model, _numbers(sites), value, log_likelihood)
        for model, (sites, value, log_likelihood) in zip(models, again)
    ]


def _run(programs: Sequence[Program], keys: Keys) -> list[tuple[list[Site], Any, float]]:
    """Run programs to their ends, in shared waves: the sites of each, its value, and its log-potential."""
    step, wave = launch(programs, _keys.fold(keys, 0)), 0
    sites: list[list[Site]] = [list(chosen) for chosen in step.choices]
    log_potential = step.log_potential.copy()
    while not step.done.all():
        wave += 1
        step = resume(step.state, _keys.fold(keys, wave))
        for mine, chosen in zip(sites, step.choices):
            mine += chosen
        log_potential += step.log_potential
    values = programs[0].values(step.state)
    return list(zip(sites, values, log_potential.tolist()))


def _check(site: Site, shapes: Mapping[str, tuple[int, ...] | None]) -> None:
    """Raise for what has no place in a joint law."""
    if site.kind == "factor":
        raise Unsupported(
            f"calibrate needs a generative program, and site {site.address!r} is a factor, which is no law that data "
            "could be drawn from: write it as fk.observe"
        )
    if site.log_prob != site.log_proposal:
        raise Unsupported(f"calibrate draws from p, and the law at site {site.address!r} draws from another one")
    wanted = shapes.get(site.address)
    if wanted is not None and _shape(site.value) != wanted:
        raise Unsupported(
            f"site {site.address!r} observes data of shape {wanted}, and a draw of its law has shape "
            f"{_shape(site.value)}: give its parameters the shape of the data, such as np.full({wanted}, mu)"
        )


def _numbers(sites: Sequence[Site]) -> dict[str, Any]:
    return {site.address: site.value for site in sites if site.kind == "sample" and not site.hidden}


def _shape(value: Any) -> tuple[int, ...] | None:
    """Return the shape of a number or an array; None for anything else."""
    try:
        array = np.asarray(value)
    except ValueError:
        return None
    return array.shape if array.dtype.kind in "biuf" else None
