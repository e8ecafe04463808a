"""`to_numpyro`: a program as a NumPyro model."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from ..lazy import needing
from ..program import Program, ProgramFactory


def to_numpyro(program: Program | ProgramFactory[Any]) -> Callable[..., Any]:
    """Make a NumPyro model of a program, for ``numpyro.infer``: MCMC, SVI, Predictive.

    Each sample site becomes ``numpyro.sample`` under the same address (``"x"``, ``"x[1]"``, ``"scope/x"``), with what
    is observed as ``obs=``; `factor`, `deterministic` and `param` become NumPyro's. An array is one event. A `scan`
    becomes ``numpyro.contrib.control_flow.scan``: a site in it is one site, with a leading axis of iterations (a scan
    within a scan is unrolled). The program's handlers apply. Twists and proposals are left out, as the target does not
    depend on them, and so is what `deterministic` records that is no number.

    The density is the program's, in the precision that JAX is set to: under ``jax.enable_x64(True)`` in float64.

    Args:
        program: bound, ``f(args)``: the model takes no arguments, and is looked through at once. Or not bound, ``f``:
            the model takes those of the program.

    Raises:
        ImportError: without NumPyro (``pip install feynkac[jax]``).
        NotTraceable: for a site that is no distribution over numbers (a step of a language model, a score, `call`), and
            for code that needs the number behind a draw; it is named.

    >>> import feynkac as fk
    >>> from numpyro.infer import MCMC, NUTS
    >>> from numpyro.infer.util import log_density
    >>> @fk.program
    ... async def coin(flips):
    ...     p = await fk.sample("p", fk.dist.Uniform(0.0, 1.0))
    ...     for flip in flips:
    ...         await fk.observe("flip", fk.dist.Bernoulli(p), flip)
    >>> model = fk.to_numpyro(coin([1, 1, 0]))
    >>> chain = MCMC(NUTS(model), num_warmup=500, num_samples=1000)  # then chain.run(jax.random.key(0))
    >>> log_joint, _ = log_density(model, (), {}, {"p": 0.5})
    >>> round(float(log_joint), 3)  # log 1/8
    -2.079
    """
    with needing("fk.to_numpyro", "jax"):
        from .primitives import as_model, check
    if isinstance(program, Program):
        program.claim()

        def model() -> Any:
            return as_model(program)

        model.__name__ = program.name
        check(model)  # what cannot be traced is refused here
        return model
    if not isinstance(program, ProgramFactory):
        raise TypeError(f"to_numpyro takes a program, f or f(args), not {type(program).__name__}")

    @functools.wraps(program)
    def takes_arguments(*args: Any, **kwargs: Any) -> Any:
        return as_model(program(*args, **kwargs))

    return takes_arguments
