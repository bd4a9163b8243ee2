"""What the terminal shows: readable logs, honest time left, figures as a person writes them."""

from __future__ import annotations

import io
import os

import pytest
from rich.console import Console
from rich.progress import Progress
from rich.text import Text

from captune import console


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_log_has_a_line_at_both_ends_and_few_between() -> None:
    lines: list[str] = []
    clock = Clock()
    progress = console.Lines(lines.append, pause=10, clock=clock)
    with progress.track("train blip", 100) as bar:
        for step in range(100):
            clock.now += 0.25
            bar.advance(note=f"loss {step}")
    assert lines == [
        "train blip: 0/100",
        "train blip: 40/100, loss 39, 15 s left",
        "train blip: 80/100, loss 79, 5 s left",
        "train blip: 100/100 in 25 s, loss 99",
    ]


def test_time_left_is_judged_by_this_runs_work_alone() -> None:
    lines: list[str] = []
    clock = Clock()
    with console.Lines(lines.append, clock=clock).track("train", 100) as bar:
        bar.move_to(90)
        for _ in range(2):
            clock.now += 5
            bar.advance()
    assert lines[1] == "train: 92/100, 40 s left"


def test_broken_off_work_is_not_called_done() -> None:
    lines: list[str] = []
    with pytest.raises(KeyboardInterrupt), console.Lines(lines.append).track("train", 4) as bar:
        bar.advance()
        raise KeyboardInterrupt
    assert lines[-1] == "train: stopped at 1/4"


def live() -> tuple[console.Terminal, io.StringIO, Progress]:
    file = io.StringIO()
    bars = Progress(console=Console(file=file, force_terminal=True, width=100, highlight=False, no_color=True))
    return console.Terminal(bars), file, bars


def test_finished_bar_leaves_one_line() -> None:
    terminal, file, bars = live()
    with terminal.track("sample human", 2) as bar:
        bar.move_to(1)
        bar.advance(note="[1.2 pictures/s]")
        assert [(task.completed, task.total) for task in bars.tasks] == [(2, 2)]
    assert bars.tasks == []
    assert "sample human: 2 in 0 s  [1.2 pictures/s]" in Text.from_ansi(file.getvalue()).plain


def test_broken_off_bar_leaves_no_line() -> None:
    terminal, file, bars = live()
    with pytest.raises(KeyboardInterrupt), terminal.track("sample human", 0):
        raise KeyboardInterrupt
    assert (bars.tasks, file.getvalue()) == ([], "")


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1:00"), (65, "1:05"), (7209, "2:00:09")]
)
def test_duration(seconds: float, expected: str) -> None:
    assert console.duration(seconds) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (12000, "12,000"),
        (True, "yes"),
        (None, "-"),
        ([], "-"),
        (0.00012, "0.00012"),
        (["a", "b"], "a, b"),
        ({"64x64": 11, "48x80": 2}, "64x64: 11\n48x80: 2"),
        (
            [{"size": "64x64", "pictures": 3}, {"size": "8x8", "pictures": 1}],
            "size: 64x64, pictures: 3\nsize: 8x8, pictures: 1",
        ),
    ],
)
def test_values_in_words(value: object, expected: str) -> None:
    assert console.in_words(value) == expected


def test_quiet_leaves_what_the_user_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CAPTUNE_DEBUG", raising=False)
    monkeypatch.delenv("DIFFUSERS_VERBOSITY", raising=False)
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
    console.quiet()
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "info"
    assert os.environ["DIFFUSERS_VERBOSITY"] == "error"
