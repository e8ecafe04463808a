"""Countdown (verifier, solver, splits), the reasoner and verifier that ship, their training, and reasoning-gym."""

from __future__ import annotations

import itertools
import json
import random
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import feynkac as fk  # noqa: E402
from feynkac.models.fetch.shelf import DamagedWeights  # noqa: E402
from feynkac.models.tasks import countdown, shipped  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
PROBLEM = fk.tasks.Countdown((3, 5, 7, 9), 24)
SOLUTION = "7-5=2 (3 9 2)\n9+3=12 (2 12)\n12*2=24 (24)"


# The verifier


def test_a_solution_is_followed_step_by_step():
    lines = SOLUTION.splitlines()
    lefts = [PROBLEM.left("\n".join(lines[:i])) for i in range(4)]
    assert lefts == [(3, 5, 7, 9), (3, 9, 2), (2, 12), (24,)]
    assert PROBLEM.solved(SOLUTION)
    assert PROBLEM.solved(SOLUTION + "\n\n")
    assert PROBLEM.answer(SOLUTION) == 24
    assert PROBLEM.answer(lines[0]) is None


@pytest.mark.parametrize(
    "line",
    [
        "9+3=12", "3+9=12 (5 7 12)", "3+9=12 (12 7 5)", " 9 * 3 = 27 ", "9/3=3", "9-3=6 ( 5  7 6 )", "9+3=12 ()"[:6],
    ],
)  # fmt: skip
def test_right_steps(line):
    assert countdown.after((3, 5, 7, 9), line) is not None


@pytest.mark.parametrize(
    "line",
    [
        "9+3=13",  # arithmetic
        "9+9=18",  # a number used twice
        "9+4=13",  # a number that is not there
        "3-9=-6", "7-7=0", "5-5=0",  # below 1
        "9/5=1", "3/9=0",  # inexact
        "9+3=12 (5 7)", "9+3=12 (5 7 9 12)", "9+3=12 ()", "9+3=12 (5 7 12",  # brackets
        "9+3", "=12", "", "9+3=12 and so on", "9^3=1", "9+3=12=12", "٩+3=12", "9+3=1 2",  # no step
        "1" * 5000 + "+3=12", "9+3=12 (5 7 " + "1" * 5000 + ")",  # more digits than Python reads
    ],
)  # fmt: skip
def test_wrong_steps(line):
    assert countdown.after((3, 5, 7, 9), line) is None
    assert PROBLEM.left(line + "!") is None


def test_results_have_a_limit():
    assert countdown.after((20, 5), "20*5=100") == (100,)
    assert countdown.after((20, 6), "20*6=120") is None
    assert countdown.after((1, 1), "1-1=0") is None


def test_a_wrong_step_is_never_mended():
    assert PROBLEM.left("7-5=3 (3 9 3)\n9+3=12\n12*2=24") is None
    assert not PROBLEM.solvable("7-5=3")
    assert PROBLEM.solution("7-5=3") is None
    assert not PROBLEM.solved(SOLUTION + "\n24+0=24")


def test_equal_numbers_are_two_numbers():
    twice = fk.tasks.Countdown((4, 4), 8)
    assert twice.solved("4+4=8 (8)")
    assert not fk.tasks.Countdown((4, 3), 8).solved("4+4=8 (8)")


def test_every_number_must_be_used():
    assert not fk.tasks.Countdown((4, 6, 24), 24).solved("6*4=24 (24 24)")


@pytest.mark.parametrize("bad", [((3,), 3), ((0, 3), 3), ((3, 101), 3), ((3, 4), 0), ((3, 4.0), 7), ((3, True), 4)])
def test_bad_problems_are_refused(bad):
    with pytest.raises(ValueError, match="numbers"):
        fk.tasks.Countdown(*bad)


# The solver


def brute(numbers):
    """All targets, by every order of every pair, in exact fractions."""
    if len(numbers) == 1:
        return {numbers[0]}
    found = set()
    for i, j in itertools.permutations(range(len(numbers)), 2):
        rest = [numbers[k] for k in range(len(numbers)) if k not in (i, j)]
        a, b = numbers[i], numbers[j]
        for value in (a + b, a - b, a * b, Fraction(a, b)):
            if value == int(value) and 1 <= value <= countdown.LIMIT:
                found |= brute([*rest, int(value)])
    return found


def test_the_solver_agrees_with_brute_force():
    rng = random.Random(0)
    for size in (2, 3, 3, 4, 4, 4):
        numbers = tuple(rng.randint(1, 20) for _ in range(size))
        bits, truth = countdown.reach(numbers), brute(list(numbers))
        assert {target for target in range(200) if bits >> target & 1} == truth
        for target in range(1, countdown.LIMIT + 1):
            problem = fk.tasks.Countdown(numbers, target)
            assert problem.solvable() == (target in truth)
            solution = problem.solution()
            assert (solution is not None) == (target in truth)
            assert solution is None or problem.solved("\n".join(solution))


def test_moves_are_all_the_right_steps():
    left = (12, 4, 4)
    for move in countdown.moves(left):
        assert countdown.after(left, str(move)) == move.left
    shown = {str(move).split(" ")[0] for move in countdown.moves(left)}
    assert shown == {"12+4=16", "12-4=8", "12*4=48", "12/4=3", "4+4=8", "4*4=16", "4/4=1"}


def test_the_true_value_tells_where_a_mistake_is_made():
    assert PROBLEM.solvable()
    assert PROBLEM.solvable("7-5=2")
    assert not PROBLEM.solvable("9*7=63")
    assert "\n".join(("7-5=2", *PROBLEM.solution("7-5=2"))).count("\n") == 2
    assert PROBLEM.solved("\n".join(("7-5=2", *PROBLEM.solution("7-5=2"))))


# Problems


def test_problems_are_solvable_distinct_and_the_same_for_a_seed():
    made = fk.tasks.problems(60, seed=3)
    assert made == fk.tasks.problems(80, seed=3)[:60]
    assert made != fk.tasks.problems(60, seed=4)
    assert len({(tuple(sorted(p.numbers)), p.target) for p in made}) == 60
    assert all(p.solvable() and len(p.numbers) == 5 and 10 <= p.target <= 100 for p in made)


def test_the_splits_have_no_problem_in_common():
    seen = {}
    for split, seed in itertools.product(("train", "test"), range(3)):
        for problem in fk.tasks.problems(60, seed, numbers=3, split=split):
            assert problem.split == split
            assert seen.setdefault((tuple(sorted(problem.numbers)), problem.target), split) == split
    numbers = (3, 5, 7, 9)
    splits = {fk.tasks.Countdown(order, 24).split for order in itertools.permutations(numbers)}
    assert len(splits) == 1


def test_there_are_only_so_many_problems():
    with pytest.raises(ValueError, match="hardly"):
        fk.tasks.problems(10_000, numbers=2)
    with pytest.raises(ValueError, match="split"):
        fk.tasks.problems(1, split="dev")


# What ships


@pytest.fixture(scope="module")
def lm():
    return fk.tasks.reasoner()


@pytest.fixture(scope="module")
def prm():
    return fk.tasks.verifier()


@pytest.fixture(scope="module")
def sampled(lm):
    """Two answers to each of 100 held-out problems."""
    problems = fk.tasks.problems(100, seed=7)
    posteriors = fk.infer([fk.tasks.solve(lm, None, p) for p in problems], fk.ImportanceSampling(2), seed=0)
    return [(p, text) for p, posterior in zip(problems, posteriors) for text in posterior.values]


@pytest.mark.parametrize("name", ["countdown_reasoner", "countdown_verifier", "countdown_verifier_early"])
def test_weights_are_whole_and_their_record_says_where_they_come_from(name):
    told = fk.tasks.record(name)
    assert {"about", "license", "data", "training", "sha256", "parameters", "config", "measured"} <= set(told)
    assert {"seed", "steps", "cpu_seconds", "loss"} <= set(told["training"])
    which = {name: which for which, name in shipped._VERIFIERS.items()}
    model = fk.tasks.verifier(which[name])._reader.model if name in which else fk.tasks.reasoner().model
    assert sum(value.numel() for value in model.parameters()) == told["parameters"]
    assert (ROOT / "models" / "tasks" / "weights" / f"{name}.safetensors").stat().st_size < 4_000_000


def test_damaged_weights_are_refused(tmp_path, monkeypatch):
    for path in (ROOT / "models" / "tasks" / "weights").glob("countdown_reasoner.*"):
        shutil.copy(path, tmp_path)
    raw = bytearray((tmp_path / "countdown_reasoner.safetensors").read_bytes())
    raw[-1] ^= 1
    (tmp_path / "countdown_reasoner.safetensors").write_bytes(raw)
    monkeypatch.setattr(shipped, "files", lambda package: Folder(tmp_path))
    with pytest.raises(DamagedWeights, match="countdown_reasoner"):
        fk.tasks.reasoner()
    with pytest.raises(ValueError, match="no network is called 'cats'"):
        fk.tasks.record("cats")


class Folder:
    """Stands for a package whose weights are elsewhere."""

    def __init__(self, weights):
        self.weights = weights

    def __truediv__(self, name):
        assert name == "weights"
        return self.weights


def test_the_tokenizer_reads_and_writes_what_the_task_is_made_of():
    tokenizer = shipped.tokenizer()
    for string in (PROBLEM.prompt + SOLUTION, "100 1 20 > 99\n20/1=20 (100 20)\n"):
        tokens = tokenizer(string).input_ids
        assert tokenizer.decode(tokens) == string
        assert tokenizer.unk_token_id not in tokens
    assert len(tokenizer("7-5=2 (3 9 2)\n").input_ids) == 11
    assert tokenizer("3 x 101").input_ids.count(tokenizer.unk_token_id) == 2


@pytest.mark.slow
def test_one_sample_solves_some_problems_but_not_most(sampled):
    accuracy = np.mean([p.solved(text) for p, text in sampled])
    told = fk.tasks.record("countdown_reasoner")["measured"]["5_numbers"]["solved"]
    assert 0.05 < accuracy < 0.4
    # 200 answers to 100 problems: at most sqrt(p(1-p)/100) of standard error, 4 of them.
    assert abs(accuracy - told) < 4 * (told * (1 - told) / 100) ** 0.5


@pytest.mark.slow
def test_nearly_all_that_the_reasoner_writes_is_a_step(sampled):
    lines = [line for _, text in sampled for line in str(text).splitlines()]
    assert np.mean([countdown._STEP.fullmatch(line) is not None for line in lines]) > 0.99
    assert np.mean([len(text.steps) == 4 for _, text in sampled]) > 0.99


def test_the_verifier_is_informed_and_at_first_too_sure(sampled, prm):
    whole = [(p, text) for p, text in sampled if len(text.steps) == 4]
    scores = np.array(prm.details([(p.prompt, text) for p, text in whole]))
    good = np.array([p.solved(text) for p, text in whole])
    above = [(column[good][:, None] > column[~good]).mean() for column in scores.T]
    assert above[3] > 0.97
    assert above[1] > 0.6
    assert above[3] > above[0]
    excess = scores.mean(0) - good.mean()
    assert excess[0] > 0.1
    assert excess[0] > abs(excess[3])


def test_the_verifier_reads_a_prefix_alike_whatever_follows(prm):
    steps = SOLUTION.splitlines()
    whole, part = prm.details([(PROBLEM.prompt, steps), (PROBLEM.prompt, steps[:2])])
    assert np.allclose(whole[:2], part, atol=1e-5)
    assert whole[2] > 0.5


# The program


@pytest.mark.parametrize("weigh", ["telescope", "final", "product", "odds"])
def test_weights_are_what_the_program_says(lm, prm, weigh):
    problem = fk.tasks.problems(1, seed=5)[0]
    posterior = fk.infer(fk.tasks.solve(lm, prm, problem, weigh), fk.SMC(6, ess_threshold=0.0), seed=1)
    for text, log_weight in zip(posterior.values, posterior.log_weights):
        r = np.array(prm.details([(problem.prompt, text)])[0])
        expected = {
            "telescope": np.log(r[-1]),
            "final": np.log(r[-1]),
            "product": np.log(r).sum(),
            "odds": (np.log(r) - np.log1p(-r)).sum(),
        }[weigh]
        assert log_weight == pytest.approx(expected, abs=1e-4)
    twists = np.array([step.log_twist for step in posterior.steps])
    assert twists.any() == (weigh == "telescope")


@pytest.mark.parametrize(
    "engine", [fk.SMC(8), fk.SMC(8, ess_threshold=1.0), fk.ImportanceSampling(8), fk.BestOfN(8)], ids=repr
)
def test_every_engine_runs_problems_in_shared_batches_and_counts_their_cost(engine):
    problems = fk.tasks.problems(4, seed=6)
    lm, prm, made = fk.tasks.reasoner(), fk.tasks.verifier(), []
    lm.model.register_forward_pre_hook(lambda *_: made.append(1))

    def passes():
        n = len(made)
        made.clear()
        return n

    posteriors = fk.infer([fk.tasks.solve(lm, prm, p) for p in problems], engine, seed=0)
    together = passes()
    for problem, posterior in zip(problems, posteriors):
        assert all(str(text).count("\n") <= problem.steps for text in posterior.values)
        assert posterior.cost.tokens_out == pytest.approx(8 * 42, rel=0.1)
        assert 0 < posterior.cost.reward_calls <= 8 * problem.steps
    fk.infer(fk.tasks.solve(lm, fk.tasks.verifier(), problems[0]), engine, seed=0)
    assert together < 1.5 * passes()


def test_final_asks_the_verifier_once(lm):
    problem = fk.tasks.problems(1, seed=6)[0]
    for weigh, most in (("final", 1), ("telescope", problem.steps)):
        posterior = fk.infer(fk.tasks.solve(lm, fk.tasks.verifier(), problem, weigh), fk.BestOfN(8), seed=0)
        assert posterior.cost.reward_calls <= 8 * most
    assert posterior.cost.reward_calls > 8


@pytest.mark.slow
def test_the_verifier_finds_solutions(lm, prm, sampled):
    problems = fk.tasks.problems(20, seed=8)
    single = np.mean([p.solved(text) for p, text in sampled])
    for engine in (fk.SMC(16), fk.BestOfN(16)):
        found = fk.infer([fk.tasks.solve(lm, prm, p) for p in problems], engine, seed=0)
        assert np.mean([p.solved(posterior.best()) for p, posterior in zip(problems, found)]) > single + 0.15


def test_answers_vote_without_a_verifier(lm):
    models = [fk.tasks.solve(lm, None, p) for p in fk.tasks.problems(3, seed=8)]
    for posterior in fk.infer(models, fk.SelfConsistency(8, key=lambda text: str(text).splitlines()[-1]), seed=0):
        assert sum(posterior.vote().values()) == pytest.approx(1.0)
        assert posterior.cost.reward_calls == 0


def test_rewards_of_a_problem_are_scores():
    from feynkac.ppl.score import evaluate

    texts = [SOLUTION, "7-5=2", "9*7=63"]
    assert evaluate([PROBLEM.reward(text).log() for text in texts]) == [0.0, -np.inf, -np.inf]
    assert evaluate([PROBLEM.value(text).log() for text in texts]) == [0.0, 0.0, -np.inf]


@pytest.mark.slow
def test_the_true_value_as_a_guide_solves_what_can_be_solved(lm):
    problems = fk.tasks.problems(10, seed=9)
    guides = [lambda _, text, p=p: p.value(text) for p in problems]
    models = [fk.tasks.solve(lm, guide, p, "product") for guide, p in zip(guides, problems)]
    found = fk.infer(models, fk.SMC(64, all_dead="zero"), seed=0)
    assert np.mean([p.solved(posterior.best()) for p, posterior in zip(problems, found)]) >= 0.9


def test_other_language_models_take_the_few_shot_prompt():
    from feynkac.models.testing import tiny_lm

    model = fk.tasks.solve(tiny_lm(), None, PROBLEM, prompt=PROBLEM.few_shot, max_tokens=5)
    posterior = fk.infer(model, fk.ImportanceSampling(3), seed=0)
    assert all(text.prompt == PROBLEM.few_shot and len(text.steps) <= 3 for text in posterior.values)
    assert PROBLEM.few_shot.endswith(f"\n\n{PROBLEM.prompt}")
    examples = PROBLEM.few_shot.split("\n\n")[1:-1]
    assert examples
    for example in examples:
        head, body = example.split("\n", 1)
        numbers, target = head.split(" > ")
        assert fk.tasks.Countdown(tuple(map(int, numbers.split())), int(target)).solved(body)


def test_an_answer_without_a_step_has_no_weight(prm):
    from feynkac.models.testing import tiny_lm

    lm = tiny_lm()
    mute = type("Mute", (), {"prompt": lm.prompt, "line": lambda self, text, **_: fk.dist.Delta(text)})()
    posterior = fk.infer(fk.tasks.solve(mute, prm, PROBLEM), fk.SMC(3, all_dead="zero"), seed=0)
    assert posterior.log_evidence == -np.inf


def test_lines_are_drawn_as_asked_and_shown_before_they_are_all_there(lm, prm):
    problem = fk.tasks.problems(1, seed=5)[0]
    cold = fk.tasks.solve(lm, None, problem, temperature=0)
    assert len({str(fk.simulate(cold, seed=seed).value) for seed in range(3)}) == 1
    short = fk.simulate(fk.tasks.solve(lm, None, problem, max_tokens=2), seed=0).value
    assert 0 < len(short.tokens) <= 2 * problem.steps
    cut = fk.infer(fk.tasks.solve(lm, prm, problem), fk.SMC(4), seed=0, budget=fk.Budget(tokens=1))
    assert [len(text.steps) for text in cut.values] == [1] * 4


def test_a_wrong_weighing_is_refused(lm, prm):
    with pytest.raises(ValueError, match="telescope"):
        fk.infer(fk.tasks.solve(lm, prm, PROBLEM, "sum"), fk.SMC(2), seed=0)


# Training


def read(tokens):
    """The problem and the answer in a row of tokens."""
    head, body = shipped.tokenizer().decode(tokens.tolist(), skip_special_tokens=True).split("\n", 1)
    numbers, target = head.split(" > ")
    return fk.tasks.Countdown(tuple(map(int, numbers.split())), int(target)), body


def test_traces_solve_training_problems_unless_noise_is_added(training):
    import countdown_data

    for numbers in (4, 5):
        rng = np.random.default_rng(0)
        clean = [read(row) for row in countdown_data.traces(80, numbers, countdown_data.Noise(0.0, 0.0), rng)]
        assert all(p.split == "train" and p.solved(body) and p.target >= 10 for p, body in clean)
        slips = [read(row) for row in countdown_data.traces(80, numbers, countdown_data.Noise(1.0, 0.0), rng)]
        assert all(p.answer(body) is not None for p, body in slips)
        assert np.mean([p.solved(body) for p, body in slips]) < 0.5
        wrong = [read(row) for row in countdown_data.traces(80, numbers, countdown_data.Noise(0.0, 1.0), rng)]
        assert np.mean([p.left(body) is None for p, body in wrong]) > 0.9
        assert all(shipped.tokenizer()(p.prompt + body).input_ids for p, body in clean)


def test_the_tail_of_a_trace_is_a_problem_of_its_own(training):
    import countdown
    import countdown_data

    for numbers, length in countdown.LENGTH.items():
        rows = countdown_data.traces(30, 5, countdown_data.Noise(0.0, 0.0), np.random.default_rng(0), 5 - numbers)
        assert rows.shape == (30, length)
        for problem, body in map(read, rows):
            assert len(problem.numbers) == numbers
            assert problem.split == "train"
            assert problem.solved(body)


def test_training_rows_are_what_the_tokenizer_makes(training):
    import countdown_data

    rows = countdown_data.traces(20, 5, countdown_data.Noise(0.2, 0.1), np.random.default_rng(1))
    for row in rows:
        string = shipped.tokenizer().decode(row.tolist(), skip_special_tokens=True)
        assert shipped.tokenizer()(string).input_ids == row.tolist()[:-1]


def test_exact_labels_are_the_true_value(training):
    import countdown_data

    for numbers in (4, 5):
        rows = countdown_data.traces(60, numbers, countdown_data.Noise(0.7, 0.1), np.random.default_rng(0))
        ends, good = countdown_data.exact(rows, numbers)
        truth = []
        for problem, body in map(read, rows):
            lines = body.splitlines()
            truth.append([problem.solvable("\n".join(lines[:step])) for step in range(1, numbers)])
        assert (good == truth).all()
        assert 0.2 < good.mean() < 0.9
        assert (rows[:, ends] == rows[0, numbers + 2]).all()


def test_labels_are_right_at_the_end_and_nought_after_a_mistake(training, lm):
    import countdown_rollouts as rollouts

    problems = fk.tasks.problems(30, seed=2, numbers=4)
    heads = torch.tensor([shipped.tokenizer()(p.prompt).input_ids for p in problems])
    found = rollouts.labelled(lm.model, heads, 2, torch.Generator().manual_seed(0))
    for problem, (row, marks) in zip(problems, found):
        text = rollouts.answer(row)
        assert [row[end] for end, _ in marks] == [row[len(heads[0]) - 1]] * len(marks)
        assert marks[-1][1] == problem.solved(text)
        for end, good in marks:
            assert problem.solvable(rollouts.answer(row, end)) or not good
    assert any(good for _, marks in found for _, good in marks)


def test_what_the_scripts_write_the_library_loads(training, monkeypatch):
    import countdown
    from countdown_data import Noise
    from loop import Settings

    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    monkeypatch.setattr(countdown, "CONFIG", {**countdown.CONFIG, **small})
    monkeypatch.setattr(countdown, "BLOCK", 10)
    phases = [
        countdown.Phase(until, {2: 0.5, 5: 0.5}, tails, Noise(0.1, 0.1)) for until, tails in ((2, False), (3, True))
    ]
    countdown.reasoner(Settings(3, batch=4), tuple(phases), training)
    countdown.verifier(Settings(1, batch=4), Settings(2, batch=4), 20, 1, training)
    monkeypatch.setattr(shipped, "files", lambda package: Folder(training))
    told = json.loads((training / "countdown_verifier.json").read_text())
    assert told["training"]["steps"] == 2
    assert "1 rollouts" in told["data"]
    problem = fk.tasks.Countdown((1, 2), 3)
    posterior = fk.infer(fk.tasks.solve(fk.tasks.reasoner(), fk.tasks.verifier(), problem), fk.SMC(4), seed=0)
    assert np.isfinite(posterior.log_evidence)


# reasoning-gym


@pytest.mark.parametrize("name", ["chain_sum", "countdown", "leg_counting", "word_sorting"])
def test_exercises_have_their_own_checkers(name):
    pytest.importorskip("reasoning_gym")
    made = fk.tasks.gym(name, seed=1, size=3)
    assert [e.prompt for e in made] == [e.prompt for e in fk.tasks.gym(name, seed=1, size=3)]
    assert made[0].prompt != fk.tasks.gym(name, seed=2, size=1)[0].prompt
    for exercise in made:
        assert exercise.solved(exercise.expected)
        assert exercise.solved(f"Well.\n<answer>{exercise.expected}</answer>")
        assert exercise.score("no idea") < 0.1
        assert not exercise.solved("((")


def test_the_last_answer_counts_and_a_text_may_be_read_otherwise():
    pytest.importorskip("reasoning_gym")
    (tagged,), (after_equals,) = (
        fk.tasks.gym("chain_sum", seed=1, size=1, **how) for how in ({}, {"extract": lambda text: text.split("=")[-1]})
    )
    right = tagged.expected
    assert tagged.solved(f"<answer>0.5</answer> no: <answer>{right}</answer>")
    assert not tagged.solved(f"<answer>{right}</answer> no: <answer>0.5</answer>")
    assert [one.solved(f"so it ={right}") for one in (tagged, after_equals)] == [False, True]


class Scripted:
    """A language model that answers one of some answers, evenly."""

    def __init__(self, answers):
        from feynkac.models.testing import tiny_lm

        self.lm = tiny_lm()
        self.answers = answers

    def prompt(self, string):
        return self.lm.prompt(string)

    def line(self, text, **_):
        return fk.dist.Categorical(
            np.full(len(self.answers), 1 / len(self.answers)), values=[text.append(a) for a in self.answers]
        )


@pytest.mark.parametrize("name", ["chain_sum", "leg_counting", "word_sorting"])
def test_exercises_run_under_the_engines(name):
    pytest.importorskip("reasoning_gym")
    exercises = fk.tasks.gym(name, seed=3, size=2, steps=1)
    for engine in (fk.SMC(12), fk.BestOfN(12), fk.ImportanceSampling(12)):
        models = [
            fk.tasks.solve(Scripted(["no idea", e.expected, "7 of 9"]), lambda _, text, e=e: e.reward(text), e)
            for e in exercises
        ]
        for exercise, posterior in zip(exercises, fk.infer(models, engine, seed=0)):
            assert exercise.solved(posterior.best())
            assert any(not exercise.solved(text) for text in posterior.values)


def test_data_sets_that_are_not_there_are_refused():
    pytest.importorskip("reasoning_gym")
    with pytest.raises(ValueError, match="no data set 'cats'"):
        fk.tasks.gym("cats")
    with pytest.raises(TypeError, match="cats"):
        fk.tasks.gym("chain_sum", cats=3)


@pytest.mark.real
def test_a_language_model_from_the_hub_writes_steps():
    lm = fk.models.TransformersLM.from_pretrained("smollm2")
    problems = fk.tasks.problems(4, seed=0, numbers=4)
    models = [fk.tasks.solve(lm, None, p, prompt=p.few_shot) for p in problems]
    posteriors = fk.infer(models, fk.ImportanceSampling(4), seed=0)
    first = [str(text).split("\n")[0] for posterior in posteriors for text in posterior.values]
    assert np.mean([countdown._STEP.fullmatch(line) is not None for line in first]) > 0.5
