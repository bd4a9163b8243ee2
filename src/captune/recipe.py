"""The recipe: every setting of a run as TOML, one frozen model per section, a sentence under every field.

A recipe is read once and all its errors are told together. Imports no torch.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator, model_validator

from captune.errors import RecipeError
from captune.parts import nearest

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
DEFAULT_TUNE_EPOCHS = 5
SET_BY_CAPTUNE = frozenset({"messages", "model", "n", "stream"})  # fields of a request to a server that captions


class Section(BaseModel):
    """Common ground of all sections: frozen, unknown keys refused, docstrings under fields become descriptions."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)

    @property
    def set_apart(self) -> list[str]:
        """The fields that have another value than their default."""
        fields = type(self).model_fields
        return [
            name
            for name, field in fields.items()
            if getattr(self, name) != field.get_default(call_default_factory=True)
        ]


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


class TrainSection(Section):
    """How the LoRA is trained; names and meanings as in kohya's sd-scripts where it has them."""

    kind: Literal["lora", "dora", "loha", "lokr"] = "lora"
    """How the update dW is built, with s = alpha / rank: lora (Hu et al. 2021) s B A; dora (Liu et al. 2024) a magnitude m
    for each output and m (W + s B A) / |W + s B A| as the weight; loha (Hyeon-Woo et al. 2022) s (B1 A1) * (B2 A2), value
    by value; lokr s C x (B A), Kronecker's product, C and B A of about the root of the size. The latter two as in LyCORIS,
    without its decomposition of convolutions."""
    rank: int = Field(8, ge=1)
    """Rank of the update (network_dim)."""
    ranks: dict[str, Annotated[int, Field(ge=1)]] = {}
    """Other ranks for some modules: { "mid_block" = 16 }, by a regular expression that is found in the module's name, such
    as unet.mid_block.attentions.0; the first that is found counts. Alpha is scaled along, so alpha / rank stays the same."""
    alpha: float = Field(8.0, gt=0)
    """The update is scaled by alpha / rank, while training and afterwards (network_alpha)."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the adapter's inputs that is zeroed while training; of lora and dora (LyCORIS's kinds have none)."""
    targets: str | list[str] = "attention"
    """`attention`, `attention+feed_forward` (kohya's choice), `all_linear`, `all` (with convolutions), or
    patterns of module names."""
    text_encoder_learning_rate: float | None = Field(None, gt=0)
    """Train a LoRA on the text encoder too, at this learning rate; not given: the text encoder stays as it is."""
    learning_rate: float = Field(1e-4, gt=0)
    """Learning rate of the LoRA on UNet or transformer (unet_lr)."""
    optimizer: str = "adamw"
    """adamw (fused), adafactor (at the recipe's learning rate), prodigy, lion, schedule_free_adamw (these three:
    `captune[optimizers]`), adamw8bit, paged_adamw8bit, lion8bit (on CUDA: `captune[bitsandbytes]`), or a class as
    `module:Class`."""
    optimizer_options: dict[str, float | int | bool | str] = {}
    """More arguments of the optimizer's class, such as { d_coef = 2.0 } for prodigy."""
    lr_scheduler: Literal["constant", "linear", "cosine", "cosine_with_restarts", "polynomial"] = "constant"
    """How the learning rate changes over the run."""
    lr_power: float = Field(1.0, gt=0)
    """Exponent of polynomial: (1 - progress) ^ power (kohya's lr_scheduler_power)."""
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
    """The optimizer's weight decay, whichever it is: a step takes learning rate x this from every weight."""
    betas: tuple[float, float] | None = None
    """The optimizer's betas; not given: its own, such as (0.9, 0.999) of AdamW and (0.9, 0.99) of Lion."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Gradients longer than this are scaled down to it; 0 for never."""
    min_snr_gamma: float | None = Field(None, gt=0)
    """Weigh the loss of a timestep by min(SNR, gamma) / SNR, or / (SNR + 1) for v-prediction (Hang et al.
    2023); usual: 5."""
    debiased_estimation: bool = False
    """Weigh the loss of a timestep by 1 / sqrt(SNR), or 1 / (SNR + 1) for v-prediction, with SNR at most 1000 (Yu et al.
    2023; kohya's debiased_estimation_loss)."""
    zero_terminal_snr: bool = False
    """Rescale the noise schedule so that its last step is pure noise (Lin et al. 2023), in training and in drawing; only
    for bases that predict v. Other tools must be told to draw so (`ztsnr`, `rescale_betas_zero_snr`)."""
    loss: Literal["l2", "huber", "smooth_l1"] = "l2"
    """l2: d^2; against outliers, with c = huber_c: huber, 2 c (sqrt(d^2 + c^2) - c), or smooth_l1, that over c (pseudo-Huber,
    Khrapov et al. 2024; kohya's loss_type, with huber_schedule "constant")."""
    huber_c: float = Field(0.1, gt=0)
    """Where huber and smooth_l1 turn from square to linear (kohya's huber_c)."""
    min_timestep: int = Field(0, ge=0)
    """Smallest timestep that is drawn, of the base's schedule (1000 in all)."""
    max_timestep: int = Field(1000, ge=1, le=1000)
    """Timesteps are drawn below this one; for FLUX from that part of the distribution (kohya's scripts ignore both there)."""
    ip_noise_gamma: float = Field(0.0, ge=0)
    """Input perturbation: noisy latents are made with noise + gamma x another noise, the target keeps the noise (Ning et al.
    2023; kohya's ip_noise_gamma); usual: 0.1."""
    masked_loss: bool = False
    """Leave out of the loss what a mask beside the picture shows in black (0.mask.png beside 0.jpg; white = learn, grey = in
    part). The loss is the mean over what is learned, so a small mask weighs as much as a large one (kohya divides by the
    whole picture). A picture without a mask is learned everywhere."""
    noise_offset: float = Field(0.0, ge=0)
    """Add this much of a normal number per picture and channel to the noise, target included; helps very dark and very
    bright pictures."""
    timestep_sampling: Literal["uniform", "sigmoid", "logit_normal", "shift"] | None = None
    """FLUX: how noisy a visit is. `sigmoid` (the default there) prefers the middle, `logit_normal` any part by its mean,
    `shift` moves sigmoid's draws towards noise, `uniform` prefers none."""
    timestep_mean: float = 0.0
    """FLUX, logit_normal: the mean of the normal number behind the draw; above 0 is noisier."""
    timestep_scale: float = Field(1.0, gt=0)
    """FLUX: the normal number's standard deviation (kohya's sigmoid_scale)."""
    timestep_shift: float | None = Field(None, gt=0)
    """FLUX, shift: by how much (kohya's discrete_flow_shift); not given: by the picture's size, as FLUX draws."""
    flip: bool = False
    """Mirror each visit with probability one half; not for captions that say left or right."""
    caption_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of visits with an empty caption."""
    shuffle_caption: bool = False
    """Shuffle the parts between commas anew at each visit, as kohya does; the text is then encoded at each step instead of
    once, which is slower and keeps the text encoder on the device."""
    keep_tokens: int = Field(0, ge=0)
    """How many leading parts between commas stay when shuffling and dropping (kohya counts parts, not tokens); 1 keeps a
    trigger word that is put in front."""
    tag_dropout: float = Field(0.0, ge=0, lt=1)
    """Chance of each part between commas, beyond the kept ones, to be left out of a visit (kohya's
    caption_tag_dropout_rate); text is encoded at each step, as with shuffle_caption."""
    caption_chunks: int = Field(1, ge=1, le=3)
    """How many chunks of 75 tokens CLIP reads of captions and prompts: 1, 2 or 3 (kohya's max_token_length 75, 150, 225)."""
    clip_skip: int = Field(1, ge=1, le=12)
    """Which of CLIP's layers is read, from the end, before its last norm: 1 is the last. The run draws and judges with the
    same; other tools must be told."""
    seed: int = Field(0, ge=0)
    """Every draw of training is keyed by it: equal seeds give equal files."""
    ema: float = Field(0.0, ge=0, lt=1)
    """Keep an exponential moving average of the LoRA with this decay (usual: 0.99) and take it as the result."""
    gradient_checkpointing: bool = False
    """Trade a quarter of the speed for memory: activations are computed again in the backward pass; same losses."""
    compile: bool = False
    """torch.compile the denoiser's blocks: slow to start, then faster, mostly on GPUs."""
    save_every_epochs: int | None = Field(None, ge=1)
    """Keep a LoRA file of every so many epochs, beside the last one."""
    save_every_steps: int | None = Field(None, ge=1)
    """Keep a LoRA file of every so many steps."""
    keep_last: int | None = Field(None, ge=1)
    """Keep only so many of these files, the newest; not given: all."""
    stop_after: int | None = Field(None, ge=1)
    """Stop when the held-out denoising loss (study.held_out) has not improved for so many epochs."""
    checkpoint_every_steps: int = Field(100, ge=1)
    """How often the whole state is saved, so that a killed run continues; costs nothing in exactness."""

    @field_validator("ranks")
    @classmethod
    def _patterns(cls, value: dict[str, int]) -> dict[str, int]:
        for pattern in value:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        return value

    @model_validator(mode="after")
    def _one_length(self) -> TrainSection:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("give epochs or steps, not both")
        return self

    @model_validator(mode="after")
    def _all_is_read(self) -> TrainSection:
        """An option that another one leaves without effect is refused."""
        curve, sampling = self.lr_scheduler, self.timestep_sampling
        pieces = self.shuffle_caption or self.tag_dropout > 0
        only = [
            ("lr_scheduler_cycles", curve == "cosine_with_restarts", 'lr_scheduler = "cosine_with_restarts"'),
            ("lr_power", curve == "polynomial", 'lr_scheduler = "polynomial"'),
            ("dropout", self.kind in ("lora", "dora"), "kind = lora and dora"),
            ("huber_c", self.loss != "l2", "loss = huber and smooth_l1"),
            ("keep_tokens", pieces, "shuffle_caption and tag_dropout"),
            ("timestep_mean", sampling == "logit_normal", 'timestep_sampling = "logit_normal"'),
            ("timestep_scale", sampling != "uniform", "a timestep_sampling other than uniform"),
            ("timestep_shift", sampling == "shift", 'timestep_sampling = "shift"'),
        ]
        apart = self.set_apart
        problems = [f"{name} is only read by {reader}" for name, read, reader in only if name in apart and not read]
        if self.min_timestep >= self.max_timestep:
            problems.append(
                f"min_timestep = {self.min_timestep} must be below max_timestep = {self.max_timestep}: none is left to draw"
            )
        if problems:
            raise ValueError("\n".join(problems))
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
    """blip (a BLIP model), blip2 (a BLIP-2 model), vlm (a chat model that sees pictures), openai_api (such a model behind an
    OpenAI-compatible server), tagger (an ONNX tagger), sidecar (text files beside the pictures), filename or constant."""
    model: str = "mini"
    """For blip: `mini` (embedded), a folder, or a hub name such as Salesforce/blip-image-captioning-large; for blip2 (such as
    Salesforce/blip2-opt-2.7b), vlm and tagger: a folder or a hub name; for openai_api: the server's name of the model."""
    adapter: Path | None = None
    """For blip and blip2: the folder of a LoRA that `captune tune-captioner` trained on this model."""
    prompt: str = ""
    """For blip: how every caption begins, such as "a photography of"; for blip2: what it is asked to go on from; for vlm and
    openai_api: the instruction, in which {trigger_word}, {class_word}, {tags} and {file_name} are filled in. Not given: one
    plain description is asked for."""
    prompt_file: Path | None = None
    """For vlm and openai_api: a text file with the instruction."""
    batch_size: int = Field(8, ge=1)
    """Pictures captioned at a time; for openai_api: requests under way at most."""
    max_new_tokens: int = Field(40, ge=1)
    """Longest caption, in the captioner's own tokens; for vlm and openai_api 300 if not given."""
    beams: int = Field(1, ge=1)
    """Beam search width; 1 for greedy."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """For vlm: number format of the weights; auto: bf16 on CUDA, else fp32."""
    quantize: Literal["8bit", "4bit"] | None = None
    """For vlm: load the weights in 8 or 4 bits (on CUDA: `captune[bitsandbytes]`)."""
    base_url: str = "https://api.openai.com/v1"
    """For openai_api: where the server is, such as http://localhost:8000/v1 (vLLM), http://localhost:11434/v1 (Ollama) or
    http://localhost:1234/v1 (LM Studio)."""
    api_key_env: str | None = None
    """For openai_api: the environment variable that holds the key. Not given: OPENAI_API_KEY for api.openai.com, and none
    for any other server."""
    image_size: int = Field(1024, ge=16)
    """For openai_api: longest side in pixels of the pictures that are sent; smaller ones are sent as they are."""
    image_format: Literal["jpeg", "png"] = "jpeg"
    """For openai_api: how pictures are sent."""
    temperature: float = Field(0.0, ge=0)
    """For openai_api: how freely words are drawn; 0 takes the likeliest."""
    seed: int | None = None
    """For openai_api: sent along where given; few servers promise anything about it."""
    request: dict[str, JsonValue] = {}
    """For openai_api: more fields of a request, such as { top_p = 0.9 }; "" leaves a field out, as in
    { temperature = "", max_tokens = "", max_completion_tokens = 900 } for models that reason."""
    timeout: float = Field(120.0, gt=0)
    """For openai_api: seconds in which an answer must have come whole."""
    retries: int = Field(5, ge=0)
    """For openai_api: how often a request is sent again after an answer of 429 or 5xx, none, or none that can be read."""
    price_in: float = Field(0.0, ge=0)
    """For openai_api: price of a million tokens that are read (pictures too), in any currency."""
    price_out: float = Field(0.0, ge=0)
    """For openai_api: price of a million tokens that are written, in the same currency."""
    spending_limit: float | None = Field(None, gt=0)
    """For openai_api: the most that this arm's captions may cost, earlier runs included, in the currency of the prices."""
    threshold: float = Field(0.35, gt=0, lt=1)
    """For tagger: how sure it must be of a general tag."""
    character_threshold: float = Field(0.85, gt=0, lt=1)
    """For tagger: how sure it must be of a character's name."""
    underscores: bool = False
    """For tagger: keep the underscores in tags, which are spaces otherwise."""
    exclude_tags: list[str] = []
    """For tagger: tags that are left out."""
    first_tags: list[str] = []
    """For tagger: tags that stand in front where they are found, in this order; the others follow, the surest first."""
    text: str = ""
    """For constant: every picture's caption, in which {trigger_word} and {class_word} are filled in."""
    extension: str = ".txt"
    """For sidecar: the caption files' extension; for vlm and openai_api: that of the files that {tags} are read from."""
    folder: Path | None = None
    """For sidecar: where the caption files are, if not beside the pictures; for vlm and openai_api: where those of {tags}
    are."""
    trigger: Literal["prefix", "replace_class", "none"] = "prefix"
    """How the trigger word is put in where it is missing: in front ("word, caption"), in place of the class
    word, or not at all."""

    @model_validator(mode="before")
    @classmethod
    def _room_to_describe(cls, values: Any) -> Any:
        """Models that follow an instruction need more tokens than those that write one sentence."""
        if isinstance(values, dict) and values.get("name") in ("vlm", "openai_api"):
            return {"max_new_tokens": 300, **values}
        return values

    @model_validator(mode="after")
    def _fits_together(self) -> CaptionerSection:
        problems = []
        if self.prompt and self.prompt_file is not None:
            problems.append("give prompt or prompt_file, not both")
        if self.spending_limit is not None and not (self.price_in or self.price_out):
            problems.append("spending_limit needs price_in and price_out: without them nothing is known to be spent")
        if "@" in self.base_url.partition("://")[2].partition("/")[0]:
            problems.append("base_url holds a name or password, which would stand in the run folder; use api_key_env")
        problems += [f"request.{field} cannot be set" for field in sorted(SET_BY_CAPTUNE & self.request.keys())]
        if problems:
            raise ValueError("\n".join(problems))
        return self


class TuneSection(Section):
    """A LoRA for a captioner, trained on pictures that have captions already; judged on pictures kept apart."""

    captioner: CaptionerSection = CaptionerSection(name="blip")
    """Whom to tune (blip or blip2), and how it decodes before and after; within an arm, the arm's own captioner."""
    path: Path | None = None
    """Folder of pictures with caption files beside them, or with a metadata.jsonl; give this or dataset."""
    extension: str = ".txt"
    """The caption files' extension."""
    dataset: str = ""
    """A data set by name, such as jxie/coco_captions, or a folder that the `datasets` library reads; it is streamed, and its
    pictures are kept on disk (`captune[datasets]`)."""
    config: str = ""
    """Which configuration of that data set; not given: its own default."""
    split: str = "train"
    """Which of that data set's splits the pictures are taken from; they are split again here."""
    count: int | None = Field(None, ge=1)
    """How many pictures are taken, from the beginning; of a data set by name no more than these are loaded."""
    image_column: str = ""
    """That data set's column of pictures; not given: the only one that holds pictures."""
    caption_column: str = ""
    """Its column of captions, a text or a list of texts; not given: caption, captions, text, sentences or answer."""
    validation: float = Field(0.1, ge=0, lt=1)
    """Share of the pictures that tells which epoch is best."""
    test: float = Field(0.1, ge=0, lt=1)
    """Share of the pictures that the captioner is judged on, before and after; near-duplicates stay on one side."""
    rank: int = Field(16, ge=1)
    """Rank of the update."""
    alpha: float = Field(32.0, gt=0)
    """The update is scaled by alpha / rank."""
    dropout: float = Field(0.05, ge=0, lt=1)
    """Share of the adapter's inputs that is zeroed while training."""
    targets: str | list[str] = "text"
    """`text` (the language model), `cross_attention` (where it looks at the picture), `vision`, `all_linear`, or patterns of
    whole module names; a plain name such as `query` may stand for all modules that end in it."""
    learning_rate: float = Field(1e-4, gt=0)
    """Learning rate of the LoRA."""
    optimizer: str = "adamw"
    """As train.optimizer."""
    optimizer_options: dict[str, float | int | bool | str] = {}
    """As train.optimizer_options."""
    weight_decay: float = Field(0.01, ge=0)
    """A step takes learning rate x this from every weight."""
    lr_scheduler: Literal["constant", "linear", "cosine"] = "linear"
    """How the learning rate changes over the run."""
    lr_warmup_steps: int = Field(0, ge=0)
    """Steps over which the learning rate rises from 0."""
    epochs: int | None = Field(None, ge=1)
    """Passes over the training pictures, one of its captions each time; give epochs or steps. Neither: 5 epochs."""
    steps: int | None = Field(None, ge=1)
    """Optimizer steps in all; give epochs or steps."""
    batch_size: int = Field(8, ge=1)
    """Pictures per forward pass."""
    gradient_accumulation: int = Field(1, ge=1)
    """Batches per optimizer step."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Gradients longer than this are scaled down to it; 0 for never."""
    seed: int = Field(0, ge=0)
    """Every draw is keyed by it, the split of the pictures too: equal seeds give equal files."""
    gradient_checkpointing: bool = False
    """Trade speed for memory: activations are computed again in the backward pass; same losses."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Number format of the frozen weights; auto: bf16 on CUDA, else fp32. The LoRA is always fp32."""
    quantize: Literal["8bit", "4bit"] | None = None
    """Load the frozen weights in 8 or 4 bits (on CUDA: `captune[bitsandbytes]`)."""
    device: str = "auto"
    """auto (CUDA, then Apple's MPS, then CPU), cpu, cuda, cuda:1, mps; within an arm, base.device."""
    watch: Literal["loss", "cider"] = "loss"
    """What tells the best epoch on the validation pictures: the loss of their captions, or CIDEr of what is generated."""
    stop_after: int | None = Field(None, ge=1)
    """Stop when that has not improved for so many epochs."""
    checkpoint_every_steps: int = Field(100, ge=1)
    """How often the whole state is saved, so that a killed run continues."""
    metrics: list[str] = ["bleu", "rouge_l", "cider", "length", "vocabulary", "endings", "repetition", "novelty"]
    """What the test captions are scored by, as in `captune score-captions`; cider, which decides, is needed."""
    samples: int = Field(2, ge=0)
    """How many pictures are captioned after every epoch, to see the training's progress."""
    merged: bool = False
    """Also write the whole model with the LoRA in it."""
    push: str = ""
    """A hub repository (owner/name) that the adapter is uploaded to; the token is taken from HF_TOKEN alone."""

    @model_validator(mode="after")
    def _fits_together(self) -> TuneSection:
        problems = []
        if (self.path is None) == (not self.dataset):
            problems.append("give path (a folder of pictures with captions) or dataset (a name), one of them")
        if self.epochs is not None and self.steps is not None:
            problems.append("give epochs or steps, not both")
        if self.validation + self.test >= 1:
            problems.append(f"validation = {self.validation} and test = {self.test} leave no pictures to train on")
        if not self.validation and (self.stop_after is not None or self.watch != "loss"):
            problems.append("stop_after and watch need validation pictures; set validation above 0")
        if "cider" not in self.metrics:
            problems.append("metrics: cider, which decides, is missing")
        if self.quantize and self.merged:
            problems.append("merged: a LoRA is not merged into quantized weights; leave one of merged, quantize out")
        apart = self.set_apart
        reader = "dataset" if self.path is not None else "path"
        unread = ("config", "split", "image_column", "caption_column") if self.path is not None else ("extension",)
        problems += [f"{name} is only read with {reader}" for name in unread if name in apart]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def as_training(self) -> TrainSection:
        """What the optimizer and the learning rate's curve are made from."""
        names = ("rank", "alpha", "dropout", "learning_rate", "optimizer", "optimizer_options", "weight_decay")
        more = ("lr_scheduler", "lr_warmup_steps", "batch_size", "gradient_accumulation", "max_grad_norm", "seed")
        length = {"epochs": self.epochs_in_all, "steps": self.steps}
        return TrainSection(**{name: getattr(self, name) for name in (*names, *more)}, **length)

    @property
    def epochs_in_all(self) -> int | None:
        """The epochs, where no number of steps is given."""
        return self.epochs or (DEFAULT_TUNE_EPOCHS if self.steps is None else None)


class TextSection(Section):
    """What is done to an arm's captions after its captioner, in this order; doing it again changes nothing."""

    regex: dict[str, str] = {}
    """Regular expressions, and what is put in the place of their finds: { "colou?r" = "shade" }."""
    replace: dict[str, str] = {}
    """Words or phrases, in whatever case, and what is put in their place: { puppy = "dog" }; "" takes them out."""
    ban: list[str] = []
    """Phrases that are taken out, and lists of them by name: openers ("a close up of", "there is"), watermarks ("with a
    watermark in the corner"), hedges ("seems to be", "perhaps")."""
    case: Literal["keep", "lower"] = "keep"
    """Write everything but the trigger word in small letters, or leave it."""
    absorb: float | None = Field(None, gt=0, le=1)
    """Take out the words that stand in at least this share of the arm's captions, such as 0.6: the subject's own colours,
    parts and clothes, which are left to the trigger word. Class word, trigger word and function words stay."""
    no_repetition: bool = False
    """Take out words, phrases and parts between commas that are said again."""
    add_class_word: bool = False
    """Put the class word behind the trigger word in captions that lack it."""
    begins_with: str = ""
    """How every caption begins; {trigger_word} and {class_word} are filled in."""
    max_tokens: int | None = Field(None, ge=3)
    """Cut captions to so many of the base's own tokens, start and end included, never within a word."""

    @model_validator(mode="after")
    def _makes_sense(self) -> TextSection:
        problems = [*self._regex_problems(), *self._replace_problems()]
        problems += [f"ban[{i}] is empty" for i, phrase in enumerate(self.ban) if not phrase.strip()]
        for word in re.findall(r"{(\w*)}", self.begins_with):
            if word not in ("trigger_word", "class_word"):
                problems.append(f"begins_with: unknown {{{word}}} (known: {{trigger_word}}, {{class_word}})")
        if not self.set_apart:
            problems.append("names no rule; leave it out")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _regex_problems(self) -> list[str]:
        problems = []
        for pattern, put in self.regex.items():
            try:
                compiled = re.compile(pattern)
                compiled.sub(put, "")
            except (re.error, IndexError) as error:
                problems.append(f"regex: {pattern!r} = {put!r}: {error}")
                continue
            if compiled.search("") is not None:
                problems.append(f"regex: {pattern!r} finds the empty text, which stands everywhere")
        return problems

    def _replace_problems(self) -> list[str]:
        problems = []
        for find, put in self.replace.items():
            if not find.strip():
                problems.append("replace: an empty text stands everywhere; name a word")
            for other in self.replace:
                if other.strip() and re.search(rf"(?<!\w){re.escape(other)}(?!\w)", put, re.IGNORECASE):
                    problems.append(
                        f"replace: {put!r}, put in for {find!r}, holds {other!r} and would be replaced again"
                    )
        return problems

    def filled_start(self, trigger_word: str, class_word: str) -> str:
        """How captions begin, with its words filled in."""
        filled = self.begins_with.replace("{trigger_word}", trigger_word).replace("{class_word}", class_word)
        return " ".join(filled.split())


class LengthMatch(Section):
    """Another arm's captions, each cut to the length that a third arm's caption of the same picture has."""

    captions: Name
    """The arm whose captions are cut."""
    lengths: Name
    """The arm whose lengths, in the base's own tokens, they are cut to."""


class ArmSection(Section):
    """One set of captions for the same pictures, and the LoRA trained on it."""

    name: Name
    """Short name of the arm, used in folders and in the report."""
    captioner: CaptionerSection | None = None
    """Who writes the captions: { name = "blip" } or { name = "sidecar" }."""
    tune: TuneSection | None = None
    """Train a LoRA for this captioner first, as [tune] says: { path = "my_captions", epochs = 5 }."""
    text: TextSection | None = None
    """Rules for the captions after the captioner: { absorb = 0.6, ban = ["openers"] }."""
    shuffled: Name | None = None
    """Instead of a captioner: this arm's captions dealt to the wrong pictures, a control that should do worse."""
    length_matched: LengthMatch | None = None
    """Instead of a captioner: { captions = "human", lengths = "blip" } takes human's captions, cut to blip's lengths."""
    trigger_only: bool = False
    """Instead of a captioner: nothing but the trigger word and the class word, the baseline that captions should beat."""
    train: dict[str, Any] = {}
    """Values of [train] that this arm has otherwise, such as { rank = 16 }; the report says so."""
    human_minutes: float | None = Field(None, ge=0)
    """How long a person wrote these captions, for the report's table of efforts."""

    @model_validator(mode="after")
    def _one_source(self) -> ArmSection:
        sources = [self.captioner, self.shuffled, self.length_matched, self.trigger_only or None]
        if sum(source is not None for source in sources) != 1:
            raise ValueError(
                'give one of captioner (such as { name = "blip" }), shuffled, length_matched, trigger_only'
            )
        if self.tune is not None:
            if self.captioner is None:
                raise ValueError("tune needs a captioner that is tuned")
            if self.captioner.adapter is not None:
                raise ValueError("give captioner.adapter (tuned already) or tune, not both")
            for option in ("captioner", "device"):
                if option in self.tune.set_apart:
                    raise ValueError(f"tune.{option}: within an arm this is the arm's captioner, on base.device")
        if self.text is not None and self.captioner is None:
            raise ValueError("text needs a captioner: captions made of another arm's follow the rules of that arm")
        return self

    @property
    def derived_from(self) -> list[str]:
        """The arms whose captions this one is made of."""
        if self.length_matched is not None:
            return [self.length_matched.captions, self.length_matched.lengths]
        return [self.shuffled] if self.shuffled is not None else []

    @property
    def source(self) -> str:
        """Who or what the captions come from, in a word or two."""
        if self.captioner is not None:
            return self.captioner.name
        if self.shuffled is not None:
            return f"shuffled {self.shuffled}"
        return " at the length of ".join(self.derived_from) if self.length_matched else "trigger word only"

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


def _with_changes(section: TrainSection, changes: Mapping[str, Any]) -> TrainSection:
    values = section.model_dump()
    if "epochs" in changes or "steps" in changes:  # an arm that has its own length has only that
        values |= {"epochs": None, "steps": None}
    return TrainSection(**{**values, **changes})


def _text_problems(place: str, text: TextSection, trigger_word: str, class_word: str) -> list[str]:
    """Rules that would take the trigger word out, or that need a word that the data set does not name."""
    problems = []
    word = " ".join(trigger_word.split()).lower()
    if text.absorb is not None and not word:
        problems.append(f"{place}.absorb leaves words to the trigger word; give dataset.trigger_word")
    if text.add_class_word and not (word and class_word.strip()):
        problems.append(f"{place}.add_class_word needs dataset.trigger_word and dataset.class_word")
    for option, phrases in (("ban", text.ban), ("replace", list(text.replace))):
        taken = [
            p for p in phrases if word and re.search(rf"(?<!\w){re.escape(word)}(?!\w)", " ".join(p.split()).lower())
        ]
        problems += [f"{place}.{option}: {phrase!r} would take the trigger word out" for phrase in taken]
    return problems


def _arm_problems(arms: Sequence[ArmSection], train: TrainSection, trigger_word: str, class_word: str) -> list[str]:
    """What is wrong with the arms beside each one's own fields: settings of [train], and arms made of others."""
    problems = []
    by_name = {arm.name: arm for arm in arms}
    for index, arm in enumerate(arms):
        place = f"arm[{index}]"
        if arm.text is not None:
            problems += _text_problems(f"{place}.text", arm.text, trigger_word, class_word)
        if "seed" in arm.train:
            problems.append(f"{place}.train.seed: all arms are trained with the same seeds; set study.training_seeds")
        try:
            _with_changes(train, arm.train)
        except ValidationError as error:
            problems += [f"{place}.train.{line}" for line in _sentences(error, TrainSection)]
        for other in arm.derived_from:
            if other not in by_name or other == arm.name:
                known = ", ".join(name for name in by_name if name != arm.name)
                problems.append(f"{place}: there is no other arm {other!r} to take captions from (known: {known})")
            elif by_name[other].derived_from:
                problems.append(f"{place}: {other!r} is made of another arm's captions itself; name the original")
        if arm.trigger_only and not trigger_word.strip():
            problems.append(f"{place}: trigger_only needs dataset.trigger_word")
    return problems


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
    study: StudySection = StudySection()
    sample: SampleSection = SampleSection()
    evaluate: EvaluateSection = EvaluateSection()
    export: ExportSection = ExportSection()

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        problems = []
        names = [arm.name for arm in self.arm]
        for name in sorted({n for n in names if names.count(n) > 1}):
            problems.append(f"arm: two arms are named {name!r}; names must differ")
        if self.study.caption_references and self.study.caption_references not in names:
            named, arms = self.study.caption_references, ", ".join(names)
            problems.append(f"study.caption_references = {named!r}: no such arm (known: {arms})")
        if self.train.epochs is None and self.train.steps is None:
            problems.append("train: give epochs or steps")
        problems += _arm_problems(self.arm, self.train, self.dataset.trigger_word, self.dataset.class_word)
        if (self.train.stop_after or any(arm.train.get("stop_after") for arm in self.arm)) and not self.study.held_out:
            problems.append("train.stop_after needs study.held_out, such as 2")
        if "reproduction" in self.evaluate.measured and not self.study.reproduction_seeds:
            problems.append("evaluate.metrics: reproduction needs study.reproduction_seeds, such as [0]")
        measured = self.judging.measured
        if self.study.primary and self.study.primary not in measured:
            problems.append(f"study.primary = {self.study.primary!r} is not measured; known: {', '.join(measured)}")
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
    def training_seeds(self) -> list[int]:
        """The seeds that every arm is trained with."""
        return list(self.study.training_seeds) or [self.train.seed]

    def train_of(self, arm: ArmSection, seed: int) -> TrainSection:
        """The training settings of one run of an arm."""
        return _with_changes(self.train, {**arm.train, "seed": seed})

    @property
    def judging(self) -> EvaluateSection:
        """The evaluate section with metrics and encoders named."""
        section, mini = self.evaluate, self.base.model == "mini"
        encoder = section.encoder
        if encoder == "auto":
            encoder = "mini" if mini else "openai/clip-vit-large-patch14"
        dino = section.dino_encoder
        if dino == "auto":
            dino = "" if mini else "facebook/dinov2-base"
        left_out = {*([] if dino else ["dino"]), *([] if self.study.reproduction_seeds else ["reproduction"])}
        measured = section.metrics
        if measured is None:
            measured = [name for name in MEASURED if name not in left_out]
        return section.model_copy(update={"encoder": encoder, "dino_encoder": dino, "metrics": list(measured)})

    @property
    def primary(self) -> str:
        """The metric that decides."""
        return self.study.primary or next(iter(self.judging.measured), "")

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


class TuneRecipe(Section):
    """A captioner's tuning without a study: what `captune tune-captioner` reads."""

    name: Name = "tune"
    """Name of the run; the file's name if not given."""
    tune: TuneSection


Whole = TypeVar("Whole", Recipe, TuneRecipe)


def _known_keys(location: Sequence[str | int], model: Any = None) -> list[str]:
    """The keys that the section at `location` (of an unknown key) has."""
    model = model or Recipe
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


def _sentences(error: ValidationError, model: Any = None) -> list[str]:
    lines = []
    for problem in error.errors():
        place, message = _place(problem["loc"]), problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            known = _known_keys(problem["loc"], model)
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
    return _made(Recipe, values, source, overrides)


def tuning_from_values(
    values: Mapping[str, Any], *, source: str = "recipe", overrides: Iterable[str] = ()
) -> TuneRecipe:
    """As `from_values`, for a recipe that tunes a captioner."""
    return _made(TuneRecipe, values, source, overrides)


def _made(model: type[Whole], values: Mapping[str, Any], source: str, overrides: Iterable[str]) -> Whole:
    changed = _overridden(_copied(values), overrides)
    try:
        return model(**changed)
    except ValidationError as error:
        lines: list[str] = _sentences(error, model)
        count = "a problem" if len(lines) == 1 else f"{len(lines)} problems"
        raise RecipeError("\n  ".join([f"{source} has {count}:", *lines])) from None


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _copied(v) for k, v in value.items()}
    return [_copied(v) for v in value] if isinstance(value, list) else value


def read(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a TOML recipe. Relative paths in it are relative to the folder one stands in, as in a shell."""
    return from_values(_values(path), source=str(path), overrides=overrides)


def read_tuning(path: Path, overrides: Iterable[str] = ()) -> TuneRecipe:
    """As `read`, for a recipe that tunes a captioner: its only section is [tune]."""
    return tuning_from_values(_values(path), source=str(path), overrides=overrides)


def tuning_of(source: str, overrides: Iterable[str] = ()) -> TuneRecipe:
    """The tuning that a recipe file, or a folder of pictures with captions, stands for."""
    if source.endswith(".toml"):
        return read_tuning(Path(source), overrides)
    place = Path(source).expanduser()
    if not place.is_dir():
        raise RecipeError(f"{source!r} is neither a recipe (.toml) nor a folder of pictures with captions")
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", place.absolute().name).lstrip("_.-") or "captions"
    values = {"name": f"tune-{name}", "tune": {"path": source, "captioner": {"name": "blip"}}}
    return tuning_from_values(values, source=f"the tuning on {source}", overrides=overrides)


def split_targets(text: str) -> str | list[str]:
    """Targets as a shell has them: a preset, or names and patterns with commas between (none within brackets)."""
    entries = [entry.strip() for entry in re.split(r",(?![^({\[]*[)}\]])", text) if entry.strip()]
    return entries[0] if len(entries) == 1 else entries


def _values(path: Path) -> dict[str, Any]:
    """What a TOML file holds, its name as the recipe's if it gives none."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"there is no recipe {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read the recipe {path}: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path} is not valid TOML: {error}") from None
    values.setdefault("name", re.sub(r"[^A-Za-z0-9_.-]", "_", path.stem))
    return values


def as_toml(recipe: Recipe | TuneRecipe) -> str:
    """The resolved recipe, every value written out; reading it back gives an equal recipe."""
    values = recipe.model_dump(mode="json", exclude_none=True)
    lines = [f"name = {_toml(values.pop('name'))}"]
    for section, content in values.items():
        for table in content if isinstance(content, list) else [content]:
            lines += ["", f"[[{section}]]" if isinstance(content, list) else f"[{section}]"]
            lines += [f"{key} = {_toml(value)}" for key, value in table.items()]
    return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    """A key, quoted where it is more than a word, such as a pattern of module names."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _toml(name)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return '"' + "".join(c if c >= " " and c != "\x7f" else f"\\u{ord(c):04x}" for c in escaped) + '"'
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(k)} = {_toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    return repr(value)
