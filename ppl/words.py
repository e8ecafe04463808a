"""The words of the language: `sample`, `factor`, `gather` and the rest; each returns an effect, to be awaited."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from .distributions.adapters import as_kernel
from .effects import Call, Factor, Gather, Race, Sample, Scan, Twist
from .errors import AmbiguousScore, OutsideProgram
from .score import Score
from .sites import MISSING, Running
from .values.reals import real

F = TypeVar("F", bound=Callable[..., Sequence[Any]])


def sample(name: str, dist: Any, *, obs: Any = None, proposal: Any = None) -> Awaitable[Any]:
    """Draw from a distribution, an LLM step, a denoising step, or anything with the kernel protocol.

    Args:
        name: the site's name; a repeated name is indexed by visit.
        dist: the model's law p: a `Kernel`, or a distribution of NumPyro, scipy.stats or torch.
        obs: an observed value: then nothing is drawn, log p(obs) is a potential, and the step ends.
        proposal: a law q to draw from instead; the weight is corrected by log p − log q at the next step end.

    Returns:
        An awaitable of the value.

    Raises:
        UnsupportedProposal: when q cannot reach all that p can.
        CannotScore: when ``obs`` or ``proposal`` needs a log-probability that the kernel cannot give.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def coin():
    ...     return await fk.sample("heads", fk.dist.Bernoulli(0.3))
    >>> fk.simulate(coin(), seed=1).value in (0, 1)
    True
    """
    kernel = as_kernel(dist)
    if obs is None:
        obs = MISSING
    else:
        kernel, obs = observing(kernel, obs)
    return Sample(name, kernel, obs, None if proposal is None else as_kernel(proposal))


def observing(kernel: Any, value: Any) -> tuple[Any, Any]:
    """Return the kernel and the value that are meant where a kernel is observed at a value, see `Kernel`."""
    return kernel.observing(value) if hasattr(kernel, "observing") else (kernel, value)


def observe(name: str, dist: Any, value: Any) -> Awaitable[Any]:
    """Condition on a value: log p(value) is a potential, and the step ends. Alias of ``sample(…, obs=value)``."""
    return Sample(name, *observing(as_kernel(dist), value), None)


def factor(name: str, log_weight: float | Score) -> Awaitable[None]:
    """Multiply the particle's weight by exp(log_weight), and end the step.

    Args:
        name: the site's name.
        log_weight: a number (a log-weight; −inf kills the particle), or a lazy `Score` of kind log_weight.

    Raises:
        AmbiguousScore: for a score that is not yet a log-weight, and for bools (also NumPy's, torch's and JAX's),
            complex numbers and other things that are no real number.
        InvalidWeight: for NaN and +inf.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def biased():
    ...     heads = await fk.sample("heads", fk.dist.Bernoulli(0.5))
    ...     await fk.factor("prefer heads", 2.0 if heads else 0.0)
    ...     return heads
    >>> round(float(fk.enumerate_program(biased()).probability(1)), 4)
    0.8808
    """
    return Factor(name, log_weight if type(log_weight) is float else _log_weight(name, log_weight))


def twist(name: str, log_value: float | Score) -> Awaitable[None]:
    """Set the level of the guide to ``log_value``, an estimate of the future log-weight, and end the step.

    The level steers resampling and never the target. It holds until the next twist, and is 0 once the program
    has returned. It must be finite: −inf belongs in a factor.

    A factor and a twist one after the other are two steps, and particles may be resampled between them, by the old
    level. To make one step of both, gather them:

        await fk.gather(fk.factor("G", log_weight), fk.twist("later", log_value))
    """
    return Twist(name, _log_weight(name, log_value))


def call(name: str, fn: Any, *args: Any) -> Awaitable[Any]:
    """Compute something whose value the program needs, together with the calls of all other particles.

    ``fn`` may be a function, an async function (all particles' calls run side by side on a background loop), a
    function marked with `batched`, a reward (its number is returned), or a `Score` or another value that is still
    to be computed, such as ``lm.next_log_probs(text)`` (then without ``args``). The
    value is recorded: a forked particle gets it back without a new call, so ``fn`` may be random or have effects.
    """
    return Call(name, fn, args)


def gather(*branches: Any, name: str = "gather") -> Awaitable[tuple[Any, ...]]:
    """Run sub-programs side by side and return their values in order; their calls share batches.

    Each branch is a coroutine, a bound program or an effect. A step ends when every live branch is at a step end.

    A branch may change what is its own, and returns the rest: a fork does not repeat a branch that has finished, so
    that a change of what is around it (a list, a variable of an enclosing function, an attribute, a global) would be
    lost. It is refused, and `cell` is the word for state that branches share. What is *not* seen: what is reached by
    more than a few steps, or from the functions of another package; private attributes of another package's classes;
    items beyond the first few hundred of a long container, where their number stays the same; what C code keeps; and
    the state of objects that the program was given as arguments, or finds among its globals, which are taken for
    models and tools.

    Raises:
        SharedMutation: where a branch has changed something around it, when it next awaits or returns.
    """
    return Gather(name, branches)


def race(*branches: Any, k: int = 1, name: str = "race") -> Awaitable[tuple[tuple[int, Any], ...]]:
    """Run sub-programs side by side until ``k`` of them have returned, and cancel the others.

    Branches are those of a `gather`, and are heard in time of the program, not of the clock: it is decided where a step
    ends, and who draws, calls or weighs no more after a step end has returned at that step end. The others are closed
    there, so that what they would have done next does not happen. Their draws and factors so far stay, and so does what
    they wrote to cells before that step end (what they wrote after it is lost); their twist levels become 0.

    Args:
        *branches: coroutines, bound programs or effects.
        k: how many branches win, from 1 to their number.
        name: its sites are called ``"race.0/…"``, ``"race.1/…"``; a second race of that name is ``"race[1]"``.

    Returns:
        An awaitable of ``((index, value), …)``, the k first, in the order of the step ends that they have taken, and
        of their indices where these are equal.

    Raises:
        ValueError: where ``k`` is below 1 or above the number of branches.
        SharedMutation: as in `gather`.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def model():
    ...     async def work(early):
    ...         rounds = 1 if await fk.sample("early", fk.dist.Bernoulli(early)) else 2
    ...         for _ in range(rounds):
    ...             await fk.factor("round", 0.0)
    ...         return rounds
    ...     return await fk.race(work(0.5), work(0.2))
    >>> {won: round(p, 3) for won, p in fk.enumerate_program(model()).law().items()}
    {((0, 2),): 0.4, ((1, 1),): 0.1, ((0, 1),): 0.5}
    """
    return Race(name, branches, k)


def scan(
    step: Callable[[Any, Any], Any],
    init: Any,
    xs: Sequence[Any],
    *,
    name: str = "scan",
    compiled: bool | None = None,
) -> Awaitable[tuple[Any, tuple[Any, ...]]]:
    """Run ``carry, y = await step(carry, x)`` over ``xs`` and return the last carry and the tuple of ys.

    All that an iteration needs is in its carry, so that a forked particle restarts from the carry instead of
    replaying the whole history: use it for long state-space loops. What an iteration would leave elsewhere is lost in a
    fork. It is refused as in `gather`, and as far as that can see; put it into the carry, or into a `cell`.

    The first scan of a program that `infer` runs is *compiled* where JAX can trace the program: its laws are those of
    `dist`, NumPyro's or their like, and its code computes with `jax.numpy` and does not branch on what is drawn. Then a
    step of all particles is one call, and under `SMC` and `ParticleGibbs`, without callbacks and budget, so is the
    whole run. An iteration is one step then, its potentials summed, with what is before the scan in the first and what
    is after it in the last: same target and Z, other draws; so that a callback, a budget or `steps` changes the draws
    of a run that is compiled whole. ``posterior.info["compiled"]`` says whether it was, or why not.

    Args:
        step: an async function of the carry and an input, that returns the next carry and a y.
        init: the first carry.
        xs: the inputs.
        name: in messages.
        compiled: True raises where it cannot be compiled; False interprets it; None compiles it where it can be and
            that pays, from 50,000 iterations of particles on.

    Raises:
        NotTraceable: with ``compiled=True``, where JAX cannot trace the program; it names the site.
        SharedMutation: where an iteration has changed its carry or its input in place, or something around it.
    """
    return Scan(name, step, init, xs, compiled)


def deterministic(name: str, value: Any) -> Any:
    """Record a quantity and return it. ``"output"`` is the particle's value so far, shown if it never finishes."""
    if Running.fiber is None:
        raise OutsideProgram(f"fk.deterministic({name!r}, …) was used where no program is running")
    Running.fiber.record(name, value)
    return value


def batched(fn: F) -> F:
    """Mark a function as taking the list of all particles' arguments, for `call`.

    Each item is the one argument, or the tuple of arguments where there are several.

    >>> @batched
    ... def lengths(texts):
    ...     return [len(text) for text in texts]
    >>> lengths.batched
    True
    """
    fn.batched = True  # type: ignore[attr-defined]
    return fn


def _log_weight(name: str, value: Any) -> float | Score:
    if isinstance(value, Score):
        if value.kind != "log_weight":
            how = ".log() or .logit()" if value.kind == "probability" else "/ beta"
            raise AmbiguousScore(f"site {name!r}: {value!r} is not a log-weight; say how with {how}")
        return value
    if Running.fiber is not None and Running.fiber.traced:
        return value  # type: ignore[no-any-return]  # a symbol, which `feynkac.ppl.traced` looks at
    try:
        return real(value)
    except TypeError as error:
        raise AmbiguousScore(
            f"site {name!r}: a log-weight is a number or a score, and this is {error}"
            + ("; to keep only what is ok, write 0.0 if ok else -math.inf" if "bool" in str(error) else "")
        ) from error
