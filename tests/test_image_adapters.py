"""Janus and Emu3 of transformers, tiny and random: our laws and pictures are theirs."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
hf = pytest.importorskip("transformers")

import feynkac as fk  # noqa: E402
from feynkac.models.images import image_model  # noqa: E402
from feynkac.models.testing import tiny_lm, tiny_tokenizer  # noqa: E402
from feynkac.ppl.errors import Unsupported  # noqa: E402

TEXT = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3,
}  # fmt: skip
PROMPT, NONE, STRING = [5, 6, 7], [5, 9, 7], [3, 0, 11, 5]


def janus():
    vision = hf.JanusVisionConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8, projection_dim=32
    )
    vq = hf.JanusVQVAEConfig(
        embed_dim=8, num_embeddings=12, base_channels=32, channel_multiplier=[1, 1], num_res_blocks=1, num_patches=2,
        projection_dim=32, image_token_embed_dim=32, latent_channels=16, num_hidden_layers=2,
    )  # fmt: skip
    text = hf.LlamaConfig(**TEXT)
    parts = {"text_config": text, "vision_config": vision, "vq_config": vq}
    config = hf.JanusConfig(**{name: part.to_dict() for name, part in parts.items()})
    return made(hf.JanusForConditionalGeneration, config)


def emu3():
    names = {"<image>": 290, "<|extra_200|>": 280} | {f"<|visual token {i:06d}|>": 261 - i for i in range(12)}
    vq = hf.Emu3VQVAEConfig(
        codebook_size=12, embed_dim=8, latent_channels=8, base_channels=32, channel_multiplier=[1, 1],
        num_res_blocks=1, hidden_size=32, num_attention_heads=1, temporal_downsample_factor=1, attn_resolutions=[],
    )  # fmt: skip
    text = hf.Emu3TextConfig(**TEXT, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    config = hf.Emu3Config(vq_config=vq.to_dict(), text_config=text.to_dict(), vocabulary_map=names)
    return made(hf.Emu3ForConditionalGeneration, config)


def made(kind, config):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(config).eval()
        for name, weight in model.named_parameters():
            if "generation" in name or "head" in name:
                torch.nn.init.normal_(weight, std=0.3)
    return model


def law_of_janus(model, prompt):
    seen = model.get_input_embeddings()(torch.tensor([prompt]))
    drawn = model.prepare_embeddings_for_image_generation(torch.tensor([STRING[:-1]]))
    hidden = model.model.language_model(inputs_embeds=torch.cat([seen, drawn], 1)).last_hidden_state
    return chosen(model.model.generation_head(hidden[0, len(prompt) - 1 :]), [0, 1, 2, 3])


def law_of_emu3(model, prompt):
    a, b, c, d = (261 - v for v in STRING)
    logits = model(input_ids=torch.tensor([[*prompt, a, b, 280, c, d]])).logits[0, len(prompt) - 1 :]
    return chosen(logits[:, [261 - i for i in range(12)]], [0, 1, 3, 4])


def chosen(logits, at):
    return float(sum(logits[i].double().log_softmax(-1)[v] for i, v in zip(at, STRING)))


@pytest.mark.parametrize(("make", "law_of"), [(janus, law_of_janus), (emu3, law_of_emu3)])
def test_laws_and_pictures_are_those_of_the_model(make, law_of):
    model = make()
    images = image_model(model, tiny_tokenizer(), PROMPT, (2, 2), unconditional=NONE, guidance=1.5, way="exact")
    state, total, key = images.start(fk.keys.root(0)).state, 0.0, fk.keys.root(0)
    for row in (STRING[:2], STRING[2:]):
        step = images.advance(state, key, [np.array(row)])
        state, total = step.state, total + step.log_prob[0] + step.log_potential[0]
    with torch.no_grad():
        own, none = law_of(model, PROMPT), law_of(model, NONE)
        assert abs(own - none) > 0.05
        assert total == pytest.approx(2.5 * own - 1.5 * none, abs=1e-4)
        if make is janus:
            picture = model.decode_image_tokens(torch.tensor([STRING])).permute(0, 3, 1, 2)
        else:
            ids = [261 - v for v in STRING]
            picture = model.model.decode_image_tokens(torch.tensor([[*ids[:2], 280, *ids[2:], 280, 1, 1, 1]]), 2, 2)
    (value,) = images.values(state)
    assert value.tokens.tolist() == STRING
    np.testing.assert_allclose(value, picture[0].numpy(), atol=1e-4)


def test_another_model_is_refused_by_name():
    lm = tiny_lm()
    with pytest.raises(Unsupported, match="not a LlamaForCausalLM: for another model"):
        image_model(lm.model, lm.tokenizer, [3], (2, 2))
