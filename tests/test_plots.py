"""Plots of a posterior: that they draw what the posterior says, render, and leave no trace behind."""

from __future__ import annotations

import math
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

import feynkac as fk
from feynkac.inference.base.chain import Chain
from feynkac.inference.base.step import Step
from feynkac.inference.drawing import views
from feynkac.inference.plots import lineages as layout

matplotlib = pytest.importorskip("matplotlib")

PLOTS = (fk.plots.ess, fk.plots.evidence, fk.plots.weights, fk.plots.rewards, fk.plots.genealogy, fk.plots.tokens)


@fk.program
async def spelled(steps=8, deadly=0.15):
    """Letters, of which x kills; a twist between the factors."""
    text = ""
    for _ in range(steps):
        letter = await fk.sample("letter", fk.dist.Categorical([0.5, 0.5 - deadly, deadly], values=list("abx")))
        text += letter
        await fk.factor("G", -math.inf if letter == "x" else 0.5 if letter == "a" else -0.3)
        await fk.twist("guide", 0.1 * text.count("a"))
        if await fk.sample("stop", fk.dist.Bernoulli(0.05)):
            break
    return text


@fk.program
async def once():
    """A single step."""
    x = await fk.sample("x", fk.dist.Normal(0.0, 1.0))
    await fk.factor("G", -x * x)
    return x


@pytest.fixture(scope="module")
def posterior():
    return fk.infer(spelled(), fk.SMC(16, chains=2, ess_threshold=0.9), seed=1)


def kinds():
    stop = [lambda step: step.depth == 5]
    yield "chains", fk.infer(spelled(), fk.SMC(16, chains=2), seed=1)
    yield "one step", fk.infer(once(), fk.ImportanceSampling(30), seed=0)
    yield "one particle", fk.infer(once(), fk.SMC(1), seed=0)
    yield "best of n", fk.infer(spelled(), fk.BestOfN(12), seed=0)
    yield "interrupted", fk.infer(spelled(), fk.SMC(12), seed=0, callbacks=stop)
    yield "unsorted ancestors", fk.infer(spelled(), fk.SMC(30, resampling="multinomial"), seed=0)
    yield "all dead", fk.infer(spelled(30, 0.49), fk.SMC(4, ess_threshold=0.0, all_dead="zero"), seed=0)
    yield "many", fk.infer(spelled(40, 0.05), fk.SMC(200), seed=0)


KINDS = dict(kinds())


def lines(ax):
    return [line for line in ax.lines if line.get_linestyle() == "-"]


def notes(ax):
    return [ax.get_title(loc="left"), ax.get_title(loc="right"), *(text.get_text() for text in ax.texts)]


# -- the data ---------------------------------------------------------------------------------------------------


def test_ess_is_that_of_every_step_and_its_marks_are_where_resampling_followed(posterior):
    (ax,) = fk.plots.ess(posterior).axes
    for chain, line in zip(posterior.chains, lines(ax), strict=True):
        assert line.get_ydata() == pytest.approx([step.ess / 16 for step in chain.steps])
    marks = [line.get_xdata().tolist() for line in ax.lines if line.get_marker() == "o"]
    expected = [[t - 1 for t, step in enumerate(c.steps) if step.resampled] for c in posterior.chains]
    assert marks == expected
    assert all(expected)


def test_evidence_is_that_of_every_chain_and_the_mean_of_all(posterior):
    (ax,) = fk.plots.evidence(posterior).axes
    *each, pooled = lines(ax)
    for chain, line in zip(posterior.chains, each, strict=True):
        assert line.get_ydata() == pytest.approx([step.log_evidence for step in chain.steps])
    assert pooled.get_ydata()[-1] == pytest.approx(posterior.log_evidence)
    longest = max(len(chain.steps) for chain in posterior.chains)
    last = [[c.steps[min(t, len(c.steps) - 1)].log_evidence for c in posterior.chains] for t in range(longest)]
    assert np.exp(pooled.get_ydata()) == pytest.approx(np.exp(last).mean(1))
    assert f"{posterior.log_evidence:.4g}".replace("-", "−") in ax.get_title(loc="right")


def test_weights_tell_how_many_particles_hold_nine_tenths(posterior):
    (ax,) = fk.plots.weights(posterior).axes
    whole = lines(ax)[-1]
    mass = np.sort(posterior.probabilities)[::-1].cumsum()
    assert whole.get_ydata() == pytest.approx(mass[np.asarray(whole.get_xdata()) - 1])
    few = int(np.argmax(mass >= 0.9 - 1e-9)) + 1
    assert any(text.startswith(f"{few} of 32 hold") for text in notes(ax))


def test_mass_is_held_by_as_many_as_it_takes():
    curve = views.mass_curve(np.log([0.05, 0.6, 0.05, 0.3]))
    assert curve == pytest.approx([0.6, 0.9, 0.95, 1.0])
    assert views.holding(curve) == 2
    assert views.holding(views.mass_curve(np.full(3, -np.inf))) == 0


def test_rewards_count_the_particles_that_made_the_step_and_those_it_killed(posterior):
    seen = views.rewards(posterior.chains)
    made, dead = {}, {}
    for chain in posterior.chains:
        for t, step in enumerate(chain.steps):
            for chosen in step.choices:
                for site in chosen:
                    if site.kind == "factor":
                        made.setdefault(t, []).append(site.value)
                        dead[t] = dead.get(t, 0) + (site.value == -math.inf)
    assert seen.step.tolist() == sorted(made)  # steps that only set a twist are left out
    assert seen.made.tolist() == [len(made[t]) for t in sorted(made)]
    assert seen.dead.tolist() == [dead[t] for t in sorted(made)]
    assert seen.dead.sum() > 0
    for t, points, median in zip(seen.step, seen.points, seen.quantiles[2]):
        finite = [value for value in made[t] if value > -math.inf]
        assert sorted(points) == pytest.approx(sorted(finite))
        assert median == pytest.approx(np.median(finite))
    (ax,) = fk.plots.rewards(posterior).axes
    assert [text.get_text() for text in ax.texts] == [str(dead[t]) for t in sorted(made) if dead[t]]
    assert f"{sum(dead.values())} killed" in ax.get_title(loc="right")


def test_far_outliers_are_counted_and_not_shown():
    @fk.program
    async def outlier():
        x = await fk.sample("x", fk.dist.Categorical([0.97, 0.03], values=[0.0, 1.0]))
        y = await fk.sample("y", fk.dist.Uniform(0.0, 1.0))
        await fk.factor("G", y - 500.0 * x)

    posterior = fk.infer(outlier(), fk.SMC(200), seed=0)
    (ax,) = fk.plots.rewards(posterior).axes
    far = int((posterior.steps[0].log_potential < -100).sum())
    assert far > 0
    assert f"{far} below the axis" in ax.get_title(loc="right")
    assert ax.get_ylim()[0] > -10


def test_a_trace_has_the_text_log_p_and_log_g_of_each_step(posterior):
    particle = posterior._best()
    chain, i = posterior._locate(particle)
    rows = views.rows(chain, i)
    trace = posterior.trace(particle)
    letters = [site for site in trace.values() if site.name == "letter"]
    assert [row.text[-1] for row in rows if row.text and row.text[-1] in "abx"] == [site.value for site in letters]
    assert sum(row.log_prob for row in rows) == pytest.approx(sum(s.log_prob for s in trace.values()))
    assert sum(row.log_potential for row in rows) == pytest.approx(
        sum(s.value for s in trace.values() if s.kind == "factor")
    )
    few = views.rows(chain, i, most=3)
    assert len(few) == 3
    assert (few[0].first, few[-1].last) == (rows[0].first, rows[-1].last)
    assert sum(row.log_prob for row in few) == pytest.approx(sum(row.log_prob for row in rows))
    figure = fk.plots.tokens(posterior, particle)
    (ax,) = figure.axes
    widths = [bar.get_width() for bar in ax.patches]
    assert len(widths) == 2 * len(rows)
    surprise = np.array([-row.log_prob for row in rows])
    assert widths[::2] == pytest.approx(surprise / surprise.max())
    assert figure.axes[0].get_title(loc="left").startswith(f"Particle {particle}:")


def signs(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_rewards_of_few_values_are_dots_and_nothing_is_drawn_between_them():
    @fk.program
    async def passes(steps):
        for _ in range(steps):
            x = await fk.sample("x", fk.dist.Bernoulli(0.4))
            await fk.factor("G", 0.0 if x else math.log(0.1))

    posterior = fk.infer(passes(4), fk.SMC(50), seed=0)
    (ax,) = fk.plots.rewards(posterior).axes
    assert not ax.patches
    assert [line for line in lines(ax) if len(line.get_xdata()) > 1 and line.get_marker() != "|"] == []
    for t, dots in enumerate(ax.collections):
        values, counts = np.unique(posterior.steps[t].log_potential, return_counts=True)
        assert dots.get_offsets().tolist() == [[t, value] for value in values]
        assert dots.get_sizes() == pytest.approx(4 + 90 * counts / 50)
    assert "share of the particles" in signs(ax)
    low, high = ax.get_ylim()
    assert low < math.log(0.1) < 0 < high


def test_rewards_have_a_box_for_each_step_and_a_key(posterior):
    @fk.program
    async def walk(steps):
        for _ in range(steps):
            await fk.factor("G", await fk.sample("x", fk.dist.Normal(0.0, 1.0)))

    found = fk.infer(walk(5), fk.SMC(40), seed=0)
    (ax,) = fk.plots.rewards(found).axes
    q = views.rewards(found.chains).quantiles
    ends = [(bar.get_y(), bar.get_y() + bar.get_height()) for bar in ax.patches]
    assert np.array(ends) == pytest.approx(np.array([*zip(q[0], q[4]), *zip(q[1], q[3])]))
    assert signs(ax)[:4] == ["median", "50%", "80%", "a particle"]
    (ax,) = fk.plots.rewards(fk.infer(walk(60), fk.SMC(40), seed=0)).axes
    assert not ax.patches
    (several,) = fk.plots.evidence(posterior).axes
    assert signs(several) == ["each of 2 chains", "all together"]
    assert signs(fk.plots.ess(posterior).axes[0]) == ["each of 2 chains", "then resampled"]


def test_chains_are_drawn_by_their_courses():
    @fk.program
    async def two():
        x = await fk.sample("x", fk.dist.Normal(0.0, 1.0))
        await fk.factor("G", -((x - 1.0) ** 2))
        return {"x": x, "constant": 1.0}

    posterior = fk.infer(two(), fk.SuffixMH(60, chains=3), seed=0)
    figure = fk.plots.traces(posterior)
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["x", "log G"]
    drawn = [line.get_ydata().tolist() for line in figure.axes[0].lines]
    assert np.concatenate(drawn).tolist() == posterior["x"].tolist()
    row = posterior.table()["x"]
    assert figure.axes[0].get_title(loc="right") == f"R-hat {row.rhat:.2f}, ESS {row.ess:.3g}"
    assert signs(figure.axes[1]) == ["chain 0", "chain 1", "chain 2"]
    titles = [ax.get_title(loc="left") for ax in fk.plots.overview(posterior).axes]
    assert titles == ["x", "log G", "Rewards"]
    with pytest.raises(ValueError, match="runs no Markov chains"):
        fk.plots.traces(KINDS["chains"])


# -- the genealogy ----------------------------------------------------------------------------------------------


def crossings(tree):
    """Pairs of lines between two levels that cross."""
    count = 0
    for before, here in pairwise(tree):
        start, end = before.height[here.parent], here.height
        below = (start[:, None] < start[None, :]) & (end[:, None] > end[None, :])
        count += int(below.sum())
    return count


@pytest.mark.parametrize("kind", KINDS)
def test_the_genealogy_is_that_of_the_posterior_and_no_lines_cross(kind):
    posterior = KINDS[kind]
    chain = posterior.chains[0]
    tree = layout.levels(chain)
    assert crossings(tree) == 0
    if kind != "many":
        assert [level.step for level in tree] == list(range(len(chain.steps)))
    for level, before in zip(tree[1:], tree):
        ancestors = level.particle
        for t in range(level.step, before.step, -1):
            ancestors = chain.steps[t].ancestors[ancestors]
        assert (before.particle[level.parent] == ancestors).all()
    alive = chain.log_weights > -np.inf
    for level in tree:
        lineage = chain.lines[level.step]
        assert set(level.particle[level.alive]) <= set(lineage[alive])
        assert level.mass.sum() == pytest.approx(1.0 if alive.any() else 0.0)
        assert 0 < level.height.min() <= level.height.max() < 1
    best = layout.best_particle(chain)
    assert [level.particle[level.best] for level in tree] == [chain.lines[level.step][best] for level in tree]


def test_all_particles_are_drawn_up_to_64_and_their_mass_is_that_of_their_descendants(posterior):
    chain = posterior.chains[0]
    weights = np.exp(chain.log_weights)
    weights /= weights.sum()
    for level in layout.levels(chain):
        assert level.particle.tolist() == list(range(16))
        lineage = chain.lines[level.step]
        assert level.mass == pytest.approx([weights[lineage == i].sum() for i in range(16)])
        assert level.alive.tolist() == [bool(weights[lineage == i].sum() > 0) for i in range(16)]


def test_of_many_particles_survivors_are_picked_by_weight():
    chain = KINDS["many"].chains[0]
    tree = layout.levels(chain, most=20, most_steps=10)
    assert len(tree) == 10
    assert (tree[0].step, tree[-1].step) == (0, len(chain.steps) - 1)
    assert len(tree[-1].particle) <= 21
    assert all(level.alive.all() for level in tree)
    assert chain.log_weights.argmax() in tree[-1].particle


def test_branches_are_named_where_the_surviving_lines_part():
    def step(ancestors, **changes):
        n = len(ancestors)
        zeros = np.zeros(n)
        facts = {"log_weights": zeros, "log_potential": zeros, "log_twist": zeros, "done": np.zeros(n, bool)}
        return Step(0, float(n), 0.0, 0.0, True, np.array(ancestors), choices=[()] * n, **facts)

    steps = tuple(map(step, (range(4), [2, 2, 2, 0], [0, 0, 2, 3], range(4))))
    chain = Chain(np.array([0.0, 0.0, 0.0, -np.inf]), np.ones(4, bool), None, steps)
    tree = layout.levels(chain)
    assert [level.clade.tolist() for level in tree] == [[-1] * 4, [0, -1, 1, -1], [0, 0, 1, -1], [0, 0, 1, -1]]
    assert tree[0].mass.tolist() == pytest.approx([0, 0, 1, 0])


def test_the_drawn_lines_join_ancestors(posterior):
    (ax,) = fk.plots.genealogy(posterior, chain=1).axes
    chain = posterior.chains[1]
    tree = layout.levels(chain)
    ends = {
        (line.get_xdata()[0], line.get_xdata()[-1], round(line.get_ydata()[-1], 9)): line.get_ydata()[0]
        for line in lines(ax)
    }
    for before, here in pairwise(tree):
        for parent, height in zip(here.parent, here.height):
            assert ends[before.step, here.step, round(height, 9)] == pytest.approx(before.height[parent])
    (dots,) = (line for line in ax.lines if line.get_marker() == "o")
    assert dots.get_ydata() == pytest.approx([level.height[level.best] for level in tree])
    marks = [line.get_xdata()[0] for line in ax.lines if list(line.get_ydata()) == [0, 1]]
    assert marks == [t - 0.5 for t, step in enumerate(chain.steps) if step.resampled]


def test_texts_stand_beside_surviving_lines_and_a_label_replaces_them(posterior):
    (ax,) = fk.plots.genealogy(posterior).axes
    assert {text.get_text() for text in ax.texts} == {"a", "b"}
    (ax,) = fk.plots.genealogy(posterior, label=lambda choices: "<$>" if len(choices) else "").axes
    assert {text.get_text() for text in ax.texts} == {"<$>"}
    (ax,) = fk.plots.genealogy(posterior, label=lambda choices: "").axes
    assert not ax.texts
    (ax,) = fk.plots.genealogy(KINDS["one step"]).axes  # numbers are not written unless asked for
    assert not ax.texts


@fk.program
async def told(steps=7, first="numbers"):
    """Lines of text of several lengths; at the first step two sites, the one a number or a text."""
    if first == "numbers":
        await fk.sample("count", fk.dist.DiscreteUniform(1, 6))
    else:
        await fk.sample("style", fk.dist.Categorical([0.5, 0.5], values=["solemn", "playful, and so on"]))
    text = ""
    for _ in range(steps):
        lines = ["rivers", "a rather long line of text", "stones and winds", "i"]
        text += await fk.sample("line", fk.dist.Categorical([0.1, 0.4, 0.3, 0.2], values=lines))
        await fk.factor("G", 2.0 * text.endswith("rivers"))
    return text


@pytest.mark.parametrize(("first", "particles"), [("texts", 5), ("numbers", 20), ("texts", 300)])
def test_texts_are_struck_by_no_line_and_by_no_other_text(first, particles):
    posterior = fk.infer(told(first=first), fk.SMC(particles, ess_threshold=0.9), seed=particles)
    figure = fk.plots.genealogy(posterior)
    (ax,) = figure.axes
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in ax.texts]
    assert len(boxes) > 10
    assert any(text.xy[0] == 0 for text in ax.texts)  # also where the first step has two sites
    inked = [box.padded(-1.0) for box in boxes]
    assert not any(a.overlaps(b) for i, a in enumerate(inked) for b in inked[:i])
    for line in lines(ax):
        if len(line.get_xdata()) > 3:  # of the tree
            path = line.get_transform().transform_path(line.get_path())
            assert not any(path.intersects_bbox(box, filled=False) for box in inked)


def test_a_text_is_bold_where_copies_of_one_ancestor_part():
    posterior = fk.infer(told(first="texts"), fk.SMC(12, ess_threshold=0.9), seed=1)
    figure = fk.plots.genealogy(posterior, label=lambda choices: choices[-2].value[:4])
    (chain,), (ax,) = posterior.chains, figure.axes
    tree = layout.levels(chain)
    bold = {(text.xy[0], round(text.xy[1], 9)) for text in ax.texts if text.get_fontweight() == "bold"}
    drawn = {(text.xy[0], round(text.xy[1], 9)) for text in ax.texts}
    expected = set()
    for here in tree[1:]:
        said = [chain.steps[here.step].choices[i][-2].value for i in here.particle]
        for k in np.flatnonzero(here.alive):
            siblings = np.flatnonzero(here.alive & (here.parent == here.parent[k]))
            if len({said[j] for j in siblings}) > 1:
                expected.add((here.step, round(float(here.height[k]), 9)))
    assert bold == expected & drawn
    assert 0 < len(bold) < len(drawn)
    assert "bold: copies part" in [text.get_text() for text in ax.get_legend().get_texts()]


def test_the_key_names_the_marks_that_are_there(posterior):
    def named(found):
        return signs(fk.plots.genealogy(found).axes[0])

    assert {"the best", "survives, by branch", "died out", "resampled"} <= set(named(posterior))
    assert named(KINDS["one step"]) == ["the best"]
    assert "resampled" not in named(fk.infer(told(), fk.SMC(4, ess_threshold=0.0), seed=0))


# -- rendering --------------------------------------------------------------------------------------------------


def test_texts_stand_clear_of_the_thickest_lines(posterior):
    (ax,) = fk.plots.genealogy(posterior).axes
    lifts = {(text.xy[0], round(text.xy[1], 9)): text.xyann[1] for text in ax.texts}
    checked = 0
    for line in ax.lines:
        xs, ys = line.get_xdata(), line.get_ydata()
        lift = lifts.get((xs[0], round(float(ys[0]), 9))) if len(xs) > 3 else None
        if lift is not None and line.get_linewidth() >= 1:  # a line that survives, from its node to the right
            assert lift >= 1 + line.get_linewidth() / 2
            checked += line.get_linewidth() > 2.5
    assert checked


@pytest.mark.parametrize("kind", KINDS)
def test_every_plot_renders(kind, tmp_path):
    png, size = fk.plots.tokens(KINDS[kind])._repr_png_()
    assert png.startswith(b"\x89PNG")
    assert set(size) == {"width", "height"}
    figure = fk.plots.overview(KINDS[kind])  # which holds all the others
    figure.savefig(tmp_path / "overview.png", dpi=50)
    assert (tmp_path / "overview.png").stat().st_size > 5000


def test_the_background_is_clear_and_the_ink_reads_on_white_and_on_dark(posterior):
    png, _ = fk.plots.ess(posterior)._repr_png_()
    import io

    pixels = matplotlib.image.imread(io.BytesIO(png))
    clear = pixels[..., 3] == 0
    assert clear.mean() > 0.5
    ink = np.array(matplotlib.colors.to_rgb(fk.plots.INK))
    light = (np.where(ink <= 0.04045, ink / 12.92, ((ink + 0.055) / 1.055) ** 2.4) * [0.2126, 0.7152, 0.0722]).sum()
    assert (1.0 + 0.05) / (light + 0.05) > 4.5  # the contrast of WCAG for text
    assert (light + 0.05) / (0.013 + 0.05) > 3.5  # on #1e1e1e; no tone has 4.5 on both


def test_plots_leave_nothing_behind(posterior):
    from matplotlib import pyplot as plt

    before = dict(matplotlib.rcParams)
    for plot in (*PLOTS, fk.plots.overview):
        plot(posterior)
    assert plt.get_fignums() == []
    assert dict(matplotlib.rcParams) == before


def test_plots_draw_into_axes_that_are_given(posterior):
    from matplotlib.figure import Figure

    figure = Figure()
    for ax, plot in zip(figure.subplots(3, 2).ravel(), PLOTS, strict=True):
        assert plot(posterior, ax=ax) is figure
        assert ax.lines or ax.patches
    with pytest.raises(ValueError, match="figsize"):
        fk.plots.ess(posterior, ax=figure.axes[0], figsize=(3, 3))


def test_a_size_is_honoured_and_what_is_not_there_is_refused(posterior):
    assert fk.plots.ess(posterior, figsize=(3, 2)).get_size_inches().tolist() == [3, 2]
    with pytest.raises(IndexError, match="chain 2 of 2"):
        fk.plots.genealogy(posterior, chain=2)
    with pytest.raises(IndexError, match="particle 99 of 32"):
        fk.plots.tokens(posterior, 99)


def test_dollars_in_a_text_are_no_mathematics():
    @fk.program
    async def price():
        await fk.sample("price", fk.dist.Categorical([1.0], values=["$5 and $\\frac{"]))
        await fk.factor("G", -1.0)

    assert fk.plots.tokens(fk.infer(price(), fk.SMC(2), seed=0))._repr_png_()


def test_without_matplotlib_the_error_names_the_extra():
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "import feynkac as fk\n"
        "@fk.program\nasync def m():\n    await fk.factor('G', 0.0)\n"
        "p = fk.infer(m(), fk.SMC(2), seed=0)\n"
        "assert '<svg' in fk.plots.genealogy_html(p)\n"
        "try:\n    fk.plots.ess(p)\nexcept ImportError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "feynkac[plots]" in done.stdout
