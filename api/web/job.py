"""The page of one job: progress, curves, checkpoints, evaluations, hardware, log, timeline and spec."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.http.auth import Reader
from api.http.dependencies import TheDatabase
from api.rest.checkpoints import backbone_name
from api.rest.evaluations import pending_baselines
from api.rest.presets import PresetDeviation, preset_deviations
from api.web.evaluations import Card, cards
from api.web.events import Entry, entries_before
from api.web.job_view import JobView
from api.web.picture import drawing
from api.web.render import page, picture
from jobs import changes, curves, datasets, gangs, queries, seed_groups, sweeps
from jobs.advice import advice_of, further_epochs_of
from jobs.database import database_time
from jobs.devices import has_devices
from jobs.estimates import expected_time, longer_than_expected
from jobs.keys import Principal
from jobs.lineage import Origin, lineage
from jobs.models import TRAINING, Artifact, Attempt, AttemptNode, Checkpoint, Dataset, Dependency, Job, Log
from jobs.queries import Measured
from jobs.references import references
from jobs.seed_groups import Result
from jobs.status import TERMINAL, Status
from jobs.sweeps import Place
from jobs.verdicts import Twin, Verdict, before_training, its_twin, verdict
from jobs.waiting import Waiting, explain, pending
from jobs.weak_labels import ADVICE, lasting_quality
from wcl_core.config import PROTOCOLS, protocol_facts, why_no_weak_labels
from wcl_core.export import loading_lines
from wcl_core.metrics import is_hardware
from wcl_core.protocol import GPU_PERCENT, HARDWARE_PREFIX, MAP_FACTS, PROCESS_MEMORY_MIB
from wcl_core.schedule import schedule_of

router = APIRouter(include_in_schema=False)

LOG_LINES = 400
_MOST_EVALUATIONS = 100  # of which those without numbers are listed


@dataclass(frozen=True)
class Group:
    """A seed group: jobs that differ only in the seed, with their results over seeds."""

    id: str
    jobs: list[Job]
    results: list[Result]


@dataclass(frozen=True)
class Run:
    """A job with everything that its page shows, except curves and log."""

    view: JobView
    attempts: list[Attempt]
    events: list[Entry]
    are_events_removed: bool  # those before the end, by their age
    checkpoints: list[Checkpoint]
    evaluations: list[Card]
    without_numbers: list[Job]  # evaluations of its checkpoints that write features or a map only, newest first
    deviations: list[PresetDeviation] | None
    group: Group | None
    needs: list[tuple[str, str, str]]
    maps: dict[str, str]  # id of the job that made the map, by checkpoint
    lineage: list[Origin]
    owner: str | None
    status_by: str | None
    schedule: str | None  # the form of its learning rate
    sweep: tuple[str, str, int] | None
    waiting: Waiting | None
    pending: str | None
    note: str | None
    reference: Job | None  # the training that it is compared with
    verdict: Verdict | None
    twin: Twin | None
    baselines: list[Job]  # that have not ended
    label_warning: str | None
    before_training: str | None  # about an accuracy that is still that of the untrained network
    measures: Measured | None
    expected_time: dict[str, Any] | None
    longer: str | None  # that it takes much longer than expected
    advice: list[str]  # warnings about its spec
    further_epochs: int  # that the form to continue it proposes
    pool_has_gpus: bool
    has_log: bool  # or may still have
    nodes: dict[int, list[AttemptNode]]  # of attempts on several workers, by number
    cursor: str
    now: int

    @property
    def job(self) -> Job:
        return self.view.job

    @property
    def loading_lines(self) -> list[str]:
        """The lines of Python that load the newest weights, by the name of the file that the page downloads."""
        file = backbone_name(self.measurable[0].id) if self.measurable else "backbone.safetensors"
        return loading_lines(self.job.spec.get("backbone", {}), file)

    @property
    def noise(self) -> tuple[str, str] | None:
        """Why its weak labels are mostly noise, and the advice to train the twin, empty if there is a twin."""
        if self.label_warning is None:
            return None
        has_twin = self.twin is not None and self.twin.job is not None
        return self.label_warning.removesuffix(ADVICE), "" if has_twin else ADVICE

    @property
    def may_continue(self) -> bool:
        """Whether it is a finished training with a checkpoint to go on from."""
        return self.job.status == Status.SUCCEEDED and bool(self.measurable)

    @property
    def waits(self) -> bool:
        """Whether it waits for its first attempt: until then the page hides its empty sections."""
        return self.job.attempt == 0 and not self.view.is_over

    @property
    def has_curves(self) -> bool:
        """Whether it has reported metrics, or still may."""
        return self.job.kind == "pretrain" and (bool(self.view.metrics) or not self.view.is_over)

    @property
    def has_hardware(self) -> bool:
        """Whether it has reported metrics of the hardware, or still may."""
        return self.has_curves and (not self.view.is_over or any(map(is_hardware, self.view.metrics)))

    @property
    def may_get_results(self) -> bool:
        """Whether it is a training that may still write checkpoints."""
        return self.job.kind == "pretrain" and not self.view.is_over

    @property
    def has_checkpoints(self) -> bool:
        """Whether it has checkpoints."""
        return self.job.kind == "pretrain" and bool(self.checkpoints)

    @property
    def earlier(self) -> list[Origin]:
        """The jobs whose curves come before its own, the nearest first: it goes on from a checkpoint of theirs."""
        goes_on = takewhile(lambda origin: origin.relation in ("continues", "retries"), self.lineage)
        return [origin for origin in goes_on if origin.job_id and origin.step is not None]

    @property
    def earlier_steps(self) -> list[tuple[str | None, int | None, str]]:
        """Id, last step and relation of the earlier jobs, for the charts."""
        return [(origin.job_id, origin.step, origin.words) for origin in self.earlier]

    @property
    def start(self) -> Origin | None:
        """The weights that its training began with; None for random ones."""
        return next((origin for origin in self.lineage if origin.relation == "starts_from"), None)

    @property
    def measurable(self) -> list[Checkpoint]:
        """Its checkpoints that can be evaluated, newest first."""
        training = self.job.kind == "pretrain"
        return [each for each in self.checkpoints if training and each.kind == TRAINING and each.flaw is None]

    @property
    def has_evaluations(self) -> bool:
        """Whether there is anything to see or to do about evaluations."""
        is_measuring = self.job.kind == "evaluate" and not self.view.is_over
        return is_measuring or bool(self.evaluations or self.measurable or self.without_numbers)

    @property
    def lacks_baselines(self) -> bool:
        """Whether a checkpoint of a training has no raw pixels or no untrained network beside it, and gets none yet."""
        beside = [row.beside for card in self.evaluations if card.source for row in card.rows]
        has_all = any(each.pixels is not None for each in beside) and any(each.untrained is not None for each in beside)
        if self.job.kind != "pretrain" or self.note is not None or self.baselines:
            return False
        return not has_all if beside else self.may_measure_all

    @property
    def may_measure_all(self) -> bool:
        """Whether it has a checkpoint and no evaluation yet, so that the baselines come with one."""
        return bool(self.measurable) and not self.evaluations and not self.without_numbers

    @property
    def features(self) -> Checkpoint | None:
        """The newest file of features that an evaluation has written."""
        return next((each for each in self.checkpoints if each.kind != TRAINING and each.flaw is None), None)

    @property
    def map_job(self) -> str | None:
        """The job with the map to show: this job, or the one that mapped its latest mapped checkpoint."""
        if "map" in self.job.spec.get("protocols", ()):
            return self.job.id
        return next((self.maps[each.id] for each in self.checkpoints if each.id in self.maps), None)


def run(session: Session, job_id: str) -> Run:
    """Return a job for its page.

    Raises:
        NotFound: there is no such job.
    """
    job = queries.get_job(session, job_id)
    cursor = changes.now_cursor(session, job_id)  # read first: later changes are streamed, at worst twice
    attempts = queries.attempts(session, job_id)
    checkpoints = queries.checkpoints(session, job_id)
    parent = session.get(Job, job.parent_id) if job.parent_id else None
    return Run(
        view=JobView(job, queries.tags(session, [job_id])[job_id]),
        attempts=attempts,
        events=entries_before(session, job_id, job.event_seq + 1),
        are_events_removed=job.ended_at is not None and queries.are_events_removed(session, job_id),
        checkpoints=checkpoints,
        evaluations=cards(session, queries.evaluations(session, job_id)),
        without_numbers=_without_numbers(session, job_id),
        deviations=preset_deviations(job.preset, job.spec),
        group=_group(session, job),
        needs=_needs(session, job_id),
        maps=_maps(session, job_id, checkpoints),
        lineage=lineage(session, job),
        owner=queries.owner(session, job.created_by),
        status_by=queries.status_by(session, job),
        schedule=schedule_of(job.spec),
        sweep=_sweep(session, parent if job.kind == "evaluate" else job),
        waiting=explain(session, job),
        pending=pending(session, job),
        note=_note(session, job),
        reference=_reference(session, job),
        verdict=verdict(session, job),
        twin=its_twin(session, job),
        baselines=pending_baselines(session, job_id) if job.kind == "pretrain" else [],
        label_warning=None if (labels := lasting_quality(session, job)) is None else labels.warning,
        before_training=before_training(session, [job]).get(job.id),
        measures=queries.measured_checkpoint(session, job),
        advice=advice_of(session, job),
        further_epochs=further_epochs_of(session, job),
        expected_time=expected_time(session, job),
        longer=longer_than_expected(session, job),
        nodes=gangs.nodes_of(session, attempts) if job.nodes > 1 else {},
        has_log=job.status not in TERMINAL or bool(queries.logs(session, job_id, limit=1)),
        pool_has_gpus=job.gpus == 0 and has_devices(session, job.pool),
        cursor=str(cursor),
        now=database_time(session),
    )


def sections(run: Run, address: str = "") -> list[tuple[str, str]]:
    """Return addresses and names of the sections of a job's page, and of the pages of its parts.

    A section that comes with the first checkpoint has its link before; the style sheet hides it until then.

    Args:
        address: of the job's page; empty on that page itself.
    """
    shown = {
        ("evaluations", "Evaluations"): run.has_evaluations or run.may_get_results,
        ("group", "Seeds"): run.group is not None,
        ("curves", "Curves"): run.has_curves,
        ("checkpoints", "Checkpoints"): run.has_checkpoints or run.may_get_results,
        ("hardware", "Hardware"): run.has_hardware,
        ("log", "Log"): run.has_log,
        ("timeline", "Timeline"): True,
        ("spec", "Spec"): True,
    }
    parts = [part for part, is_shown in shown.items() if is_shown]
    links = [(f"{address}#{anchor}", name) for anchor, name in parts]
    after_curves = parts.index(("curves", "Curves")) + 1 if run.has_curves else 0
    if run.map_job:
        links.insert(after_curves, (f"/jobs/{run.map_job}/map", "Map"))
    if run.has_curves and why_no_weak_labels(str(run.job.spec["method"])) is None:
        links.insert(after_curves, (f"/jobs/{run.job.id}/weak-labels", "Weak labels"))
    return links


def _group(session: Session, job: Job) -> Group | None:
    if job.group_id is None:
        return None
    jobs = seed_groups.members(session, job.group_id)
    return Group(job.group_id, jobs, seed_groups.results(session, jobs))


def _sweep(session: Session, job: Job | None) -> tuple[str, str, int] | None:
    """Return id and name of a job's sweep, with the number of its trial."""
    if job is None or job.sweep_id is None:
        return None
    sweep = sweeps.get_sweep(session, job.sweep_id)
    return sweep.id, sweep.name, Place.of(job.origin or "").trial


def _note(session: Session, job: Job) -> str | None:
    """Return what labels would add to the job's dataset; None if it has labels."""
    dataset = session.execute(select(Dataset).where(Dataset.name == job.dataset_name)).scalar_one_or_none()
    return None if dataset is None else datasets.note(dataset)


def _reference(session: Session, job: Job) -> Job | None:
    """Return the reference of a training's dataset; None if there is none, or if it is the job itself."""
    pinned = references(session, [job.dataset_name]).get(job.dataset_name) if job.kind == "pretrain" else None
    return None if pinned is None or pinned.id == job.id else pinned


def _needs(session: Session, job_id: str) -> list[tuple[str, str, str]]:
    """Return id, name and status of the jobs that a job depends on."""
    statement = (
        select(Job.id, Job.name, Job.status)
        .join(Dependency, Dependency.needs_job_id == Job.id)
        .where(Dependency.job_id == job_id)
        .order_by(Job.id)
    )
    return [(row.id, row.name, row.status) for row in session.execute(statement)]


def _without_numbers(session: Session, job_id: str) -> list[Job]:
    own = select(Job).where(Job.parent_id == job_id, Job.kind == "evaluate").order_by(Job.id.desc())
    jobs = session.execute(own.limit(_MOST_EVALUATIONS)).scalars()
    return [job for job in jobs if not any(protocol_facts(name).measures for name in job.spec["protocols"])]


def _maps(session: Session, job_id: str, checkpoints: Sequence[Checkpoint]) -> dict[str, str]:
    """Return, by checkpoint of a training job, the newest job that has made a map of it."""
    below = select(Job.id).where(Job.parent_id == job_id, Job.kind == "evaluate").cte(recursive=True)
    below = below.union(select(Job.id).where(Job.parent_id == below.c.id, Job.kind == "evaluate"))  # retries, clones
    checkpoint_id = Job.spec["features"]["checkpoint_id"].as_string()
    maps = select(checkpoint_id, Job.id).join(Artifact, Artifact.job_id == Job.id)
    maps = maps.where(Job.id.in_(select(below.c.id)), Artifact.name == MAP_FACTS).order_by(Job.id)
    ids = {checkpoint.id for checkpoint in checkpoints}
    return {checkpoint_id: map_job for checkpoint_id, map_job in session.execute(maps) if checkpoint_id in ids}


# --- hardware --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hardware:
    """Hardware metrics; `names` are those reported, `missing` are sentences about the others."""

    names: list[str]
    missing: list[str]


def hardware(run: Run) -> Hardware:
    """Return which hardware metrics a training job has reported, and why others are missing."""
    names = sorted(filter(is_hardware, run.view.metrics))
    if not any(name.startswith(HARDWARE_PREFIX) for name in names):
        return Hardware(names, [] if run.view.is_over else ["Metrics appear with the first report."])
    return Hardware(names, _missing(names, _device(run), run.job.spec.get("processes", 1)))


def _device(run: Run) -> str:
    """Return the device of the newest attempt that has started."""
    environments = [attempt.environment for attempt in run.attempts if attempt.environment]
    return str(environments[-1].get("device", "")) if environments else ""


def _missing(names: Collection[str], device: str, processes: int) -> list[str]:
    sentences = []
    if device.startswith("cpu"):
        sentences.append("This job trains on the CPU, so there are no GPU metrics.")
    elif GPU_PERCENT not in names:
        sentences.append("GPU utilisation is not available: install nvidia-ml-py on the worker.")
    if PROCESS_MEMORY_MIB not in names:
        sentences.append("Process memory is not available: it is read from /proc, which exists on Linux only.")
    if processes > 1:
        sentences.append(f"The metrics are of the first of {processes} processes.")
    return sentences


@router.get("/jobs/{job_id}")
def job_page(request: Request, job_id: str, reader: Reader, database: TheDatabase) -> Response:
    """Return the page of a job."""
    with database.read() as session:
        view = run(session, job_id)
        lines: list[Log] = queries.logs(session, job_id, limit=LOG_LINES)
    context = _context(view, reader) | {
        "lines": lines,
        "sections": sections(view),
        "pictures": sorted(name for name in view.view.metrics if not is_hardware(name)),
    }
    return page(request, "job.html", **context)


@router.get("/jobs/{job_id}/live")
def job_live(request: Request, job_id: str, reader: Reader, database: TheDatabase) -> Response:
    """Return the parts of the page that change."""
    with database.read() as session:
        view = run(session, job_id)
    return page(request, "_job_live.html", **_context(view, reader))


def _context(view: Run, reader: Principal) -> dict[str, Any]:
    return {
        "run": view,
        "now": view.now,
        "may_submit": "submit" in reader.scopes,
        "may_change": "submit" in reader.scopes and reader.may_change(view.view.job.created_by),
        "protocols": [name for name in PROTOCOLS if view.note is None or not protocol_facts(name).measures],
        "hardware": hardware(view),
    }


@router.get("/jobs/{job_id}/curve.svg")
def curve_picture(job_id: str, name: str, reader: Reader, database: TheDatabase) -> Response:
    """Return one metric as a picture, for browsers without scripts."""
    with database.read() as session:
        points = curves.metrics(session, job_id, [name], max_points=300).get(name, [])
    return picture("curve.svg", **drawing(points, name))
