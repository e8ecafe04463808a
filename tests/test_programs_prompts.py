"""Methods that choose prompts, experts, answers and documents, against their laws counted up."""

from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pytest

import feynkac as fk
from feynkac.models.programs.prompts.medprompt import nearest, words
from feynkac.models.testing import ScriptedLM, tiny_lm

P = fk.programs
NEVER = float("-inf")


def close(program, f, truth, n=400):
    """Whether the mean of w·f(x) over draws is within 4.265 standard errors of Z·E f: a false alarm at 2e-5."""
    posterior = fk.infer(program, fk.ImportanceSampling(n), seed=0)
    each = np.exp(posterior.chains[0].log_weights) * np.array([0.0 if x is None else f(x) for x in posterior.values])
    return abs(each.mean() - truth) < 4.265 * each.std(ddof=1) / math.sqrt(n)


# Which prompt


def by_prompt(before):
    """Right with .2, .3 and .5 after prompts A, B and C."""
    right = {"A": 0.2, "B": 0.3, "C": 0.5}[re.search(r"([ABC]): q", before).group(1)]
    return {"y": right, "n": 1 - right}


PROMPTS = "A: {question}", "B: {question}", "C: {question}"


def test_weights_choose_a_prompt_by_its_evidence():
    lm = ScriptedLM(by_prompt)
    model = P.choose_prompt(lm, "q", PROMPTS, reward=lambda text: 0.0 if str(text) == "y" else NEVER)
    assert close(model, lambda text: 1.0, 1 / 3)
    for i, z in enumerate((0.2, 0.3, 0.5)):  # Z_i/3, so that the posterior is Z_i, as their sum is 1
        assert close(model, lambda text, i=i: float("ABC"[i] in text.prompt), z / 3)


def test_a_score_chooses_before_anything_is_written():
    lm = ScriptedLM(by_prompt)
    score = fk.reward(lambda prompt: {"A": 1.0, "B": 3.0, "C": 2.0}[prompt[0]])
    for scorer in (score, lambda prompt: -abs(ord(prompt[0]) - ord("B"))):
        posterior = fk.infer(P.choose_prompt(lm, "q", PROMPTS, score=scorer), fk.ImportanceSampling(20), seed=0)
        assert all("B: q" in text.prompt for text in posterior.values)
    with pytest.raises(ValueError, match="at least"):
        fk.simulate(P.choose_prompt(lm, "q", ()), seed=0)


# Which experts


def test_the_number_of_experts_is_a_latent_choice():
    lms = {k: ScriptedLM(lambda before, p=p: {"1": p, "0": 1 - p}) for k, p in ((0, 0.3), (1, 0.9))}

    @fk.program
    async def chosen(reward):
        text = await P.dynamic_experts(lms, None, "Q: ", steps=1, reward=reward)
        return text.lm is lms[1]

    model = chosen(lambda text: float(str(text) == "1"))
    z = (1.2 * math.e + 0.8) / 2
    assert z == pytest.approx(2.030969, abs=1e-6)
    assert close(model, lambda one: 1.0, z)
    assert close(model, float, 0.626906 * z)


def test_children_keep_their_experts_and_the_process_reward_prunes():
    lms = {k: ScriptedLM(lambda before, k=k: f"{k}\n" if before.count(f"{k}\n") < 2 else f"{k}") for k in range(4, 12)}
    prm = fk.reward(lambda problem, text: 0.9 if "6" in str(text) else 1e-9, kind="probability")
    model = P.dynamic_experts(lms, prm, "Q: ", steps=5)
    found = fk.infer(model, fk.BeamSearch(32, width=4), seed=0)
    assert {str(text) for text in found.values} == {"6\n6\n6"}
    assert fk.infer(model, fk.SMC(64, ess_threshold=1.0), seed=0).expect(lambda t: str(t) == "6\n6\n6") > 1 - 1e-6
    # Whatever guides on the way, what weighs is the last probability alone.
    whole = fk.infer(model, fk.ImportanceSampling(20), seed=0)
    last = [math.log(0.9 if "6" in str(text) else 1e-9) for text in whole.values]
    assert whole.chains[0].log_weights == pytest.approx(last)
    assert len(set(last)) == 2


@pytest.mark.slow
def test_a_mixture_of_experts_is_searched_over():
    hf = pytest.importorskip("transformers")
    heads = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = hf.MixtralConfig(vocab_size=300, hidden_size=16, intermediate_size=16, num_local_experts=4, **heads)
    lm = tiny_lm(model=hf.MixtralForCausalLM(config))
    lms = {k: lm.variant(experts=k) for k in (1, 2, 4)}
    model = P.dynamic_experts(lms, None, "Q: ", steps=2, max_tokens=3)
    found = fk.infer(model, fk.ImportanceSampling(12), seed=0)
    assert {found.trace(i)["experts"].value for i in range(12)} == {1, 2, 4}
    assert all(text.lm is lms[found.trace(i)["experts"].value] for i, text in enumerate(found.values))
    with pytest.raises(ValueError, match="a model"):
        fk.simulate(P.dynamic_experts({}, None, "Q: "), seed=0)


# Which answer


def test_a_hedged_pool_holds_the_greedy_answer_and_hits_more_often():
    # Right is the mode, but each warm draw has it with .4 only, the rest being spread.
    lm = ScriptedLM(lambda before: {"y": 0.4, "a": 0.3, "b": 0.3})
    model = P.hedged(lm, lm.prompt("Q: "), n=5, temperature=1.0)
    pools = fk.infer(model, fk.ImportanceSampling(50), seed=0).values
    assert all(len(pool) == 5 and str(pool[0]) == "y" and pool[0].log_prob == 0.0 for pool in pools)
    others = [str(text) == "y" for pool in pools for text in pool[1:]]
    assert abs(np.mean(others) - 0.4) < 4.265 * math.sqrt(0.24 / 200)  # 2e-5

    # Over problems whose greedy answer is right half of the time: 1 − .5·.6⁴, where five warm draws hit 1 − .6⁵.
    sure = ScriptedLM(lambda before: {"y": 0.4, "a": 0.3, "b": 0.3})
    unsure = ScriptedLM(lambda before: {"y": 0.4, "n": 0.6})

    @fk.program
    async def problem(hedge):
        say = sure if await fk.sample("known", fk.dist.Bernoulli(0.5)) else unsure
        if hedge:
            pool = await P.hedged(say, say.prompt("Q: "), n=5, temperature=1.0)
        else:
            pool = await fk.gather(*(fk.sample(f"{i}", say.complete(say.prompt("Q: "))) for i in range(5)))
        return float(any(str(text) == "y" for text in pool))

    for hedge, hit in ((True, 0.9352), (False, 0.92224)):
        found = np.array(fk.infer(problem(hedge), fk.ImportanceSampling(300), seed=1).values)
        assert abs(found.mean() - hit) < 4.265 * math.sqrt(hit * (1 - hit) / 300)  # 2 × 2e-5


def test_a_pools_reward_weighs_it():
    lm = ScriptedLM(lambda before: {"y": 0.4, "n": 0.6})
    model = P.hedged(lm, lm.prompt("Q: "), n=3, temperature=1.0, reward=lambda pool: math.log(1 + len(set(pool))))
    # Greedy is n: one kind of answer with .6², else two.
    assert close(model, lambda pool: 1.0, 2 * 0.36 + 3 * 0.64)
    with pytest.raises(ValueError, match="n must"):
        fk.simulate(P.hedged(lm, lm.prompt("Q: "), n=0), seed=0)


def test_a_judge_chooses_by_the_last_number_and_what_cannot_be_read_has_no_weight():
    judge = ScriptedLM(lambda before: {"[1] is short: [2]": 0.5, "[1]": 0.2, "none": 0.2, "[7]": 0.1})
    model = P.chops(judge, "Q?", ["one", "two"])
    assert close(model, lambda value: 1.0, 0.7)
    assert close(model, lambda value: float(value == "two"), 0.5)
    assert all(value in ("one", "two", None) for value in fk.infer(model, fk.ImportanceSampling(20), seed=0).values)
    shown = []
    reader = ScriptedLM(lambda before: shown.append(before) or "[1]")
    assert fk.simulate(P.chops(reader, "Q?", ["one", "two"]), seed=0).value == "one"
    assert "[1] one\n[2] two\n" in shown[0]
    with pytest.raises(ValueError, match="at least"):
        fk.simulate(P.chops(judge, "Q?", []), seed=0)


# Choices in random order


def prefers_the_first(before):
    """Take the first choice with .4, whatever it is, else the right one."""
    right = next(line[0] for line in before.splitlines() if line[1:] == ". right")
    return {"A": 1.0} if right == "A" else {"A": 0.4, right: 0.6}


CHOICES = "wrong", "worse", "right"


def test_choices_in_random_order_take_off_a_preference_for_a_place():
    lm = ScriptedLM(prefers_the_first)
    one = P.medprompt(lm, "Q?", CHOICES)
    found = [value == "right" for value in fk.infer(one, fk.ImportanceSampling(400), seed=0).values]
    p = 0.6 + 0.4 / 3
    assert abs(np.mean(found) - p) < 4.265 * math.sqrt(p * (1 - p) / 400)  # 2e-5
    fixed = P.medprompt(lm, "Q?", CHOICES, shuffle=False)
    found = [value == "right" for value in fk.infer(fixed, fk.ImportanceSampling(400), seed=0).values]
    assert abs(np.mean(found) - 0.6) < 4.265 * math.sqrt(0.24 / 400)  # 2e-5


def test_the_vote_of_five_orders():
    p, truth = 0.6 + 0.4 / 3, 0.0
    for votes in itertools.product(range(3), repeat=5):  # 0 is right; ties are as good as a coin
        counts = [votes.count(c) for c in range(3)]
        chance = math.prod((p, (1 - p) / 2, (1 - p) / 2)[c] for c in votes)
        truth += chance * (counts[0] == max(counts)) / counts.count(max(counts))
    assert truth == pytest.approx(0.916373, abs=1e-6)
    models = [P.medprompt(ScriptedLM(prefers_the_first), "Q?", CHOICES)] * 100
    found = [p.best() == "right" for p in fk.infer(models, fk.SelfConsistency(5), seed=0)]
    assert abs(np.mean(found) - truth) < 4.265 * math.sqrt(truth * (1 - truth) / 100)  # 2e-5


def test_what_names_no_choice_abstains_and_shots_are_the_nearest():
    lm = ScriptedLM(lambda before: {"Well.": 0.5, "Z": 0.3, "B, I think": 0.2})
    found = fk.infer(P.medprompt(lm, "Q?", ("yes", "no"), shuffle=False), fk.SelfConsistency(50), seed=0)
    assert found.vote() == {"no": pytest.approx(1.0)}
    shots = [("the green hill", "A"), ("a river runs", "B"), ("the river runs down the hill", "A"), ("?", "B")]
    assert nearest("where the river runs", shots, 2, words) == [1, 2]  # cosines 2/√12 and 4/√32
    assert nearest("?", shots, 0, words) == []
    shown = []
    reader = ScriptedLM(lambda before: shown.append(before) or "A")
    fk.simulate(P.medprompt(reader, "river", ("x", "y"), shots, k=1, shuffle=False), seed=0)
    assert "a river runs\nB\n\nriver\nA. x\nB. y\n" in shown[0]
    assert "hill" not in shown[0]
    with pytest.raises(ValueError, match="choices"):
        fk.simulate(P.medprompt(lm, "Q?", ()), seed=0)


# Documents


LIBRARY = {"Q?": ["d1", "d2"], "s1": ["d2", "d3"], "s2": ["d4"]}


def asks_twice(before):
    asked = before.count("Follow up")
    who = "known" if "d4" in before else "unknown"
    # What the program has begun leaves one of these; where it has begun nothing, the first.
    others = {"Intermediate answer: x": 1e-12, f"So the final answer is: {who}": 1e-12}
    return {f"Follow up: s{asked + 1}\n": 1 - 2e-12, **others}


@pytest.mark.parametrize(("steps", "looked_up", "answer"), [(1, 1, "unknown"), (2, 2, "unknown"), (3, 3, "known")])
def test_follow_ups_are_looked_up_as_often_as_steps_allow(steps, looked_up, answer):
    queries, shown = [], []

    def retrieve(query, k):
        queries.append(query)
        return LIBRARY[query][:k]

    lm = ScriptedLM(lambda before: shown.append(before) or asks_twice(before))
    value = fk.simulate(P.iterative_rag(lm, retrieve, "Q?", steps=steps, shots=["shot"]), seed=0).value
    assert queries == ["Q?", "s1", "s2"][:looked_up]
    assert value == answer
    assert all("shot\nd1\nd2\n" in before for before in shown)
    assert "shot\nd1\nd2\nd3\nd4\nQ?\n" in shown[-1] or steps < 3


def test_an_answer_before_the_last_step_ends_it_and_is_weighed():
    lm = ScriptedLM(lambda before: {"yes": 0.25, "no": 0.75})
    model = P.iterative_rag(lm, lambda query, k: [], "Q?", docs=0, reward=lambda a: float(a == "yes"))
    assert close(model, lambda value: 1.0, 0.25 * math.e + 0.75)
    assert close(model, lambda value: float(value == "yes"), 0.25 * math.e)
    with pytest.raises(ValueError, match="steps must"):
        fk.simulate(P.iterative_rag(lm, lambda query, k: [], "Q?", steps=0), seed=0)


# Revisions


def test_revisions_see_the_last_attempts_alone():
    shown = []
    lm = ScriptedLM(lambda before: shown.append(before) or f"try{len(shown)}")
    verify = fk.reward(lambda problem, text: {"try2": 1.0}.get(str(text), 0.0))
    best = fk.simulate(P.revise(lm, verify, "Q?", rounds=7), seed=0).value
    assert str(best) == "try2"
    assert re.findall("try.", shown[-1]) == ["try3", "try4", "try5", "try6"]
    for wrong in ({"rounds": 0}, {"last": -1}):
        with pytest.raises(ValueError, match="must be"):
            fk.simulate(P.revise(lm, verify, "Q?", **wrong), seed=0)


def test_revisions_against_parallel_attempts_at_equal_draws():
    """Right with .2 at first, with .5 after a wrong attempt: 1 − .8·.5³ in sequence, 1 − .8⁴ in parallel."""
    lm = ScriptedLM(lambda before: {"y": 0.5, "n": 0.5} if "n\n" in before else {"y": 0.2, "n": 0.8})
    verify = fk.reward(lambda problem, text: float(str(text) == "y"))
    prompt = lambda problem, attempts: "Q? " + "".join(f"{a}\n" for a in attempts)  # noqa: E731
    for last, hit in ((4, 0.9), (0, 0.5904)):
        model = P.revise(lm, verify, "Q?", rounds=4, last=last, prompt=prompt)
        found = [str(text) == "y" for text in fk.infer(model, fk.ImportanceSampling(200), seed=0).values]
        assert abs(np.mean(found) - hit) < 4.265 * math.sqrt(hit * (1 - hit) / 200)  # 2 × 2e-5


# Tasks one after the other


def test_the_posterior_of_earlier_tasks_is_the_prior_of_the_next():
    for ys in ([1.0, 3.0], [3.0, 1.0]):
        posterior = fk.infer(P.continual([[(y, "a")] for y in ys]), fk.SMC(1), seed=0)
        belief = posterior.values[0]["a"]
        assert belief.mean == pytest.approx([4 / 3])
        assert belief.var == pytest.approx(1 / 3)
        cov = np.array([[2.0, 1.0], [1.0, 2.0]])
        evidence = fk.dist.MultivariateNormal(np.zeros(2), cov).log_prob(np.array(ys))
        assert posterior.log_evidence == pytest.approx(float(evidence))


def test_one_prototype_for_two_tasks_forgets_both_and_one_each_forgets_none():
    one, two = [(-1.0, "a")] * 1000, [(3.0, "a")] * 1000
    shared = fk.simulate(P.continual([one, two]), seed=0).value["a"]
    assert shared.mean == pytest.approx([1.0], abs=1e-3)
    named = [[((x, -x), (t, c)) for x, c in task] for t, task in enumerate((one, two))]
    own = fk.simulate(P.continual(named), seed=0).value
    assert own[0, "a"].mean == pytest.approx([-1, 1], abs=2e-3)
    assert own[1, "a"].mean == pytest.approx([3, -3], abs=4e-3)
    assert own[0, "a"].log_density(np.array([-1.0, 1.0]), 1.0) > own[1, "a"].log_density(np.array([-1.0, 1.0]), 1.0)


def test_settings_that_are_no_model_are_refused():
    for wrong in ({"sd": 0.0}, {"prior": -1.0}, {"prior": float("nan")}):
        with pytest.raises(ValueError, match="positive"):
            fk.simulate(P.continual([], **wrong), seed=0)
