"""Families of base models: what training, sampling and export need to know of each, and the table to choose from."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from captune import parts, weights
from captune.errors import ModelError, RecipeError
from captune.recipe import BaseSection, TrainSection
from captune.types import Example, Objective

if TYPE_CHECKING:  # the table is read by commands that never load a model
    import torch
    from PIL import Image
    from torch import Tensor, nn

    from captune.objective import NoiseSchedule

FAMILIES: dict[str, str] = {
    "sd": "captune.families.sd:StableDiffusion",
    "sdxl": "captune.families.sdxl:StableDiffusionXL",
    "flux": "captune.families.flux:Flux",
}


@dataclass(frozen=True)
class FamilyFacts:
    """What is known of a family before it is loaded."""

    multiple: int  # sides of pictures are multiples of this many pixels
    cannot: Mapping[str, str]  # options of a recipe that it cannot honour, as `section.field` -> why


_FLOW_TIMESTEPS = "timesteps of its noise schedule are drawn uniformly; only flow matching has other ways"
_NO_SNR = "flow matching has no signal-to-noise ratio to weigh by; kohya's scripts ignore the option without a word"
_PLAIN_NOISE = "flow matching takes plain noise; kohya's scripts ignore the option without a word"
PREDICTS_NOISE = (
    "this base predicts the noise, which says nothing of the picture where all is noise; it is for bases that predict v"
)
_TIMESTEP_OPTIONS = ("timestep_sampling", "timestep_mean", "timestep_scale", "timestep_shift")

FACTS: dict[str, FamilyFacts] = {
    "sd": FamilyFacts(multiple=8, cannot={f"train.{option}": _FLOW_TIMESTEPS for option in _TIMESTEP_OPTIONS}),
    "sdxl": FamilyFacts(
        multiple=8,
        cannot={
            **{f"train.{option}": _FLOW_TIMESTEPS for option in _TIMESTEP_OPTIONS},
            "train.clip_skip": "it always reads the last but one layer of both its text encoders",
        },
    ),
    "flux": FamilyFacts(
        multiple=16,  # the VAE's 8, and patches of 2 x 2 latents
        cannot={
            "train.min_snr_gamma": _NO_SNR,
            "train.debiased_estimation": _NO_SNR,
            "train.noise_offset": _PLAIN_NOISE,
            "train.zero_terminal_snr": "its flow ends in pure noise already",
            "train.clip_skip": "it reads CLIP's pooled output and T5's last layer",
            "train.caption_chunks": "T5 reads up to 512 tokens at once (256 in schnell)",
            "sample.negative_prompt": "its guidance is distilled into one forward pass, which reads no second prompt",
        },
    ),
}


@dataclass(frozen=True)
class Extent:
    """Where a training picture comes from, in pixels: its source, and what was cut off left and above after scaling."""

    source_width: int
    source_height: int
    crop_left: int
    crop_top: int
    width: int
    height: int

    @classmethod
    def of(cls, example: Example) -> Extent:
        """The extent of a picture that was scaled to cover its size and cut around its centre, mirrored or not."""
        scale = max(example.width / example.source_width, example.height / example.source_height)
        left = round((example.source_width * scale - example.width) / 2)
        top = round((example.source_height * scale - example.height) / 2)
        return cls(example.source_width, example.source_height, left, top, example.width, example.height)


@dataclass(frozen=True)
class Reading:
    """How CLIP reads prompts: which layer is taken, counted from the end, and how many chunks of 75 tokens are read."""

    clip_skip: int = 1  # 1 is the last layer
    chunks: int = 1  # 1, 2 or 3: kohya's max_token_length 75, 150, 225

    @classmethod
    def of(cls, train: TrainSection) -> Reading:
        """The reading that a LoRA is trained with, and should be drawn with."""
        return cls(train.clip_skip, train.caption_chunks)


USUAL = Reading()


@dataclass(frozen=True)
class Conditioning:
    """What the text tells the model: encoder_hidden_states (batch, tokens, width), and more where a family needs it."""

    encoder_hidden_states: Tensor
    pooled_prompt_embeds: Tensor | None = None  # (batch, width)
    time_ids: Tensor | None = None  # (batch, 6), SDXL's: source, crop and target size, height before width

    def select(self, rows: Sequence[int]) -> Conditioning:
        """The conditioning of some rows, in that order."""
        import torch

        index = torch.tensor(list(rows), device=self.encoder_hidden_states.device)
        return Conditioning(**{k: v.index_select(0, index) for k, v in self._tensors().items()})

    @classmethod
    def cat(cls, many: Sequence[Conditioning]) -> Conditioning:
        """The rows of all of them, in order; all have the same tensors."""
        import torch

        every = [one._tensors() for one in many]
        return cls(**{name: torch.cat([tensors[name] for tensors in every]) for name in every[0]})

    def _tensors(self) -> dict[str, Any]:
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: tensor for name, tensor in found.items() if tensor is not None}


@dataclass(frozen=True)
class LoraTargets:
    """Which modules of one component can carry a LoRA, by preset: regular expressions of full names."""

    presets: Mapping[str, str]


class Family(Protocol):
    """A loaded base model. Everything is frozen; adapters are injected into the modules of `components`."""

    name: str
    version: str  # "sd1", "sd2", "sdxl", "flux-dev", "flux-schnell"
    objective: Objective
    schedule: NoiseSchedule
    device: torch.device
    dtype: torch.dtype  # of the frozen weights and of autocast
    denoiser: str  # the component that predicts: "unet" or "transformer"
    components: Mapping[str, nn.Module]  # the denoiser, "text_encoder", "text_encoder_2": what a LoRA may change
    targets: Mapping[str, LoraTargets]  # by component

    @property
    def pipeline(self) -> Any:
        """The diffusers pipeline behind it."""

    @property
    def default_size(self) -> tuple[int, int]:
        """Width and height that the base draws best."""

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """Encode pixel_values (batch, 3, height, width) in [-1, 1] to scaled latents (batch, channels, h, w), float32."""

    def encode_prompts(self, prompts: Sequence[str], reading: Reading = USUAL) -> Conditioning:
        """Encode prompts, padded to the tokenizer's full length; differentiable in the text encoders' adapters."""

    def with_extents(self, conditioning: Conditioning, extents: Sequence[Extent]) -> Conditioning:
        """The conditioning of pictures of these extents; the same conditioning where a family does not read them."""

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The model's prediction for noisy_latents (batch, channels, h, w) at the schedule's timesteps (batch,)."""

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
        reading: Reading = USUAL,
        zero_terminal_snr: bool = False,
    ) -> list[Image.Image]:
        """Draw one picture per prompt and seed (two lists of equal length), as one batch.

        `zero_terminal_snr` rescales the noise schedule as training with that option does.
        """

    @property
    def releasable(self) -> tuple[str, ...]:
        """The parts that `release` takes: all but the denoiser."""

    def release(self, parts: Collection[str]) -> None:
        """Keep these parts ("vae", "text_encoder", ...) off the device but for the calls that need them; () brings all back.

        A text encoder in training must not be released.
        """


def check(section: BaseSection) -> None:
    """Raise a RecipeError for an unknown family, or one that has no embedded model, before anything is loaded.

    A ModelError tells of a file that is no checkpoint.
    """
    if section.family not in FAMILIES:
        raise parts.unknown("family", section.family, FAMILIES)
    if section.model == weights.MINI and section.family != "sd":
        raise RecipeError(
            f'base.model = "mini" is of the family sd; name a model of the family {section.family}: a diffusers folder, '
            "a checkpoint file or a hub name"
        )
    weights.check_file(section.model)


def refusals(family: str, given: Iterable[str]) -> list[str]:
    """A sentence for each of the options that a recipe gives (as `section.field`) and the family cannot honour."""
    cannot = FACTS[family].cannot
    return [f"{option} does nothing in the family {family}: {cannot[option]}" for option in given if option in cannot]


def load(section: BaseSection) -> Family:
    """Load the base model that the section names."""
    check(section)
    loader: Any = parts.load("family", FAMILIES, section.family)
    return cast(Family, loader.load(section))


def told_prediction(section: BaseSection) -> str | None:
    """What a base in a diffusers folder says that it predicts (epsilon, v_prediction), without loading it; None elsewhere."""
    try:
        folder = Path(weights.locate(section.model, section.family))
        told = json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    except (ModelError, OSError, ValueError):
        return None  # a hub's model, a single file, or none: told when it is loaded
    if section.family == "flux" or not isinstance(told, dict):
        return None
    return str(told.get("prediction_type", "epsilon"))  # what diffusers takes where nothing is said
