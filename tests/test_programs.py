"""Every published method that comes as a program runs under engines of each kind, and is charged what its models saw.

A method is an entry: a function of a scripted language model, which returns the program, and the script.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

import feynkac as fk
from feynkac.models.programs.agents import layers
from feynkac.models.testing import ScriptedLM

P = fk.programs


def answers(before):
    """Say something for every prompt of the methods."""
    if "Rank" in before:
        return {"[2] [1]": 0.5, "[1] [2]": 0.5}
    if "Scores" in before:
        return {"9 1": 0.5, "3 4": 0.5}
    if "say Yes or No" in before:
        return {"Yes": 0.7, "No": 0.3}
    if before.endswith("\n"):
        return "end"
    return {"four": 0.4, "five": 0.3, "six": 0.3}


def threaded(before):
    return "<" + "a|b" + ">\n" if "start" in before and not before.endswith("\n") else {"one": 0.5, "two": 0.5}


def lettered(before):
    return {"So B": 0.5, "[1], no, [2]": 0.3, "A": 0.2}


@fk.reward(kind="probability")
def good(question, text):
    return (1 + str(text).count("a")) / (2 + len(str(text)))


def number(question, text):
    return float(str(text).count("a"))


def by_the_line(before):
    """Two letters by the line, as steps, answers and thoughts."""
    return {"a\n": 0.5, "bb\n": 0.3, "ab": 0.2}


def thinking(before):
    return {"a wait b wait a": 0.5, "a wait a wait": 0.3, "ba": 0.2}


TWO = SimpleNamespace(prompt="Q\n", steps=2)
ENTRIES: dict[str, tuple] = {
    "archon": (answers, lambda lm: P.archon([layers.generate(lm, 2), layers.rank(lm, 1)], "2+2?"), ()),
    "plan_and_verify": (answers, lambda lm: P.plan_and_verify(lm, lambda p, c, plan: len(plan), "2+2?", rounds=2), ()),
    "grm_vote": (answers, lambda lm: P.grm_vote(lm, "2+2?", ["four", "five"], k=2), ()),
    "solve_or_verify": (answers, lambda lm: P.solve_or_verify(lm, lm, "2+2?", solutions=2), ()),
    "threads": (threaded, lambda lm: P.threads(lm, "start", spawn="<", join=">"), ()),
    "unlearn": (answers, lambda lm: P.unlearn(lm, lambda a, t: t in a, lambda q, a: len(a), "2+2?", ["f"]), ()),
    "choose_prompt": (answers, lambda lm: P.choose_prompt(lm, "2+2?", ["{question}", "Think. {question}"]), ()),
    "chops": (lettered, lambda lm: P.chops(lm, "2+2?", ["four", "five"]), ()),
    "continual": (answers, lambda lm: P.continual([[(1.0, "a")], [(3.0, "a")]]), ()),
    "dynamic_experts": (answers, lambda lm: P.dynamic_experts({1: lm, 2: lm}, None, "2+2?", steps=2), ()),
    "hedged": (answers, lambda lm: P.hedged(lm, lm.prompt("2+2?"), n=3), ()),
    "iterative_rag": (answers, lambda lm: P.iterative_rag(lm, lambda q, k: ["2+2=4"], "2+2?", steps=2), ()),
    "medprompt": (lettered, lambda lm: P.medprompt(lm, "2+2?", ["four", "five"]), ()),
    "revise": (answers, lambda lm: P.revise(lm, lambda p, a: len(str(a)), "2+2?", rounds=2), ()),
    "backtrack": (by_the_line, lambda lm: P.backtrack(lm, number, TWO, lines=6, reward=good), ()),
    "cautious_completion": (
        thinking,
        lambda lm: P.cautious_completion(lm, lm.prompt("Q"), stop_below=0.4, max_tokens=6, reward=good),
        (),
    ),
    "early_exit": (
        thinking,
        lambda lm: P.early_exit(lm, lambda text: 0.8, lm.prompt("Q"), threshold=0.5, reward=good),
        (),
    ),
    "iterative_decoding": (by_the_line, lambda lm: P.iterative_decoding(lm, number, TWO, reward=good), ()),
    "markovian": (
        thinking,
        lambda lm: P.markovian(lm, "Q", chunk=4, carry=2, chunks=3, head=1, reward=good),
        (),
    ),
    "q_exit": (
        thinking,
        lambda lm: P.q_exit(lm, lambda i, state: 0.5, lm.prompt("Q")),
        ("importance", "smc", "best", "beam", "mh"),
    ),
    "self_correct": (
        by_the_line,
        lambda lm: P.self_correct(lm, lambda text: str(text).endswith("a"), TWO, suffix=2, reward=good),
        (),
    ),
    "specreason": (
        by_the_line,
        lambda lm: P.specreason(lm, lm, number, TWO, threshold=1.0, reward=good),
        (),
    ),
    "stay_or_restart": (
        lambda before: {"No": 0.6, "Yes": 0.4} if before.endswith("No)\n") else {"abc": 0.7, "cab": 0.3},
        lambda lm: P.stay_or_restart(lm, lm.prompt("Q"), checks=[1, 2]),
        (),
    ),
    "switch_thinking": (
        thinking,
        lambda lm: P.switch_thinking(lm, "Q", lambda question: 0.7, long="b", reward=good),
        (),
    ),
    "trim": (
        thinking,
        lambda lm: P.trim(lm, lambda part: part.strip()[0], lm.prompt("Q"), stable=2, reward=good),
        (),
    ),
}
"""Name of a method: (script, lm → program, names of the engines that it cannot run under)."""
ELSEWHERE = {"Belief", "Beliefs", "HGF", "Memory", "hogwild", "index", "memorise"}
"""Names that are no programs of a scripted model: they have tests of their own."""

ENGINES = {
    "importance": fk.ImportanceSampling(6),
    "smc": fk.SMC(6, ess_threshold=1.0),
    "best": fk.BestOfN(6),
    "beam": fk.BeamSearch(4),
    "mh": fk.SuffixMH(6),
}


class Counted(ScriptedLM):
    """Counts for itself what it is asked."""

    calls = tokens_in = tokens_out = 0

    def draw(self, runs, keys, tally):
        self._count(tally, lambda: super(Counted, self).draw(runs, keys, tally))

    def forced(self, nodes, starts, laws, owners, tally, **onward):
        return self._count(tally, lambda: super(Counted, self).forced(nodes, starts, laws, owners, tally, **onward))

    def laws(self, nodes, owners, tally, sink):
        self._count(tally, lambda: super(Counted, self).laws(nodes, owners, tally, sink))

    def _count(self, tally, ask):
        before = tally.calls, tally.tokens_in.sum(), tally.tokens_out.sum()
        result = ask()
        self.calls += tally.calls - before[0]
        self.tokens_in += tally.tokens_in.sum() - before[1]
        self.tokens_out += tally.tokens_out.sum() - before[2]
        return result


def test_every_method_has_an_entry():
    assert set(ENTRIES) | ELSEWHERE == set(P.__all__)


@pytest.mark.parametrize("name", ENTRIES)
def test_every_method_runs_under_every_kind_of_engine_and_is_charged_what_was_used(name):
    script, make, cannot = ENTRIES[name]
    for kind in [kind for kind in ENGINES if kind not in cannot]:
        lm = Counted(script)
        posterior = fk.infer(make(lm), ENGINES[kind], seed=0)
        assert len(posterior.values), kind
        assert np.isfinite(posterior.chains[0].log_weights).any(), kind
        cost = posterior.cost
        assert (cost.model_calls, cost.tokens_in, cost.tokens_out) == (lm.calls, lm.tokens_in, lm.tokens_out), kind
        again = fk.infer(make(Counted(script)), ENGINES[kind], seed=0)
        assert list(map(str, again.values)) == list(map(str, posterior.values)), kind


@pytest.mark.parametrize("name", ENTRIES)
def test_engines_that_cannot_say_so(name):
    script, make, cannot = ENTRIES[name]
    for kind in cannot:
        with pytest.raises(fk.errors.FeynkacError):
            fk.infer(make(ScriptedLM(script)), ENGINES[kind], seed=0)
