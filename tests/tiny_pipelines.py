"""Tiny pipelines of diffusers with random weights, built from their own classes; nothing is downloaded."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
    WanPipeline,
    WanTransformer3DModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

WORDS = ["<pad>", "<s>", "</s>", "<unk>", *["a", "b", "c", "d", "e", "f", "g", "h", "red", "blue", "cat", "dog"]]


def tokenizer(length=8):
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>", eos_token="</s>", model_max_length=length
    )


def clip_text(size=16):
    torch.manual_seed(1)
    config = CLIPTextConfig(
        vocab_size=len(WORDS), hidden_size=size, intermediate_size=2 * size, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=8, projection_dim=size, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return CLIPTextModel(config).eval()


def unet(classes=None, channels=3, out=None, **more):
    torch.manual_seed(2)
    return UNet2DModel(
        sample_size=8, in_channels=channels, out_channels=out or channels, block_out_channels=(8, 16),
        layers_per_block=1, norm_num_groups=4, num_class_embeds=classes, attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"), **more,
    ).eval()  # fmt: skip


def conditional_unet(**more):
    torch.manual_seed(3)
    return UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
        norm_num_groups=4, cross_attention_dim=16, attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **more,
    ).eval()  # fmt: skip


def vae(latent_channels=4, **more):
    torch.manual_seed(4)
    return AutoencoderKL(
        in_channels=3, out_channels=3, block_out_channels=(8, 8), norm_num_groups=4, latent_channels=latent_channels,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **more,
    ).eval()  # fmt: skip


def stable_diffusion(scheduler=None):
    scheduler = scheduler or DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    pipe = StableDiffusionPipeline(
        vae=vae(), text_encoder=clip_text(), tokenizer=tokenizer(), unet=conditional_unet(), scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def flux():
    torch.manual_seed(5)
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=16, guidance_embeds=True, axes_dims_rope=(4, 4, 8),
    ).eval()  # fmt: skip
    t5 = T5EncoderModel(T5Config(vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)).eval()
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), vae=vae(shift_factor=0.1),
        text_encoder=clip_text(), tokenizer=tokenizer(), text_encoder_2=t5, tokenizer_2=tokenizer(16),
        transformer=transformer,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def wan(scheduler=None, second=False, **more):
    def transformer(seed):
        torch.manual_seed(seed)
        return WanTransformer3DModel(
            patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=16, out_channels=16,
            text_dim=16, freq_dim=16, ffn_dim=16, num_layers=1, cross_attn_norm=True, qk_norm="rms_norm_across_heads",
            rope_max_seq_len=16,
        ).eval()  # fmt: skip

    torch.manual_seed(6)
    video_vae = AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    ).eval()
    encoder = UMT5EncoderModel(
        UMT5Config(vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    ).eval()
    pipe = WanPipeline(
        tokenizer=tokenizer(16), text_encoder=encoder, vae=video_vae, transformer=transformer(7),
        transformer_2=transformer(8) if second else None,
        scheduler=scheduler or FlowMatchEulerDiscreteScheduler(shift=3.0), **more,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe
