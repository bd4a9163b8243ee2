"""What a training will need, from the base's configuration alone: the LoRA's size, memory. Loads no weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from diffusers import AutoencoderKL, DDPMScheduler, FluxTransformer2DModel, UNet2DConditionModel
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from captune import adapters, families, parts, weights
from captune.errors import ModelError
from captune.families import Conditioning, Family
from captune.recipe import BaseSection, TrainSection
from captune.train.diffusion import lora_spec

DIFFUSERS: dict[str, Any] = {
    "unet": UNet2DConditionModel,
    "transformer": FluxTransformer2DModel,
    "vae": AutoencoderKL,
}
PARTS = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2")
CONFIGS = Path(families.__file__).parent / "configs"
# The configuration of a base that is not at hand as a folder: that of its kind.
USUAL = {"sd": "sd1", "sdxl": "sdxl", "flux": "flux"}
# Bytes that an optimizer keeps for every weight of the LoRA; AdamW's two moments for those that are not here.
OPTIMIZER_BYTES = {"adafactor": 1, "prodigy": 16, "lion": 4, "adamw8bit": 2, "paged_adamw8bit": 2, "lion8bit": 1}
RUNTIME_MIB = {"cpu": 700, "cuda": 900}  # the libraries themselves: a CUDA context, or what torch and diffusers load


@dataclass(frozen=True)
class Needs:
    """Sizes in numbers (not bytes), by part of the base; `activations` are those that one training picture leaves."""

    weights: Mapping[str, int]
    lora: int
    activations: int


def measure(base: BaseSection, section: TrainSection, width: int, height: int) -> Needs:
    """Build the base on the meta device, put the LoRA into it, and follow one forward pass: shapes without numbers.

    Activations are what autograd keeps for the backward pass, counted exactly; kernels' own scratch space is not seen.
    """
    folder = _folder(base)
    with torch.device("meta"):
        built = {name: _part(folder / name) for name in PARTS if (folder / name).is_dir()}
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in built.items()}
    family = _family(base.family, folder, built)
    adapters.inject(family.components, lora_spec(section, family), seed=0)
    lora = sum(p.numel() for p in adapters.parameters(family.components).values())
    if section.gradient_checkpointing:
        denoiser: Any = built[family.denoiser]
        denoiser.enable_gradient_checkpointing()
    return Needs(sizes, lora, _activations(family, built, width, height))


def memory(needs: Needs, base: BaseSection, section: TrainSection, processes: int = 1) -> dict[str, Any]:
    """An estimate of peak memory while training, in MiB, with its parts, for each of the processes."""
    on_cuda = base.device.startswith("cuda") or (base.device == "auto" and torch.cuda.is_available())
    stored = 4 if not on_cuda or base.precision == "fp32" else 2
    computed = 4 if base.precision == "fp32" or (base.precision == "auto" and not on_cuda) else 2
    trained_text = section.text_encoder_learning_rate is not None
    held = {
        name: count * (4 if name == "vae" else stored)
        for name, count in needs.weights.items()
        # what is cached leaves a GPU; in the CPU's own memory there is nowhere to go
        if not on_cuda or name in ("unet", "transformer") or (trained_text and name.startswith("text_encoder"))
    }
    copies = 4 * (2 + bool(section.ema)) + OPTIMIZER_BYTES.get(section.optimizer, 8)
    pictures = -(-section.batch_size // processes)
    told = {
        "weights": sum(held.values()),
        "lora_gradients_optimizer": needs.lora * copies,
        "activations": needs.activations * computed * pictures,
        "libraries": RUNTIME_MIB["cuda" if on_cuda else "cpu"] << 20,
    }
    rounded = {name: round(value / 2**20) for name, value in told.items()}
    return {"device": "GPU" if on_cuda else "CPU", "estimated_peak_mib": sum(rounded.values()), **rounded}


def latent_numbers(base: BaseSection, width: int, height: int) -> int:
    """How many numbers the latents of a picture have."""
    config = _config(_folder(base) / "vae")
    side: int = 2 ** (len(config["block_out_channels"]) - 1)
    return int(config["latent_channels"]) * (width // side) * (height // side)


def _folder(base: BaseSection) -> Path:
    """Where the base's configuration is: its own folder, or that of the family's usual model."""
    place = Path(weights.locate(base.model, base.family))
    if not place.is_dir():
        return CONFIGS / USUAL[base.family]
    if not (place / "model_index.json").is_file():
        raise ModelError(f"{place} is not a diffusers folder: it has no model_index.json")
    return place


def _config(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return content


def _part(folder: Path) -> nn.Module:
    """One part of a base, as its configuration describes it."""
    if folder.name in DIFFUSERS:
        found = DIFFUSERS[folder.name]
        return cast(nn.Module, found.from_config(found.load_config(folder)))
    if "d_kv" in _config(folder):
        return cast(nn.Module, T5EncoderModel(T5Config.from_pretrained(folder)))
    made = CLIPTextModelWithProjection if folder.name == "text_encoder_2" else CLIPTextModel
    return cast(nn.Module, made(CLIPTextConfig.from_pretrained(folder)))


def _family(name: str, folder: Path, built: Mapping[str, nn.Module]) -> Family:
    """The family's own class around parts that have shapes and no numbers."""
    scheduler = DDPMScheduler.from_config(DDPMScheduler.load_config(folder / "scheduler")) if "unet" in built else None
    pipeline = SimpleNamespace(**built, scheduler=scheduler)
    made: Any = parts.load("family", families.FAMILIES, name)
    return cast(Family, made(pipeline, torch.device("meta"), torch.float32))


def _activations(family: Family, built: Mapping[str, nn.Module], width: int, height: int) -> int:
    """The numbers that autograd keeps of one picture's forward pass, frozen weights apart."""
    own = {p.untyped_storage()._cdata for part in built.values() for p in part.parameters()}
    kept: dict[int, Tensor] = {}  # the tensors are held, so that no storage's address is given twice

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    config: Any = built["vae"].config
    side = 2 ** (len(config.block_out_channels) - 1)
    latents = torch.zeros(1, config.latent_channels, height // side, width // side, device="meta")
    timesteps = torch.zeros(1, dtype=torch.long if "unet" in built else torch.float32, device="meta")
    with _FusedAttention(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model_pred = family.predict(latents, timesteps, _conditioning(built))
    del model_pred
    return sum(t.untyped_storage().nbytes() // t.element_size() for key, t in kept.items() if key not in own)


class _FusedAttention(TorchFunctionMode):
    """The meta device has no fused attention and would keep every score, which real devices do not."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            query, key, value = (args + tuple((kwargs or {}).values()))[:3]
            return _Attention.apply(query, key, value)  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))


class _Attention(torch.autograd.Function):
    """Keeps what fused kernels keep: query, key, value and what comes out."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = query.new_empty((*query.shape[:-1], value.shape[-1]))
        ctx.save_for_backward(query, key, value, out)
        return out


def _conditioning(built: Mapping[str, nn.Module]) -> Conditioning:
    """What a prompt of one picture is, in shape."""
    denoiser: Any = built.get("unet") or built["transformer"]
    config = denoiser.config
    if "transformer" in built:
        pooled = torch.zeros(1, config.pooled_projection_dim, device="meta")
        return Conditioning(torch.zeros(1, 512, config.joint_attention_dim, device="meta"), pooled)
    hidden = torch.zeros(1, 77, config.cross_attention_dim, device="meta")
    if "text_encoder_2" not in built:
        return Conditioning(hidden)
    second: Any = built["text_encoder_2"].config
    pooled = torch.zeros(1, second.projection_dim, device="meta")
    return Conditioning(hidden, pooled, torch.zeros(1, 6, device="meta"))
