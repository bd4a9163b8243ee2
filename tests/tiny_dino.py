"""A DINOv2 model of random weights, in a folder that loads like any other: for tests."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import Dinov2Config, Dinov2Model


def write_tiny_dino(folder: Path) -> str:
    """Write the model into the folder; its path as a recipe would name it."""
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=2, image_size=28, patch_size=7
    )
    Dinov2Model(config).save_pretrained(folder)
    # As facebook/dinov2-base has it, at an eighth of the size; BitImageProcessor itself only loads with torchvision.
    processor = {
        "image_processor_type": "BitImageProcessor", "do_convert_rgb": True, "do_resize": True, "do_center_crop": True,
        "do_rescale": True, "do_normalize": True, "resample": 3, "rescale_factor": 1 / 255,
        "size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28},
        "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return str(folder)
