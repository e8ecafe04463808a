"""Every family of models that transformers knows as text models, made small, and a verdict on each.

``docs/families.py`` makes a page of the verdicts, and the tests compare it with what they find.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import numpy as np
import torch
import transformers
from random_models import draw, fresh_log_prob, random_weights
from test_models_encdec import fresh_log_prob as fresh_log_prob_of_response
from transformers import CONFIG_MAPPING
from transformers.models.auto import modeling_auto

from feynkac.models.testing import tiny_lm
from feynkac.ppl.errors import Unsupported

VOCAB, CONTEXT, WINDOW = 300, 48, 6
MOST_PARAMETERS = 50_000_000

# The lists behind AutoModelForCausalLM and AutoModelForSeq2SeqLM.
FAMILIES = {
    "causal": dict(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
    "encoder–decoder": dict(modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES),
}

NOT_TRIED = {
    "blt": "its patcher, a model of its own, stays large in any config",
    "gemma3n": "its vision tower needs timm (its text model is tried as gemma3n_text)",
    "gemma4_assistant": "a drafter: it reads the cache of another model",
    "gemma4_unified_assistant": "a drafter: it reads the cache of another model",
    "nemo_speechlm": "its parts cannot be made small one by one",
    "vibevoice_asr": "its audio tower stays large in any config",
}

_SIZES = {  # what a setting becomes: the first pattern that its whole name matches
    r"((src|tgt|original|decoder)_)?vocab_size(_per_layer_input)?|n_words": VOCAB,
    r"hidden_size|d_model|n_embd|dim|emb_dim|embedding_size|hidden_dim|word_embed_proj_dim|encoder_hidden_size": 32,
    r"((num|n|encoder|decoder|num_encoder|num_decoder|num_hidden)_)(hidden_)?layers?": 2,
    r"(num|n|encoder|decoder|num_encoder|num_decoder)_(attention_)?heads?(_linear)?": 4,
    r"num_query_groups": 4,
    r"(.*_)?intermediate_size|ffn_dim|d_ff|d_inner|n_inner|(en|de)coder_ffn_dim|ffn_hidden_size|dim_ff": 48,
    r"(.*_)?head_dim|d_kv|kv_channels|attention_head_size|d_head|head_size": 8,
    r"max_((en|de)coder_)?position_embeddings|n_positions|max_(source|target)_positions|n_ctx|max_seq_len": CONTEXT,
    r"(.*_)?sliding_window(_size)?|attention_window_size|local_attention|attention_chunk_size|window_size": WINDOW,
    r"num_experts_per_tok(en)?|moe_topk|moe_top_k|moe_k|top_k|experts_per_token": 2,
    r"(n_routed|num|num_local|n|moe_num)_experts": 4,
    r"n_group|topk_group|n_shared_experts|num_shared_experts|first_k_dense_replace": 1,
    r"(q|kv|o)_lora_rank": 16,
    r"qk_(rope|nope)_head_dim|v_head_dim|index_head_dim|rotary_dim": 8,
    r"index_n_heads": 16,  # with few of them scores tie at zero, and the choice among equals is anybody's
    r"index_topk": 4,
    r"(mamba_|ssm_)?(d_state|state_size|ssm_state_size)": 4,
    r"hidden_size_per_layer_input": 8,
}

_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 4, "mamba_n_groups": 1}
_QWEN4 = {
    "indexer_n_heads": 16, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8,
    "indexer_compress_ratio": 2, "hc_lowrank": 8,
}  # fmt: skip
OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": {**_MAMBA, "attn_layer_indices": [1]},
    "bailing_hybrid": {"head_dim": 8, "n_group": 1, "topk_group": 1},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 48, "moe_num_experts": 4},
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "falcon_h1": {**_MAMBA, "mamba_d_ssm": 64},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "intermediate_size": [48] * 4,
        "laurel_rank": 4,
        "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
        "vocab_size_per_layer_input": VOCAB,
        "hidden_size_per_layer_input": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "gemma4_text": {"vocab_size_per_layer_input": VOCAB, "hidden_size_per_layer_input": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {**_MAMBA, "layer_types": ["mamba", "attention"]},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "led": {"attention_window": 8},
    "longcat_flash": {"zero_expert_num": 2, "expert_ffn_hidden_size": 16, "head_dim": 8, "qk_head_dim": 16},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 4},
    "ministral": {"head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "nemotron": {"num_key_value_heads": 2},
    "reformer": {"axial_pos_embds": False, "attention_head_size": 8, "attn_layers": ["local", "lsh"]},
    "recurrent_gemma": {"num_hidden_layers": 3, "lru_width": 32, "num_key_value_heads": 1},
    "qwen4_exp": _QWEN4,
    "qwen4_exp_text": _QWEN4,
    "xlstm": {"qk_dim_factor": 1.0, "hidden_size": 64},
    "xmod": {"default_language": "en_XX", "languages": ["en_XX"]},
    "zamba": {
        "num_hidden_layers": 7,
        "layers_block_type": [*["linear_attention", "linear_attention", "hybrid"] * 2, "linear_attention"],
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "n_mamba_heads": 2,
        "mamba_dt_rank": 4,
    },
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "n_mamba_heads": 8,
        "mamba_headdim": 8,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "adapter_rank": 4,
        "chunk_size": 4,
    },
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}

_BERT = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 48, "max_position_embeddings": CONTEXT}  # fmt: skip


def shrink(kind: Any, overrides: dict[str, Any] | None = None) -> Any:
    """Return a config of a class with every size that it has made small."""
    default = kind()
    settings = default.to_dict()
    parts = [name for name in getattr(kind, "sub_configs", {}) if getattr(default, name, None) is not None]
    given: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, bool) or name in parts:
            continue
        if isinstance(value, int) and re.fullmatch(r".*token_(id|index)", name):
            if value >= VOCAB:
                given[name] = 1 + len(given) % 7
        elif isinstance(value, int) and name == "num_key_value_heads":
            given[name] = 4 if value >= settings.get("num_attention_heads", value) else min(value, 2)
        elif isinstance(value, int) or name == "sliding_window":
            size = next((size for pattern, size in _SIZES.items() if re.fullmatch(pattern, name)), None)
            given.update({} if size is None else {name: size})
    fixed = isinstance(getattr(kind, "layer_types", None), property) or "layers_block_type" in dir(kind)
    kinds = [] if fixed else list(dict.fromkeys(settings.get("layer_types") or ()))
    if len(kinds) > 1:  # a layer of each
        given.update(layer_types=kinds, num_hidden_layers=len(kinds))
    if "is_decoder" in settings and not default.is_encoder_decoder:
        given["is_decoder"] = True
    given.update({name: shrink(type(getattr(default, name))) for name in parts})
    return kind(**{**given, **(overrides or {})})


def build(family: str, role: str = "causal") -> Any:
    """Return a small model of a family with random weights."""
    kind = getattr(transformers, FAMILIES[role][family])
    if family == "encoder-decoder":
        encoder, decoder = (transformers.BertConfig(**_BERT) for _ in range(2))
        config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    else:
        whole = CONFIG_MAPPING[family]
        text_alone = kind.config_class in getattr(whole, "sub_configs", {}).values()  # as the auto classes do
        config = shrink(kind.config_class if text_alone else whole, OVERRIDES.get(family))
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in kind(config).parameters())
    if size > MOST_PARAMETERS:
        raise MemoryError(f"{size} parameters")
    model = random_weights(lambda: kind(config).float()).eval()
    if config.is_encoder_decoder and model.generation_config.decoder_start_token_id is None:
        model.generation_config.decoder_start_token_id = 5
    return model


def worst_error(lm: Any) -> float:
    """Return the largest error of log-probabilities of texts that grow and part in company, to the context's end."""
    lm.eos = frozenset()
    truth = fresh_log_prob if lm._writer.start is None else fresh_log_prob_of_response
    texts = [lm.prompt(prompt) for prompt in ("Once", "The sea said", "Who said")] * 2
    rng, errors = np.random.default_rng(0), [0.0]
    for t in range(5):
        texts = draw([lm.tokens(x, 1 + (t + i * (t % 2)) % 3) for i, x in enumerate(texts)], t)
        errors += [abs(x.log_prob - truth(lm, x)) for x in texts]
        texts = [texts[i] for i in rng.integers(0, 6, 6)]
    length = (lm.context or 60) - texts[0].node.length
    (last,) = draw([lm.complete(texts[0], max_tokens=min(length, 60))])
    assert lm.context is None or lm.context > 60 or last.finish_reason == "context"
    return max(*errors, abs(last.log_prob - truth(lm, last)))


@functools.cache
def verdict(family: str, role: str = "causal") -> tuple[str, str]:
    """Return how a family is run, and what is true of it then."""
    if family in NOT_TRIED:
        return "—", f"not tried: {NOT_TRIED[family]}"
    model = build(family, role)
    try:
        lm = tiny_lm(model=model)
    except Unsupported as refusal:
        reason = re.sub(r": log-probabilities off by .*", "", str(refusal).replace("\n", " "))
        return "—", f"refused: {reason}"
    error = worst_error(lm)
    assert error < 1e-3, (family, error)
    kept = {
        "AttentionForwarder": "keys and values", "RecurrentForwarder": "states",
        "EncoderDecoderForwarder": "keys and values",
    }[type(lm.forwarder).__name__]  # fmt: skip
    once = "; shared ones once" if lm.cache_info().shares else ""
    return kept + once, "exact" if lm.forwarder.ragged else "exact in groups"


def page(verdicts: dict[tuple[str, str], tuple[str, str]]) -> str:
    """Return the page of the documents."""
    lines = [
        "# Families of models",
        "",
        "What `fk.models.TransformersLM` makes of every family behind `AutoModelForCausalLM` and",
        f"`AutoModelForSeq2SeqLM` of transformers {transformers.__version__}, each built small with random weights and",
        "run in company, against whole passes of each text alone. Made by `python docs/families.py`; tests compare it.",
        "",
        "- **exact**: texts of any lengths share passes, and log-probabilities agree to 1e-3 (nearly all to 1e-5);",
        "- **exact in groups**: as exact, but only texts of one length share a pass;",
        "- **refused**: `TransformersLM` says why when the model is loaded.",
        "",
        "Where shared ones are kept once, what several texts begin with (a prompt, what particles have in common after",
        "resampling) is held once and attended to by all; else each text has a copy of it.",
        "",
    ]
    for role in FAMILIES:
        lines += [f"## {role.capitalize()}", "", "| family | class | keeps | verdict |", "|---|---|---|---|"]
        lines += [f"| {f} | {FAMILIES[r][f]} | {k} | {v} |" for (f, r), (k, v) in verdicts.items() if r == role]
        lines.append("")
    return "\n".join(lines)
