"""Published methods as programs.

HGF       the hierarchical Gaussian filter: its generative model, and its updates in closed form

from feynkac.models.programs import HGF
model = HGF(omega=(-2.0, -2.0), precision=4.0)
posterior = fk.infer(model.program(inputs), fk.SMC(1000), seed=0)
beliefs = model.filter(inputs)
"""

from __future__ import annotations

from .hgf import HGF, Beliefs

__all__ = ["HGF", "Beliefs"]
