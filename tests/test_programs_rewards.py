"""What a program's reward says becomes a weight by one rule: p and log p are the same, and a real number is refused."""

from __future__ import annotations

import inspect
import math
from types import SimpleNamespace

import pytest

import feynkac as fk
from feynkac.models.programs.agents import layers
from feynkac.models.testing import ScriptedLM
from feynkac.ppl.errors import AmbiguousScore

P = fk.programs
TWO = SimpleNamespace(prompt="Q\n", steps=2)


def ones(*of):
    return 1.0


METHODS = {
    "archon": lambda lm, reward: P.archon([layers.generate(lm)], "Q", reward=reward),
    "backtrack": lambda lm, reward: P.backtrack(lm, ones, TWO, reward=reward),
    "cautious_completion": lambda lm, reward: P.cautious_completion(
        lm, lm.prompt("Q"), stop_below=0.1, max_tokens=3, reward=reward
    ),
    "choose_prompt": lambda lm, reward: P.choose_prompt(lm, "Q", ["{question}"], reward=reward),
    "dynamic_experts": lambda lm, reward: P.dynamic_experts({1: lm}, None, "Q", reward=reward),
    "early_exit": lambda lm, reward: P.early_exit(lm, ones, lm.prompt("Q"), threshold=0.5, reward=reward),
    "hedged": lambda lm, reward: P.hedged(lm, lm.prompt("Q"), n=2, reward=reward),
    "iterative_decoding": lambda lm, reward: P.iterative_decoding(lm, ones, TWO, reward=reward),
    "iterative_rag": lambda lm, reward: P.iterative_rag(lm, lambda query, k: [], "Q", docs=0, reward=reward),
    "markovian": lambda lm, reward: P.markovian(lm, "Q", chunk=4, carry=2, chunks=2, head=1, reward=reward),
    "plan_and_verify": lambda lm, reward: P.plan_and_verify(lm, ones, "Q", rounds=1, reward=reward),
    "revise": lambda lm, reward: P.revise(lm, ones, "Q", rounds=2, reward=reward),
    "self_correct": lambda lm, reward: P.self_correct(lm, lambda text: True, TWO, reward=reward),
    "specreason": lambda lm, reward: P.specreason(lm, lm, ones, TWO, threshold=0.5, reward=reward),
    "switch_thinking": lambda lm, reward: P.switch_thinking(lm, "Q", ones, long="b", reward=reward),
    "trim": lambda lm, reward: P.trim(lm, lambda part: part, lm.prompt("Q"), reward=reward),
}


def evidence(make, reward):
    return fk.infer(make(ScriptedLM(lambda before: {"a\n": 0.5, "ab": 0.5}), reward), fk.SMC(2), seed=0).log_evidence


def test_every_method_with_a_reward_is_here():
    assert set(METHODS) == {name for name in P.__all__ if "reward" in inspect.signature(getattr(P, name)).parameters}


@pytest.mark.parametrize("name", METHODS)
def test_a_probability_is_a_weight_and_so_are_its_logarithms(name):
    make = METHODS[name]
    for reward in (
        fk.reward(lambda *of: 0.25, kind="probability"),
        fk.reward(lambda *of: math.log(0.25), kind="log_weight"),
        lambda *of: math.log(0.25),
    ):
        assert evidence(make, reward) == pytest.approx(math.log(0.25), abs=1e-12)  # whatever was drawn


@pytest.mark.parametrize("name", METHODS)
def test_a_real_reward_is_refused_until_it_has_a_temperature(name):
    make, real = METHODS[name], fk.reward(lambda *of: 3.0, name="stars")
    with pytest.raises(AmbiguousScore, match=r"'reward'.*real score of stars.*/ beta"):
        evidence(make, real)
    assert evidence(make, lambda *of: real(*of) / 2.0) == pytest.approx(1.5, abs=1e-12)


def test_a_truth_value_is_no_weight():
    with pytest.raises(AmbiguousScore, match=r"'reward'.*write 0\.0 if ok else -math\.inf"):
        evidence(METHODS["revise"], lambda text: str(text) == "ab")


def test_a_process_reward_is_weighed_by_the_same_rule():
    lm = ScriptedLM(lambda before: {"a\n": 0.5, "ab": 0.5})
    for prm in (fk.reward(lambda *of: 0.25, kind="probability"), lambda *of: math.log(0.25)):
        posterior = fk.infer(P.dynamic_experts({1: lm}, prm, "Q"), fk.SMC(2), seed=0)
        assert posterior.log_evidence == pytest.approx(math.log(0.25), abs=1e-12)
    with pytest.raises(AmbiguousScore, match="'prm'"):
        fk.infer(P.dynamic_experts({1: lm}, fk.reward(lambda *of: 1.0), "Q"), fk.SMC(2), seed=0)
