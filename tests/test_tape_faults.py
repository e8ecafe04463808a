"""What a tape, a table of scores or a budget is given wrongly is refused by name, and nothing wrong comes of it."""

import io
import math
import zipfile

import numpy as np
import pytest

import feynkac as fk
from feynkac.inference.scaling.policy import ComputeOptimal, Record
from feynkac.models.testing import ScriptedLM

ONE, TWO = fk.tasks.Countdown((2, 6), 3), fk.tasks.Countdown((2, 6), 4)
SAID = {"2 6 > 3\n": {"6/2=3 (3)": 0.7, "6-2=4 (4)\n": 0.3}, "2 6 > 4\n": {"6-2=4 (4)": 0.6, "6+2=8 (8)\n": 0.4}}


def record(*problems, said=SAID, **options):
    return fk.tasks.Tape.record(ScriptedLM(lambda before: said.get(before, "")), problems, **options)


class Given:
    """A verifier that gives what it is told to."""

    def __init__(self, give):
        self.give = give

    def details(self, inputs):
        return self.give(len(inputs))


def test_texts_of_another_tape_of_one_name_are_told_apart():
    tape, other = record(ONE, TWO), record(TWO, ONE)
    start = tape.prompt(ONE.prompt)
    with pytest.raises(ValueError, match="one of its own texts"):
        other.line(start)
    with pytest.raises(ValueError, match="asked for another text"):
        other.verifier("success")(ONE.prompt, start).evaluate()
    with pytest.raises(ValueError, match="asked for another text"):
        fk.infer(fk.tasks.solve(other, tape.verifier("success", clip=0.01), ONE), fk.SMC(4), seed=0)
    kernel = other.line(other.prompt(ONE.prompt))
    assert not kernel.fits(tape.text(2))
    assert kernel.log_prob_batch([kernel], [tape.text(2)]) == [-math.inf]


def test_texts_of_a_tape_that_was_saved_are_those_of_its_file(tmp_path):
    tape = record(ONE, TWO)
    tape.save(tmp_path / "tape.npz")
    again = fk.tasks.Tape.load(tmp_path / "tape.npz")
    assert again.line(tape.prompt(ONE.prompt)).support() != []
    assert all(again.owns(tape.text(place)) for place in range(len(tape.parent)))


@pytest.mark.parametrize(
    ("give", "words"),
    [
        (lambda n: [[0.5]], "scores of 1 answers, and had 4"),
        (lambda n: [[0.5]] * (n - 1), "scores of 3 answers, and had 4"),
        (lambda n: [[math.nan]] * n, r"not in \[0, 1\]"),
        (lambda n: [[3.0]] * n, r"not in \[0, 1\]"),
        (lambda n: [[]] * n, r"as \[\]"),
    ],
)
def test_scores_that_are_none_are_refused(give, words):
    with pytest.raises(ValueError, match=f"the verifier 'graded'.*{words}"):
        record(ONE, TWO).scored(graded=Given(give))


def test_settings_that_are_none_are_refused():
    tape = record(ONE)
    with pytest.raises(ValueError, match="give another name"):
        tape.scored(success=Given(lambda n: [[0.5]] * n))
    for clip in (0.7, -1.0, math.nan):
        with pytest.raises(ValueError, match="clip is how far"):
            tape.verifier("success", clip=clip)
    with pytest.raises(ValueError, match="no problems"):
        record()
    for cutoff in (0.0, 2.0, math.nan):
        with pytest.raises(ValueError, match="cutoff is a probability"):
            record(ONE, cutoff=cutoff)


def test_a_line_that_is_cut_and_goes_on_is_refused_and_a_last_one_is_the_models():
    with pytest.raises(ValueError, match="'4\\*2=8' is cut by max_tokens=5"):
        record(fk.tasks.Countdown((2, 3, 4), 20), said={"2 3 4 > 20\n": "4*2=8 (3 8)\n"}, max_tokens=5)
    tape = record(ONE, said={"2 6 > 3\n": "6/2=3 (3)\n"}, max_tokens=5)
    assert str(tape.text(1)) == "6/2=3"


def test_a_file_keeps_long_lines_and_refuses_null_characters(tmp_path):
    tape = record(ONE, said={"2 6 > 3\n": "x" * 300 + "\n"}, max_tokens=400)
    tape.save(tmp_path / "long.npz")
    assert fk.tasks.Tape.load(tmp_path / "long.npz").tokens.tolist() == [0, 301]
    with pytest.raises(ValueError, match="null character"):
        record(ONE, said={"2 6 > 3\n": "a\0b\n"}).save(tmp_path / "null.npz")
    assert not (tmp_path / "null.npz").exists()


def set_at(name, place, value, kind=None):
    def change(arrays):
        column = arrays[name].astype(kind or arrays[name].dtype)
        column[place] = value
        return {name: column}

    return change


CHANGES = {
    "short tokens": lambda a: {"tokens": a["tokens"][:-1]},
    "short lines": lambda a: {"line_of": a["line_of"][:-1]},
    "short scores": lambda a: {"score_x": np.zeros(2, np.float16)},
    "no temperature": lambda a: {"temperature": None},
    "two temperatures": lambda a: {"temperature": np.ones(2)},
    "an object": lambda a: {"tokens": np.array([{}], object)},
    "words that end early": lambda a: {"words": a["words"][:12]},
    "a line that is not there": set_at("line_of", -1, 99),
    "no number": set_at("log_prob", -1, math.nan),
    "nothing likely": set_at("log_prob", slice(2, 4), -math.inf),
    "fewer than none": set_at("count", 0, -1),
    "too many": set_at("count", 0, 10**13, np.int64),
    "no tree": lambda a: {"count": np.array([0, 0, 4, 0, 0, 0])},
    "tokens below 0": set_at("tokens", -1, -1),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_file_that_does_not_fit_together_is_refused(what, tmp_path):
    path = tmp_path / "tape.npz"
    record(ONE, TWO).save(path)
    arrays = dict(np.load(path))
    arrays |= CHANGES[what](arrays)
    np.savez(path, **{key: array for key, array in arrays.items() if array is not None})
    with pytest.raises(ValueError, match=r"tape\.npz is not a tape, or it is damaged"):
        fk.tasks.Tape.load(path)


def test_a_file_that_is_none_is_refused_before_much_is_allocated(tmp_path):
    path = tmp_path / "tape.npz"
    record(ONE).save(path)
    whole = path.read_bytes()
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<i8", "fortran_order": False, "shape": (10**14,)})
    bomb, array = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(bomb, "w") as archive:
        archive.writestr("tokens.npy", head.getvalue())
    np.save(array, np.zeros(3))
    for content in (b"", b"hello", array.getvalue(), whole[: len(whole) // 2], bomb.getvalue()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"tape\.npz is not a tape, or it is damaged"):
            fk.tasks.Tape.load(path)


@fk.program
async def uneven():
    """A program whose only score is final, and whose answers have one step or two."""
    if not await fk.sample("short", fk.dist.Bernoulli(0.5)):
        await fk.factor("nothing", 0.0)
    right = await fk.sample("right", fk.dist.Bernoulli(0.5))
    await fk.factor("verdict", math.log(0.9 if right else 0.2))
    return bool(right)


def test_no_score_before_the_end_is_seen_where_answers_have_different_lengths():
    with pytest.raises(ValueError, match="no run has a score before its end"):
        fk.diagnose([uneven()], bool)


def test_numbers_that_share_nothing_out_are_refused():
    with pytest.raises(ValueError, match="a norm for each of 2"):
        fk.scaling.gvm([0.5, 0.5], [math.inf, 1], 10)
    for alpha in (-1.0, math.nan):
        with pytest.raises(ValueError, match="alpha is a number"):
            fk.scaling.gvm([0.5, 0.5], [1, 1], 10, alpha=alpha)
    rows = [Record(i, (i / 10,), "one", 1, 1.0, 0.5) for i in range(10)]
    with pytest.raises(ValueError, match="folds must be 2 or more"):
        ComputeOptimal.fit(rows, folds=1)
