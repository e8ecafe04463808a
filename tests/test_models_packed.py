"""Packed linear layers: the same function as the plain ones, whatever happens to the weights."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from feynkac.models.local.weights import packed
from feynkac.models.local.weights.packed import PackedLinear, pack
from feynkac.models.testing import tiny_lm

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


@pytest.fixture(autouse=True)
def _no_layer_is_small(monkeypatch):
    monkeypatch.setattr(packed, "_SMALL", 1)


def layer(bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(33, 17, bias=bias)


def apply(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return module(x)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(33,), (1, 33), (2, 5, 33), (40, 33), (0, 33)])
def test_packed_is_the_plain_layer(bias, shape):
    plain, x = layer(bias), torch.randn(shape)
    expected = apply(plain, x)
    pack(plain)
    assert type(plain) is PackedLinear
    torch.testing.assert_close(apply(plain, x), expected, atol=1e-5, rtol=1e-5)


def test_it_does_use_the_packed_weight():
    it = layer()
    pack(it)
    apply(it, torch.ones(2, 33))
    assert it._packed.is_mkldnn


def test_small_products_are_left_to_torch(monkeypatch):
    it = layer()
    pack(it)
    monkeypatch.setattr(packed, "_SMALL", 2 * 33 * 17 + 1)
    expected = apply(it, torch.ones(2, 33))
    assert "_packed" not in it.__dict__
    torch.testing.assert_close(apply(it, torch.ones(3, 33))[:2], expected, atol=1e-5, rtol=1e-5)
    assert it._packed.is_mkldnn


def test_a_changed_weight_is_packed_again():
    it, x = layer(), torch.randn(3, 33)
    pack(it)
    before = apply(it, x)
    with torch.no_grad():
        it.weight.mul_(2.0)
        it.bias.mul_(2.0)
    torch.testing.assert_close(apply(it, x), 2 * before)
    it.load_state_dict(layer().state_dict())
    torch.testing.assert_close(apply(it, x), before)


def test_a_weight_that_is_computed_for_each_call_is_not_mistaken_for_the_last():
    it, x = layer(bias=False), torch.randn(3, 33)
    pack(it)
    place = it.weight.detach().clone().numpy()
    with torch.no_grad():
        once = it(x)
        for scale in (1.0, 2.0, 4.0):
            out = torch.func.functional_call(it, {"weight": torch.from_numpy(place)}, (x,))
            torch.testing.assert_close(out, scale * once, atol=1e-4, rtol=1e-4)
            place *= 2.0  # as where the next product gets the memory of the last


def test_packing_again_sees_what_was_written_through_data():
    it, x = layer(), torch.randn(3, 33)
    pack(it)
    before = apply(it, x)
    it.weight.data *= 2.0
    it.bias.data *= 2.0
    assert pack(it) > 0
    torch.testing.assert_close(apply(it, x), 2 * before)


def test_gradients_autocast_and_other_types_take_the_plain_path():
    it, x = layer(), torch.randn(3, 33)
    pack(it)
    with torch.autocast("cpu", torch.bfloat16):
        assert apply(it, x).dtype == torch.bfloat16
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        apply(it, torch.ones(3, 32))
    it(x).sum().backward()
    torch.testing.assert_close(it.weight.grad, x.sum(0).expand(17, 33))
    assert it.double()(x.double()).dtype == torch.float64


def test_a_copy_does_not_keep_the_weights_of_the_first():
    it, x = layer(), torch.randn(3, 33)
    pack(it)
    before = apply(it, x)
    other = copy.deepcopy(it)
    with torch.no_grad():
        other.weight.zero_()
        other.bias.zero_()
    assert not apply(other, x).any()
    torch.testing.assert_close(apply(it, x), before)
    file = io.BytesIO()
    torch.save(it, file)
    file.seek(0)
    torch.testing.assert_close(apply(torch.load(file, weights_only=False), x), before)


def test_what_is_packed_and_what_is_not(monkeypatch):
    class Own(nn.Linear):
        pass

    model = nn.Sequential(layer(), Own(17, 3), nn.LayerNorm(3), layer().half())
    assert pack(model, False) == 0
    assert type(model[0]) is nn.Linear
    assert pack(model) == 33 * 17 * 4
    assert [type(m).__name__ for m in model] == ["PackedLinear", "Own", "LayerNorm", "Linear"]
    with pytest.raises(ValueError, match="nothing to pack"):
        pack(nn.LayerNorm(3), True)
    monkeypatch.setattr(packed, "_MOST_BYTES", 100)
    large = layer()
    assert pack(large) == 0
    assert type(large) is nn.Linear
    assert pack(large, True) > 0


def test_weights_made_in_inference_mode_are_left_alone():
    """They have no version, by which a change would be seen."""
    with torch.inference_mode():
        made = layer()
    assert pack(made) == 0
    assert apply(made, torch.ones(2, 33)).shape == (2, 17)


def test_a_language_model_keeps_its_law():
    plain, fast = tiny_lm(packed=False), tiny_lm(packed=True)
    for prompt in ("Once upon", "The river ran to the sea and"):
        a, b = (lm.next_log_probs(lm.prompt(prompt)) for lm in (plain, fast))
        assert abs(a - b).max() < 1e-5
    kinds = {type(m) for m in fast.model.modules() if isinstance(m, nn.Linear)}
    assert kinds == {PackedLinear}
