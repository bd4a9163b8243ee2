"""meteor: METEOR 1.5, by the Java program that pycocoevalcap brings.

Definition: aligns caption and reference word by word (equal, same stem, synonym, paraphrase), best reference, recall
weighted above precision, a penalty for scattered matches. The corpus value pools the statistics of all captions: it is
not their mean (two captions at 0 and 1 give .343). Equal texts score 1.
Not nltk's METEOR, which is the form of 2005 without paraphrases and gives other numbers under the same name.
Range: 0 to 1. Source: Denkowski and Lavie 2014; Chen et al. 2015 (COCO).
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from captune.errors import ModelError
from captune.metrics.captions import CaptionScores, Unavailable
from captune.metrics.captions._captions import Captions

# Its numbers have a decimal point only in an English locale; elsewhere it cannot read what it has written itself.
_JAVA = ("-Duser.language=en", "-Duser.country=US", "-Dfile.encoding=UTF-8", "-Xmx2G")


class Meteor:
    """METEOR; Unavailable without Java or without pycocoevalcap."""

    def score(self, captions: Captions) -> CaptionScores:
        jar = program()
        statistics = []
        with _running(jar) as (to, lines):
            for candidate, references in zip(captions.candidates, captions.references, strict=True):
                # Two spaces become one, once, as in pycocoevalcap: raw text must score as it does there.
                texts = [*map(_one_line, references), _one_line(candidate).replace("  ", " ")]
                _say(to, " ||| ".join(["SCORE", *texts]))
                statistics.append(next(lines))
            _say(to, " ||| ".join(["EVAL", *statistics]))
            values = [float(next(lines)) for _ in statistics]
            corpus = float(next(lines))
        return CaptionScores({"METEOR": corpus}, {"METEOR": values})


def program() -> Path:
    """The program's file; Unavailable says what is missing."""
    if shutil.which("java") is None:
        raise Unavailable("METEOR 1.5 is a Java program and there is no java on this machine; install a Java runtime")
    package = importlib.util.find_spec("pycocoevalcap")
    folders = package.submodule_search_locations if package is not None else None
    jar = Path(next(iter(folders or ()), "")) / "meteor" / "meteor-1.5.jar"
    if not jar.is_file():
        raise Unavailable("METEOR 1.5 comes with pycocoevalcap: pip install 'captune[caption-metrics]'")
    return jar


@contextmanager
def _running(jar: Path) -> Iterator[tuple[IO[str], Iterator[str]]]:
    """The program, waiting for lines; what it answers, line by line."""
    command = ["java", *_JAVA, "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as complaints,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints, encoding="utf-8"
        ) as process,
    ):
        assert process.stdin is not None and process.stdout is not None

        def answers(stdout: IO[str]) -> Iterator[str]:
            for line in stdout:
                yield line.strip()
            complaints.seek(0)
            said = complaints.read().strip().splitlines() or ["no reason given"]
            raise ModelError(f"METEOR's Java program ended before its work was done: {said[-1]}")

        try:
            yield process.stdin, answers(process.stdout)
        finally:
            process.kill()


def _say(to: IO[str], line: str) -> None:
    try:
        to.write(line + "\n")
        to.flush()
    except BrokenPipeError:
        pass  # it has ended; reading its answer says why


def _one_line(text: str) -> str:
    return " ".join(text.replace("|||", "").splitlines())
