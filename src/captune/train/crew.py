"""Several processes for one training: the first leads (reads, writes, draws, judges), the others only compute with it.

`captune run --processes N` starts the others itself; under `accelerate launch` and torchrun all are there from the start.
The others wait in `serve` for what the leader hands out. Before every exchange of tensors all tell how they are, so that one
who cannot go on ends the training everywhere, in a sentence, and nobody waits forever.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]

import captune
from captune.errors import RecipeError, TrainingError
from captune.train.plan import check_shares

FOREVER = timedelta(days=365)  # the others wait while the leader writes captions and draws pictures
PATIENCE = timedelta(minutes=10)  # for a process to come and meet the others
LOOPBACK = {"linux": "lo", "darwin": "lo0"}


class Ended(TrainingError):
    """The training has ended in another process; all know."""


@dataclass(frozen=True)
class Place:
    """Which process this is of how many, as a launcher's environment tells."""

    rank: int
    size: int
    local_rank: int

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Place | None:
        """The place of a process that a launcher started, or None."""
        size = int(environment.get("WORLD_SIZE", "1"))
        if "RANK" not in environment or size < 2:
            return None
        rank = int(environment["RANK"])
        return cls(rank, size, int(environment.get("LOCAL_RANK", rank)))


class Crew:
    """The processes of a training. A crew of one exchanges nothing."""

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0) -> None:
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self._lost = False

    @property
    def leads(self) -> bool:
        """Whether this is the process that reads and writes."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """This process's own of the devices that a recipe's `base.device` names."""
        return f"cuda:{self.local_rank}" if self.size > 1 and _on_cuda(name) else name

    @contextmanager
    def at_work(self, work: Callable[..., object], *told: Any) -> Iterator[None]:
        """The leader's side of a training: the others call work(crew, *told) meanwhile, and all end together."""
        self.share((work, told))
        with _threads(self.size), self.telling():
            yield
            self.total(0.0)

    @contextmanager
    def telling(self) -> Iterator[None]:
        """If this process cannot go on, the others are told at their next exchange."""
        try:
            yield
        except Ended:
            raise
        except Exception as error:
            with suppress(Ended):
                self._exchange(0.0, str(error) or type(error).__name__)
            raise

    def total(self, number: float) -> float:
        """The sum of this number over all processes. Raises Ended when one of them cannot go on."""
        return self._exchange(number, None)

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Put in every process's tensors their sum over all processes, with the same bits everywhere."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        with self._listening():
            dist.all_reduce(flat)
        for tensor, total in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))

    def share(self, value: Any) -> Any:
        """The leader's value, in every process."""
        if self.size == 1:
            return value
        box = [value if self.leads else None]
        with self._listening():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def dismiss(self) -> None:
        """Tell the others that there is nothing more to do."""
        with suppress(Ended):
            self.share(None)

    def _exchange(self, number: float, failure: str | None) -> float:
        if self.size == 1:
            return number
        with self._listening():
            told = torch.tensor([failure is not None, number], dtype=torch.float64)
            dist.all_reduce(told)
            failures, total = told.tolist()
            if not failures:
                return float(total)
            reasons: list[str | None] = [None] * self.size
            dist.all_gather_object(reasons, failure)
        told_by = [f"process {rank + 1} of {self.size}: {reason}" for rank, reason in enumerate(reasons) if reason]
        raise Ended(f"the training cannot go on in {'; '.join(told_by)}")

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """A process that is gone shows as a broken connection."""
        gone = "another process of this training is gone (killed, or out of memory); run the same command to continue"
        if self._lost:
            raise Ended(gone)
        try:
            yield
        except RuntimeError as error:
            self._lost = True
            raise Ended(gone) from error


@contextmanager
def gathered(processes: int, device: str, pictures_per_step: int) -> Iterator[Crew]:
    """The leader's crew for the time of the with block: itself, and the others, started by a launcher or here.

    Raises RecipeError where so many cannot share `base.device`, or have fewer pictures a step than they are.
    """
    place = Place.of(os.environ)
    if place is not None and processes not in (1, place.size):
        raise RecipeError(f"--processes {processes}: the launcher started {place.size}; leave the option out")
    size = place.size if place else processes
    if size == 1:
        yield Crew()
        return
    _check(size, device, pictures_per_step)
    others = _join() if place else _start(size)
    crew = Crew(0, size, place.local_rank if place else 0)
    try:
        yield crew
    except Exception:
        crew.dismiss()
        raise
    except BaseException:  # interrupted: the others may be in the middle of a step
        for other in others:
            other.kill()
        raise
    else:
        crew.dismiss()
    finally:
        dist.destroy_process_group()
        for other in others:
            other.wait()


def _check(size: int, device: str, pictures_per_step: int) -> None:
    if _on_cuda(device):
        if ":" in device or torch.cuda.device_count() < size:
            raise RecipeError(
                f'{size} processes need as many GPUs and base.device = "cuda"; this machine has '
                f'{torch.cuda.device_count()} and the device is "{device}"'
            )
    elif device not in ("auto", "cpu"):
        raise RecipeError(f'{size} processes cannot share base.device = "{device}"; use cuda or cpu')
    check_shares(pictures_per_step, size)


def _on_cuda(device: str) -> bool:
    return device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())


def follows() -> bool:
    """Whether a launcher started this process as one of those that only compute."""
    place = Place.of(os.environ)
    return place is not None and place.rank > 0


def serve(port: int | None = None) -> None:
    """What every process but the leader does: its share of what the leader hands out, until there is nothing more.

    `port` is that of the leader's store; without one a launcher's environment says where to meet.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the leader stops, and its end is the end here
    place = Place.of(os.environ)
    assert place is not None
    if port is None:
        _join()
    else:
        store = TCPStore("127.0.0.1", port, place.size, is_master=False, timeout=PATIENCE)
        store.set(f"process {place.rank}", "here")
        dist.init_process_group(_backend(), store=store, rank=place.rank, world_size=place.size, timeout=FOREVER)
    crew = Crew(place.rank, place.size, place.local_rank)
    with _threads(crew.size), suppress(Ended):
        while (handed := crew.share(None)) is not None:
            work, told = handed
            try:
                with crew.telling():
                    work(crew, *told)
                    crew.total(0.0)
            except Ended:
                continue
            except Exception:  # the leader has been told, and tells
                if os.environ.get("CAPTUNE_DEBUG"):
                    traceback.print_exc()
    dist.destroy_process_group()


def _join() -> list[subprocess.Popen[bytes]]:
    """Meet the others that a launcher started, where its environment says."""
    dist.init_process_group(_backend(), timeout=FOREVER)
    return []


def _start(size: int) -> list[subprocess.Popen[bytes]]:
    """Start the others on this machine and meet them. Raises TrainingError when one does not come."""
    name = LOOPBACK.get(sys.platform)
    if name:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)  # a host name that leads nowhere must not matter
    store = TCPStore("127.0.0.1", 0, size, is_master=True, wait_for_workers=False, timeout=PATIENCE)
    package = str(Path(captune.__file__).parents[1])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH", "")]))
    # what a training needs is imported before the leader asks for it
    told = f"from captune.train import crew, diffusion; crew.serve({store.port})"
    others = []
    for rank in range(1, size):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "PYTHONPATH": path}
        others.append(subprocess.Popen([sys.executable, "-c", told], env={**os.environ, **place}))
    while not store.check([f"process {rank}" for rank in range(1, size)]):
        if any(other.poll() is not None for other in others):
            for other in others:
                other.kill()
            raise TrainingError("a process of the training could not be started; what it says stands above")
        time.sleep(0.05)
    dist.init_process_group(_backend(), store=store, rank=0, world_size=size, timeout=FOREVER)
    return others


def _backend() -> str:
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


@contextmanager
def _threads(size: int) -> Iterator[None]:
    """Share the CPU's cores out, so that the processes do not stand in each other's way."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // size))
    try:
        yield
    finally:
        torch.set_num_threads(before)
