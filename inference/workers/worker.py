"""Runs chunks of problems, one after the other, wave by wave."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from ...ppl.cost import Budget, Cost
from ..base.step import Step
from ..problem import Problem
from ..results.posterior import Posterior
from ..session import Tolerant
from .job import Facts, Job
from .travel import pack


class Outcome(NamedTuple):
    """What became of a unit.

    Attributes:
        unit: its number.
        posterior: as a file has it; None where there is none.
        error: what its model or engine raised, or why its posterior cannot be saved.
        whole: whether it came to its end, or to that of its budget.
    """

    unit: int
    posterior: bytes | None
    error: Exception | None
    whole: bool


class Lot(Tolerant):
    """A session whose problems end alone: where an engine fails, or at a budget that each has for itself."""

    def __init__(self, problems: Sequence[Problem], budget: Budget | None, watched: bool, alone: bool) -> None:
        self._each = budget or Budget()
        self._watched = watched or self._each.limited
        self._spent: dict[int, str] = {}
        super().__init__(problems)
        self._raises = alone  # as `infer` has it, however few of many problems are here

    def _goes_on(self, i: int) -> bool:
        if not super()._goes_on(i):
            return False
        owner = self._tasks[i].owner
        # The first wave is always made, so that there is a posterior to return.
        if self._each.limited and owner not in self._spent and self._standings[i].report is not None:
            reason = self._each.exceeded(self.ledger.of(owner))
            if reason is not None:
                self._spent[owner] = reason
        return owner not in self._spent

    def wave(self) -> list[Step] | None:
        """Make the next wave; what is under way when the seconds of a problem are spent is given up, as in any run."""
        if self.begun:
            self.ledger.limit(self._each.seconds)
        return super().wave()

    def _over(self, owner: int) -> bool:
        return all(now.over for task, now in zip(self._tasks, self._standings) if task.owner == owner)

    def _whole(self, owner: int) -> bool:
        spent = owner in self._spent or self.stopped == "seconds"
        return owner not in self.failures and (spent or self._over(owner))

    def _posterior(self, owner: int, places: Sequence[int]) -> Posterior:
        stopped = self._spent.get(owner) or (None if self._over(owner) else self.stopped)
        return replace(super()._posterior(owner, places), stopped="error" if owner in self.failures else stopped)

    def outcomes(self, units: Sequence[int]) -> list[Outcome]:
        """Return what became of each problem; ``units`` are their numbers among all."""
        return [
            _outcome(unit, posterior, self.failures.get(owner), self._whole(owner))
            for owner, (unit, posterior) in enumerate(zip(units, self.posteriors))
        ]


def _outcome(unit: int, posterior: Posterior, error: Exception | None, whole: bool) -> Outcome:
    try:
        return Outcome(unit, pack(posterior), error, whole)
    except (TypeError, ValueError) as refusal:
        refusal.add_note("feynkac: posteriors come from workers, and go into a folder, as `Posterior.save` writes them")
        return Outcome(unit, None, error or refusal, False)


class Worker:
    """The units of a job, made once, and the chunk of them that is being run.

    A chunk is run in lockstep, as `infer` does it. Where something raises, which may be of any of its problems, each is
    run alone: the others find what they would have found beside it.
    """

    def __init__(self, job: Job, device: str | None = None) -> None:
        self._job = job
        self._units = job.make(device)
        self._reason: str | None = None
        self._waiting: deque[Sequence[int]] = deque()
        self._lot: Lot | None = None
        self._outcomes: list[Outcome] = []
        self._cost = Cost()

    @property
    def facts(self) -> Facts:
        """What the run is on."""
        return self._units.facts

    @property
    def particles(self) -> int:
        """How many particles a unit has, roughly."""
        return self._units.particles

    @property
    def over(self) -> bool:
        """Whether there is no chunk to run, or no more of it."""
        return not self._waiting

    def begin(self, units: Sequence[int]) -> None:
        """Take a chunk, once the one before is over."""
        self._outcomes, self._cost = [], Cost()
        self._waiting = deque([units])

    def wave(self) -> list[Step] | None:
        """Make the next wave and return its steps; None where the chunk is over. May be asked again after Ctrl-C."""
        while self._waiting:
            units = self._waiting[0]
            try:
                if self._lot is None:
                    self._lot = self._open(units)
                if self._reason is not None:
                    self._lot.stop(self._reason)
                made = self._lot.wave()
            except Exception as error:
                if len(units) == 1:
                    self._fail(units[0], error)
                else:
                    self._close()
                    self._waiting.extend((unit,) for unit in units)
                continue
            if made is not None:
                return made
            self._outcomes += self._lot.outcomes(units)
            self._close()
        return None

    def _open(self, units: Sequence[int]) -> Lot:
        problems = [self._units.problem(unit) for unit in units]
        return Lot(problems, self._job.budget, self._job.watched, self._units.alone)

    def _fail(self, unit: int, error: Exception) -> None:
        """Keep what a problem had found before something was raised in it."""
        outcome, lot = Outcome(unit, None, error, False), self._lot
        if lot is not None and lot.begun:
            lot.stop("error")
            outcome = _outcome(unit, lot.posterior, error, False)
        self._outcomes.append(outcome)
        self._close()

    def _close(self) -> None:
        if self._lot is not None:
            self._cost += self._lot.ledger.total()
        self._lot = None
        self._waiting.popleft()

    def finished(self) -> tuple[list[Outcome], Cost]:
        """Return what became of the chunk, and what it cost."""
        return self._outcomes, self._cost

    def standing(self) -> tuple[int, int, int]:
        """Return how many particles have finished, of how many, and the tokens drawn for the chunk."""
        lot = self._lot
        if lot is None:
            return 0, 0, self._cost.tokens_out
        done, total, _ = lot.standing()
        return done, total, self._cost.tokens_out + lot.ledger.total().tokens_out

    def stop(self, reason: str) -> None:
        """End the chunk, and all that come, after the wave that is being made; may be called by another thread."""
        self._reason = reason
