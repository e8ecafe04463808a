"""The table of a posterior: its numbers by site, their draws, and what a program returns of its sites."""

from __future__ import annotations

import io
import math
import sys

import numpy as np
import pytest
from rich.console import Console
from test_report import Balanced

import feynkac as fk
from feynkac.inference.results.trust.autocorrelation import chain_ess, rhat

NASTY = "<script>alert(1)</script>\x1b[31m"


@fk.program
async def weather(days=4):
    """An early draw that all later ones depend on, and sites of several kinds."""
    T = await fk.sample("T", fk.dist.Normal(15.0, 5.0))
    sky = await fk.sample("sky", fk.dist.Categorical([0.6, 0.4], values=["blue", NASTY]))
    for _ in range(days):
        x = await fk.sample("x", fk.dist.Normal(T, 2.0))
        fk.deterministic("pair", np.array([x, 2.0 * x]))
        await fk.factor("G", -0.02 * (x - 20.0) ** 2)
    if x > 18.0:
        await fk.sample("rain", fk.dist.Bernoulli(0.3))
    return {"T": T, "image": np.zeros((10, 10)), "sky": sky, "twice": 2.0 * T}


SMC = fk.infer(weather(), fk.SMC(400, ess_threshold=1.0, resampling="multinomial", chains=2), seed=0)
CHAIN = fk.infer(weather(), fk.SuffixMH(300, chains=2), seed=0)


def quantile(x, w, q):
    order = np.argsort(x)
    return x[order][np.searchsorted(np.cumsum(w[order]), q)]


def test_the_numbers_of_a_row_are_those_of_the_weighted_draws():
    table, w = SMC.table(), SMC.probabilities
    assert [row.name for row in table] == [
        "image", "twice", "T", "sky", "x", "x[1]", "x[2]", "x[3]", "pair.0", "pair.1", "pair[1].0", "pair[1].1",
        "pair[2].0", "pair[2].1", "pair[3].0", "pair[3].1", "rain",
    ]  # fmt: skip
    for name in ("T", "x", "x[2]"):
        x, row = SMC[name], table[name]
        assert row.mean == pytest.approx(w @ x)
        assert row.sd == pytest.approx(math.sqrt(w @ (x - w @ x) ** 2))
        for q, found in ((0.05, row.low), (0.5, row.median), (0.95, row.high)):
            assert found == quantile(x, w, q)
        assert row.present == pytest.approx(1.0)
    assert table["T"].mean == pytest.approx(SMC.expect(lambda v: v["T"]))
    assert table["twice"].mean == pytest.approx(2 * table["T"].mean)
    assert table["pair[3].1"].mean == pytest.approx(2 * table["x[3]"].mean)


def test_a_site_that_not_all_have_is_of_those_that_have_it():
    row, x, w = SMC.table()["rain"], SMC["rain"], SMC.probabilities
    there = ~np.isnan(x)
    assert row.present == pytest.approx(w[there].sum())
    assert 0.1 < row.present < 0.9
    assert row.mean == pytest.approx(w[there] @ x[there] / w[there].sum())


def test_what_is_no_number_has_its_most_probable_value():
    votes = SMC.vote(lambda v: v["sky"])
    row = SMC.table()["sky"]
    best = max(votes, key=votes.get)
    assert math.isnan(row.mean)
    assert row.top.startswith("'blue'" if best == "blue" else "'<script>")
    assert f"({votes[best]:.1%})" in row.top
    assert SMC.table()["image"].top == "image 10×10"


def test_early_sites_have_the_effective_sample_size_of_what_is_left_of_them():
    table = SMC.table()
    for name, step in (("T", 0), ("x", 0), ("x[1]", 1), ("x[3]", 3)):
        shares = {}
        for i, w in enumerate(SMC.probabilities):
            key = (i // 400, SMC.genealogy(i)[step])
            shares[key] = shares.get(key, 0.0) + w
        assert table[name].ess == pytest.approx(1.0 / sum(w * w for w in shares.values()))
    assert table["T"].ess < 0.7 * table["x[3]"].ess


def test_copies_of_runs_that_had_ended_are_one_draw():
    @fk.program
    async def uneven():
        x = await fk.sample("x", fk.dist.Normal(0.0, 1.0))
        await fk.factor("G", x)
        if x < 1.5:
            await fk.factor("H", 0.0)
        return -x

    posterior = fk.infer(uneven(), fk.SMC(200, ess_threshold=1.0), seed=0)
    distinct = {}
    for value, w in zip(posterior.values, posterior.probabilities):
        distinct[value] = distinct.get(value, 0.0) + w
    short = {value for value in distinct if value < -1.5}
    assert len(short) < sum(value < -1.5 for value in posterior.values)
    ended = posterior.table()["x"].ess  # all copies of a draw of the first step are one
    assert ended == pytest.approx(1.0 / sum(w * w for w in distinct.values()))
    # Values are told apart by runs: those that went on after they were copied are runs of their own.
    alone = [w for value, w in zip(posterior.values, posterior.probabilities) if value not in short]
    runs = [*alone, *(distinct[value] for value in short)]
    assert posterior.table()["value"].ess == pytest.approx(1.0 / sum(w * w for w in runs))
    assert posterior.table()["value"].ess > 1.05 * ended


def test_markov_chains_have_the_ess_and_rhat_of_chains():
    table = CHAIN.table()
    x = CHAIN["T"].reshape(2, -1)
    assert table["T"].ess == pytest.approx(chain_ess(x))
    assert table["T"].rhat == pytest.approx(rhat(x))
    assert "R-hat" in repr(table)
    assert "R-hat" not in repr(SMC.table())


def test_tables_are_shown_in_notebooks_and_escaped():
    for posterior in (SMC, CHAIN, fk.infer(weather(), fk.BestOfN(4), seed=1)):
        table = posterior.table()
        read = Balanced(table._repr_html_())
        assert read.tags.count("tr") == 1 + len(table)
        assert "script" not in read.tags
        assert all(c.isprintable() or c == "\n" for c in repr(table))
        assert repr(table).splitlines()[1].startswith("image")
        assert ("heuristic" in repr(table)) == (posterior.guarantee == "heuristic")
        console = Console(file=io.StringIO(), width=200)
        console.print(table)
        told = console.file.getvalue()
        assert all(row.name in told for row in table)
        assert "most probable" in told
    with pytest.raises(KeyError, match="there is no row 'nothing'"):
        SMC.table()["nothing"]


def test_the_draws_of_a_site_stand_apart_from_their_weights():
    assert SMC["T"].tolist() == SMC.site("T")
    assert SMC["x[2]"].tolist() == SMC.site("x[2]")
    assert set(SMC["sky"]) == {"blue", NASTY}
    assert np.isnan(SMC["rain"]).tolist() == [value is None for value in SMC.site("rain")]
    assert SMC["twice"].tolist() == [2 * v for v in SMC.site("T")]
    assert SMC["pair"].shape == (800, 2)
    with pytest.raises(KeyError, match=r"no particle has a site 'y'.*there are image, twice, T"):
        SMC["y"]
    with pytest.raises(TypeError, match="takes the name of a site, not 0"):
        SMC[0]
    with pytest.raises(TypeError, match="not iterable"):
        iter(SMC)


def test_texts_are_drawn_as_texts():
    pytest.importorskip("torch")
    from feynkac.models.testing import tiny_lm

    lm = tiny_lm()

    @fk.program
    async def says():
        text = await fk.sample("token", lm.next_token(lm.prompt("Once")))
        await fk.factor("G", 0.0)
        return text

    posterior = fk.infer(says(), fk.SMC(5), seed=0)
    assert posterior["token"].tolist() == list(posterior.values)
    assert [row.name for row in posterior.table()] == ["token"]


def test_dataframes_are_made_on_request(monkeypatch):
    pandas = pytest.importorskip("pandas")
    frame = SMC.to_dataframe()
    assert isinstance(frame, pandas.DataFrame)
    assert frame["x[1]"].tolist() == SMC.site("x[1]")
    assert frame["log_weight"].tolist() == SMC.log_weights.tolist()
    assert frame.groupby("chain").size().tolist() == [400, 400]
    assert SMC.table().to_dataframe().loc["T", "mean"] == SMC.table()["T"].mean
    monkeypatch.setitem(sys.modules, "pandas", None)
    for ask in (SMC.to_dataframe, SMC.table().to_dataframe):
        with pytest.raises(ImportError, match="pip install pandas"):
            ask()


def test_there_must_be_something_to_sum_up():
    cut = fk.infer(weather(), fk.SMC(4), seed=0, callbacks=[lambda step: True])
    with pytest.raises(ValueError, match="no particle ran to its end"):
        cut.table()


@pytest.mark.parametrize(
    ("give", "names"),
    [
        (lambda a, b: a, ["a", "b"]),
        (lambda a, b: (a, b), ["a", "b"]),
        (lambda a, b: (b, "text"), ["1", "a", "b"]),
        (lambda a, b: {"a": a, "sum": a + b}, ["sum", "a", "b"]),
        (lambda a, b: {"a": -a}, ["a", "a_", "b"]),
        (lambda a, b: a + b, ["value", "a", "b"]),
        (lambda a, b: None, ["a", "b"]),
    ],
)
def test_what_a_program_returns_of_its_sites_is_there_once(give, names):
    pytest.importorskip("arviz_base")

    @fk.program
    async def two():
        a = await fk.sample("a", fk.dist.Normal(0.0, 1.0))
        b = await fk.sample("b", fk.dist.Normal(a, 1.0))
        await fk.factor("G", b)
        return give(a, b)

    posterior = fk.infer(two(), fk.SMC(30), seed=0)
    assert [row.name for row in posterior.table()] == names
    tree = posterior.to_datatree()
    assert set(tree.particles.data_vars) == {*names, "log_weight", "log_potential", "complete"}
    if "value" not in names and give(1.0, 2.0) == 1.0:
        assert (tree.particles["a"].values[0] == np.array(posterior.values)).all()


def test_the_path_that_a_program_returns_is_that_of_its_site():
    pytest.importorskip("arviz_base")

    @fk.program
    async def walk():
        path = [0.0]
        for _ in range(3):
            path.append(await fk.sample("x", fk.dist.Normal(path[-1], 1.0)))
            await fk.factor("G", 0.1 * path[-1])
        return tuple(path[1:])

    posterior = fk.infer(walk(), fk.SMC(20), seed=0)
    assert list(posterior.to_datatree().posterior.data_vars) == ["x"]
    assert list(posterior.to_datatree(sites=False).posterior.data_vars) == ["value"]
