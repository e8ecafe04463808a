"""What an engine found: weighted values, evidence, and the history that says how far to trust them."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...ppl import keys as _keys
from ...ppl.cost import Cost
from ...ppl.model import Floats, Index
from ...ppl.running.nesting import rely
from ...ppl.sites import Site
from ..base.chain import Chain, detach
from ..base.checks import one_of
from ..base.engine import Guarantee, Ranking
from ..base.selection import best_of
from ..base.step import Step
from ..base.student import LEVEL, Interval, interval
from ..base.thermodynamic import Thermodynamic, thermodynamic
from ..base.weights import ess, logmeanexp, normalize
from ..drawing.html import posterior_html
from ..drawing.summary import summary
from .best import best_particle
from .consensus import Pool, most_liked, tally
from .keeping.files import LIMIT, load, save
from .table import Table, dataframe, draws_of, make_table
from .trust.khat import khat
from .trust.markov import Mixing, mixing
from .trust.reservations import nothing, reservations
from .trust.standard_error import Error, Estimate, evidence_error, mean_error

if TYPE_CHECKING:
    from xarray import DataTree

T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True, repr=False)
class Posterior:
    """Weighted particles with their evidence, history and cost. Made by `infer`.

    It is empty (``len(posterior) == 0``) where the run was cut short before the model had any particles: the evidence
    is then NaN, and what needs a particle raises ValueError.

    Attributes:
        values: what each particle returned, all chains in order; None (or its last ``"output"``) if unfinished.
        chains: the independent runs; their weights share one scale, so that pooling is in proportion to Ẑ_c.
        cost: what the run used.
        guarantee: what the engine promises: "unbiased", "consistent", "discretised" or "heuristic"; "prefix" where the
            run was cut short, so that evidence and weights are those of the steps that were made, not of the model.
        engine: the engine and its settings.
        model: the model and its arguments.
        seed: the seed it was run with.
        stopped: why it was cut short ("tokens", "interrupted", "callback", …), or None.
        ranking: what its best run is told by, "weight" or "reward"; see `best`.
        live: what a `nested` run of some steps goes on from; None elsewhere.
    """

    values: tuple[Any, ...]
    chains: tuple[Chain, ...]
    cost: Cost
    guarantee: Guarantee
    engine: str
    model: str
    seed: int
    stopped: str | None = None
    ranking: Ranking = "weight"
    live: Any = field(default=None, compare=False)

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def log_weights(self) -> Floats:
        """Unnormalised log-weights of all particles, shape (len(self),)."""
        return _fixed(np.concatenate([chain.log_weights for chain in self.chains]))

    @cached_property
    def probabilities(self) -> Floats:
        """Normalised weights, shape (len(self),). Raises ValueError where every weight is zero."""
        self._some()
        if np.isneginf(self.log_weights).all():
            raise ValueError(
                "every particle has weight zero: the posterior has no probabilities (log_evidence is -inf)"
            )
        return _fixed(normalize(self.log_weights))

    @cached_property
    def complete(self) -> NDArray[np.bool_]:
        """Whether each particle ran to its end, shape (len(self),)."""
        return _fixed(np.concatenate([chain.complete for chain in self.chains]))

    @property
    def log_evidence(self) -> float:
        """log Ẑ, the log of the mean of the chains' evidence estimates. Biased down by about Var(log Ẑ)/2.

        NaN where the engine gives none.
        """
        if self.guarantee != "unbiased":
            rely()  # a program that builds on it does not promise more, see `nested`
        return self._log_evidence

    @cached_property
    def _log_evidence(self) -> float:
        evidence = np.array([chain.evidence for chain in self.chains])
        return math.nan if np.isnan(evidence).any() else logmeanexp(evidence)

    @cached_property
    def _evidence_error(self) -> Error:
        return evidence_error(self.chains)

    @property
    def log_evidence_se(self) -> float:
        """Standard error of log Ẑ (delta method); NaN where there is none, see ``log_evidence_se_reason``.

        From the spread of the chains; for one chain from its genealogy, which needs multinomial resampling (or none),
        particles that were not moved after it, and several founders (Lee and Whiteley 2018, doi:10.1093/biomet/asy028;
        see `standard_error`).
        """
        value: float = self._evidence_error.value
        return value

    @property
    def log_evidence_se_reason(self) -> str:
        """Why ``log_evidence_se`` is NaN; empty where it is a number."""
        return self._evidence_error.reason

    def log_evidence_interval(self, level: float = LEVEL) -> Interval:
        """Return log Ẑ with its confidence interval, by Student's t: mean, low, high; NaN where there is no error.

        Of several chains it covers what it says; of one chain less, see `standard_error`.

        >>> import feynkac as fk
        >>> @fk.program
        ... async def coin():
        ...     heads = await fk.sample("heads", fk.dist.Bernoulli(0.5))
        ...     await fk.factor("G", 1.0 * heads)
        >>> mean, low, high = fk.infer(coin(), fk.SMC(100, chains=4), seed=0).log_evidence_interval()
        >>> low < fk.enumerate_program(coin()).log_evidence < high
        True
        """
        return interval(self.log_evidence, self._evidence_error.value, self._evidence_error.df, level)

    @cached_property
    def serial(self) -> bool:
        """Whether the particles are the draws of Markov chains, in their order."""
        return all(chain.serial for chain in self.chains)

    @cached_property
    def ess(self) -> float:
        """Effective sample size, in 0…len(self): of the final weights, or of the draws of Markov chains.

        Of chains it is that of the numbers in the values, rank-normalised, and the least of them; of texts, that of
        the rewards and of which text a draw is. See `markov.mixing`.
        """
        if self.serial and self.drawn:
            return min(float(len(self)), self.mixing.ess)
        return ess(self.log_weights)

    @cached_property
    def mixing(self) -> Mixing:
        """How Markov chains moved: ``mixing.rhat``, ``distinct`` and so on. Raises ValueError for other engines."""
        if not self.serial:
            raise ValueError(f"mixing is that of Markov chains, and {self.engine} is none: see ess, khat and estimate")
        return mixing(self)

    @property
    def drawn(self) -> bool:
        """Whether a complete particle has positive weight."""
        return bool((self.complete & (self.log_weights > -np.inf)).any())

    @cached_property
    def khat(self) -> float:
        """Pareto k̂ of the final weights: below 0.5 good, below 0.7 usable, above it means cannot be trusted.

        It speaks of the weights since the last resampling (`to_datatree` has it for each step). NaN where there is no
        tail to fit; see `khat.khat`. Raises ImportError without arviz-stats (``pip install feynkac[plots]``).
        """
        return khat(self.log_weights)

    @property
    def warnings(self) -> tuple[str, ...]:
        """One sentence for each reason not to trust this posterior, and what to do; see `trust.reservations`."""
        return reservations(self)

    @cached_property
    def log_potential(self) -> Floats:
        """The reward of each particle: log G of its whole path, Σ_t log G_t, shape (len(self),)."""
        return _fixed(np.concatenate([chain.log_potential for chain in self.chains]))

    @property
    def info(self) -> dict[str, Any]:
        """Numbers that say how the engine fared, by name, each the mean over the chains: ``info["acceptance"]``.

        Of a program with a scan, ``info["compiled"]`` is "yes", or "no" and why not.

        A chain that was stopped before it had such a number does not count.
        """
        found = [chain.info for chain in self.chains]
        names = dict.fromkeys(name for info in found for name in info)
        listed = {name: [info[name] for info in found if name in info] for name in names}
        return {name: all_[0] if isinstance(all_[0], str) else float(np.mean(all_)) for name, all_ in listed.items()}

    @property
    def steps(self) -> Sequence[Step]:
        """The history of the first chain (see ``chains``): its steps, or its stages where it is tempered."""
        return self.chains[0].history

    @cached_property
    def thermodynamic(self) -> tuple[Thermodynamic, ...]:
        """log Z by thermodynamic integration, of each chain of a tempered engine: a check of its log Ẑ.

        Raises ValueError for other engines.
        """
        if not all(chain.stages for chain in self.chains):
            raise ValueError(f"thermodynamic integration needs a ladder of temperatures, and {self.engine} has none")
        return tuple(thermodynamic(chain.stages) for chain in self.chains)

    def best(self, by: Ranking | None = None) -> Any:
        """Return the value of the best particle: a complete one, where there is any.

        ``by="weight"`` is the one of largest weight; of an engine that holds a vote, among those of the winning answer.
        ``by="reward"`` is the one of largest `log_potential`, ∏G of its whole run. None is what goes with the engine,
        its ``ranking``, which `summary` names: "reward" for engines that resample, whose weights judge the steps since,
        and for Markov chains, whose draws weigh the same; "weight" for importance sampling, and for searches and pools,
        whose weight is on the run that they chose. What ties in one is told apart by the other; what ties in both
        goes to the value that most particles have.
        """
        if by is not None:
            one_of("by", by, ("weight", "reward"))
        return self.values[self._best(by)]

    def _some(self) -> None:
        """Raise ValueError where there are no particles."""
        if not len(self):
            raise ValueError(nothing(self))

    def _best(self, by: Ranking | None = None) -> int:
        self._some()
        return best_particle(self, by or self.ranking)

    @cached_property
    def _answers(self) -> tuple[Any, ...] | None:
        """What each particle votes for, of an engine that holds a vote."""
        answers = [chain.answers for chain in self.chains if chain.answers is not None]
        return tuple(answer for chain in answers for answer in chain) if answers else None

    def sample(self, n: int, *, seed: int) -> list[Any]:
        """Draw n values with replacement, in proportion to their weights."""
        u = _keys.uniform(_keys.fold(_keys.root(seed), np.arange(n)))
        ends = np.cumsum(self.probabilities)
        index = np.searchsorted(ends, u * ends[-1], side="right")
        return [self.values[i] for i in index]

    @cached_property
    def draw(self) -> Any:
        """One value, drawn in proportion to the weights by the seed of the run: what a `nested` run is often made for.

        Raises ValueError where every weight is zero.
        """
        return self.sample(1, seed=_keys.as_seed(_keys.fold(_keys.root(self.seed), _keys.tag("draw"))))[0]

    def detach(self) -> Posterior:
        """Return the same without what only a live run needs: caches of texts, and what it goes on from."""
        return replace(self, values=tuple(detach(value) for value in self.values), live=None)

    @property
    def fingerprint(self) -> Any:
        """What is compared when a program that goes on from this run is replayed."""
        return (self.engine, self.seed, len(self.steps))

    def to_json(self) -> dict[str, Any]:
        """Return what a file keeps of a `nested` run: all but its history. It is read as a dictionary."""
        names = ("values", "log_weights", "complete", "guarantee", "engine", "model", "seed", "stopped")
        return {**{name: getattr(self, name) for name in names}, "log_evidence": self._log_evidence}

    def expect(self, fn: Callable[[Any], Any]) -> Any:
        """Return the weighted mean of ``fn(value)`` (a number or an array) over the complete particles.

        Raises ValueError where no complete particle has positive weight.
        """
        weights, used, terms = self._terms(fn)
        return _plain(np.tensordot(weights[used], terms, 1))

    def _terms(self, fn: Callable[[Any], Any]) -> tuple[Floats, Index, Floats]:
        """Return the weights of the complete particles (len(self),), which are positive, and their ``fn(value)``."""
        weights = np.where(self.complete, self.probabilities, 0.0)
        if not weights.sum() > 0:
            raise ValueError("no particle ran to its end, so there is nothing to average; raise the budget")
        used = np.flatnonzero(weights)
        terms: Floats = np.stack([np.asarray(fn(self.values[i]), float) for i in used])
        return weights / weights.sum(), used, terms

    def estimate(self, fn: Callable[[Any], Any]) -> Estimate:
        """Return `expect` of ``fn(value)`` with its standard error: ``mean, se, reason = posterior.estimate(fn)``.

        ``posterior.estimate(fn).interval()`` is its 95% interval, by Student's t. Several chains cover best.

        From several chains, or from the genealogy of one that was resampled by the multinomial scheme or not at all,
        and not moved (Lee and Whiteley 2018, doi:10.1093/biomet/asy028); else NaN, and the reason. Both rest on the
        delta method, and say too little where few founders survive.

        >>> import feynkac as fk
        >>> @fk.program
        ... async def coin():
        ...     heads = await fk.sample("heads", fk.dist.Bernoulli(0.5))
        ...     await fk.factor("G", 1.0 * heads)
        ...     return heads
        >>> mean, se, _ = fk.infer(coin(), fk.SMC(400), seed=0).estimate(float)
        >>> abs(mean - 0.731) < 3 * se < 0.1
        True
        """
        weights, used, terms = self._terms(fn)
        mean = np.tensordot(weights[used], terms, 1)
        residuals = np.zeros((len(self), *terms.shape[1:]))
        residuals[used] = (terms - mean) * weights[used].reshape(-1, *[1] * (terms.ndim - 1))
        se, reason, df = mean_error(self.chains, weights, residuals)
        return Estimate(_plain(mean), _plain(se), reason, df)

    def best_of(self, k: int, quality: Callable[[Any], float]) -> float:
        """Return the expected ``quality(value)`` of best-of-k, ranked by reward, from this pool of runs.

        Unbiased for every k up to the number of complete runs: one pool shows how best-of-k grows with k. A run with
        a reward of zero has quality 0. Raises ValueError for runs that were resampled, since they are not
        independent. See `selection.best_of`.
        """
        self._some()
        if any(step.resampled for chain in self.chains for step in chain.steps):
            raise ValueError(
                "best_of needs independent runs, and these were resampled: use BestOfN or ImportanceSampling"
            )
        runs = np.flatnonzero(self.complete)
        scores = self.log_potential[runs]
        found = [float(quality(self.values[i])) if score > -np.inf else 0.0 for i, score in zip(runs, scores)]
        return best_of(scores, found, k)

    def vote(
        self,
        key: Callable[[Any], Hashable] | None = None,
        *,
        reward: Callable[[Any], Any] | ArrayLike | None = None,
        pool: Pool = "sum",
    ) -> dict[Any, float]:
        """Return the total weight of each ``key(value)``, largest first: a weighted majority vote.

        The weights are the engine's: under `ImportanceSampling` with a reward as the last factor it is the vote in
        which rewards are added up. With ``reward`` every run that came to its end has one vote of that number, under
        any engine, whatever its weight, as long as its own potentials are not zero. A tie goes to what was drawn first.

        Args:
            key: what is voted on; None is the value, or the answer of an engine that holds a vote (`SelfConsistency`).
                None of a value abstains, and NaN is one answer.
            reward: of a value: a number, or a score, all of which are evaluated together; or one for each particle.
            pool: what becomes of the rewards of one answer: "sum", "mean", "max", "min", or "logsumexp".

        It is empty where no particle ran to its end with an answer. Raises ValueError for rewards that are NaN, or of
        another number.

        Source: Li et al. (2023), arXiv:2206.02336 (sums of a verifier's scores).

        >>> import feynkac as fk
        >>> @fk.program
        ... async def guess():
        ...     return await fk.sample("x", fk.dist.Categorical([0.95, 0.05], values=["many", "good"]))
        >>> posterior = fk.infer(guess(), fk.BestOfN(100), seed=0)
        >>> worth = {"many": 0.1, "good": 0.9}
        >>> [next(iter(posterior.vote(reward=worth.get, pool=pool))) for pool in ("sum", "max")]
        ['many', 'good']
        """
        return tally(self, key, reward, pool)

    def mbr(self, utility: Callable[[Any, Any], float] | NDArray[Any]) -> Any:
        """Return the value of the most expected utility, argmax_i Σ_j w_j·u(v_i, v_j): the minimum Bayes risk.

        It is the value that the posterior likes best as a whole, where `best` is the one of the largest weight: with
        u = 1 for equal values and else 0 it is the winner of `vote`. Particles that did not run to their end are left
        out; of equal ones the first is returned.

        Args:
            utility: of a value to another, such as a similarity or a reward of both, whose scores are evaluated
                together; or a table (n, n). It is asked n² times.

        Raises ValueError where it is NaN, for a table of another shape, and where no particle ran to its end.

        Source: Bickel and Doksum (1977); for text Eikema and Aziz (2020), arXiv:2005.10283.

        >>> import feynkac as fk
        >>> @fk.program
        ... async def guess():
        ...     return await fk.sample("x", fk.dist.Categorical([0.4, 0.0, 0.3, 0.3], values=[0, 1, 8, 9]))
        >>> posterior = fk.infer(guess(), fk.ImportanceSampling(500), seed=0)
        >>> max(posterior.vote(), key=posterior.vote().get), posterior.mbr(lambda x, y: -abs(x - y))
        (0, 8)
        """
        return most_liked(self, utility)

    # -- history ------------------------------------------------------------------------------------------------

    def _locate(self, particle: int) -> tuple[Chain, int]:
        if not 0 <= particle < len(self):
            raise IndexError(f"particle {particle} of {len(self)}")
        for chain in self.chains:
            if particle < len(chain.log_weights):
                return chain, particle
            particle -= len(chain.log_weights)
        raise AssertionError("unreachable")

    def genealogy(self, particle: int) -> Index:
        """Return the index of a final particle's ancestor at each of its chain's ``steps``, shape (steps,)."""
        chain, i = self._locate(particle)
        return chain.lines[:, i]

    def trace(self, particle: int) -> dict[str, Site]:
        """Return the sites of a particle by address, from its start to its end (programs only)."""
        chain, i = self._locate(particle)
        sites = [s for step, j in zip(chain.steps, chain.lines[:, i]) for s in step.choices[j]]
        return {site.address: site for site in sites if not site.hidden}

    def site(self, address: str) -> list[Any]:
        """Return the value of a site in every particle, None where a particle has not visited it."""
        traces = [self.trace(i) for i in range(len(self))]
        return [trace[address].value if address in trace else None for trace in traces]

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Return the draws of a site by its address in every particle, (len(self), …); the weights are apart.

        Numbers are NaN, and others None, where a particle has not visited it. Where no particle has a site of this name
        it is the part of the values: ``posterior["T"]`` of a program that returns ``{"T": …}``. Raises KeyError where
        there is neither.
        """
        return draws_of(self, name)

    __iter__ = None  # what has names for items is no sequence of them

    def table(self, *, sites: bool = True) -> Table:
        """Return mean, sd, quantiles and effective sample size of each site and each part of the values.

        A notebook shows it; ``table()["x"].mean`` is a number in it, and ``table().to_dataframe()`` makes a DataFrame.
        Sites that particles share, as the early ones do after resampling, have the effective sample size of what they
        share. Of Markov chains it is that of the chain, with R̂ where there are several.

        >>> import feynkac as fk
        >>> @fk.program
        ... async def walk():
        ...     x = await fk.sample("x", fk.dist.Normal(0.0, 1.0))
        ...     await fk.observe("y", fk.dist.Normal(x, 1.0), 2.0)
        >>> abs(fk.infer(walk(), fk.SMC(2000), seed=0).table()["x"].mean - 1.0) < 0.1
        True
        """
        return make_table(self, sites)

    def to_dataframe(self, *, sites: bool = True) -> Any:
        """Return a pandas DataFrame with a row for each particle: its chain, weight, values and sites.

        Raises ImportError without pandas.
        """
        return dataframe(self, sites)

    # -- showing ------------------------------------------------------------------------------------------------

    def to_datatree(self, *, draws: int = 1000, seed: int | None = None, sites: bool = True) -> DataTree:
        """Return the posterior as ArviZ knows it, an ``xarray.DataTree``; see `datatree.to_datatree`.

        Raises ImportError without arviz-base (``pip install feynkac[plots]``).
        """
        from .datatree import to_datatree

        return to_datatree(self, draws=draws, seed=self.seed if seed is None else seed, sites=sites)

    def summary(self, top: int = 5) -> str:
        """Return a short text: evidence, ESS, cost, warnings, and the values of largest weight.

        k̂ is in it where arviz-stats is loaded already (to load it takes a second or two); ask for ``khat`` otherwise.
        """
        return summary(self, top)

    def __repr__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        return posterior_html(self)

    # -- files --------------------------------------------------------------------------------------------------

    def save(self, path: Any) -> None:
        """Write to one file (a zip of JSON and arrays, no pickle); see `load`.

        Values may be texts, numbers, strings, arrays and containers of them; TypeError names any other.
        """
        save(self, path)

    @staticmethod
    def load(path: Any, *, limit: int = LIMIT) -> Posterior:
        """Read what `save` wrote, from anybody: nothing in the file is run, and what is no posterior is refused.

        It may unpack to ``limit`` bytes, 1 GiB unless you say otherwise, and takes a few times that at most. Raises
        UnreadablePosterior for a file that is corrupt, larger, of another format, or not a posterior.
        """
        return Posterior(**load(path, limit))


def _fixed(array: NDArray[T]) -> NDArray[T]:
    """Make a new array read-only."""
    array.flags.writeable = False
    return array


def _plain(number: Any) -> Any:
    """A float for an array without dimensions."""
    return float(number) if np.ndim(number) == 0 else number
