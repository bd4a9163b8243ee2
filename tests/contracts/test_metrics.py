"""What every metric of the table promises."""

from __future__ import annotations

import importlib
import random
from dataclasses import replace
from pathlib import Path

import pytest

from captune import metrics
from captune.errors import RecipeError
from captune.metrics import Context, Item, Metric, _oracle
from captune.mini import grammar, oracle, subjects, world
from captune.recipe import MEASURED, EvaluateSection
from tests.tiny_clip import write_tiny_clip
from tests.tiny_dino import write_tiny_dino

JUDGED = ("subject", "ordinary", "all", "reproduction")


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    clip, dino = (tmp_path_factory.mktemp(name) for name in ("clip", "dino"))
    return Context(write_tiny_clip(clip), "jefpajot", 4, "cpu", write_tiny_dino(dino))


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    """Six pictures of the subject, asked for with the trigger word, and six ordinary ones; nothing is left out."""
    folder, rng = tmp_path_factory.mktemp("pictures"), random.Random(3)
    found: list[Item] = []
    paths = [folder / f"{index}.png" for index in range(12)]
    for index in range(12):
        asks = index < 6
        scene = subjects.subject_scene("jefpajot", rng) if asks else world.random_scene(rng)
        world.draw(scene).save(paths[index])
        prompt = grammar.describe(scene, "short", rng, name="jefpajot" if asks else None)
        others = [path for path in paths[:6] if path != paths[index]]
        found.append(
            Item(
                image=paths[index],
                prompt=prompt,
                prompt_without_trigger=prompt.replace("jefpajot", "creature"),
                asks_for_subject=asks,
                references=tuple(others),
                base_image=paths[index - 1],
                siblings=(paths[index - 2], paths[index - 3]),
                own_image=others[0],
            )
        )
    return found


@pytest.fixture(autouse=True)
def untrained_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = _oracle.Readings(oracle.Oracle(oracle.Reader()))
    monkeypatch.setattr(_oracle, "load", lambda: readings)


def load(name: str, context: Context) -> Metric:
    return metrics.load([name], context)[name]


@pytest.mark.parametrize("name", metrics.METRICS)
def test_a_metric_says_what_it_is(name: str, context: Context) -> None:
    metric = load(name, context)
    assert metric.name == name
    assert metric.judges in JUDGED
    assert isinstance(metric.ceiling, bool)
    assert metric.title and metric.encoder
    assert ("higher is better" if metric.higher_is_better else "lower is better") in metric.meaning
    assert metrics.facts_of(metric).title == metric.title


@pytest.mark.parametrize("name", metrics.METRICS)
def test_a_metric_is_defined_in_its_file(name: str) -> None:
    text = importlib.import_module(metrics.METRICS[name].partition(":")[0]).__doc__ or ""
    for part in ("Definition:", "Range:", "is better", "Source:"):
        assert part in text


@pytest.mark.parametrize("name", metrics.METRICS)
def test_a_metric_has_words_for_its_comparisons(name: str) -> None:
    assert name in metrics.WORDS


@pytest.mark.parametrize("name", metrics.METRICS)
def test_one_value_per_item_whatever_the_batch(name: str, context: Context, items: list[Item]) -> None:
    at_once, one_by_one = (load(name, replace(context, batch_size=n)).score(items) for n in (32, 1))
    assert len(at_once) == len(items)
    assert any(value is not None for value in at_once)
    assert load(name, context).score([]) == []
    for value, other in zip(at_once, one_by_one, strict=True):
        assert value is None if other is None else value == pytest.approx(other, abs=1e-5)


@pytest.mark.parametrize("name", metrics.METRICS)
def test_the_order_of_items_does_not_matter(name: str, context: Context, items: list[Item]) -> None:
    metric = load(name, context)
    forward, backward = metric.score(items), metric.score(items[::-1])
    assert backward[::-1] == pytest.approx(forward, abs=1e-6)


@pytest.mark.parametrize("name", metrics.METRICS)
def test_what_is_missing_gives_no_value(name: str, context: Context, items: list[Item]) -> None:
    bare = [Item(item.image, "", "", True, ()) for item in items]
    judged_by_the_picture_alone = name in metrics.OF_MINI_SUBJECTS
    assert (load(name, context).score(bare) == [None] * len(items)) != judged_by_the_picture_alone


def test_what_is_measured_by_default_is_in_the_table() -> None:
    assert set(MEASURED) <= set(metrics.METRICS)


def test_an_unknown_metric_is_named_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match="unknown metric 'clip-t'; did you mean 'clip_t'?"):
        metrics.check(EvaluateSection(metrics=["clip-t"]))


def test_pictures_are_only_read(context: Context, items: list[Item]) -> None:
    before = {item.image: Path(item.image).read_bytes() for item in items}
    for name in metrics.METRICS:
        load(name, context).score(items)
    assert {path: path.read_bytes() for path in before} == before
