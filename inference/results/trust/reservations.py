"""How far to trust a posterior: what its weights, genealogy and chains say against it, in plain sentences."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from ....ppl.sites import Site
from ...base.weights import normalize
from ...drawing.views import moved, number
from .copies import distinct
from .khat import khat

_LOW = 0.1
_DOMINANT = 0.9
_BAD_KHAT = 0.7
_SPREAD = 0.5
_SINGLE = 0.95
_FRUITLESS = 0.5
_LIMITS = {"AStar": "expansions", "MCTS": "simulations"}
"""The setting that ends a search, by engine, where it may end with unfinished runs alone."""
_MANY = 100
"""Independent draws that are enough for most means."""
_APART = 1.1
_COPIES = 0.25
_RECOMPUTED = 0.1
_UNMOVED = 0.25


def reservations(posterior: Any) -> tuple[str, ...]:
    """Return one sentence for each reason not to trust a posterior; none where nothing speaks against it.

    The limits are set so that a good run stays silent: an effective sample size below a tenth of the particles (or
    below 2), a particle with 90% of the weight, k̂ above 0.7, a founder with 95% of the weight in every chain, a
    relative standard error of the evidence above one half; copies that never parted, so that distinct particles are
    worth a quarter of the effective sample size or less; rewards that never differed between particles; or trial runs
    of which more than half found next to nothing. Of time rather than trust: more than a tenth of the token positions
    forwarded again, as memory was short. k̂ takes part where arviz-stats is installed, and is asked for where
    it is loaded already, or where few particles had weight, at the end or before a resampling. Of Markov chains: one
    that never moved, an acceptance below a tenth, an effective sample size below a tenth of the draws (and below 100),
    and R̂ above 1.1; and any
    divergent transition.
    """
    return (*_speak(posterior), *_short_memory(posterior))


def _speak(posterior: Any) -> tuple[str, ...]:
    if not len(posterior):
        return (nothing(posterior),)
    if np.isneginf(posterior.log_weights).all():
        return ("every particle has weight zero: the posterior is empty",)
    if posterior.serial:
        return (*_unfinished(posterior), *_prefix(posterior), *_chains(posterior))
    found = [*_unfinished(posterior), *_prefix(posterior), *_equal(posterior), *_acceptance(posterior)]
    if posterior.guarantee == "heuristic":
        found.append("the weights select and are no posterior probabilities (heuristic): to get those, use SMC")
        return tuple(found)
    found += [*_trials(posterior), *_copies(posterior), *_weights(posterior), *_stages(posterior)]
    found += [*_founders(posterior), *_evidence(posterior)]
    return tuple(found)


def founders(posterior: Any) -> list[int]:
    """Return, for each chain, how many particles of its first step have a descendant of positive weight at the end.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def walk():
    ...     for _ in range(20):
    ...         await fk.sample("x", fk.dist.Normal(0.0, 1.0))
    ...         await fk.factor("G", 0.0)
    >>> founders(fk.infer(walk(), fk.SMC(8, ess_threshold=0.0, chains=2), seed=0))
    [8, 8]
    """
    return [len(np.unique(chain.lines[0][chain.log_weights > -np.inf])) for chain in posterior.chains]


def nothing(posterior: Any) -> str:
    """Say why a posterior is empty."""
    return f"the posterior is empty: the run was cut short ({_cut_short(posterior)[0]}) before it had any particles"


def _prefix(posterior: Any) -> Iterator[str]:
    if posterior.guarantee == "prefix":
        why, cure = _cut_short(posterior)
        yield (
            f"the run was cut short ({why}): log evidence and weights are those of the steps that were made, and not "
            f"of the model; {cure}"
        )


def _unfinished(posterior: Any) -> Iterator[str]:
    n, complete = len(posterior), int(posterior.complete.sum())
    if complete == n:
        return
    why, cure = _cut_short(posterior)
    if complete == 0:
        yield (
            f"no particle ran to its end ({why}): the values are unfinished, and there is nothing to average or vote "
            f"on; {cure}"
        )
    else:
        yield (
            f"{n - complete} of {n} particles did not run to their end ({why}); expect, vote and best leave them out, "
            "which favours short runs"
        )


def _cut_short(posterior: Any) -> tuple[str, str]:
    """Return why particles are unfinished, and what would let them finish."""
    if posterior.stopped is None and (posterior.guarantee == "prefix" or not len(posterior)):
        return "it is not over", "let it run on"
    if posterior.stopped is None:
        engine = posterior.engine.partition("(")[0]
        if engine not in _LIMITS:
            return f"{engine} gave them up", "soften what ends them"
        return f"{engine} has used up its {_LIMITS[engine]}", f"give it more {_LIMITS[engine]}"
    cure = "let it run on" if posterior.stopped in ("interrupted", "callback") else "raise the budget"
    return f"stopped: {posterior.stopped}", cure


def _short_memory(posterior: Any) -> Iterator[str]:
    """Speak where a language model forgot much for want of memory, and computed it again."""
    again, whole = posterior.cost.tokens_recomputed, posterior.cost.tokens_in
    if again > _RECOMPUTED * whole:
        yield (
            f"{again / whole:.0%} of the token positions were forwarded again, as memory was too short to keep what "
            "they gave: nothing but time is lost; raise cache_bytes of the language model (cache_info() has its "
            "limit), or use fewer particles or shorter texts"
        )


def _equal(posterior: Any) -> Iterator[str]:
    """Speak where rewards were asked for and told no particle from another; models without rewards are silent."""
    chains, asked, told = posterior.chains, posterior.cost.reward_calls > 0, 0.0
    if len(posterior) < 2:
        return
    for t in range(max(len(chain.steps) for chain in chains)):
        here = [chain.steps for chain in chains if t < len(chain.steps)]
        logs = np.concatenate([steps[t].log_potential[moved(steps, t)] for steps in here])
        if not len(logs):
            continue
        if not np.isfinite(logs).all() or np.ptp(logs) > 1e-12 * max(1.0, abs(float(logs[0]))):
            return
        told += float(logs[0])
        asked = asked or told != 0.0 or any(map(_met_factor, (chosen for steps in here for chosen in steps[t].choices)))
    if asked:
        yield (
            f"the rewards never differed: log G was {number(told)} for every particle, so that they selected nothing; "
            "look at what the reward is given, and at what it returns"
        )


def _met_factor(choices: Any) -> bool:
    """Return whether a particle of a program met a factor or an observation in a step."""
    sites = [site for site in choices if isinstance(site, Site)] if isinstance(choices, tuple) else []
    return any(site.kind in ("factor", "observe") for site in sites)


def _chains(posterior: Any) -> Iterator[str]:
    """Speak of Markov chains that moved too little, or not to the same place."""
    if not posterior.drawn or posterior.mixing.draws < 2:
        return
    found, n = posterior.mixing, posterior.mixing.draws
    more = f"use more {next((name for name in ('sweeps', 'draws') if _has(posterior, name)), 'moves')}"
    # Moves that are accepted, and change nothing, are those of a chain at a place that has nearly all the mass.
    stuck = sum(not changed and not rate >= _LOW for changed, rate in zip(found.changes, found.acceptance))
    if stuck:
        which = "the chain" if len(found.changes) == 1 else f"{stuck} of {len(found.changes)} chains"
        yield (
            f"{which} never moved: all {n} draws are one value, so that they are one draw, unless the target has no "
            f"other; {more}"
        )
    yield from _acceptance(posterior)
    if found.distinct > 1 and posterior.ess < min(_LOW * len(posterior), _MANY):
        yield (
            f"the effective sample size is {posterior.ess:.1f} of {len(posterior)} draws, {found.distinct} of them "
            f"distinct: means are as rough as those of {posterior.ess:.0f} independent draws; {more}"
        )
    diverged = sum(int(chain.stats["diverging"].sum()) for chain in posterior.chains if "diverging" in chain.stats)
    if diverged:
        yield (
            f"{diverged} of {len(posterior)} transitions were divergent: the draws may miss a part of the target that "
            "is narrow; use smaller steps (step=), or other coordinates in the model (a non-centred hierarchy)"
        )
    if found.rhat > _APART:
        yield f"the {len(found.changes)} chains disagree: R-hat is {found.rhat:.2f}, and should be near 1; {more}"


def _acceptance(posterior: Any) -> Iterator[str]:
    """Speak of moves that are seldom accepted."""
    rate = posterior.info.get("acceptance", 1.0)
    if rate < _LOW:
        what = "sweeps changed the run" if _has(posterior, "particles_per_sweep") else "moves were accepted"
        better = "particles_per_sweep" if _has(posterior, "particles_per_sweep") else "moves, or a better proposal"
        yield f"{rate:.1%} of the {what}: the draws are much alike; use more {better}"


def _trials(posterior: Any) -> Iterator[str]:
    """Speak of engines that look ahead by trial runs which say little."""
    share = posterior.info.get("fruitless", 0.0)
    if share > _FRUITLESS:
        more = "use more rollouts, or SMC" if _has(posterior, "rollouts") else "use SMC"
        yield f"the trial runs of {share:.0%} of the weight found next to nothing: what they found is noise; {more}"


def _copies(posterior: Any) -> Iterator[str]:
    """Speak of nested sampling whose moves leave many copies as they are."""
    share = posterior.info.get("unmoved", 0.0)
    if share > _UNMOVED:
        yield (
            f"{share:.0%} of the runs that replaced the dead are copies that no move has changed: the evidence "
            "may be off by more than its error says; use more moves, or a kernel that is accepted more often"
        )


def _more(posterior: Any) -> str:
    """Name what an engine needs more of, where its sample is too small."""
    if _has(posterior, "live"):
        return "live runs"
    return "rollouts" if _has(posterior, "rollouts") and not _has(posterior, "particles") else "particles"


def _has(posterior: Any, setting: str) -> bool:
    """Whether the engine has a setting, so that it can be named."""
    return f"{setting}=" in posterior.engine


def _weights(posterior: Any) -> Iterator[str]:
    n, ess, most = len(posterior), posterior.ess, float(posterior.probabilities.max())
    more = _more(posterior)
    if n > 1 and most > _DOMINANT:
        yield f"one particle holds {most:.0%} of the weight: this is one draw, no sample; use more {more} or a twist"
    elif n > 1 and ess < max(_LOW * n, 2.0):
        yield (
            f"the effective sample size is {ess:.1f} of {n}: means are as rough as those of {ess:.0f} draws; use more "
            f"{more}, a twist or a better proposal"
        )
    yield from _tail(posterior)
    if n > 1 and any(step.resampled for step in posterior.steps):
        apart, effective = distinct(posterior)
        if effective < _COPIES * ess:
            settings = ["a lower ess_threshold", "TemperedSMC"] if _has(posterior, "ess_threshold") else []
            settings += ["move="] if _has(posterior, "move") else []
            yield (
                f"only {apart} of {n} particles are distinct, and worth {effective:.0f} draws, not the effective "
                f"sample size of {ess:.0f}: nothing was drawn after copies were made, so that they never part; let "
                "later steps draw (a diffusion by eta > 0)" + (f", or use {' or '.join(settings)}" if settings else "")
            )


def _stages(posterior: Any) -> Iterator[str]:
    """Speak of tempered populations that lost much between two rungs, or whose copies the moves did not part."""
    chains = [chain for chain in posterior.chains if chain.stages]
    if not chains:
        return
    lost = [
        (step.ess, len(step.done), 1.0 / step.temperature)
        for chain in chains
        for step in chain.stages
        if step.ess < max(_LOW * len(step.done), 2.0) and len(step.done) > 1
    ]
    if lost:
        size, n, inverse = min(lost)
        yield (
            f"the effective sample size fell to {size:.1f} of {n} on the way to λ = {inverse:.3g}: the evidence rests "
            "on few particles; use a finer ladder (or ladder=None, which finds one), or more particles"
        )
    apart, most = posterior.info["distinct"], len(posterior) / len(chains)
    if chains[0].arrived and apart < _COPIES * min(most, posterior.ess / len(chains)):
        yield (
            f"only {apart:.0f} of {most:.0f} particles are distinct: the moves seldom part the copies that resampling "
            "makes; use more moves, or a kernel that is accepted more often"
        )


def _tail(posterior: Any) -> Iterator[str]:
    """Speak of heavy tails, at the end and where a step left few particles with weight."""
    if importlib.util.find_spec("arviz_stats") is None:
        return
    found = []
    if "arviz_stats" in sys.modules or posterior.ess < _LOW * len(posterior):
        found.append((posterior.khat, ""))
    for chain in posterior.chains:
        for step, after in itertools.pairwise(chain.history):
            if after.resampled and step.ess < _LOW * len(step.log_weights):
                found.append((khat(step.log_weights), f" at step {step.depth}"))
    worst, where = max(((k, at) for k, at in found if k == k), default=(0.0, ""))
    if worst > _BAD_KHAT:
        yield (
            f"k-hat is {worst:.2f}{where}: the weights have so heavy a tail that more particles would still change "
            "means and evidence much, and standard errors hide it; use a twist or a better proposal"
        )


def _founders(posterior: Any) -> Iterator[str]:
    chains, n = posterior.chains, len(posterior.chains[0].log_weights)
    if n == 1 or not any(step.resampled for step in posterior.steps):
        return
    most = min(float(np.bincount(chain.lines[0], normalize(chain.log_weights)).max(initial=0.0)) for chain in chains)
    if most > _SINGLE:
        each = " of each chain" if len(chains) > 1 else ""
        share = "all particles" if most > 1 - 1e-9 else f"particles with {most:.0%} of the weight"
        settings = ["more particles", *(["a lower ess_threshold"] if _has(posterior, "ess_threshold") else [])]
        yield (
            f"{share}{each} descend from one of the {n} first draws: the early steps rest on {len(chains)} "
            f"draw{'s' * (len(chains) > 1)}; use {', '.join(settings)} or more chains"
        )


def _evidence(posterior: Any) -> Iterator[str]:
    se, chains = posterior.log_evidence_se, len(posterior.chains)
    if se > _SPREAD and chains > 1:
        spread = [chain.evidence for chain in posterior.chains]
        yield (
            f"the {chains} chains disagree: their log evidence goes from {min(spread):.3g} to {max(spread):.3g}; use "
            f"more {_more(posterior)}"
        )
    elif se > _SPREAD:
        yield f"the evidence is known to a factor of {np.exp(se):.1f} only; use more {_more(posterior)}"
