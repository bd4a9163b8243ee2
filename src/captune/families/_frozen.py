"""What all families share: the parts of a diffusers pipeline, frozen, on one device, in one number format."""

from __future__ import annotations

import ctypes
import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from PIL import Image
from torch import Tensor, nn

from captune import weights
from captune.errors import CaptuneError, ModelError, RecipeError
from captune.families import FACTS, USUAL, Conditioning, Extent, LoraTargets, Reading, _single_file
from captune.families._devices import choose_device, choose_dtype
from captune.objective import NoiseSchedule
from captune.recipe import BaseSection
from captune.types import Objective

Range = tuple[int, int]  # of addresses
UNREAD = 256 << 20  # bytes of a file that stay in memory after they were read
MADV_DONTNEED = 4
FAMILY_OF = {"StableDiffusionPipeline": "sd", "StableDiffusionXLPipeline": "sdxl", "FluxPipeline": "flux"}


class FrozenPipeline(ABC):
    """A loaded base: its parts, its pictures in and out. A family adds what it reads of prompts and how it predicts."""

    name: ClassVar[str]
    denoiser: ClassVar[str]
    targets: ClassVar[Mapping[str, LoraTargets]]
    version: str
    schedule: NoiseSchedule

    _pipeline_class: ClassVar[Any]
    _encoders: ClassVar[tuple[str, ...]]
    _loading: ClassVar[Mapping[str, Any]] = {}  # arguments of the pipeline class beside its parts

    def __init__(self, pipeline: Any, device: torch.device, dtype: torch.dtype):
        self._pipeline = pipeline
        self._parts: dict[str, nn.Module] = {
            name: getattr(pipeline, name) for name in ("vae", self.denoiser, *self._encoders)
        }
        for part in self._parts.values():
            part.to(device).eval().requires_grad_(False)
        if device.type == "cpu" and dtype == torch.bfloat16:
            # measured (benchmarks/attention_on_cpu.py): a CPU's fused attention is slow in bf16, its backward above all
            for name in self._encoders:
                getattr(pipeline, name).set_attn_implementation("eager")
        self._released: frozenset[str] = frozenset()
        self._vae: Any = pipeline.vae
        self.device, self.dtype = device, dtype
        self.components: Mapping[str, nn.Module] = {
            name: self._parts[name] for name in (self.denoiser, *self._encoders) if name in self.targets
        }

    @property
    def pipeline(self) -> Any:
        """The diffusers pipeline itself, its weights included: who changes it changes this family."""
        return self._pipeline

    @property
    def objective(self) -> Objective:
        return self.schedule.objective

    @classmethod
    def load(cls, section: BaseSection) -> Self:
        """Load the base that the section names; a ModelError says what is missing and how to get it."""
        device = choose_device(section.device)
        dtype = choose_dtype(section.precision, device)
        stored = torch.float32 if device.type == "cpu" else dtype
        place = weights.locate(section.model, cls.name)
        path = Path(place)
        before = _mapped()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if path.is_file():
                    parts = _single_file.load(path, cls.name, stored)
                    pipeline = cls._pipeline_class(**parts, **cls._loading)
                    return cls(pipeline, device, dtype)._stored_as_computed(before)
                if path.exists():
                    _check_folder(path, cls.name)
                pipeline = cls._pipeline_class.from_pretrained(
                    place,
                    revision=section.revision,
                    variant=section.variant,
                    # SD's VAE overflows in fp16, and pictures are judged: 8 bits need more than bf16 has
                    dtype={"default": stored, "vae": torch.float32},
                    local_files_only=path.exists(),
                    **cls._loading,
                )
        except CaptuneError:
            raise
        except Exception as error:
            raise weights.loading_failed(place, "base model", error) from error
        return cls(pipeline, device, dtype)._stored_as_computed(before)

    def _stored_as_computed(self, mapped_before: set[Range]) -> Self:
        """On a CPU, keep the weights that autocast would cast in every call in its number format: the same numbers in half
        the memory. The others are copied, so that nothing holds on to the files that were mapped since `mapped_before`."""
        if self.device.type != "cpu" or self.dtype == torch.float32:
            return self
        files, read = _mapped() - mapped_before, 0
        for module in [m for name in (self.denoiser, *self._encoders) for m in self._parts[name].modules()]:
            cast = isinstance(module, nn.Linear | nn.Conv2d)
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                tensor.data = tensor.data.to(self.dtype) if cast else tensor.data.clone()
                read += tensor.nbytes
                if read > UNREAD:
                    _forget(files)
                    read = 0
        _forget(files)
        return self

    @property
    @abstractmethod
    def default_size(self) -> tuple[int, int]:
        """Width and height that the base draws best."""

    @abstractmethod
    def encode_prompts(self, prompts: Sequence[str], reading: Reading = USUAL) -> Conditioning:
        """What the text encoders make of the prompts."""

    @abstractmethod
    def _denoise(
        self,
        noise: Tensor,
        conditioning: Conditioning,
        negative_prompt: str,
        reading: Reading,
        steps: int,
        guidance: float,
        zero_terminal_snr: bool,
    ) -> Tensor:
        """The latents (batch, channels, h, w) that the noise becomes in so many steps."""

    def with_extents(self, conditioning: Conditioning, extents: Sequence[Extent]) -> Conditioning:
        """The conditioning as it is: only SDXL reads extents."""
        return conditioning

    @torch.no_grad()
    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """Encode pixel_values (batch, 3, height, width) in [-1, 1] to scaled latents (batch, channels, h, w), float32."""
        with self._at_work("vae"):
            posterior = self._vae.encode(pixel_values.to(self.device, torch.float32)).latent_dist
        # the mean, not a draw: the posterior's spread is far below the noise of training, and the cache stays exact
        latents: Tensor = posterior.mean
        if self._vae.config.shift_factor is not None:
            latents = latents - self._vae.config.shift_factor
        latents = latents * self._vae.config.scaling_factor
        return latents

    @torch.no_grad()
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
        """One picture per prompt and seed, the start noise drawn on the CPU per picture, in float32."""
        multiple = FACTS[self.name].multiple
        for side, pixels in (("width", width), ("height", height)):
            if pixels % multiple:
                raise RecipeError(f"sample.{side} = {pixels}: the family {self.name} needs a multiple of {multiple}")
        factor = self._pixels_per_latent
        shape = (self._vae.config.latent_channels, height // factor, width // factor)
        noise = torch.stack([torch.randn(shape, generator=torch.Generator("cpu").manual_seed(s)) for s in seeds])
        conditioning = self.encode_prompts(prompts, reading)
        how = (reading, steps, guidance_scale, zero_terminal_snr)
        latents = self._denoise(noise.to(self.device), conditioning, negative_prompt, *how)
        return self._decode(latents.float())

    @property
    def releasable(self) -> tuple[str, ...]:
        """All parts but the denoiser."""
        return ("vae", *self._encoders)

    def release(self, parts: Collection[str]) -> None:
        """Keep these parts ("vae", "text_encoder", ...) off the device but for the calls that need them; () brings all back."""
        unknown = sorted(set(parts) - set(self.releasable))
        if unknown:
            raise ValueError(f"{unknown[0]!r} is no part to release (known: {', '.join(self.releasable)})")
        self._released = frozenset(parts)
        for name in self.releasable:
            self._parts[name].to("cpu" if name in self._released else self.device)

    @contextmanager
    def _at_work(self, *names: str) -> Iterator[None]:
        """Released parts are on the device meanwhile."""
        called = [name for name in names if name in self._released]
        for name in called:
            self._parts[name].to(self.device)
        try:
            yield
        finally:
            for name in called:
                self._parts[name].to("cpu")

    def _autocast(self) -> AbstractContextManager[Any]:
        on = self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype) if on else nullcontext()

    @property
    def _pixels_per_latent(self) -> int:
        return int(2 ** (len(self._vae.config.block_out_channels) - 1))

    def _decode(self, latents: Tensor) -> list[Image.Image]:
        unscaled = latents / self._vae.config.scaling_factor
        if self._vae.config.shift_factor is not None:
            unscaled = unscaled + self._vae.config.shift_factor
        with self._at_work("vae"):
            pixels = self._vae.decode(unscaled).sample
        images: list[Image.Image] = self._pipeline.image_processor.postprocess(pixels, output_type="pil")
        return images


def _mapped() -> set[Range]:
    """The addresses at which files of weights are mapped into memory, on Linux."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    ranges = [line.split(" ", 1)[0].split("-") for line in lines if line.endswith(".safetensors")]
    return {(int(start, 16), int(end, 16)) for start, end in ranges}


def _forget(files: set[Range]) -> None:
    """Tell the system that the pages of these mapped files need not stay in memory; asked for, they are read again."""
    for start, end in files:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_DONTNEED)


def _check_folder(folder: Path, family: str) -> None:
    """Raise a ModelError for a folder that holds no diffusers pipeline, or another family's."""
    try:
        found = str(json.loads((folder / "model_index.json").read_text(encoding="utf-8")).get("_class_name"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} is not a diffusers folder: it has no readable model_index.json") from error
    if FAMILY_OF.get(found, family) != family:
        raise ModelError(f'{folder} holds a {found}: set base.family = "{FAMILY_OF[found]}"')
