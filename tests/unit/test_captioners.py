"""Captioners, and the stage around them: BLIP on a small random model, sidecars, resume, and what is said by name."""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from captune import captioners, engines, provenance, weights
from captune.caption import caption_examples
from captune.captioners._batches import Fitting
from captune.captioners.blip import Blip, BlipModel
from captune.captioners.sidecar import Sidecar
from captune.errors import DataError, ModelError, RecipeError
from captune.progress import Silent
from captune.recipe import ArmSection, CaptionerSection, DatasetSection
from captune.runs import StageFolder, sha256_of
from captune.types import Caption, Example


class Heard(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def write_tiny_blip(folder: Path) -> None:
    """Save a BLIP of two thin layers a tower with wild random weights, so that pictures give different captions."""
    from transformers import (
        BertTokenizerFast,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
        BlipTextConfig,
        BlipVisionConfig,
    )

    letters = string.ascii_lowercase
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters), ".", ","]
    words += ["red", "blue", "cat", "photo", "of", "beach", "on", "drawing"]
    tokenizer = BertTokenizerFast(vocab={w: i for i, w in enumerate(words)}, do_lower_case=True, model_max_length=32)
    tokenizer.add_special_tokens({"extra_special_tokens": ["[DEC]"]})
    sizes = {"hidden_size": 32, "intermediate_size": 64, "projection_dim": 32}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 2}
    sep = tokenizer.sep_token_id
    text = BlipTextConfig(
        vocab_size=len(tokenizer),
        encoder_hidden_size=32,
        max_position_embeddings=32,
        bos_token_id=tokenizer.convert_tokens_to_ids("[DEC]"),
        eos_token_id=sep,
        sep_token_id=sep,
        pad_token_id=0,
        **sizes,
    )
    vision = BlipVisionConfig(image_size=32, patch_size=8, **sizes)
    config = BlipConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), image_text_hidden_size=32)
    model = BlipForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    model.save_pretrained(folder)
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)


@pytest.fixture(scope="module")
def tiny_blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("blip")
    write_tiny_blip(folder)
    return folder


def make_examples(folder: Path, count: int) -> list[Example]:
    """Pictures that lie in `folder` as 0.png, 1.png, ..., as if prepared."""
    folder.mkdir(parents=True, exist_ok=True)
    examples = []
    for index in range(count):
        path, rng = folder / f"{index}.png", np.random.default_rng(index)
        Image.fromarray(np.kron(rng.integers(0, 255, (4, 4, 3)), np.ones((8, 8, 1))).astype(np.uint8)).save(path)
        examples.append(Example(str(index), path, path, 32, 32, 32, 32, 1, sha256_of(path)))
    return examples


def blip_section(model: Path, **settings: object) -> CaptionerSection:
    return CaptionerSection.model_validate({"name": "blip", "model": str(model), "max_new_tokens": 10, **settings})


def sidecar_section(**settings: object) -> CaptionerSection:
    return CaptionerSection.model_validate({"name": "sidecar", **settings})


# BLIP


@pytest.mark.parametrize("settings", [{}, {"prompt": "A photo of"}, {"prompt": "a photo of", "beams": 3}])
def test_caption_does_not_depend_on_the_batch(tiny_blip: Path, tmp_path: Path, settings: dict[str, object]) -> None:
    examples = make_examples(tmp_path, 7)
    blip = Blip.load(blip_section(tiny_blip, **settings), "cpu")
    together = blip.caption(examples)
    assert len(set(together)) > 3  # else the test would show nothing
    assert [blip.caption([example])[0] for example in examples] == together
    assert blip.caption(examples[::-1])[::-1] == together
    assert Blip.load(blip_section(tiny_blip, **settings), "cpu").caption(examples[2:5]) == together[2:5]
    assert blip.caption([]) == []


def test_caption_begins_with_the_prompt_and_goes_on_as_the_model_does(tiny_blip: Path, tmp_path: Path) -> None:
    from transformers import BlipForConditionalGeneration, BlipProcessor

    examples = make_examples(tmp_path, 3)
    said = Blip.load(blip_section(tiny_blip, prompt="a photo of"), "cpu").caption(examples)
    model = BlipForConditionalGeneration.from_pretrained(tiny_blip).eval()
    processor = BlipProcessor.from_pretrained(tiny_blip)
    tokenizer = processor.tokenizer
    prompt = [tokenizer.convert_tokens_to_ids("[DEC]"), *tokenizer("a photo of", add_special_tokens=False)["input_ids"]]
    for example, text in zip(examples, said, strict=True):
        assert text.startswith("a photo of")
        pixel_values = processor.image_processor(Image.open(example.image), return_tensors="pt")["pixel_values"]
        seen = model.vision_model(pixel_values).last_hidden_state
        ids = list(prompt)
        for _ in range(10):  # greedy decoding, spelt out
            logits = model.text_decoder(torch.tensor([ids]), encoder_hidden_states=seen).logits
            ids.append(int(logits[0, -1].argmax()))
            if ids[-1] == tokenizer.sep_token_id:
                break
        assert text == tokenizer.decode(ids[1:], skip_special_tokens=True)


def test_settings_tell_models_and_decoding_apart(tiny_blip: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for path in tiny_blip.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    before = Blip.load(blip_section(other)).settings
    assert before["identity"] == Blip.load(blip_section(tiny_blip)).settings["identity"]
    assert Blip.load(blip_section(other, beams=2)).settings != before
    assert Blip.load(blip_section(other, prompt="a")).settings != before
    weights_file = other / "model.safetensors"
    weights_file.write_bytes(weights_file.read_bytes()[:-4] + b"\0\0\0\0")
    assert Blip.load(blip_section(other)).settings["identity"] != before["identity"]


def test_prompt_and_length_that_do_not_fit_are_refused(tiny_blip: Path, tmp_path: Path) -> None:
    examples = make_examples(tmp_path, 1)
    with pytest.raises(RecipeError, match="max_new_tokens = 40: this BLIP has room for 28 tokens after"):
        Blip.load(blip_section(tiny_blip, prompt="a photo of", max_new_tokens=40), "cpu").caption(examples)
    Blip.load(blip_section(tiny_blip, prompt="a photo of", max_new_tokens=28), "cpu").caption(examples)
    with pytest.raises(RecipeError, match="prompt = 'a 写真 of': .*vocabulary lacks"):
        Blip.load(blip_section(tiny_blip, prompt="a 写真 of"), "cpu").caption(examples)


def test_model_that_is_no_blip_is_refused(tiny_blip: Path, tmp_path: Path) -> None:
    examples = make_examples(tmp_path / "pictures", 1)
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip/config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(ModelError, match="type 'clip', not blip"):
        Blip.load(blip_section(tmp_path / "clip"), "cpu").caption(examples)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="BLIP captioner in .*empty could not be loaded") as told:
        Blip.load(blip_section(tmp_path / "empty"), "cpu").caption(examples)
    assert "\n" not in str(told.value)
    with pytest.raises(ModelError, match="no model at"):
        Blip.load(blip_section(tmp_path / "nowhere"), "cpu")


def test_weights_that_lack_the_text_decoder_are_refused(tiny_blip: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for path in tiny_blip.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    kept = {k: v for k, v in load_file(tiny_blip / "model.safetensors").items() if not k.startswith("text_decoder")}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="no weights for .* of BLIP's parameters .*text_decoder"):
        Blip.load(blip_section(tmp_path), "cpu").caption(make_examples(tmp_path / "pictures", 1))


def test_hub_model_without_a_network_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    section = CaptionerSection(name="blip", model="nobody/there-is-no-such-blip")
    with pytest.raises(ModelError, match="hf download nobody/there-is-no-such-blip") as told:
        Blip.load(section, "cpu").caption(make_examples(tmp_path, 1))
    assert "\n" not in str(told.value)


def test_missing_embedded_model_is_told_before_captioning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(weights, "EMBEDDED", tmp_path)
    with pytest.raises(ModelError, match="embedded BLIP is missing"):
        Blip.load(CaptionerSection(name="blip"))


# sidecars


def test_sidecars_are_read_beside_the_pictures(tmp_path: Path) -> None:
    examples = make_examples(tmp_path, 3)
    for index in range(3):
        (tmp_path / f"{index}.caption").write_text(f"picture\n {index}\n")
    sidecar = Sidecar.load(sidecar_section(extension="caption"))
    assert sidecar.caption(examples) == ["picture 0", "picture 1", "picture 2"]
    assert sidecar.sources(examples).hashes == {
        str(tmp_path / f"{i}.caption"): sha256_of(tmp_path / f"{i}.caption") for i in range(3)
    }


def test_all_missing_captions_are_one_sentence(tmp_path: Path) -> None:
    examples = make_examples(tmp_path, 8)
    (tmp_path / "0.txt").write_text("a cat")
    (tmp_path / "1.caption").write_text("a cat")
    (tmp_path / "2.caption").write_text("a cat")
    with pytest.raises(DataError) as told:
        Sidecar.load(sidecar_section()).sources(examples)
    assert str(told.value) == (
        "7 of 8 pictures have no caption: 1.png, 2.png, 3.png, 4.png, 5.png and 2 more (looked for .txt files beside "
        "the pictures, and for metadata.jsonl); 2 .caption files lie there, "
        'which captioner.extension = ".caption" would read'
    )
    with pytest.raises(DataError, match="1 of 1 pictures has no caption: 1.png"):
        Sidecar.load(sidecar_section()).caption(examples[1:2])


def test_empty_captions_are_told_with_the_missing_ones(tmp_path: Path) -> None:
    examples = make_examples(tmp_path, 4)
    for index, text in enumerate(["a cat", "", " \n"]):
        (tmp_path / f"{index}.txt").write_text(text)
    with pytest.raises(
        DataError, match=r"1 of 4 pictures has no caption: 3\.png.*; 2 caption files are empty: 1\.txt, 2"
    ):
        Sidecar.load(sidecar_section()).sources(examples)


def test_metadata_of_the_data_sets_folder_is_read(tmp_path: Path) -> None:
    examples = make_examples(tmp_path / "30_x dog", 3)
    examples = [Example(f"30_x dog/{e.id}", e.image, e.source, 32, 32, 32, 32, 30, e.sha256) for e in examples]
    rows = [{"file_name": f"30_x dog/{i}.png", "text": f"row {i}"} for i in range(4)]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "30_x dog/1.txt").write_text("a sidecar")
    sidecar = Sidecar.load(sidecar_section())
    assert sidecar.caption(examples) == ["row 0", "a sidecar", "row 2"]
    sources = sidecar.sources(examples)
    assert [Path(name).name for name in sources.hashes] == ["1.txt", "metadata.jsonl"]
    assert "differ for 1.png: the .txt files are read" in sources.warnings[0]
    (tmp_path.parent / "metadata.jsonl").write_text("broken")  # above the data set's folder: not ours
    assert sidecar.sources(examples) == sources
    (tmp_path.parent / "metadata.jsonl").unlink()


def test_captions_in_a_folder_of_their_own(tmp_path: Path) -> None:
    examples = make_examples(tmp_path / "photos", 2)
    (tmp_path / "words").mkdir()
    (tmp_path / "words/0.txt").write_text("zero")
    (tmp_path / "words/1.txt").write_text("one")
    sidecar = Sidecar.load(sidecar_section(folder=str(tmp_path / "words")))
    assert sidecar.caption(examples) == ["zero", "one"]
    with pytest.raises(DataError, match="captioner.folder = .*nowhere"):
        Sidecar.load(sidecar_section(folder=str(tmp_path / "nowhere")))


def test_one_file_does_not_serve_pictures_of_two_subfolders(tmp_path: Path) -> None:
    (tmp_path / "words/b").mkdir(parents=True)
    examples = [
        Example(f"{sub}/0", e.image, e.source, 32, 32, 32, 32, 1, e.sha256)
        for sub in "ab"
        for e in make_examples(tmp_path / sub, 1)
    ]
    (tmp_path / "words/0.txt").write_text("zero")
    sidecar = Sidecar.load(sidecar_section(folder=str(tmp_path / "words")))
    with pytest.raises(DataError, match=r"0\.txt fits two pictures, a/0 and b/0"):
        sidecar.sources(examples)
    (tmp_path / "words/b/0.txt").write_text("b's zero")
    assert sidecar.caption(examples) == ["zero", "b's zero"]


def test_caption_file_of_no_picture_is_told(tmp_path: Path) -> None:
    examples = make_examples(tmp_path, 1)
    for name in ("0.txt", "7.txt", "8.txt"):
        (tmp_path / name).write_text("a cat")
    warnings = Sidecar.load(sidecar_section()).sources(examples).warnings
    assert warnings == ("2 .txt files of no picture are not read: 7.txt, 8.txt",)


# the table


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"name": "blipp"}, "unknown captioner 'blipp'; did you mean 'blip'"),
        ({"name": "sidecar", "prompt": "a photo of"}, "captioner.prompt = 'a photo of' is not read by 'sidecar'"),
        ({"name": "blip", "folder": "words"}, "captioner.folder = 'words' is not read by 'blip'"),
        ({"name": "blip", "extension": ".caption"}, "captioner.extension = '.caption' is not read by 'blip'"),
    ],
)
def test_options_that_a_captioner_does_not_read_are_refused(section: dict[str, object], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        captioners.check(CaptionerSection.model_validate(section))


def test_every_captioner_has_its_options_listed() -> None:
    assert captioners.OPTIONS.keys() == captioners.CAPTIONERS.keys()
    for name in captioners.CAPTIONERS:
        needed = captioners.NEEDED.get(name)
        captioners.check(CaptionerSection.model_validate({"name": name, **({needed: "given"} if needed else {})}))
        if needed:
            with pytest.raises(RecipeError, match=f"captioner.{needed} is missing: {name!r} needs it"):
                captioners.check(CaptionerSection(name=name))


# the stage


def run(
    section: CaptionerSection, examples: Sequence[Example], out: Path, **dataset: object
) -> tuple[list[Caption], StageFolder, list[str]]:
    heard, folder = Heard(), StageFolder(out)
    data = DatasetSection.model_validate({"path": "photos", "trigger_word": "jefpajot", "class_word": "cat", **dataset})
    arm = ArmSection(name="words", captioner=section)
    return caption_examples(arm, data, examples, folder, heard, engines.load()), folder, heard.lines


def write_texts(folder: Path, *texts: str) -> None:
    for index, text in enumerate(texts):
        (folder / f"{index}.txt").write_text(text)


def test_captions_get_the_trigger_word_and_are_written_for_other_trainers(tmp_path: Path) -> None:
    examples = make_examples(tmp_path / "photos", 3)
    write_texts(tmp_path / "photos", "a cat on a beach", "Jefpajot at night", "a red ball")
    made, folder, lines = run(sidecar_section(trigger="replace_class"), examples, tmp_path / "out")
    texts = ["a jefpajot on a beach", "Jefpajot at night", "jefpajot, a red ball"]
    assert made == [Caption(str(i), text, "sidecar") for i, text in enumerate(texts)]
    assert [(folder.path / f"captions/{i}.txt").read_text() for i in range(3)] == [f"{t}\n" for t in texts]
    assert lines == ["arm words: 1 captions do not say 'cat', so 'jefpajot' was put in front: 2"]
    manifest = folder.manifest()
    assert (manifest["captions"], manifest["trigger_word_added"]) == (3, 2)
    again = Sidecar.load(sidecar_section(folder=str(folder.path / "captions")))
    assert again.caption(examples) == texts


def test_captions_without_the_trigger_word_are_named(tmp_path: Path) -> None:
    examples = make_examples(tmp_path / "photos", 2)
    write_texts(tmp_path / "photos", "jefpajot on a beach", "a cat")
    made, _, lines = run(sidecar_section(trigger="none"), examples, tmp_path / "out")
    assert [c.text for c in made] == ["jefpajot on a beach", "a cat"]
    assert lines == ["arm words: 1 captions lack the trigger word 'jefpajot': 1"]


def test_changed_caption_file_is_noticed_and_an_equal_run_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = make_examples(tmp_path / "photos", 2)
    write_texts(tmp_path / "photos", "a cat", "a dog")
    first, folder, _ = run(sidecar_section(), examples, tmp_path / "out")
    finished = folder.manifest_path.stat().st_mtime_ns
    assert run(sidecar_section(), examples, tmp_path / "out")[0] == first
    assert folder.manifest_path.stat().st_mtime_ns == finished
    write_texts(tmp_path / "photos", "a cat", "a bird")
    assert run(sidecar_section(), examples, tmp_path / "out")[0][1].text == "jefpajot, a bird"
    assert run(sidecar_section(), examples, tmp_path / "out", trigger_word="sks")[0][1].text == "sks, a bird"


def test_edits_of_the_written_copies_are_not_ignored_in_silence(tmp_path: Path) -> None:
    examples = make_examples(tmp_path / "photos", 2)
    write_texts(tmp_path / "photos", "a cat", "a dog")
    _, folder, _ = run(sidecar_section(), examples, tmp_path / "out")
    (folder.path / "captions/1.txt").write_text("jefpajot, a better word")
    _, _, lines = run(sidecar_section(), examples, tmp_path / "out")
    assert len(lines) == 1 and "edited by hand and not read: 1.txt" in lines[0] and "sidecar" in lines[0]


class Counting:
    """A captioner that dies after some batches."""

    batches: list[list[str]] = []
    fails_after = 99

    settings: dict[str, object] = {}

    @classmethod
    def load(cls, section: CaptionerSection, device: str) -> Counting:
        return cls()

    def sources(self, examples: Sequence[Example]) -> captioners.Sources:
        return captioners.Sources()

    def caption(self, examples: Sequence[Example]) -> list[str]:
        if len(self.batches) == self.fails_after:
            raise KeyboardInterrupt
        self.batches.append([e.id for e in examples])
        return [f"batch of {len(examples)}, picture {e.id}" if e.id != "3" else "" for e in examples]


def test_killed_run_goes_on_after_its_last_whole_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(captioners.CAPTIONERS, "counting", f"{__name__}:Counting")
    monkeypatch.setitem(captioners.OPTIONS, "counting", frozenset())
    examples = make_examples(tmp_path / "photos", 11)
    section = CaptionerSection(name="counting", batch_size=3)
    monkeypatch.setattr(Counting, "batches", [])
    monkeypatch.setattr(Counting, "fails_after", 2)
    with pytest.raises(KeyboardInterrupt):
        run(section, examples, tmp_path / "out")
    partial = tmp_path / "out/said.jsonl"
    whole_lines = partial.read_bytes()
    assert len(whole_lines.splitlines()) == 6
    partial.write_bytes(whole_lines[:-7])  # as a power cut may leave it: the last line torn
    monkeypatch.setattr(Counting, "batches", [])
    monkeypatch.setattr(Counting, "fails_after", 99)
    resumed, folder, lines = run(section, examples, tmp_path / "out")
    assert Counting.batches == [["3", "4", "5"], ["6", "7", "8"], ["9", "10"]]
    unbroken, _, _ = run(section, examples, tmp_path / "whole")
    assert resumed == unbroken
    assert (tmp_path / "out/captions/10.txt").read_bytes() == (tmp_path / "whole/captions/10.txt").read_bytes()
    broken, whole = (
        [replace(r, seconds=None) for r in provenance.read(tmp_path / run / "captions.jsonl")]
        for run in ("out", "whole")
    )
    assert broken == whole
    assert lines == ["arm words: the captioner said nothing about 3"]
    assert not partial.exists() and folder.manifest()["captions"] == 11


def test_blip_arm_from_pictures_to_files(tiny_blip: Path, tmp_path: Path) -> None:
    examples = make_examples(tmp_path / "photos", 5)
    section = blip_section(tiny_blip, prompt="a drawing of", batch_size=2)
    made, folder, _ = run(section, examples, tmp_path / "out")
    assert all(c.text.startswith("jefpajot, a drawing of") and c.captioner == "blip" for c in made)
    assert run(section, examples, tmp_path / "out")[0] == made
    assert folder.manifest()["captioner"]["prompt"] == "a drawing of"


def test_local_engine_keeps_order_and_batches() -> None:
    batches: list[int] = []

    def worker(rows: Sequence[int]) -> list[int]:
        batches.append(len(rows))
        return [row * row for row in rows]

    results = list(engines.load().map_batches(worker, range(7), 3))
    assert results == [[0, 1, 4], [9, 16, 25], [36]] and batches == [3, 3, 1]


def test_batches_that_do_not_fit_are_halved_and_stay_so() -> None:
    seen: list[int] = []

    def worker(rows: Sequence[int]) -> list[str]:
        seen.append(len(rows))
        if len(rows) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [f"caption {row}" for row in rows]

    caption = Fitting(worker)
    assert caption(range(8)) == [f"caption {i}" for i in range(8)]
    assert seen == [8, 4, 2, 2, 2, 2]
    assert caption(range(3)) == ["caption 0", "caption 1", "caption 2"] and seen[6:] == [2, 1]
    with pytest.raises(torch.OutOfMemoryError):
        Fitting(lambda rows: worker(range(9)))([1])


def test_captioner_that_runs_out_of_memory_goes_on_with_smaller_batches(
    tiny_blip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = make_examples(tmp_path, 5)
    whole = captioners.load(blip_section(tiny_blip), "cpu").caption(examples)
    write, sizes = BlipModel.write, list[int]()

    def narrow(self: BlipModel, pixel_values: torch.Tensor) -> list[captioners.Written]:
        sizes.append(len(pixel_values))
        if len(pixel_values) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return write(self, pixel_values)

    monkeypatch.setattr(BlipModel, "write", narrow)
    assert captioners.load(blip_section(tiny_blip), "cpu").caption(examples) == whole
    assert sizes == [5, 2, 2, 1]
