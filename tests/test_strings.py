"""The masked diffusion of strings that ships is near the law that it learned, and steers like any other."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import feynkac as fk  # noqa: E402
from feynkac.diffusion import AtRandom, InOrder, Steering, string_law, strings, tilt  # noqa: E402
from feynkac.diffusion.shipped.store import load, record  # noqa: E402
from feynkac.diffusion.shipped.strings import spelled  # noqa: E402


def left_to_right():
    """Return the law of the network from left to right, exactly."""
    texts, _ = string_law()
    tokens, q = torch.from_numpy(texts), torch.ones(len(texts), dtype=torch.float64)
    for i in range(6):
        seen = tokens.clone()
        seen[:, i:] = 4
        law = load("strings")(seen)[:, i, :4].double().log_softmax(-1).exp()
        q *= law.gather(1, tokens[:, i : i + 1])[:, 0]
    return q.numpy()


def closes(texts):
    return np.array([text[0] == text[-1] for text in texts])


def test_the_law_is_what_it_is_said_to_be():
    texts, p = string_law()
    assert len(texts) == 4096
    assert p.sum() == pytest.approx(1)
    assert -(p @ np.log(p)) == pytest.approx(7.324813201334935)
    assert p[texts[:, 0] == texts[:, -1]].sum() == pytest.approx(0.487996286621041)
    assert p[spelled(torch.from_numpy(texts)).index("ababab")] == pytest.approx(0.005397353138)


def test_the_network_is_as_near_as_its_record_says():
    _, p = string_law()
    assert 0.5 * np.abs(left_to_right() - p).sum() < 0.06
    assert record("strings")["measured"]["total_variation"] < 0.03


def test_draws_have_the_networks_law():
    texts, _ = string_law()
    exact = left_to_right()[texts[:, 0] == texts[:, -1]].sum()
    found = closes(fk.infer(strings(InOrder("left")), fk.ImportanceSampling(4000), seed=0).values).mean()
    assert abs(found - exact) < 4.265 * np.sqrt(exact * (1 - exact) / 4000)  # 2e-5


@pytest.mark.slow
def test_evidence_of_steered_and_tilted_strings_is_exact():
    texts, _ = string_law()
    spelt = spelled(torch.from_numpy(texts))

    def many_d(some):
        return [0.8 * text.count("d") for text in some]

    exact = left_to_right() @ np.exp(many_d(spelt))
    for model in (
        strings(InOrder("left"), steering=Steering(many_d)),
        tilt(strings(InOrder("left")), many_d, of="estimate"),
    ):
        found = np.exp([fk.infer(model, fk.SMC(20), seed=seed).log_evidence for seed in range(40)])
        assert abs(found.mean() - exact) < 4.265 * found.std(ddof=1) / np.sqrt(40)  # 2e-5


def test_gaps_are_filled_and_templates_are_checked():
    found = fk.infer(strings(AtRandom(2), "ab__ba"), fk.ImportanceSampling(20), seed=0)
    assert all(text[:2] == "ab" and text[-2:] == "ba" and set(text) <= set("abcd") for text in found.values)
    with pytest.raises(ValueError, match="6 of the letters abcd"):
        strings(template="hello_")
