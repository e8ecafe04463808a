"""The process reward model of Countdown that knows early: how it is trained, and what it knows."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
import torch

import feynkac as fk
from feynkac.models.tasks import shipped
from feynkac.models.tasks.countdown import reach

ROOT = Path(__file__).resolve().parent.parent


def test_a_target_is_in_reach_where_two_pairs_share_a_number(training):
    import countdown_early as early

    rng, sizes = np.random.default_rng(0), set()
    for _ in range(40):
        tokens, places, goal, state = early.states(50, rng)
        truth = [bool(reach(left) >> target & 1) for left, target in zip(state.tolist(), goal.tolist())]
        assert early.in_reach(state, goal).tolist() == truth
        assert tokens.shape[1] == len(places)
        assert 0.2 < np.mean(truth) < 0.8
        sizes.add(state.shape[1])
    assert sizes == {2, 3}


def test_states_stand_where_they_would_in_an_answer(training):
    import countdown_data
    import countdown_early as early

    for numbers, line in ((4, 0), (5, 1)):
        rows = countdown_data.traces(20, numbers, countdown_data.Noise(0.5, 0.0), np.random.default_rng(0))
        end = early.ends(numbers)[line]
        assert (rows[:, early.ends(numbers)] == countdown_data.LINE).all()
        at = [end + each for each in early.AT]
        state = rows[:, end - 4 : end - 1] - [shipped.FIRST, shipped.SPACED, shipped.SPACED]
        assert (rows[:, at[0]] - shipped.FIRST == state[:, 2]).all()
        places = np.r_[numbers : numbers + 2, at]
        short = np.concatenate([rows[:, numbers : numbers + 2], rows[:, at]], 1)
        rng = np.random.default_rng(0)
        made = next(
            (tokens, where)
            for tokens, where, _, left in (early.states(4, rng) for _ in range(200))
            if left.shape[1] == 3 and where[0] == numbers
        )
        assert made[1].tolist() == places.tolist()
        kinds = np.digitize(short[0], [shipped.FIRST, shipped.SPACED, shipped.SIGNS])
        assert (np.digitize(made[0][0], [shipped.FIRST, shipped.SPACED, shipped.SIGNS]) == kinds).all()


def test_gaps_between_places_hide_nothing(training):
    import countdown
    import countdown_early as early
    from transformers import LlamaConfig, LlamaForTokenClassification

    small = {**countdown.CONFIG, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3, "num_labels": 1}
    taught = early.Taught(LlamaForTokenClassification(LlamaConfig(**small)))
    rng = np.random.default_rng(0)
    tokens, places, goal, state = early.states(8, rng)
    labels = early.in_reach(state, goal)[:, None]
    other = tokens.copy()
    other[:, 1] = shipped.SPACED + 1
    losses = [taught.loss(each, [tokens.shape[1] - 1], labels, None, places).item() for each in (tokens, other)]
    assert losses[0] != losses[1]


def test_chances_are_those_of_the_reasoner(training):
    import countdown_chances as chances
    from countdown_rollouts import answer, problem, roll

    model, outcome, spread, alone = fk.tasks.reasoner().model, 0.0, 0.0, []
    heads = [shipped.tokenizer()(p.prompt).input_ids for p in fk.tasks.problems(40, seed=3, numbers=4)]
    with torch.inference_mode():
        rows = roll(model, torch.tensor(heads).repeat_interleave(4, 0), torch.Generator().manual_seed(0))
    for row, marks in zip(rows, chances.chances(model, rows)):
        task, _ = problem(row)
        first, solved = marks[0][1], task.solved(answer(row))
        assert all(0.0 <= chance <= 1.0 + 1e-5 for _, chance in marks)
        assert all(task.solvable(answer(row, end)) or not chance for end, chance in marks)
        assert marks[-1][1] == solved
        outcome, spread = outcome + solved - first, spread + first * (1.0 - first)
        if solved and len(chances.ways(task.left(answer(row, marks[1][0])), task.target)) == 1:
            with torch.inference_mode():
                law = (model(input_ids=torch.tensor([row])).logits[0] / shipped.TEMPERATURE).log_softmax(-1)
            line = range(marks[1][0] + 1, marks[2][0] + 1)
            alone.append((float(sum(law[t - 1, row[t]] for t in line).exp()), marks[1][1]))
    assert len(alone) > 5
    assert np.allclose(*zip(*alone), atol=1e-4)
    assert spread > 4.0
    # Outcomes are draws of their chances: |z| < 4.265 fails by chance in 2e-5 of seeds.
    assert abs(outcome) < 4.265 * spread**0.5


def test_what_the_script_writes_the_library_loads(training, monkeypatch):
    import countdown_chances
    import countdown_early as early
    from loop import Settings

    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    small |= {"num_key_value_heads": 2, "head_dim": 8}
    monkeypatch.setattr(early, "WIDER", {**early.WIDER, **small})
    monkeypatch.setattr(countdown_chances, "BLOCK", 10)
    for path in (ROOT / "models" / "tasks" / "weights").glob("countdown_reasoner.*"):
        shutil.copy(path, training)
    early.early(Settings(2, batch=4), Settings(4, batch=4), Settings(5, batch=4), 40, training)
    told = json.loads((training / "countdown_verifier_early.json").read_text())
    assert told["training"]["steps"] == 5
    monkeypatch.setattr(shipped, "files", lambda package: Folder(training))
    posterior = fk.infer(
        fk.tasks.solve(fk.tasks.reasoner(), fk.tasks.verifier("early"), fk.tasks.Countdown((1, 2), 3)),
        fk.SMC(4),
        seed=0,
    )
    assert np.isfinite(posterior.log_evidence)


class Folder:
    """Stands for a package whose weights are elsewhere."""

    def __init__(self, weights):
        self.weights = weights

    def __truediv__(self, name):
        return self.weights


def test_verifiers_have_names():
    with pytest.raises(ValueError, match="'overconfident' and 'early'"):
        fk.tasks.verifier("late")


@pytest.mark.slow
def test_the_early_verifier_knows_early_and_is_calibrated():
    lm, problems = fk.tasks.reasoner(), fk.tasks.problems(120, seed=9, numbers=4)
    posteriors = fk.infer([fk.tasks.solve(lm, None, p) for p in problems], fk.ImportanceSampling(3), seed=0)
    found = [(p, text) for p, posterior in zip(problems, posteriors) for text in posterior.values]
    found = [(p, text) for p, text in found if len(text.steps) == 3]
    good = np.array([p.solved(text) for p, text in found])
    area, excess = {}, {}
    for which in ("overconfident", "early"):
        scores = np.array(fk.tasks.verifier(which).details([(p.prompt, text) for p, text in found]))
        area[which] = [(column[good][:, None] > column[~good]).mean() for column in scores.T]
        excess[which] = scores.mean(0) - good.mean()
    assert area["early"][0] > 0.82
    assert area["early"][1] > 0.95
    assert area["early"][0] > area["overconfident"][0] + 0.05
    assert abs(excess["early"]).max() < 0.1 < excess["overconfident"][0]
