"""The real thing up to its weights: Stable Diffusion 1.5 and BLIP large in their true configurations, random inside."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import (
    BertTokenizerFast,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from captune import pipeline, recipe
from captune.exporters.readback import read_kohya
from captune.progress import Silent
from captune.runs import RunFolder
from tests import tiny_base

pytestmark = pytest.mark.slow
RECIPE = Path(__file__).parents[2] / "recipes" / "subject_sd15.toml"


def write_sd15(folder: Path) -> Path:
    """Stable Diffusion 1.5's configuration (its published config.json files) with random fp16 weights."""
    letters = list(bytes_to_unicode().values())
    words = [*letters, *(letter + "</w>" for letter in letters)]
    words += [f"filler{i}</w>" for i in range(49406 - len(words))] + ["<|startoftext|>", "<|endoftext|>"]
    text = CLIPTextConfig(
        vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        max_position_embeddings=77, hidden_act="quick_gelu", projection_dim=768,
        bos_token_id=49406, eos_token_id=49407, pad_token_id=49407,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=64, block_out_channels=(320, 640, 1280, 1280), layers_per_block=2, cross_attention_dim=768,
        attention_head_dim=8,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, sample_size=512,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    StableDiffusionPipeline(
        vae=vae.half(),
        text_encoder=CLIPTextModel(text).half(),
        tokenizer=CLIPTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[], model_max_length=77),
        unet=unet.half(),
        scheduler=PNDMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def write_blip_large(folder: Path) -> Path:
    """BLIP large's configuration (Salesforce/blip-image-captioning-large) with random fp16 weights."""
    config = BlipConfig(
        text_config={"vocab_size": 30524, "hidden_size": 768, "encoder_hidden_size": 1024, "num_hidden_layers": 12,
                     "num_attention_heads": 12, "intermediate_size": 3072, "bos_token_id": 30522, "eos_token_id": 2,
                     "sep_token_id": 102, "pad_token_id": 0},
        vision_config={"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
                       "num_attention_heads": 16, "image_size": 384, "patch_size": 16, "initializer_range": 0.02},
        projection_dim=768,
        image_text_hidden_size=256,
    )  # fmt: skip
    special = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 30522: "[DEC]", 30523: "[ENC]"}
    vocabulary = {special.get(i, f"word{i}"): i for i in range(30522)}
    tokenizer = BertTokenizerFast(vocab=vocabulary, do_lower_case=True)
    tokenizer.add_special_tokens({"extra_special_tokens": ["[DEC]", "[ENC]"]})
    BlipForConditionalGeneration(config).half().save_pretrained(folder)
    images = BlipImageProcessor(size={"height": 384, "width": 384})
    BlipProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def test_the_sd15_recipe_trains_samples_and_exports(tmp_path: Path) -> None:
    """Two steps at 256 px on the CPU, one picture with and without the LoRA, and kohya's 192 modules in the file."""
    torch.manual_seed(0)
    base, blip = write_sd15(tmp_path / "sd15"), write_blip_large(tmp_path / "blip")
    photos = tiny_base.write_photos(tmp_path / "photos", size=256)
    for extra in list(photos.iterdir()):
        if extra.stem not in ("0", "1"):
            extra.unlink()
    changed = [
        f"dataset.path={json.dumps(str(photos))}",
        f"base.model={json.dumps(str(base))}",
        "base.device=cpu",
        "dataset.resolution=256",
        "dataset.repeats=1",
        'train.targets="attention+feed_forward"',
        "train.batch_size=1",
        "sample.steps=2",
        "sample.width=256",
        "sample.height=256",
        'sample.prompts=["a {trigger_word} {class_word}"]',
        "sample.seeds=[0]",
        "evaluate.metrics=[]",
    ]
    values = recipe.read(RECIPE, changed).model_dump(mode="json", exclude_none=True)
    values["train"] = {k: v for k, v in values["train"].items() if k not in ("epochs", "save_every_epochs")} | {
        "steps": 2
    }
    values["sample"].pop("every_epochs", None)
    values["regularization"] = {"count": 0}
    for arm in values["arm"]:
        if arm["captioner"]["name"] == "blip":
            arm["captioner"] |= {"model": str(blip), "max_new_tokens": 3, "prompt": ""}
    chosen = recipe.from_values(values)
    outcome = pipeline.run(chosen, RunFolder(tmp_path / "run"), Silent())
    shutil.rmtree(base)
    assert outcome.report is not None and outcome.report.is_file()
    first = chosen.arm[0].name
    rows = (tmp_path / "run" / "arms" / first / "seed-0" / "train" / "losses.jsonl").read_text().splitlines()
    assert len(rows) == 2 and all(0 < json.loads(row)["loss"] < 10 for row in rows)
    exported = next((tmp_path / "run" / "arms" / first / "seed-0" / "export").glob("*.safetensors"))
    deltas = read_kohya(exported)
    assert len(deltas) == 192
    pictures = [
        next((tmp_path / "run" / place / "sample" / "pictures").glob("*.png"))
        for place in ("base", f"arms/{first}/seed-0")
    ]
    assert pictures[0].read_bytes() != pictures[1].read_bytes()
