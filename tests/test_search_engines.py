"""What all searches over partial runs share: keys, costs, cuts, records, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scripted import Scripted, prm, tree_of

import feynkac as fk
from chains import chain
from feynkac.ppl.score import evaluate
from laws import check_all_dead, t1, t2

ENGINES = [
    fk.BeamSearch(12, width=3, score="product"),
    fk.BeamSearch(8, width=4, lookahead=1, distinct=True),
    fk.DVTS(12, width=3),
    fk.DVTS(8, width=2, lookahead=2, score="min"),
    fk.Rebase(12),
    fk.AStar(40, width=3, results=2),
    fk.AStar(40, width=4, batch=3, cost="falls", chains=2),
    fk.MCTS(6, width=3),
    fk.MCTS(6, width=3, value="rollout", rule="puct"),
    fk.MCTS(30, width=2, moves=False, batch=4),
]

# -- what all of them share -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_every_key_is_used_once_and_cost_is_what_the_model_saw(engine):
    model = chain()
    posterior = fk.infer(model, engine, seed=3)
    assert len(model.keys) == len(set(model.keys)) == posterior.cost.nfe
    assert len(model.calls) == posterior.cost.model_calls
    again = fk.infer(chain(), engine, seed=3)
    assert again.values == posterior.values
    assert (again.log_weights == posterior.log_weights).all()
    assert fk.infer(chain(), engine, seed=4).chains[0].tree.choices != tree_of(posterior).choices


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_unequal_lengths_and_many_problems_at_once(engine):
    alone = [fk.infer(model, engine, seed=5) for model in (t2(), t1("product of r"))]
    assert alone[0].best().endswith("$")
    assert alone[0].complete.any()
    together = fk.infer([t2(), t1("product of r")], engine, seed=5)
    assert together[0].values == alone[0].values
    assert (together[0].log_weights == alone[0].log_weights).all()
    tree = tree_of(alone[0])
    assert posterior_weights_select_the_best(alone[0], engine)
    assert (tree.parent[1:] < np.arange(1, len(tree))).all()
    assert alone[0].trace(0)


def posterior_weights_select_the_best(posterior, engine):
    return posterior.complete[np.argmax(posterior.log_weights)] and set(posterior.log_weights) <= {0.0, -np.inf}


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_a_run_can_be_cut_at_any_wave(engine):
    whole = chain()
    fk.infer(whole, engine, seed=6)
    for calls in range(1, len(whole.calls) + 1):
        posterior = fk.infer(chain(), engine, seed=6, budget=fk.Budget(model_calls=calls))
        assert posterior.best() is not None
        assert len(posterior.values) == len(posterior.log_weights) >= 1
        assert posterior.probabilities.sum() == pytest.approx(1.0)
        # The record is a tree whose particles are its leaves, as they were at the last report.
        tree = tree_of(posterior)
        assert (tree.done[tree.particles] == posterior.chains[0].complete).all()
        assert all(not len(tree.children(x)) for x in tree.particles)
        for particle in range(len(posterior.chains[0].log_weights)):
            line = [step.choices[i] for step, i in zip(posterior.steps, posterior.genealogy(particle))]
            made = tuple(c[0] for c in line if c)
            assert made == tuple(v for v in posterior.values[particle] if v >= 0)


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_it_is_drawn_saved_and_told(engine, tmp_path):
    posterior = fk.infer(t2(), engine, seed=7)
    figure = fk.plots.tree(posterior)
    assert figure.axes[0].get_title(loc="left") == "Search tree"
    tree = tree_of(posterior)
    assert set(tree.particles) <= set(tree.leaves)
    if len(tree.particles) < len(tree.leaves):  # what was given up is drawn, too, and is fainter
        assert f"{len(tree.particles)} kept" in figure.axes[0].get_title(loc="right")
        faint = sum(line.get_alpha() == 0.25 for line in figure.axes[0].lines)
        assert 0 < faint < len(figure.axes[0].lines)
    import matplotlib.pyplot as plt

    plt.close(figure)
    posterior.save(tmp_path / "p.fk")
    loaded = fk.Posterior.load(tmp_path / "p.fk")
    assert loaded.values == posterior.values
    assert (tree_of(loaded).visits == tree_of(posterior).visits).all()
    assert "heuristic" in posterior.summary()
    assert "<" in posterior._repr_html_()


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_all_dead(engine):
    check_all_dead(engine)


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_weights_that_are_no_numbers_are_refused(engine):
    for bad in (math.nan, math.inf):
        with pytest.raises(fk.errors.InvalidWeight, match="particle 0 of its wave has weight"):
            fk.infer(Scripted(lambda path, bad=bad: bad, lambda path: False), engine, seed=0)


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_states_are_let_go_of(engine):
    """At the end a session holds the particles of its last report and no more."""
    import gc
    import weakref

    live = weakref.WeakSet()

    class Counted(Scripted):
        def _made(self, paths, keys):
            advance = super()._made(paths, keys)
            live.add(advance.state)
            return advance

        def select(self, state, index):
            rows = super().select(state, index)
            live.add(rows)
            return rows

    model = Counted(lambda path: math.log(0.05 + 0.9 * prm(path)), lambda path: len(path) >= 5)
    session = fk.steps(model, engine, seed=0)
    list(session)
    gc.collect()
    shown = sum(len(chain.log_weights) for chain in session.posterior.chains)
    assert len(live) <= shown


# -- on a language model ----------------------------------------------------------------------------------------------


@fk.program
async def two_lines(lm, topic):
    text = lm.prompt(f"Once upon a {topic} there was")
    for _ in range(2):
        text = await fk.sample("step", lm.tokens(text, 3))
        await fk.factor("prm", math.log(0.05 + 0.9 / (1.0 + str(text).count("e"))))
        if "r" in str(text):  # so that depths are mixed
            await fk.factor("more", -0.1)
    return text


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
def test_searches_of_a_language_model_keep_its_cache(engine):
    """Texts found in batches of mixed depths have the probability that the model gives them, and nothing is redone."""
    pytest.importorskip("torch")
    from feynkac.models.testing import tiny_lm

    lm = tiny_lm()
    posterior = fk.infer(two_lines(lm, "river"), engine, seed=8)
    prompt = len(lm.prompt("Once upon a river there was").prompt_tokens)
    # Each token drawn is forwarded at most once, and the prompt once.
    assert posterior.cost.tokens_in <= prompt + posterior.cost.tokens_out
    found = [value for value, complete in zip(posterior.values, posterior.complete) if complete][:8]
    fresh = evaluate([tiny_lm().score(text) for text in found])
    assert [text.log_prob for text in found] == pytest.approx(fresh, abs=1e-3)
    if isinstance(engine, fk.AStar) and engine.batch > 1:
        assert posterior.cost.model_calls < posterior.cost.tokens_out / 2
