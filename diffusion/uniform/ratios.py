"""Networks of uniform noise as networks of ratios, so that products and powers of their laws can be sampled."""

from __future__ import annotations

from typing import Any

from ..denoiser import Denoiser, Prediction


class Ratios:
    """A network that predicts clean tokens from uniform noise, as one that says what noisy ones are likelier.

    With α = e^{−σ} the chance that a token is clean, and P(x_l | v) that of the token that is there if v is clean, the
    law of the noisy tokens goes up by ρ_l(v) = Σ_{x0} μ_l(x0)·P(v | x0) / P(x_l | x0) where v takes the place of x_l.
    `JumpDiffusion` takes it, so that `anneal`, `product`, `guide` and `tilt` do, and its steps are those of
    `DiscreteDDIM` between the same α.

    Args:
        denoiser: predicts "logits" (n, L, K) of the clean tokens from tokens (n, L), the share of noise 1 − α (n,), and
            the condition, as for `UniformDiffusion`.

    Raises ValueError for a network that predicts no logits, or is one of a canvas, which hears what it said before.

    >>> import feynkac as fk, torch
    >>> from feynkac.diffusion import JumpDiffusion, Network, anneal
    >>> law = torch.tensor([0.7, 0.3])
    >>> def network(tokens, share):
    ...     kept = (1 - share[:, None, None]) * torch.eye(2)[tokens] + share[:, None, None] / 2
    ...     return (law * kept).log()
    >>> cold = anneal(JumpDiffusion(Ratios(Network(network, "logits")), 1, 30, vocabulary=2), 2.0)
    >>> posterior = fk.infer(cold, fk.SMC(2000), seed=0)
    >>> bool(abs(posterior.expect(lambda x: x[0] == 0) - 0.49 / (0.49 + 0.09)) < 0.05)
    True
    """

    prediction: Prediction = "log_ratios"

    def __init__(self, denoiser: Denoiser) -> None:
        if denoiser.prediction != "logits":
            raise ValueError(f'ratios are made of "logits", not of {denoiser.prediction!r}')
        if getattr(denoiser, "canvas", None) is not None:
            raise ValueError("a network with a canvas hears what it said before: its laws have no ratios of their own")
        self.evaluations = denoiser.evaluations
        self._denoiser = denoiser

    @property
    def journal_key(self) -> Any:
        """What tells it from other denoisers in a journal."""
        return ("ratios", self._denoiser)

    def __call__(self, x: Any, time: Any, condition: Any) -> Any:
        """Return log ρ (n, L, K) of tokens (n, L) at noise σ (n,)."""
        alpha = (-time.double()).exp()
        log_mu = self._denoiser(x, (1.0 - alpha).to(time.dtype), condition).log_softmax(-1)
        alpha = alpha[:, None, None]
        clean = _unnoised(log_mu, x, alpha)
        return (alpha * clean + (1.0 - alpha) * clean.mean(-1, keepdim=True)).log()


def _unnoised(log_mu: Any, x: Any, alpha: Any) -> Any:
    """Return μ(v) / P(x | v) (n, L, K), where v is clean with probability ``alpha`` (n, 1, 1), and else any token."""
    size, here = log_mu.shape[-1], x[..., None]
    clean = log_mu.double().exp() * size / (1 - alpha)
    known = clean.gather(-1, here) * (1 - alpha) / (size * alpha + 1 - alpha)
    return clean.scatter(-1, here, known)
