"""Files from anybody: what is hostile or wrong is refused by name, in bounded memory, and nothing of it is run."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import pickle
import tracemalloc
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from test_report import Balanced

import feynkac as fk
from feynkac.inference.plots.report import _page
from feynkac.inference.results.keeping.encoding import Decoder, Encoder

EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'\x1b[31m\u202e"


@fk.program
async def walk(name="w"):
    x = 0.0
    for _ in range(3):
        x = await fk.sample("x", fk.dist.Normal(x, 1.0))
        fk.deterministic("pair", np.array([x, 1.0]))
        await fk.factor("G", -x * x)
    return {"x": x, "word": name}


POSTERIOR = fk.infer(walk(), fk.SMC(6, ess_threshold=1.0, chains=2), seed=0)
TREE = fk.infer(walk(), fk.BeamSearch(6, width=3), seed=0)
CHAIN = fk.infer(walk(), fk.SuffixMH(8), seed=0)


def parts(posterior, folder):
    """What a file holds: its JSON, and its arrays by member."""
    posterior.save(folder / "good.fk")
    with zipfile.ZipFile(folder / "good.fk") as archive:
        names = archive.namelist()
        arrays = {name: np.load(io.BytesIO(archive.read(name))) for name in names if name.endswith(".npy")}
        return json.loads(archive.read("posterior.json")), arrays


def write(path, head, arrays):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("posterior.json", head if isinstance(head, str | bytes) else json.dumps(head))
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, array, allow_pickle=True)
            archive.writestr(name, array if isinstance(array, bytes) else buffer.getvalue())
    return path


def refused(path, words=r"\.fk", **options):
    with pytest.raises(fk.errors.UnreadablePosterior, match=words):
        fk.Posterior.load(path, **options)


def use(posterior):
    """Look at all that a posterior shows."""
    posterior.summary()
    posterior._repr_html_()
    posterior.warnings
    fk.plots.genealogy_html(posterior)
    fk.plots.tokens_html(posterior)
    _page(posterior)
    for i in range(len(posterior)):
        posterior.trace(i)


# -- what is kept -----------------------------------------------------------------------------------------------


def test_a_file_has_a_member_for_each_type_of_array_and_not_for_each_step(tmp_path):
    posterior = fk.infer(walk(), fk.SMC(200), seed=0)
    posterior.save(tmp_path / "p.fk")
    with zipfile.ZipFile(tmp_path / "p.fk") as archive:
        assert len(archive.namelist()) < 8
        assert archive.getinfo("posterior.json").file_size < 3000  # the particles are all in arrays
    loaded = fk.Posterior.load(tmp_path / "p.fk")
    assert loaded.trace(7)["pair[1]"].value.tolist() == posterior.trace(7)["pair[1]"].value.tolist()
    assert loaded.values == posterior.values


@pytest.mark.parametrize("posterior", [POSTERIOR, TREE, CHAIN], ids=["SMC", "tree", "chain"])
def test_ranking_and_chains_are_kept(posterior, tmp_path):
    posterior.save(tmp_path / "p.fk")
    loaded = fk.Posterior.load(tmp_path / "p.fk")
    assert (loaded.ranking, loaded.serial, loaded.ess) == (posterior.ranking, posterior.serial, posterior.ess)
    assert loaded.summary() == posterior.summary()


ITEMS = [
    [1, 2.5, True, None, "a", (1, "b"), [2, [3.0]], {"k": 1}, {"k": 2}, {3: 4}] * 3,
    [np.zeros((2, 3)), np.ones((2, 3)), np.zeros(2, np.int8), np.array("text"), np.zeros((0, 2))] * 4,
    [2**70, -(2**63), 5, 6, 7],
    [(), (1,), (1, 2), ("x", 0.5)] * 3,
    [{"a": (1, 2), "b": [i]} for i in range(9)],
    [{} for _ in range(5)],
    ["ü", "\ud83d", "", "a\0b"] * 2,
    [math.nan, -math.inf, -0.0, 1e-300],
    [{1, 2}, frozenset({3}), {1, 2}, set()],
    [np.float64(0.5), np.int64(3), 0.5, 3, np.bool_(True)],
]


@pytest.mark.parametrize("items", ITEMS, ids=range(len(ITEMS)))
def test_lists_of_all_kinds_come_back_as_they_were(items):
    encoder = Encoder()
    made = json.loads(json.dumps(encoder.many(items, "items")))
    found = Decoder(encoder.arrays, 10**6).many(made)
    assert repr([x.item() if isinstance(x, np.generic) else x for x in items]) == repr(found)


# -- hostile texts ----------------------------------------------------------------------------------------------


def hostile():
    """A posterior with a hostile text wherever a text can be."""
    site = EVIL.replace("/", "").replace("[", "")

    @fk.program
    async def evil(name):
        text = await fk.sample(site, fk.dist.Categorical([0.5, 0.5], values=[EVIL, EVIL + "2"]))
        await fk.factor("G", 1.0)
        fk.deterministic("d", {EVIL: EVIL})
        await fk.factor(site + "G", 1.0)
        return {EVIL: text}

    made = fk.infer(evil(EVIL), fk.SelfConsistency(6, key=str), seed=0)
    chain = replace(made.chains[0], info={"acceptance": 0.01, EVIL: 1.0})
    return replace(made, chains=(chain,), engine=EVIL, model=EVIL, stopped=EVIL, guarantee=EVIL)


def test_no_text_gets_out_of_its_place_on_a_page(tmp_path):
    posterior = hostile()
    others = [replace(posterior, guarantee="unbiased", ranking=ranking) for ranking in ("weight", "reward")]
    others.append(replace(posterior, stopped=None))
    for one in (posterior, *others):
        pages = [one._repr_html_(), fk.plots.genealogy_html(one), fk.plots.tokens_html(one)]
        pages.append(fk.report(one, tmp_path / "r.html").read_text(encoding="utf-8"))
        for page in pages:
            read = Balanced(page)
            assert not {"script", "img"} & set(read.tags)
            assert not any(name.startswith("on") for name, _ in read.attributes)
    assert "alert(1)" in posterior._repr_html_()


def test_no_text_reaches_the_terminal_as_a_command():
    for posterior in (hostile(), replace(hostile(), guarantee="unbiased")):
        assert all(c.isprintable() or c == "\n" for c in repr(posterior))
        assert "\\x1b[31m" in repr(posterior)
        assert "\\u202e" in repr(posterior)


def test_a_guarantee_that_is_none_is_refused(tmp_path):
    head, arrays = parts(POSTERIOR, tmp_path)
    refused(write(tmp_path / "p.fk", {**head, "guarantee": EVIL}, arrays), "guarantee is '<script>")


# -- bombs and pickles ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_bombs_are_refused_before_they_are_unpacked(tmp_path):
    head, arrays = parts(POSTERIOR, tmp_path)
    bomb = write(tmp_path / "bomb.fk", head, {**arrays, "big.npy": np.zeros(30_000_000)})
    assert bomb.stat().st_size < 1_000_000
    nested = write(tmp_path / "deep.fk", "[" * 200_000, arrays)
    many = write(tmp_path / "many.fk", json.dumps(head)[:-1] + ', "more": [' + ",".join(["{}"] * 3_000_000) + "]}", {})
    tracemalloc.start()
    refused(bomb, "unpacks to more than 100,000,000 bytes", limit=10**8)
    refused(nested, limit=10**8)
    refused(many, "JSON needs more than", limit=10**8)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 * 10**7
    whole = write(tmp_path / "ok.fk", head, arrays)
    assert fk.Posterior.load(whole).log_evidence == POSTERIOR.log_evidence
    refused(whole, "larger limit", limit=1000)


def test_arrays_cannot_be_had_twice_and_lists_do_not_grow(tmp_path):
    head, arrays = parts(POSTERIOR, tmp_path)
    again = {"~numbers": ["<f8", 0, [10]]}
    refused(write(tmp_path / "p.fk", {**head, "values": [again] * 10_000}, arrays), "there twice")
    refused(write(tmp_path / "p.fk", {**head, "values": {"~dicts": [[], 10**12, []]}}, arrays), "more than the limit")
    zero = {"~rows": ["<f8", 0, [10**12, 0]]}
    refused(write(tmp_path / "p.fk", {**head, "values": zero}, arrays))


def npy(descr, shape, data=b"", version=b"\x01\x00"):
    header = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY" + version + len(header).to_bytes(2, "little") + header + data


@pytest.mark.parametrize(
    "data",
    [
        npy("<f8", (10**15,)),
        npy("<f8", (-1,)),
        npy("<f8", (2, 2), bytes(32)),
        npy("<f8", (1,), bytes(80)),
        npy("|O", (1,), pickle.dumps([print])),
        npy([("a", "<f8")], (1,), bytes(8)),
        npy("|V8", (1,), bytes(8)),
        npy("<U1000000000", (1,)),
        npy("__import__('os')", (1,)),
        npy("<f8", (1,), bytes(8), b"\x09\x00"),
        b"\x93NUMPY",
        b"",
        pickle.dumps(print),
    ],
    ids=range(13),
)
def test_arrays_with_absurd_headers_are_refused(data, tmp_path):
    head, arrays = parts(POSTERIOR, tmp_path)
    refused(write(tmp_path / "p.fk", head, {**arrays, "evil.npy": data}))


def test_classes_of_others_are_not_made(tmp_path):
    head, arrays = parts(POSTERIOR, tmp_path)
    for kind in ("os:system", "builtins:eval", "feynkac.ppl.program:Program", "feynkac.models.text:os.system"):
        value = {"~object": [kind, "touch /tmp/never"]}
        loaded = fk.Posterior.load(write(tmp_path / "p.fk", {**head, "values": [value] * 12}, arrays))
        assert loaded.values == ("touch /tmp/never",) * 12


@fk.program
async def twice():
    first = await fk.sample("x", fk.dist.Normal(0.0, 1.0))
    await fk.observe("y", fk.dist.Normal(first, 1.0), 1.0)
    pair = await fk.gather(walk("a"), walk("b"), name="x")  # counts as a visit, and leaves no site of its name
    return first, await fk.sample("x", fk.dist.Normal(first, 1.0)), pair[0]["x"]


@pytest.mark.parametrize("data", [{}, {"x": 0.5}, {"x[2]": 0.5}, {"x": 0.5, "y": 0.0, "x.0/x[1]": 2.0}], ids=str)
def test_visits_that_leave_no_site_are_no_damage(data, tmp_path):
    posterior = fk.infer(fk.handlers.do(twice(), data=data), fk.SMC(4, ess_threshold=1.0), seed=0)
    posterior.save(tmp_path / "p.fk")
    loaded = fk.Posterior.load(tmp_path / "p.fk")
    assert loaded.values == posterior.values
    for step, was in zip(loaded.steps, posterior.steps, strict=True):
        assert [[site[:3] for site in sites] for sites in step.choices] == [
            [s[:3] for s in sites] for sites in was.choices
        ]
    assert any(site.kind == "do" for step in loaded.steps for sites in step.choices for site in sites) == bool(data)


# -- what does not go together ----------------------------------------------------------------------------------


def one_chain(change):
    """A change of the first chain."""

    def changed(posterior):
        return replace(posterior, chains=(change(posterior.chains[0]), *posterior.chains[1:]))

    return changed


def one_step(t, **fields):
    def change(chain):
        steps = list(chain.steps)
        steps[t] = replace(steps[t], **{name: make(steps[t]) for name, make in fields.items()})
        return replace(chain, steps=tuple(steps))

    return one_chain(change)


def swapped(chain):
    a, b, c = chain.steps
    return replace(chain, steps=(replace(a, choices=b.choices), replace(b, choices=a.choices), c))


def one_tree(**fields):
    def change(chain):
        return replace(chain, tree=replace(chain.tree, **{name: make(chain.tree) for name, make in fields.items()}))

    return one_chain(change)


def but(array, i, value):
    out = np.array(array)
    out[i] = value
    return out


WRONG = {
    "guarantee": lambda p: replace(p, guarantee="certain"),
    "ranking": lambda p: replace(p, ranking="taste"),
    "engine": lambda p: replace(p, engine=7),
    "stopped": lambda p: replace(p, stopped=["x"]),
    "seed": lambda p: replace(p, seed="0"),
    "cost": lambda p: replace(p, cost=replace(p.cost, tokens_out=-1)),
    "seconds": lambda p: replace(p, cost=replace(p.cost, seconds="long")),
    "no chains": lambda p: replace(p, chains=()),
    "values": lambda p: replace(p, values=p.values[:-1]),
    "NaN weight": one_chain(lambda c: replace(c, log_weights=but(c.log_weights, 0, math.nan))),
    "infinite weight": one_chain(lambda c: replace(c, log_weights=but(c.log_weights, 0, math.inf))),
    "short weights": one_chain(lambda c: replace(c, log_weights=c.log_weights[:-1])),
    "square weights": one_chain(lambda c: replace(c, log_weights=c.log_weights.reshape(2, 3))),
    "complete": one_chain(lambda c: replace(c, complete=np.ones(6))),
    "evidence": one_chain(lambda c: replace(c, log_evidence="high")),
    "answers": one_chain(lambda c: replace(c, answers=("a",))),
    "info": one_chain(lambda c: replace(c, info={"acceptance": "often"})),
    "name in info": one_chain(lambda c: replace(c, info={"<b>": 1.0})),
    "serial": one_chain(lambda c: replace(c, serial=1)),
    "a step less": one_chain(lambda c: replace(c, steps=())),
    "ancestor beyond": one_step(1, ancestors=lambda s: but(s.ancestors, 0, 6)),
    "ancestor before": one_step(2, ancestors=lambda s: but(s.ancestors, 0, -1)),
    "ancestors of floats": one_step(1, ancestors=lambda s: s.ancestors.astype(float)),
    "short step": one_step(2, log_potential=lambda s: s.log_potential[:-1], log_twist=lambda s: np.zeros(7)),
    "NaN potential": one_step(1, log_potential=lambda s: but(s.log_potential, 2, math.nan)),
    "infinite twist": one_step(1, log_twist=lambda s: but(s.log_twist, 2, math.inf)),
    "ESS": one_step(1, ess=lambda s: 7.0),
    "entropy": one_step(1, entropy=lambda s: -1.0),
    "temperature": one_step(1, temperature=lambda s: 0.0),
    "scheme": one_step(1, scheme=lambda s: "<b>"),
    "cost of a step": one_step(1, cost=lambda s: replace(s.cost, tokens_out=-1)),
    "choices": one_step(1, choices=lambda s: s.choices[:-1]),
    "sites of other steps": one_chain(swapped),
    "sites twice": one_step(1, choices=lambda s: [chosen * 2 for chosen in s.choices]),
    "kind of site": one_step(0, choices=lambda s: [(fk.Site("x", 0, "joke", 1),)] * 6),
    "a visit that nobody can have come to": one_step(0, choices=lambda s: [(fk.Site("x", 10**9, "sample", 1.0),)] * 6),
    "log p of a site": one_step(0, choices=lambda s: [(fk.Site("x", 0, "sample", 1, "much"),)] * 6),
}
WRONG_TREES = {
    "parent": one_tree(parent=lambda t: but(t.parent, 1, 5)),
    "root": one_tree(parent=lambda t: but(t.parent, 0, 0)),
    "depth": one_tree(depth=lambda t: but(t.depth, 2, 7)),
    "particle": one_tree(particles=lambda t: but(t.particles, 0, 10**6)),
    "mass": one_tree(log_mass=lambda t: but(t.log_mass, 2, math.nan)),
    "choices": one_tree(choices=lambda t: t.choices[:-1]),
    "done": one_tree(done=lambda t: t.done.astype(float)),
}


@pytest.mark.parametrize(
    ("posterior", "change"),
    [(POSTERIOR, change) for change in WRONG.values()] + [(TREE, change) for change in WRONG_TREES.values()],
    ids=[*WRONG, *(f"tree: {name}" for name in WRONG_TREES)],
)
def test_what_no_run_can_have_made_is_refused(posterior, change, tmp_path):
    fk.Posterior.save(change(posterior), tmp_path / "p.fk")
    refused(tmp_path / "p.fk", r"p\.fk")
    posterior.save(tmp_path / "p.fk")
    use(fk.Posterior.load(tmp_path / "p.fk"))


def test_files_of_earlier_formats_are_refused_by_name(tmp_path):
    head, arrays = parts(POSTERIOR, tmp_path)
    for form in (1, 3, 5):
        refused(write(tmp_path / "p.fk", {**head, "format": form}, arrays), f"has format {form}, and .* reads 4")


# -- fuzz -------------------------------------------------------------------------------------------------------


def loads_or_refuses(path):
    """Load a file, and look at what comes of it; only the named error may be raised."""
    with contextlib.suppress(fk.errors.UnreadablePosterior):
        use(fk.Posterior.load(path, limit=10**7))


@pytest.mark.parametrize("posterior", [POSTERIOR, TREE, CHAIN], ids=["SMC", "tree", "chain"])
def test_damaged_bytes_are_refused_or_harmless(posterior, tmp_path):
    posterior.save(tmp_path / "good.fk")
    whole, rng = (tmp_path / "good.fk").read_bytes(), np.random.default_rng(1)
    bad = tmp_path / "bad.fk"
    for _ in range(40):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), rng.integers(1, 4)):
            damaged[place] = rng.integers(256)
        bad.write_bytes(bytes(damaged[: rng.integers(len(whole))] if rng.random() < 0.3 else damaged))
        loads_or_refuses(bad)


JUNK = [None, True, -1, 10**30, 1e308, math.nan, "", EVIL, [], {}, [[]], {"~array": ["<f8", 0, [3]]}, {"~tuple": 1},
        {"~set": [[1]]}, {"~x": 1}, {"~object": ["feynkac.models.text:Text", {}]}, {"~float": "x"}]  # fmt: skip


def places(data):
    """All places in JSON: what holds it, and where."""
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, part in inner:
        yield data, key
        yield from places(part)


@pytest.mark.parametrize("posterior", [POSTERIOR, TREE, CHAIN], ids=["SMC", "tree", "chain"])
def test_altered_contents_are_refused_or_harmless(posterior, tmp_path):
    """Pieces of the JSON replaced by junk or by each other, and numbers of the arrays by absurd ones."""
    head, arrays = parts(posterior, tmp_path)
    rng = np.random.default_rng(2)
    for _ in range(150):
        one = json.loads(json.dumps(head))
        found = list(places(one))
        holder, key = found[rng.integers(len(found))]
        other, place = found[rng.integers(len(found))]
        holder[key] = JUNK[rng.integers(len(JUNK))] if rng.random() < 0.7 else json.loads(json.dumps(other[place]))
        changed = {name: array.copy() for name, array in arrays.items()}
        if rng.random() < 0.5:
            array = changed[sorted(changed)[rng.integers(len(changed))]]
            absurd = {"f": [math.nan, math.inf, -1e300], "i": [-1, 2**31 - 1, 0], "b": [True], "u": [255]}
            array[rng.integers(len(array))] = rng.choice(absurd[array.dtype.kind])
            one = one if rng.random() < 0.5 else head
        loads_or_refuses(write(tmp_path / "p.fk", one, changed))


def test_a_tree_with_negative_visits_is_refused(tmp_path):
    head, arrays = parts(TREE, tmp_path)
    tree = head["chains"][0]["tree"]
    tree["visits"] = tree["parent"]  # −1 for the root
    refused(write(tmp_path / "p.fk", head, arrays), "fewer visits than none")


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="no such device on this system")
def test_what_is_no_regular_file_is_refused(tmp_path):
    for path in ("/dev/zero", tmp_path):
        with pytest.raises(fk.errors.UnreadablePosterior, match="is no regular file"):
            fk.Posterior.load(path)
