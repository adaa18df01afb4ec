"""Jobs: submit, list, show, change, cancel, pause, resume, retry, clone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from fastapi import Response as HttpResponse
from fastapi.responses import JSONResponse
from sqlalchemy.orm import Session

from api.http.auth import Owner, Reader, Submitter
from api.http.dependencies import TheDatabase
from api.http.idempotency import REPLAYED, TheSubmission
from api.rest import job_bodies, responses, seed_groups
from api.rest.evaluations import create_baselines
from api.rest.job_bodies import BatchBody, CloneBody, ContinueBody, JobBody, JobChange
from api.rest.presets import preset_deviations
from api.rest.responses import JobResponse, JobSummary, Response
from api.rest.seed_groups import SubmittedGroup
from jobs import queries, references, transitions
from jobs import submission as service
from jobs.database import Database
from jobs.errors import Conflict
from jobs.models import Job
from jobs.new_job import NewJob
from jobs.seed_groups import members
from jobs.verdicts import its_twin

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


class ListedJob(JobSummary):
    """A job in the list of all; `owner` and `project` are the names of its key and project."""

    owner: str | None
    project: str


class JobPage(Response):
    """A part of the list, newest first; `cursor=next_cursor` requests the next part."""

    items: list[ListedJob]
    next_cursor: str | None


@router.post(
    "",
    status_code=201,
    response_model=JobResponse | SubmittedGroup,
    responses={200: {"description": "A replay: the job that the first request created.  Or the result of a dry run."}},
)
def submit(
    body: JobBody,
    principal: Submitter,
    database: TheDatabase,
    response: HttpResponse,
    submission: TheSubmission,
    dry_run: bool = False,
) -> Any:
    """Submit a job.  The job is durable once the server responds with 201.

    With `Idempotency-Key`, a repeated request gets the first request's job, with status 200 and
    `Idempotency-Replayed: true`.  With `dry_run`, the server creates nothing and returns the planned result.
    `seeds` creates a seed group: all of its jobs, or none.
    """
    new = job_bodies.new_jobs(body, principal.key_id)
    if dry_run:
        with database.read() as session:
            return JSONResponse(_plan(session, body, new))

    def answer(session: Session, job: Job) -> tuple[str, Response]:
        if body.seeds is None:
            return f"/v1/jobs/{job.id}", _created(session, job, body.name)
        jobs = members(session, job.group_id or "")
        names = [each.name for each in jobs] if body.name is not None else []
        warnings = service.same_names(session, names, [each.id for each in jobs])
        return f"/v1/groups/{job.group_id}", seed_groups.submitted(session, jobs, list(warnings.values()))

    response.headers["Location"], submitted = job_bodies.create_jobs(submission, body, new, answer)
    return submitted


def _plan(session: Session, body: JobBody, new: list[NewJob]) -> dict[str, Any]:
    """Return the dry run; for a seed group that of its first job."""
    plan = service.plan(session, new[0])
    more = {"preset": body.preset, "deviations": preset_deviations(body.preset, plan["spec"])}
    return plan | more | {"seeds": body.seeds}


class BatchItem(Response):
    """A job of a batch; it has a warning if others have the name that was given."""

    id: str
    name: str
    status: str
    warnings: list[str]


class SubmittedBatch(Response):
    """The jobs of a batch, in the order of the request."""

    items: list[BatchItem]


@router.post(":batch", status_code=201, responses=REPLAYED)
def submit_batch(
    body: BatchBody, principal: Submitter, database: TheDatabase, submission: TheSubmission
) -> SubmittedBatch:
    """Submit up to 1,000 jobs by one request: all of them, or none.

    Errors name the job by its place, such as `/jobs/3/spec/data/name`.  With `Idempotency-Key`, a repeated request gets
    the first request's jobs, with status 200 and `Idempotency-Replayed: true`.
    """
    jobs = job_bodies.create_batch(submission, body)
    given = [each.name for each in body.jobs if each.name is not None]
    with database.read() as session:
        warnings = service.same_names(session, given, [job.id for job in jobs]) if given else {}
    items = []
    for job, sent in zip(jobs, body.jobs, strict=True):
        about = [warnings[job.name]] if sent.name is not None and job.name in warnings else []
        items.append(BatchItem.model_construct(id=job.id, name=job.name, status=job.status, warnings=about))
    return SubmittedBatch(items=items)


@router.get("")
def list_jobs(
    principal: Reader,
    database: TheDatabase,
    status: Annotated[str | None, Query(description="One or more, separated by commas.", max_length=200)] = None,
    kind: Annotated[str | None, Query(max_length=32)] = None,
    tag: Annotated[str | None, Query(max_length=64)] = None,
    q: Annotated[str | None, Query(description=queries.SEARCH, max_length=200)] = None,
    archived: Annotated[Literal["", "only", "all"], Query(description="By default, archived jobs are left out.")] = "",
    starred: Annotated[bool, Query(description="Only jobs with a star.")] = False,
    by: Annotated[str | None, Query(description="Name or id of the key that the jobs are of.", max_length=200)] = None,
    project: Annotated[
        str | None, Query(description="Name or id of the project that the jobs are of.", max_length=200)
    ] = None,
    folded: Annotated[
        bool, Query(description="Whether evaluations of a training and trials of a sweep are left out.")
    ] = False,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the previous part.", max_length=100)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 50,
) -> JobPage:
    """List jobs, newest first."""
    statuses = [part for part in (status or "").split(",") if part]
    with database.read() as session:
        named = queries.Filters(tuple(statuses), kind or "", by=by or "", project=project or "")
        queries.check_filters(session, named)
        page = queries.list_jobs(
            session,
            status=statuses,
            kind=kind,
            tag=tag,
            q=q,
            archived=archived,
            starred=starred,
            by=by,
            project=project,
            folded=folded,
            cursor=cursor,
            limit=limit,
        )
        ids = [job.id for job in page.items]
        tags, belongings = queries.tags(session, ids), queries.belongings(session, ids)
    items = []
    for job in page.items:
        owner, of_project = belongings[job.id]
        summary = responses.job_summary(job, tags[job.id])
        items.append(ListedJob.model_construct(**summary.__dict__, owner=owner, project=of_project))
    return JobPage(items=items, next_cursor=page.next_cursor)


@router.get("/{job_id}")
def show(job_id: str, principal: Reader, database: TheDatabase) -> JobResponse:
    """Return one job with its spec, and the reason why it waits."""
    with database.read() as session:
        return _response(session, queries.get_job(session, job_id))


class TwinResponse(Response):
    """The twin of a training: the SimCLR run with the settings of a WCL run, or the other way round.

    `title` names its method for people.  `job_id`, `name` and `status` are null while there is none but failed and
    cancelled ones.
    """

    method: str
    title: str
    job_id: str | None
    name: str | None
    status: str | None


@router.get("/{job_id}/twin")
def twin(job_id: str, principal: Reader, database: TheDatabase) -> TwinResponse:
    """Return the twin of a training, which its spec alone decides; an evaluation and a trial of a sweep have none."""
    with database.read() as session:
        paired = its_twin(session, queries.get_job(session, job_id))
    if paired is None:
        raise Conflict("only a training has a twin, and this job is an evaluation or a trial of a sweep")
    response = TwinResponse(method=paired.method, title=paired.title, job_id=None, name=None, status=None)
    if (job := paired.job) is None:
        return response
    return response.model_copy(update={"job_id": job.id, "name": job.name, "status": job.status})


@router.patch("/{job_id}")
def change(job_id: str, body: JobChange, principal: Owner, database: TheDatabase) -> JobResponse:
    """Change a job's name, tags, star or note, or the priority of a job that still waits."""
    tags = None if body.tags is None else tuple(dict.fromkeys(body.tags))
    job = database.write(
        lambda session: service.change(
            session,
            job_id,
            name=body.name,
            priority=body.priority,
            tags=tags,
            starred=body.starred,
            note=body.note,
        )
    )
    return _rendered(database, job)


@router.post("/{job_id}/cancel")
def cancel(job_id: str, principal: Owner, database: TheDatabase) -> JobResponse:
    """Cancel a job: a waiting job ends at once, a running job within 2 s; its checkpoints are kept."""
    return _changed(database, job_id, transitions.cancel)


@router.post("/{job_id}/pause")
def pause(job_id: str, principal: Owner, database: TheDatabase) -> JobResponse:
    """Pause a job until it is resumed; a running job finishes its step and saves a checkpoint first."""
    return _changed(database, job_id, transitions.pause)


@router.post("/{job_id}/resume")
def resume(job_id: str, principal: Owner, database: TheDatabase) -> JobResponse:
    """Resume a paused job: it is queued again, and continues from its last checkpoint."""
    return _changed(database, job_id, transitions.resume)


@router.post("/{job_id}/archive")
def archive(job_id: str, principal: Owner, database: TheDatabase) -> JobResponse:
    """Leave an ended job out of the lists; it stays as it is, and everything of it works as before."""
    return _changed(database, job_id, service.archive)


@router.post("/{job_id}/unarchive")
def unarchive(job_id: str, principal: Owner, database: TheDatabase) -> JobResponse:
    """Show an archived job in the lists again."""
    return _changed(database, job_id, service.unarchive)


@router.post("/{job_id}/reference")
def reference(job_id: str, principal: Submitter, database: TheDatabase) -> JobResponse:
    """Make a training the reference of its dataset: lists, charts and comparisons show the others against it."""
    return _changed(database, job_id, partial(references.set_reference, is_reference=True))


@router.post("/{job_id}/unreference")
def unreference(job_id: str, principal: Submitter, database: TheDatabase) -> JobResponse:
    """Make a training the reference no more."""
    return _changed(database, job_id, partial(references.set_reference, is_reference=False))


@router.post("/{job_id}/retry", status_code=201, responses=REPLAYED)
def retry(job_id: str, principal: Submitter, database: TheDatabase, submission: TheSubmission) -> JobResponse:
    """Create a new job that continues from the last checkpoint of a failed or cancelled job."""
    return _rendered(database, job_bodies.create_retry(submission, job_id))


@router.post("/{job_id}/continue", status_code=201, responses=REPLAYED)
def go_on(
    job_id: str, body: ContinueBody, principal: Submitter, database: TheDatabase, submission: TheSubmission
) -> JobResponse:
    """Create a job that trains a finished one further, from its last full checkpoint.

    Without `data` the new job goes on with the same data, states and step numbers for `epochs` more.  The
    learning rate starts again: it rises linearly over the warm-up, but at most over a tenth of these epochs, and falls
    to 0 by a cosine.  The result has the bytes of one run whose spec has this restart (`restarts`).

    `data`: a new run on another dataset, which starts from the network and the heads of the checkpoint (`weights`),
    with a new optimiser and the whole schedule.
    """
    return _rendered(database, job_bodies.create_continued(submission, job_id, body))


@router.post("/{job_id}/clone", status_code=201, responses=REPLAYED)
def clone(
    job_id: str,
    principal: Submitter,
    database: TheDatabase,
    submission: TheSubmission,
    body: CloneBody | None = None,
) -> JobResponse:
    """Create a new job with the same spec, some fields replaced, that starts from scratch."""
    body = body or job_bodies.CloneBody()
    job = job_bodies.create_clone(submission, job_id, body)
    with database.read() as session:
        return _created(session, job, body.name)


class JobItems(Response):
    """Jobs, oldest first."""

    items: list[JobSummary]


@router.post("/{job_id}/baselines", status_code=201, responses=REPLAYED)
def baselines(job_id: str, principal: Submitter, database: TheDatabase, submission: TheSubmission) -> JobItems:
    """Create jobs that measure the raw pixels and the untrained network as an evaluation has measured a checkpoint.

    The job is that evaluation, or a training: then its newest evaluation of a checkpoint counts.  A repeated request
    returns the jobs of the first one.
    """
    jobs = create_baselines(submission, job_id)
    with database.read() as session:
        tags = queries.tags(session, [job.id for job in jobs])
    return JobItems(items=[responses.job_summary(job, tags[job.id]) for job in jobs])


def _changed(database: Database, job_id: str, verb: Callable[[Session, str], None]) -> JobResponse:
    database.write(lambda session: verb(session, job_id))
    with database.read() as session:
        return _response(session, queries.get_job(session, job_id))


def _rendered(database: Database, job: Job) -> JobResponse:
    with database.read() as session:
        return _response(session, job)


def _created(session: Session, job: Job, name: str | None) -> JobResponse:
    """Return a new job; its warnings begin with those about the name that was given, and about GPUs that idle."""
    response = _response(session, job)
    first = service.same_name(session, name, job.id) + service.idle_gpus(job.gpus, job.spec)
    return response.model_copy(update={"warnings": first + response.warnings})


def _response(session: Session, job: Job) -> JobResponse:
    return responses.job(session, job, queries.tags(session, [job.id])[job.id])
