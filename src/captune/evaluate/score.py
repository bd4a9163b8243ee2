"""Stage: samples -> scores. Every metric judges the prompts it is made for; statistics are compare's business."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import captune
from captune import metrics, weights
from captune.errors import DataError, ModelError
from captune.metrics import Context, Item, Metric, MetricFacts
from captune.progress import Progress
from captune.recipe import DatasetSection, EvaluateSection
from captune.runs import StageFolder, read_records, sha256_of, write_json, write_records
from captune.types import BASE, REAL, Example, Sample, Score

SCORES = "scores.jsonl"
PART = "metrics.part.json"  # while evaluating: the facts of the metrics whose scores are already in scores.jsonl
JUDGED_NOTHING = {
    "subject": "no prompt asks for the subject",
    "ordinary": "every prompt asks for the subject",
    "all": "no picture was drawn",
    "reproduction": "no training picture was asked back by its caption",
}


def asks_for_subject(prompt: str, trigger_word: str) -> bool:
    """Whether the trigger word stands in the prompt. Without a trigger word (a style), every prompt asks for it."""
    word = trigger_word.strip()
    return not word or re.search(_whole(word), prompt, re.IGNORECASE) is not None


def without_trigger_word(prompt: str, trigger_word: str, class_word: str) -> str:
    """The prompt with the class word in the trigger word's place: said once, its article fitting.

    >>> without_trigger_word("a jefpajot creature on an old wall", "jefpajot", "creature")
    'a creature on an old wall'
    """
    word, kind = trigger_word.strip(), class_word.strip()
    if not word:
        return prompt
    followed = rf"(?:\s+{_whole(kind)})?" if kind else ""
    article = {True: "an", False: "a"}[kind[:1].lower() in tuple("aeiou")]

    def replaced(match: re.Match[str]) -> str:
        before = match["article"]
        if not kind:
            return ""
        if before is None or before.lower() not in ("a", "an"):
            return f"{before} {kind}" if before else kind
        return f"{article.capitalize() if before[0].isupper() else article} {kind}"

    text = re.sub(rf"(?:\b(?P<article>an?|the)\s+)?{_whole(word)}{followed}", replaced, prompt, flags=re.IGNORECASE)
    text = re.sub(r"\s+([,.;:!?])", r"\1", " ".join(text.split()))
    return text.strip(" ,;:")


def _whole(word: str) -> str:
    """A pattern for the word where it is not a part of a longer one."""
    return rf"(?<!\w){re.escape(word)}(?!\w)"


@dataclasses.dataclass(frozen=True)
class _Row:
    """What one score will be about."""

    item: Item
    arm: str
    name: str
    prompt_index: int
    training_seed: int = 0
    epoch: int = 0


def score_samples(
    section: EvaluateSection,
    dataset: DatasetSection,
    samples: Sequence[Sample],
    examples: Sequence[Example],
    folder: StageFolder,
    progress: Progress,
    device: str = "auto",
) -> list[Score]:
    """Judge the samples of every arm and training seed, the base's, and the training pictures (arm "real"); write
    scores.jsonl. `section` names its metrics and encoders; `examples` are the pictures that the adapters learned from.

    Three kinds of samples: the recipe's prompts by the finished adapters, training pictures asked back by their captions
    (`of`), and pictures of the training's progress (`epoch`), which have neither siblings nor a base to be held against.
    A run that was stopped goes on with the metrics that are not written yet.
    """
    inputs = _inputs(section, dataset, samples, examples)
    path = folder.path / SCORES
    if folder.done(inputs):
        return read_records(path, Score)
    rows = [*_sample_rows(dataset, samples, examples), *_real_rows(examples)]
    context = Context(section.encoder, dataset.trigger_word, section.batch_size, device, section.dino_encoder)
    loaded = metrics.load(section.measured, context)
    folder.begin(inputs, keep=True)
    scores: list[Score] = read_records(path, Score) if path.exists() else []
    written = _read_progress(folder)
    if not loaded:
        write_records(path, [])
    with progress.track("evaluate", len(loaded)) as bar:
        for name, metric in loaded.items():
            if name not in written:
                scores = [score for score in scores if score.metric != name] + _judge(metric, rows)
                write_records(path, scores)
                written[name] = dataclasses.asdict(metrics.facts_of(metric))
                write_json(folder.path / PART, written)
            bar.advance(note=metric.title)
    for warning in (warning for facts in written.values() for warning in facts["warnings"]):
        progress.say(warning)
    folder.finish(inputs, outputs=[path], metrics=list(written.values()), counts=Counter(s.metric for s in scores))
    (folder.path / PART).unlink(missing_ok=True)
    return scores


def read_facts(folder: StageFolder) -> dict[str, MetricFacts]:
    """What the metrics of a finished evaluation measure, by name, without loading them."""
    rows = folder.manifest().get("metrics", [])
    return {row["name"]: MetricFacts(**{**row, "warnings": tuple(row["warnings"])}) for row in rows}


def _read_progress(folder: StageFolder) -> dict[str, dict[str, Any]]:
    try:
        written: dict[str, dict[str, Any]] = json.loads((folder.path / PART).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return written


def _inputs(
    section: EvaluateSection, dataset: DatasetSection, samples: Sequence[Sample], examples: Sequence[Example]
) -> dict[str, Any]:
    """What the scores depend on; how they are compared afterwards is no part of it."""
    return {
        "evaluate": section.model_dump(mode="json", exclude={"resamples", "confidence"}),
        "encoders": [_model(section.encoder, "clip"), _model(section.dino_encoder, "dino")],
        "trigger_word": dataset.trigger_word,
        "class_word": dataset.class_word,
        "samples": [
            [s.arm, s.prompt, s.prompt_index, s.seed, s.training_seed, s.epoch, s.of, _hash(s.path)] for s in samples
        ],
        "examples": [[example.id, example.sha256] for example in examples],
        "captune": captune.__version__,
    }


def _model(name: str, kind: str) -> str:
    """What an encoder is, without loading it: the bytes of a folder's files, or a hub name."""
    local = name == weights.MINI or (name and Path(name).expanduser().exists())
    return weights.identity(name, kind) if local else name


def _hash(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise DataError(f"the sample {path} cannot be read ({error.strerror}); run the sample stage again") from error


def _sample_rows(dataset: DatasetSection, samples: Sequence[Sample], examples: Sequence[Example]) -> list[_Row]:
    references = tuple(example.image for example in examples)
    place = {example.id: index for index, example in enumerate(examples)}
    finished = [sample for sample in samples if sample.epoch == 0]
    base = {(s.of, s.prompt, s.seed): s.path for s in finished if s.arm == BASE}
    of_adapter: dict[tuple[object, ...], list[Sample]] = defaultdict(list)
    for sample in finished:
        of_adapter[_drawn_by(sample)].append(sample)
    rows = []
    for sample in samples:
        if sample.of and sample.of not in place:
            raise DataError(
                f"the sample {sample.path} asks {sample.of!r} back, which is not among the training pictures"
            )
        item = Item(
            image=sample.path,
            prompt=sample.prompt,
            prompt_without_trigger=without_trigger_word(sample.prompt, dataset.trigger_word, dataset.class_word),
            asks_for_subject=asks_for_subject(sample.prompt, dataset.trigger_word),
            references=references,
            own_image=references[place[sample.of]] if sample.of else None,
        )
        if sample.epoch == 0:
            item = dataclasses.replace(
                item,
                base_image=base.get((sample.of, sample.prompt, sample.seed)) if sample.arm != BASE else None,
                siblings=tuple(other.path for other in of_adapter[_drawn_by(sample)] if other.seed != sample.seed),
            )
        index = place[sample.of] if sample.of else sample.prompt_index
        rows.append(_Row(item, sample.arm, sample.item, index, sample.training_seed, sample.epoch))
    return rows


def _drawn_by(sample: Sample) -> tuple[object, ...]:
    """Which adapter drew which prompt: what pictures that differ only in their sampling seed have in common."""
    return sample.arm, sample.training_seed, sample.of, sample.prompt_index, sample.prompt


def _real_rows(examples: Sequence[Example]) -> list[_Row]:
    rows = []
    for index, example in enumerate(examples):
        others = tuple(other.image for other in examples if other.id != example.id)
        item = Item(example.image, "", "", asks_for_subject=True, references=others)
        rows.append(_Row(item, REAL, example.id, index))
    return rows


def _judge(metric: Metric, rows: Sequence[_Row]) -> list[Score]:
    """The metric's scores of the rows that it judges."""
    judged = [row for row in rows if _judges(metric, row)]
    if all(row.arm == REAL for row in judged):
        metric.warnings.append(f"{metric.name} judged nothing: {JUDGED_NOTHING[metric.judges]}")
        return []
    scores = []
    for row, value in zip(judged, metric.score([row.item for row in judged]), strict=True):
        if value is None:
            continue
        if not math.isfinite(value):
            raise ModelError(
                f"{metric.name} judged {row.item.image} as {value}: the encoder {metric.encoder!r} is broken"
            )
        about = (row.prompt_index, row.training_seed, row.epoch)
        scores.append(Score(metric.name, row.arm, row.name, value, metric.encoder, *about))
    return scores


def _judges(metric: Metric, row: _Row) -> bool:
    if row.arm == REAL:
        return metric.ceiling
    if row.item.own_image is not None:  # these prompts are an arm's own captions, not the same for every arm
        return metric.judges == "reproduction"
    return metric.judges in ("all", "subject" if row.item.asks_for_subject else "ordinary")
