"""What a LoRA file's header tells about the training pictures, and shows of it, in web interfaces."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from captune.types import Caption, Example

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


def cover(picture: Path) -> bytes:
    """The picture as a JPEG of at most 256 pixels a side, small enough for a file's header."""
    with Image.open(picture) as opened:
        small = opened.convert("RGB")
    small.thumbnail((COVER_SIDE, COVER_SIDE), Image.Resampling.LANCZOS)
    made = io.BytesIO()
    small.save(made, "JPEG", quality=85)
    return made.getvalue()
