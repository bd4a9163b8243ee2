"""How the LoRA is trained: [train], [regularization]."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from captune.recipe.section import Section


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
