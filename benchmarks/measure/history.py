"""A service with a long history, filled by SQL: jobs of every status, and one running job with long curves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, select, text
from sqlalchemy.orm import Session

from jobs import keys, transitions, workers
from jobs.changes import now_cursor
from jobs.database import Database, new_id
from jobs.ingest import ROLLUP_WIDTHS
from jobs.models import Base, Dataset, Evaluation, JobEvaluation, Sweep
from tests.jobs import rows

_PREFIX = "01000000-0000-7000-8000-"  # ids older than every new one
_OTHER_PREFIX = "01000000-0000-7000-9000-"  # of rows that are no jobs
_OWNERS = 10
_WORKERS = 20
_DATASETS = 100


@dataclass(frozen=True)
class History:
    """A filled database.

    Attributes:
        run: its running job with long curves.
        other_id: an ended training.
        deep_cursor: a cursor deep in the list.
        waiting_id: the last waiting job of the queue.
    """

    database: Database
    run: rows.Run
    other_id: str
    deep_cursor: str
    waiting_id: str


def fill(url: str, num_jobs: int, num_points: int, num_series: int) -> History:
    """Fill a database with the jobs of several keys, and a long running job.

    Of ten jobs, in the order of their submission, the first nine have ended: trainings, each with an attempt, an event,
    a tag and a checkpoint; evaluations below them with their results; and trials of sweeps.  The last tenth waits, with
    some jobs that are blocked, paused or running.  The jobs are of 100 datasets.
    """
    database = Database(url)
    database.migrate()
    rows.add_dataset(database)
    template = rows.Run(database, rows.running(database, name="digits, seed 0", tags=("baseline",)))
    template.deliver(rows.started(), rows.metrics(1, loss=1.0), rows.checkpoint(1))
    template.deliver(rows.end("succeeded"))
    measuring = rows.running(database, kind="evaluate", name="linear of digits")
    evaluation = rows.Run(database, measuring)
    evaluation.deliver(rows.started(), rows.evaluation(0.5), rows.evaluation(0.9, metric="top5"), rows.end("succeeded"))
    run = rows.Run(database, rows.running(database, name="the long one", preemptible=False))
    run.deliver(rows.started(), *(_report(step, num_series) for step in (0,)))
    owners = [database.write(lambda session: keys.create(session, "owner", ("submit",))[0].id) for _ in range(_OWNERS)]
    for number in range(_WORKERS):
        facts = rows.worker(id=f"{_OTHER_PREFIX}{number:012x}", name=f"worker-{number}")
        database.write(lambda session, facts=facts: workers.register(session, facts, 1, ()))  # type: ignore[misc]
    is_postgres = database.engine.dialect.name == "postgresql"
    with database.engine.begin() as connection:
        if is_postgres:
            connection.execute(text("SET statement_timeout = 0"))
            connection.execute(text("SET session_replication_role = replica"))  # foreign keys hold by construction
        _copy_jobs(connection, template.job_id, evaluation.job_id, num_jobs, owners)
        if is_postgres:
            _add_points(connection, run.job_id, num_points)
    database.write(lambda session: _add_sweeps_and_datasets(session, num_jobs))
    with database.engine.connect().execution_options(wcl_begin="none") as connection:
        if is_postgres:
            connection.execute(text("SET statement_timeout = 0"))
        connection.execute(text("VACUUM ANALYZE" if is_postgres else "ANALYZE"))
    if is_postgres:
        run.seq = num_points
        database.write(lambda session: transitions.deliver(session, run.attempt, []))
        with database.read() as session:
            assert now_cursor(session, run.job_id).delivered_seq == num_points
    last = num_jobs - 1 - (num_jobs - 1) % 10
    return History(database, run, template.job_id, f"{_PREFIX}{num_jobs // 10:012x}", f"{_PREFIX}{last:012x}")


def _report(step: int, num_series: int) -> dict[str, object]:
    return rows.metrics(step, **{f"series/{number:02}": 1.0 for number in range(num_series)})


def _copy_jobs(connection: Connection, training: str, evaluation: str, count: int, owners: Sequence[str]) -> None:
    """Copy the rows of an ended training and of an evaluation under other ids, in the tables that lists and pages read.

    A tenth of the ended jobs are evaluations, each of the training before it; as many are trials.
    """
    is_postgres = connection.dialect.name == "postgresql"
    connection.execute(text("CREATE TEMP TABLE numbers (i INTEGER PRIMARY KEY, hex TEXT)"))
    if is_postgres:
        insert = "INSERT INTO numbers SELECT i, lpad(to_hex(i), 12, '0') FROM generate_series(0, :count - 1) i"
        connection.execute(text(insert), {"count": count})
        connection.execute(text("ANALYZE numbers"))
    else:
        insert = "INSERT INTO numbers VALUES (:i, :hex)"
        connection.execute(text(insert), [{"i": i, "hex": f"{i:012x}"} for i in range(count)])
    ended = count * 9 // 10
    own = f"'{_PREFIX}' || n.hex"
    # An evaluation is named by the number after its training's.
    before = f"(SELECT '{_PREFIX}' || o.hex FROM numbers o WHERE o.i = n.i - 1)"
    digest = f"'{'0' * 52}' || n.hex"
    digest_before = f"(SELECT '{'0' * 52}' || o.hex FROM numbers o WHERE o.i = n.i - 1)"
    dataset = f"CASE n.i / 10 % {_DATASETS} WHEN 0 THEN t.dataset_name ELSE 'dataset-' || (n.i / 10 % {_DATASETS}) END"
    owner = "CASE n.i % 10 " + " ".join(f"WHEN {place} THEN '{each}'" for place, each in enumerate(owners)) + " END"
    waiting = (
        "CASE WHEN n.i % 100 = 3 THEN 'running' WHEN n.i % 100 = 5 THEN 'paused' "
        "WHEN n.i % 10 = 7 THEN 'blocked' ELSE 'queued' END"
    )
    finished = "CASE n.i % 6 WHEN 1 THEN 'failed' WHEN 5 THEN 'cancelled' ELSE 'succeeded' END"
    spec = "CAST(t.spec AS TEXT)", "'\"seed\": 0'", "'\"seed\": ' || (n.i % 5)"
    loss = f"replace({', '.join(spec)})", "'\"temperature\": 0.1'", "'\"temperature\": 0.' || (1 + n.i / 50 % 97)"
    varied = f"CAST(replace({', '.join(loss)}) AS JSON)" if is_postgres else f"replace({', '.join(loss)})"
    copied = {"id": own, "created_at": f"t.created_at - {count} + n.i", "created_by": owner, "dataset_name": dataset,
              "queue_place": "n.i + 1", "name": "'run ' || n.i"}  # fmt: skip
    is_trial, is_evaluation = f"n.i % 10 = 5 AND n.i < {ended}", f"n.i % 10 = 4 AND n.i < {ended}"
    in_sweep = "(SELECT '" + _OTHER_PREFIX + "' || o.hex FROM numbers o WHERE o.i = n.i / 1000)"
    trainings = copied | {
        "status": f"CASE WHEN n.i < {ended} THEN {finished} ELSE {waiting} END",
        "ended_at": f"CASE WHEN n.i < {ended} THEN t.ended_at END",
        "spec": varied,
        "sweep_id": f"CASE WHEN {is_trial} THEN {in_sweep} END",
        "origin": f"CASE WHEN {is_trial} THEN CAST(n.i AS TEXT) || '/0/0' END",
        "attempt": f"CASE WHEN n.i < {ended} OR n.i % 100 = 3 THEN 1 ELSE 0 END",
    }
    of_job = {"job_id": own}
    _copy(connection, "jobs", f"t.id = '{training}' AND NOT ({is_evaluation})", trainings)
    _copy(connection, "jobs", f"t.id = '{evaluation}' AND {is_evaluation}", copied | {"parent_id": before})
    is_run = f"t.job_id = '{training}' AND (n.i < {ended} OR n.i % 100 = 3)"
    ends = {name: f"CASE WHEN n.i < {ended} THEN t.{name} END" for name in ("ended_at", "end_reason")}
    worker = f"(SELECT '{_OTHER_PREFIX}' || o.hex FROM numbers o WHERE o.i = n.i / 100 % {_WORKERS})"
    _copy(connection, "attempts", is_run, of_job | ends | {"worker_id": worker})
    _copy(connection, "events", f"t.job_id = '{training}' AND t.seq = 1", of_job)
    _copy(connection, "tags", f"t.job_id = '{training}'", of_job | {"tag": "'tag ' || (n.i % 100)"})
    is_saved = f"t.job_id = '{training}' AND n.i < {ended} AND NOT ({is_evaluation})"
    _copy(connection, "checkpoints", is_saved, of_job | {"id": own, "sha256": digest})
    names = connection.execute(
        select(Evaluation.id, Evaluation.metric)
        .join(JobEvaluation, JobEvaluation.evaluation_id == Evaluation.id)
        .where(JobEvaluation.job_id == evaluation)
    ).all()
    dataset_digest = (
        f"CASE n.i / 10 % {_DATASETS} WHEN 0 THEN t.dataset_digest ELSE 'digest-' || (n.i / 10 % {_DATASETS}) END"
    )
    for place, (name, _) in enumerate(names):
        own_id = f"'01000000-0000-7000-a00{place}-' || n.hex"
        result = {"id": own_id, "features_digest": digest_before, "checkpoint_id": before,
                  "dataset_digest": dataset_digest, "value": "0.4 + n.i * 7 % 1000 / 2000.0"}  # fmt: skip
        _copy(connection, "evaluations", f"t.id = '{name}' AND {is_evaluation}", result)
        link = of_job | {"evaluation_id": own_id}
        _copy(
            connection,
            "job_evaluations",
            f"t.evaluation_id = '{name}' AND t.job_id = '{evaluation}' AND {is_evaluation}",
            link,
        )
    others = f"{ended} <= n.i AND n.i % 10 = 7"
    blocked = f"SELECT {own}, {before}, 'success' FROM numbers n WHERE {others}"
    connection.execute(text(f"INSERT INTO dependencies (job_id, needs_job_id, until) {blocked}"))
    connection.execute(text("DROP TABLE numbers"))


def _add_sweeps_and_datasets(session: Session, count: int) -> None:
    facts = {"search": "random", "status": "succeeded", "base": {}, "parameters": {}, "metric": {}, "seeds": [0]}
    facts |= {"direction": "maximize", "seed": 0, "eta": 2, "rungs": [], "max_parallel": 1, "options": {}}
    for number in range(-(-count // 1000)):
        sweep_id = f"{_OTHER_PREFIX}{number:012x}"
        session.add(
            Sweep(id=sweep_id, name=f"sweep {number}", dataset_name="digits", dataset_digest=rows.DIGEST, **facts)
        )
    for number in range(1, _DATASETS):
        row = Dataset(id=new_id(), name=f"dataset-{number}", digest=f"digest-{number}", kind="builtin")
        row.counts, row.classes = {"train": 1000, "test": 100}, ["0", "1"]
        session.add(row)


def _copy(connection: Connection, table: str, where: str, changed: dict[str, str]) -> None:
    """Copy rows `t` of a table, once for each number `n`, with some columns changed."""
    columns = [column.name for column in Base.metadata.tables[table].columns]
    values = ", ".join(changed.get(name, f't."{name}"') for name in columns)
    names = ", ".join(f'"{name}"' for name in columns)
    statement = (
        f"INSERT INTO {table} ({names}) SELECT {values} FROM numbers n CROSS JOIN {table} t WHERE {where} ORDER BY n.i"
    )
    connection.execute(text(statement.replace(":", "\\:")))


def _add_points(connection: Connection, job_id: str, count: int) -> None:
    """Add the same noisy curve to every series, each a little higher, with rollups; build the indexes at the end."""
    connection.execute(
        text(
            "CREATE TEMP TABLE base AS SELECT step, 5 * exp(-step / (:count / 4.0)) + random() / 4 AS value "
            "FROM generate_series(1, :count) step"
        ),
        {"count": count},
    )
    connection.execute(text("ALTER TABLE points DROP CONSTRAINT pk_points"))
    connection.execute(text("DROP INDEX ix_points_seq"))
    names = "FROM (SELECT id, row_number() OVER (ORDER BY name) AS k FROM series WHERE job_id = :job) s"
    connection.execute(
        text(
            "INSERT INTO points (series_id, attempt, step, seq, value, at) "
            f"SELECT s.id, 1, b.step, b.step, b.value + s.k, 1700000000000 + b.step * 50 {names}, base b"
        ),
        {"job": job_id},
    )
    connection.execute(text("ALTER TABLE points ADD CONSTRAINT pk_points PRIMARY KEY (series_id, attempt, step, seq)"))
    connection.execute(text("CREATE INDEX ix_points_seq ON points (series_id, attempt, seq)"))
    connection.execute(text("DELETE FROM rollups"))
    connection.execute(
        text("CREATE TEMP TABLE buckets (level int, bucket bigint, n int, low double precision, high double precision)")
    )
    for level, width in ROLLUP_WIDTHS.items():
        connection.execute(
            text(
                "INSERT INTO buckets SELECT :level, step / :width, count(*), min(value), max(value) FROM base "
                "GROUP BY step / :width"
            ),
            {"level": level, "width": width},
        )
    connection.execute(
        text(
            "INSERT INTO rollups (series_id, attempt, level, bucket, n, min, max, first, last) "
            f"SELECT s.id, 1, b.level, b.bucket, b.n, b.low + s.k, b.high + s.k, b.low + s.k, b.high + s.k {names}, "
            "buckets b"
        ),
        {"job": job_id},
    )
    connection.execute(text("DROP TABLE base, buckets"))
    facts = {"step": count, "total_steps": count, "epoch": 99, "total_epochs": 100, "phase": "train"}
    connection.execute(text("UPDATE attempts SET delivered_seq = :n WHERE job_id = :job"), {"n": count, "job": job_id})
    connection.execute(
        text("UPDATE jobs SET progress = :facts WHERE id = :job"), {"facts": json.dumps(facts), "job": job_id}
    )
