"""What every metric of the table promises."""

from __future__ import annotations

import importlib
import random
from pathlib import Path

import pytest

from captune import metrics
from captune.errors import RecipeError
from captune.metrics import Context, Item, Metric, _oracle
from captune.mini import grammar, oracle, subjects, world
from tests.tiny_clip import write_tiny_clip


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    """Six pictures of the subject, asked for with the trigger word, and six ordinary ones."""
    folder, rng = tmp_path_factory.mktemp("pictures"), random.Random(3)
    found: list[Item] = []
    references = []
    for index in range(12):
        asks = index < 6
        scene = subjects.subject_scene("jefpajot", rng) if asks else world.random_scene(rng)
        path = folder / f"{index}.png"
        world.draw(scene).save(path)
        if asks:
            references.append(path)
        prompt = grammar.describe(scene, "short", rng, name="jefpajot" if asks else None)
        others = tuple(reference for reference in references if reference != path)
        found.append(Item(path, prompt, prompt.replace("jefpajot", "creature"), asks, others))
    return found


@pytest.fixture(autouse=True)
def untrained_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = _oracle.Readings(oracle.Oracle(oracle.Reader()))
    monkeypatch.setattr(_oracle, "load", lambda: readings)


def load(name: str, encoder: str, batch_size: int = 4) -> Metric:
    return metrics.load([name], Context(encoder, "jefpajot", batch_size, "cpu"))[name]


@pytest.mark.parametrize("name", metrics.METRICS)
def test_a_metric_says_what_it_is(name: str, encoder: str) -> None:
    metric = load(name, encoder)
    assert metric.name == name
    assert metric.judges in ("subject", "ordinary", "all")
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
def test_one_value_per_item_whatever_the_batch(name: str, encoder: str, items: list[Item]) -> None:
    at_once, one_by_one = load(name, encoder, 32).score(items), load(name, encoder, 1).score(items)
    assert len(at_once) == len(items)
    assert any(value is not None for value in at_once)
    assert load(name, encoder).score([]) == []
    for value, other in zip(at_once, one_by_one, strict=True):
        assert value is None if other is None else value == pytest.approx(other, abs=1e-5)


@pytest.mark.parametrize("name", metrics.METRICS)
def test_the_order_of_items_does_not_matter(name: str, encoder: str, items: list[Item]) -> None:
    metric = load(name, encoder)
    forward, backward = metric.score(items), metric.score(items[::-1])
    assert backward[::-1] == pytest.approx(forward, abs=1e-6)


def test_an_unknown_metric_is_named_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match="unknown metric 'clip-t'; did you mean 'clip_t'?"):
        metrics.check(["clip-t"])


def test_pictures_are_only_read(encoder: str, items: list[Item]) -> None:
    before = {item.image: Path(item.image).read_bytes() for item in items}
    for name in metrics.METRICS:
        load(name, encoder).score(items)
    assert {path: path.read_bytes() for path in before} == before
