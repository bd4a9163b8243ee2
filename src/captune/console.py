"""What the terminal shows: progress, results and errors; and the silence of the libraries underneath."""

from __future__ import annotations

import errno
import json
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captune.errors import CaptuneError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress

    from captune.progress import Bar, Progress

_QUIET = {
    "ACCELERATE_LOG_LEVEL": "ERROR",
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


def debugging() -> bool:
    """Whether CAPTUNE_DEBUG asks for tracebacks and for the libraries' own noise."""
    return os.environ.get("CAPTUNE_DEBUG", "") not in ("", "0")


def quiet() -> None:
    """Silence the libraries' own warnings and bars; they read this when they are imported, so it comes first."""
    if debugging():
        return
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    warnings.simplefilter("ignore")


@dataclass
class Command:
    """What is known of the running command when something goes wrong."""

    log: Path | None = None  # where the details of an unexpected error go; a temporary file if not known


@contextmanager
def told() -> Iterator[Command]:
    """Run a command's body: whatever goes wrong there is told in one sentence and becomes the exit code."""
    from typer import Abort, Exit

    quiet()
    command = Command()
    try:
        yield command
    except (Exit, Abort, BrokenPipeError):
        raise
    except KeyboardInterrupt:
        to_stderr().print("stopped; run the same command again to continue", style="yellow", soft_wrap=True)
        raise Exit(130) from None
    except Exception as error:
        if debugging():
            traceback.print_exc()
        sentence, code = _explain(error, command)
        _print_error(sentence)
        raise Exit(code) from None


def _explain(error: Exception, command: Command) -> tuple[str, int]:
    """What to say of an error, and the exit code."""
    if isinstance(error, CaptuneError):
        return str(error), error.exit_code
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in str(error):
        return f"the disk is full ({first}); free some space and run the same command again to continue", 2
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return f"out of memory ({first}); try a smaller train.batch_size, sample.batch_size or dataset.resolution", 1
    log = _write_log(error, command.log)
    return f"unexpected {type(error).__name__}: {first} (details: {log}); finished stages are kept", 1


def _write_log(error: Exception, log: Path | None) -> Path:
    """Write the traceback to `log`, or to a new temporary file where that cannot be written."""
    text = f"{' '.join(sys.argv)}\nPython {sys.version}\n\n{''.join(traceback.format_exception(error))}"
    try:
        if log is not None:
            log.write_text(text, encoding="utf-8")
            return log
    except OSError:
        pass  # the traceback must not be lost to a second error: below it goes elsewhere
    handle, name = tempfile.mkstemp(prefix="captune-error-", suffix=".log")
    with open(handle, "w", encoding="utf-8") as file:
        file.write(text)
    return Path(name)


def to_stderr() -> Console:
    """The console for progress and errors, so that results alone are on stdout."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def to_stdout() -> Console:
    """The console for results."""
    from rich.console import Console

    return Console(highlight=False)


def _print_error(sentence: str) -> None:
    from rich.text import Text

    to_stderr().print(Text.assemble(("error: ", "bold red"), sentence), soft_wrap=True)


def print_marked(mark: str, style: str, line: str) -> None:
    """A result line behind a coloured mark."""
    from rich.text import Text

    to_stdout().print(Text.assemble((mark, style), " ", line), soft_wrap=True)


def print_aside(mark: str, line: str) -> None:
    """A remark that is not the result: on stderr, behind a mark."""
    from rich.text import Text

    to_stderr().print(Text.assemble((f"{mark}: ", "cyan"), line), soft_wrap=True)


def print_json(value: Any) -> None:
    """`value` as JSON on stdout and nothing else, for scripts."""
    from captune import runs

    print(json.dumps(runs.plain(value), indent=2, ensure_ascii=False))


def print_lines(*lines: str, style: str = "") -> None:
    """Result lines, never wrapped or read as markup: paths in them stay whole."""
    for line in lines:
        to_stdout().print(line, style=style, markup=False, soft_wrap=True)


def print_table(title: str, rows: Mapping[str, Any]) -> None:
    """Names and values in two columns."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None, padding=(0, 2))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(Text(name.replace("_", " ")), Text(in_words(value)))
    to_stdout().print(table)


def in_words(value: Any) -> str:
    """A plain value as a person writes it: yes and no, 1,200, lists with commas, one line per nested entry."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, Mapping):
        return "\n".join(f"{name}: {in_words(content)}" for name, content in value.items()) or "-"
    if isinstance(value, Sequence) and not isinstance(value, str):
        nested = any(isinstance(entry, Mapping) for entry in value)
        entries = [in_words(entry).replace("\n", ", ") for entry in value]
        return ("\n" if nested else ", ").join(entries) or "-"
    return str(value)


def duration(seconds: float) -> str:
    """Seconds as 8 s, 1:05 or 2:00:09."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def shown() -> Iterator[Progress]:
    """Progress on stderr: live bars in a terminal, few plain lines anywhere else."""
    console = to_stderr()
    if not console.is_interactive:
        yield Lines(lambda line: console.print(line, markup=False, soft_wrap=True))
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}", style="cyan", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with RichProgress(*columns, console=console, transient=True) as bars:
        yield Terminal(bars)


class _TerminalBar:
    def __init__(self, bars: RichProgress, title: str, total: int) -> None:
        self._bars, self._total = bars, total
        self._task = bars.add_task(title, total=total, note="")
        self.done = 0
        self.note = ""

    def advance(self, count: int = 1, note: str = "") -> None:
        self.done += count
        self.note = note or self.note
        self._bars.update(self._task, advance=count, note=self.note)

    def move_to(self, done: int) -> None:
        self.done = done
        # A reset, because work of an earlier run would make this one look fast and its end near.
        self._bars.reset(self._task, completed=done, total=self._total)

    def close(self) -> None:
        self._bars.remove_task(self._task)


class Terminal:
    """Live bars; a finished one leaves a line above them."""

    def __init__(self, bars: RichProgress) -> None:
        self._bars = bars

    @contextmanager
    def track(self, title: str, total: int) -> Iterator[Bar]:
        bar = _TerminalBar(self._bars, title, total)
        began = time.monotonic()
        try:
            yield bar
            self._line(f"{title}: {bar.done} in {duration(time.monotonic() - began)}", bar.note)
        finally:
            bar.close()

    def say(self, line: str) -> None:
        self._bars.console.print(line, markup=False, soft_wrap=True)

    def _line(self, text: str, note: str) -> None:
        from rich.text import Text

        ascii_only = self._bars.console.options.ascii_only
        mark = "done " if ascii_only else "✓ "
        self._bars.console.print(Text.assemble((mark, "green"), text, (f"  {note}", "dim") if note else ""))


class _LinesBar:
    def __init__(self, lines: Lines, title: str, total: int) -> None:
        self._lines, self.title, self.total = lines, title, total
        self.done = 0
        self.note = ""
        self._moved_to = 0
        self._began = self._spoke = lines.clock()

    def advance(self, count: int = 1, note: str = "") -> None:
        self.done += count
        self.note = note or self.note
        now = self._lines.clock()
        if now - self._spoke >= self._lines.pause and self.done < self.total:
            self._spoke = now
            per_piece = (now - self._began) / max(1, self.done - self._moved_to)
            left = f"{duration(per_piece * (self.total - self.done))} left"
            self._lines.say(", ".join(filter(None, [f"{self.title}: {self.done}/{self.total}", self.note, left])))

    def move_to(self, done: int) -> None:
        self.done = self._moved_to = done
        self._began = self._lines.clock()


class Lines:
    """Plain lines for logs: one when a piece of work begins and ends, and at most one per `pause` seconds between."""

    def __init__(
        self, write: Callable[[str], None], pause: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.say = write
        self.pause = pause
        self.clock = clock

    @contextmanager
    def track(self, title: str, total: int) -> Iterator[Bar]:
        began = self.clock()
        bar = _LinesBar(self, title, total)
        self.say(f"{title}: 0/{total}")
        try:
            yield bar
        except BaseException:
            self.say(f"{title}: stopped at {bar.done}/{total}")
            raise
        took = f"{title}: {bar.done}/{total} in {duration(self.clock() - began)}"
        self.say(", ".join(filter(None, [took, bar.note])))
