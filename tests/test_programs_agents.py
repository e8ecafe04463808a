"""Programs of several roles: what papers' toys say in closed form, on scripted models."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("transformers")

import feynkac as fk
from feynkac.models.programs.agents import layers
from feynkac.models.programs.agents.grm_vote import scores_of
from feynkac.models.programs.agents.solve_or_verify import last_word
from feynkac.models.testing import ScriptedLM, tiny_lm

N = 400


def share(model, holds, n=N, seed=0):
    return np.array([bool(holds(value)) for value in fk.infer(model, fk.ImportanceSampling(n), seed=seed).values])


def near(found, truth):
    """|z| < 4.26: a correct program fails with probability 2e-5."""
    return abs(found.mean() - truth) < 4.26 * math.sqrt(truth * (1 - truth) / len(found))


# -- Archon -----------------------------------------------------------------------------------------------------


def test_a_ranking_names_each_once_and_the_rest_after():
    assert layers.order_of("[2] [2] [9]", 3) == [1, 0, 2]
    assert layers.order_of("none", 2) == [0, 1]


def test_layers_hand_on_what_they_keep():
    seen = []

    def script(before):
        seen.append(before)
        if "Rank" in before:
            return "[2] [1] [3]"
        if "good and bad" in before:
            return "good" if "four" in before else "bad"
        if "Write a better" in before:
            return "fused"
        if "Say [Correct]" in before:
            return "It is [Correct]" if "four" in before else "It is [Incorrect]"
        if "Write tests" in before:
            return "is it four?"
        return {"four": 0.4, "five": 0.3, "six": 0.3}

    lm = ScriptedLM(script)

    def value(*more, seed=0):
        return fk.simulate(fk.programs.archon([layers.generate(lm, 6), *more], "2+2?"), seed=seed).value

    assert {value(layers.verify(lm), seed=s) for s in range(6)} == {"four"}
    passes = lambda answer, tests: float("four" in answer and "four" in tests)  # noqa: E731
    assert {value(layers.unit_test(lm, passes, keep=1), seed=s) for s in range(6)} == {"four"}
    assert value(layers.critique(lm), layers.rank(lm, 2), layers.fuse(lm)) == "fused"
    (fusing,) = [text for text in seen if "Write a better" in text]
    ranking = next(text for text in seen if "Rank" in text)
    second = next(line for line in ranking.splitlines() if line.startswith("[2]")).split()[1]
    assert f"[1] {second}\n{'good' if second == 'four' else 'bad'}" in fusing
    with pytest.raises(ValueError, match="left no candidate"):
        fk.simulate(fk.programs.archon([layers.verify(lm)], "2+2?"), seed=0)
    with pytest.raises(ValueError, match="needs a layer"):
        fk.simulate(fk.programs.archon([], "2+2?"), seed=0)


def test_generators_add_distinct_candidates_and_verifiers_leave_some():
    shown = []

    def script(before):
        if "Say [Correct]" in before:
            return "[Incorrect]"
        if "Rank" in before:
            shown.append(before)
            return "[1]"
        return "four"

    lm = ScriptedLM(script)
    other = ScriptedLM(lambda before: "five")
    system = [layers.generate(lm, 3), layers.generate(other, 2), layers.verify(lm), layers.rank(lm, 1)]
    assert fk.simulate(fk.programs.archon(system, "2+2?"), seed=0).value == "four"
    assert "[1] four\n[2] five\n" in shown[0]
    assert "[3] " not in shown[0]


def test_a_reward_weighs_the_answer():
    lm = ScriptedLM(lambda before: {"four": 0.4, "five": 0.6})

    @fk.reward(kind="probability")
    def right(question, answer):
        return 0.9 if answer == "four" else 0.2

    model = fk.programs.archon([layers.generate(lm)], "2+2?", reward=right)
    z = (math.exp(fk.infer(model, fk.SMC(1500), seed=0).log_evidence) - 0.48) / (0.7 * math.sqrt(0.24 / 1500))
    assert abs(z) < 4.26  # a correct program fails with probability 2e-5


def test_what_leaves_nothing_to_do_is_refused():
    lm, zero = ScriptedLM(lambda before: "5 5"), lambda *_: 0.0
    refused = {
        "a meta": fk.programs.grm_vote(lm, "?", ["A", "B"], keep=1),
        "from 1 to k": fk.programs.grm_vote(lm, "?", ["A", "B"], k=2, keep=0, meta=zero),
        "a round": fk.programs.plan_and_verify(lm, zero, "?", rounds=0),
        "a variant": fk.programs.unlearn(lm, zero, zero, "?", [], top=0),
        "every task": fk.programs.memorise(zero, zero, zero, [], every=0),
    }
    for words, model in refused.items():
        with pytest.raises(ValueError, match=words):
            fk.simulate(model, seed=0)


# -- plans, judges, verifiers -----------------------------------------------------------------------------------


def test_plans_are_written_again_until_one_is_enough():
    prompts = []

    def script(before):
        if "List" in before:
            return "be short"
        prompts.append(before)
        return {"good": 0.3, "poor": 0.7}

    verify = lambda problem, constraints, plan: 100.0 if plan == "good" else -40.0  # noqa: E731
    model = fk.programs.plan_and_verify(ScriptedLM(script), verify, "Home?", rounds=3)
    assert near(share(model, lambda plan: plan == "good"), 1 - 0.7**3)
    assert all("be short" in prompt for prompt in prompts)
    assert any("scored -40 of 100:\npoor" in prompt for prompt in prompts)


def test_the_best_plan_is_kept_and_weighs():
    """Two plans of .5 each for "b" (80) and "a" (20): the best is "b" with .75, and weighs .8 against .4."""
    lm = ScriptedLM(lambda before: "short" if "List" in before else {"a": 0.5, "b": 0.5})
    asked = []

    def verify(problem, constraints, plan):
        asked.append(plan)
        return 80.0 if plan == "b" else 20.0

    @fk.reward(kind="probability")
    def good(problem, plan):
        return 0.8 if plan == "b" else 0.4

    model = fk.programs.plan_and_verify(lm, verify, "Home?", rounds=2, reward=good)
    assert near(share(model, lambda plan: plan == "b"), 0.75)  # values as they were drawn, without their weights
    z = (math.exp(fk.infer(model, fk.SMC(800), seed=0).log_evidence) - 0.7) / (0.4 * math.sqrt(0.1875 / 800))
    assert abs(z) < 4.26  # a correct program fails with probability 2e-5
    asked.clear()
    fk.simulate(fk.programs.plan_and_verify(lm, verify, "Home?", rounds=5, enough=20.0), seed=0)
    assert len(asked) == 1


@pytest.mark.parametrize(("meta", "best", "sums"), [(False, 0, (21, 19)), (True, 1, (12, 18))])
def test_scores_add_up_and_judgements_that_are_not_sound_are_dropped(meta, best, sums):
    """Judgements (9, 1), (4, 6), (4, 6), (4, 6), in whatever order they show the responses."""
    count = iter(range(99))
    said = {}

    def judge(before):
        if before not in said:
            pair = (9, 1) if next(count) % 4 == 0 else (4, 6)
            first = before.index("[1] A") > 0 if "[1] A" in before else False
            said[before] = "{} {}".format(*(pair if first else pair[::-1]))
        return said[before]

    # Each judgement has a prompt of its own, so that the script can say something else to each.
    prompts = iter(f"{i} {{question}} {{responses}}" for i in range(99))

    class Prompt(str):
        def format(self, **what):
            return next(prompts).format(**what)

    sound = (lambda prompt, text: 0.0 if sorted(scores_of(text, 2)) == [1, 9] else 1.0) if meta else None
    model = fk.programs.grm_vote(
        ScriptedLM(judge), "?", ["A", "B"], k=4, keep=3 if meta else None, meta=sound, prompt=Prompt("{question}")
    )
    run = fk.simulate(model, seed=0)
    assert run.value == best
    assert run.trace["sums"].value == sums


def test_half_of_the_judgements_count_where_nothing_else_is_said():
    model = fk.programs.grm_vote(ScriptedLM(lambda _: "3 3"), "?", ["A", "B"], k=4, meta=lambda prompt, text: 1.0)
    assert fk.simulate(model, seed=0).trace["sums"].value == (6, 6)


def test_scores_are_read_from_the_end_and_clipped():
    assert scores_of("From 1 to 10: 12, -3", 2) == (10, 1)
    assert scores_of("nothing", 2) == (1, 1)
    assert scores_of("Scores: 8.6, 7", 2) == (9, 7)
    assert scores_of("Scores: 9/10, 7/10", 2) == (9, 7)
    with pytest.raises(ValueError, match="two responses"):
        fk.simulate(fk.programs.grm_vote(ScriptedLM(str), "?", ["A"]), seed=0)


@pytest.mark.parametrize(("s", "v"), [(4, 1), (3, 2)])
def test_verdicts_choose_as_the_closed_form_says(s, v):
    lm = ScriptedLM(lambda before: {"right": 0.6, "wrong": 0.4})
    judge = ScriptedLM(lambda before: {"Yes": 0.8, "No": 0.2} if "Answer: right" in before else {"Yes": 0.3, "No": 0.7})
    model = fk.programs.solve_or_verify(lm, judge, "?", solutions=s, verifications=v)
    truth, _ = fk.scaling.verify_or_vote(s, v, p=0.6, tpr=0.8, fpr=0.3)
    assert near(share(model, lambda text: str(text) == "right"), truth)


def test_the_last_word_of_a_verdict_counts():
    said = "Yes, they are added. Eyes see that five is wrong: No."
    assert not last_word(said)
    assert last_word("No mistake. Yes")
    assert not last_word("neither")
    model = fk.programs.solve_or_verify(ScriptedLM(lambda _: "5"), ScriptedLM(lambda _: said), "?", solutions=1)
    assert fk.simulate(model, seed=0).trace["share"].value == 0
    model = fk.programs.solve_or_verify(ScriptedLM(lambda _: "5"), ScriptedLM(lambda _: "Yes"), "?", solutions=1)
    assert fk.simulate(model, seed=0).trace["share"].value == 1


# -- threads ----------------------------------------------------------------------------------------------------


def test_one_waits_for_the_longest_child_and_pays_for_all():
    """Parent 10 tokens, children 5, 8 and 3: 18 are waited for, 26 are paid for. An end token is one, too."""
    seen = []

    def script(before):
        seen.append(before)
        if before.endswith("\n"):
            return "cc"
        return {"?": "<a|b|d>\n", "a": "1234", "b": "1234567", "d": "12"}[before[-1]]

    lm = ScriptedLM(script)
    lm.tokenizer.chat_template, template = None, lm.tokenizer.chat_template
    try:
        model = fk.programs.threads(lm, "?", spawn="<", join=">")
        run = fk.simulate(model, seed=0)
    finally:
        lm.tokenizer.chat_template = template
    # The parent draws "<a|b|d>" (7) and, after its reports, "cc" and an end token (3).
    assert (run.trace["latency"].value, run.trace["tokens"].value) == (18, 26)
    assert str(run.value).endswith("1234|1234567|12\ncc")
    assert all("1234" not in text for text in seen if text[-1] in "abd")


def test_a_parent_reads_reports_alone_and_tags_in_them_start_nothing():
    """A child's own child, and what it wrote before its last line, are not seen; a join without a spawn is text."""

    def script(before):  # what goes on after a report, by how much has been said
        if "leaf" in before.split("<")[0]:
            return "SECRET"
        if "child" in before.split("<")[0]:
            return "I report <x" if "<leaf>" in before else "<leaf>\n"
        return "a > b" if "<child>" in before else "<child>\n"

    run = fk.simulate(fk.programs.threads(ScriptedLM(script), "?", spawn="<", join=">"), seed=0)
    assert str(run.value) == "<child>I report <x\na > b"
    whole = fk.programs.threads(ScriptedLM(script), "?", spawn="<", join=">", message=str)
    assert str(fk.simulate(whole, seed=0).value) == "<child><leaf>SECRET\nI report <x\na > b"


def test_children_spawn_as_deep_as_they_may():
    def script(before):
        return "<" + before[-1] + ">\n" if not before.endswith("\n") else "end"

    for depth, draws in ((0, 1), (1, 3), (2, 5)):  # a parent draws before and after its child
        run = fk.simulate(fk.programs.threads(ScriptedLM(script), "?", spawn="<", join=">", depth=depth), seed=0)
        assert sum(site.name.endswith("text") for site in run.trace.values()) == draws
        assert run.trace["latency"].value == run.trace["tokens"].value


def test_a_text_that_spawns_for_ever_ends():
    def script(before):
        return "x\n" if "child" in before.split("<")[0] else "<child>\n"

    for joins in (0, 1, 3):
        run = fk.simulate(fk.programs.threads(ScriptedLM(script), "?", spawn="<", join=">", joins=joins), seed=0)
        assert sum(site.name.endswith("text") for site in run.trace.values()) == 1 + 2 * joins  # a child for each
        assert str(run.value).startswith("<child>x\n" * joins + "<child>\n<child>" * (joins == 0))
    alone = ScriptedLM(lambda before: "> >")  # joins without a spawn count, too
    run = fk.simulate(fk.programs.threads(alone, "?", spawn="<", join=">", joins=2), seed=0)
    assert sum(site.name.endswith("text") for site in run.trace.values()) <= 3
    with pytest.raises(ValueError, match="joins"):
        fk.simulate(fk.programs.threads(alone, "?", joins=-1), seed=0)


# -- memory, forgetting -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("every", "truth"), [(1, 0.936), (3, 0.6)])
def test_what_was_learned_helps_from_the_next_update_on(every, truth):
    async def solve(task, concepts):
        return await fk.sample("solved", fk.dist.Bernoulli(0.8 if concepts else 0.2))

    async def abstract(task, solved):
        return f"concept of {task}" if solved else None

    model = fk.programs.memorise(solve, abstract, lambda task, known: known[-1:], range(3), every=every)
    values = fk.infer(model, fk.ImportanceSampling(2000), seed=0).values
    solved = np.array([sum(answers) for _, answers in values])
    assert abs(solved.mean() - truth) < 4.26 * solved.std() / math.sqrt(len(solved))  # 2e-5
    for memory, answers in values:
        assert memory.concepts == tuple(f"concept of {i}" for i, right in enumerate(answers) if right)


def test_memories_of_particles_are_resampled_with_them():
    """A solved task weighs 2: Z = 2.64 by counting. |z| < 4.26: a correct program fails with probability 2e-5."""

    async def solve(task, concepts):
        solved = await fk.sample("solved", fk.dist.Bernoulli(0.8 if concepts else 0.2))
        await fk.factor("weight", math.log(2.0) if solved else 0.0)
        return solved

    async def abstract(task, solved):
        return "concept" if solved else None

    model = fk.programs.memorise(solve, abstract, lambda task, known: known, range(3))
    assert math.exp(fk.enumerate_program(model).log_evidence) == pytest.approx(2.64)
    found = [math.exp(fk.infer(model, fk.SMC(8, ess_threshold=1.0), seed=s).log_evidence) for s in range(100)]
    assert abs(np.mean(found) - 2.64) < 4.26 * np.std(found) / 10


def test_the_second_task_is_told_of_the_first_only_after_an_update():
    async def solve(task, concepts):
        return concepts

    async def abstract(task, answer):
        return f"of {task}"

    for every, known in ((1, ("of 0",)), (2, ())):
        run = fk.simulate(fk.programs.memorise(solve, abstract, lambda task, c: c, range(2), every=every), seed=0)
        assert run.value[1] == ((), known)


@pytest.mark.slow
@pytest.mark.parametrize(("top", "clean"), [(1, (1 - 0.5 * 0.1) ** 2), (2, (1 - 0.5 * 0.01) ** 2)])
def test_leaks_are_written_out(top, clean):
    """Each of two targets leaks with .5, and a variant without it is clean with .9."""

    def script(before):
        for target in "AB":
            if f"of {target} is" in before:
                others = "".join(t for t in "AB" if t != target and t in before.split("\n")[0])
                return {others + "-": 0.9, others + target: 0.1}
        return {"-": 0.25, "A": 0.25, "B": 0.25, "AB": 0.25}

    audit = lambda answer, target: target in answer  # noqa: E731
    model = fk.programs.unlearn(ScriptedLM(script), audit, lambda q, a: 0.0, "?", ["A", "B"], top=top)
    found = share(model, lambda answer: not set(answer) & set("AB"), n=1500)
    assert near(found, clean)
    assert near(
        share(fk.programs.unlearn(ScriptedLM(script), audit, lambda q, a: 0.0, "?", []), lambda a: a == "-"), 0.25
    )


def test_the_critic_chooses_among_clean_variants():
    lm = ScriptedLM(lambda before: {"short": 0.5, "longer": 0.5} if "again" in before else "A")
    model = fk.programs.unlearn(lm, lambda text, target: target in text, lambda q, a: len(a), "?", ["A"], top=2)
    assert near(share(model, lambda answer: answer == "longer", n=400), 0.75)


# -- Hogwild ----------------------------------------------------------------------------------------------------


def test_the_composer_merges_the_clean_variants_and_is_not_taken_where_it_leaks():
    said = []

    def script(before):
        if "One of" in before:
            said.append(before)
            return {"bc": 0.5, "Abc": 0.5}
        return {"b": 0.25, "ccc": 0.25, "Ab": 0.5} if "again" in before else "A"

    model = fk.programs.unlearn(
        ScriptedLM(script), lambda text, target: target in text, lambda q, a: len(a), "?", ["A"], top=2,
        compose="{question} One of\n{answers}",
    )  # fmt: skip
    values = fk.infer(model, fk.ImportanceSampling(800), seed=0).values
    # Both variants are clean with .25: then the composed answer with ½, else the longer one.
    truth = {"bc": 0.125, "ccc": 0.125 * 0.75 + 0.25, "b": 0.125 * 0.25 + 0.25, "Ab": 0.25}
    for value, p in truth.items():  # four comparisons at |z| < 4.265: 8e-5
        assert abs(values.count(value) / 800 - p) < 4.265 * math.sqrt(p * (1 - p) / 800), value
    assert set(values) == set(truth)
    assert not any("Ab" in prompt for prompt in said)
    assert any("[1] ccc\n[2] b" in prompt for prompt in said)
    assert not any("[1] b\n[2] ccc" in prompt for prompt in said)


def test_workers_draw_a_token_each_at_a_tick_and_the_first_answers():
    lm = tiny_lm()
    model = fk.programs.hogwild(lm, "Count.", ticks=6, check_every=3, answer_tokens=2, check=" ?", finish=" !")
    posterior = fk.infer(model, fk.ImportanceSampling(3), seed=0)
    for text in posterior.values:
        assert " ?" in str(text)
        assert " !" in str(text)
    assert posterior.cost.tokens_out <= 3 * 2 * (6 + 2)
    model = fk.programs.hogwild(lm, "Count.", ticks=5, check_every=3, answer_tokens=2)
    assert fk.infer(model, fk.ImportanceSampling(1), seed=0).cost.tokens_out == 2 * (5 + 2)  # neither one ended
    with pytest.raises(ValueError, match="at least"):
        fk.simulate(fk.programs.hogwild(lm, "Count.", ticks=0), seed=0)


def test_workers_that_end_early_leave_an_output():
    model = fk.programs.hogwild(tiny_lm(), "Hi", workers=("a",), ticks=12, check_every=12, answer_tokens=1)
    run = fk.simulate(model, seed=107)  # a seed that draws the end token second
    assert "final answer" not in str(run.value)
    assert str(run.trace["output"].value) == str(run.value)
