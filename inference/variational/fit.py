"""Fitting a guide: stochastic gradient steps on its parameters."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ...ppl.errors import NonFiniteLoss
from ...ppl.keys import fold, root, tag
from ...ppl.lazy import needing
from ...ppl.program import Program, check_bound
from ...ppl.values.reals import whole_number
from ..base.checks import is_real
from ..base.interrupts import noticing
from ..base.progress import Progress
from .guide import Guide, number
from .objectives.elbo import ELBO
from .objectives.objective import Objective

if TYPE_CHECKING:
    from .gradients.problem import Problem

_MOST = 128
"""Steps of one compiled call."""
_SECONDS = 0.2
"""How long such a call should take, so that Ctrl-C and the progress bar need not wait."""


def fit(
    model: Program,
    guide: Program,
    objective: Objective | None = None,
    steps: int = 1000,
    optimizer: Any = None,
    seed: int = 0,
    *,
    estimators: Mapping[str, str] | None = None,
    progress: bool | None = None,
) -> Guide:
    """Find the parameters of a guide that make an objective best, by stochastic gradients in JAX (float64).

    The guide draws at the addresses of the model's latents, in any order and with control flow of its own; JAX must be
    able to trace both. Its parameters are what it declares by `param`, and those of the model are fitted along (see
    `Guide.bind`). How gradients pass a draw is said site by site, by ``estimators``, or by `estimator` in the guide:

    - "reparam", along the draw's path: the default where the draw is a smooth function of the parameters. What follows
      must be continuous in it; where the code decides by it, it is refused.
    - "enum", all values: the default for sites of at most 16 values (and 256 combinations of all such sites).
    - "score", with the other draws as baseline: the default elsewhere.
    - "mvd", measure-valued, for normal laws: a pair of runs for each parameter, through any code.

    Args:
        model: a bound program.
        guide: a bound program; a fitted `Guide` is fitted on from where it is.
        objective: `ELBO` (the default), `IWAE`, `ForwardKL`, `QWake` or `HVI`.
        steps: of the optimizer.
        optimizer: one of optax; a number is Adam's learning rate; None is Adam at 0.01.
        seed: of all draws.
        estimators: by address, or by name for all visits.
        progress: whether a bar is shown; None: where somebody watches.

    Returns:
        The guide with its parameters. After Ctrl-C it has those of the last step that was made, and its ``stopped`` is
        "interrupted".

    Raises:
        UnfitGuide: for a guide that draws other sites than the model, observes or weighs.
        UnsupportedProposal: for a law whose support is not the model's.
        NotTraceable, NotDifferentiable, Unsupported: naming the site. All these come before the first step.
        NonFiniteLoss: naming the step; its ``guide`` has the last good parameters.

    Source: Becker et al. (2024), doi:10.1145/3656463; Lew et al. (2023), arXiv:2212.06386.

    >>> import feynkac as fk
    >>> @fk.program
    ... async def model():
    ...     z = await fk.sample("z", fk.dist.Normal(0.0, 1.0))
    ...     await fk.observe("y", fk.dist.Normal(z, 0.5), 1.5)
    >>> @fk.program
    ... async def normal():
    ...     await fk.sample("z", fk.dist.Normal(fk.param("loc", 0.0), fk.param("scale", 1.0, "positive")))
    >>> guide = fk.fit(model(), normal(), steps=400, optimizer=0.05, seed=0)
    >>> bool(abs(guide.params["loc"] - 1.2) < 0.1 and abs(guide.params["scale"] - 0.2**0.5) < 0.05)
    True
    """
    check_bound("fit", model)
    check_bound("fit", guide)
    whole_number("steps", steps)
    with needing("fk.fit", "jax"):
        import jax
        import optax

        from .spaces import Spaces
    start: Mapping[str, Any] = {}
    if isinstance(guide, Guide):
        start, guide = guide.params, guide.program
    objective = ELBO() if objective is None else objective
    if isinstance(objective, type) or not hasattr(objective, "loss"):
        raise TypeError(f"objective must be one such as fk.ELBO(8) or fk.IWAE(5), not {objective!r}")
    optimizer = 0.01 if optimizer is None else optimizer
    if is_real(optimizer) and optimizer > 0:
        optimizer = optax.adam(optimizer)
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(
            f"optimizer must be one of optax, or Adam's learning rate, a positive number, not {optimizer!r}"
        )
    with jax.enable_x64(True):
        problem = objective.problem(model, guide, estimators or {})
        spaces = Spaces(problem.declared, start)
        problem.check(spaces.values(spaces.start))
        steering = _Steps(problem, objective, spaces, optimizer, seed)
        return steering.run(steps, progress)


class _Steps:
    """The steps of one fit, made in compiled calls of many."""

    def __init__(self, problem: Problem, objective: Objective, spaces: Any, optimizer: Any, seed: int) -> None:
        import jax

        from ...ppl.traced.laws import jax_key, words

        self._guide = problem.guide
        self._spaces = spaces
        self._total = 0
        self._stopped: str | None = None
        self._at: tuple[Any, list[float]] = ((spaces.start, optimizer.init(spaces.start)), [])
        key = jax_key(words(fold(root(seed), tag("fit"))))[0]
        self._advance = jax.jit(_compiled(problem, objective, spaces, optimizer, key))

    def run(self, steps: int, progress: bool | None) -> Guide:
        """Make the steps, and return the guide; what comes in between leaves it as it is."""
        self._total, many = steps, 1
        try:
            with Progress(self._describe, progress) as bar, noticing(self._note):
                while (done := len(self._at[1])) < steps and self._stopped is None:
                    many = min(many, _MOST, steps - done)
                    began = time.perf_counter()
                    self._advance_by(many)
                    took = time.perf_counter() - began
                    many = max(1, min(4 * many, int(many * _SECONDS / max(took, 1e-9))))
                    bar.update()
        except KeyboardInterrupt:
            self._note()
        return self.made()

    def made(self) -> Guide:
        """Return the guide as it is now."""
        import jax

        (free, _), losses = self._at
        return Guide(self._guide, jax.tree.map(number, self._spaces.values(free)), losses, self._stopped)

    def _advance_by(self, many: int) -> None:
        state, before = self._at
        state, losses, bad, fine = self._advance(state, len(before), many)
        made = np.asarray(losses)[: many if bad < 0 else int(bad) - len(before)].tolist()
        self._at = state, before + made  # at once: Ctrl-C may come between any two lines
        if bad >= 0:
            loss = float(np.asarray(losses)[len(made)])
            wrong = sorted(name for name, ok in fine.items() if not ok)
            what = f"the gradient of {', '.join(map(repr, wrong))}" if np.isfinite(loss) else f"the loss, {loss},"
            raise NonFiniteLoss(
                f"step {int(bad)}: {what} is not finite. Take smaller steps (optimizer=), more draws, or constrain the "
                "parameters; the error's `guide` has those before the step",
                self.made(),
            )

    def _note(self) -> None:
        self._stopped = "interrupted"

    def _describe(self) -> tuple[int, int, str]:
        losses = self._at[1]
        done, recent = len(losses), float(np.mean(losses[-100:] or [np.nan]))
        return done, self._total, f"step {done} of {self._total}, loss {recent:.4g}"


def _compiled(problem: Problem, objective: Objective, spaces: Any, optimizer: Any, key: Any) -> Any:
    """Return what makes several steps: from state, number of the first, and how many, to what is after them."""
    import jax
    import jax.numpy as jnp
    import optax

    def loss(free: Any, key: Any) -> Any:
        return objective.loss(problem, spaces.values(free), key)

    def body(carry: Any) -> Any:
        (free, state), i, first, _, losses, _ = carry
        (_, value), slope = jax.value_and_grad(loss, has_aux=True)(free, jax.random.fold_in(key, first + i))
        updates, after = optimizer.update(slope, state, free)
        fine = {name: _finite(part) for name, part in slope.items()}
        ok = jnp.isfinite(value) & jnp.all(jnp.array(list(fine.values()), bool))
        new = jax.tree.map(lambda a, b: jnp.where(ok, a, b), (optax.apply_updates(free, updates), after), (free, state))
        return new, i + 1, first, jnp.where(ok, -1, first + i), losses.at[i].set(value), fine

    def _finite(tree: Any) -> Any:
        return jnp.all(jnp.array([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]))

    def advance(state: Any, first: Any, many: Any) -> Any:
        fine = {name: jnp.array(True) for name in spaces.start}
        carry = (state, jnp.array(0), jnp.asarray(first), jnp.array(-1), jnp.zeros(_MOST), fine)
        state, _, _, bad, losses, fine = jax.lax.while_loop(lambda c: (c[1] < many) & (c[3] < 0), body, carry)
        return state, losses, bad, fine

    return advance
