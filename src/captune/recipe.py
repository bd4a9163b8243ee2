"""The recipe: every setting of a run as TOML, one frozen model per section, a sentence under every field.

A recipe is read once and all its errors are told together. Imports no torch.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from captune.errors import RecipeError
from captune.parts import nearest

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]


class Section(BaseModel):
    """Common ground of all sections: frozen, unknown keys refused, docstrings under fields become descriptions."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)


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
    """`square`: centre crop to a square; `bucket`: keep the aspect ratio, to the nearest bucket of the same area."""
    bucket_step: int = Field(64, ge=8)
    """Bucket sides are multiples of this many pixels."""
    bucket_min: int | None = Field(None, ge=8)
    """Shortest side of a bucket; half the resolution if not given."""
    bucket_max: int | None = Field(None, ge=8)
    """Longest side of a bucket; twice the resolution if not given."""
    background: str = "white"
    """Colour that transparent pixels are laid on."""


class BaseSection(Section):
    """The frozen model that the LoRA is trained on."""

    family: str = "sd"
    """Which kind of model: sd (Stable Diffusion 1.x classes)."""
    model: str = "mini"
    """`mini` (embedded), a diffusers folder, or a hub name such as stable-diffusion-v1-5/stable-diffusion-v1-5."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    variant: str | None = None
    """Weights variant of a diffusers model, such as fp16."""
    device: str = "auto"
    """auto (CUDA, then Apple's MPS, then CPU), cpu, cuda, cuda:1, mps."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of the frozen weights and of autocast; auto: bf16 on CUDA and on CPUs that compute in it,
    else fp32."""


class TrainSection(Section):
    """How the LoRA is trained; names and meanings as in kohya's sd-scripts where it has them."""

    rank: int = Field(8, ge=1)
    """Rank of the update (network_dim)."""
    alpha: float = Field(8.0, gt=0)
    """The update is scaled by alpha / rank, while training and afterwards (network_alpha)."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the adapter's inputs that is zeroed while training."""
    targets: str | list[str] = "attention"
    """`attention`, `attention+feed_forward` (kohya's choice), `all_linear`, `all` (with convolutions), or
    patterns of module names."""
    text_encoder_learning_rate: float | None = Field(None, gt=0)
    """Train a LoRA on the text encoder too, at this learning rate; not given: the text encoder stays as it is."""
    learning_rate: float = Field(1e-4, gt=0)
    """Learning rate of the UNet's LoRA (unet_lr)."""
    lr_scheduler: Literal["constant", "linear", "cosine", "cosine_with_restarts"] = "constant"
    """How the learning rate changes over the run."""
    lr_scheduler_cycles: int = Field(1, ge=1)
    """Hard restarts of cosine_with_restarts."""
    lr_warmup_steps: int = Field(0, ge=0)
    """Steps over which the learning rate rises from 0."""
    epochs: int | None = Field(None, ge=1)
    """Passes over all pictures x repeats; give epochs or steps."""
    steps: int | None = Field(None, ge=1)
    """Optimizer steps in all; give epochs or steps."""
    batch_size: int = Field(1, ge=1)
    """Pictures per forward pass; a batch never mixes sizes, the last of an epoch may be short."""
    gradient_accumulation: int = Field(1, ge=1)
    """Batches per optimizer step."""
    weight_decay: float = Field(0.01, ge=0)
    """AdamW's weight decay."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's betas."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Gradients longer than this are scaled down to it; 0 for never."""
    min_snr_gamma: float | None = Field(None, gt=0)
    """Weigh the loss of a timestep by min(SNR, gamma) / SNR, or / (SNR + 1) for v-prediction (Hang et al.
    2023); usual: 5."""
    noise_offset: float = Field(0.0, ge=0)
    """Add this much of a constant per picture and channel to the noise; helps very dark and very bright pictures."""
    flip: bool = False
    """Mirror each visit with probability one half; not for captions that say left or right."""
    caption_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of visits with an empty caption."""
    seed: int = Field(0, ge=0)
    """Every draw of training is keyed by it: equal seeds give equal files."""
    save_every_epochs: int | None = Field(None, ge=1)
    """Keep a LoRA file of every so many epochs, beside the last one."""
    checkpoint_every_steps: int = Field(100, ge=1)
    """How often the whole state is saved, so that a killed run continues; costs nothing in exactness."""

    @model_validator(mode="after")
    def _one_length(self) -> TrainSection:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("give epochs or steps, not both")
        if self.lr_scheduler != "cosine_with_restarts" and self.lr_scheduler_cycles != 1:
            raise ValueError('lr_scheduler_cycles is only read by lr_scheduler = "cosine_with_restarts"')
        return self


class RegularizationSection(Section):
    """Prior preservation: pictures that are not of the subject, so that the base model keeps what it knows."""

    path: Path | None = None
    """Folder of regularization images with caption files; not given: the base model draws them itself."""
    count: int = Field(0, ge=0)
    """How many pictures the base model draws; 0 for none."""
    prompts: list[str] = []
    """What it draws, in turn; not given: the class word."""
    weight: float = Field(1.0, gt=0)
    """Their share of the loss (prior_loss_weight)."""
    repeats: int = Field(1, ge=1)
    """How often each is visited per epoch."""

    @model_validator(mode="after")
    def _path_or_count(self) -> RegularizationSection:
        if self.path is not None and self.count:
            raise ValueError("give path (your own pictures) or count (drawn by the base model), not both")
        return self

    @property
    def wanted(self) -> bool:
        return self.path is not None or self.count > 0


class CaptionerSection(Section):
    """Who writes an arm's captions."""

    name: str
    """blip (a BLIP model) or sidecar (text files beside the pictures)."""
    model: str = "mini"
    """For blip: `mini` (embedded), a folder, or a hub name such as Salesforce/blip-image-captioning-large."""
    prompt: str = ""
    """For blip: how every caption begins, such as "a photography of"."""
    batch_size: int = Field(8, ge=1)
    """Pictures captioned at a time."""
    max_new_tokens: int = Field(40, ge=1)
    """Longest caption, in the captioner's own tokens."""
    beams: int = Field(1, ge=1)
    """Beam search width; 1 for greedy."""
    extension: str = ".txt"
    """For sidecar: the caption files' extension."""
    folder: Path | None = None
    """For sidecar: where the caption files are, if not beside the pictures."""
    trigger: Literal["prefix", "replace_class", "none"] = "prefix"
    """How the trigger word is put in where it is missing: in front ("word, caption"), in place of the class
    word, or not at all."""


class ArmSection(Section):
    """One set of captions for the same pictures, and the LoRA trained on it."""

    name: Name
    """Short name of the arm, used in folders and in the report."""
    captioner: CaptionerSection
    """Who writes the captions: { name = "blip" } or { name = "sidecar" }."""

    @field_validator("name")
    @classmethod
    def _not_base(cls, value: str) -> str:
        if value == "base":
            raise ValueError("is the name of the pictures made without a LoRA; choose another")
        if value == "real":
            raise ValueError("is the name of the training pictures in the scores; choose another")
        return value


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


class EvaluateSection(Section):
    """How pictures are judged and arms compared."""

    metrics: list[str] = ["clip_t", "clip_i"]
    """clip_t (prompt following), clip_i (subject fidelity), oracle_subject, oracle_leak, oracle_background,
    oracle_prompt (mini world only)."""
    encoder: str = "mini"
    """The CLIP model behind clip_t and clip_i: `mini`, a folder, or a hub name such as
    openai/clip-vit-large-patch14."""
    batch_size: int = Field(32, ge=1)
    """Pictures judged at a time."""
    resamples: int = Field(2000, ge=100)
    """Bootstrap resamples over prompts."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Coverage of the intervals."""


class ExportSection(Section):
    """The files for other tools."""

    formats: list[str] = ["kohya", "peft"]
    """kohya (ComfyUI, Forge, AUTOMATIC1111, sd-scripts, diffusers) and peft (diffusers)."""
    precision: Literal["fp32", "fp16", "bf16"] = "fp16"
    """Number format of the exported weights."""


class Recipe(Section):
    """A whole run."""

    name: Name = "run"
    """Name of the run; the file's name if not given."""
    dataset: DatasetSection
    prepare: PrepareSection = PrepareSection()
    base: BaseSection = BaseSection()
    train: TrainSection = TrainSection()
    regularization: RegularizationSection = RegularizationSection()
    arm: list[ArmSection] = Field(min_length=1)
    sample: SampleSection = SampleSection()
    evaluate: EvaluateSection = EvaluateSection()
    export: ExportSection = ExportSection()

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        problems = []
        names = [arm.name for arm in self.arm]
        for name in sorted({n for n in names if names.count(n) > 1}):
            problems.append(f"arm: two arms are named {name!r}; names must differ")
        if self.train.epochs is None and self.train.steps is None:
            problems.append("train: give epochs or steps")
        if self.regularization.count and not (self.regularization.prompts or self.dataset.class_word):
            problems.append("regularization: count needs prompts, or dataset.class_word to draw")
        known = {"trigger_word", "class_word"}
        for index, prompt in enumerate(self.sample.prompts):
            for word in re.findall(r"{(\w*)}", prompt):
                if word not in known:
                    problems.append(
                        f"sample.prompts[{index}]: unknown {{{word}}} (known: {{trigger_word}}, {{class_word}})"
                    )
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def prompts(self) -> list[str]:
        """The sampling prompts with their words filled in."""
        words = {"{trigger_word}": self.dataset.trigger_word, "{class_word}": self.dataset.class_word}
        filled = []
        for prompt in self.sample.prompts:
            for mark, word in words.items():
                prompt = prompt.replace(mark, word)
            filled.append(" ".join(prompt.split()))
        return filled


def _known_keys(location: Sequence[str | int]) -> list[str]:
    """The keys that the section at `location` (of an unknown key) has."""
    model: Any = Recipe
    for part in location[:-1]:
        if isinstance(part, int) or model is None:
            continue
        field = model.model_fields.get(part)
        model = None
        if field is not None:
            for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
                if isinstance(kind, type) and issubclass(kind, BaseModel):
                    model = kind
    return list(model.model_fields) if model is not None else []


def _place(location: Iterable[str | int]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _sentences(error: ValidationError) -> list[str]:
    lines = []
    for problem in error.errors():
        place, message = _place(problem["loc"]), problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            known = _known_keys(problem["loc"])
            guess = nearest(str(problem["loc"][-1]), known)
            hint = f"; did you mean {guess!r}?" if guess else f" (known: {', '.join(known)})"
            lines.append(f"{place}: unknown key{hint}")
        elif problem["type"] == "missing":
            lines.append(f"{place}: is missing")
        elif problem["type"] == "value_error":
            lines += [f"{place}: {line}" if place else line for line in message.splitlines()]
        else:
            message = message[0].lower() + message[1:]
            lines.append(f"{place} = {problem['input']!r}: {message}")
    return lines


def _overridden(values: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise RecipeError(f"--set {text!r}: write it as section.key=value, for example train.rank=16")
        try:
            parsed = tomllib.loads(f"value = {value.strip()}")["value"]
        except tomllib.TOMLDecodeError:
            parsed = value.strip()  # a bare word or path, as one would write it in a shell
        place: Any = values
        *parents, last = key.strip().split(".")
        for parent in parents:
            if isinstance(place, list):
                named = [row for row in place if isinstance(row, dict) and row.get("name") == parent]
                if not named and not (parent.isdigit() and int(parent) < len(place)):
                    raise RecipeError(f"--set {text!r}: there is no {parent!r} in the list")
                place = named[0] if named else place[int(parent)]
            else:
                place = place.setdefault(parent, {})
            if not isinstance(place, dict | list):
                raise RecipeError(f"--set {text!r}: {parent!r} is a value, not a section")
        if isinstance(place, list):
            raise RecipeError(f"--set {text!r}: name one of the list's entries before {last!r}")
        place[last] = parsed
    return values


def from_values(values: Mapping[str, Any], *, source: str = "recipe", overrides: Iterable[str] = ()) -> Recipe:
    """A recipe from plain values; a RecipeError tells every problem at once, one a line."""
    changed = _overridden(_copied(values), overrides)
    try:
        return Recipe(**changed)
    except ValidationError as error:
        lines = _sentences(error)
        count = "a problem" if len(lines) == 1 else f"{len(lines)} problems"
        raise RecipeError("\n  ".join([f"{source} has {count}:", *lines])) from None


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _copied(v) for k, v in value.items()}
    return [_copied(v) for v in value] if isinstance(value, list) else value


def read(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a TOML recipe. Relative paths in it are relative to the folder one stands in, as in a shell."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"there is no recipe {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read the recipe {path}: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path} is not valid TOML: {error}") from None
    values.setdefault("name", re.sub(r"[^A-Za-z0-9_.-]", "_", path.stem))
    return from_values(values, source=str(path), overrides=overrides)


def as_toml(recipe: Recipe) -> str:
    """The resolved recipe, every value written out; reading it back gives an equal recipe."""
    values = recipe.model_dump(mode="json", exclude_none=True)
    lines = [f"name = {_toml(values.pop('name'))}"]
    for section, content in values.items():
        for table in content if isinstance(content, list) else [content]:
            lines += ["", f"[[{section}]]" if isinstance(content, list) else f"[{section}]"]
            lines += [f"{key} = {_toml(value)}" for key, value in table.items()]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return '"' + "".join(c if c >= " " and c != "\x7f" else f"\\u{ord(c):04x}" for c in escaped) + '"'
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{k} = {_toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    return repr(value)
