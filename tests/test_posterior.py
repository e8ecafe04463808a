"""What a posterior says: its probabilities, values, history, pictures and files, and that it holds nothing alive."""

from __future__ import annotations

import gc
import json
import math
import zipfile
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest

import feynkac as fk
from feynkac.ppl.running.fibers import Fiber, Run
from feynkac.ppl.running.particle import Particle, Particles
from laws import z_score


@fk.program
async def walk(steps=4):
    """A path whose length and steps are all to be found in its trace."""
    x, path = 0.0, []
    for t in range(steps):
        x = await fk.sample("x", fk.dist.Normal(x, 1.0))
        path.append(x)
        fk.deterministic("output", ("unfinished", t))
        await fk.twist("guide", 0.3 * x)
        await fk.factor("G", -((x - 1.0) ** 2))
        if await fk.sample("stop", fk.dist.Bernoulli(0.15)):
            break
    return tuple(path)


@fk.program
async def returns(table, law=None):
    """One of the values of a table, weighted by a law."""
    i = await fk.sample("i", fk.dist.Categorical([1 / len(table)] * len(table)))
    await fk.factor("G", 0.0 if law is None else math.log(law[i]))
    return table[i]


@pytest.fixture
def posterior():
    return fk.infer(walk(), fk.SMC(40, ess_threshold=0.8, chains=2), seed=3)


# -- weights and values -----------------------------------------------------------------------------------------


def test_probabilities_are_the_normalised_weights_of_all_chains(posterior):
    assert len(posterior) == len(posterior.values) == len(posterior.probabilities) == 80
    assert posterior.probabilities.sum() == pytest.approx(1.0)
    w = np.exp(posterior.log_weights)
    assert posterior.probabilities == pytest.approx(w / w.sum())
    assert posterior.ess == pytest.approx(w.sum() ** 2 / (w**2).sum())
    assert posterior.log_evidence == pytest.approx(math.log(w.mean()))
    assert posterior.complete.all()
    evidences = [np.exp(chain.log_weights).mean() for chain in posterior.chains]
    assert posterior.log_evidence == pytest.approx(math.log(np.mean(evidences)))
    assert posterior.log_evidence_se == pytest.approx(np.std(evidences, ddof=1) / math.sqrt(2) / np.mean(evidences))


def test_best_is_the_complete_value_of_largest_weight_or_reward(posterior):
    assert posterior.best("weight") == posterior.values[int(np.argmax(posterior.log_weights))]
    assert posterior.best() == posterior.best("reward") == posterior.values[int(np.argmax(posterior.log_potential))]
    assert posterior.best() != posterior.best("weight")  # after resampling it judges the last steps alone
    once = fk.infer(walk(), fk.ImportanceSampling(30), seed=0)
    assert once.best() == once.best("weight") == once.values[int(np.argmax(once.log_weights))]
    partial = fk.infer(walk(), fk.SMC(30), seed=0, callbacks=[lambda step: step.depth == 4])
    assert 0 < partial.complete.sum() < 30
    assert partial.values.index(partial.best()) in np.flatnonzero(partial.complete)
    nothing = fk.infer(walk(), fk.SMC(30), seed=0, callbacks=[lambda step: True])
    assert not nothing.complete.any()
    assert nothing.best() == ("unfinished", 0)


def test_best_by_reward_undoes_what_a_guide_has_done_to_the_weights():
    @fk.program
    async def guided():
        x = await fk.sample("x", fk.dist.Categorical([0.9, 0.1]))
        await fk.twist("guide", 4.0 * x)
        await fk.sample("y", fk.dist.Bernoulli(0.5))
        await fk.factor("G", 1.0 * x)
        return x

    posterior = fk.infer(guided(), fk.SMC(100, ess_threshold=1.0), seed=0)
    assert (posterior.best("weight"), posterior.best("reward"), posterior.best()) == (0, 1, 1)
    partial = fk.infer(walk(), fk.SMC(30), seed=0, callbacks=[lambda step: step.depth == 4])
    rewards = np.where(partial.complete, partial.log_potential, -np.inf)
    assert partial.best("reward") == partial.values[int(rewards.argmax())]
    with pytest.raises(ValueError, match='by must be "weight" or "reward", not \'score\''):
        posterior.best("score")


def test_samples_follow_the_weights():
    posterior = fk.infer(returns([10, 20, 30], (0.7, 0.2, 0.1)), fk.ImportanceSampling(30), seed=0)
    mass = posterior.vote()
    drawn = posterior.sample(20_000, seed=1)
    for value, p in mass.items():
        assert abs(z_score([v == value for v in drawn], p)) < 4.26
    assert abs(z_score([v == 10 for v in drawn], 1 / 3)) > 4.26
    assert drawn[:50] == posterior.sample(50, seed=1)
    assert drawn[:50] != posterior.sample(50, seed=2)[:50]
    assert posterior.sample(0, seed=0) == []


def test_samples_never_have_weight_zero():
    posterior = fk.infer(returns([1, 2], (1.0, 1e-300)), fk.SMC(50), seed=0)
    assert set(posterior.sample(1000, seed=0)) == {1}


def test_expectations_of_numbers_and_arrays(posterior):
    p, values = posterior.probabilities, posterior.values
    assert posterior.expect(lambda path: path[0]) == pytest.approx(sum(w * v[0] for w, v in zip(p, values)))
    assert isinstance(posterior.expect(lambda path: path[0]), float)
    assert isinstance(posterior.expect(lambda path: path[0] > 0), float)
    matrix = posterior.expect(lambda path: [[path[0], 1.0], [len(path), path[0] ** 2]])
    assert matrix.shape == (2, 2)
    assert matrix[0, 1] == pytest.approx(1.0)
    assert matrix[1, 0] == pytest.approx(sum(w * len(v) for w, v in zip(p, values)))
    partial = fk.infer(walk(), fk.SMC(30), seed=0, callbacks=[lambda step: step.depth == 4])
    w = np.where(partial.complete, partial.probabilities, 0)
    inner = [v[0] if c else math.nan for v, c in zip(partial.values, partial.complete)]
    assert partial.expect(lambda path: path[0]) == pytest.approx(np.nansum(w * inner) / w.sum())
    with pytest.raises(ValueError, match="no particle ran to its end"):
        fk.infer(walk(), fk.SMC(3), seed=0, callbacks=[lambda step: True]).expect(len)


def test_votes_add_up_the_weights_of_each_key(posterior):
    votes = posterior.vote(len)
    assert sum(votes.values()) == pytest.approx(1.0)
    assert list(votes.values()) == sorted(votes.values(), reverse=True)
    for length, share in votes.items():
        mine = [w for w, path in zip(posterior.probabilities, posterior.values) if len(path) == length]
        assert share == pytest.approx(sum(mine))
    # A weighted majority is neither the heaviest particle nor the most frequent value.
    table = ["A", "B", "B", "C", "C", "C"]
    scored = fk.infer(returns(table, (0.9, 0.6, 0.5, 0.4, 0.35, 0.05)), fk.ImportanceSampling(3000), seed=0)
    assert (next(iter(scored.vote())), scored.best()) == ("B", "A")


def test_without_any_weight_there_are_no_probabilities_but_a_summary():
    @fk.program
    async def doomed():
        await fk.sample("x", fk.dist.Bernoulli(0.5))
        await fk.factor("G", -math.inf)

    posterior = fk.infer(doomed(), fk.SMC(3, all_dead="zero", chains=2), seed=0)
    assert posterior.log_evidence == -math.inf
    assert posterior.ess == 0.0
    assert math.isnan(posterior.log_evidence_se)
    for ask in (lambda: posterior.probabilities, posterior.vote, lambda: posterior.sample(1, seed=0)):
        with pytest.raises(ValueError, match="every particle has weight zero"):
            ask()
    assert "log evidence -inf" in posterior.summary()
    assert "<table></table>" in posterior._repr_html_()


# -- history ----------------------------------------------------------------------------------------------------


def test_traces_follow_the_ancestors(posterior):
    assert any(step.resampled for step in posterior.steps)
    for i, value in enumerate(posterior.values):
        trace = posterior.trace(i)
        path = [trace["x" if t == 0 else f"x[{t}]"].value for t in range(len(value))]
        assert tuple(path) == value
        assert f"x[{len(value)}]" not in trace
        assert list(trace)[:3] == ["x", "output", "guide"]
        assert trace["G"].value == pytest.approx(-((value[0] - 1) ** 2))
    firsts = posterior.site("x")
    assert firsts == [value[0] for value in posterior.values]
    assert posterior.site("x[3]") == [v[3] if len(v) > 3 else None for v in posterior.values]
    assert posterior.site("nowhere") == [None] * 80


def test_genealogies_lead_back_through_the_ancestors_of_each_step(posterior):
    for particle in (0, 39, 40, 79):
        chain = posterior.chains[particle // 40]
        line = posterior.genealogy(particle)
        assert len(line) == len(chain.steps)
        assert line[-1] == particle % 40
        for t in range(len(line) - 1, 0, -1):
            assert line[t - 1] == chain.steps[t].ancestors[line[t]]
    for bad in (80, -1):
        with pytest.raises(IndexError, match=f"particle {bad} of 80"):
            posterior.genealogy(bad)


def test_the_history_adds_up(posterior):
    for chain in posterior.chains:
        assert [step.depth for step in chain.steps] == list(range(len(chain.steps)))
        assert (chain.steps[-1].log_weights == chain.log_weights).all()
        for before, step in zip(chain.steps, chain.steps[1:], strict=False):
            assert 1.0 <= step.ess <= 40.0 + 1e-9
            assert 0.0 <= step.entropy <= math.log(40) + 1e-9
            assert step.log_evidence == pytest.approx(math.log(np.exp(step.log_weights).mean()))
            assert step.resampled == (before.ess <= 0.8 * 40)
            if not step.resampled:
                assert (step.ancestors == np.arange(40)).all()
            assert (step.log_twist[step.done] == 0).all()


# -- pictures ---------------------------------------------------------------------------------------------------


def test_summaries_name_engine_model_evidence_cost_and_values():
    posterior = fk.infer(returns(["yes", "no\nand no " * 30], (0.9, 0.1)), fk.SMC(100, chains=3), seed=0)
    text = posterior.summary(top=2)
    first, second, cost, chosen, best, other = text.splitlines()
    assert first.startswith("SMC(particles=100")
    assert "on returns(" in first
    assert f"log evidence {posterior.log_evidence:.4g} ± " in second
    assert "(unbiased); ESS" in second
    assert second.endswith("of 300; 300 complete")
    assert cost.startswith("cost: ")
    assert chosen == "best by reward, log G −0.1054: yes"
    assert best.endswith("yes")
    assert other.endswith("…")
    assert len(other) < 110
    assert repr(posterior) == posterior.summary()
    stopped = fk.infer(walk(), fk.SMC(3), seed=0, callbacks=[lambda step: True])
    assert "0 complete; stopped: callback" in stopped.summary()


def test_html_escapes_values_and_shows_the_history():
    evil = "<script>alert('x')</script> & more"
    posterior = fk.infer(returns([evil, "tame"]), fk.SMC(10), seed=0)
    html = posterior._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;alert(" in html
    assert "log evidence " in html
    assert "(one step)" in html
    longer = fk.infer(walk(), fk.SMC(40, ess_threshold=1.0), seed=0)._repr_html_()
    assert "<svg" in longer
    assert longer.count("<circle") == sum(
        s.resampled for s in fk.infer(walk(), fk.SMC(40, ess_threshold=1.0), seed=0).steps
    )
    assert longer.count("<tr>") == 8
    stopped = fk.infer(walk(), fk.SMC(3), seed=0, callbacks=[lambda step: True])
    assert "<b>stopped: callback</b>" in stopped._repr_html_()
    nasty = fk.infer(returns(["a"]), fk.SMC(2), seed=0)
    assert "<img" not in fk.Posterior._repr_html_(
        fk.Posterior(nasty.values, nasty.chains, nasty.cost, "unbiased", "<img>", "<img>", 0)
    )


# -- files ------------------------------------------------------------------------------------------------------

VALUES = [
    "text with ünïcode, \"quotes\", \ud83d \n and\0 more",
    {"nested": [1, (2.5, None, [True, {"deep": ()}])], 3: {"int key": -0.0}, (1, "tuple key"): 10**40},
    [math.nan, math.inf, -math.inf, 1e-300],
    np.array([[1.0, math.nan], [math.inf, -0.0]]),
    (np.arange(3, dtype=np.int8), np.zeros((0, 2), np.float32), np.array(["a", "bc"]), np.array(5.0)),
    {1, 2, "three"},
    frozenset({(1, 2)}),
    np.float32(0.5),
    np.int64(-3),
    np.array([True, False]),
    np.array([1 + 2j]),
    "",
    None,
    {},
    {"~tuple": [1], "~array": "array0"},
    {"~float": "nan"},
    fk.Site("x", 2, "sample", [1, 2], -0.5),
]  # fmt: skip


def same(a, b):
    """Whether a loaded value is the saved one: the same types and numbers, NaN included."""
    if isinstance(a, np.generic):
        a = a.item()
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, float):
        return isinstance(b, float) and repr(a) == repr(b)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize(
    "value", VALUES, ids=lambda v: f"{type(v).__name__} {str(v)[:15]!r}".encode("ascii", "replace").decode()
)
def test_values_of_many_kinds_survive_a_file(value, tmp_path):
    box = SimpleNamespace(value=value)

    @fk.program
    async def gives():
        await fk.call("ask", lambda: box.value)
        return box.value

    first = fk.infer(gives(), fk.SMC(2, chains=2), seed=np.int64(1))
    first.save(tmp_path / "p.fk")
    loaded = fk.Posterior.load(tmp_path / "p.fk")
    assert all(same(value, got) for got in loaded.values)
    assert same(first.trace(0)["ask"].value, loaded.trace(0)["ask"].value)


def test_a_whole_posterior_survives_a_file(posterior, tmp_path):
    path = tmp_path / "p.fk"
    posterior.save(path)
    loaded = fk.Posterior.load(str(path))
    assert loaded.values == posterior.values
    assert (loaded.log_weights == posterior.log_weights).all()
    assert (loaded.probabilities == posterior.probabilities).all()
    assert loaded.log_evidence == posterior.log_evidence
    assert loaded.summary() == posterior.summary()
    assert loaded._repr_html_() == posterior._repr_html_()
    assert (loaded.cost, loaded.seed, loaded.stopped) == (posterior.cost, posterior.seed, posterior.stopped)
    for i in (0, 79):
        assert loaded.trace(i) == posterior.trace(i)
        assert (loaded.genealogy(i) == posterior.genealogy(i)).all()
    for a, b in zip(posterior.chains[1].steps, loaded.chains[1].steps, strict=True):
        for name in ("depth", "ess", "entropy", "log_evidence", "resampled"):
            assert getattr(a, name) == getattr(b, name)
        for name in ("ancestors", "log_weights", "log_potential", "log_twist", "done"):
            assert (getattr(a, name) == getattr(b, name)).all()
    assert list(tmp_path.iterdir()) == [path]  # nothing is left beside it


def test_dead_and_stopped_runs_survive_a_file(tmp_path):
    @fk.program
    async def doomed():
        await fk.factor("G", -math.inf)

    for posterior in (
        fk.infer(doomed(), fk.SMC(2, all_dead="zero"), seed=0),
        fk.infer(walk(), fk.SMC(3), seed=-(2**70), callbacks=[lambda step: True]),
        fk.infer(walk(), fk.BestOfN(3), seed=0),
    ):
        posterior.save(tmp_path / "p.fk")
        loaded = fk.Posterior.load(tmp_path / "p.fk")
        assert loaded.summary() == posterior.summary()
        assert loaded.values == posterior.values
        assert loaded.log_evidence == posterior.log_evidence


@pytest.mark.parametrize(
    "value", [object(), b"bytes", 1j, lambda: 1, np.array([None, 1], object), [{"deep": (object(),)}]]
)
def test_what_cannot_be_saved_is_named_with_its_particle(value, tmp_path):
    @fk.program
    async def gives():
        x = await fk.sample("x", fk.dist.Bernoulli(0.5))
        return value if x else x

    posterior = fk.infer(gives(), fk.SMC(20), seed=0)
    first = next(i for i, v in enumerate(posterior.values) if not isinstance(v, int))
    path = tmp_path / "p.fk"
    path.write_text("what was there before")
    with pytest.raises(TypeError, match=rf"cannot save the value of particle {first}: a .* is not a text, number"):
        posterior.save(path)
    assert path.read_text() == "what was there before"
    assert list(tmp_path.iterdir()) == [path]


def test_files_that_are_no_posteriors_are_refused(posterior, tmp_path):
    path = tmp_path / "p.fk"
    with pytest.raises(FileNotFoundError):
        fk.Posterior.load(path)
    for content in (b"", b"no zip at all", b"PK\x03\x04 and then nothing"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"p\.fk is not a saved posterior, or it is corrupt"):
            fk.Posterior.load(path)
    for name, content in (
        ("other.txt", "hello"),
        ("posterior.json", "not json"),
        ("posterior.json", "[1, 2]"),
        ("posterior.json", '{"kind": "something else"}'),
        ("posterior.json", '{"kind": "feynkac posterior", "format": 99}'),
        ("posterior.json", '{"kind": "feynkac posterior", "format": 1}'),
    ):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, content)
        with pytest.raises(ValueError, match=r"p\.fk"):
            fk.Posterior.load(path)


def test_truncated_and_damaged_files_are_refused_and_never_half_read(posterior, tmp_path):
    good, bad = tmp_path / "good.fk", tmp_path / "bad.fk"
    posterior.save(good)
    whole = good.read_bytes()
    for keep in (0.1, 0.5, 0.9, 0.999):
        bad.write_bytes(whole[: int(keep * len(whole))])
        with pytest.raises(ValueError, match=r"bad\.fk"):
            fk.Posterior.load(bad)
    rng, refused = np.random.default_rng(0), 0
    for place in rng.integers(0, len(whole), 60):
        damaged = bytearray(whole)
        damaged[place : place + 8] = bytes(b ^ 0x5A for b in damaged[place : place + 8])
        bad.write_bytes(bytes(damaged))
        try:
            loaded = fk.Posterior.load(bad)
        except ValueError:
            refused += 1
        else:  # the damage lies in what nobody reads, such as a time stamp
            assert loaded.values == posterior.values
            assert (loaded.log_weights == posterior.log_weights).all()
    assert refused > 30


def test_files_hold_no_pickle(posterior, tmp_path):
    posterior.save(tmp_path / "p.fk")
    with zipfile.ZipFile(tmp_path / "p.fk") as archive:
        assert json.loads(archive.read("posterior.json"))["kind"] == "feynkac posterior"
        assert all(name.endswith((".json", ".npy")) for name in archive.namelist())


def test_texts_survive_a_file_as_texts(tmp_path):
    pytest.importorskip("torch")
    from feynkac.models.testing import tiny_lm

    lm = tiny_lm()

    @fk.program
    async def says():
        text = lm.prompt("Once")
        for _ in range(3):
            text = await fk.sample("token", lm.next_token(text))
            await fk.factor("G", 0.1 * len(str(text)))
        return {"text": text, "all": [text, (text, 1)]}

    posterior = fk.infer(says(), fk.SMC(4, ess_threshold=1.0), seed=0)
    posterior.save(tmp_path / "p.fk")
    loaded = fk.Posterior.load(tmp_path / "p.fk")
    for a, b in zip(posterior.values, loaded.values, strict=True):
        assert type(a["text"]) is type(b["text"])
        assert str(a["text"]) == str(b["text"])
        assert a == b
    assert [str(v) for v in loaded.site("token[2]")] == [str(v) for v in posterior.site("token[2]")]
    assert loaded.summary() == posterior.summary()
    assert all(v["text"].detach() is v["text"] or v["text"].detach() == v["text"] for v in posterior.values)


# -- nothing alive ----------------------------------------------------------------------------------------------


def alive(*kinds):
    gc.collect()
    return sum(1 for item in gc.get_objects() if type(item) in kinds)


def test_a_posterior_holds_no_live_state(tmp_path):
    before = alive(Particles, Particle, Run, Fiber)
    kept = [
        fk.infer(walk(), fk.SMC(20, ess_threshold=1.0), seed=0),
        fk.infer(walk(), fk.BestOfN(20), seed=0),
        fk.infer(walk(), fk.SMC(20), seed=0, callbacks=[lambda step: step.depth == 2]),
        *fk.infer([walk(), walk(2)], fk.SMC(5, chains=2), seed=0),
    ]
    assert alive(Particles, Particle, Run, Fiber) == before
    assert len(kept) == 5


@pytest.mark.slow
def test_a_session_lets_go_of_earlier_generations():
    session = fk.steps(walk(12), fk.SMC(10, ess_threshold=1.0), seed=0)
    before = alive(Particles, Particle, Run, Fiber)
    counts = []
    for step in session:
        counts.append(alive(Run))
        if step.depth == 6:
            break
    assert max(counts) <= 60  # not one for each particle and step
    del session, step
    assert alive(Particles, Particle, Run, Fiber) <= before


class Pair(NamedTuple):
    text: object
    number: int


def test_texts_in_a_posterior_keep_no_node_of_the_models_cache():
    pytest.importorskip("torch")
    from feynkac.models.local.memory.histories import History
    from feynkac.models.testing import tiny_lm

    lm = tiny_lm()

    @fk.program
    async def says():
        text = lm.prompt("Once")
        for _ in range(2):
            text = await fk.sample("token", lm.next_token(text))
            await fk.factor("G", 0.0)
        return [text, {"again": (text, {text}, Pair(text, 1))}]

    before = alive(History)
    posterior = fk.infer(says(), fk.SMC(6, ess_threshold=1.0), seed=0)
    leaves = alive(History) - before
    assert leaves <= 2, f"{leaves} nodes are held"  # the prompt and the root may stay
    assert posterior.values[0][0] == posterior.values[0][1]["again"][0]
