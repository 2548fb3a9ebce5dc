"""The ray engine: workers on the machines of a Ray cluster, each with the model, by transformers or by vLLM.

A worker gets some prompts, and more when it has answered them; its answers come as they are made. The prompts of a
worker that is lost are asked of another. Knows Ray, and the engines that work there. Knows nothing of what is kept.
"""

from __future__ import annotations

import queue
import threading
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mipo import reasons
from mipo.errors import InputError, LibraryError, MipoError, StoppedError, first_line
from mipo.io import cluster
from mipo.io.lazy import np, ray
from mipo.responses.engines.contract import Answer, Block, Work
from mipo.responses.engines.local import BLOCK_ROWS, Local
from mipo.responses.engines.vllm_offline import Vllm

if TYPE_CHECKING:
    from mipo.models.model import Model
    from mipo.responses.sampling import Responses, Sampling

TRIES = 3  # workers in a row that end without an answer, and workers that end with a prompt, before it is given up
PATIENCE = 60.0  # seconds after which it is said that no worker has a machine


class Ray:
    """Answers by workers on a Ray cluster."""

    def __init__(self, settings: Responses) -> None:
        self._settings = settings

    def identity(self) -> dict[str, str]:
        """Nothing: the model decides."""
        return {}

    def name(self) -> str:
        """The engine, and that of its workers."""
        return "ray, vllm" if self._settings.python else f"ray, {Local().name()}"

    def answers(self, work: Work) -> Iterator[list[tuple[int, Answer]]]:
        """An answer to each missing row (see `mipo.responses.engines.contract`)."""
        if work.model.in_memory:
            raise InputError("engine: ray loads a model by its name, got one in memory; save it, and give the folder")
        if find_spec("ray") is None:
            raise LibraryError("engine: ray needs Ray; install mipo[ray], on each machine of the cluster")
        with cluster.connected(self._settings.address):
            yield from _Crowd(self._settings, work).answers()


class _Worker:
    """An actor: the model on a machine of the cluster, which answers in a thread of its own."""

    def __init__(self, settings: Responses, model: Model, sampling: Sampling) -> None:
        self._settings, self._model, self._sampling = settings, model, sampling
        self._asked: queue.SimpleQueue[Block] = queue.SimpleQueue()
        self._answered: queue.SimpleQueue[list[tuple[int, Answer]] | Exception] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def ask(self, block: Block) -> None:
        """Takes prompts to answer."""
        self._asked.put(block)

    def take(self) -> list[tuple[int, Answer]]:
        """The answers since the last call, at least one; raises what ended the worker."""
        answers = list[tuple[int, Answer]]()
        while not answers or not self._answered.empty():
            item = self._answered.get()
            if isinstance(item, Exception):
                if not answers:
                    raise item
                self._answered.put(item)
                break
            answers += item
        return answers

    def _run(self) -> None:
        try:
            for answered in self._stream():
                self._answered.put(answered)
        except Exception as error:
            self._answered.put(error)

    def _stream(self) -> Iterator[list[tuple[int, Answer]]]:
        engine = Vllm(self._settings) if self._settings.python else Local()
        yield from engine.stream(self._model, self._sampling, iter(self._asked.get, None))


@dataclass(eq=False)
class _Slot:
    """A place for a worker: the one that is there now, what it gives next, and the rows that it has to answer."""

    actor: Any = None
    next: Any = None
    rows: set[int] = field(default_factory=set)
    is_there: bool = False  # a machine has been found for it
    has_answered: bool = False
    lost: int = 0  # workers in a row that were lost before they answered


class _Crowd:
    """The workers, and what each is asked."""

    def __init__(self, settings: Responses, work: Work) -> None:
        count, self._needs = _resources(settings)
        self._class = ray.remote(max_concurrency=2, **self._needs)(_Worker)
        self._settings, self._work, self._begun = settings, work, 0
        self._returned = deque[int]()  # rows of lost workers
        share = -(-len(work.missing) // (4 * count))
        # vLLM has a chunk in flight and one ahead; transformers answers a chunk as a whole.
        self._chunk, self._least = (
            (settings.concurrency,) * 2
            if settings.python
            else (min(max(share, work.sampling.batch_size), BLOCK_ROWS), 0)
        )
        self._slots = [_Slot() for _ in range(min(count, -(-len(work.missing) // self._chunk)))]
        self._ends = Counter[int]()  # by row: workers that were lost with it
        self._has_answered = False
        self._suspects = set[int]()  # the rows that are given up if another is lost with them
        # No weights travel, and the model's content is not computed again.
        name = str(Path(work.model.name).resolve()) if Path(work.model.name).is_dir() else work.model.name
        model = replace(work.model, name=name)
        model.__dict__.update(content=work.model.content, end_ids=work.model.end_ids)
        self._model = ray.put(model)

    def answers(self) -> Iterator[list[tuple[int, Answer]]]:
        """All answers; StoppedError where no worker is left."""
        timeout: float | None = PATIENCE
        try:
            for slot in self._slots:
                self._start(slot)
            while self._is_open():
                coming = {slot.next: slot for slot in self._slots if slot.rows or not slot.is_there}
                come = ray.wait(list(coming), timeout=timeout, fetch_local=False)[0]
                if not come:
                    print(f"ray: no machine of the cluster has room for a worker ({self._needs}) yet; waiting for one")
                timeout = None
                for ref in come:
                    if answered := self._take(coming[ref]):
                        yield answered
        finally:
            for slot in self._slots:
                ray.kill(slot.actor)

    def _is_open(self) -> bool:
        """Whether a row is left without an answer."""
        unasked = self._begun < len(self._work.missing) or self._returned or self._suspects
        return bool(unasked) or any(slot.rows for slot in self._slots)

    def _start(self, slot: _Slot) -> None:
        """A new worker."""
        slot.actor = self._class.remote(self._settings, self._model, self._work.sampling)
        slot.is_there, slot.has_answered = False, False
        slot.next = slot.actor.__ray_ready__.remote()

    def _fill(self, slot: _Slot) -> None:
        """Gives a worker more rows, if it has room for them; last, and one by one, those that may end it.

        One that follows a lost worker gets a single row first, which shows whether it can work at all.
        """
        if not slot.is_there:
            return
        is_tried = slot.has_answered or not slot.lost
        least, most = (self._least, self._chunk) if is_tried else (0, 1)
        while len(slot.rows) <= least and not self._suspects & slot.rows and (rows := self._next(most)):
            self._ask(slot, rows)
        waiting = self._suspects.difference(*(other.rows for other in self._slots))
        if waiting and not slot.rows:
            self._ask(slot, [min(waiting)])

    def _next(self, most: int) -> list[int]:
        """The next rows to ask: first those that nobody has been asked, then those of lost workers."""
        rows: list[int] = self._work.missing[self._begun : self._begun + most].tolist()
        self._begun += len(rows)
        return rows + [self._returned.popleft() for _ in range(min(most - len(rows), len(self._returned)))]

    def _ask(self, slot: _Slot, rows: list[int]) -> None:
        slot.rows |= {*rows}
        block = self._work.block(np.array(rows))
        # Texts do not travel: ids are what is asked.
        slot.actor.ask.remote(replace(block, prompts=block.prompts[:0], texts=block.texts[:0]))

    def _take(self, slot: _Slot) -> list[tuple[int, Answer]]:
        """What a worker has answered."""
        try:
            come = ray.get(slot.next)
        except ray.exceptions.RayError as error:
            return self._replace(slot, getattr(error, "cause", None) or error)
        answered: list[tuple[int, Answer]] = come if slot.is_there else []
        slot.is_there, slot.next = True, slot.actor.take.remote()
        if answered:
            rows = {row for row, _ in answered}
            slot.rows -= rows
            self._suspects -= rows
            slot.has_answered, slot.lost, self._has_answered = True, 0, True
        self._fill(slot)
        return answered

    def _replace(self, slot: _Slot, error: Exception) -> list[tuple[int, Answer]]:
        """Puts a new worker in the place of one that is lost, and asks its rows again; failures of those that were lost
        with too many.

        Raises an error that another worker would have too.
        """
        if isinstance(error, MipoError) and not isinstance(error, StoppedError):
            raise error
        if slot.has_answered or (self._has_answered and self._suspects & slot.rows):
            slot.lost = 0
        slot.lost += 1
        self._ends.update(slot.rows)
        given_up = {row for row in slot.rows if self._ends[row] >= TRIES}
        self._suspects = {row for row in self._suspects | slot.rows if self._ends[row] == TRIES - 1}
        self._returned.extend(sorted(slot.rows - given_up - self._suspects))
        slot.rows = set()
        ray.kill(slot.actor)
        # Of an actor that could not be made, for example without mipo on its machine, the last line is the cause.
        what = str(error).strip().splitlines()[-1] if "creation task" in str(error) else first_line(error)
        print(f"ray: a worker was lost ({what}); its prompts are asked again")
        if slot.lost < TRIES:
            self._start(slot)
        else:
            self._slots.remove(slot)
        for other in self._slots:
            self._fill(other)
        if not self._slots:
            raise StoppedError(f"engine: ray has no worker left, the last was lost: {what}; run the same command again")
        detail = f"{TRIES} workers were lost with it, the last: {what}"[:500]
        return [(row, Answer(failure=reasons.SERVER_ERROR, detail=detail, final=False)) for row in sorted(given_up)]


def _resources(settings: Responses) -> tuple[int, dict[str, float]]:
    """How many workers there are to be, and what of a machine each needs."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    there = [int(machine.get("GPU", 0)) for machine in machines]
    sizes = (settings.engine_options.get(f"{name}_parallel_size", 1) for name in ("tensor", "pipeline"))
    gpus = settings.gpus if settings.gpus is not None else prod(sizes) if any(there) else 0
    if gpus > max(there) > 0:
        raise InputError(f"gpus: expected at most the {max(there)} of one machine of the cluster, got {gpus}")
    if gpus:
        return settings.workers or max(1, sum(n // gpus for n in there)), {"num_gpus": gpus, "num_cpus": 1}
    count = settings.workers or len(machines)
    cores = min(machine.get("CPU", 1) for machine in machines) // -(-count // len(machines))
    return count, {"num_cpus": max(1, int(cores))}
