"""Journals: a run that was killed goes on where it was, and plays without a model."""

from __future__ import annotations

import signal
import sqlite3
import threading
from contextlib import closing

import numpy as np
import pytest
from served import few_tokens, served
from whole_steps import WholeSteps

import feynkac as fk
from dying import ENGINES, Forge, Unseeded, short, story, unseeded
from feynkac.inference.journal.packing import pack, unpack
from feynkac.ppl.errors import JournalError, JournalWarning, NotRecorded, UnreadableJournal
from feynkac.ppl.values import recording


@pytest.fixture(scope="module")
def forge():
    forge = Forge()
    yield forge
    forge.close()


def alike(one, two):
    """Whether two posteriors are the same to the last bit: values, weights, evidence, genealogy, cost."""
    assert one.values == two.values
    assert [text.log_prob for text in one.values] == [text.log_prob for text in two.values]
    for a, b in zip(one.chains, two.chains, strict=True):
        assert np.array_equal(a.log_weights, b.log_weights)
        assert a.log_evidence == b.log_evidence or (a.log_evidence != a.log_evidence)
        for s, t in zip(a.steps, b.steps, strict=True):
            assert np.array_equal(s.ancestors, t.ancestors)
            assert np.array_equal(s.log_weights, t.log_weights)
            assert s.choices == t.choices
    used = [{**vars(p.cost), "seconds": 0} for p in (one, two)]
    assert used[0] == used[1]


@pytest.mark.parametrize("name", ENGINES)
def test_a_killed_run_goes_on_where_it_was_and_is_the_same(name, forge, tmp_path):
    engine, whole = ENGINES[name], WholeSteps()
    alone = fk.infer(story(whole), engine, seed=0)
    path = tmp_path / "run.fkj"
    at = len(whole.requests)
    assert forge.killed(path, name, at)
    lm = WholeSteps()
    again = fk.infer(story(lm), engine, seed=0, journal=path)
    alike(alone, again)
    assert lm.requests == whole.requests[at - 1 :]  # what was answered is asked of nobody
    lm = WholeSteps()
    with fk.Journal(path, mode="replay") as journal:
        alike(alone, fk.infer(story(lm), engine, seed=0, journal=journal))
    assert not lm.requests
    assert journal.saved.model_calls == alone.cost.model_calls
    assert journal.saved.tokens_out == alone.cost.tokens_out
    assert [item.name for item in tmp_path.iterdir()] == ["run.fkj"]


def test_it_can_be_killed_at_any_wave(forge, tmp_path):
    whole = WholeSteps()
    alone = fk.infer(story(whole), fk.SMC(4), seed=0)
    assert len(whole.requests) == 3
    for at in (1, 2, 3):
        path = tmp_path / f"{at}.fkj"
        assert forge.killed(path, "smc", at)
        lm = WholeSteps()
        alike(alone, fk.infer(story(lm), fk.SMC(4), seed=0, journal=path))
        assert len(lm.requests) == 4 - at


def test_steps_and_whatever_runs_within_a_journal_are_recorded(tmp_path):
    path = tmp_path / "run.fkj"
    alone = fk.infer(story(WholeSteps()), fk.SMC(4), seed=0)
    run = fk.steps(story(WholeSteps()), fk.SMC(4), seed=0, journal=path)
    next(iter(run))  # it is left, and taken up again
    lm = WholeSteps()
    for _ in (run := fk.steps(story(lm), fk.SMC(4), seed=0, journal=path)):
        pass
    alike(alone, run.posterior)
    assert len(lm.requests) == 2

    def compared(lm, mode):
        with fk.Journal(tmp_path / "compared.fkj", mode):
            found = fk.compare(story(lm), [fk.SMC(3), fk.BestOfN(3)], metric=lambda p: len(p.best().tokens), seeds=[0])
        return [row.quality.mean for row in found.table()]

    lm = WholeSteps()
    assert compared(WholeSteps(), "record") == compared(lm, "replay")
    assert not lm.requests


@fk.program
async def outer(lm):
    inner = await fk.nested("inner", story(lm, 2), fk.SMC(3))
    await fk.factor("Z", inner.log_evidence)
    return inner.draw


def test_runs_within_runs_are_recorded(tmp_path):
    path = tmp_path / "run.fkj"
    alone = fk.infer(outer(WholeSteps()), fk.SMC(3), seed=0)
    fk.infer(outer(WholeSteps()), fk.SMC(3), seed=0, journal=path)
    lm = WholeSteps()
    again = fk.infer(outer(lm), fk.SMC(3), seed=0, journal=fk.Journal(path, "replay"))
    assert again.values == alone.values
    assert again.log_evidence == alone.log_evidence
    assert not lm.requests


# What is missing, and what is another


def test_a_miss_names_the_particle_and_the_site(tmp_path):
    path = tmp_path / "run.fkj"
    fk.infer(story(WholeSteps()), fk.SMC(4), seed=0, journal=path)
    journal = fk.Journal(path, "replay")
    with pytest.raises(NotRecorded, match=r"particle 0, sample 'words': the journal .*run.fkj does not know this draw"):
        fk.infer(story(WholeSteps()), fk.SMC(4), seed=1, journal=journal)
    with pytest.raises(NotRecorded, match=r"particle 0, sample 'words\[3\]'") as caught:
        fk.infer(story(WholeSteps(), 4), fk.SMC(4), seed=0, journal=journal)
    assert len(caught.value.posterior) == 4
    with pytest.raises(NotRecorded, match=r"particle 4, sample 'words'"):  # the first four are known
        fk.infer(story(WholeSteps()), fk.SMC(6), seed=0, journal=journal)


@fk.program
async def scored(lm, prompts):
    line = await fk.sample("which", fk.dist.DiscreteUniform(0, len(prompts) - 1))
    await fk.factor("p", lm.score(lm.prompt("Once"), prompts[line]) * 0.1)
    await fk.factor("short", short(prompts[line]))
    return line


def test_scores_are_used_again_under_other_seeds_and_draws_are_not(tmp_path):
    path, prompts = tmp_path / "run.fkj", (" upon", " a", " river", " ran")
    fk.infer(scored(WholeSteps(), prompts), fk.SMC(40), seed=0, journal=path)
    lm = WholeSteps()
    with fk.Journal(path) as journal:
        other = fk.infer(scored(lm, prompts), fk.SMC(40), seed=1, journal=journal)
    assert not lm.requests
    assert journal.saved.reward_calls == other.cost.reward_calls == 8
    fk.infer(story(WholeSteps()), fk.SMC(4), seed=0, journal=tmp_path / "draws.fkj")
    lm = WholeSteps()
    fk.infer(story(lm), fk.SMC(4), seed=1, journal=tmp_path / "draws.fkj")
    assert lm.requests == [4, 4, 4]


def test_another_model_in_the_same_place_is_refused(tmp_path):
    path = tmp_path / "run.fkj"
    fk.infer(story(WholeSteps()), fk.SMC(4), seed=0, journal=path)
    other = WholeSteps(context=20)
    with pytest.raises(JournalError, match=r"written with another model at .*whole-steps-0.*context None, and now it"):
        fk.infer(story(other), fk.SMC(4), seed=0, journal=path)
    assert not other.requests
    elsewhere = WholeSteps(seed=1)  # of another name: nothing is known of it
    fk.infer(story(elsewhere), fk.SMC(4), seed=0, journal=path)
    assert len(elsewhere.requests) == 3


def test_another_model_at_the_url_is_refused(tmp_path):
    path, (law, _) = tmp_path / "run.fkj", few_tokens()
    lm, _ = served(law)
    alone = fk.infer(story(lm), fk.SMC(4), seed=0, journal=path)
    same, client = served(law)
    alike(alone, fk.infer(story(same), fk.SMC(4), seed=0, journal=path))
    assert not client.asked
    other, client = served(law)
    other.transport.root = "another/checkpoint"
    with pytest.raises(JournalError, match="another model at http://nowhere: it was revision"):
        fk.infer(story(other), fk.SMC(4), seed=0, journal=path)
    assert not client.asked


def test_models_of_one_name_at_two_urls_are_two(tmp_path):
    """A server that does not say what it loaded is known by its URL; a journal of both plays each."""
    from feynkac.models.testing import tiny_tokenizer

    path, here = tmp_path / "run.fkj", served(few_tokens(seed=1)[0])[0]
    there, client = served(few_tokens(seed=2)[0])
    there.transport.where = "http://elsewhere"
    first = fk.infer(story(here), fk.SMC(4), seed=0, journal=path)
    second = fk.infer(story(there), fk.SMC(4), seed=0, journal=path)
    assert client.asked
    assert second.values == fk.infer(story(there), fk.SMC(4), seed=0).values != first.values
    with fk.Journal(path, "replay") as journal:
        with pytest.raises(LookupError, match=r"several models.*http://nowhere.*http://elsewhere"):
            fk.models.RecordedLM(journal, tiny_tokenizer())
        lm = fk.models.RecordedLM(journal, tiny_tokenizer(), "http://elsewhere")
        alike(second, fk.infer(story(lm), fk.SMC(4), seed=0, journal=journal))


def test_what_a_server_drew_stays_known_for_given_tokens(tmp_path):
    """A law whose given tokens the server does not score: they are known as they were drawn, or played."""
    law, _ = few_tokens()
    engine, path = fk.SuffixMH(6), tmp_path / "run.fkj"
    alone = fk.infer(story(served(law, sampling=fk.models.Sampling(temperature=0.7))[0]), engine, seed=0)
    lm, client = served(law, sampling=fk.models.Sampling(temperature=0.7))
    cut = fk.Budget(model_calls=alone.cost.model_calls - 2)
    fk.infer(story(lm), engine, seed=0, budget=cut, journal=path)
    lm, client = served(law, sampling=fk.models.Sampling(temperature=0.7))
    again = fk.infer(story(lm), engine, seed=0, journal=path)
    assert 0 < len(client.asked) <= 3
    alike(alone, again)


def test_draws_whose_log_probabilities_were_not_told_are_not_taken_for_others(tmp_path):
    path, (law, _), hot = tmp_path / "run.fkj", few_tokens(), fk.models.Sampling(temperature=0.7)
    lm, _ = served(law, mode="raw_logprobs", sampling=hot)
    fk.infer(story(lm), fk.SMC(4), seed=0, journal=path)
    lm, client = served(law, sampling=hot)
    with pytest.raises(JournalError, match=r"did not tell it under .*0\.7.* then, and does now: use another file"):
        fk.infer(story(lm), fk.SMC(4), seed=0, journal=path)
    assert not client.asked


def changed(lm):
    @fk.program
    async def story(lm):
        return await fk.sample("words", lm.tokens(lm.prompt("Once upon"), 2))

    return story(lm)


def test_another_program_is_warned_of(tmp_path):
    path = tmp_path / "run.fkj"
    fk.infer(story(WholeSteps()), fk.SMC(4), seed=0, journal=path)
    with pytest.warns(JournalWarning, match="was written by another program \\(story\\)") as told:
        fk.infer(changed(WholeSteps()), fk.SMC(4), seed=0, journal=path)
    assert told[0].filename == __file__
    fk.infer(story(WholeSteps()), fk.SMC(4), seed=5, journal=path)  # other seeds and engines are no reason


# Damage


def test_a_damaged_file_is_reported_and_left_as_it_is(tmp_path):
    path = tmp_path / "run.fkj"
    fk.infer(story(WholeSteps(), 6), fk.SMC(16), seed=0, journal=path)
    whole = path.read_bytes()
    for place, damaged in {
        "head": b"garbage" + whole[7:],
        "pages": whole[:8192] + bytes(len(whole) - 8192),
        "cut": whole[: len(whole) // 2],
        "text": b"my notes, which are no journal\n" * 20,
    }.items():
        path.write_bytes(damaged)
        with pytest.raises(UnreadableJournal, match=r"run\.fkj is damaged, or no journal"):
            fk.infer(story(WholeSteps(), 6), fk.SMC(16), seed=0, journal=path)
        assert path.read_bytes() == damaged, place


def test_a_bit_that_flipped_in_an_answer_is_found(tmp_path):
    path = tmp_path / "run.fkj"
    fk.infer(story(WholeSteps()), fk.SMC(4), seed=0, journal=path)
    with sqlite3.connect(path) as raw:
        ((rowid, value),) = raw.execute("select rowid, value from answers limit 1").fetchall()
        raw.execute("update answers set value = ? where rowid = ?", (value[:-1] + bytes([value[-1] ^ 1]), rowid))
    raw.close()
    with pytest.raises(UnreadableJournal, match="the checksum of an answer is another"):
        fk.infer(story(WholeSteps()), fk.SMC(4), seed=0, journal=path)


def test_a_log_that_was_cut_loses_its_end_alone(forge, tmp_path):
    path = tmp_path / "run.fkj"
    assert forge.killed(path, "smc", 3)
    log = path.with_name("run.fkj-wal")
    data = log.read_bytes()
    log.write_bytes(data[: len(data) * 3 // 4])
    lm = WholeSteps()
    alike(fk.infer(story(WholeSteps()), fk.SMC(4), seed=0), fk.infer(story(lm), fk.SMC(4), seed=0, journal=path))
    assert len(lm.requests) in (2, 3)


def test_another_schema_and_another_database_are_refused(tmp_path):
    path, other = tmp_path / "run.fkj", tmp_path / "other.db"
    fk.infer(story(WholeSteps()), fk.SMC(4), seed=0, journal=path)
    with sqlite3.connect(path) as raw:
        raw.execute("update meta set value = '99' where name = 'schema'")
    raw.close()
    with pytest.raises(JournalError, match="is a journal of schema 99, and this version of feynkac reads 1"):
        fk.Journal(path)
    with sqlite3.connect(other) as raw:
        raw.execute("create table mine (x)")
    raw.close()
    before = other.read_bytes()
    with pytest.raises(UnreadableJournal, match="no journal of feynkac"):
        fk.Journal(other)
    assert other.read_bytes() == before
    with pytest.raises(FileNotFoundError, match="there is no journal"):
        fk.Journal(tmp_path / "none.fkj", "replay")
    assert not (tmp_path / "none.fkj").exists()
    with pytest.raises(ValueError, match="mode must be"):
        fk.Journal(path, mode="again")


def test_a_full_disk_is_told_and_what_was_written_stays(tmp_path):
    path = tmp_path / "run.fkj"
    alone = fk.infer(story(WholeSteps(), 8), fk.SMC(16), seed=0)
    journal = fk.Journal(path)
    with journal._store._turn() as connection:
        pages = connection.execute("pragma page_count").fetchone()[0]
        connection.execute(f"pragma max_page_count = {pages + 8}")
    with pytest.raises(JournalError, match="the disk is full; make room") as caught:
        fk.infer(story(WholeSteps(), 8), fk.SMC(16), seed=0, journal=journal)
    assert len(caught.value.posterior) == 16
    kept = len(journal)
    assert kept >= 16
    with journal._store._turn() as connection:
        assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
        connection.execute("pragma max_page_count = 1000000")
    lm = WholeSteps()
    alike(alone, fk.infer(story(lm, 8), fk.SMC(16), seed=0, journal=journal))
    assert 0 < len(lm.requests) < 8
    journal.close()


# Several at once


def test_threads_share_a_journal(tmp_path):
    journal, found = fk.Journal(tmp_path / "run.fkj"), {}

    def run(seed):
        found[seed] = fk.infer(story(WholeSteps()), fk.SMC(4), seed=seed, journal=journal)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in (0, 1, 2, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in (0, 1, 2):
        assert found[seed].values == fk.infer(story(WholeSteps()), fk.SMC(4), seed=seed).values
    journal.close()


def test_threads_are_within_one_journal_at_once(tmp_path):
    journal, inside, found = fk.Journal(tmp_path / "run.fkj"), threading.Barrier(2, timeout=20), {}

    def run(seed):
        with journal:
            inside.wait()
            fk.infer(story(WholeSteps()), fk.SMC(4), seed=seed)
            inside.wait()  # the one that came first leaves first or last, as it happens
        found[seed] = recording.current()

    threads = [threading.Thread(target=run, args=(seed,)) for seed in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {0: None, 1: None}
    with journal, fk.Journal(tmp_path / "other.fkj") as other:
        with journal:
            assert recording.current() is journal
        assert recording.current() is other
    assert recording.current() is None


def test_two_processes_on_one_file_agree(forge, tmp_path):
    path = tmp_path / "run.fkj"
    one, two = forge.together(path, 2)
    assert one == two
    lm = Unseeded()
    assert unseeded(path, lm) == one
    assert not lm.requests


def test_journals_are_merged(tmp_path):
    parts = [tmp_path / f"{seed}.fkj" for seed in (0, 1)]
    for seed, part in enumerate(parts):
        fk.infer(story(WholeSteps()), fk.SMC(4), seed=seed, journal=part)
    journal = fk.Journal(tmp_path / "all.fkj")
    journal.merge(*parts)
    journal.merge(parts[0])
    assert len(journal) == 2 * len(fk.Journal(parts[0])) - _shared(parts)
    lm = WholeSteps()
    for seed in (0, 1):
        alike(
            fk.infer(story(WholeSteps()), fk.SMC(4), seed=seed),
            fk.infer(story(lm), fk.SMC(4), seed=seed, journal=journal),
        )
    assert not lm.requests
    journal.close()
    with pytest.raises(JournalError, match="only read"):
        fk.Journal(parts[0], "replay").merge(parts[1])


def _shared(parts):
    keys = []
    for part in parts:
        with closing(sqlite3.connect(part)) as raw:
            keys.append({key for (key,) in raw.execute("select key from answers")})
    return len(keys[0] & keys[1])


# Interrupts


def test_ctrl_c_leaves_a_journal_to_go_on_from(tmp_path):
    path, lm = tmp_path / "run.fkj", WholeSteps()
    alone = fk.infer(story(WholeSteps()), fk.SMC(4), seed=0)
    draw = lm.draw

    def stopped(runs, keys, tally):
        if len(lm.requests) == 2:
            signal.raise_signal(signal.SIGINT)
        draw(runs, keys, tally)

    lm.draw = stopped
    cut = fk.infer(story(lm), fk.SMC(4), seed=0, journal=path)
    assert cut.stopped == "interrupted"
    lm = WholeSteps()
    alike(alone, fk.infer(story(lm), fk.SMC(4), seed=0, journal=path))
    assert len(lm.requests) == 1


# What is kept


class Handle:
    pass


class Secret(Handle):
    def __init__(self, key):
        self.key = key


async def ask(client, string):
    return len(string)


def as_object(string):
    return Handle()


@fk.program
async def tools(client):
    face = await fk.sample("face", fk.dist.DiscreteUniform(1, 6))
    size = await fk.call("ask", ask, client, "x" * face)
    thing = await fk.call("thing", as_object, "y" * face)
    await fk.factor("high", 0.1 * size)
    return face, type(thing).__name__


def test_what_has_no_plain_form_is_made_anew_and_said(tmp_path):
    path = tmp_path / "run.fkj"
    with pytest.warns(JournalWarning) as told:
        first = fk.infer(tools(Secret("sk-12345")), fk.SMC(5), seed=0, journal=path)
    said = [str(one.message) for one in told]
    assert len(said) == 2
    assert "does not keep answers of ask, which are made anew in each run: a" in said[0]
    assert "Secret cannot be told" in said[0]
    assert "Handle is no number, string, array" in said[1]
    with pytest.warns(JournalWarning):
        again = fk.infer(tools(Secret("sk-12345")), fk.SMC(5), seed=0, journal=fk.Journal(path, "replay"))
    assert again.values == first.values
    assert b"sk-12345" not in path.read_bytes()


def fails_once(calls):
    async def tool(n):
        if not calls:
            calls.append(n)
            raise OSError("try again")
        return n + 0.5

    return tool


def test_failures_are_not_kept(tmp_path):
    @fk.program
    async def careful(tool):
        try:
            value = await fk.call("tool", tool, 1)
        except OSError:
            value = 0.0
        await fk.factor("value", value)
        return value

    path, calls = tmp_path / "run.fkj", []
    tool = fails_once(calls)
    assert 0.0 in fk.infer(careful(tool), fk.ImportanceSampling(3), seed=0, journal=path).values
    assert 0.0 not in fk.infer(careful(tool), fk.ImportanceSampling(3), seed=0, journal=path).values


def test_a_function_that_was_edited_is_asked_again(tmp_path):
    def made(scale, table):
        @fk.reward(kind="log_weight")
        def reward(x):
            return scale * x + table["offset"]

        return reward

    @fk.program
    async def number(reward):
        x = await fk.sample("x", fk.dist.Normal(0.0, 1.0))
        await fk.factor("r", reward(x))
        return x

    path = tmp_path / "run.fkj"
    evidence = {}
    for scale, offset in ((0.5, 0.0), (0.25, 0.0), (0.5, 1.0), (0.5, 0.0)):
        with fk.Journal(path) as journal:
            found = fk.infer(number(made(scale, {"offset": offset})), fk.SMC(4), seed=0, journal=journal)
        known = (scale, offset) in evidence
        assert journal.saved.reward_calls == (4 if known else 0)
        assert evidence.setdefault((scale, offset), found.log_evidence) == found.log_evidence
    assert len(set(evidence.values())) == 3


@pytest.mark.parametrize(
    "value",
    [
        None, True, 3, -(2**70), 0.1, float("inf"), "ü", b"\x00raw", [1, [2.5]], (1, ("a",)), {"a": 1, 2: (3,)}, {1, 2},
        frozenset({"x"}), np.float32(1.5), np.arange(6.0).reshape(2, 3), np.array(["a", "bc"]), np.zeros((0, 2)),
    ],
)  # fmt: skip
def test_answers_come_back_as_they_were(value):
    back = unpack(pack(value))
    assert type(back) is type(value)
    assert np.array_equal(back, value) if isinstance(value, np.ndarray) else back == value
    assert getattr(back, "dtype", None) == getattr(value, "dtype", None)


def test_answers_that_would_not_come_back_are_not_packed():
    for value in (Handle(), fk.dist.Normal(0.0, 1.0), np.array([Handle()]), [lambda: 0]):
        with pytest.raises(TypeError, match="is no number, string, array"):
            pack(value)


# Images, and models of their own


@pytest.mark.parametrize("as_program", [False, True])
def test_diffusion_is_played_without_the_network(as_program, tmp_path):
    from feynkac.diffusion import Diffusion, Network, Schedule
    from feynkac.diffusion.kernels import begin, denoise

    calls = []

    class Shrinks(Network):
        journal_key = "shrinks"

        def __call__(self, x, time, condition):
            calls.append(len(x))
            return 0.3 * x

    @fk.program
    async def image(model):
        particle = await fk.sample("noise", begin(model))
        while not particle.done:
            particle = await fk.sample("step", denoise(particle))
            await fk.factor("bright", float(particle.estimate.mean()))
        return particle.image

    def run(seed=0, **options):
        model = Diffusion(Shrinks(None, "sample"), Schedule.vp(4), (2, 2))
        return fk.infer(image(model) if as_program else model, fk.SMC(3), seed=seed, **options)

    alone, path = run(), tmp_path / "run.fkj"
    asked = len(calls)
    kept = run(journal=path)
    assert len(calls) == 2 * asked
    with fk.Journal(path, "replay") as journal:
        again = run(journal=journal)
    assert len(calls) == 2 * asked
    for other in (kept, again):
        assert np.array_equal(np.stack(alone.values), np.stack(other.values))
        assert other.log_evidence == alone.log_evidence
        assert (other.cost.nfe, other.cost.model_calls) == (alone.cost.nfe, alone.cost.model_calls)
    assert journal.saved.nfe == alone.cost.nfe
    with pytest.raises(NotRecorded, match="does not know this prediction"):
        run(seed=1, journal=fk.Journal(path, "replay"))


def test_a_chat_without_seeds_is_played_from_its_journal(tmp_path):
    from feynkac.models.testing import FakeServer

    @fk.program
    async def answer(lm, judge):
        text = await fk.sample("answer", lm.complete(lm.prompt("Who are you?"), max_tokens=6))
        await fk.factor("polite", judge(str(text)).log())
        return text

    def run(url, **options):
        lm = fk.models.ChatLM(url, "fake", api_key="sk-98765")
        judge = fk.models.Judge(lm, "Polite? {text}", yes=["a"], no=["b"])
        return fk.infer(answer(lm, judge), fk.BestOfN(3), seed=0, **options)

    path = tmp_path / "run.fkj"
    law, _ = few_tokens()
    with FakeServer(law, api_key="sk-98765") as server:
        first = run(server.url, journal=path)
    again = run(server.url, journal=fk.Journal(path, "replay"))  # the server is gone
    assert again.values == first.values
    assert np.array_equal(again.chains[0].log_weights, first.chains[0].log_weights)
    assert {**vars(again.cost), "seconds": 0} == {**vars(first.cost), "seconds": 0}
    assert b"98765" not in path.read_bytes()


def test_draws_that_are_not_kept_are_told_of(tmp_path):
    @fk.program
    async def pair(lm):
        task = lm.prompt("Who ran to the sea?")
        return await fk.sample("ticks", lm.together((task.append(" A:"), task.append(" B:")), 2))

    from feynkac.models.testing import tiny_lm

    alone, path = fk.infer(pair(tiny_lm()), fk.SMC(2), seed=0), tmp_path / "run.fkj"
    for _ in range(2):
        with pytest.warns(JournalWarning, match="does not keep draws of a Ticks, which are made anew in each run"):
            assert fk.infer(pair(tiny_lm()), fk.SMC(2), seed=0, journal=path).values == alone.values


def test_a_journal_stands_for_a_server_that_is_gone(tmp_path):
    from feynkac.models.testing import tiny_tokenizer

    path, (law, _) = tmp_path / "run.fkj", few_tokens()
    first = fk.infer(story(served(law)[0]), fk.SuffixMH(4), seed=0, journal=path)
    with fk.Journal(path, "replay") as journal:
        lm = fk.models.RecordedLM(journal, tiny_tokenizer())
        alike(first, fk.infer(story(lm), fk.SuffixMH(4), seed=0, journal=journal))
        with pytest.raises(NotRecorded, match="particle 0, sample 'words'"):
            fk.infer(story(lm), fk.SMC(4), seed=1, journal=journal)
        for law, known in ((fk.models.Sampling(top_p=1.0), True), (fk.models.Sampling(temperature=0.7), False)):
            raw, _ = served(few_tokens()[0], mode="raw_logprobs")
            lm._facts = raw.facts
            assert lm.scores((law, None)) is raw.scores((law, None)) is known
    with pytest.raises(NotRecorded, match="known by its journal alone"):
        fk.infer(story(lm), fk.SMC(4), seed=0)
    with pytest.raises(LookupError, match="no such model"):
        fk.models.RecordedLM(journal, tiny_tokenizer(), "other")
    with pytest.raises(fk.errors.TokenizerMismatch, match="not that of"):
        fk.models.RecordedLM(journal, tiny_tokenizer(280))
    journal.close()


def test_workers_take_no_journal(tmp_path):
    with pytest.raises(ValueError, match="a journal is of one process"):
        fk.infer([story(WholeSteps())], fk.SMC(4), seed=0, workers=fk.InProcess(), journal=tmp_path / "run.fkj")
    with fk.Journal(tmp_path / "run.fkj"), pytest.raises(ValueError, match="a journal is of one process"):
        fk.infer([story(WholeSteps())], fk.SMC(4), seed=0, workers=fk.InProcess())
