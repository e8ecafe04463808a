"""A tiny DiffusionGemma with random weights."""

import transformers as hf
from random_models import random_weights


def tiny(vocabulary=40, canvas=8, window=16):
    """Return the model, whose weights are large enough for a test to notice a wrong one."""
    text = hf.DiffusionGemmaTextConfig(
        vocab_size=vocabulary, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, global_head_dim=8, sliding_window=window, num_experts=2, top_k_experts=1,
        layer_types=["sliding_attention", "full_attention"], moe_intermediate_size=8,
    )  # fmt: skip
    vision = hf.Gemma4VisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1,
        head_dim=8,
    )  # fmt: skip
    config = hf.DiffusionGemmaConfig(
        text_config=text, vision_config=vision, canvas_length=canvas, image_token_id=vocabulary - 1,
        boi_token_id=vocabulary - 2, eoi_token_id=vocabulary - 3,
    )  # fmt: skip
    make = hf.DiffusionGemmaForBlockDiffusion
    return random_weights(lambda: make(config), std=0.3).eval().requires_grad_(False)
