"""What is drawn, judged and written: [sample], [study], [evaluate], [export]."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from captune.recipe.section import Section


class SampleSection(Section):
    """The pictures drawn with and without each LoRA: the same prompts and seeds for every arm."""

    prompts: list[str] = []
    """What to draw; {trigger_word} and {class_word} are filled in. Prompts without the trigger word show what
    else changed."""
    seeds: list[int] = [0]
    """Every prompt is drawn once per seed."""
    steps: int = Field(20, ge=1)
    """Denoising steps."""
    guidance_scale: float = Field(5.0, ge=0)
    """Classifier-free guidance."""
    negative_prompt: str = ""
    """What not to draw."""
    width: int | None = Field(None, ge=8)
    """Pixels; the base's own size if not given."""
    height: int | None = Field(None, ge=8)
    """Pixels; the base's own size if not given."""
    batch_size: int = Field(8, ge=1)
    """Pictures drawn at a time; part of what must be equal for equal pictures."""
    every_epochs: int | None = Field(None, ge=1)
    """Also draw the first `progress_prompts` prompts every so many epochs, to see the training's progress."""
    progress_prompts: int = Field(4, ge=1)
    """How many prompts, with the first seed, are drawn for progress."""


class StudySection(Section):
    """What makes a comparison of arms trustworthy: several trainings per arm, and what is asked of them."""

    training_seeds: list[Annotated[int, Field(ge=0)]] = []
    """Every arm is trained once per seed; not given: once, with train.seed. Three or more allow claims about the
    captions; fewer only about these files."""
    primary: str = ""
    """The metric that decides, declared before anything is measured; not given: the first of evaluate.metrics."""
    held_out: int = Field(0, ge=0)
    """How many of the pictures no arm is trained on; the denoising loss is then measured on them."""
    denoising: bool = True
    """Measure the denoising loss of every LoRA on every arm's captions."""
    reproduction_seeds: list[int] = [0]
    """Seeds with which every training picture is asked back by its own caption; [] to leave this out."""
    caption_references: str = ""
    """The arm whose captions are the truth: the other arms' captions are scored against them (BLEU, ROUGE-L, CIDEr)."""
    repeat: bool = False
    """Train and draw the first arm's first seed once more, and compare the files byte by byte."""

    @field_validator("training_seeds", "reproduction_seeds")
    @classmethod
    def _different(cls, value: list[int]) -> list[int]:
        if len(set(value)) < len(value):
            raise ValueError("names a seed twice; equal seeds give equal results")
        return value


class EvaluateSection(Section):
    """How pictures are judged and arms compared."""

    metrics: list[str] | None = None
    """clip_t (prompt following), clip_i and clip_i_best (subject fidelity), dino and dino_best, memorization,
    diversity, leak_change, leak_subject, reproduction; of the mini world only: oracle_subject, oracle_leak,
    oracle_background, oracle_prompt. Not given: all but the oracle's, and dino where there is a dino_encoder; [] for none."""
    encoder: str = "auto"
    """The CLIP model behind clip_*, memorization, diversity, leak_* and reproduction: `mini`, a folder, or a hub name;
    auto: the mini family's own, or openai/clip-vit-large-patch14 for real models."""
    dino_encoder: str = "auto"
    """The DINOv2 model behind dino: a folder or a hub name; auto: facebook/dinov2-base for real models, and none
    for the mini family."""
    batch_size: int = Field(32, ge=1)
    """Pictures judged at a time."""
    resamples: int = Field(2000, ge=100)
    """Bootstrap resamples over training runs and prompts."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Coverage of the intervals."""

    @property
    def measured(self) -> list[str]:
        """The metrics by name; none where they are not named (Recipe.judging names them)."""
        return list(self.metrics or [])


class ExportSection(Section):
    """The files for other tools."""

    formats: list[str] = ["kohya", "peft"]
    """kohya (ComfyUI, Forge, AUTOMATIC1111, sd-scripts, diffusers), peft (diffusers), merged (a diffusers folder of the base
    with the LoRA in it)."""
    precision: Literal["fp32", "fp16", "bf16"] = "fp16"
    """Number format of the exported weights."""


# What is measured unless a recipe says otherwise; the first decides.
MEASURED = (
    *("clip_i", "clip_t", "dino", "clip_i_best", "memorization", "diversity"),
    *("leak_change", "leak_subject", "reproduction"),
)
