"""NumPyro's laws of numbers, as programs make them: the same objects, without NumPyro's constructors."""

import jax
import numpy as np
import numpyro
import numpyro.distributions as nd
import pytest

import feynkac as fk
from feynkac.ppl.distributions import quick_numpyro
from feynkac.ppl.distributions.adapters import as_kernel
from feynkac.ppl.sites import Running

quick_numpyro.install()


def made(cls, *args, **kwargs):
    """Return what a constructor gives within a program's code, and elsewhere."""
    plain = cls(*args, **kwargs)

    class Fiber:
        traced = False

    before, Running.fiber = Running.fiber, Fiber
    try:
        return cls(*args, **kwargs), plain
    finally:
        Running.fiber = before


@pytest.mark.parametrize("cls", list(quick_numpyro.forms), ids=lambda cls: cls.__name__)
def test_the_object_is_numpyros(cls):
    form = quick_numpyro.forms[cls]
    args = [0.25, np.float64(0.5)][: len(form.names)]
    by_name = dict(zip(form.names, args))
    for given, named in ((args, {}), ([], by_name), (args[:1], dict(list(by_name.items())[1:]))):
        quick, plain = made(cls, *given, **named)
        assert type(quick) is type(plain)
        assert vars(quick) == vars(plain)
        assert jax.tree.structure(quick) == jax.tree.structure(plain)
        leaves, structure = quick_numpyro.flat(quick)
        assert (leaves, structure) == jax.tree.flatten(plain)
        assert as_kernel(quick).batch_key == as_kernel(plain).batch_key
        assert as_kernel(quick).fingerprint == as_kernel(plain).fingerprint
        key = jax.random.key(0)
        assert quick.sample(key) == plain.sample(key)


def test_what_is_no_law_of_numbers_is_numpyros_own():
    for quick, plain in (
        made(nd.Normal, np.zeros(3), 1.0),
        made(nd.Normal, 0.0, 1.0, validate_args=True),
        made(nd.Normal),
        made(nd.HalfNormal, 2.0),
        made(nd.Poisson, 2.0, is_sparse=True),
    ):
        assert vars(quick).keys() == vars(plain).keys()
        assert jax.tree.structure(quick) == jax.tree.structure(plain)
    for wrong in (lambda: made(nd.Normal, 0.0, 1.0, 2.0, 3.0), lambda: made(nd.Normal, 0.0, loc=1.0)):
        with pytest.raises(TypeError):
            wrong()
    remembers, _ = made(nd.BernoulliLogits, 0.3)
    assert remembers.probs is not None
    assert as_kernel(remembers).sample_batch([as_kernel(remembers)], np.zeros(1, np.uint64))


@fk.program
async def walk(scale):
    x = await fk.sample("x", nd.Normal(0.0, 1.0))
    y = await fk.sample("y", nd.Normal(x, scale=scale))
    await fk.observe("z", nd.Normal(y, 0.5), 0.7)
    return y


def test_parameters_are_checked_by_numpyro():
    with pytest.raises(ValueError, match="Normal distribution got invalid scale parameter"):
        fk.infer(walk(-1.0), fk.SMC(10), seed=0)
    with numpyro.validation_enabled(False):  # its business, too
        quick, plain = made(nd.Normal, 0.0, -1.0)
    assert vars(quick) == vars(plain)


def test_a_program_makes_its_laws_without_numpyros_constructor(monkeypatch):
    counted = []
    whole = nd.Normal.__init__

    def init(self, *args, **kwargs):
        counted.append(args)
        whole(self, *args, **kwargs)

    fast = fk.infer(walk(1.5), fk.SMC(50), seed=0)
    monkeypatch.setattr(nd.Normal, "__init__", init)
    again = fk.infer(walk(1.5), fk.SMC(50), seed=0)
    assert not counted
    monkeypatch.setattr(quick_numpyro, "forms", {})
    slow = fk.infer(walk(1.5), fk.SMC(50), seed=0)
    assert len(counted) >= 150
    assert fast.values == again.values == slow.values
    assert fast.log_evidence == slow.log_evidence
