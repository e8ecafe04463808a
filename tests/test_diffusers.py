"""Networks, schedulers and pipelines of diffusers: our steps are theirs, our runs are theirs, the cost is what ran."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import tiny_pipelines as tiny  # noqa: E402
from diffusers import (  # noqa: E402
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

import feynkac as fk  # noqa: E402
from feynkac.diffusion import DiffusersNetwork, Diffusion, Guided, Steering, from_pipeline, from_scheduler  # noqa: E402
from feynkac.diffusion.denoiser import estimate  # noqa: E402
from feynkac.diffusion.gaussian.transitions import transition  # noqa: E402
from feynkac.ppl import keys  # noqa: E402
from feynkac.ppl.cost import Ledger, assign, recording  # noqa: E402

# diffusers is not yet free of what torch and numpy advise against.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

PROMPTS = ["a red cat", "a blue dog"]
SD = {"height": 16, "width": 16, "guidance_scale": 5.0, "negative_prompt": "dog"}
FLUX = {"height": 16, "width": 16, "guidance_scale": 3.5, "max_sequence_length": 16}
WAN = {"height": 16, "width": 16, "num_frames": 5, "guidance_scale": 4.0, "max_sequence_length": 16}
ALL = [("stable_diffusion", SD), ("flux", FLUX), ("wan", WAN)]


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def some_keys(n, seed=0):
    return keys.fold(keys.root(seed), np.arange(n))


def through(model, noise, draws=None):
    """Run a model from given noise; ``draws`` yields the noise of its steps."""
    advance = model.start(some_keys(len(noise)), given=list(noise.numpy()))
    if draws is not None:
        model.noise = lambda keys: draws()
    while not advance.done.all():
        advance = model.advance(advance.state, some_keys(len(noise)))
    return np.stack(model.values(advance.state))


# One step

LINEAR = {"beta_schedule": "linear", "num_train_timesteps": 100}
STEPS = {
    "ddpm": (lambda: DDPMScheduler(**LINEAR, clip_sample=False), 1.0),
    "ddpm, clipped": (lambda: DDPMScheduler(**LINEAR, clip_sample=True), 1.0),
    "ddpm, v": (lambda: DDPMScheduler(**LINEAR, clip_sample=False, prediction_type="v_prediction"), 1.0),
    "ddpm, sample": (lambda: DDPMScheduler(**LINEAR, clip_sample=False, prediction_type="sample"), 1.0),
    "ddim 0": (lambda: DDIMScheduler(**LINEAR, clip_sample=False), 0.0),
    "ddim 1/2": (lambda: DDIMScheduler(**LINEAR, clip_sample=False, set_alpha_to_one=False, steps_offset=1), 0.5),
    "ddim 1": (lambda: DDIMScheduler(**LINEAR, clip_sample=False, timestep_spacing="trailing"), 1.0),
    "ddim, clipped": (lambda: DDIMScheduler(**LINEAR, clip_sample=True), 0.5),
    "flow": (lambda: FlowMatchEulerDiscreteScheduler(), 0.0),
    "flow, shifted": (lambda: FlowMatchEulerDiscreteScheduler(shift=3.0), 0.0),
    "euler": (lambda: EulerDiscreteScheduler(**LINEAR), 0.0),
    "euler, v": (lambda: EulerDiscreteScheduler(**LINEAR, prediction_type="v_prediction"), 0.0),
    "euler, karras": (lambda: EulerDiscreteScheduler(**LINEAR, use_karras_sigmas=True), 0.0),
    "edm": (lambda: EDMEulerScheduler(), 0.0),
    "edm, v": (lambda: EDMEulerScheduler(prediction_type="v_prediction"), 0.0),
    "dpm++ of order 1": (lambda: DPMSolverMultistepScheduler(**LINEAR, solver_order=1), 0.0),
    "unipc, flow, of order 1": (
        lambda: UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, solver_order=1,
                                disable_corrector=[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]), 0.0,
    ),
}  # fmt: skip


def network(x, time):
    """A prediction that depends on place and time."""
    return 0.5 * torch.tanh(x) + 0.1 * torch.sin(time.reshape(-1, 1, 1, 1).float())


@pytest.mark.parametrize("name", sorted(STEPS))
def test_every_step_is_the_schedulers_own(name):
    make, eta = STEPS[name]
    scheduler = make()
    denoiser = DiffusersNetwork(network, scheduler, steps=10)
    model = Diffusion(denoiser, denoiser.schedule, (3, 4, 4), eta=eta, dtype=torch.float64)
    scheduler.set_timesteps(10)
    x = gaussian(2, 3, 4, 4).double() * model.scale
    for i, t in enumerate(scheduler.timesteps):
        level = np.array([i, i])
        data = estimate(
            denoiser.prediction, denoiser(x, model.tensor(model.schedule.time[level]), None), x, *model.levels(level)
        )
        mean, std = transition(x, data, model.levels(level), model.levels(level + 1), eta)
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        noise = {}
        if isinstance(scheduler, DDPMScheduler):
            noise = {"generator": torch.Generator().manual_seed(i)}
        elif isinstance(scheduler, DDIMScheduler):
            noise = {"generator": torch.Generator().manual_seed(i), "eta": eta, "use_clipped_model_output": True}
        theirs = scheduler.step(network(seen, t.reshape(1)), t, x, **noise).prev_sample
        z = torch.randn(x.shape, generator=torch.Generator().manual_seed(i), dtype=x.dtype)
        assert (mean + std * z - theirs).abs().max() < 1e-5 * max(1.0, float(theirs.abs().max()))
        x = theirs.double()
    assert model.schedule.sigma[-1] < 0.02


def test_levels_of_pndm_are_those_of_ddim():
    ours = from_scheduler(PNDMScheduler(**LINEAR, skip_prk_steps=True, set_alpha_to_one=True), 10)
    theirs = from_scheduler(DDIMScheduler(**LINEAR), 10)
    assert np.array_equal(ours.alpha, theirs.alpha)
    assert np.array_equal(ours.time, theirs.time)


def test_a_scheduler_that_is_read_stays_as_it_is():
    scheduler = DDIMScheduler(**LINEAR)
    before = scheduler.timesteps.clone()
    from_scheduler(scheduler, 5)
    assert torch.equal(scheduler.timesteps, before)


@pytest.mark.parametrize(
    ("scheduler", "reason"),
    [
        (lambda: LCMScheduler(), "LCMScheduler.*consistency"),
        (lambda: HeunDiscreteScheduler(), "HeunDiscreteScheduler.*2 times"),
        (lambda: DDIMScheduler(thresholding=True), "thresholding"),
        (lambda: DDIMScheduler(set_alpha_to_one=False), "DDIMScheduler.*goes nowhere"),
        (lambda: FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "invert_sigmas"),
    ],
)
def test_schedulers_that_cannot_be_read_are_refused_by_name(scheduler, reason):
    with pytest.raises(ValueError, match=reason):
        from_scheduler(scheduler(), 4)


# Networks


def test_a_full_run_is_ddpm_pipelines():
    pipe = DDPMPipeline(tiny.unet(), DDPMScheduler(num_train_timesteps=50))
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(batch_size=2, num_inference_steps=5, generator=torch.Generator().manual_seed(3), output_type="np")
    stream = torch.Generator().manual_seed(3)

    def draws():
        return torch.randn(2, 3, 8, 8, generator=stream)

    ours = through(from_pipeline(pipe, steps=5), draws(), draws)
    assert np.abs(ours.transpose(0, 2, 3, 1) - theirs.images).max() < 1e-5


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_full_run_is_ddim_pipelines(eta):
    pipe = DDIMPipeline(tiny.unet(), DDIMScheduler(num_train_timesteps=50, clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        batch_size=2, num_inference_steps=5, eta=eta, generator=torch.Generator().manual_seed(3), output_type="np"
    )
    stream = torch.Generator().manual_seed(3)

    def draws():
        return torch.randn(2, 3, 8, 8, generator=stream)

    ours = through(from_pipeline(pipe, steps=5, eta=eta), draws(), draws)
    assert np.abs(ours.transpose(0, 2, 3, 1) - theirs.images).max() < 1e-5


def test_conditions_reach_the_network_by_name_and_by_place():
    unet = tiny.unet(classes=3)
    denoiser = DiffusersNetwork(unet, DDPMScheduler(clip_sample=False), steps=4)
    x, time, labels = gaussian(2, 3, 8, 8), torch.tensor([999.0, 5.0]), torch.tensor([0, 2])
    with torch.no_grad():
        wanted = unet(x, time, class_labels=labels).sample
        assert torch.equal(denoiser(x, time, {"class_labels": labels}), wanted)
        assert torch.equal(denoiser(x, time, labels), wanted)
        assert not torch.allclose(denoiser(x, time, labels.flip(0)), wanted)

    text = tiny.conditional_unet()
    hidden, x = gaussian(2, 5, 16), gaussian(2, 4, 8, 8)
    with torch.no_grad():
        wanted = text(x, time, encoder_hidden_states=hidden).sample
        by_name = DiffusersNetwork(text, DDPMScheduler(clip_sample=False), steps=4, inputs=("sample", "timestep"))
        assert torch.equal(by_name(x, time, {"encoder_hidden_states": hidden}), wanted)


def test_a_network_that_predicts_variances_is_refused():
    denoiser = DiffusersNetwork(tiny.unet(out=6), DDPMScheduler(), steps=4)
    with pytest.raises(ValueError, match="variance"):
        denoiser(gaussian(1, 3, 8, 8), torch.tensor([5.0]), None)


# Pipelines


@pytest.mark.parametrize(("name", "inputs"), ALL)
@pytest.mark.parametrize("batch", [None, 1])
def test_a_full_run_is_the_pipelines(name, inputs, batch):
    pipe = getattr(tiny, name)()
    inputs = inputs | ({"negative_prompt": "dog"} if name == "wan" else {})
    model = from_pipeline(pipe, PROMPTS, steps=4, eta=0.0, batch=batch, **inputs)
    noise = gaussian(2, *model.shape)
    ours = through(model, noise)
    each = {key: [value] * 2 if key == "negative_prompt" else value for key, value in inputs.items()}
    theirs = pipe(PROMPTS, num_inference_steps=4, latents=noise.clone(), output_type="pt", return_dict=False, **each)
    assert np.abs(ours - theirs[0].numpy()).max() < 1e-5
    assert np.abs(ours[0] - ours[1]).max() > 1e-3


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_a_random_run_is_stable_diffusions(eta):
    pipe = tiny.stable_diffusion()
    model = from_pipeline(pipe, "a cat", steps=4, eta=eta, **SD)
    noise, stream = gaussian(1, *model.shape), torch.Generator().manual_seed(5)
    ours = through(model, noise, lambda: torch.randn(1, 4, 8, 8, generator=stream))
    theirs = pipe(
        "a cat", num_inference_steps=4, eta=eta, latents=noise.clone(), output_type="pt",
        generator=torch.Generator().manual_seed(5), **SD,
    )  # fmt: skip
    assert np.abs(ours - theirs.images.numpy()).max() < 1e-5


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda: EulerDiscreteScheduler(beta_schedule="scaled_linear", steps_offset=1),
        lambda: EulerDiscreteScheduler(beta_schedule="scaled_linear", timestep_spacing="trailing"),
    ],
)
def test_a_scheduler_that_scales_its_input(scheduler):
    scheduler = scheduler()
    pipe = tiny.stable_diffusion(scheduler)
    model = from_pipeline(pipe, "a cat", steps=4, eta=0.0, decode=False, **SD)
    assert model.schedule.alpha.tolist() == [1.0] * 5
    noise = gaussian(1, *model.shape)
    scheduler.set_timesteps(4)
    assert model.scale == pytest.approx(float(scheduler.init_noise_sigma))
    theirs = pipe("a cat", num_inference_steps=4, latents=noise.clone(), output_type="latent", **SD).images
    ours = through(model, noise * model.scale)  # the pipeline scales what it is given
    assert np.abs(ours - theirs.numpy()).max() < 1e-5 * np.abs(ours).max()


def test_wan_with_two_networks_switches_where_the_pipeline_does():
    pipe = tiny.wan(second=True, boundary_ratio=0.7)
    called = []
    for network in (pipe.transformer, pipe.transformer_2):
        network.register_forward_pre_hook(lambda module, args: called.append(module is pipe.transformer))
    inputs = WAN | {"guidance_scale_2": 2.0}
    model = from_pipeline(pipe, "a cat", steps=5, eta=0.0, **inputs)
    noise = gaussian(1, *model.shape)
    ours, mine = through(model, noise), called.copy()
    called.clear()
    theirs = pipe("a cat", num_inference_steps=5, latents=noise.clone(), output_type="pt", return_dict=False, **inputs)
    assert np.abs(ours - theirs[0].numpy()).max() < 1e-5
    assert mine == called
    assert 0 < sum(called) < len(called)


def test_particles_at_several_levels_and_forked_ones():
    model = from_pipeline(tiny.flux(), "a cat", steps=3, eta=1.0, decode=False, **FLUX)
    first = model.start(some_keys(2))
    second = model.advance(first.state, some_keys(2, seed=1))
    mixed = model.concat([first.state, second.state, model.select(first.state, np.array([1]))])
    moved = model.advance(mixed, some_keys(5, seed=2)).state
    alone = model.advance(model.select(second.state, np.array([0])), some_keys(5, seed=2)[[2]]).state
    assert moved.step.tolist() == [1, 1, 2, 2, 1]
    assert torch.allclose(moved.x[2], alone.x[0], atol=1e-6)
    assert torch.allclose(moved.fields["estimate"][2], alone.fields["estimate"][0], atol=1e-5)
    # The same state twice, with the same key: nothing was left behind by the first time.
    again = model.advance(mixed, some_keys(5, seed=2)).state
    assert torch.equal(again.x, moved.x)
    assert not torch.equal(moved.x[1], moved.x[4])  # twins, from keys of their own


@pytest.mark.parametrize(("name", "inputs"), ALL)
def test_embeddings_follow_their_particle(name, inputs):
    pipe = getattr(tiny, name)()
    model = from_pipeline(pipe, [*PROMPTS, "c d", "e f"], steps=3, eta=1.0, decode=False, **inputs)
    start = model.start(some_keys(4)).state
    index = np.array([3, 0, 0, 2])
    chosen = model.select(start, index)
    for held, all_of_them in zip(chosen.condition, model.condition, strict=True):
        assert torch.equal(held, all_of_them[torch.as_tensor(index)])
    moved = model.advance(chosen, some_keys(4, seed=1)).state
    for row, ancestor in enumerate(index):
        prompt = [*PROMPTS, "c d", "e f"][ancestor]
        one = from_pipeline(pipe, prompt, steps=3, eta=1.0, decode=False, **inputs)
        alone = one.start(some_keys(1), given=[start.x[ancestor].numpy()]).state
        alone = one.advance(alone, some_keys(4, seed=1)[[row]]).state
        assert torch.allclose(alone.x[0], moved.x[row], atol=1e-5)
        assert torch.allclose(alone.fields["estimate"][0], moved.fields["estimate"][row], atol=1e-4)


def test_resampling_with_prompts_under_smc():
    """The reward knows the prompt of each particle by its embedding, and only one prompt is worth anything."""
    pipe = tiny.stable_diffusion()
    model = from_pipeline(pipe, [*PROMPTS] * 3, steps=3, eta=1.0, decode=False, **SD)
    wanted = model.condition[0][1]

    class OfPrompt(Diffusion):
        def begin(self, latents):
            log_g = np.array([0.0 if torch.equal(row, wanted) else -30.0 for row in latents.condition[0]])
            return log_g, super().begin(latents)[1]

    mine = OfPrompt(model.denoiser, model.schedule, model.shape, condition=model.condition)
    seen = []
    mine.denoiser = Spy(model.denoiser, seen)
    fk.infer(mine, fk.SMC(6, ess_threshold=1.0), seed=0)
    assert not all(torch.equal(row, wanted) for row in seen[0][0])
    assert all(torch.equal(row, wanted) for row in seen[-1][0])


class Spy:
    def __init__(self, denoiser, seen):
        self.denoiser, self.seen = denoiser, seen
        self.prediction, self.evaluations = denoiser.prediction, denoiser.evaluations

    def __call__(self, x, time, condition):
        self.seen.append(condition)
        return self.denoiser(x, time, condition)


# Cost


@pytest.mark.parametrize(("name", "inputs"), [*ALL, ("stable_diffusion", SD | {"guidance_scale": 1.0})])
def test_the_cost_is_what_the_network_saw(name, inputs):
    pipe = getattr(tiny, name)()
    rows = []
    network = pipe.unet if name == "stable_diffusion" else pipe.transformer
    network.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs.get("hidden_states", args[0] if args else None))),
        with_kwargs=True,
    )
    model = from_pipeline(pipe, "a cat", steps=3, **inputs)
    assert not rows  # what is learned of a pipeline needs no call of its network
    cost = fk.infer(model, fk.SMC(4), seed=0).cost
    assert cost.nfe == sum(rows) == 4 * 3 * (1 if name == "flux" or inputs["guidance_scale"] == 1.0 else 2)
    assert cost.model_calls == len(rows) == (6 if name == "wan" else 3)


def test_the_cost_of_each_problem_is_its_own():
    model = from_pipeline(tiny.stable_diffusion(), "a cat", steps=3, decode=False, **SD)
    ledger = Ledger(2)
    with recording(ledger):
        assign([0, 0, 1])
        first = model.start(some_keys(3))
        model.advance(model.select(first.state, np.array([0, 1, 2])), some_keys(3))
    assert [ledger.of(0).nfe, ledger.of(1).nfe] == [8, 4]


def test_guidance_of_ours_is_the_pipelines():
    pipe = tiny.stable_diffusion()
    theirs = from_pipeline(pipe, "a cat", steps=4, eta=0.0, decode=False, **SD)
    plain = SD | {"guidance_scale": 1.0, "negative_prompt": None}
    model, free = (from_pipeline(pipe, p, steps=4, eta=0.0, decode=False, **plain) for p in ("a cat", "dog"))
    guided = Guided(model.denoiser, SD["guidance_scale"], free.condition)
    ours = Diffusion(guided, model.schedule, model.shape, eta=0.0, condition=model.condition)
    noise = gaussian(2, *model.shape)
    assert np.abs(through(ours, noise) - through(theirs, noise)).max() < 1e-5
    assert fk.infer(ours, fk.ImportanceSampling(3), seed=0).cost.nfe == 3 * 4 * 2


def test_correctors_take_pipelines():
    pipe, plain = tiny.stable_diffusion(), SD | {"guidance_scale": 1.0, "negative_prompt": None}
    model, other = (from_pipeline(pipe, p, steps=4, decode=False, **plain) for p in ("a cat", "dog"))
    posterior = fk.infer(fk.diffusion.guide(model, 1.5, other.condition), fk.SMC(3), seed=0)
    assert posterior.values[0].shape == model.shape
    assert posterior.cost.nfe == 3 * 4 * 2


# Steering


def test_rewards_see_decoded_images_and_gradients_pass_through_the_pipeline():
    shapes = []

    def brightness(images):
        shapes.append(tuple(images.shape[1:]))
        return 50.0 * images.mean((1, 2, 3))

    def best(steering):
        model = from_pipeline(tiny.stable_diffusion(), "a cat", steps=4, steering=steering, **SD)
        posterior = fk.infer(model, fk.SMC(8), seed=0)
        return posterior.expect(lambda image: float(image.mean()))

    plain = best(None)
    assert best(Steering(brightness)) > plain
    assert best(Steering(brightness, gradient=True)) > plain
    assert set(shapes) == {(3, 16, 16)}


# Refusals


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ({"generator": torch.Generator()}, "generator.*seed of infer"),
        ({"num_images_per_prompt": 2}, "num_images_per_prompt"),
        ({"callback_on_step_end": print}, "callback_on_step_end"),
        ({"batch": 0}, "batch"),
        ({"negative_prompt": ["a", "b"]}, "different number"),
    ],
)
def test_inputs_that_cannot_work_are_refused_by_name(inputs, reason):
    with pytest.raises(ValueError, match=reason):
        from_pipeline(tiny.stable_diffusion(), [*PROMPTS, "c"], steps=2, **inputs)


def test_pipelines_that_cannot_work_are_refused_by_name():
    pipe = tiny.stable_diffusion()
    with pytest.raises(ValueError, match="needs a prompt"):
        from_pipeline(pipe, steps=2)
    with pytest.raises(TypeError, match="no argument 'colour'"):
        from_pipeline(pipe, "a cat", steps=2, colour="red")
    other = diffusers.StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    with pytest.raises(ValueError, match=r"StableDiffusionImg2ImgPipeline.*'latents'"):
        from_pipeline(other, "a cat", steps=2)
    with pytest.raises(ValueError, match=r"order|2 times"):
        from_pipeline(tiny.stable_diffusion(HeunDiscreteScheduler()), "a cat", steps=2, **SD)
    ddpm = DDPMPipeline(tiny.unet(), DDPMScheduler())
    with pytest.raises(ValueError, match="no prompt"):
        from_pipeline(ddpm, "a cat")


def test_the_pipeline_stays_as_it_is():
    pipe = tiny.stable_diffusion()
    scheduler, state, config = pipe.scheduler, torch.get_rng_state(), dict(pipe.config)
    model = from_pipeline(pipe, "a cat", steps=2, **SD)
    fk.infer(model, fk.ImportanceSampling(2), seed=0)
    assert pipe.scheduler is scheduler
    assert "encode_prompt" not in vars(pipe)
    assert dict(pipe.config) == config
    assert torch.equal(torch.get_rng_state(), state)
    assert not pipe.unet._forward_pre_hooks


def test_embeddings_may_be_given_instead_of_prompts():
    pipe = tiny.stable_diffusion()
    with torch.no_grad():
        embeds, negative = pipe.encode_prompt(PROMPTS, "cpu", 1, True, negative_prompt=["dog"] * 2)
    inputs = SD | {"negative_prompt": None}
    given = from_pipeline(pipe, prompt_embeds=embeds, negative_prompt_embeds=negative, steps=3, decode=False, **inputs)
    told = from_pipeline(pipe, PROMPTS, steps=3, decode=False, **SD)
    noise = gaussian(2, *told.shape)
    assert np.abs(through(given, noise) - through(told, noise)).max() < 1e-6
    assert math.isfinite(fk.infer(given, fk.SMC(2), seed=0).log_evidence)
