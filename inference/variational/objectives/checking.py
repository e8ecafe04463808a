"""Whether a guide fits its model, found out by running each once as it is, before anything is traced."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ....ppl.effects import Effect, Sample
from ....ppl.errors import UnfitGuide, UnsupportedProposal
from ....ppl.program import Program
from ....ppl.running.handling import Handler
from ....ppl.sites import MISSING
from ....ppl.transforms.simulation import simulate


class Laws(Handler):
    """Notes the laws of latents by address, and forces values on them."""

    sees_hidden = True

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        self.values = values or {}
        self.latent: dict[str, Any] = {}

    def touch(self, effect: Effect, address: str, length: int) -> bool:
        """Note the law."""
        if type(effect) is Sample and effect.obs is MISSING and effect.fixed is MISSING:
            self.latent[address] = effect.kernel
            if address in self.values:
                effect.forced = self.values[address]
        return False


def check(model: Program, guide: Program, within: bool, more: bool = False, fewer: bool = False) -> None:
    """Raise unless a guide draws what its model draws, with laws that reach all that the model's do.

    Args:
        model: a bound program.
        guide: a bound program.
        within: whether they must reach no further, either.
        more: whether the guide may draw more than the model.
        fewer: whether it may draw less.

    Raises UnfitGuide and UnsupportedProposal, naming the site.
    """
    its = Laws()
    run = simulate(guide.with_handler(its), seed=0)
    check_draws(guide, run.sites)
    mine = Laws({site.address: site.value for site in run.sites if site.kind == "sample"})
    met = simulate(model.with_handler(mine), seed=0)
    observed = {site.address for site in met.sites if site.kind == "observe"}
    more = more or met.log_weight == -math.inf or met.log_prob == -math.inf  # it ended before its later sites
    for address, law in its.latent.items():
        if address in mine.latent:
            covers(address, law, mine.latent[address], within)
        elif address in observed:
            raise UnfitGuide(f"the guide {guide.name!r} draws {address!r}, which the model observes")
        elif not more:
            raise UnfitGuide(f"the guide {guide.name!r} draws {address!r}, and the model {model.name!r} does not")
    missing = [address for address, law in mine.latent.items() if address not in its.latent and not _sure(law)]
    if missing and not fewer:
        raise UnfitGuide(
            f"the guide {guide.name!r} does not draw {missing[0]!r}, which the model {model.name!r} does: give it a "
            "law there, or condition the model on it"
        )


def _sure(law: Any) -> bool:
    """Whether all of a law's mass is on one value, so that there is nothing to guide."""
    values = law.support() if hasattr(law, "support") else None
    return values is not None and len(values) == 1


def check_draws(guide: Program, sites: Sequence[Any]) -> None:
    """Raise UnfitGuide for a guide that does more than draw."""
    for site in sites:
        if site.kind not in ("sample", "deterministic"):
            what = {"observe": "observes", "call": "calls"}.get(site.kind, f"has the {site.kind}")
            raise UnfitGuide(f"the guide {guide.name!r} {what} {site.address!r}: to be fitted, a guide only draws")
        if site.kind == "sample" and site.log_prob != site.log_proposal:
            raise UnfitGuide(
                f"the guide {guide.name!r} draws {site.address!r} from a proposal of its own, or under a handler that "
                "scales it: give it the law that it draws from"
            )


def covers(address: str, law: Any, target: Any, within: bool) -> None:
    """Raise UnsupportedProposal unless a guide's law reaches all that the model's does, and no more if ``within``."""
    for wide, narrow, wrong in (
        (law, target, f"its law {law!r} cannot reach all that the model's {target!r} can"),
        (target, law, f"its law {law!r} reaches beyond the model's {target!r}, where the objective is −∞"),
    )[: 1 + within]:
        reaches = getattr(wide, "covers", None)
        if reaches is not None and not reaches(narrow):
            raise UnsupportedProposal(f"the guide at site {address!r}: {wrong}")


def no_estimators(objective: str, estimators: Mapping[str, str]) -> None:
    """Raise ValueError where estimators are asked for that an objective has no use for."""
    if estimators:
        raise ValueError(f"{objective} takes no gradient through draws: estimators={dict(estimators)} say nothing")
