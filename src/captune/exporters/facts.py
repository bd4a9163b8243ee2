"""What a LoRA file's header tells about its training, and shows of it, in web interfaces."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from PIL import Image

from captune.recipe import TrainSection
from captune.types import Adapter, Caption, Example

COVER_SIDE = 256


def of_pictures(examples: Sequence[Example], captions: Sequence[Caption]) -> dict[str, str]:
    """Facts num_train_images, dataset_dirs, bucket_info and tag_frequency, by the folders that the pictures lie in.

    Tags are the parts of captions between commas, counted as kohya counts them: once per picture, in lower case.
    """
    folders: dict[str, list[Example]] = {}
    for example in examples:
        folders.setdefault(example.source.absolute().parent.name, []).append(example)
    texts = {caption.example_id: caption.text for caption in captions}
    tags = {
        folder: Counter(tag.strip().lower() for e in members for tag in texts.get(e.id, "").split(",") if tag.strip())
        for folder, members in folders.items()
    }
    buckets = Counter[tuple[int, int]]()
    for example in examples:
        buckets[example.width, example.height] += example.repeats
    return {
        "num_train_images": str(sum(e.repeats for e in examples)),
        "dataset_dirs": json.dumps(
            {f: {"n_repeats": max(e.repeats for e in m), "img_count": len(m)} for f, m in folders.items()}
        ),
        "bucket_info": json.dumps(
            {
                "buckets": {
                    str(i): {"resolution": list(size), "count": count}
                    for i, (size, count) in enumerate(sorted(buckets.items()))
                }
            }
        ),
        "tag_frequency": json.dumps(tags),
    }


# Fields of [train] that the header tells, as the facts of the same name.
TOLD = (
    *("batch_size", "gradient_accumulation", "learning_rate", "text_encoder_learning_rate", "lr_scheduler"),
    *("lr_warmup_steps", "optimizer", "weight_decay", "max_grad_norm", "seed", "noise_offset", "ip_noise_gamma"),
    *("min_snr_gamma", "debiased_estimation", "zero_terminal_snr", "loss", "caption_dropout", "clip_skip"),
    *("min_timestep", "max_timestep", "masked_loss", "gradient_checkpointing"),
)


def of_training(section: TrainSection, adapter: Adapter, cannot: Collection[str]) -> dict[str, str]:
    """How the LoRA was trained: the settings that have a value, and the steps and epochs that it had.

    `cannot` are the options that the family cannot honour, as `train.field`.
    """
    values = {name: getattr(section, name) for name in TOLD if f"train.{name}" not in cannot}
    values |= {"epoch": adapter.epoch, "step": adapter.step}
    values |= {"epochs": section.epochs or adapter.epoch, "steps": section.steps or adapter.step}
    return {name: _text(value) for name, value in values.items() if value is not None}


def _text(value: object) -> str:
    """The value as short as it is exact: 0.0001 and not 1e-04."""
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def cover(picture: Path) -> bytes:
    """The picture as a JPEG of at most 256 pixels a side, small enough for a file's header."""
    with Image.open(picture) as opened:
        small = opened.convert("RGB")
    small.thumbnail((COVER_SIDE, COVER_SIDE), Image.Resampling.LANCZOS)
    made = io.BytesIO()
    small.save(made, "JPEG", quality=85)
    return made.getvalue()
