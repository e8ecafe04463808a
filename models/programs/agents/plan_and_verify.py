"""PlanGEN: constraints first, then plans, which a verifier scores and which are written again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ....ppl.program import program
from ....ppl.words import call, deterministic, sample
from ...language.host import Host
from ..asking import ask
from ..weighing import Reward, weigh


@program
async def plan_and_verify(
    lm: Host,
    verify: Callable[[str, str, str], Any],
    problem: str,
    *,
    rounds: int = 3,
    enough: float = 95.0,
    constrain: str = "{problem}\nList the constraints that a plan has to keep.",
    plan: str = "{problem}\nConstraints:\n{constraints}\n{feedback}Write a plan.",
    feedback: str = "Your last plan scored {score:.0f} of 100:\n{plan}\n",
    reward: Reward | None = None,
    **law: Any,
) -> str:
    """Draw the constraints of a problem, then plans, each told of the last one and its score; return the best.

    It costs one call for the constraints, and for each round a plan and a verdict; a plan that scores ``enough`` ends
    it. The choice of an algorithm for each problem, PlanGEN's third agent, is `fk.tuning.UCB` over engines.

    Args:
        lm: writes constraints and plans.
        verify: from problem, constraints and plan to a number from −100 to 100, or a score of it.
        problem: what is to be planned.
        rounds: most plans.
        enough: the score that ends it.
        constrain: the prompt of the constraints; so are ``plan`` and ``feedback``, which is empty in the first round.
        reward: weighs the plan, given the problem and it: a probability, or a log-weight (a number is one).
        law: keywords of `Sampling`, and ``max_tokens``.

    Raises ValueError where there is no round.

    Source: PlanGEN: A Multi-Agent Framework for Generating Planning and Reasoning Trajectories (2025),
        arXiv:2502.16111.
    Guarantee: exact for the law that the program defines; the best of its plans is chosen within. Its prompts are ours:
        not a replication.
    Engines: ImportanceSampling, SMC, BestOfN, BeamSearch, SuffixMH; a run is one step unless ``reward`` is given.
    Not shown here: no planner that reads feedback comes with the library.

    >>> import feynkac as fk
    >>> from feynkac.models.testing import ScriptedLM
    >>> def script(before):
    ...     return "be short" if "List" in before else {"go": 0.5, "go by the long way": 0.5}
    >>> lm = ScriptedLM(script)
    >>> model = fk.programs.plan_and_verify(lm, lambda p, c, plan: 100 - 10 * len(plan), "Home?", rounds=6)
    >>> posterior = fk.infer(model, fk.ImportanceSampling(200), seed=0)
    >>> posterior.expect(lambda plan: plan == "go") > 0.95  # 1 − 2⁻⁶
    True
    """
    if rounds < 1:
        raise ValueError(f"there must be a round at least, not {rounds}")
    constraints = str(await sample("constraints", lm.complete(ask(lm, constrain.format(problem=problem)), **law)))
    best, told = (-float("inf"), ""), ""
    for _ in range(rounds):
        prompt = plan.format(problem=problem, constraints=constraints, feedback=told)
        made = str(await sample("plan", lm.complete(ask(lm, prompt), **law)))
        score = await call("score", verify, problem, constraints, made)
        best = max(best, (float(score), made), key=lambda pair: pair[0])
        deterministic("best", best[0])
        deterministic("output", best[1])
        if best[0] >= enough:
            break
        told = feedback.format(score=score, plan=made)
    await weigh(reward, problem, best[1])
    return best[1]
