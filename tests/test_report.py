"""HTML: the view in a notebook, the genealogy, the trace and the report in a file."""

from __future__ import annotations

import math
import re
import time
from html.parser import HTMLParser

import numpy as np
import pytest

import feynkac as fk
from feynkac.inference.base.chain import Chain
from feynkac.inference.base.step import Step
from feynkac.inference.drawing.summary import leading
from feynkac.inference.drawing.svg import Chart, Html, span, ticks
from feynkac.inference.drawing.views import words
from feynkac.inference.plots.html_chains import courses
from feynkac.inference.plots.html_partings import partings
from feynkac.inference.plots.lineages import levels

VOID = {"meta", "br", "hr", "img", "input", "link"}
NASTY = "<script>alert('x')</script> & \"quotes\" </svg>"


class Balanced(HTMLParser):
    """Reads a page, and checks that every element is closed."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts = [], [], [], []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return "".join(self.texts)


@fk.program
async def nasty(name, steps=6):
    text = ""
    for t in range(steps):
        part = await fk.sample("part", fk.dist.Categorical([0.6, 0.3, 0.1], values=[NASTY, "b\nc", "x"]))
        text += part
        await fk.factor("G", -math.inf if part == "x" else -1.0 + 0.3 * t)
    return text


@fk.program
async def once():
    x = await fk.sample("x", fk.dist.Normal(0.0, 1.0))
    await fk.factor("G", -x * x)
    return x


POSTERIORS = {
    "text": fk.infer(nasty("<b>"), fk.SMC(12, chains=2), seed=0),
    "one step": fk.infer(once(), fk.ImportanceSampling(300), seed=0),
    "one particle": fk.infer(once(), fk.SMC(1), seed=0),
    "best of n": fk.infer(nasty("n"), fk.BestOfN(8), seed=0),
    "interrupted": fk.infer(nasty("n"), fk.SMC(8), seed=0, callbacks=[lambda step: step.depth == 2]),
    "chains": fk.infer(nasty("n"), fk.SuffixMH(30, chains=2), seed=0),
    "a chain of numbers": fk.infer(once(), fk.SuffixMH(30), seed=0),
    "tree": fk.infer(nasty("n"), fk.TreeSampling(20), seed=0),
    "search": fk.infer(nasty("n"), fk.BeamSearch(4), seed=0),
    "all dead": fk.infer(nasty("n", 80), fk.SMC(3, ess_threshold=0.0, all_dead="zero"), seed=0),
}


@pytest.mark.parametrize("kind", POSTERIORS)
def test_pages_are_balanced_escaped_and_ask_for_nothing(kind, tmp_path):
    posterior = POSTERIORS[kind]
    pages = [posterior._repr_html_(), fk.plots.genealogy_html(posterior), fk.plots.tokens_html(posterior)]
    path = fk.report(posterior, tmp_path / "report.html")
    pages.append(path.read_text(encoding="utf-8"))
    for page in pages:
        read = Balanced(page)
        assert "script" not in read.tags
        assert not {"link", "img", "iframe", "object"} & set(read.tags)
        assert not any(name in ("src", "href") for name, _ in read.attributes)
        assert re.findall(r"https?://[^\s\"]+", page.replace("http://www.w3.org/2000/svg", "")) == []
        assert "nan" not in re.findall(r'(?:points|cx|cy|x|y|d|width)="([^"]*)"', page)
        assert not re.search(r'(?:points|cx|cy|x|y|d)="[^"]*(?:nan|inf)', page)
    assert list(tmp_path.iterdir()) == [path]


def test_a_report_says_what_the_posterior_says(tmp_path):
    posterior = POSTERIORS["text"]
    page = Balanced(fk.report(posterior, tmp_path / "r.html").read_text(encoding="utf-8"))
    assert f"{posterior.log_evidence:.4g}".replace("-", "−") in page.text
    assert posterior.engine in page.text
    assert posterior.model in page.text
    assert fk.__version__ in page.text
    assert str(posterior.best()) in page.text
    weight, value = leading(posterior, 1)[0]
    assert f"{weight:.3f}{value}" in page.text
    for heading in ("Effective sample size", "Evidence", "Rewards", "Weights", "Genealogy of chain", "How it was made"):
        assert heading in page.text
    chain = 0 if posterior._best() < 12 else 1
    assert f"Genealogy of chain {chain} of 2" in page.text
    dead = sum(int(np.isneginf(step.log_potential).sum()) for c in posterior.chains for step in c.steps)
    assert dead > 0
    assert f"{dead} killed" in page.text


@pytest.mark.parametrize("kind", ["interrupted", "all dead", "best of n"])
def test_reservations_are_shown(kind, tmp_path):
    posterior = POSTERIORS[kind]
    assert posterior.warnings
    for page in (posterior._repr_html_(), fk.report(posterior, tmp_path / "r.html").read_text(encoding="utf-8")):
        assert all(warning in Balanced(page).text for warning in posterior.warnings)
    if posterior.stopped:
        assert f"stopped: {posterior.stopped}" in Balanced(posterior._repr_html_()).text


def test_the_genealogy_tells_of_each_particle_where_the_mouse_is():
    posterior = POSTERIORS["text"]
    page = fk.plots.genealogy_html(posterior, chain=1)
    read = Balanced(page)
    chain = posterior.chains[1]
    assert read.tags.count("circle") == 12 * len(chain.steps)
    assert len(re.findall(r"<circle [^>]*><title>", page)) == 12 * len(chain.steps)
    for t, step in enumerate(chain.steps):
        for i in range(12):
            assert f"step {t}, particle {i}, log G " in read.text
        assert (f'font-weight="bold">{t}</text>' in page) == step.resampled
    survivors = len(set(chain.lines[0][chain.log_weights > -np.inf]))
    first = re.findall(r"step 0, particle \d+, [^\n<]*", read.text)
    assert sum("weight of its descendants" in told for told in first) == survivors < 12
    assert "b⏎c" in read.text
    assert "hello" in fk.plots.genealogy_html(posterior, label=lambda choices: "hello")
    with pytest.raises(IndexError, match="chain 2 of 2"):
        fk.plots.genealogy_html(posterior, chain=2)


def test_a_report_of_chains_shows_their_courses_and_no_genealogy(tmp_path):
    @fk.program
    async def two():
        x = await fk.sample("x", fk.dist.Normal(0.0, 1.0))
        y = await fk.sample("y", fk.dist.Normal(x, 1.0))
        await fk.factor("G", -((y - 1.0) ** 2))
        return {"x": x, "a <b>": y}

    posterior = fk.infer(two(), fk.SuffixMH(400, chains=3), seed=0)
    page = fk.report(posterior, tmp_path / "r.html").read_text(encoding="utf-8")
    read = Balanced(page)
    assert "Genealogy" not in read.text
    assert re.search(r"3 chains of \d+ draws", read.text)
    assert f"acceptance {', '.join(f'{rate:.2g}' for rate in posterior.mixing.acceptance)}" in read.text
    for name in ("x", "a <b>"):
        row = posterior.table()[name]
        assert f"R-hat {row.rhat:.2f}, ESS {row.ess:.3g}" in read.text
        assert f"{row.mean:.4g}".replace("-", "−") in read.text
    course = next(one for one in courses(posterior) if one.name == "x")
    assert course.series.ravel().tolist() == posterior["x"].tolist()
    # a line for each chain of each number and of the reward, beside those of the other charts
    assert page.count("<polyline") >= 3 * 3


def test_a_report_of_a_search_shows_its_tree(tmp_path):
    for kind in ("tree", "search"):
        posterior = POSTERIORS[kind]
        tree = posterior.chains[0].tree
        read = Balanced(fk.report(posterior, tmp_path / "r.html").read_text(encoding="utf-8"))
        assert "Search tree" in read.text
        assert "Genealogy" not in read.text
        drawn = Balanced(fk.plots.tree_html(posterior))
        assert drawn.tags.count("circle") >= 1 + len(tree.leaves)
        assert f"start, {int(tree.visits[0])} rollouts" in drawn.text
        rings = [value for name, value in drawn.attributes if name == "stroke-width" and value == "2"]
        assert len(rings) == 1
    with pytest.raises(ValueError, match="grows no tree"):
        fk.plots.tree_html(POSTERIORS["text"])
    with pytest.raises(IndexError, match="chain 1 of 1"):
        fk.plots.tree_html(POSTERIORS["tree"], chain=1)


def test_lines_are_shown_with_what_they_share_and_where_they_part():
    @fk.program
    async def letters():
        for _ in range(5):
            await fk.sample("a", fk.dist.Categorical([0.6, 0.4], values=["p ", "q "]))
            await fk.factor("G", 0.0)

    (chain,) = fk.infer(letters(), fk.SMC(16, ess_threshold=1.0), seed=2).chains
    found = partings(chain, levels(chain), words)
    texts = [line.shared + line.turn + line.own for line in found]
    drawn = {"".join(words(chain.steps[t].choices[i]) for t, i in enumerate(line)) for line in chain.lines.T}
    assert len(set(texts)) == len(texts) == min(len(drawn), 8)
    assert set(texts) <= drawn
    assert found[0].shared == found[0].turn == ""
    for before, line, text in zip(texts, found[1:], texts[1:]):
        assert before.startswith(line.shared)
        assert not before.startswith(text[: len(line.shared) + 2])
        assert not line.shared or line.turn == text[len(line.shared) : len(line.shared) + 2]
    assert any(line.shared for line in found)


def test_titles_are_short_and_numbers_have_six_digits(tmp_path):
    @fk.program
    async def pair(a_very_long_argument):
        x = await fk.sample("x", fk.dist.Normal(0.0, 1.0))
        return {"x": x, "parts": [x, (x, "text")]}

    posterior = fk.infer(pair("of a value that fills a line and more"), fk.SMC(8, resampling="multinomial"), seed=0)
    page = fk.report(posterior, tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<h1>SMC on pair</h1>" in page
    assert "<title>SMC on pair</title>" in page
    x = posterior.values[0]["x"]
    for text in (Balanced(page).text, Balanced(posterior._repr_html_()).text, posterior.summary()):
        assert f"{{'x': {x:.6g}, 'parts': [{x:.6g}, ({x:.6g}, 'text')]}}" in text
        assert not re.search(r"\d\.\d{12}", text)


def test_the_trace_has_the_text_and_the_numbers_of_each_step():
    posterior = POSTERIORS["text"]
    particle = 5
    read = Balanced(fk.plots.tokens_html(posterior, particle))
    titles = [value for name, value in read.attributes if name == "title"]
    trace = posterior.trace(particle)
    drawn = [site for site in trace.values() if site.kind == "sample"]
    gains = [site.value for site in trace.values() if site.kind == "factor"]
    assert len(titles) == len(drawn) == len(gains)
    for t, (title, site, g) in enumerate(zip(titles, drawn, gains)):
        assert title == f"step {t}, log p {site.log_prob:.2g}, log G {g:.2g}".replace("-", "−").replace("inf", "∞")
    assert read.text.startswith("".join(site.value for site in drawn))
    with pytest.raises(IndexError):
        fk.plots.tokens_html(posterior, 24)


def test_pieces_show_themselves_in_a_notebook():
    page = fk.plots.tokens_html(POSTERIORS["one step"])
    assert isinstance(page, Html)
    assert page._repr_html_() == str(page)


def test_a_report_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "r.html"
    path.write_text("before")
    with pytest.raises(OSError):
        fk.report(POSTERIORS["one step"], tmp_path / "nowhere" / "r.html")

    def fails(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", fails)
    with pytest.raises(OSError, match="no space"):
        fk.report(POSTERIORS["one step"], path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def huge(particles, steps):
    """A posterior of many particles and steps, made without a run."""
    rng = np.random.default_rng(0)
    history = []
    for t in range(steps):
        logs = rng.normal(size=particles)
        ancestors = np.sort(rng.integers(particles, size=particles)) if t % 2 else np.arange(particles)
        history.append(
            Step(t, particles / 3, 1.0, -float(t), bool(t % 2), ancestors, logs, logs, np.zeros(particles),
                 np.zeros(particles, bool), rng.normal(size=particles))
        )  # fmt: skip
    chain = Chain(history[-1].log_weights, np.ones(particles, bool), None, tuple(history))
    cost = fk.Cost()
    return fk.Posterior(tuple(range(particles)), (chain,), cost, "unbiased", "SMC(…)", "model()", 0)


@pytest.mark.slow
def test_a_report_of_many_particles_and_steps_stays_small_and_quick(tmp_path):
    posterior = huge(10_000, 500)
    began = time.process_time()
    path = fk.report(posterior, tmp_path / "huge.html")
    seconds = time.process_time() - began
    assert path.stat().st_size < 1_000_000
    assert seconds < 20, f"{seconds:.1f} s"
    Balanced(path.read_text(encoding="utf-8"))


def test_charts_put_points_where_they_belong():
    chart = Chart("t", (0.0, 10.0), (-1.0, 1.0), size=(200, 100))
    left, bottom = chart.place(0.0, -1.0)
    right, top = chart.place(10.0, 1.0)
    assert chart.place(5.0, 0.0) == pytest.approx(((left + right) / 2, (bottom + top) / 2))
    assert left < right
    assert top < bottom
    chart.line([0.0, math.nan, 10.0], [-1.0, 0.0, math.inf])
    assert str(chart).count("<circle") == 1  # of the line one point is left
    powers = Chart("t", (1.0, 1000.0), (0.0, 1.0), logarithmic=True)
    gaps = np.diff([powers.place(x, 0.0)[0] for x in (1, 10, 100, 1000)])
    assert gaps == pytest.approx([gaps[0]] * 3)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-57.3, -0.2), (1e-9, 3e-9), (0.0, 12345.0), (-1e6, 1e6)])
def test_ticks_are_round_and_within_the_range(low, high):
    found = ticks(low, high, 4)
    assert 2 <= len(found) <= 7
    assert all(low - 1e-12 <= tick <= high + 1e-12 for tick in found)
    assert np.diff(found) == pytest.approx([np.diff(found)[0]] * (len(found) - 1), rel=1e-3)


def test_ranges_leave_out_what_is_not_finite():
    assert span([math.nan, -math.inf]) == (0.0, 1.0)
    low, high = span([1.0, 2.0, math.inf])
    assert low < 1.0 < 2.0 < high
    low, high = span([3.0])
    assert low < 3.0 < high
