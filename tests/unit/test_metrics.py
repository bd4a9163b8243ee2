"""Facts about single metrics, and about the stage that scores samples with them."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from captune import metrics, weights
from captune.errors import DataError, ModelError, RecipeError
from captune.evaluate import score
from captune.metrics import Context, Item, _encoder, _oracle
from captune.metrics.oracle_prompt import shows
from captune.mini import grammar, subjects, world
from captune.mini.oracle import Reading, Seen
from captune.progress import Silent
from captune.recipe import DatasetSection, EvaluateSection
from captune.runs import StageFolder, sha256_of
from captune.types import Example, Sample
from tests.tiny_clip import LONGEST, write_tiny_clip


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny_clip(tmp_path_factory.mktemp("clip"))


def truth(scene: world.Scene) -> Reading:
    """What a perfect oracle reads."""
    things = [
        Seen(t.shape, None if t.shape in subjects.SUBJECTS else t.color, t.pattern, t.size, t.hat, t.place)
        for t in scene.things
    ]
    return Reading(scene.background, tuple(things))


class PerfectOracle:
    """Knows what was drawn into each file."""

    def __init__(self) -> None:
        self.scenes: dict[bytes, world.Scene] = {}
        self.read_pictures = 0

    def draw(self, scene: world.Scene, path: Path) -> Path:
        image = world.draw(scene)
        image.save(path)
        self.scenes[image.tobytes()] = scene
        return path

    def read(self, images: Sequence[Image.Image], batch_size: int = 64) -> list[Reading]:
        self.read_pictures += len(images)
        return [truth(self.scenes[image.tobytes()]) for image in images]


@pytest.fixture
def perfect(monkeypatch: pytest.MonkeyPatch) -> PerfectOracle:
    oracle = PerfectOracle()
    readings = _oracle.Readings(oracle)  # type: ignore[arg-type]
    monkeypatch.setattr(_oracle, "load", lambda: readings)
    return oracle


def scored(name: str, items: Sequence[Item], trigger_word: str = "jefpajot") -> list[float | None]:
    return metrics.load([name], Context("mini", trigger_word, 8, "cpu"))[name].score(items)


def item(path: Path, prompt: str) -> Item:
    return Item(path, prompt, prompt, "jefpajot" in prompt, ())


# clip_t and clip_i


def test_a_picture_is_most_like_itself(encoder: str, tmp_path: Path) -> None:
    rng, paths = random.Random(1), []
    for index in range(4):
        paths.append(tmp_path / f"{index}.png")
        world.draw(world.random_scene(rng)).save(paths[-1])
    context = Context(encoder, "jefpajot", 2, "cpu")
    clip_i = metrics.load(["clip_i"], context)["clip_i"]
    itself, other, both = clip_i.score(
        [
            Item(paths[0], "", "", True, (paths[0],)),
            Item(paths[0], "", "", True, (paths[1],)),
            Item(paths[0], "", "", True, (paths[0], paths[1])),
        ]
    )
    assert itself == pytest.approx(1.0, abs=1e-6)
    assert other is not None and other < 1
    assert both == pytest.approx((1 + other) / 2, abs=1e-6)


def test_without_training_pictures_clip_i_says_nothing(encoder: str, tmp_path: Path) -> None:
    world.draw(world.random_scene(random.Random(1))).save(tmp_path / "a.png")
    clip_i = metrics.load(["clip_i"], Context(encoder, "x", 2, "cpu"))["clip_i"]
    assert clip_i.score([Item(tmp_path / "a.png", "", "", True, ())]) == [None]


def test_clip_t_is_the_cosine_that_clip_itself_gives(encoder: str, tmp_path: Path) -> None:
    from transformers import CLIPModel, CLIPProcessor

    path = tmp_path / "a.png"
    world.draw(world.random_scene(random.Random(2))).save(path)
    model, processor = CLIPModel.from_pretrained(encoder), CLIPProcessor.from_pretrained(encoder)
    inputs: Any = processor(text=["a red cat"], images=[Image.open(path)], return_tensors="pt")
    with torch.inference_mode():
        expected = model(**inputs).logits_per_image.item() / model.logit_scale.exp().item()
    clip_t = metrics.load(["clip_t"], Context(encoder, "sks", 2, "cpu"))["clip_t"]
    assert clip_t.score([Item(path, "a sks", "a red cat", True, ())])[0] == pytest.approx(expected, abs=1e-5)


def test_clip_t_judges_by_the_prompt_without_the_trigger_word(encoder: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    world.draw(world.random_scene(random.Random(2))).save(path)
    clip_t = metrics.load(["clip_t"], Context(encoder, "sks", 2, "cpu"))["clip_t"]
    first, second, nothing = clip_t.score(
        [
            Item(path, "a sks", "a dog", True, ()),
            Item(path, "a zzz", "a dog", True, ()),
            Item(path, "sks", "", True, ()),
        ]
    )
    assert first == second
    assert nothing is None


def test_a_prompt_that_the_encoder_cuts_is_named(encoder: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    world.draw(world.random_scene(random.Random(2))).save(path)
    clip_t = metrics.load(["clip_t"], Context(encoder, "sks", 2, "cpu"))["clip_t"]
    text = "a dog that runs far, far beyond what can be read"
    clip_t.score([Item(path, text, text, False, ())] * 2)
    assert len(clip_t.warnings) == 1
    assert f"only the first {LONGEST} of" in clip_t.warnings[0] and text in clip_t.warnings[0]


def test_a_picture_is_embedded_once_until_it_changes(encoder: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    world.draw(world.random_scene(random.Random(2))).save(path)
    loaded = _encoder.load(encoder, "cpu")
    first = loaded.embed_images([path], 1)
    count = len(loaded._images)
    assert torch.equal(first, loaded.embed_images([path, path], 1)[:1]) and len(loaded._images) == count
    Image.fromarray(np.zeros((64, 64, 3), dtype=np.uint8)).save(path)
    os.utime(path, ns=(1, 1))
    assert not torch.allclose(first, loaded.embed_images([path], 1))


def test_two_metrics_share_one_encoder(encoder: str) -> None:
    assert _encoder.load(encoder, "cpu") is _encoder.load(encoder, "cpu")


def test_a_model_that_is_not_clip_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "siglip"}')
    with pytest.raises(ModelError, match="is a siglip model; clip_t and clip_i need a CLIP model"):
        _encoder.load(str(tmp_path), "cpu")


def test_a_clip_model_with_missing_weights_is_refused(encoder: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for path in Path(encoder).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    state = load_file(tmp_path / "model.safetensors")
    del state["text_projection.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="lacks 1 weights of a CLIP model, such as text_projection.weight"):
        _encoder.load(str(tmp_path), "cpu")


def test_an_empty_model_folder_gives_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the CLIP model in .* could not be loaded"):
        _encoder.load(str(tmp_path), "cpu")


def test_a_missing_picture_is_named(encoder: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.png is missing"):
        _encoder.load(encoder, "cpu").embed_images([tmp_path / "gone.png"], 1)


# oracle_*


def test_the_subject_is_seen_where_it_is(perfect: PerfectOracle, tmp_path: Path) -> None:
    rng = random.Random(0)
    there = item(perfect.draw(subjects.subject_scene("jefpajot", rng), tmp_path / "a.png"), "a jefpajot")
    other = item(perfect.draw(subjects.subject_scene("zuffar", rng), tmp_path / "b.png"), "a jefpajot")
    none = item(perfect.draw(world.random_scene(rng), tmp_path / "c.png"), "a jefpajot")
    assert scored("oracle_subject", [there, other, none]) == [1, 0, 0]
    assert scored("oracle_leak", [there, other, none]) == [1, 0, 0]
    assert scored("oracle_subject", [there], "Jefpajot") == [1]
    assert perfect.read_pictures == 3


def test_oracle_subject_refuses_a_trigger_word_it_does_not_know() -> None:
    with pytest.raises(RecipeError, match="oracle_subject only knows the mini world's subjects .*jefpajot.*'sks'"):
        scored("oracle_subject", [], "sks")
    with pytest.raises(RecipeError, match="oracle_leak only knows .*'sks'"):
        metrics.check(["clip_t", "oracle_leak"], "sks")
    metrics.check(["oracle_leak", "oracle_subject"], "zuffar")


@pytest.mark.parametrize("style", grammar.STYLES)
def test_what_a_caption_says_is_what_the_prompt_asks(style: str, perfect: PerfectOracle, tmp_path: Path) -> None:
    rng = random.Random(style)
    for index in range(60):
        scene = world.random_scene(rng, two_share=0.4)
        prompt = grammar.describe(scene, style, rng)
        assert _oracle.asked_background(prompt) == scene.background, prompt
        things = _oracle.asked_things(prompt)
        assert [(a.shape, a.color) for a in things] == [(t.shape, t.color) for t in scene.things], prompt
        path = perfect.draw(scene, tmp_path / f"{index}.png")
        assert scored("oracle_prompt", [item(path, prompt)]) == [1]
        assert scored("oracle_background", [item(path, prompt)]) == [1]


def test_the_colour_of_the_background_is_not_the_colour_of_a_thing() -> None:
    assert _oracle.asked_things("on a white background, a cat") == [_oracle.Asked("cat", None)]
    assert _oracle.asked_things("a small striped red cat in a green meadow") == [_oracle.Asked("cat", "red")]
    assert _oracle.asked_things("a jefpajot in the snow") == []


def test_a_prompt_that_names_no_background_or_two_is_not_judged_by_it(perfect: PerfectOracle, tmp_path: Path) -> None:
    path = perfect.draw(world.random_scene(random.Random(4)), tmp_path / "a.png")
    assert scored("oracle_background", [item(path, "a red cat"), item(path, "the beach at sunset")]) == [None, None]
    assert scored("oracle_prompt", [item(path, "something nice at the beach")]) == [None]


def test_every_thing_asked_for_must_be_a_thing_of_its_own() -> None:
    def seen(*things: tuple[str, str]) -> Reading:
        return Reading("beach", tuple(Seen(s, c, "plain", "medium", False, "left") for s, c in things))

    asked = _oracle.Asked
    assert shows(seen(("cat", "red"), ("house", "blue")), [asked("house", "blue"), asked("cat", "red")], "beach")
    assert not shows(seen(("cat", "red")), [asked("cat", "red"), asked("cat", "red")], "beach")
    assert not shows(seen(("cat", "blue"), ("house", "red")), [asked("cat", "red")], None)
    assert not shows(seen(("cat", "red")), [asked("cat", "red")], "snow")
    assert shows(seen(("cat", "red"), ("ball", "pink")), [asked("cat", None)], None)


def test_missing_oracle_weights_give_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(weights, "EMBEDDED", tmp_path)
    _oracle.load.cache_clear()
    with pytest.raises(ModelError, match=r"oracle\.safetensors could not be loaded .* leave the oracle_\* metrics out"):
        _oracle.load()


# The prompt without its trigger word


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a jefpajot on the beach", "a creature on the beach"),
        ("jefpajot, on the beach", "creature, on the beach"),
        ("A Jefpajot at night", "A creature at night"),
        ("a jefpajot creature in a jefpajot meadow", "a creature in a creature meadow"),
        ("the jefpajot's house", "the creature's house"),
        ("a jefpajotish cat", "a jefpajotish cat"),
        ("a red cat", "a red cat"),
    ],
)
def test_the_class_word_takes_the_trigger_words_place(prompt: str, expected: str) -> None:
    assert score.without_trigger_word(prompt, "jefpajot", "creature") == expected


def test_the_article_fits_the_class_word() -> None:
    assert score.without_trigger_word("a sks in snow", "sks", "animal") == "an animal in snow"
    assert score.without_trigger_word("An ohwx in snow", "ohwx", "dog") == "A dog in snow"


def test_without_a_class_word_the_trigger_word_goes_with_its_article() -> None:
    assert score.without_trigger_word("a jefpajot, on the beach", "jefpajot", "") == "on the beach"
    assert score.without_trigger_word("jefpajot", "jefpajot", "") == ""


def test_without_a_trigger_word_every_prompt_asks_for_what_was_taught() -> None:
    assert score.asks_for_subject("a cat", "")
    assert score.without_trigger_word("a cat", "", "creature") == "a cat"
    assert score.asks_for_subject("the Jefpajot's hat", "jefpajot")
    assert not score.asks_for_subject("jefpajots", "jefpajot")


# The stage


def run_of(oracle: PerfectOracle, folder: Path) -> tuple[list[Sample], list[Example]]:
    """Two prompts, two seeds: the base draws ordinary things, the arm human draws the subject; and three examples."""
    rng, samples, examples = random.Random(8), [], []
    for arm in ("base", "human"):
        for index, prompt in enumerate(("a jefpajot in the snow", "a red cat at night")):
            for seed in (0, 1):
                subject = arm == "human" and index == 0
                scene = subjects.subject_scene("jefpajot", rng) if subject else world.random_scene(rng, two_share=0)
                path = oracle.draw(scene, folder / f"{arm}-{index}-{seed}.png")
                samples.append(Sample(arm, prompt, index, seed, path))
    samples.append(Sample("human", "a jefpajot in the snow", 0, 0, samples[0].path, epoch=5))
    for index, scene in enumerate(subjects.training_scenes("jefpajot", 3)):
        path = oracle.draw(scene, folder / f"example-{index}.png")
        examples.append(Example(f"e{index}", path, path, 64, 64, 64, 64, 1, sha256_of(path)))
    return samples, examples


DATASET = DatasetSection(path=Path("photos"), trigger_word="jefpajot", class_word="creature")


def test_every_metric_judges_the_prompts_it_is_made_for(perfect: PerfectOracle, encoder: str, tmp_path: Path) -> None:
    samples, examples = run_of(perfect, tmp_path)
    section = EvaluateSection(metrics=["oracle_subject", "oracle_leak", "clip_i", "clip_t"], encoder=encoder)
    folder = StageFolder(tmp_path / "evaluate")
    scores = score.score_samples(section, DATASET, samples, examples, folder, Silent(), "cpu")

    def of(metric: str, arm: str) -> list[str]:
        return [s.item for s in scores if s.metric == metric and s.arm == arm]

    assert of("oracle_subject", "human") == of("clip_i", "base") == ["000-0", "000-1"]
    assert of("oracle_leak", "human") == ["001-0", "001-1"]
    assert of("clip_t", "human") == ["000-0", "000-1", "001-0", "001-1"]
    assert of("clip_i", "real") == of("oracle_subject", "real") == ["e0", "e1", "e2"]
    assert of("clip_t", "real") == of("oracle_leak", "real") == []
    by_arm = {s.arm: s.value for s in scores if s.metric == "oracle_subject"}
    assert by_arm == {"base": 0, "human": 1, "real": 1}
    assert {s.encoder for s in scores if s.metric == "clip_t"} == {encoder}


def test_scores_are_kept_and_read_back(perfect: PerfectOracle, tmp_path: Path) -> None:
    samples, examples = run_of(perfect, tmp_path)
    section = EvaluateSection(metrics=["oracle_subject", "oracle_background"])
    folder = StageFolder(tmp_path / "evaluate")
    first = score.score_samples(section, DATASET, samples, examples, folder, Silent())
    perfect.scenes.clear()  # nothing may be judged again
    again = section.model_copy(update={"resamples": 500, "confidence": 0.9})
    assert score.score_samples(again, DATASET, samples, examples, folder, Silent()) == first
    assert score.read_facts(folder)["oracle_subject"].title == "Subject drawn"
    assert not (folder.path / score.PART).exists()


def test_a_stopped_evaluation_goes_on_with_what_is_missing(
    perfect: PerfectOracle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from captune.metrics.oracle_background import OracleBackground

    samples, examples = run_of(perfect, tmp_path)
    section = EvaluateSection(metrics=["oracle_subject", "oracle_background"])
    whole = score.score_samples(section, DATASET, samples, examples, StageFolder(tmp_path / "whole"), Silent())

    def stopped(self: OracleBackground, items: Sequence[Item]) -> list[float | None]:
        raise KeyboardInterrupt

    folder = StageFolder(tmp_path / "evaluate")
    with monkeypatch.context() as patch:
        patch.setattr(OracleBackground, "score", stopped)
        with pytest.raises(KeyboardInterrupt):
            score.score_samples(section, DATASET, samples, examples, folder, Silent())
    monkeypatch.setattr("captune.metrics.oracle_subject.OracleSubject.score", stopped)
    assert score.score_samples(section, DATASET, samples, examples, folder, Silent()) == whole
    assert (folder.path / score.SCORES).read_bytes() == (tmp_path / "whole" / score.SCORES).read_bytes()


def test_a_changed_sample_is_judged_again(perfect: PerfectOracle, tmp_path: Path) -> None:
    samples, examples = run_of(perfect, tmp_path)
    section, folder = EvaluateSection(metrics=["oracle_subject"]), StageFolder(tmp_path / "evaluate")
    score.score_samples(section, DATASET, samples, examples, folder, Silent())
    perfect.draw(subjects.subject_scene("jefpajot", random.Random(99)), samples[0].path)
    scores = score.score_samples(section, DATASET, samples, examples, folder, Silent())
    assert [s.value for s in scores if s.arm == "base"] == [1, 0]


def test_a_score_that_is_not_a_number_is_an_error(
    perfect: PerfectOracle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, examples = run_of(perfect, tmp_path)
    broken: Any = lambda self, items: [float("nan")] * len(items)  # noqa: E731
    monkeypatch.setattr("captune.metrics.oracle_subject.OracleSubject.score", broken)
    with pytest.raises(ModelError, match="judged .* as nan"):
        score.score_samples(
            EvaluateSection(metrics=["oracle_subject"]),
            DATASET,
            samples,
            examples,
            StageFolder(tmp_path / "e"),
            Silent(),
        )


def test_a_missing_sample_is_named(tmp_path: Path) -> None:
    gone = Sample("human", "a jefpajot", 0, 0, tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"gone\.png cannot be read .*run the sample stage again"):
        score.score_samples(EvaluateSection(), DATASET, [gone], [], StageFolder(tmp_path / "e"), Silent())
