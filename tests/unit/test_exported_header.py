"""What a run's exported file says of itself: what web interfaces ask for, from the run's own recipe and pictures."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from captune import export, pipeline, recipe
from captune.exporters import readback
from captune.progress import Silent
from captune.runs import RunFolder
from tests import tiny_base


def test_a_runs_file_tells_base_pictures_tags_training_hashes_and_shows_a_picture(tmp_path: Path) -> None:
    photos = tiny_base.write_photos(tmp_path / "photos")
    values = {
        "name": "creature",
        "dataset": {"path": str(photos), "trigger_word": "zorblax", "resolution": 16, "repeats": 2},
        "base": {"model": tiny_base.write_tiny_base(tmp_path / "base"), "device": "cpu"},
        "train": {
            "rank": 2, "alpha": 1, "epochs": 2, "batch_size": 4, "learning_rate": 0.0125, "text_encoder_learning_rate": 5e-5,
            "min_snr_gamma": 5, "noise_offset": 0.1, "clip_skip": 2, "seed": 7, "lr_scheduler": "cosine",
        },
        "arm": [{"name": "human", "captioner": {"name": "sidecar"}}],
        "study": {"denoising": False, "reproduction_seeds": []},
        "sample": {"prompts": ["a zorblax"], "steps": 1},
        "evaluate": {"metrics": []},
        "export": {"formats": ["kohya"]},
    }  # fmt: skip
    run = RunFolder(tmp_path / "run")
    pipeline.run(recipe.from_values(values), run, Silent(), upto="export")
    file = run.training("human", 7, "export").path / "creature-human.safetensors"
    said = readback.metadata(file)
    expected = {
        "ss_output_name": "creature", "ss_sd_model_name": "base", "ss_base_model_version": "sd_v1", "ss_v2": "False",
        "ss_network_module": "networks.lora", "ss_network_dim": "2", "ss_network_alpha": "1", "ss_resolution": "(16, 16)",
        "ss_num_train_images": "10", "ss_num_epochs": "2", "ss_epoch": "2", "ss_steps": "6", "ss_max_train_steps": "6",
        "ss_total_batch_size": "4", "ss_gradient_accumulation_steps": "1", "ss_unet_lr": "0.0125",
        "ss_text_encoder_lr": "5e-05", "ss_lr_scheduler": "cosine", "ss_optimizer": "adamw", "ss_seed": "7",
        "ss_min_snr_gamma": "5", "ss_noise_offset": "0.1", "ss_clip_skip": "2", "ss_loss_type": "l2",
        "modelspec.sai_model_spec": "1.0.1", "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.title": "creature", "modelspec.resolution": "16x16", "modelspec.prediction_type": "epsilon",
        "modelspec.trigger_phrase": "zorblax", "captune.weight_decay": "0.01",
    }  # fmt: skip
    assert {key: said.get(key) for key in expected} == expected
    tags = json.loads(said["ss_tag_frequency"])["photos"]
    assert tags["zorblax"] == 5 and tags["a red ball"] == 1
    assert json.loads(said["ss_dataset_dirs"]) == {"photos": {"img_count": 5, "n_repeats": 2}}
    assert json.loads(said["ss_bucket_info"])["buckets"]["0"] == {"count": 10, "resolution": [16, 16]}
    assert len(json.loads(said["ssmd_cover_images"])) == 1
    content = file.read_bytes()
    assert said["sshs_model_hash"] == hashlib.sha256(content[8 + int.from_bytes(content[:8], "little") :]).hexdigest()
    assert len(said["sshs_legacy_hash"]) == 8
    again, _ = export.export_file(file, "kohya", tmp_path / "again.safetensors", "fp16")
    assert again.read_bytes() == content
