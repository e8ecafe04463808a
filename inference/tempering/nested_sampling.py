"""Nested sampling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ...ppl import keys as _keys
from ...ppl.errors import AllParticlesDead, Unsupported
from ...ppl.keys import Keys
from ...ppl.model import FeynmanKac, Floats, Index
from ..base.checks import is_real, one_of, positive
from ..base.engine import Growing, Guarantee, Ranking, Report, Run
from ..base.paths import (
    Asking,
    MarkovKernel,
    Path,
    check_kernel,
    check_reach,
    describe_paths,
    gather,
    growing,
    promise,
    record,
    tune,
)
from ..base.step import Step
from ..base.weights import logmeanexp, normalize
from ..moves.sweep import Sweep
from ..particles.path_filter import Filtering, path_filter
from ..particles.smc import SMC


class Above(NamedTuple):
    """What k paths must stay above: their log potential exceeds ``log_potential``, or ``ties`` (k,) and equals it."""

    log_potential: float
    ties: NDArray[np.bool_]

    def holds(self, paths: Sequence[Path]) -> NDArray[np.bool_]:
        """Whether each path does, (k,)."""
        logs = potentials(paths)
        result: NDArray[np.bool_] = (logs > self.log_potential) | (self.ties & (logs == self.log_potential))
        return result


@runtime_checkable
class Constrained(Protocol):
    """A Markov kernel on paths that leaves the prior invariant where the potential is above a threshold."""

    def move_above(
        self, model: FeynmanKac[Any], live: Sequence[Path], start: Index, keys: Keys, above: Above, moves: int
    ) -> Asking[tuple[list[Path], float]]:
        """Make some moves of k paths of a population, each independently.

        Args:
            model: theirs.
            live: n paths, which have the law that is to be kept, nearly: for the shape of proposals.
            start: (k,) those that are to be moved.
            keys: (k,)
            above: the constraint, which they satisfy.
            moves: how many.

        Returns:
            The k paths after the moves, and the share of moves that were accepted.
        """


@dataclass(frozen=True)
class NestedSampling:
    """Nested sampling: a live population climbs the likelihood, and what it leaves behind is the posterior.

    It is for static targets (as `TemperedSMC` is), also where the likelihood jumps, or has phases that no tempering
    passes through smoothly; and it needs no ladder.

    Feynman–Kac mapping: whole runs y have the prior p(y) and the likelihood L = ∏G(y). Of n live runs the k of least L
    die, and are replaced by runs from the prior where L is larger: survivors that are copied and moved by a kernel that
    leaves p invariant, and stay where they are when it would take them below. The prior mass X above the threshold
    begins at 1. Each run that dies has the mass X/n, and then X becomes X·(1 − k/n); each survivor of the end has X/n.
    With moves that forget where they began, Ẑ = Σ (mass)·L is unbiased for any n, k and stopping rule, other than with
    the usual X = e^(−i/n). Equal values of L are ordered by a uniform label, so that plateaus and discrete rewards are
    exact, too. Runs with L = 0 die first, all at once.

    The particles are the dead in their order, and the last survivors; each weighs X·L, so that ``log_weights −
    log_potential`` is log X. ``info`` has the ``information`` H = KL(posterior‖prior) in nats, the ``remainder`` (the
    live share of Ẑ), the ``acceptance``, the share of copies that stayed ``unmoved``, and the number of ``batches``.
    ``log_evidence_se`` of one chain is the spread that the ``shrinkage`` alone has, √(H/n) for k = 1. A run that is cut
    short counts its survivors, as at the end.

    A kernel is applied to the model at inverse temperature 0 and must be reversible, as `SuffixMH` (any program, texts
    too), `RandomWalk` and the other moves on continuous sites are; those of a `Sweep` are taken one by one.
    `HitAndRunSlice` finds its way within the constraint, where the model has a density of JAX. A kernel that has a
    method ``tuned`` is adapted in each batch.

    Args:
        live: n, the runs that are alive at a time: the error falls with √n.
        kernel: moves a run.
        moves: how often it is applied to a copy. Few leave copies too close to what they were made from.
        delete: k, how many die at a time: their replacements share batches.
        remainder: the run ends where the live share of Ẑ is below it.
        chains: independent runs, pooled in proportion to their evidence.
        all_dead: "error" raises `AllParticlesDead` when no first run has L > 0; "zero" returns log Z = −inf.

    Raises:
        Unsupported: for a model that draws from proposals (the first runs must be draws from the prior), and for a
            kernel that is known never to move a choice.

    Cost: A few hundred evaluations for each of the live points, times the information in the likelihood.
    When it pays: For the evidence with its error from one run, and likelihoods with a phase transition, where
    temperatures fail.

    Source: Skilling (2006), doi:10.1214/06-BA127; the weights: Walter (2014), arXiv:1412.6368; on plateaus: Fowlie,
    Handley and Su (2020), arXiv:2010.13884.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def measured():
    ...     z = await fk.sample("z", fk.dist.Normal(0.0, 1.0))
    ...     await fk.observe("y", fk.dist.Normal(z, 0.5), 1.5)
    ...     return z
    >>> posterior = fk.infer(measured(), fk.NestedSampling(60, fk.SuffixMH(1), delete=6), seed=0)
    >>> abs(posterior.expect(float) - 1.2) < 0.2, abs(posterior.log_evidence + 1.931) < 3 * posterior.log_evidence_se
    (True, True)
    """

    live: int
    kernel: MarkovKernel | Constrained
    moves: int = 10
    delete: int = 1
    remainder: float = math.exp(-3)
    chains: int = 1
    all_dead: Literal["error", "zero"] = "error"
    ranking: ClassVar[Ranking] = "reward"

    def __post_init__(self) -> None:
        for name in ("live", "moves", "delete", "chains"):
            positive(name, getattr(self, name))
        if not isinstance(self.kernel, Constrained) or isinstance(self.kernel, type):
            check_kernel("kernel", self.kernel)
        if self.delete >= self.live:
            raise ValueError(f"delete must leave some of the {self.live} live runs, not {self.delete}")
        if not is_real(self.remainder) or not 0.0 < self.remainder < 1.0:
            raise ValueError(f"remainder is a share of the evidence, between 0 and 1, not {self.remainder!r}")
        one_of("all_dead", self.all_dead, ("error", "zero"))

    @property
    def guarantee(self) -> Guarantee:
        """What it promises."""
        return promise(self.kernel, "consistent")

    @property
    def particles(self) -> int:
        """Particles of a chain, at least: those that are alive at its end."""
        return self.live

    def run(self, model: FeynmanKac[Any], key: Keys) -> Run:
        """Yield what to compute and what came of it; see `engine`."""
        paths = yield from self._begin(model, key)
        now = Population(self, model, paths, _keys.uniform(_keys.fold(key, _keys.tag("label")), self.live)[0])
        if not now.alive and self.all_dead == "error":
            raise AllParticlesDead(
                f"all {self.live} first runs have weight zero. Use more live runs, or soften the factor; or set "
                'all_dead="zero" to get log Z = -inf instead'
            )
        yield now.report()
        kernel = self.kernel if isinstance(self.kernel, Constrained) else Rejecting.by(self.kernel)
        for path in now.alive[:1]:
            check_reach("NestedSampling", self.kernel, model, path)
        while now.remainder >= self.remainder:
            draw = _keys.fold(key, _keys.tag("replace"), now.batches)
            above, origin = now.bury(_keys.fold(draw, _keys.tag("copy")))
            kicks = _keys.fold(draw, _keys.tag("move"), np.arange(len(origin)))
            if type(kernel) is Rejecting:
                kernel = kernel.adapted(model, now.live)
            born, rate = yield from kernel.move_above(model, now.live, origin, kicks, above, self.moves)
            now.bear(born, origin, rate, above, _keys.uniform(_keys.fold(kicks, _keys.tag("label"))))
            yield now.report()

    def _begin(self, model: FeynmanKac[Any], key: Keys) -> Filtering[list[Path]]:
        """Draw the first runs, with a report of each step: importance sampling so far."""

        def watch(depth: int, paths: list[Path], log_weights: Floats, *_: Any) -> Growing:
            return growing(model, describe_paths(depth, paths, log_weights), paths, log_weights, None)

        paths, _ = yield from path_filter(model, key, SMC(self.live, ess_threshold=0.0), watch)
        return paths


@dataclass
class Rejecting:
    """Kernels that leave the prior invariant and are reversible, made to stay where they would go below a threshold.

    They move in turn, and each stays by itself: so the rest that is left of each leaves the constrained prior
    invariant, which would not hold of them as one. ``rates`` are the shares that were accepted in the last use.
    """

    kernels: tuple[MarkovKernel, ...]
    rates: tuple[float | None, ...]

    @classmethod
    def by(cls, kernel: MarkovKernel) -> Rejecting:
        """Make one of a kernel, or of the parts of a `Sweep`."""
        parts = _parts(kernel)
        return cls(parts, (None,) * len(parts))

    def adapted(self, model: FeynmanKac[Any], live: Sequence[Path]) -> Rejecting:
        """Return it as its kernels have learned from the live runs, those that do learn."""
        even = np.zeros(len(live))
        found = [tune(one, model, live, even, None, even, rate) for one, rate in zip(self.kernels, self.rates)]
        return Rejecting(tuple(found), self.rates)

    def move_above(
        self, model: FeynmanKac[Any], live: Sequence[Path], start: Index, keys: Keys, above: Above, moves: int
    ) -> Asking[tuple[list[Path], float]]:
        """See `Constrained`."""
        paths, rates = [live[i] for i in start.tolist()], np.zeros(len(self.kernels))
        prior = np.zeros(len(paths))
        for j in range(moves):
            for k, kernel in enumerate(self.kernels):
                made, rate = yield from kernel.move(model, paths, _keys.fold(keys, j, k), None, prior)
                better = above.holds(made).tolist()
                fates = [ok for new, old, ok in zip(made, paths, better) if new is not old]
                rates[k] += rate * (float(np.mean(fates)) if fates else 1.0) / moves
                paths = [new if ok else old for new, old, ok in zip(made, paths, better)]
        self.rates = tuple(rates.tolist())
        return paths, float(rates.mean())


def _parts(kernel: MarkovKernel) -> tuple[MarkovKernel, ...]:
    """Return the kernels of which a `Sweep` is made, also of others; of another kernel, itself."""
    return tuple(one for part in kernel.kernels for one in _parts(part)) if isinstance(kernel, Sweep) else (kernel,)


class Population:
    """The live runs of a chain, and the dead.

    Attributes:
        live: n runs (fewer within a batch), ``logs`` (n,) their log L and ``labels`` (n,).
        log_mass: log X.
        batches: how many have died.
    """

    def __init__(self, settings: NestedSampling, model: FeynmanKac[Any], paths: list[Path], labels: Floats) -> None:
        self.settings, self.model = settings, model
        self.live, self.logs, self.labels = paths, checked(model, paths), labels
        self.log_mass = 0.0
        self.batches = 0
        self._log_live = logmeanexp(self.logs)  # the share of the living in log Ẑ
        self._dead: list[Path] = []
        self._weights: list[float] = []  # log X + log L of each
        self._log_dead = -math.inf  # their share of log Ẑ
        self._accepted = 0.0  # over the batches
        self._unmoved = 0  # of all that were born
        self._zeros = 0  # among the first runs

    @property
    def alive(self) -> list[Path]:
        """Those with L > 0."""
        return [path for path, log in zip(self.live, self.logs) if log > -math.inf]

    @property
    def log_evidence(self) -> float:
        """log Ẑ."""
        return float(np.logaddexp(self._log_dead, self._log_live))

    @property
    def remainder(self) -> float:
        """The share of the live runs in Ẑ; 0 where all are dead."""
        return math.exp(self._log_live - self.log_evidence) if self._log_live > -math.inf else 0.0

    def bury(self, key: Keys) -> tuple[Above, Index]:
        """Let the runs of least L die. Return what those that replace them must be above, and whom they begin as."""
        n, zeros = len(self.live), int(np.isneginf(self.logs).sum())
        k = zeros or self.settings.delete
        self._zeros = max(zeros, self._zeros)
        order = np.lexsort((self.labels, self.logs))
        worst, others = order[:k], order[k:]
        self._dead += [self.live[i] for i in worst.tolist()]
        self._weights += (self.log_mass + self.logs[worst]).tolist()
        self._log_dead = float(np.logaddexp(self._log_dead, self.log_mass + _log_sum(self.logs[worst]) - math.log(n)))
        self.log_mass += math.log1p(-k / n)
        last, label = float(self.logs[worst[-1]]), float(self.labels[worst[-1]])
        self._label = label
        self.live = [self.live[i] for i in others.tolist()]
        self.logs, self.labels = self.logs[others], self.labels[others]
        ranked = np.argsort(_keys.uniform(key, len(others))[0], kind="stable")
        origin = ranked[np.arange(k) % len(others)]
        # A run on the plateau of the last that died may stay on it if its label is above; labels come after, by Gibbs.
        return Above(last, (self.labels[origin] > label) & (zeros == 0)), origin

    def bear(self, born: list[Path], origin: Index, rate: float, above: Above, u: Floats) -> None:
        """Take the new runs among the living; ``u`` (k,) are uniform."""
        self._unmoved += sum(new is self.live[i] for new, i in zip(born, origin.tolist()))
        logs = checked(self.model, born)
        labels = np.where(logs > above.log_potential, u, self._label + (1.0 - self._label) * u)
        self.live = [*self.live, *born]
        self.logs, self.labels = np.concatenate([self.logs, logs]), np.concatenate([self.labels, labels])
        self._log_live = self.log_mass + logmeanexp(self.logs)
        self.batches += 1
        self._accepted += rate

    def report(self) -> Growing:
        """Report the dead and the living, as they are now."""
        count, paths, logs = len(self._dead), self.live, self.log_mass + self.logs
        log_evidence, remainder, batches, accepted = self.log_evidence, self.remainder, self.batches, self._accepted
        unmoved = self._unmoved / max(1, count)
        step: Step = replace(
            describe_paths(batches, paths, logs), log_evidence=log_evidence, choices=((),) * len(paths)
        )

        def made() -> Report:
            kept, log_weights = [*self._dead[:count], *paths], np.array([*self._weights[:count], *logs])
            scale = math.log(len(kept) / len(paths))  # so that they have the mean Ẑ
            info = {"remainder": remainder, "batches": float(batches)}
            if batches:
                info |= {"acceptance": accepted / batches, "unmoved": unmoved}
            if log_evidence > -math.inf:
                info |= _information(log_weights, potentials(kept), log_evidence, self._zeros, self.settings)
            tree = record(kept, log_weights + scale)
            return Report(gather(self.model, kept), log_weights, None, log_evidence, tree=tree, info=info)

        return Growing(made, step, count + len(paths))


def _information(
    log_weights: Floats, logs: Floats, log_evidence: float, zeros: int, settings: NestedSampling
) -> dict[str, float]:
    """Return H, and the standard error of log Ẑ that comes of the shrinkage of X.

    Where k of n die, log X falls by −log(1 − k/n), with variance k/(n(n − k)). It falls by H up to where the mass of
    the posterior is: by the zeros first, and then by batches.
    """
    weights = normalize(log_weights)
    used = weights > 0
    information = max(0.0, float(weights[used] @ logs[used]) - log_evidence)
    n, k = settings.live, settings.delete
    fall = max(0.0, information + math.log1p(-zeros / n))
    variance = zeros / (n * (n - zeros)) + fall * k / (n * (n - k)) / -math.log1p(-k / n)
    return {"information": information, "shrinkage": math.sqrt(variance)}


def _log_sum(logs: Floats) -> float:
    return logmeanexp(logs) + math.log(len(logs))


def potentials(paths: Sequence[Path]) -> Floats:
    """Return log L of paths (n,); −inf of the dead."""
    return np.array([path.log_potential if path.log_weight > -math.inf else -math.inf for path in paths])


def checked(model: FeynmanKac[Any], paths: Sequence[Path]) -> Floats:
    """Return log L of paths (n,). Raises `Unsupported` for those that were not drawn from the prior."""
    for path in paths:
        if path.log_weight > -math.inf and path.log_prob != path.log_proposal:
            raise Unsupported(
                f"NestedSampling begins with draws from the prior, and {model!r:.200} draws from proposals: take them "
                "out, or use TemperedSMC"
            )
    return potentials(paths)
