"""Steps with uniform noise are those of diffusers' schedulers, and DiffusionGemma writes as transformers has it."""

import itertools
import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
diffusers = pytest.importorskip("diffusers")

from canvases import tiny  # noqa: E402
from scipy import stats  # noqa: E402
from transformers.models.diffusion_gemma.generation_diffusion_gemma import EntropyBoundSamplerConfig  # noqa: E402

import feynkac as fk  # noqa: E402
from feynkac.diffusion import (  # noqa: E402
    BlockRefinement,
    CanvasNetwork,
    DiscreteDDIM,
    EntropyBound,
    Network,
    UniformDiffusion,
)
from feynkac.ppl.errors import Unsupported  # noqa: E402

LOGITS = torch.tensor([[0.2, 1.1, -0.3], [0.9, -0.5, 0.4], [-1.0, 0.3, 1.3], [0.1, 0.0, -0.2]], dtype=torch.float64)
N = 20_000
PROMPT = [3, 1, 4]


def scheduler_step(rule, at, x, committed, temperature):
    """Many draws of the step of diffusers, as our choices."""
    x, logits = torch.tensor([x]).expand(N, -1).clone(), LOGITS.expand(N, -1, -1)
    options = {"generator": torch.Generator().manual_seed(1)}
    if isinstance(rule, DiscreteDDIM):
        scheduler = diffusers.DiscreteDDIMScheduler(rule.count)
        return scheduler.step(logits, at, x, temperature=temperature, **options).prev_sample
    if isinstance(rule, EntropyBound):
        scheduler = diffusers.EntropyBoundScheduler(rule.bound, rule.hottest, rule.coldest, rule.count)
        return scheduler.step(logits, at, x, **options).prev_sample
    scheduler = diffusers.BlockRefinementScheduler(4, rule.count, rule.threshold)
    scheduler.set_timesteps(rule.count)
    scheduler._committed = torch.tensor([committed]).expand(N, -1)
    found = scheduler.step(
        logits, at, x, temperature=temperature, sampling_method="greedy" if rule.greedy else "multinomial", **options
    ).prev_sample
    return torch.where(scheduler._committed, found, ~found)


@pytest.mark.parametrize(
    ("rule", "at", "temperature"),
    [
        (DiscreteDDIM(4), 1, 1.0), (DiscreteDDIM(4), 0, 0.7), (DiscreteDDIM(4), 3, 1.0), (DiscreteDDIM(3), 2, 1.4),
        (EntropyBound(4, 1.0, settle=False), 1, 1.0), (EntropyBound(4, 0.5, 1.2, 0.5, settle=False), 3, 1.0),
        (BlockRefinement(4, 0.95), 0, 1.0), (BlockRefinement(4, 0.45), 2, 1.0), (BlockRefinement(3, 0.55), 1, 0.7),
        (BlockRefinement(2, 0.45, greedy=True), 1, 1.0),
    ],
    ids=str,
)  # fmt: skip
def test_a_step_has_the_law_of_the_scheduler(rule, at, temperature):
    committed = [False, False, rule.commits and at > 0, False]
    x = [0, 2, 1, 0]
    made = UniformDiffusion(
        Network(lambda x, share: LOGITS.expand(len(x), -1, -1), "logits"), 4, rule, vocabulary=3,
        temperature=temperature,
    )  # fmt: skip
    after, count = np.unique(scheduler_step(rule, at, x, committed, temperature), axis=0, return_counts=True)
    begin = np.array([t if not rule.commits or done else ~t for t, done in zip(x, committed)])
    state = made.start(np.zeros(1, np.uint64), [np.where(begin < 0, begin, ~begin) if rule.commits else begin]).state
    state = type(state)(torch.tensor(begin[None]), np.array([at]), state.steps, None, state.fields)
    state = made.look(state)
    moved = made.advance(made.select(state, np.zeros(len(after), int)), np.zeros(len(after), np.uint64), list(after))
    expected = np.exp(moved.log_prob) * N
    assert expected.sum() > 0.95 * N
    often = expected > 5
    seen, expected = (np.append(some[often], N - some[often].sum()) for some in (count, expected))
    assert (seen[expected < 1e-6] == 0).all()
    seen, expected = seen[expected > 1e-6], expected[expected > 1e-6]
    # 10 tests at 1e-6: equal laws fail with probability 1e-5
    assert len(seen) == 1 or stats.chi2.sf(((seen - expected) ** 2 / expected).sum(), len(seen) - 1) > 1e-6


@pytest.fixture(scope="module")
def gemma():
    return tiny(vocabulary=5, canvas=2, window=4)


def keys(n, seed=0):
    return fk.keys.fold(fk.keys.root(seed), np.arange(n))


def direct(gemma, text, canvas, heard=None):
    """The logits of a canvas after all that comes before it, by one call of the whole model."""
    with torch.no_grad():
        cache = transformers.DynamicCache(config=gemma.config.get_text_config(decoder=True))
        ids = torch.tensor([text])
        return gemma(
            input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=cache, decoder_input_ids=canvas[None],
            self_conditioning_logits=heard,
        ).logits[0]  # fmt: skip


def test_a_network_hears_what_it_said_and_reads_what_is_finished(gemma):
    rule = EntropyBound(3, 1.0)
    made = UniformDiffusion(CanvasNetwork(gemma, PROMPT), 6, rule, vocabulary=5, temperature=0.8)
    state = made.start(keys(4)).state
    for step in range(made.steps):
        block, at = divmod(step, 3)
        for i in range(4):
            x = state.x[i]
            heard = said[i][None] if at else None  # noqa: F821
            logits = direct(gemma, PROMPT + x[: 2 * block].tolist(), x[2 * block : 2 * block + 2], heard)
            mine = (logits / rule.temperature(np.array([at]))[0]).log_softmax(-1)
            assert torch.allclose(state.fields["said"][i], mine, atol=1e-4)
            assert torch.allclose(state.fields["log_mu"][i], (mine / 0.8).log_softmax(-1), atol=1e-4)
        said = state.fields["said"]
        order = np.array([2, 0, 0, 3])
        state = made.advance(made.select(state, order), keys(4, step + 1)).state
        said = said[order]
    assert state.done.all()


def test_particles_share_caches(gemma):
    network = CanvasNetwork(gemma, PROMPT)
    made = UniformDiffusion(network, 4, EntropyBound(2), vocabulary=5)
    found = fk.infer(made, fk.ImportanceSampling(40), seed=0)
    texts = len({tuple(x[:2]) for x in found.values})
    assert found.cost.tokens_in == len(PROMPT) + 2 * texts  # the prompt once, each canvas once
    assert (found.cost.nfe, found.cost.model_calls) == (160, 4 + 2)


def test_particles_at_canvases_of_their_own_share_a_call(gemma):
    made = UniformDiffusion(CanvasNetwork(gemma, PROMPT), 6, BlockRefinement(2), vocabulary=5)
    states = [made.start(keys(2)).state]
    for step in range(made.steps):
        states.append(made.advance(states[-1], keys(2, step + 1)).state)
    several = [3, 0, 5, 1, 4, 2]
    moved = made.advance(made.concat([states[i].select([1]) for i in several]), keys(6, 9)).state
    for row, i in enumerate(several):
        fresh = UniformDiffusion(CanvasNetwork(gemma, PROMPT), 6, BlockRefinement(2), vocabulary=5)
        alone = fresh.advance(states[i].select([1]), keys(6, 9)[[row]]).state
        assert torch.equal(moved.x[row], alone.x[0])
        assert torch.allclose(moved.fields["log_mu"][row], alone.fields["log_mu"][0], atol=1e-5)


def test_a_network_reads_texts_that_it_has_not_read_before_and_a_journal_keeps_what_it_says(gemma, tmp_path):
    used, calls = CanvasNetwork(gemma, PROMPT), []

    def values(network, seed, **options):
        made = UniformDiffusion(network, 4, EntropyBound(2), vocabulary=5)
        return np.array(fk.infer(made, fk.SMC(4), seed=seed, **options).values)

    hook = gemma.register_forward_pre_hook(lambda *_: calls.append(1))
    for seed in range(3):
        fresh = values(CanvasNetwork(gemma, PROMPT), seed)
        np.testing.assert_array_equal(values(used, seed), fresh)
        np.testing.assert_array_equal(values(used, seed, journal=tmp_path / f"{seed}"), fresh)
        before = len(calls)
        np.testing.assert_array_equal(values(used, seed, journal=tmp_path / f"{seed}"), fresh)
        assert (before, len(calls)) == (12 * (seed + 1), 12 * (seed + 1))
    hook.remove()


def test_a_prompt_is_read_as_processors_give_it(gemma):
    given = {"input_ids": torch.tensor([PROMPT]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    one, other = (
        UniformDiffusion(network, 2, EntropyBound(2), vocabulary=5).start(keys(3)).state.fields["log_mu"]
        for network in (CanvasNetwork(gemma, given.pop("input_ids"), **given), CanvasNetwork(gemma, PROMPT))
    )
    assert torch.equal(one, other)


def test_caches_last_as_long_as_the_run_and_the_model_as_it_is():
    model = tiny(vocabulary=5, canvas=2, window=4)
    network = CanvasNetwork(model, PROMPT)

    def run(network):
        return fk.infer(UniformDiffusion(network, 4, EntropyBound(2), vocabulary=5), fk.SMC(4), seed=0)

    def laws(network):
        made = UniformDiffusion(network, 2, EntropyBound(2), vocabulary=5)
        return made.start(keys(3)).state.fields["log_mu"]

    costs = [run(network).cost for _ in range(2)]
    assert costs[0].tokens_in == costs[1].tokens_in > 0
    assert costs[0].model_calls == costs[1].model_calls
    before = laws(network)
    with torch.no_grad():
        for weight in model.model.encoder.parameters():
            weight.mul_(1.3)
    after = laws(network)
    assert (after - before).abs().max() > 0.1
    assert torch.equal(after, laws(CanvasNetwork(model, PROMPT)))
    assert torch.equal(after, laws(pickle.loads(pickle.dumps(network))))


def test_a_path_that_hears_its_past_is_not_smoothed_step_by_step(gemma):
    made = UniformDiffusion(CanvasNetwork(gemma, PROMPT), 2, DiscreteDDIM(3), vocabulary=5)
    posterior = fk.infer(made, fk.SMC(20), seed=0)
    with pytest.raises(Unsupported, match="order"):
        fk.smooth(posterior, 40, seed=1, model=made)


def test_texts_are_those_that_transformers_generates(gemma):
    """25 outcomes of two tokens, by all paths of ours against 20,000 of theirs; a false alarm in 1e-5."""
    bound, steps = 0.9, 2
    made = UniformDiffusion(CanvasNetwork(gemma, PROMPT), 2, EntropyBound(steps, bound), vocabulary=5)
    states = np.array(list(itertools.product(range(5), repeat=2)))
    start = made.start(keys(25), [*states])
    law = np.zeros(25)
    index = np.repeat(np.arange(25), 25)
    moved = made.advance(made.select(start.state, index), keys(625), [*states] * 25)
    ended = made.advance(moved.state, keys(625, 1))
    assert (ended.log_prob == 0).all()
    np.add.at(law, ended.state.x.numpy() @ [5, 1], np.exp(start.log_prob[index] + moved.log_prob))
    assert law.sum() == pytest.approx(1, abs=1e-5)
    assert (law > 0.01).sum() > 3
    gemma.generation_config.eos_token_id = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = gemma.generate(
            torch.tensor([PROMPT]).expand(N, -1), max_new_tokens=2, max_denoising_steps=steps,
            sampler_config=EntropyBoundSamplerConfig(bound), confidence_threshold=1e-12,
        ).sequences[:, 3:]  # fmt: skip
    seen = np.bincount(found.numpy() @ [5, 1], minlength=25)
    assert seen[law < 1e-9].sum() == 0
    seen, expected = seen[law > 1e-9], law[law > 1e-9] * N
    rest = expected < 5
    if rest.any():
        seen, expected = np.append(seen[~rest], seen[rest].sum()), np.append(expected[~rest], expected[rest].sum())
    assert stats.chi2.sf(((seen - expected) ** 2 / expected).sum(), len(seen) - 1) > 1e-5


def test_models_are_loaded_as_transformers_does(gemma, tmp_path):
    gemma.save_pretrained(tmp_path)
    again = CanvasNetwork.from_pretrained(str(tmp_path), PROMPT, device="cpu")
    one, other = (
        UniformDiffusion(network, 4, DiscreteDDIM(2), vocabulary=5).start(keys(3)).state.fields["log_mu"]
        for network in (again, CanvasNetwork(gemma, PROMPT))
    )
    assert torch.allclose(one, other, atol=1e-6)


def test_what_a_canvas_cannot_do_is_refused(gemma):
    network = CanvasNetwork(gemma, PROMPT)
    with pytest.raises(ValueError, match="that of the network is 2: 2 does not fit"):
        UniformDiffusion(network, 5, DiscreteDDIM(2), vocabulary=5)
    with pytest.raises(ValueError, match="4 does not fit"):
        UniformDiffusion(network, 4, DiscreteDDIM(2), vocabulary=5, block=4)
    with pytest.raises(Unsupported, match="its prompt itself"):
        UniformDiffusion(network, 4, DiscreteDDIM(2), vocabulary=5, condition=torch.zeros(1))
    one = CanvasNetwork(gemma, torch.tensor([PROMPT], dtype=torch.uint8))
    assert one.prompt.tolist() == PROMPT
    with pytest.raises(ValueError, match="without padding"):
        CanvasNetwork(gemma, PROMPT, attention_mask=torch.tensor([[0, 1, 1]]))
    for prompt in ([], 3, [PROMPT, PROMPT], [0.5], [True], [5], [-1], "abc", {"input_ids": PROMPT}):
        with pytest.raises(ValueError, match="at least one of the 5"):
            CanvasNetwork(gemma, prompt)
