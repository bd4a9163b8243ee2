"""Families of base models: what training, sampling and export need to know of each, and the table to choose from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from captune import parts
from captune.recipe import BaseSection

if TYPE_CHECKING:  # the table is read by commands that never load a model
    import torch
    from PIL import Image
    from torch import Tensor, nn

FAMILIES: dict[str, str] = {"sd": "captune.families.sd:StableDiffusion"}

Objective = Literal["epsilon", "v_prediction"]


@dataclass(frozen=True)
class Conditioning:
    """What the text tells the model: encoder_hidden_states (batch, tokens, width), and more where a family needs it."""

    encoder_hidden_states: Tensor
    pooled_prompt_embeds: Tensor | None = None

    def select(self, rows: Sequence[int]) -> Conditioning:
        """The conditioning of some rows, in that order."""
        import torch

        index = torch.tensor(list(rows), device=self.encoder_hidden_states.device)
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        chosen: dict[str, Any] = {k: v.index_select(0, index) if v is not None else None for k, v in values.items()}
        return Conditioning(**chosen)


@dataclass(frozen=True)
class LoraTargets:
    """Which modules of one component (unet, text_encoder) can carry a LoRA, by preset: regular expressions of full names."""

    presets: Mapping[str, str]


class Family(Protocol):
    """A loaded base model. Everything is frozen; adapters are injected into the modules of `components`."""

    name: str
    objective: Objective
    alphas_cumprod: Tensor  # (training timesteps,), float32
    device: torch.device
    dtype: torch.dtype  # of the frozen weights and of autocast
    components: Mapping[str, nn.Module]  # "unet", "text_encoder": what a LoRA may change
    targets: Mapping[str, LoraTargets]
    export_prefixes: Mapping[str, str]  # component -> kohya's key prefix
    pipeline_class: str  # the diffusers pipeline that loads the exported LoRA

    @property
    def default_size(self) -> tuple[int, int]:
        """Width and height that the base draws best."""

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """Encode pixel_values (batch, 3, height, width) in [-1, 1] to scaled latents (batch, channels, h, w), float32."""

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts, padded to the tokenizer's full length; differentiable in the text encoder's adapters."""

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The model's prediction for noisy_latents (batch, channels, h, w) at integer timesteps (batch,)."""

    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        steps: int,
        guidance_scale: float,
        negative_prompt: str,
        width: int,
        height: int,
    ) -> list[Image.Image]:
        """Draw one picture per prompt and seed (two lists of equal length), as one batch."""

    def count_tokens(self, text: str) -> tuple[int, int]:
        """Tokens of a text, start and end included, and the longest that is read."""


def check(section: BaseSection) -> None:
    """Raise a RecipeError for an unknown family, before anything is loaded."""
    if section.family not in FAMILIES:
        raise parts.unknown("family", section.family, FAMILIES)


def load(section: BaseSection) -> Family:
    """Load the base model that the section names."""
    loader: Any = parts.load("family", FAMILIES, section.family)
    return cast(Family, loader.load(section))
