"""How a wave serves what its fibers await: draws, log-probabilities, scores and calls, each in batches."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np

from .. import keys as _keys
from ..cost import assign
from ..cost import rows as cost_of
from ..distributions.terms import Masked
from ..effects import Call, Effect, Sample
from ..errors import CannotScore, ContextOverflow, InvalidWeight, JournalError, NotRecorded, UnsupportedProposal
from ..keys import Keys
from ..score import ScoreError, evaluate
from ..sites import MISSING, Site, address
from ..values.guard import guard
from ..values.reals import reals
from ..values.recording import current
from . import nesting
from .calls import evaluate_calls, recorded_calls
from .fibers import Failed, Fiber, Run, annotate, fail

_new = tuple.__new__


class Server:
    """Queues requests by group, and serves each group with one call.

    Args:
        keys: one key per run of the wave.
        owners: the problem that each run belongs to, for the cost ledger; None: all to the first.
        ready: where a fiber goes, with the value that it awaited, once there is one.
    """

    def __init__(self, keys: Keys, owners: Sequence[int] | None, ready: list[tuple[Fiber, Any]]) -> None:
        self.keys = keys
        self.owners = np.zeros(len(keys), np.intp) if owners is None else np.asarray(owners, np.intp)
        self.pending: dict[Hashable, list[Fiber]] = {}
        self._ready = ready

    def queue(self, fiber: Fiber, group: tuple[Any, ...]) -> None:
        """Add a fiber to those that wait for the group's call."""
        waiting = self.pending.get(group)
        if waiting is None:
            self.pending[group] = [fiber]
        else:
            waiting.append(fiber)

    def serve(self) -> None:
        """Serve the cheapest groups first, so that fibers which need a model meet before it is called."""
        batch, self.pending = self.pending, {}
        ranks = {group: _rank(group, fibers) for group, fibers in batch.items()}
        first = min(ranks.values())
        for group, fibers in batch.items():
            live = [fiber for fiber in fibers if not fiber.run.dead]
            if ranks[group] > first:
                self.pending.setdefault(group, []).extend(live)
            elif live:
                self._call(group, live)

    def _call(self, group: Hashable, fibers: list[Fiber]) -> None:
        rows = np.fromiter((fiber.run.row for fiber in fibers), np.intp, len(fibers))
        assign(self.owners[rows])
        what = group[0]  # type: ignore[index]
        try:
            if what == "draw":
                self._draw(fibers, rows)
            elif what == "log_prob":
                self._log_probs(fibers)
            elif what == "score":
                self._score(fibers)
            elif what == "nested":
                self._nested(fibers, rows)
            else:
                self._calls(fibers, rows)
        except NotRecorded as error:
            if error.row is None:  # of a run within this one, or of some of the batch
                annotate(fibers[0].run, error)
                raise
            at = fibers[error.row]
            fail(at, NotRecorded(f"{_at(at)}: {error}"))
        except ContextOverflow as error:
            if len(fibers) == 1:
                fibers[0].run.overrun(error)
                return
            half = len(fibers) // 2  # the others do not depend on what is in their batch
            for part in (fibers[:half], fibers[half:]):
                self._call(group, part)
        except Exception as error:
            annotate(fibers[0].run, error)  # a batch failed as a whole: the first particle stands for all
            raise

    # -- sample -------------------------------------------------------------------------------------------------

    def given(self, fiber: Fiber, effect: Sample | Call) -> Any:
        """Return the value that the engine, or else a handler, imposes on a site; MISSING where it is free."""
        forced = fiber.run.given
        return forced.pop(address(effect.name, effect.visit), effect.forced) if forced else effect.forced

    def sample(self, fiber: Fiber, effect: Sample) -> None:
        """Take up a sample site: draw, score, or take it as it is."""
        if fiber.run.tentative and not _fits(fiber.run, effect):
            fiber.run.refuse()
            return
        if effect.obs is not MISSING:
            effect.value = effect.obs
            mask = True if effect.terms is None else effect.terms.mask
            law = effect.kernel if isinstance(mask, bool) else Masked(effect.kernel, mask)
            self._next_log_prob(fiber, effect, [law])
            return
        if effect.fixed is not MISSING:
            self._intervene(fiber, effect)
            fiber.log = (fiber.log, "sample", effect.name, effect.request, effect.fixed)
            self._ready.append((fiber, effect.fixed))
            return
        effect.value = value = self.given(fiber, effect) if fiber.run.given else effect.forced
        proposal = effect.proposal
        if proposal is not None:
            covers = getattr(proposal, "covers", None)
            if covers is not None and not covers(effect.kernel):
                fail(
                    fiber,
                    UnsupportedProposal(
                        f"{_at(fiber)}: the proposal {proposal!r} cannot reach all that {effect.kernel!r} can, so "
                        "the weights would be wrong; mix in some of the model's own law, or restrict the model too"
                    ),
                )
        if value is MISSING:
            self.queue(fiber, ("draw", (proposal or effect.kernel).batch_key))
        else:
            self._next_log_prob(fiber, effect, [effect.kernel] if proposal is None else [effect.kernel, proposal])

    def _intervene(self, fiber: Fiber, effect: Sample) -> None:
        name = f"{effect.name}__CF"  # the site itself keeps its name, as in NumPyro
        effect.fixed = guard(effect.fixed)
        fiber.run.sites.append(_new(Site, (name, effect.visit, "do", effect.fixed, 0.0, 0.0, effect.hidden)))

    def _next_log_prob(self, fiber: Fiber, effect: Sample, unscored: list[Any]) -> None:
        """Queue for the log-probability of the value under the last kernel of the list (p is first, q second)."""
        effect.unscored = unscored
        kernel = unscored[-1]
        if not hasattr(kernel, "log_prob_batch"):
            fail(
                fiber,
                CannotScore(
                    f"{_at(fiber)}: {type(kernel).__name__} has no log_prob_batch, which an observed, "
                    "forced or proposed value needs"
                ),
            )
        self.queue(fiber, ("log_prob", kernel.batch_key))

    def _draw(self, fibers: list[Fiber], rows: Any) -> None:
        effects: list[Sample] = [fiber.effect for fiber in fibers]
        requests = [effect.proposal or effect.kernel for effect in effects]
        self._check_kept(requests[0])
        draws = requests[0].sample_batch(requests, self._site_keys(effects, rows))
        values, log_probs = draws[:2]
        known = log_probs is not None
        logs = _log_probs_of(requests[0], log_probs) if known else [0.0] * len(fibers)
        own = draws[2] if len(draws) > 2 else None
        log_qs = logs if own is None else _log_probs_of(requests[0], own)
        _check_count(requests[0], "sample_batch", len(fibers), len(values), len(logs), len(log_qs))
        for fiber, effect, value, log_prob, log_q in zip(fibers, effects, _items(values), logs, log_qs):
            if effect.proposal is None:
                if not known:
                    fiber.run.scored = False
                    if effect.terms is not None and effect.terms.scale != 1.0:
                        fail(fiber, CannotScore(f"{_at(fiber)}: what has no log-probability cannot be scaled"))
                self._sampled(fiber, effect, value, log_prob, log_q)
            elif known:
                effect.value, effect.log_proposal = value, log_q
                self._next_log_prob(fiber, effect, [effect.kernel])
            else:
                fail(
                    fiber,
                    CannotScore(f"{_at(fiber)}: the proposal {effect.proposal!r} gives no log-probabilities"),
                )

    @staticmethod
    def _check_kept(kernel: Any) -> None:
        """Tell the user of a model whose draws no journal keeps."""
        recorder = current()
        if recorder is not None and getattr(kernel, "expensive", False) and not getattr(kernel, "journalled", False):
            recorder.pass_over(f"draws of a {type(kernel).__name__}", "they have no part in journals")

    def _log_probs(self, fibers: list[Fiber]) -> None:
        effects: list[Sample] = [fiber.effect for fiber in fibers]
        requests = [effect.unscored[-1] for effect in effects]
        log_probs = requests[0].log_prob_batch(requests, [effect.value for effect in effects])
        numbers = _log_probs_of(requests[0], log_probs)
        _check_count(requests[0], "log_prob_batch", len(fibers), len(numbers))
        log_qs = self._own_proposals(effects, numbers)
        for fiber, effect, log_prob, log_q in zip(fibers, effects, numbers, log_qs):
            if effect.obs is not MISSING:
                self.weigh(fiber, log_prob)
            elif len(effect.unscored) == 2:
                effect.log_proposal = log_q
                self._next_log_prob(fiber, effect, effect.unscored[:1])
            else:
                log_q = log_q if effect.proposal is None else effect.log_proposal
                self._sampled(fiber, effect, effect.value, log_prob, log_q)

    def _own_proposals(self, effects: list[Sample], log_probs: list[float]) -> list[float]:
        """Return log q of forced values under kernels that draw from a law of their own, else log p."""
        own = getattr(effects[0].unscored[-1], "log_proposal_batch", None)
        if own is None:
            return log_probs
        drawn = [
            i
            for i, effect in enumerate(effects)
            if effect.obs is MISSING
            and (effect.proposal is None or effect.unscored[-1] is effect.proposal)
            and log_probs[i] > -math.inf
        ]
        if not drawn:
            return log_probs
        found = list(log_probs)
        with cost_of(drawn):
            kernels = [effects[i].unscored[-1] for i in drawn]
            log_qs = _log_probs_of(kernels[0], own(kernels, [effects[i].value for i in drawn]))
        for i, log_q in zip(drawn, log_qs):
            found[i] = log_q
        return found

    def _sampled(self, fiber: Fiber, effect: Sample, value: Any, log_prob: float, log_proposal: float) -> None:
        run = fiber.run
        if not (log_prob < math.inf and log_proposal < math.inf):
            fail(fiber, InvalidWeight(f"{_at(fiber)}: the log-probability of {value!r} is {log_prob}"))
        if log_prob == -math.inf:
            run.kill()
        elif log_proposal == -math.inf:
            fail(
                fiber,
                UnsupportedProposal(
                    f"{_at(fiber)}: the proposal {effect.proposal!r} cannot reach {value!r}, which the model can"
                ),
            )
        value = guard(value)
        if effect.terms is not None and effect.terms.scale != 1.0:
            log_prob *= effect.terms.scale  # the law is p to that power; the draw was from p, and its weight says so
        run.log_prob += log_prob
        run.log_proposal += log_proposal
        run.sites.append(
            _new(Site, (effect.name, effect.visit, "sample", value, log_prob, log_proposal, effect.hidden))
        )
        request = effect.kernel if effect.proposal is None else effect.request
        fiber.log = (fiber.log, "sample", effect.name, request, value)
        if not run.dead:
            self._ready.append((fiber, value))

    # -- factor, twist, observe, call ---------------------------------------------------------------------------

    def _score(self, fibers: list[Fiber]) -> None:
        try:
            numbers = evaluate([fiber.effect.log_weight for fiber in fibers])
        except JournalError:
            raise
        except ScoreError as error:
            fail(fibers[error.index], InvalidWeight(f"{_at(fibers[error.index])}: {error}"))
        except Exception:
            for i, fiber in enumerate(fibers):  # one by one, to name the particle for which it fails
                try:
                    with cost_of([i]):
                        evaluate([fiber.effect.log_weight])
                except Exception as error:
                    fail(fiber, error)
            raise
        for fiber, number in zip(fibers, numbers):
            self.weigh(fiber, number)

    def weigh(self, fiber: Fiber, log_weight: float) -> None:
        """Take the log-weight of a factor, a twist or an observation, and end the fiber's step."""
        run, effect = fiber.run, fiber.effect
        kind = effect.kind
        if not log_weight < math.inf:
            fail(fiber, InvalidWeight(f"{_at(fiber)}: the log-weight is {log_weight}; it must be below +inf"))
        if effect.terms is not None:
            if kind != "sample" and not isinstance(effect.terms.mask, bool):
                fail(fiber, ValueError(f"{_at(fiber)}: an array mask is for observed arrays, and this is one number"))
            log_weight = effect.terms.weigh(log_weight)
        if kind == "twist":
            if log_weight == -math.inf:
                fail(
                    fiber,
                    InvalidWeight(f"{_at(fiber)}: a twist must be finite; −inf belongs in a factor, which kills"),
                )
            fiber.guide.level = log_weight
        elif log_weight == -math.inf:
            run.kill()
        else:
            run.log_potential += log_weight
        if kind == "sample":
            self._observed(fiber, effect, log_weight)
        else:
            run.sites.append(_new(Site, (effect.name, effect.visit, kind, log_weight, 0.0, 0.0, effect.hidden)))
            fiber.value = None
        fiber.log = (fiber.log, kind, effect.name, effect.request, fiber.value)
        run.waiting.append(fiber)

    def _observed(self, fiber: Fiber, effect: Sample, log_prob: float) -> None:
        fiber.value = effect.obs = value = guard(effect.obs)
        site = (effect.name, effect.visit, "observe", value, log_prob, 0.0, effect.hidden)
        fiber.run.sites.append(_new(Site, site))
        if effect.fixed is not MISSING:  # the evidence stays; what follows sees the intervention
            self._intervene(fiber, effect)
            fiber.value = effect.fixed

    def _calls(self, fibers: list[Fiber], rows: Any) -> None:
        calls = [(fiber.effect.fn, fiber.effect.args) for fiber in fibers]
        if current() is None:
            results = evaluate_calls(calls)
        else:
            results = recorded_calls(calls, self._site_keys([fiber.effect for fiber in fibers], rows).tolist())
        for fiber, result in zip(fibers, results):
            self.called(fiber, result if type(result) is Failed else guard(result))

    def _nested(self, fibers: list[Fiber], rows: Any) -> None:
        effects = [fiber.effect for fiber in fibers]
        for fiber, posterior in zip(fibers, nesting.serve(effects, self._site_keys(effects, rows))):
            self.called(fiber, posterior)

    def _site_keys(self, effects: Sequence[Effect], rows: Any) -> Keys:
        """Return a key for the site that each of some runs is at."""
        sites = [(effect.name, effect.visit) for effect in effects]
        (name, visit), own = sites[0], self.keys[rows]
        if sites.count((name, visit)) == len(sites):  # as they nearly always are
            return _keys.fold(own, _keys.tag(name), visit)
        tags = np.array([_keys.tag(name) for name, _ in sites], np.uint64)
        return _keys.fold(own, tags, np.array([visit for _, visit in sites], np.int64))

    def called(self, fiber: Fiber, value: Any) -> None:
        """Record the value of a call or a nested run, and go on with it."""
        effect = fiber.effect
        if effect.kind == "nested":
            fiber.run.scored = False  # it is random, and how likely it was is not known
        shown = repr(value.error) if type(value) is Failed else value
        fiber.run.sites.append(_new(Site, (effect.name, effect.visit, "call", shown, 0.0, 0.0, effect.hidden)))
        fiber.log = (fiber.log, effect.kind, effect.name, effect.request, value)
        self._ready.append((fiber, value))


def _fits(run: Run, effect: Sample) -> bool:
    """Whether a site is among those whose values are given on trial, and the value has the form of its draws."""
    if effect.obs is not MISSING or effect.fixed is not MISSING:
        return True
    assert run.given is not None
    value = run.given.get(address(effect.name, effect.visit), MISSING)
    if value is MISSING or effect.forced is not MISSING:  # a handler's value may have another form: True, or 1 for 1.0
        return value is not MISSING
    fits = getattr(effect.kernel, "fits", None)
    return fits is None or bool(fits(value))


def _check_count(kernel: Any, method: str, wanted: int, *got: int) -> None:
    if any(count != wanted for count in got):
        raise ValueError(f"{type(kernel).__name__}.{method} got {wanted} requests and returned {min(got)} results")


def _log_probs_of(kernel: Any, log_probs: Any) -> list[float]:
    try:
        numbers: list[float] = reals(log_probs).tolist()
    except TypeError as error:
        raise InvalidWeight(f"{type(kernel).__name__}: among its log-probabilities there is {error}") from error
    return numbers


def _rank(group: Any, fibers: list[Fiber]) -> int:
    """Order of service: light draws, then calls, then models and rewards, and last runs within the run."""
    if group[0] == "draw" or group[0] == "log_prob":
        effect = fibers[0].effect
        kernel = effect.unscored[-1] if group[0] == "log_prob" else effect.proposal or effect.kernel
        return 2 if getattr(kernel, "expensive", False) else 0
    return {"call": 1, "nested": 3}.get(group[0], 2)


def _items(values: Any) -> Iterable[Any]:
    """Iterate over drawn values: Python numbers for a flat array, read-only rows for a deeper one."""
    if isinstance(values, np.ndarray):
        if values.ndim == 1:
            return values.tolist()  # type: ignore[no-any-return]
        values.flags.writeable = False
    return values  # type: ignore[no-any-return]


def _at(fiber: Fiber) -> str:
    effect: Effect = fiber.effect
    return f"particle {fiber.run.row}, {effect.kind} {address(effect.name, effect.visit)!r}"
