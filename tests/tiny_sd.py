"""A randomly initialised Stable Diffusion of a few thousand weights, random LoRAs for it, and its makers' file layout."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from captune.exporters import LoraFile, LoraModule

FACTS = {
    "output_name": "run-blip",
    "base_model": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "trigger_word": "zorblax",
    "resolution": "64",
    "objective": "epsilon",
}


def unet(linear_projection: bool) -> UNet2DConditionModel:
    """A UNet with every kind of block that SD 1.x has; projections of attention are 1x1 convolutions, or linear."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=12,
        attention_head_dim=2,
        norm_num_groups=4,
        use_linear_projection=linear_projection,
    )


def text_encoder() -> CLIPTextModel:
    torch.manual_seed(1)
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=50,
            hidden_size=12,
            intermediate_size=20,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=16,
        )
    )


def pipeline(linear_projection: bool = False) -> StableDiffusionPipeline:
    """The pipeline as a user has it, without the parts that a LoRA never touches."""
    return StableDiffusionPipeline(
        vae=None,
        text_encoder=text_encoder(),
        tokenizer=None,
        unet=unet(linear_projection),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def targets(component: str, root: nn.Module) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    """Every linear layer and convolution, a text encoder's named as LoRA files name them."""
    for name, module in root.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            bare = component == "text_encoder" and not name.startswith("text_model.")
            yield f"text_model.{name}" if bare else name, module


def random_module(component: str, name: str, module: nn.Module, rank: int, alpha: float) -> LoraModule:
    out, *inner = module.weight.shape
    down = torch.randn(rank, *inner) / 10
    up = torch.randn(out, rank, *([1, 1] if len(inner) == 3 else [])) / 10
    return LoraModule(component, name, down, up, alpha)


def lora(components: dict[str, nn.Module], rank: int = 3, alpha: float = 2.0) -> LoraFile:
    """A LoRA for all of them: attention, feed forward, projections, resnets, down- and upsamplers, embeddings."""
    torch.manual_seed(2)
    modules = [
        random_module(component, name, module, rank, alpha)
        for component, root in components.items()
        for name, module in targets(component, root)
    ]
    return LoraFile("sd", tuple(modules), FACTS)


def clip_tokenizer(longest: int = 32, pad_token: str = "<|endoftext|>") -> CLIPTokenizer:
    """CLIP's tokenizer with letters for words; "!" is token 0."""
    letters = list(bytes_to_unicode().values())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: i for i, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=longest, pad_token=pad_token)


def clip_config(width: int, longest: int = 32, **values: object) -> CLIPTextConfig:
    """Two layers over that tokenizer's 514 words."""
    return CLIPTextConfig(
        vocab_size=514, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=longest, bos_token_id=512, eos_token_id=513, pad_token_id=513,
        **{"projection_dim": width, **values},
    )  # fmt: skip


def vae(**values: object) -> AutoencoderKL:
    """A VAE that makes latents of half the side."""
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1, sample_size=16, **{**blocks, **values}
    )


def original_unet(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """Its weights under the names of the latent-diffusion code, as single files have them."""
    each = unet.config.layers_per_block + 1
    state = unet.state_dict()

    def block(kind: str, b: str, part: str, index: str) -> str:
        if kind == "mid":
            return f"middle_block.{1 if part == 'attentions' else 2 * int(index)}."
        if part == "downsamplers":
            return f"input_blocks.{(int(b) + 1) * each}.0.op."
        if part == "upsamplers":
            attends = any(name.startswith(f"up_blocks.{b}.attentions.") for name in state)
            return f"output_blocks.{int(b) * each + each - 1}.{2 if attends else 1}.conv."
        place = int(b) * each + int(index)
        number = f"input_blocks.{1 + place}" if kind == "down" else f"output_blocks.{place}"
        return f"{number}.{1 if part == 'attentions' else 0}."

    fixed = {
        "time_embedding.linear_1.": "time_embed.0.", "time_embedding.linear_2.": "time_embed.2.",
        "add_embedding.linear_1.": "label_emb.0.0.", "add_embedding.linear_2.": "label_emb.0.2.",
        "conv_in.": "input_blocks.0.0.", "conv_norm_out.": "out.0.", "conv_out.": "out.2.",
    }  # fmt: skip
    inside = {
        "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
        "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
    }  # fmt: skip
    renamed = {}
    for name, value in state.items():
        found = re.match(
            r"(down|mid|up)_blocks?\.(?:(\d+)\.)?(resnets|attentions|(?:down|up)samplers)\.(\d+)\.(.*)", name
        )
        if found is None:
            begin = next(f for f in fixed if name.startswith(f))
            new = fixed[begin] + name.removeprefix(begin)
        else:
            kind, b, part, index, rest = found.groups()
            if part == "resnets":
                first, _, last = rest.partition(".")
                rest = f"{inside[first]}.{last}"
            new = block(kind, b, part, index) + rest.removeprefix("conv." if part.endswith("samplers") else "")
        renamed[f"model.diffusion_model.{new}"] = value
    assert len(renamed) == len(state)
    return renamed


def original_vae(vae: AutoencoderKL, prefix: str = "first_stage_model.") -> dict[str, Tensor]:
    """Its weights under the names of the latent-diffusion code; attention is a 1x1 convolution there."""
    last = len(vae.config.block_out_channels) - 1
    attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    renamed = {}
    for name, value in vae.state_dict().items():
        new = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        new = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", new)
        new = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", new)
        new = re.sub(r"up_blocks\.(\d+)\.resnets", lambda m: f"up.{last - int(m[1])}.block", new)
        new = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{last - int(m[1])}.upsample", new)
        new = re.sub(r"mid_block\.resnets\.(\d+)", lambda m: f"mid.block_{int(m[1]) + 1}", new)
        if "mid_block.attentions.0." in new:
            layer, _, kind = new.partition("mid_block.attentions.0.")[2].rpartition(".")
            new = f"{new.partition('mid_block')[0]}mid.attn_1.{attention[layer]}.{kind}"
            value = value[..., None, None] if value.ndim == 2 else value
        renamed[prefix + new] = value
    return renamed


def original_clip(encoder: nn.Module, prefix: str) -> dict[str, Tensor]:
    """CLIP's weights under transformers' names, as SD 1.x, SDXL's first and FLUX's files have them."""
    return {f"{prefix}text_model.{name}": value for name, value in encoder.state_dict().items()}


def original_open_clip(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """CLIP's weights under OpenCLIP's names, q, k and v in one, as SD 2.x and SDXL's second encoder have them."""
    fixed = {
        "embeddings.position_embedding.weight": "positional_embedding",
        "embeddings.token_embedding.weight": "token_embedding.weight",
        "final_layer_norm.weight": "ln_final.weight",
        "final_layer_norm.bias": "ln_final.bias",
    }
    renamed = {}
    for full, value in state.items():
        name = full.removeprefix("text_model.")
        if name == "text_projection.weight":
            renamed[f"{prefix}text_projection"] = value.T.contiguous()
        elif name in fixed:
            renamed[prefix + fixed[name]] = value
        elif match := re.fullmatch(r"encoder\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)", name):
            parts = [state[full.replace("q_proj", f"{p}_proj")] for p in "qkv"]
            renamed[f"{prefix}transformer.resblocks.{match[1]}.attn.in_proj_{match[2]}"] = torch.cat(parts)
        elif not re.search(r"[kv]_proj", name):
            new = name.replace("encoder.layers", "transformer.resblocks").replace("self_attn", "attn")
            new = new.replace("layer_norm", "ln_").replace("fc1", "c_fc").replace("fc2", "c_proj")
            renamed[prefix + new] = value
    return renamed
