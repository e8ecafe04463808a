"""Diffusion whose noise is tokens drawn anew, by a network of ratios; and products of powers of such models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ...ppl.cost import rows
from ...ppl.keys import Keys
from ...ppl.model import Advance
from ...ppl.values.reals import whole_number
from ..denoiser import Denoiser, predict
from ..generator import Floats, Generator, InvalidOutput, Moved
from ..latents import Latents, replace_fields
from ..products import Factor, Lean, TokenProduct, times
from ..tokens import check_given, check_logits, check_steering, tokens_at
from .step import jump


class Sides(NamedTuple):
    """What ratios at x say of the levels beside its own, and of the data.

    Attributes:
        ahead: (n, L, K) log of q_σ′(x with v)/q_σ(x) at the next level σ′.
        behind: (n, L, K) the same for the level before.
        estimate: (n, L) the likeliest tokens of the data.
    """

    ahead: Any
    behind: Any
    estimate: Any


class JumpDiffusion(Generator):
    """A diffusion of tokens by a jump process: noise draws a token anew, and a network says which way leads back.

    At noise σ a token is as it was with probability α = e^{−σ}, and else any of the K. The network gives, for each
    position and token, by how much likelier the noisy data would be with it: ρ(v) = q_σ(x with v)/q_σ(x) (Lou et al.
    2024, arXiv:2310.16834, SEDD). The reverse process jumps to it at the rate ρ(v)/K.

    Feynman–Kac mapping: x_0 is uniform, M_t a step from σ to σ′ that freezes ρ and undoes the noise of each position
    on its own, G_t what ``steering`` makes of a reward; without one, G = 1. With h(v) = q_σ′(x with v)/q_σ(x), which ρ
    determines if only one position is looked at, and k the chances of the noise from σ′ to σ,

        M_t = Π_l h_l(v)·k(v → x_l)

    The T-step law is not the data's even for exact ratios, but goes to it as 1/T. Ratios that belong to no law at σ
    imply tokens of the data with a negative probability: these get none.

    Args:
        denoiser: predicts "log_ratios" log ρ (n, L, K) from tokens (n, L), σ (n,) and the condition; see `Network`.
            What it says of tokens that are there is not read.
        length: L.
        levels: T, steps by which σ goes from 6 to 0 as a square; or the T + 1 levels, from the noisiest to 0.
        vocabulary: K.
        steering: see `feynkac.diffusion.Steering`; the estimate is the likeliest token at each position. No gradients.
        condition: a batch of one condition, or of as many as there are particles; or None.
        decode: from tokens (n, L) to what `values` returns and rewards see.
        device: where particles are.

    The choice recorded at each step is the tokens after it. Raises ValueError for a network that predicts no
    log-ratios, for levels that do not fall to 0, for sizes out of range and, in a run, for forced choices that are no
    tokens; Unsupported for steering by gradients; InvalidOutput, in a run, for what are no ratios.

    >>> import feynkac as fk
    >>> law = np.array([[0.1, 0.2], [0.3, 0.4]])
    >>> model = fk.diffusion.JumpDiffusion(fk.diffusion.TokenTable(law).ratios(), 2, 20, vocabulary=2)
    >>> posterior = fk.infer(model, fk.ImportanceSampling(2000), seed=0)
    >>> bool(abs(posterior.expect(lambda x: x[0] == x[1]) - 0.5) < 0.05)
    True
    """

    def __init__(
        self,
        denoiser: Denoiser,
        length: int,
        levels: int | Sequence[float],
        *,
        vocabulary: int,
        steering: Any = None,
        condition: Any = None,
        decode: Any = None,
        device: str = "cpu",
    ) -> None:
        whole_number("length", length, 1)
        self.vocabulary = whole_number("vocabulary", vocabulary, 2)
        super().__init__((length,), condition=condition, decode=decode, dtype=torch.long, device=device)
        if denoiser.prediction != "log_ratios":
            raise ValueError(f'a jump process needs a network that predicts "log_ratios", not {denoiser.prediction!r}')
        check_steering(steering)
        self.denoiser, self.steering = denoiser, steering
        self.levels = _levels(levels)

    def __repr__(self) -> str:
        steered = f", {self.steering!r}" if self.steering is not None else ""
        return f"JumpDiffusion({self.shape[0]} positions, {self.steps} steps{steered})"

    @property
    def form(self) -> Any:
        """What models of a product have in common."""
        return self.shape, self.vocabulary, tuple(self.levels.tolist())

    @property
    def steps(self) -> int:
        """T."""
        return len(self.levels) - 1

    def initial(self, keys: Keys) -> Any:
        """Draw tokens, each as likely as the others, for each key, (n, L)."""
        return tokens_at(self.noise(keys)[:, 0], self.vocabulary)

    def initial_log_prob(self, x: Any) -> Floats:
        """Return −L·log K, (n,)."""
        return np.full(len(x), -self.shape[0] * math.log(self.vocabulary))

    def noise(self, keys: Keys) -> Any:
        """Draw uniform numbers for a step, (n, 2, L)."""
        return self.uniforms(keys, 2, *self.shape)

    def move(self, latents: Latents, noise: Any, given: Any) -> Moved:
        """Draw the tokens of unfinished particles at a lower level."""
        made = jump(latents.fields["law"], latents.x, torch.ones_like(latents.x) > 0, noise[:, 0], given)
        log_prob = made.log_prob.cpu().numpy()
        there = Latents(made.x, latents.step + 1, latents.steps, latents.condition)
        log_potential, there = self.arrive(latents, there)
        return Moved(made.x, log_prob, log_prob, log_potential, there.fields)

    def look(self, latents: Latents) -> Latents:
        """Return particles with the log-laws of their tokens at the next level, and the estimate."""
        ahead, _, estimate = self.sides(latents, self.denoiser)
        return replace_fields(latents, law=self.noised(latents) + ahead, estimate=estimate)

    def renoise(self, state: Latents, keys: Keys, depth: int) -> Advance[Latents]:
        """Take particles back to an earlier depth, by the noise between the levels.

        It is no step of the model, so that it has no density; it is weighed as a step is. Raises ValueError for a depth
        that is not before that of every particle.
        """
        self.check_back(state, depth)
        kept = torch.as_tensor(np.exp(self.levels[state.step] - self.levels[depth]), device=self.device)[:, None]
        chance, token = self.noise(keys).unbind(1)
        x = torch.where(chance < kept, state.x, tokens_at(token, self.vocabulary))
        return self.back(state, Latents(x, np.full(len(state), depth), state.steps, state.condition))

    def _given(self, given: Sequence[Any] | None, n: int) -> tuple[Any, Any]:
        check_given(given, self.vocabulary)
        return super()._given(given, n)

    # The noise, and the network that undoes it

    def noised(self, latents: Latents) -> Any:
        """Return log k(v → x_l), (n, L, K): how likely the noise of the next step makes a token what it is."""
        later = np.minimum(latents.step + 1, self.steps)
        kept = torch.as_tensor(np.exp(self.levels[later] - self.levels[latents.step]), device=self.device)
        same = torch.nn.functional.one_hot(latents.x, self.vocabulary)
        return (kept[:, None, None] * same + (1.0 - kept[:, None, None]) / self.vocabulary).log()

    def sides(self, latents: Latents, denoiser: Denoiser) -> Sides:
        """Return what the network says, by one call for all that are not done; zeros for those that are."""
        ahead = torch.zeros(*latents.x.shape, self.vocabulary, dtype=torch.float64, device=self.device)
        behind, estimate = torch.zeros_like(ahead), latents.x.clone()
        going = np.flatnonzero(~latents.done)
        if not len(going):
            return Sides(ahead, behind, estimate)
        part, at = latents.select(going), torch.as_tensor(going, device=self.device)
        sigma, later = self.levels[part.step], self.levels[part.step + 1]
        earlier = np.where(part.step > 0, self.levels[part.step - 1], np.inf)
        with rows(going.tolist()):
            ratios = self.ratios(denoiser, part, sigma, going)
        alpha, less, kept = (
            torch.as_tensor(np.exp(-level), device=self.device)[:, None, None]
            for level in (sigma, later, earlier - sigma)
        )
        mean = ratios.mean(-1, keepdim=True)
        data = ((ratios - mean) / alpha + mean).clamp(min=0.0)  # p(token of the data, all else as it is)/q_σ(x)
        same = torch.nn.functional.one_hot(part.x, self.vocabulary)
        joint = data * (alpha * same + (1.0 - alpha) / self.vocabulary)
        data = data / joint.sum(-1, keepdim=True)
        ahead[at] = (less * data + (1.0 - less) * data.mean(-1, keepdim=True)).log()
        behind[at] = (kept * ratios + (1.0 - kept) * mean).log()
        estimate[at] = joint.argmax(-1)
        return Sides(ahead, behind, estimate)

    def ratios(self, denoiser: Denoiser, part: Latents, sigma: Floats, owners: Any) -> Any:
        """Return ρ (n, L, K), 1 for the tokens that are there. Raises InvalidOutput for what are no ratios."""
        time = torch.as_tensor(sigma, dtype=torch.float32, device=self.device)
        out = check_logits(predict(denoiser, part.x, time, part.condition), part.x, self.vocabulary, "log-ratios")
        ratios = out.double().scatter(-1, part.x[..., None], 0.0).exp()
        bad = ~torch.isfinite(ratios).flatten(1).all(1)
        if bool(bad.any()):
            raise InvalidOutput(f"the network returned no ratios for particle {owners[int(bad.nonzero()[0, 0])]}")
        return ratios


class JumpProduct(TokenProduct, JumpDiffusion):
    """A product of powers of jump processes, tilted by rewards; made by the transforms of `correctors`.

    Feynman–Kac mapping: the process has at each level the law Π q_{i,σ}^β_i · e^{b·φ}, up to a constant, where φ is the
    reward, of the noisy tokens or of the first model's estimate. It jumps to a token v at the rate
    Π ρ_i(v)^β_i·e^{Δ(v)}/K, Δ what v adds to b·φ, and its weight grows by

        b′·φ + Σ_{l,v} [Π ρ_i^β_i·e^Δ − Σ β_i·ρ_i]/K + (Σ β_i − 1)·L·(K − 1)/K

    so that it is a discrete Feynman–Kac corrector, arXiv:2601.10403. These are the limit of its steps, which undo the
    noise of each position on its own, as those of `JumpDiffusion`: from x to y, with its h and k,

        M_t ∝ Π_l k(y_l → x_l)·Π h_{i,l}(y_l)^β_i·e^{Δ(y_l)}
        G_t = Π_l k(y_l → x_l)·Π g_i^β_i·e^{change of b·φ} / M_t

    where g is q_σ′(y)/q_σ(x) as seen from both ends: the geometric mean of what the ratios at x say of y, and those at
    y, which the next step needs anyway, of x. So positions that change together see each other, and the error goes as
    1/T², also that of β = 1; it is 1/T seen from x alone, as in the last step. The posterior's guarantee says
    "discretised". Ẑ estimates Σ Π p_i^β_i·e^{b·r}, as far as all is uniform at the first level.

    Laws that are much sharper than steps are short have weights with heavy tails: see whether Ẑ stays with more steps.

    A step costs an evaluation of each network, and of each reward K − 1 for every position.

    Raises ValueError for powers that are not finite, and InvalidWeight, in a run, where a factor with a negative power
    rules a token out that the others allow, or a reward is not finite.
    """

    guarantee = "discretised"
    renoise = None  # type: ignore[assignment]  # noise that is added again would undo weights that are of one path

    def __init__(self, model: JumpDiffusion, factors: Sequence[Factor], leans: Sequence[Lean] = ()) -> None:
        super().__init__(
            model.denoiser, model.shape[0], model.levels.tolist(), vocabulary=model.vocabulary,
            condition=model.condition, decode=model.decode, device=str(model.device),
        )  # fmt: skip
        self.hold(factors, leans)

    def __repr__(self) -> str:
        return self.described(f"{self.steps} steps")

    def begin(self, latents: Latents) -> tuple[Any, Latents]:
        """Return log G_0 (n,), of the uniform law to Σβ in place of it and the rewards, and the particles."""
        latents = self.look(latents)
        surplus = 1.0 - sum(factor.beta for factor in self.factors)
        return latents.fields["value"] + surplus * self.shape[0] * math.log(self.vocabulary), latents

    def look(self, latents: Latents) -> Latents:
        """Return particles with the product of their laws (not normalised), the first estimate, and its rewards."""
        ahead = behind = torch.zeros((), dtype=torch.float64, device=self.device)
        estimates = {}
        for i, factor in sorted(enumerate(self.factors), key=lambda one: -one[1].beta):
            mine = Latents(latents.x, latents.step, latents.steps, latents.condition[i])
            sides = self.sides(mine, factor.denoiser)
            ahead, behind = times(ahead, sides.ahead, factor.beta), times(behind, sides.behind, factor.beta)
            estimates[i] = sides.estimate
        value = self.value(latents.x, estimates[0], latents.step, np.arange(len(latents)))
        return replace_fields(latents, ahead=ahead, behind=behind, estimate=estimates[0], value=value)

    def move(self, latents: Latents, noise: Any, given: Any) -> Moved:
        """Draw the tokens of unfinished particles at a lower level, and weigh them."""
        everywhere = torch.ones_like(latents.x) > 0
        others = torch.nn.functional.one_hot(latents.x, self.vocabulary) == 0
        gain = self.gains(latents, others)
        made = jump(self.laws(latents) + gain, latents.x, everywhere, noise[:, 0], given)
        there = self.look(Latents(made.x, latents.step + 1, latents.steps, latents.condition))
        change = there.fields["value"] - latents.fields["value"] + self.hindsight(latents, there)
        log_g, log_prob = made.log_weight(gain, everywhere, change).cpu().numpy(), made.log_prob.cpu().numpy()
        return Moved(made.x, log_prob, log_prob, log_g, there.fields)

    def laws(self, latents: Latents) -> Any:
        """Return the log-laws (n, L, K) of tokens at the next level without rewards, not normalised."""
        return self.noised(latents) + latents.fields["ahead"]

    def hindsight(self, latents: Latents, there: Latents) -> Any:
        """Return what a step's log-weight gains by a look back (n,); 0 at the end, where no network is asked."""
        ahead = latents.fields["ahead"].gather(-1, there.x[..., None])
        behind = there.fields["behind"].gather(-1, latents.x[..., None])
        done = torch.as_tensor(there.done, device=self.device)
        return torch.where(done, 0.0, -0.5 * (ahead + behind).sum((1, 2)))


def _levels(levels: int | Sequence[float]) -> Floats:
    """Return levels of noise (T + 1,), as numbers that networks in single precision can tell apart."""
    if isinstance(levels, int | np.integer):
        count = whole_number("levels", levels, 1)
        levels = 6.0 * (1.0 - np.arange(count + 1) / count) ** 2  # type: ignore[assignment]
    found = np.asarray(levels, np.float32).astype(np.float64)
    if found.ndim != 1 or len(found) < 2 or found[-1] != 0 or not (np.diff(found) < 0).all() or found[0] == np.inf:
        raise ValueError(f"levels of noise fall, and end at 0: {np.asarray(levels).tolist()} do not")
    return found
