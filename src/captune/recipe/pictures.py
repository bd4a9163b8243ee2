"""The pictures, and the model that learns them: [dataset], [prepare], [base]."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from captune.recipe.section import Section


class DatasetSection(Section):
    """The pictures to learn from."""

    path: Path
    """Folder of pictures, with caption files beside them or not; kohya's `30_name class` subfolders set repeats."""
    trigger_word: str = ""
    """The word that will call the subject: rare, one word, the same in captions and prompts."""
    class_word: str = ""
    """What the subject is, in a common word (dog, man, creature); takes the trigger word's place when prompts
    are judged."""
    repeats: int = Field(1, ge=1)
    """How often each picture is visited per epoch (kohya's num_repeats)."""
    resolution: int = Field(512, ge=16)
    """Side in pixels of a square picture; with buckets the area is resolution x resolution."""


class PrepareSection(Section):
    """How pictures are brought to the size that training needs."""

    crop: Literal["square", "bucket"] = "square"
    """`square`: a square around the subject (`focus`); `bucket`: keep the aspect ratio, to the nearest bucket of the same
    area, cut around the centre."""
    focus: Literal["auto", "faces", "saliency", "center"] = "auto"
    """What a square is cut around: the subject's face, what stands out (the spectral residual: Hou and Zhang 2007), the
    centre; auto: a face where a detector is installed and finds one, else what stands out."""
    bucket_step: int = Field(64, ge=8)
    """Bucket sides are multiples of this many pixels."""
    bucket_min: int | None = Field(None, ge=8)
    """Shortest side of a bucket; half the resolution if not given."""
    bucket_max: int | None = Field(None, ge=8)
    """Longest side of a bucket; twice the resolution if not given."""
    bucket_no_upscale: bool = False
    """Pictures that are smaller than the resolution's area are not enlarged: sides down to a multiple of bucket_step are
    their bucket; larger ones get the bucket that their own shape makes (kohya's option of that name)."""
    background: str = "white"
    """Colour that transparent pixels are laid on."""
    smallest_side: int = Field(16, ge=1)
    """Pictures with a side of fewer pixels are left out, by name."""
    near_duplicates: Literal["keep", "drop"] = "keep"
    """Pictures that show nearly the same are always named in pairs; `drop` leaves out all but the largest of them."""
    duplicate_distance: int = Field(10, ge=0, le=32)
    """Up to how many of 64 bits the perceptual hashes of near-duplicates differ."""
    blur_faces: Literal["none", "others", "all"] = "none"
    """Blur faces: `others` keeps the subject's, `all` none. Masks are written too, and no loss reads what is blurred,
    whatever train.masked_loss says."""
    face_detector: str | None = None
    """centerface, haar, or yunet (with face_model); the best that is installed if not given."""
    face_model: Path | None = None
    """The detector's model file, in place of the installed one."""
    face_reference: Path | None = None
    """A picture of the subject's face: the face most like it is the subject's. Not given: the largest and most central."""
    contact_sheet: int = Field(240, ge=0)
    """How many pictures the contact sheet shows at most, those with faces first."""

    @model_validator(mode="after")
    def _all_is_read(self) -> PrepareSection:
        """An option that another one leaves without effect is refused."""
        apart = [name for name in self.set_apart if name.startswith("bucket_")]
        if self.crop == "square" and apart:
            raise ValueError("\n".join(f'{name} is only read by crop = "bucket"' for name in apart))
        if self.bucket_no_upscale and (ends := {"bucket_min", "bucket_max"} & set(apart)):
            raise ValueError(
                "\n".join(
                    f"{name} is not read with bucket_no_upscale: buckets follow from the pictures"
                    for name in sorted(ends)
                )
            )
        return self


class BaseSection(Section):
    """The frozen model that the LoRA is trained on."""

    family: str = "sd"
    """Which kind of model: sd (Stable Diffusion 1.x and 2.x), sdxl (Stable Diffusion XL), flux (FLUX.1 dev, schnell)."""
    model: str = "mini"
    """`mini` (embedded), a diffusers folder, a checkpoint file (.safetensors; .ckpt for sd), or a hub name such as
    stable-diffusion-v1-5/stable-diffusion-v1-5."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    variant: str | None = None
    """Weights variant of a diffusers model, such as fp16."""
    device: str = "auto"
    """auto (CUDA, then Apple's MPS, then CPU), cpu, cuda, cuda:1, mps."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of the frozen weights and of autocast; auto: bf16 on CUDA and on CPUs that compute in it,
    else fp32."""
