"""Captioners learn what they are taught: labels token by token, the picture matters, captions end, traps are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from captune import captioners
from captune.captioners._model import IGNORED, PictureModel
from captune.captioners._targets import chosen
from captune.errors import DataError, ModelError, RecipeError, TrainingError
from captune.metrics.captions import score
from captune.progress import Silent
from captune.recipe import CaptionerSection, TuneSection
from captune.runs import StageFolder
from captune.train.captioner import say_all, scored_texts, train_captioner
from captune.train.plan import tuning_steps
from captune.types import CaptionedPicture, Example
from tests.tiny_blip2 import QUERIES, write_tiny_blip2
from tests.unit.test_captioners import write_tiny_blip

CAPTIONS = [
    *("a red cat on the beach", "a blue dog", "a small red dog in the snow", "a large cat"),
    *("the blue cat on the snow", "a photo of a dog", "a large blue dog on the beach", "a small cat in the snow"),
]
KINDS = {"blip": "blip", "opt": "blip2", "t5": "blip2"}
MINI = {"mini": "blip"}  # the embedded BLIP, which is trained


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("captioners")
    write_tiny_blip(folder / "blip")
    for language in ("opt", "t5"):
        write_tiny_blip2(folder / language, language)
    return {kind: folder / kind for kind in KINDS}


def loaded(models: dict[str, Path], kind: str, **settings: object) -> PictureModel:
    return captioners.load_tunable(section_of(models, kind, **settings), "cpu", "fp32")


def section_of(models: dict[str, Path], kind: str, **settings: object) -> CaptionerSection:
    name, model = (KINDS | MINI)[kind], str(models.get(kind, kind))
    values = {"name": name, "model": model, "max_new_tokens": 30, **settings}
    if kind == "blip":
        values["max_new_tokens"] = min(int(str(values["max_new_tokens"])), 24)
    return CaptionerSection.model_validate(values)


def pairs(folder: Path, count: int = 8, split: str = "train") -> list[CaptionedPicture]:
    """Pictures that are easy to tell apart, with their captions."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for index in range(count):
        path, rng = folder / f"{index}.png", np.random.default_rng(index)
        Image.fromarray(np.kron(rng.integers(0, 255, (2, 2, 3)), np.ones((8, 8, 1))).astype(np.uint8)).save(path)
        found.append(CaptionedPicture(str(index), path, [CAPTIONS[index % 8]], f"sha {index}", split))
    return found


def spelt(network: PictureModel, ids: list[int]) -> list[str]:
    words: list[str] = network.tokenizer.convert_ids_to_tokens(ids)
    return words


# labels, token by token


def test_blip_learns_behind_dec_and_prompt_to_sep(models: dict[str, Path]) -> None:
    network = loaded(models, "blip", prompt="a photo of")
    lesson = network.lesson(["a red cat", "A photo of a blue cat on a beach"])  # the second repeats the prompt
    first = spelt(network, lesson.input_ids[0].tolist())
    before = ["[DEC]", "a", "photo", "of"]
    assert first[:8] == [*before, "a", "red", "cat", "[SEP]"] and set(first[8:]) == {"[PAD]"}
    assert spelt(network, lesson.input_ids[1].tolist()) == [*before, "a", "blue", "cat", "on", "a", "beach", "[SEP]"]
    labels, pads = lesson.labels[0].tolist(), len(first) - 8
    assert labels == [IGNORED] * 4 + lesson.input_ids[0, 4:8].tolist() + [IGNORED] * pads
    assert lesson.attention_mask[0].tolist() == [1] * 8 + [0] * pads and pads > 0
    assert "[CLS]" not in first  # generation never starts from it


@pytest.mark.parametrize(
    "text",
    [
        *("a medium-sized red cat, on the left. it is in front of a wall", "a cat's black-and-white hat"),
        *("there is a red cat - on the left", "a ball, a cube - the first is red"),
    ],
)
def test_blips_words_come_back_in_one_piece(models: dict[str, Path], text: str) -> None:
    network = loaded(models, "mini")
    assert not network.words(text).unknown
    assert network._decode(torch.tensor([network.words(text).ids])) == [text]


def test_opt_learns_behind_image_tokens_and_start_to_a_newline(models: dict[str, Path]) -> None:
    network = loaded(models, "opt")
    lesson = network.lesson(["a dog", "a red cat"])
    first = spelt(network, lesson.input_ids[0].tolist())
    assert first[:11] == ["<image>"] * QUERIES + ["</s>", *"aĠdog", "Ċ"] and set(first[11:]) == {"<pad>"}
    assert lesson.labels[0].tolist() == [IGNORED] * 5 + lesson.input_ids[0, 5:11].tolist() + [IGNORED] * 4
    assert lesson.labels[1, -1].item() == network.tokenizer("\n", add_special_tokens=False)["input_ids"][0]
    prompted = loaded(models, "opt", prompt="a photo of").lesson(["a photo of a dog"])
    words = spelt(network, prompted.input_ids[0].tolist())
    assert "".join(words[5:]) == "aĠphotoĠofĠaĠdogĊ"
    assert "".join(spelt(network, [i for i in prompted.labels[0].tolist() if i != IGNORED])) == "ĠaĠdogĊ"


def test_t5_reads_image_tokens_and_prompt_and_learns_to_its_end(models: dict[str, Path]) -> None:
    network = loaded(models, "t5", prompt="a photo of")
    lesson = network.lesson(["a dog", "a red cat on the beach"])
    read = spelt(network, lesson.input_ids[0].tolist())
    assert read == ["<image>"] * QUERIES + ["▁a", "▁photo", "▁of", "</s>"]
    labels = lesson.labels[0].tolist()
    assert spelt(network, labels[:3]) == ["▁a", "▁dog", "</s>"] and set(labels[3:]) == {IGNORED}


@pytest.mark.parametrize("kind", KINDS)
def test_loss_is_the_mean_over_a_captions_own_tokens(models: dict[str, Path], kind: str, tmp_path: Path) -> None:
    """Padding, which trains nothing, changes no loss: alone or beside a longer caption it is the same."""
    network = loaded(models, kind)
    seen = network.look([p.image for p in pairs(tmp_path, 2)])
    together = network.losses(seen, ["a dog", "a small red dog in the snow"])
    alone = [network.losses(seen[i : i + 1], [text]) for i, text in enumerate(("a dog", "a small red dog in the snow"))]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)
    lesson = network.lesson(["a dog"])
    whole = network.model(
        pixel_values=seen[:1], input_ids=lesson.input_ids, attention_mask=lesson.attention_mask, labels=lesson.labels
    ).loss
    assert torch.allclose(alone[0][0], whole, atol=1e-5)  # the library's own loss of the same labels


@pytest.mark.parametrize("kind", KINDS)
def test_other_pixels_give_other_logits(models: dict[str, Path], kind: str, tmp_path: Path) -> None:
    network = loaded(models, kind)
    seen = network.look([p.image for p in pairs(tmp_path, 2)])
    logits = network.logits(seen, network.lesson(["a dog", "a dog"]))
    assert (logits[0] - logits[1]).abs().max() > 1e-3


def test_wrong_count_of_image_tokens_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    network = loaded(models, "opt")
    seen = network.look([p.image for p in pairs(tmp_path, 1)])
    for kept, told in ((0, "0 image tokens stand .* would not be seen"), (2, "2 image tokens .* only in part be seen")):
        network.prefix_ids = [network.model.config.image_token_index] * kept + [2]
        with pytest.raises(ModelError, match=told):
            network.losses(seen, ["a dog"])
        with pytest.raises(ModelError, match=told):
            network.write(seen)


def test_model_without_an_image_token_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    for path in models["opt"].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"image_token_index": None}))
    with pytest.raises(ModelError, match="has no image token .* pictures would not be seen"):
        captioners.load_tunable(CaptionerSection(name="blip2", model=str(folder)), "cpu", "fp32")


def test_length_counts_new_tokens_alone(models: dict[str, Path], tmp_path: Path) -> None:
    """33 + n tokens for n of a caption: a limit on all would leave no room."""
    network = loaded(models, "opt", max_new_tokens=3)
    network.end_ids = frozenset({network._end})  # type: ignore[attr-defined]
    seen = network.look([p.image for p in pairs(tmp_path, 4)])
    said = network._generate(seen, max_new_tokens=3, num_beams=1, do_sample=False)
    assert said.shape[1] <= 3
    with pytest.raises(RecipeError, match="this BLIP-2 has room for 91 tokens"):
        loaded(models, "opt", max_new_tokens=92)


def test_cut_caption_has_no_end_and_is_told(models: dict[str, Path]) -> None:
    network = loaded(models, "opt", max_new_tokens=5)
    words = network.words("a red cat")
    assert words.cut and "".join(spelt(network, words.ids)) == "aĠred"
    whole = network.words("a ca")
    assert not whole.cut and "".join(spelt(network, whole.ids)) == "aĠcaĊ"


# training


def settings(models: dict[str, Path], kind: str, **values: object) -> TuneSection:
    section = {
        **{"path": "photos", "validation": 0, "test": 0, "captioner": section_of(models, kind), "device": "cpu"},
        **{"targets": "all_linear", "learning_rate": 1e-2, "batch_size": 8, "lr_scheduler": "constant", "samples": 0},
    }
    return TuneSection.model_validate({**section, **values})


@pytest.mark.parametrize(("kind", "steps"), [("mini", 50), ("opt", 120), ("t5", 80)])
def test_eight_pairs_are_learned_by_heart_and_captions_end(
    models: dict[str, Path], kind: str, steps: int, tmp_path: Path
) -> None:
    shown = pairs(tmp_path / "pictures")
    section = settings(
        models, kind, steps=steps, dropout=0, learning_rate={"mini": 3e-3, "t5": 5e-3, "opt": 1e-2}[kind]
    )
    before = say_all(loaded(models, kind), shown, Silent(), "")
    train_captioner(section, "base", lambda: loaded(models, kind), shown, StageFolder(tmp_path / "train"), Silent())
    tuned = captioners.load_tuned(section.captioner, tmp_path / "train", "cpu", "fp32")
    said = say_all(tuned, shown, Silent(), "")
    assert [s.text for s in said] == CAPTIONS
    assert all(s.ended for s in said)
    assert not any(s.text == text for s, text in zip(before, CAPTIONS, strict=True))
    if kind == "opt":  # as a captioner of a recipe's arm
        told = section.captioner.model_copy(update={"adapter": tmp_path / "train"})
        examples = [Example(p.id, p.image, p.image, 16, 16, 16, 16, 1, p.sha256) for p in shown]
        captioner = captioners.load(told, "cpu")
        assert captioner.caption(examples) == CAPTIONS
        assert "adapter_identity" in captioner.settings


def test_peft_loads_the_adapter(models: dict[str, Path], tmp_path: Path) -> None:
    from peft import PeftModel

    shown = pairs(tmp_path / "pictures")
    section = settings(models, "opt", steps=3, targets="text", rank=4, alpha=8)
    train_captioner(section, "base", lambda: loaded(models, "opt"), shown, StageFolder(tmp_path / "train"), Silent())
    base, ours = loaded(models, "opt"), captioners.load_tuned(section.captioner, tmp_path / "train", "cpu", "fp32")
    seen, lesson = base.look([shown[0].image]), base.lesson(["a dog"])
    plain = base.logits(seen, lesson)
    base.model = PeftModel.from_pretrained(base.model, str(tmp_path / "train"))
    theirs = base.logits(seen, lesson)
    assert torch.allclose(theirs, ours.logits(seen, lesson), atol=1e-5)
    assert (theirs - plain).abs().max() > 1e-4
    names = {n for n, p in base.model.named_parameters() if "lora_" in n}
    assert len(names) == 2 * 2 * 6 and all(".language_model." in n for n in names)


def test_picture_with_several_captions_reads_them_in_turn(models: dict[str, Path], tmp_path: Path) -> None:
    from captune.train.captioner import _Training

    (picture,) = pairs(tmp_path, 1)
    several = CaptionedPicture("0", picture.image, CAPTIONS[:3], "sha", "train")
    network = loaded(models, "blip")
    training = _Training(settings(models, "blip", epochs=1), network, [several], StageFolder(tmp_path), Silent())
    read: list[str] = []
    network.losses = lambda seen, texts: read.extend(texts) or torch.zeros(1)  # type: ignore[method-assign, assignment, func-returns-value]
    for epoch in range(6):
        for (batch,) in training._steps_of_epoch(epoch):
            training._losses_of(batch)
    assert sorted(read[:3]) == sorted(CAPTIONS[:3]) and read[:3] == read[3:]


def test_gradient_checkpointing_gives_the_same_losses(models: dict[str, Path], tmp_path: Path) -> None:
    shown, losses = pairs(tmp_path / "pictures"), []
    for on in (False, True):
        folder = StageFolder(tmp_path / str(on))
        section = settings(models, "opt", steps=3, gradient_checkpointing=on)
        network = loaded(models, "opt")
        assert network.model.language_model.config.dropout == 0.1  # which must not wake up
        train_captioner(section, "base", lambda network=network: network, shown, folder, Silent())
        losses.append([json.loads(row)["loss"] for row in (folder.path / "losses.jsonl").read_text().splitlines()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_best_epoch_is_taken_and_training_stops(models: dict[str, Path], tmp_path: Path) -> None:
    shown = [*pairs(tmp_path / "pictures"), *pairs(tmp_path / "others", 2, "validation")]
    folder = StageFolder(tmp_path / "train")
    section = settings(models, "blip", epochs=30, validation=0.1, stop_after=2, learning_rate=3e-2)
    train_captioner(section, "base", lambda: loaded(models, "blip"), shown, folder, Silent())
    facts = folder.manifest()
    values = facts["validation"]
    assert facts["best_epoch"] == values.index(min(values)) + 1 == len(values) - 2 and facts["epochs_done"] < 30
    assert "tune.stop_after" in facts["stopped"]


def test_best_epoch_by_what_is_generated(models: dict[str, Path], tmp_path: Path) -> None:
    """Validation pictures are the training's own here, so CIDEr can rise; the result is the epoch with the highest."""
    shown = [*pairs(tmp_path / "pictures"), *pairs(tmp_path / "pictures", 8, "validation")]
    folder = StageFolder(tmp_path / "train")
    section = settings(models, "mini", epochs=30, validation=0.1, watch="cider", stop_after=12, learning_rate=3e-3)
    train_captioner(section, "base", lambda: loaded(models, "mini"), shown, folder, Silent())
    facts = folder.manifest()
    values = facts["validation"]
    assert facts["watched"] == "cider" and values[facts["best_epoch"] - 1] == max(values) > 1 > values[0]
    network = captioners.load_tuned(section.captioner, folder.path, "cpu", "fp32")
    said = say_all(network, shown[:8], Silent(), "")
    candidates, references = scored_texts(said, shown[:8], "")
    assert score(candidates, references, ("cider",)).corpus["CIDEr"] == pytest.approx(max(values))


def test_warm_up_begins_at_zero(models: dict[str, Path], tmp_path: Path) -> None:
    folder, shown = StageFolder(tmp_path / "train"), pairs(tmp_path / "pictures")
    section = settings(models, "blip", steps=4, lr_warmup_steps=4)
    train_captioner(section, "base", lambda: loaded(models, "blip"), shown, folder, Silent())
    rows = (folder.path / "losses.jsonl").read_text().splitlines()
    assert [json.loads(row)["learning_rate"] / 1e-2 for row in rows] == pytest.approx([0, 0.25, 0.5, 0.75])


def test_loss_that_runs_off_names_the_setting(models: dict[str, Path], tmp_path: Path) -> None:
    section = settings(models, "blip", steps=40, learning_rate=1e30, max_grad_norm=0)
    with pytest.raises(TrainingError, match="lower tune.learning_rate or tune.precision fp32"):
        train_captioner(
            section,
            "base",
            lambda: loaded(models, "blip"),
            pairs(tmp_path / "pictures"),
            StageFolder(tmp_path / "train"),
            Silent(),
        )


def test_what_is_not_given_fits_the_captioner_and_the_pictures(models: dict[str, Path]) -> None:
    plain = TuneSection.model_validate({"path": "photos"})
    assert plain.rate == 1e-3 and plain.model_copy(update={"captioner": section_of(models, "blip")}).rate == 1e-4
    assert TuneSection.model_validate({"path": "photos", "learning_rate": 3e-5}).rate == 3e-5
    assert tuning_steps(plain, 40).total_steps == 100  # 5 epochs would be 25 steps
    assert tuning_steps(plain, 4000).epochs == 5 and tuning_steps(plain, 4000).total_steps == 2500
    assert tuning_steps(TuneSection.model_validate({"path": "photos", "epochs": 1}), 40).total_steps == 5


# what a LoRA is put into


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("preset", ["text", "cross_attention", "vision", "all_linear"])
def test_presets_hit_what_they_say(models: dict[str, Path], kind: str, preset: str) -> None:
    from captune.train.captioner import targets_of

    network = loaded(models, kind)
    _, names = targets_of(settings(models, kind, targets=preset), network)
    starts = {name.split(".")[0] for name in names}
    text = {"blip": "text_decoder"}.get(kind, "language_model")
    expected: dict[str, set[str]] = {
        "text": {text},
        "cross_attention": {text if kind == "blip" else "qformer"},
        "vision": {"vision_model"},
        "all_linear": {text, "vision_model", *([] if kind == "blip" else ["qformer", "language_projection"])},
    }
    assert starts == expected[preset]
    if preset == "cross_attention":
        assert all("crossattention" in name for name in names)


@pytest.mark.parametrize(
    ("kind", "targets", "told"),
    [
        (
            "blip",
            "q_proj",
            r"'q_proj' hits no module of this captioner; presets: text, cross_attention, vision, all_linear",
        ),
        (
            "blip",
            ["query", "k_proj", "out_proj"],
            r"'k_proj', 'out_proj' hit no module .* modules: .*layer\.N\.attention",
        ),
        ("blip", "fc1", r"'fc1' hits 2 modules of vision.*begins with text_decoder\. or vision_model\."),
        ("opt", ["fc1", "fc2"], r"'fc1' hits 2 modules of text, 2 modules of vision"),
        ("opt", "query,value", "no regular expression|hits no module"),
        ("t5", "(", "no regular expression"),
        ("t5", [], "tune.targets is empty"),
    ],
)
def test_targets_that_hit_nothing_or_astray_are_refused(
    models: dict[str, Path], kind: str, targets: Any, told: str
) -> None:
    from captune.train.captioner import targets_of

    with pytest.raises(RecipeError, match=told):
        targets_of(settings(models, kind, targets=targets), loaded(models, kind))


def test_plain_names_and_patterns_are_taken_at_their_word() -> None:
    towers, modules = {"text": "t.", "vision": "v."}, ["t.0.q", "t.0.qq", "v.0.q", "v.0.fc"]

    def hit(*targets: str) -> list[str]:
        import re

        pattern = chosen(list(targets), {"text": r"t\..*"}, towers, modules)
        return [name for name in modules if re.fullmatch(pattern, name)]

    assert hit("text") == ["t.0.q", "t.0.qq"]
    assert hit("qq") == ["t.0.qq"]
    assert hit(r"t\.\d+\.q") == ["t.0.q"]
    assert hit(r"v\.\d+\.fc") == ["v.0.fc"]
    with pytest.raises(RecipeError, match="1 modules of text, 1 modules of vision"):
        hit("q")


def test_query_and_key_of_opt_are_what_the_source_tuned(models: dict[str, Path]) -> None:
    from captune.train.captioner import targets_of

    names = targets_of(settings(models, "opt", targets=["q_proj", "k_proj"]), loaded(models, "opt"))[1]
    assert len(names) == 4 and all(name.startswith("language_model.model.decoder.layers.") for name in names)


# an adapter and its model


def test_adapter_of_another_model_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    shown = pairs(tmp_path / "pictures")
    section = settings(models, "t5", steps=1)
    train_captioner(section, "base", lambda: loaded(models, "t5"), shown, StageFolder(tmp_path / "train"), Silent())
    with pytest.raises(ModelError, match="was trained on .*t5.* captioner.model is .*opt"):
        captioners.load_tuned(section_of(models, "opt"), tmp_path / "train", "cpu", "fp32")
    config = json.loads((tmp_path / "train/adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(models["opt"])
    (tmp_path / "train/adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="does not fit .*the model has no language_model.decoder"):
        captioners.load_tuned(section_of(models, "opt"), tmp_path / "train", "cpu", "fp32")
    with pytest.raises(DataError, match="there is no adapter_config.json"):
        captioners.load_tuned(section_of(models, "opt"), tmp_path, "cpu", "fp32")


def test_blip2_has_no_embedded_model() -> None:
    with pytest.raises(ModelError, match="there is no embedded BLIP-2"):
        captioners.load(CaptionerSection(name="blip2"))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"captioner": {"name": "sidecar"}}, "'sidecar' cannot be tuned .these can: blip, blip2, vlm."),
        ({"optimizer": "adamm"}, "unknown tune.optimizer 'adamm'"),
        ({"captioner": {"name": "blip", "adapter": "x"}}, "leave the adapter out"),
    ],
)
def test_what_cannot_be_done_is_refused_before_loading(values: dict[str, object], told: str) -> None:
    from captune import tuning

    with pytest.raises(RecipeError, match=told):
        tuning.check(TuneSection.model_validate({"path": "photos", **values}))


def test_quantized_base_needs_cuda() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(RecipeError, match='quantize = "8bit" needs a CUDA GPU'):
        captioners.load_tunable(CaptionerSection(name="blip"), "cpu", "auto", "8bit")
