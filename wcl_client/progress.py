"""Live progress of jobs and sweeps in the terminal, from their streams."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from wcl_client.api import WclClient
from wcl_client.errors import WclError
from wcl_client.output import phase_text, share, time_left
from wcl_client.responses import TERMINAL, Job, Json
from wcl_client.sse import Message
from wcl_client.terminal import Terminal, status
from wcl_core.text import much_longer, share_done

_REFRESH_SECONDS = 5.0
_SETTLED = ("measured", "failed")


@dataclass
class JobView:
    """The current state of a job, updated by the messages of its stream."""

    job: Job
    loss: float | None = None
    warnings: list[str] = field(default_factory=list)
    first_checkpoint: int | None = None  # that was seen, its epoch
    longest: float | None = None  # seconds that the training was expected to take at most, before it began

    def __post_init__(self) -> None:
        if (self.job.get("attempt") or 0) <= 1:  # later attempts are expected to train the rest
            self.longest = (self.job.get("expected_time") or {}).get("high_seconds")

    def take(self, message: Message) -> None:
        """Update the state with a message; ignore a message with other data than an object."""
        data: Any = message.data
        if not isinstance(data, dict):
            return
        if message.event in {"job", "end"} and "status" in data:
            previous = self.job.get("progress")
            self.job = {**self.job, **data}
            self.job["progress"] = self.job.get("progress") or previous
        elif message.event == "progress":
            self.job["progress"] = data  # type: ignore[typeddict-item]
        elif message.event == "metrics":
            losses = [point["value"] for point in data.get("points", ()) if point.get("name") == "train/loss"]
            self.loss = losses[-1] if losses else self.loss
        elif message.event == "event" and data.get("type") == "warning":
            self.warnings.append(str((data.get("data") or {}).get("message", "")))
        elif message.event == "event" and data.get("type") == "checkpoint" and self.first_checkpoint is None:
            epoch = (data.get("data") or {}).get("epoch")
            self.first_checkpoint = int(epoch) if isinstance(epoch, int | float) else None

    @property
    def fraction(self) -> float:
        """The share of its own steps that the job has done, in 0..1."""
        if self.job["status"] == "succeeded":
            return 1.0
        return share_done(self.job.get("progress") or {}, self.job.get("earlier_epochs", 0)) or 0.0

    @property
    def epoch(self) -> str:
        """The epoch and the number of epochs as text; empty before the first progress report, and of an evaluation."""
        progress = self.job.get("progress")
        if not progress or not progress.get("total_epochs") or self.job.get("kind") == "evaluate":
            return ""
        return f"epoch {int(progress['epoch'])}/{progress['total_epochs']}"

    @property
    def advice(self) -> dict[str, str]:
        """What a user can do now with a training that goes on, by kind; each is printed once."""
        if self.job["kind"] != "pretrain" or self.job["status"] != "running":
            return {}
        short, texts = self.job["id"][-12:], dict[str, str]()
        if self.first_checkpoint is not None:
            saved = f"a checkpoint of epoch {self.first_checkpoint} is saved"  # an earlier `wcl watch` may have told it
            texts["features"] = (
                f"{saved}; features of images are possible now: wcl features {short} FOLDER -o features.csv"
            )
        progress: Mapping[str, Any] = self.job.get("progress") or {}
        if longer := much_longer(progress, self.longest, self.job.get("earlier_epochs", 0)):
            texts["longer"] = f"{longer}; wcl cancel {short} ends it, and its checkpoints and results stay"
        return texts

    @property
    def facts(self) -> list[str]:
        """The known values: time left, loss, work beside the training, pending request, cause of waiting, speed.

        The first ones are most wanted: a narrow terminal cuts off the last ones.
        """
        progress = self.job.get("progress")
        facts = [left] if (left := time_left(self.job)) else []
        facts += [] if self.loss is None else [f"loss {self.loss:.3f}"]
        if phase := phase_text(self.job):
            facts.append(phase)
        if request := self.job.get("pending"):
            facts.append(request)
        if self.job["status"] == "queued" and (waiting := self.job.get("waiting")):
            facts.append(waiting["message"])
        speed = progress.get("images_per_second") if progress else None
        if speed and self.job["status"] not in TERMINAL:
            facts.append(f"{speed:,.0f} images/s")
        return facts


class Watcher:
    """The display of jobs until all have ended; each job has its own thread."""

    def __init__(self, client: WclClient, jobs: Sequence[Job], terminal: Terminal) -> None:
        self._client = client
        self._terminal = terminal
        self.views = [JobView(job) for job in jobs]
        self._errors: list[Exception] = []
        self._next_refresh = 0.0
        self._advised: dict[str, set[str]] = {}  # kinds of advice that are printed, by job
        self._threads = [threading.Thread(target=self._follow, args=(view,), daemon=True) for view in self.views]

    def run(self) -> list[Job]:
        """Show the progress until all jobs have ended, and return the ended jobs.

        Raises:
            WclError: the server became unreachable, or a job does not exist.
        """
        for thread in self._threads:
            thread.start()
        if self._terminal.is_terminal:
            self._show_bars()
        else:
            self._print_lines()
        if self._errors:
            raise self._errors[0]
        return [self._client.job(view.job["id"]) for view in self.views]

    def _follow(self, view: JobView) -> None:
        try:
            for message in self._client.follow(view.job["id"]):
                view.take(message)
            view.take(Message("job", self._client.job(view.job["id"])))
        except Exception as error:  # raised again in the thread that shows the jobs
            self._errors.append(error)

    def _has_ended(self) -> bool:
        return not any(thread.is_alive() for thread in self._threads)

    def _join(self, seconds: float) -> None:
        for thread in self._threads:
            thread.join(seconds / len(self._threads))

    def _refresh(self) -> None:
        """Read the waiting jobs again now and then: why they wait depends on other jobs, and no message tells."""
        if time.monotonic() < self._next_refresh:
            return
        self._next_refresh = time.monotonic() + _REFRESH_SECONDS
        for view in self.views:
            if view.job["status"] == "queued":
                with suppress(WclError):  # the stream reports a server that is gone
                    view.take(Message("job", self._client.job(view.job["id"])))

    def _show_bars(self) -> None:
        with self._terminal.job_bars() as bars:
            numbers = [bars.add(_title(view), total=1.0) for view in self.views]
            ended = False
            while not ended:
                ended = self._has_ended()
                self._refresh()
                for number, view in zip(numbers, self.views, strict=True):
                    state = status(view.job["status"])
                    facts = "  ".join(view.facts)
                    self._advise(view)
                    bars.update(number, completed=view.fraction, state=state, epoch=view.epoch, facts=facts)
                self._join(0.2)

    def _advise(self, view: JobView) -> None:
        advised = self._advised.setdefault(view.job["id"], set())
        for kind, text in view.advice.items():
            if kind not in advised:
                advised.add(kind)
                self._terminal.say(f"{_title(view)}: {text}")

    def _print_lines(self) -> None:
        """Print a line for each new status, each tenth of the progress and, before the first step, each new phase."""
        printed: dict[str, tuple[str | int | None, ...]] = {}
        ended = False
        while not ended:
            ended = self._has_ended()
            self._refresh()
            for view in self.views:
                self._advise(view)
                progress = view.job.get("progress")
                prepared = (progress.get("share") if progress else None) or 0.0
                request = view.job.get("pending") or (view.job.get("waiting") or {}).get("cause")
                phase = progress.get("phase") if progress and not view.fraction else None
                state = (view.job["status"], int(view.fraction * 10), int(prepared * 10), phase, request)
                if printed.get(view.job["id"]) != state:
                    printed[view.job["id"]] = state
                    parts = [view.job["status"], f"{view.fraction:.0%}", view.epoch, *view.facts]
                    self._terminal.say(f"{_title(view)}: {'  '.join(part for part in parts if part)}")
            self._join(0.3)


def _title(view: JobView) -> str:
    return view.job.get("name") or f"{view.job['kind']} {view.job['id'][-8:]}"


def watch(client: WclClient, jobs: Sequence[Job], terminal: Terminal) -> list[Job]:
    """Show the progress of jobs until all have ended, and return the ended jobs."""
    return Watcher(client, jobs, terminal).run()


def watch_sweep(client: WclClient, sweep_id: str, terminal: Terminal) -> Json:
    """Print a line for each trial that is measured or fails, and return the ended sweep."""
    printed: set[tuple[int, int]] = set()
    sweep: Json = {}
    with terminal.status() as line:
        for sweep in client.follow_sweep(sweep_id):
            for trial_and_rung, text in _results(sweep):
                if trial_and_rung not in printed:
                    printed.add(trial_and_rung)
                    terminal.say(text)
            line.update(f"{len(printed)} of {sum(rung['trials'] for rung in sweep['rungs'])} results")
    return sweep


def _results(sweep: Mapping[str, Any]) -> Iterator[tuple[tuple[int, int], str]]:
    """Yield (trial, rung) and a line for each trial that has a result at a rung, in the order of the rungs."""
    for rung in range(len(sweep["rungs"])):
        for trial in sweep["table"]:
            result = next((each for each in trial["rungs"] if each["rung"] == rung), None)
            if result is None or result["state"] not in _SETTLED:
                continue
            length = f", {result['epochs']} epochs" if result["epochs"] else ""
            settings = ", ".join(f"{name} = {value}" for name, value in trial["settings"].items())
            measured = "failed" if result["value"] is None else share(result["value"])
            yield (trial["number"], rung), f"trial {trial['number']}{length}: {measured}  ({settings})"
