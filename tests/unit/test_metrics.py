"""Facts about single metrics."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from captune import metrics, weights
from captune.errors import DataError, ModelError, RecipeError
from captune.metrics import Context, Item, Metric, _encoder, _oracle
from captune.metrics.memorization import quantile_of
from captune.metrics.oracle_prompt import shows
from captune.mini import grammar, subjects, world
from captune.mini.oracle import Reading, Seen
from captune.recipe import EvaluateSection
from tests.perfect_oracle import PerfectOracle
from tests.tiny_clip import LONGEST, write_tiny_clip
from tests.tiny_dino import write_tiny_dino


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def dino_encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny_dino(tmp_path_factory.mktemp("dino"))


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


class Directions(_encoder.PictureEncoder):
    """Sees in the picture 30.png the unit vector at 30 degrees: the cosine of two pictures is that of their angle."""

    def __init__(self) -> None:
        super().__init__("directions", None, None, torch.device("cpu"))
        self.batches: list[int] = []

    def _images_of(self, paths: list[Path]) -> Tensor:
        self.batches.append(len(paths))
        angles = torch.tensor([float(path.stem.partition("-")[0]) for path in paths]).deg2rad()
        return 3 * torch.stack([angles.cos(), angles.sin()], dim=1)


class Angles:
    """Makes pictures by their angles, and judges them."""

    def __init__(self, folder: Path, encoder: Directions) -> None:
        self.folder, self.encoder = folder, encoder

    def picture(self, angle: float | str) -> Path:
        path = self.folder / f"{angle}.png"
        path.touch()
        return path

    def item(
        self,
        angle: float | str,
        references: Sequence[float] = (),
        base: float | None = None,
        siblings: Sequence[float | str] = (),
        own: float | None = None,
    ) -> Item:
        def pictures(angles: Sequence[float | str]) -> tuple[Path, ...]:
            return tuple(self.picture(a) for a in angles)

        (image,) = pictures([angle])
        base_image = None if base is None else self.picture(base)
        own_image = None if own is None else self.picture(own)
        return Item(image, "", "", True, pictures(references), base_image, pictures(siblings), own_image)

    def metric(self, name: str) -> Metric:
        return metrics.load([name], Context("mini", "jefpajot", 4, "cpu", "directions"))[name]

    def score(self, name: str, *items: Item) -> list[float | None]:
        return self.metric(name).score(items)


@pytest.fixture
def angles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Angles:
    encoder = Directions()
    monkeypatch.setattr(_encoder, "load_clip", lambda name, device: encoder)
    monkeypatch.setattr(_encoder, "load_dino", lambda name, device: encoder)
    return Angles(tmp_path, encoder)


def cos(degrees: float) -> Any:
    return pytest.approx(math.cos(math.radians(degrees)), abs=1e-6)


# Metrics by embeddings, on constructed ones


@pytest.mark.parametrize(("mean", "best"), [("clip_i", "clip_i_best"), ("dino", "dino_best")])
def test_likeness_is_the_mean_or_the_best_cosine_with_the_training_pictures(
    mean: str, best: str, angles: Angles
) -> None:
    items = [angles.item(0, references=[60, 90]), angles.item(0, references=[90, 180]), angles.item(0)]
    assert angles.score(mean, *items) == [pytest.approx(0.25, abs=1e-6), pytest.approx(-0.5, abs=1e-6), None]
    assert angles.score(best, *items) == [cos(60), cos(90), None]


def test_memorization_is_the_quantile_among_the_real_nearest_similarities(angles: Angles) -> None:
    real = [0, 10, 40, 100]  # each one's nearest: 10, 10, 30 and 60 degrees away
    far, between, usual, near = (angles.item(angle, real) for angle in (170, 145, 25, 5))
    assert angles.score("memorization", far, between, usual, near) == [0, 0.25, 0.5, 1]


def test_a_similarity_equal_to_real_ones_counts_half(angles: Angles) -> None:
    as_near_as_two = angles.item(110, references=[0, 10, 40, 100])  # 10 degrees from 100; as 0 and 10 are to each other
    assert angles.score("memorization", as_near_as_two) == [(2 + 2 / 2) / 4]
    assert quantile_of(0.5, torch.tensor([0.5, 0.5 + 1e-8, 0.5 - 1e-8, 0.9])) == 1.5 / 4


def test_a_copy_of_a_training_picture_is_memorized(angles: Angles) -> None:
    assert angles.score("memorization", angles.item("40-copy", references=[0, 10, 40, 100])) == [1]


def test_real_pictures_spread_evenly_over_memorization(angles: Angles) -> None:
    from captune.metrics.memorization import nearest_real

    nearest = nearest_real(
        torch.nn.functional.normalize(torch.randn(40, 8, generator=torch.Generator().manual_seed(1)))
    )
    values = [quantile_of(value, nearest) for value in nearest.tolist()]
    assert sum(values) / len(values) == pytest.approx(0.5)  # exact, by mid-ranks


def test_memorization_needs_three_training_pictures(angles: Angles) -> None:
    metric = angles.metric("memorization")
    assert metric.score([angles.item(0, references=[1, 2])] * 2) == [None, None]
    assert metric.warnings == ["memorization says nothing: it needs 3 training pictures or more"]


def test_diversity_is_the_distance_to_the_pictures_with_other_seeds(angles: Angles) -> None:
    alike = angles.item(20, siblings=["20-b", "20-c"])
    unlike = angles.item(0, siblings=[60, 90])
    assert angles.score("diversity", alike, unlike) == [pytest.approx(0, abs=1e-6), pytest.approx(0.75, abs=1e-6)]


def test_diversity_with_one_seed_says_nothing_and_why(angles: Angles) -> None:
    metric = angles.metric("diversity")
    assert metric.score([angles.item(0), angles.item(1)]) == [None, None]
    assert len(metric.warnings) == 1 and "two seeds or more in sample.seeds" in metric.warnings[0]
    assert angles.metric("diversity").warnings == []


def test_leak_change_is_the_distance_to_the_bases_picture(angles: Angles) -> None:
    same, changed, of_base = angles.item("30-b", base=30), angles.item(90, base=30), angles.item(30)
    assert angles.score("leak_change", same, changed, of_base) == [
        pytest.approx(0, abs=1e-6),
        pytest.approx(0.5, abs=1e-6),
        None,
    ]


def test_leak_subject_is_the_likeness_gained_over_the_base(angles: Angles) -> None:
    real = [0, 180, 0.5]
    nearer, further = angles.item(0, [0], base=90), angles.item(90, [0], base=60)
    same, of_base, nothing_real = angles.item("33-b", real, base=33), angles.item(33, real), angles.item(0, base=90)
    found = angles.score("leak_subject", nearer, of_base, further, same, nothing_real)
    assert found == [pytest.approx(1, abs=1e-6), None, pytest.approx(-0.5, abs=1e-6), pytest.approx(0, abs=1e-6), None]


def test_reproduction_is_the_likeness_to_the_picture_asked_back_above_the_bases(angles: Angles) -> None:
    back, as_base, of_base = angles.item(0, base=90, own=60), angles.item(45, base=315, own=0), angles.item(0, own=60)
    found = angles.score("reproduction", back, as_base, of_base, angles.item(0, base=90))
    assert found == [pytest.approx(0.5 - math.cos(math.radians(30)), abs=1e-6), pytest.approx(0, abs=1e-6), None, None]


def test_every_picture_is_embedded_once_and_in_full_batches_by_all_metrics(angles: Angles) -> None:
    items = [replace(angles.item(a, [0, 10, 40], 7, [80, 81], 10), image=angles.picture(a)) for a in range(50, 55)]
    context = Context("mini", "jefpajot", 4, "cpu", "directions")
    for metric in metrics.load(
        ["clip_i", "clip_i_best", "memorization", "leak_subject", "diversity"], context
    ).values():
        metric.score(items)
    assert angles.encoder.batches == [4, 4, 1, 2]  # 5 pictures, 3 references and the base's; then the siblings


# Real encoders: CLIP and DINOv2


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
    loaded = _encoder.load_clip(encoder, "cpu")
    first = loaded.embed_images([path], 1)[path]
    count = len(loaded._images)
    assert torch.equal(first, loaded.embed_images([path, path], 1)[path]) and len(loaded._images) == count
    Image.fromarray(np.zeros((64, 64, 3), dtype=np.uint8)).save(path)
    os.utime(path, ns=(1, 1))
    assert not torch.allclose(first, loaded.embed_images([path], 1)[path])


def test_two_metrics_share_one_encoder(encoder: str) -> None:
    assert _encoder.load_clip(encoder, "cpu") is _encoder.load_clip(encoder, "cpu")


def test_a_model_that_is_not_clip_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "siglip"}')
    with pytest.raises(ModelError, match="evaluate.encoder = .* is a siglip model, where a CLIP model is needed"):
        _encoder.load_clip(str(tmp_path), "cpu")


def test_a_clip_model_with_missing_weights_is_refused(encoder: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for path in Path(encoder).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    state = load_file(tmp_path / "model.safetensors")
    del state["text_projection.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="lacks 1 weights of a CLIP model, such as text_projection.weight"):
        _encoder.load_clip(str(tmp_path), "cpu")


def test_an_empty_model_folder_gives_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the CLIP model in .* could not be loaded"):
        _encoder.load_clip(str(tmp_path), "cpu")


def test_a_missing_picture_is_named(encoder: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.png is missing"):
        _encoder.load_clip(encoder, "cpu").embed_images([tmp_path / "gone.png"], 1)


def test_dino_is_the_cosine_of_the_class_tokens(dino_encoder: str, tmp_path: Path) -> None:
    from transformers import Dinov2Model
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

    model, processor = Dinov2Model.from_pretrained(dino_encoder), BitImageProcessorPil.from_pretrained(dino_encoder)
    rng, paths = random.Random(1), [tmp_path / f"{index}.png" for index in range(3)]
    for path in paths:
        world.draw(world.random_scene(rng)).save(path)
    with torch.inference_mode():
        pixel_values = processor([Image.open(path).convert("RGB") for path in paths], return_tensors="pt").pixel_values
        tokens = model(pixel_values).last_hidden_state[:, 0]
    expected = torch.nn.functional.cosine_similarity(tokens[:1], tokens[1:])
    context = Context("mini", "jefpajot", 2, "cpu", dino_encoder)
    judged = [Item(paths[0], "", "", True, (paths[1], paths[2]))]
    for name, value in (("dino", expected.mean()), ("dino_best", expected.max())):
        metric = metrics.load([name], context)[name]
        assert metric.encoder == dino_encoder
        assert metric.score(judged) == [pytest.approx(value.item(), abs=1e-5)]


def test_pictures_for_dino_are_resized_without_torchvision(dino_encoder: str) -> None:
    assert type(_encoder.load_dino(dino_encoder, "cpu").processor).__name__ == "BitImageProcessorPil"
    assert _encoder.load_dino(dino_encoder, "cpu") is _encoder.load_dino(dino_encoder, "cpu")


def test_a_model_that_is_not_dinov2_is_refused(encoder: str) -> None:
    with pytest.raises(ModelError, match="evaluate.dino_encoder = .* is a clip model, where a DINOv2 model is needed"):
        _encoder.load_dino(encoder, "cpu")


@pytest.mark.parametrize("metric", ["dino", "dino_best"])
def test_dino_without_an_encoder_is_refused_by_name(metric: str) -> None:
    for missing in ("", "mini"):
        with pytest.raises(RecipeError, match=f"evaluate.dino_encoder = '{missing}': {metric} needs a DINOv2 model"):
            metrics.check(EvaluateSection(metrics=["clip_i", metric], dino_encoder=missing))
    metrics.check(EvaluateSection(metrics=["clip_i", metric], dino_encoder="facebook/dinov2-base"))
    metrics.check(EvaluateSection(metrics=["clip_i"], dino_encoder=""))
    with pytest.raises(RecipeError, match="needs a DINOv2 model"):
        metrics.load([metric], Context("mini", "jefpajot", 2, "cpu"))


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
        metrics.check(EvaluateSection(metrics=["clip_t", "oracle_leak"]), "sks")
    metrics.check(EvaluateSection(metrics=["oracle_leak", "oracle_subject"]), "zuffar")


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
