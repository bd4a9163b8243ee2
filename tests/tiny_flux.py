"""A randomly initialised FLUX.1 of a few thousand weights: one double and two single blocks, CLIP, T5 and a VAE."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import Tensor
from transformers import CLIPTextModel, T5Config, T5EncoderModel, T5TokenizerFast

from tests import tiny_sd

LETTERS = "▁abcdefghijklmnopqrstuvwxyz,."


def t5_tokenizer(longest: int = 32) -> T5TokenizerFast:
    """T5's tokenizer with letters for words."""
    pieces = ["<pad>", "</s>", "<unk>", *LETTERS]
    return T5TokenizerFast(
        vocab=[(piece, -float(i)) for i, piece in enumerate(pieces)], extra_ids=0, model_max_length=longest
    )


def pipeline(guidance: bool = True, seed: int = 0) -> FluxPipeline:
    """FLUX.1 dev, or schnell without guidance."""
    torch.manual_seed(seed)
    t5 = T5Config(
        vocab_size=32, d_model=20, d_kv=10, d_ff=24, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )  # fmt: skip
    transformer = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=20, pooled_projection_dim=16, axes_dims_rope=(4, 4, 8), guidance_embeds=guidance,
    )  # fmt: skip
    schedule = {"shift": 3.0, "use_dynamic_shifting": True} if guidance else {"shift": 1.0}
    plain = {"use_quant_conv": False, "use_post_quant_conv": False}
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**schedule),
        vae=tiny_sd.vae(scaling_factor=0.3611, shift_factor=0.1159, **plain),
        text_encoder=CLIPTextModel(tiny_sd.clip_config(16)),
        tokenizer=tiny_sd.clip_tokenizer(),
        text_encoder_2=T5EncoderModel(t5),
        tokenizer_2=t5_tokenizer(),
        transformer=transformer,
    )


def write(folder: Path, guidance: bool = True) -> str:
    """Write it into the folder; its path as a recipe would name it."""
    pipeline(guidance).save_pretrained(folder)
    return str(folder)


def original(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """A transformer's weights as Black Forest Labs name them: q, k, v (and a single block's mlp) in one, and the last norm's
    halves swapped."""
    state = dict(weights)
    renamed: dict[str, Tensor] = {}

    def move(old: str, new: str) -> None:
        for kind in ("weight", "bias"):
            renamed[f"{new}.{kind}"] = state.pop(f"{old}.{kind}")

    def fuse(olds: list[str], new: str) -> None:
        for kind in ("weight", "bias"):
            renamed[f"{new}.{kind}"] = torch.cat([state.pop(f"{old}.{kind}") for old in olds])

    def scale(old: str, new: str) -> None:
        renamed[f"{new}.scale"] = state.pop(f"{old}.weight")

    embedders = {"timestep_embedder": "time_in", "text_embedder": "vector_in"}
    if config["guidance_embeds"]:
        embedders["guidance_embedder"] = "guidance_in"
    for old, new in embedders.items():
        move(f"time_text_embed.{old}.linear_1", f"{new}.in_layer")
        move(f"time_text_embed.{old}.linear_2", f"{new}.out_layer")
    move("x_embedder", "img_in")
    move("context_embedder", "txt_in")
    move("proj_out", "final_layer.linear")
    for kind in ("weight", "bias"):
        scale_rows, shift_rows = state.pop(f"norm_out.linear.{kind}").chunk(2)
        renamed[f"final_layer.adaLN_modulation.1.{kind}"] = torch.cat([shift_rows, scale_rows])
    for i in range(config["num_layers"]):
        old, new = f"transformer_blocks.{i}", f"double_blocks.{i}"
        for stream, norm, qkv, out, ff, norms in (
            ("img", "norm1", "to_{}", "to_out.0", "ff", ("norm_q", "norm_k")),
            ("txt", "norm1_context", "add_{}_proj", "to_add_out", "ff_context", ("norm_added_q", "norm_added_k")),
        ):
            move(f"{old}.{norm}.linear", f"{new}.{stream}_mod.lin")
            fuse([f"{old}.attn.{qkv.format(p)}" for p in "qkv"], f"{new}.{stream}_attn.qkv")
            move(f"{old}.attn.{out}", f"{new}.{stream}_attn.proj")
            scale(f"{old}.attn.{norms[0]}", f"{new}.{stream}_attn.norm.query_norm")
            scale(f"{old}.attn.{norms[1]}", f"{new}.{stream}_attn.norm.key_norm")
            move(f"{old}.{ff}.net.0.proj", f"{new}.{stream}_mlp.0")
            move(f"{old}.{ff}.net.2", f"{new}.{stream}_mlp.2")
    for i in range(config["num_single_layers"]):
        old, new = f"single_transformer_blocks.{i}", f"single_blocks.{i}"
        move(f"{old}.norm.linear", f"{new}.modulation.lin")
        fuse([*(f"{old}.attn.to_{p}" for p in "qkv"), f"{old}.proj_mlp"], f"{new}.linear1")
        scale(f"{old}.attn.norm_q", f"{new}.norm.query_norm")
        scale(f"{old}.attn.norm_k", f"{new}.norm.key_norm")
        move(f"{old}.proj_out", f"{new}.linear2")
    assert not state
    return renamed
