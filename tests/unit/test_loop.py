"""The loop around the training step, on a model of two numbers: resume, moving average, early stop, and what goes wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from io import FileIO
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captune.errors import DataError, TrainingError
from captune.progress import Silent
from captune.train import kept
from captune.train.batches import Batch, Visit
from captune.train.loop import Loop, State, best_epoch, ema_decay, fit, stops

EPOCH = 3  # steps


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


class Run:
    """A training of two weights on numbers that depend on the visit alone."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.loop = Loop("train toy", folder, 4, 4 * EPOCH, 2, 1.0, **settings)
        self.weights = {"a": nn.Parameter(torch.tensor([1.0, -2.0])), "b": nn.Parameter(torch.tensor(0.5))}
        self.optimizer = torch.optim.AdamW(self.weights.values(), lr=0.1)
        self.seen: list[tuple[float, ...]] = []  # the weights before each step
        self.poison: int | None = None  # the step (from 0) whose loss is not a number
        self.after_epoch: Callable[[State], None] = lambda state: None
        self.keep: Callable[[State], None] | None = None
        self.held_out: Callable[[], float] | None = None

    def loss(self, batch: Batch) -> Tensor:
        self.seen.append(tuple(self.weights["a"].tolist()))
        x = torch.tensor([float(v.index + v.number) for v in batch])
        bad = torch.nan if self.poison == len(self.seen) - 1 else 1.0
        return (self.weights["a"].sum() * x / 10 - self.weights["b"]) ** 2 * bad

    def go(self) -> State:
        def steps(epoch: int) -> list[list[Batch]]:
            return [[(Visit(i, epoch), Visit(i + 5, epoch))] for i in range(EPOCH)]

        return fit(
            self.loop, self.weights, self.optimizer, steps, self.loss, lambda step: 0.1, lambda i: f"photo {i}",
            Silent(), lambda s: self.after_epoch(s), keep=self.keep, held_out_loss=self.held_out,
        )  # fmt: skip

    @property
    def result(self) -> list[float]:
        return [*self.weights["a"].tolist(), self.weights["b"].item()]


def rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]


def test_the_moving_average_is_the_closed_form_and_training_goes_on_from_the_raw_weights(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "averaged").mkdir()
    plain, averaged = Run(tmp_path / "plain"), Run(tmp_path / "averaged", ema=0.6)
    plain.go()
    averaged.go()
    assert averaged.seen == plain.seen  # the average is looked at, never trained on
    path = [*plain.seen, tuple(plain.weights["a"].tolist())]
    expected = torch.tensor(path[0])
    for n, weights in enumerate(path[1:]):
        decay = min(0.6, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * torch.tensor(weights)
    assert torch.allclose(averaged.weights["a"], expected, atol=1e-6)
    assert averaged.result != plain.result


def test_the_averages_warm_up_ends_at_the_decay() -> None:
    assert [ema_decay(0.5, n) for n in (0, 1, 8, 1000)] == [0.1, 2 / 11, 0.5, 0.5]


def test_what_is_kept_and_drawn_on_the_way_is_the_average(tmp_path: Path) -> None:
    run, shown = Run(tmp_path, ema=0.9), []
    run.after_epoch = lambda state: shown.append(run.result)
    run.go()
    raw = [list(w) for w in run.seen]
    assert len(shown) == 4 and shown[-1] == run.result
    assert all(s[:2] not in raw for s in shown)


@pytest.mark.parametrize("when", range(0, 4 * EPOCH))
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_killed_at_any_step_and_resumed_it_ends_with_the_same_bits(tmp_path: Path, when: int, ema: float) -> None:
    for name in ("unbroken", "killed"):
        (tmp_path / name).mkdir()
    whole = Run(tmp_path / "unbroken", ema=ema)
    whole.go()
    broken = Run(tmp_path / "killed", ema=ema)
    loss, count = broken.loss, 0

    def dying(batch: Batch) -> Tensor:
        nonlocal count
        count += 1
        if count > when:
            raise Killed
        return loss(batch)

    broken.loss = dying  # type: ignore[method-assign]
    with pytest.raises(Killed):
        broken.go()
    again = Run(tmp_path / "killed", ema=ema)
    state = again.go()
    assert again.result == whole.result
    assert rows(tmp_path / "killed") == rows(tmp_path / "unbroken")
    assert (state.step, state.epoch, state.pictures) == (12, 4, 24)


def test_killed_while_an_epoch_is_closed_it_is_closed_again(tmp_path: Path) -> None:
    def dies(state: State) -> None:
        if state.epoch == 2:
            raise Killed

    run = Run(tmp_path)
    run.after_epoch = dies
    with pytest.raises(Killed):
        run.go()
    again, closed = Run(tmp_path), []
    again.after_epoch = lambda state: closed.append((state.epoch, state.step))
    again.go()
    assert closed == [(2, 6), (3, 9), (4, 12)]
    assert len(again.seen) == 6  # and none of its steps is done again


def test_steps_are_kept_as_often_as_asked(tmp_path: Path) -> None:
    run, kept_at = Run(tmp_path, save_every=5), []
    run.keep = lambda state: kept_at.append((state.epoch, state.step))
    run.go()
    assert kept_at == [(1, 5), (3, 10)]


def test_training_stops_when_the_held_out_loss_does_not_improve(tmp_path: Path) -> None:
    losses = iter([0.5, 0.4, 0.45, 0.41])
    run = Run(tmp_path, stop_after=1)
    run.held_out = lambda: next(losses)
    state = run.go()
    assert (state.step, state.epoch, state.held_out) == (9, 3, [0.5, 0.4, 0.45])
    told = kept.facts(state, 1, EPOCH, 12)
    assert told["recommended"] == {"rule": kept.RULE, "file": "best.safetensors", "epoch": 2, "step": 6, "loss": 0.4}
    assert told["stopped"]["step"] == 9 and "not improved for 1 epochs" in told["stopped"]["reason"]


def test_the_early_stop_remembers_over_a_kill(tmp_path: Path) -> None:
    run = Run(tmp_path, stop_after=2)
    losses = iter([0.4, 0.5])
    run.held_out = lambda: next(losses)
    loss = run.loss

    def dying(batch: Batch) -> Tensor:
        if len(run.seen) == 7:
            raise Killed
        return loss(batch)

    run.loss = dying  # type: ignore[method-assign]
    with pytest.raises(Killed):
        run.go()
    again = Run(tmp_path, stop_after=2)
    again.held_out = lambda: 0.6
    assert again.go().held_out == [0.4, 0.5, 0.6]
    assert Run(tmp_path, stop_after=2).go().step == 9  # and asked again it does not go on


def test_the_best_epoch_is_the_first_of_the_lowest_and_no_number_is_not_one() -> None:
    nan = float("nan")
    assert best_epoch([nan, 0.4, 0.3, 0.3]) == 3
    assert not stops([], 1) and not stops([0.4, 0.5], None)
    assert stops([0.4, nan], 1) and not stops([0.5, 0.4], 1)


def test_a_loss_that_is_no_number_names_step_pictures_and_checkpoint(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.poison = 4  # step 5: the second of the second epoch
    with pytest.raises(TrainingError) as told:
        run.go()
    for part in ("nan at step 5", "photo 1, photo 6", "last good checkpoint: step 4", "lower train.learning_rate"):
        assert part in str(told.value)
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4]
    mended = Run(tmp_path)  # what comes after the checkpoint is done anew
    assert mended.go().step == 12 and len(mended.seen) == 8


def test_weights_that_are_no_numbers_never_become_a_checkpoint(tmp_path: Path) -> None:
    run = Run(tmp_path)
    loss = run.loss

    def breaking(batch: Batch) -> Tensor:
        found = loss(batch)
        if len(run.seen) == 6:  # a finite loss whose gradient is not
            run.weights["a"].register_hook(lambda grad: grad * torch.inf)
        return found

    run.loss = breaking  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match=r"weights became NaN or infinite at step 6 .*checkpoint: step 4"):
        run.go()
    assert torch.load(tmp_path / "checkpoint.pt")["weights"]["a"].isfinite().all()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", "cut", "other"])
def test_an_unreadable_checkpoint_is_told_and_kept(tmp_path: Path, content: bytes | str) -> None:
    Run(tmp_path).go()
    path = tmp_path / "checkpoint.pt"
    if content == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif content == "other":
        torch.save({"weights": {}}, path)
    else:
        assert isinstance(content, bytes)
        path.write_bytes(content)
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"checkpoint .* cannot be read .*delete it to train from the start"):
        Run(tmp_path).go()
    assert path.read_bytes() == before


def test_a_disk_that_is_full_at_a_checkpoint_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Run(tmp_path)
    whole.go()
    for path in tmp_path.iterdir():
        path.unlink()
    save, saved = torch.save, 0

    def full(content: object, file: Any) -> None:
        nonlocal saved
        saved += 1
        if saved < 3:
            return save(content, file)
        with open("/dev/full", "wb") as nowhere:
            return save(content, nowhere)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(DataError, match=r"cannot write .*checkpoint\.pt: No space left on device; free space"):
        Run(tmp_path).go()
    assert torch.load(tmp_path / "checkpoint.pt")["step"] == 4
    monkeypatch.setattr(torch, "save", save)
    again = Run(tmp_path)
    again.go()
    assert again.result == whole.result
    assert not list(tmp_path.glob(".*"))


def test_losses_that_cannot_be_written_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("captune.train.loss_rows.FileIO", lambda path, mode: FileIO("/dev/full", "w"))
    with pytest.raises(DataError, match=r"cannot write .*losses\.jsonl: No space left on device"):
        Run(tmp_path).go()


def test_what_a_killed_process_was_writing_is_swept_away(tmp_path: Path) -> None:
    (tmp_path / ".checkpoint.pt.123.part").write_bytes(b"half")
    Run(tmp_path).go()
    assert not list(tmp_path.glob(".*"))


def test_only_the_newest_files_are_kept(tmp_path: Path) -> None:
    names = ["epoch-001", "step-000004", "epoch-002", "step-000008", "adapter", "best"]
    for name in names:
        (tmp_path / f"{name}.safetensors").touch()
    kept.drop_oldest(tmp_path, None, EPOCH)
    assert len(list(tmp_path.iterdir())) == 6
    kept.drop_oldest(tmp_path, 2, EPOCH)
    assert {p.stem for p in tmp_path.iterdir()} == {"epoch-002", "step-000008", "adapter", "best"}


def test_accumulated_batches_weigh_by_their_pictures(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.loop = replace(run.loop, epochs=1, total_steps=1)
    batches = [(Visit(0, 0), Visit(1, 0), Visit(2, 0)), (Visit(9, 0),)]
    fit(
        run.loop, run.weights, run.optimizer, lambda epoch: [batches], run.loss, lambda step: 0.1, str,
        Silent(), lambda state: None,
    )  # fmt: skip
    alone = Run(tmp_path)
    expected = sum(float(alone.loss((visit,)).detach()) for batch in batches for visit in batch) / 4
    assert rows(tmp_path)[0]["loss"] == pytest.approx(expected)
