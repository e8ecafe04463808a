"""Pictures: which values are images and clips, what they look like, and where they are shown."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys

import numpy as np
import pytest

import feynkac as fk
from feynkac.inference.base.chain import Chain
from feynkac.inference.base.step import Step
from feynkac.inference.drawing import pixels
from feynkac.inference.drawing.summary import leading
from feynkac.inference.plots import plot_images
from feynkac.inference.plots.faces import Faces

matplotlib = pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")

RNG = np.random.default_rng(0)


class Painted:
    """A model of n-step images: each step draws noise that fades, and the value is the last one, or made of it."""

    def __init__(self, shape=(1, 12, 10), steps=4, value=lambda x: x, choices=lambda x: x, reward=1.0):
        self.shape, self.length, self.value, self.chosen, self.reward = shape, steps, value, choices, reward

    def __repr__(self):
        return "Painted()"

    def start(self, keys, given=None):
        return self._move(np.zeros((len(keys), *self.shape)), np.zeros(len(keys), int), keys)

    def advance(self, state, keys, given=None):
        return self._move(state.x, state.depth, keys)

    def _move(self, x, depth, keys):
        noise = fk.keys.normal(keys, int(np.prod(self.shape))).reshape(len(keys), *self.shape)
        left = self.length - depth - 1
        x = np.tanh(noise) * 0.9 + 3.0 * left.reshape(-1, *[1] * len(self.shape)) * noise
        n = len(x)
        choices = [self.chosen(one) for one in x]
        state = State(x, depth + 1, self.length)
        log_g = self.reward * np.tanh(x).reshape(n, -1).mean(1)
        zeros = np.zeros(n)
        return fk.Advance(state, choices, zeros, zeros, log_g, zeros, state.done, np.ones(n, bool))

    def select(self, state, index):
        return State(state.x[index], state.depth[index], self.length)

    def concat(self, states):
        parts = [np.concatenate([getattr(s, name) for s in states]) for name in ("x", "depth")]
        return State(*parts, self.length)

    def values(self, state):
        return [self.value(one) for one in state.x]


class State:
    def __init__(self, x, depth, length):
        self.x, self.depth, self.length = x, depth, length

    def __len__(self):
        return len(self.x)

    @property
    def done(self):
        return self.depth >= self.length


def posterior_of(values, log_weights=None, choices=None):
    """A posterior of one step, made without a run."""
    n = len(values)
    logs = np.zeros(n) if log_weights is None else np.array(log_weights, float)
    zeros = np.zeros(n)
    step = Step(0, float(n), 0.0, 0.0, False, np.arange(n), logs, logs, zeros, np.ones(n, bool), choices or [()] * n)
    chain = Chain(logs, np.ones(n, bool), None, (step,))
    return fk.Posterior(tuple(values), (chain,), fk.Cost(), "unbiased", "Engine", "model", 0)


@pytest.fixture(scope="module")
def painted():
    return fk.infer(Painted(), fk.SMC(6, chains=2, ess_threshold=0.99), seed=0)


@pytest.fixture(scope="module")
def clips():
    return fk.infer(Painted((5, 9, 12)), fk.ImportanceSampling(4), seed=0)


def decoded(source):
    """The pixels of an image in a page."""
    kind, data = re.fullmatch(r"data:image/(\w+);base64,(.*)", source).groups()
    return kind, Image.open(io.BytesIO(base64.b64decode(data)))


def sources(page):
    return re.findall(r'(?:src|href)="([^"]*)"', page)


# -- what is a picture ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "dtype", "layout"),
    [
        ((28, 28), float, "HW"),
        ((1, 28, 28), np.float32, "CHW"),
        ((3, 16, 24), float, "CHW"),
        ((4, 16, 24), float, "CHW"),
        ((16, 24, 3), np.uint8, "HWC"),
        ((16, 24, 1), float, "HWC"),
        ((16, 24, 24), float, "THW"),
        ((5, 3, 24, 24), float, "TCHW"),
        ((5, 24, 24, 3), np.uint8, "THWC"),
        ((7,), float, None),
        ((7, 28), float, None),
        ((28, 28), int, None),
        ((28, 28), bool, None),
        ((2, 5, 24, 24), float, None),
        ((0, 24, 24), float, None),
    ],
)
def test_the_shape_says_what_is_a_picture(shape, dtype, layout):
    assert pixels.layout_of(np.zeros(shape, dtype)) == layout
    assert pixels.is_picture(np.zeros(shape, dtype)) == (layout is not None)


def test_tensors_are_arrays_and_numbers_out_of_range_are_no_pictures():
    torch = pytest.importorskip("torch")
    tensor = torch.rand(1, 8, 8, requires_grad=True)
    assert pixels.is_picture(tensor)
    assert np.array_equal(pixels.frames(tensor), pixels.frames(tensor.detach().numpy()))
    assert pixels.is_picture(tensor.bfloat16())
    for bad in (3.0, -2.0, np.nan, np.inf):
        array = np.zeros((8, 8))
        array[2, 3] = bad
        assert not pixels.is_picture(array)
    assert not pixels.is_picture("a text")
    assert not pixels.is_picture(None)


def test_frames_put_axes_and_range_right():
    signed = np.linspace(-1, 1, 3 * 8 * 9).reshape(3, 8, 9)
    found = pixels.frames(signed)
    assert found.shape == (1, 8, 9, 3)
    assert found[0, 0, 0, 0] == 0
    assert found[0, 7, 8, 2] == 255
    assert np.array_equal(found[0].transpose(2, 0, 1), np.round((signed + 1) / 2 * 255))
    assert np.array_equal(pixels.frames(signed / 2 + 0.5), found)  # [0, 1], since nothing is below
    assert np.array_equal(pixels.frames(signed, "THW")[..., 0], found[0].transpose(2, 0, 1))
    assert np.array_equal(pixels.frames(np.abs(signed), value_range=(-1, 1)), np.round((np.abs(signed) + 1) * 127.5)[
        None
    ].transpose(0, 2, 3, 1))  # fmt: skip
    video = RNG.random((3, 2, 8, 9))
    assert np.array_equal(pixels.frames(video, "CTHW"), pixels.frames(video.transpose(1, 0, 2, 3)))
    assert pixels.frames(np.full((8, 8), 5.0), "HW", (0.0, 1.0)).max() == 255  # beyond is clipped
    raw = RNG.integers(0, 256, (8, 9, 3)).astype(np.uint8)
    assert np.array_equal(pixels.frames(raw)[0], raw)
    noise = 40.0 * RNG.normal(size=(16, 16))
    assert pixels.frames(noise, "HW", (-1, 1), fit=True).std() < pixels.frames(noise, "HW", (-1, 1)).std() < 130


@pytest.mark.parametrize(
    ("value", "layout", "match"),
    [
        (np.zeros(9), None, "an array 9 of float64 is no image"),
        ("text", None, "str is no image"),
        (np.zeros((8, 8)), "CHW", "8×8 does not have the layout CHW"),
        (np.zeros((5, 8, 8)), "CHW", "1, 3 or 4 channels, not 5"),
    ],
)
def test_what_is_no_picture_is_named(value, layout, match):
    with pytest.raises(ValueError, match=match):
        pixels.frames(value, layout)
    with pytest.raises(ValueError, match="low < high"):
        pixels.frames(np.zeros((8, 8)), value_range=(1.0, 0.0))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_png_is_read_back_as_it_was(channels):
    image = RNG.integers(0, 256, (7, 11, channels)).astype(np.uint8)
    read = np.asarray(Image.open(io.BytesIO(pixels.png(image))))
    assert np.array_equal(read.reshape(image.shape), image)


def test_thumbnails_are_means_of_blocks():
    image = RNG.integers(0, 256, (40, 20, 3)).astype(np.uint8)
    small = pixels.shrunk(image, 16)
    assert small.shape == (13, 6, 3)
    assert small[1, 2, 0] == pytest.approx(image[3:6, 6:9, 0].mean(), abs=0.51)
    assert pixels.shrunk(image, 40) is image
    side_by_side = pixels.strip(np.stack([image] * 20))
    assert side_by_side.shape == (40, 8 * 20 + 7, 3)
    assert np.array_equal(side_by_side[:, :20], image)


# -- where posteriors are shown ---------------------------------------------------------------------------------


def test_a_summary_names_images_and_has_no_numbers_of_theirs(painted, clips):
    assert repr(painted).count("image 1×12×10") == 6  # five of largest weight, and the best
    assert "clip 5×9×12" in repr(clips)
    assert "array(" not in repr(painted)
    other = posterior_of([np.zeros((4, 64, 64)) + 7.0, (np.zeros((28, 28)), "a river"), np.array([1.0, 2.0])])
    assert "array 4×64×64" in repr(other)
    assert "(image 28×28, 'a river')" in repr(other)
    assert "[1. 2.]" in repr(other)


def test_large_arrays_that_differ_in_one_number_stay_apart():
    one, two = np.zeros((3, 64, 64)), np.zeros((3, 64, 64))
    two[1, 30, 30] = 1.0
    top = leading(posterior_of([one, two, one.copy()]), 5)
    assert [weight for weight, _ in top] == pytest.approx([2 / 3, 1 / 3])


def test_the_page_of_a_posterior_has_its_images(painted):
    page = painted._repr_html_()
    found = sources(page)
    assert len(found) == 8
    weights = re.findall(r"<figcaption>([\d.]+)</figcaption>", page)
    for source, weight, (expected, value) in zip(found, weights, leading(painted, 8), strict=True):
        kind, image = decoded(source)
        assert kind == "png"
        assert np.array_equal(np.asarray(image), pixels.frames(value, value_range=(-1, 1))[0, ..., 0])
        assert weight == f"{expected:.3f}"
    mixed = posterior_of([(RNG.random((8, 8)), "a <river>"), "text"])._repr_html_()
    assert len(sources(mixed)) == 1
    assert "a &lt;river&gt;" in mixed


def test_one_range_holds_for_all_images_of_a_posterior():
    white, grey = np.ones((8, 8)), np.full((8, 8), -0.5)
    bright = np.full((8, 8), 0.5)  # 191 in [−1, 1], where the grey one puts it, and not 128
    page = posterior_of([white, grey, bright], [0.0, -1.0, -2.0])._repr_html_()
    assert [int(np.asarray(decoded(source)[1])[0, 0]) for source in sources(page)] == [255, 64, 191]


def test_a_report_shows_values_genealogy_and_the_past_of_the_best(painted, tmp_path):
    page = fk.report(painted, tmp_path / "r.html").read_text(encoding="utf-8")
    _, values = page.split("<h2>Values</h2>")
    values, rest = values.split("<h2>The run, step by step</h2>")
    tree, rest = rest.split("<h2>Genealogy of chain")[1].split("<h2>What the best particle did")
    assert len(sources(values)) == 10
    chain = painted.chains[0 if painted._best() < 6 else 1]
    survivors = sum(len(np.unique(line[chain.log_weights > -np.inf])) for line in chain.lines)
    assert len(sources(tree)) == survivors
    film = sources(rest)
    assert len(film) == len(chain.steps) == 4
    best = np.asarray(decoded(film[-1])[1])
    assert np.array_equal(best, pixels.frames(painted.best(), value_range=(-1, 1))[0, ..., 0])
    assert all(source.startswith("data:image/png;base64,") for source in sources(page))
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")


@pytest.mark.slow
def test_a_page_of_images_needs_neither_matplotlib_nor_pillow(tmp_path):
    code = (
        "import sys; sys.modules['PIL'] = sys.modules['matplotlib'] = None\n"
        "import numpy as np, feynkac as fk\n"
        "@fk.program\n"
        "async def draw():\n"
        "    x = await fk.sample('x', fk.dist.Normal(0.0, 1.0))\n"
        "    return np.full((8, 8), np.tanh(x))\n"
        "p = fk.infer(draw(), fk.SMC(3), seed=0)\n"
        f"fk.report(p, {str(tmp_path / 'r.html')!r})\n"
        "print(p._repr_html_().count('data:image/png'), 'torch' in sys.modules)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["3", "False"]


# -- grids, films, videos ---------------------------------------------------------------------------------------


def shown_in(figure):
    return [np.asarray(ax.images[0].get_array()) for ax in figure.axes]


def test_a_grid_has_the_heaviest_first_and_equal_ones_once():
    values = [RNG.uniform(-1, 1, (1, 9, 9)) for _ in range(3)]
    posterior = posterior_of([values[0], values[1], values[0], values[2]], np.log([0.3, 0.4, 0.25, 0.05]))
    figure = fk.plots.images(posterior, n=2)
    expected = [pixels.frames(values[i], value_range=(-1, 1))[0, ..., 0] for i in (0, 1)]
    assert all(np.array_equal(a, b) for a, b in zip(shown_in(figure), expected, strict=True))
    labels = [ax.get_xlabel() for ax in figure.axes]
    assert labels == ["0.550\nlog G −1.2", "0.400\nlog G −0.916"]
    assert len(fk.plots.images(posterior, columns=1).axes) == 3
    pairs = posterior_of([("x", value) for value in values])
    assert len(fk.plots.images(pairs).axes) == 3
    assert len(fk.plots.images(pairs, show=lambda pair: pair[1][0]).axes) == 3


def test_layout_and_range_can_be_said():
    value = RNG.uniform(0, 1, (3, 9, 9))
    posterior = posterior_of([value])
    assert shown_in(fk.plots.images(posterior))[0].shape == (9, 9, 3)
    assert shown_in(fk.plots.images(posterior, layout="THW"))[0].shape == (9, 3 * 9 + 2)
    (image,) = shown_in(fk.plots.images(posterior, value_range=(-1.0, 1.0)))
    assert image.min() >= 127
    with pytest.raises(ValueError, match="is no image and no clip"):
        fk.plots.images(posterior_of([np.zeros(5)]))
    with pytest.raises(ValueError, match="positive number"):
        fk.plots.images(posterior, n=0)


def test_a_film_follows_the_genealogy(painted):
    for particle in (0, 7):
        chain, i = painted._locate(particle)
        figure = fk.plots.film(painted, particle, steps=10)
        images = shown_in(figure)
        assert [ax.get_title() for ax in figure.axes] == ["0", "1", "2", "3"]
        for t in range(3):
            x = chain.steps[t].choices[chain.lines[t, i]]
            assert np.array_equal(images[t], pixels.frames(x, value_range=(-1, 1), fit=True)[0, ..., 0])
        assert np.array_equal(images[3], pixels.frames(painted.values[particle], value_range=(-1, 1))[0, ..., 0])
        orange = [ax.title.get_color() != fk.plots.INK for ax in figure.axes]
        assert orange == [step.resampled for step in chain.steps]
        assert any(orange)
    assert len(fk.plots.film(painted, [0, 7, 8], steps=2).axes) == 6
    assert len(fk.plots.film(painted).axes) == 4
    with pytest.raises(IndexError):
        fk.plots.film(painted, 12)
    with pytest.raises(ValueError, match="at least one step"):
        fk.plots.film(painted, 0, steps=0)


def test_a_film_says_what_to_do_where_the_history_has_no_pictures():
    latents = fk.infer(Painted((6,), value=lambda x: np.tile(np.tanh(x), (8, 2))[:, :8]), fk.SMC(3), seed=0)
    with pytest.raises(ValueError, match=r"hold no pictures, but \(6,\): give show="):
        fk.plots.film(latents)
    shown = fk.plots.film(latents, show=lambda x: np.tile(np.tanh(x), (8, 2))[:, :8])
    assert len(shown.axes) == 4
    sparse = fk.infer(Painted(steps=6), fk.TreeSampling(4, record=False, branch_at=[0]), seed=0)
    assert [ax.get_title() for ax in fk.plots.film(sparse, 0).axes] == ["0", "5"]
    bare = fk.infer(Painted(choices=lambda x: ()), fk.SMC(3), seed=0)
    with pytest.raises(ValueError, match=r"SMC.* kept nothing of the steps of particle 1: run it with record=True"):
        fk.plots.film(bare, 1)
    kept = fk.infer(Painted(steps=6), fk.TreeSampling(4, branch_at=[0]), seed=0)
    assert len(fk.plots.film(kept, 0).axes) == 6


def test_blocks_and_programs_have_films_too():
    blocks = fk.infer(fk.Blocks(Painted(steps=6), 2), fk.SMC(3), seed=0)
    chain, line = blocks.chains[0], blocks.chains[0].lines[:, 1]
    images = shown_in(fk.plots.film(blocks, 1))
    x = chain.steps[0].choices[line[0]][-1]
    assert np.array_equal(images[0], pixels.frames(x, value_range=(-1, 1), fit=True)[0, ..., 0])

    @fk.program
    async def drawn():
        for _ in range(3):
            image = await fk.sample("image", Canvas())
            await fk.factor("light", float(image.mean()))
        return {"image": image, "title": "noise"}

    posterior = fk.infer(drawn(), fk.SMC(4), seed=0)
    (*_, last) = shown_in(fk.plots.film(posterior, 2))
    assert np.array_equal(last, pixels.frames(posterior.values[2]["image"])[0, ..., 0])
    assert "image 8×8" in repr(posterior)


class Canvas:
    """A kernel that draws images."""

    expensive = False
    batch_key = "canvas"
    fingerprint = None

    def sample_batch(self, requests, keys):
        return fk.Draws(list(fk.keys.uniform(keys, 64).reshape(-1, 8, 8)), None)


def test_a_video_plays_the_clips_at_its_rate(clips, tmp_path):
    video = fk.plots.video(clips, n=3, rate=4)
    assert [clip.shape for clip in video.clips] == [(5, 9, 12, 1)] * 3
    best = max(range(4), key=lambda i: clips.probabilities[i])
    assert np.array_equal(video.clips[0], pixels.frames(clips.values[best], value_range=(-1, 1)))
    assert video.captions[0].startswith(f"{clips.probabilities[best]:.3f} · log G ")
    found = sources(video._repr_html_())
    assert len(found) == 3
    kind, gif = decoded(found[0])
    assert (kind, gif.n_frames, gif.size) == ("gif", 5, (12, 9))
    total = 0
    for t in range(5):
        gif.seek(t)
        total += gif.info["duration"]
        assert np.abs(np.asarray(gif.convert("L"), int) - video.clips[0][t, ..., 0]).max() <= 1
    assert total == 1250
    path = video.save(tmp_path / "clips.gif", columns=3)
    with Image.open(path) as whole:
        zoom = round(120 / 9)
        assert (whole.n_frames, whole.size) == (5, (zoom * (3 * 13 + 1), zoom * 11))
    with pytest.raises(ValueError, match=r"\.gif or \.mp4, not 'clips.webm'"):
        video.save(tmp_path / "clips.webm")
    assert list(tmp_path.iterdir()) == [path]


def test_an_mp4_has_all_frames_at_the_rate(clips, tmp_path):
    av = pytest.importorskip("av")
    video = fk.plots.video(clips, n=1, rate=12.5)
    path = video.save(tmp_path / "clips.mp4")
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        seen = [frame.to_ndarray(format="gray") for frame in container.decode(stream)]
        assert float(stream.average_rate) == pytest.approx(12.5, rel=0.01)
    assert len(seen) == 5
    zoom = round(120 / 9)
    inside = np.stack([one[zoom : 10 * zoom, zoom : 13 * zoom] for one in seen]).astype(float)
    means = inside.reshape(5, 9, zoom, 12, zoom).mean((2, 4))
    assert np.abs(means - video.clips[0][..., 0]).mean() < 12  # it is a lossy format


def test_clips_of_unequal_length_hold_their_last_frame_and_colours_stay():
    grey, colour = RNG.random((6, 8, 8)), RNG.random((9, 8, 8, 3))
    video = fk.plots.video(posterior_of([grey, colour], [0.0, -1.0]))
    whole = np.asarray(fk.plots.video.__globals__["_mosaic"](video.clips, 2))
    assert whole.shape[0] == 9
    assert whole.shape[-1] == 3
    assert np.array_equal(whole[5:, :, : whole.shape[2] // 2], np.stack([whole[5, :, : whole.shape[2] // 2]] * 4))


def test_what_cannot_be_a_video_is_an_error(painted, clips):
    with pytest.raises(ValueError, match=r"images \(1, 12, 10\) and no clips"):
        fk.plots.video(painted)
    for rate in (0, -1, 51):
        with pytest.raises(ValueError, match="at most 50"):
            fk.plots.video(clips, rate=rate)


def test_a_missing_package_says_which_extra(clips, tmp_path, monkeypatch):
    video = fk.plots.video(clips)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"MP4 needs PyAV: pip install 'feynkac\[video\]'"):
        video.save(tmp_path / "a.mp4")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"GIFs need Pillow: pip install 'feynkac\[video\]'"):
        video.save(tmp_path / "a.gif")
    assert list(tmp_path.iterdir()) == []


# -- trees ------------------------------------------------------------------------------------------------------


def thumbnails(ax):
    from matplotlib.offsetbox import AnnotationBbox

    return [one for one in ax.artists if isinstance(one, AnnotationBbox)]


def test_the_genealogy_has_the_images_of_survivors(painted):
    (ax,) = fk.plots.genealogy(painted, chain=1).axes
    chain = painted.chains[1]
    survivors = {(t, int(j)) for t, line in enumerate(chain.lines) for j in line[chain.log_weights > -np.inf]}
    drawn = thumbnails(ax)
    assert len(drawn) == len(survivors)
    last = [box for box in drawn if box.xy[0] == 3]
    assert len(last) == 6
    heights = sorted(box.xy[1] for box in last)
    faces = Faces(painted, 1)
    for box in last:
        i = heights.index(box.xy[1])  # at the last step, particles stand in the order of their parents
        order = np.argsort([chain.lines[2, k] for k in range(6)], kind="stable")
        assert faces.value(int(order[i])) is not None
    assert not thumbnails(fk.plots.genealogy(painted, image=lambda choices: None).axes[0])
    assert not thumbnails(fk.plots.genealogy(painted, label=lambda choices: "x").axes[0])
    page = fk.plots.genealogy_html(painted, chain=1)
    assert page.count("<image ") == len(survivors)
    assert "<image" not in fk.plots.genealogy_html(painted, label=lambda choices: "x")


def test_values_take_the_place_of_latents_at_the_end():
    posterior = fk.infer(Painted((6,), value=lambda x: np.tile(np.tanh(x), (8, 2))[:, :8]), fk.SMC(3), seed=0)
    faces = Faces(posterior)
    assert faces.step(0, 0) is None
    assert np.array_equal(faces.step(3, 1), pixels.frames(posterior.values[1], value_range=(-1, 1))[0])
    assert len(thumbnails(fk.plots.genealogy(posterior).axes[0])) == 3


def test_a_search_tree_has_the_images_of_its_leaves():
    posterior = fk.infer(Painted(steps=3), fk.TreeSampling(10), seed=0)
    ax = fk.plots.tree(posterior).axes[0]
    tree = posterior.chains[0].tree
    deep = int(tree.depth.max())
    leaves = [box for box in thumbnails(ax) if box.xy[0] == deep]
    assert len(leaves) == len(tree.particles)
    plain = fk.plots.tree(posterior, image=lambda choices: None).axes[0]
    assert not thumbnails(plain)
    with pytest.raises(ValueError, match="no image"):
        fk.plots.tree(posterior, image=lambda choices: np.zeros(5))


@pytest.mark.parametrize("kind", ["images", "film", "genealogy", "overview"])
def test_every_plot_renders_on_real_digits(kind, tmp_path):
    pytest.importorskip("diffusers")
    posterior = fk.infer(fk.diffusion.digits(3), fk.SMC(3), seed=0)
    path = tmp_path / "figure.png"
    getattr(fk.plots, kind)(posterior).savefig(path)
    with Image.open(path) as image:
        assert np.asarray(image.convert("L")).std() > 10


def test_a_posterior_of_numbers_has_no_faces():
    @fk.program
    async def number():
        return await fk.sample("x", fk.dist.Normal(0.0, 1.0))

    posterior = fk.infer(number(), fk.SMC(3), seed=0)
    assert not Faces(posterior)
    with pytest.raises(ValueError, match="no image"):
        plot_images.images(posterior)
