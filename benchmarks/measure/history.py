"""A service with a long history, filled by SQL: many ended jobs, and one running job with long curves."""

from __future__ import annotations

import json
from dataclasses import dataclass

from sqlalchemy import Connection, text

from jobs import transitions
from jobs.changes import now_cursor
from jobs.database import Database
from jobs.ingest import ROLLUP_WIDTHS
from jobs.models import Base
from tests.jobs import rows

_STATUS = "(ARRAY['succeeded','succeeded','succeeded','succeeded','failed','cancelled'])[1 + i % 6]"
_ID = "'01000000-0000-7000-8000-' || lpad(to_hex(i), 12, '0')"  # older than every new id


@dataclass(frozen=True)
class History:
    """A filled database: its running job as a `Run`, another job, and a cursor deep in the list."""

    database: Database
    run: rows.Run
    other_id: str
    deep_cursor: str


def fill(url: str, num_jobs: int, num_points: int, num_series: int) -> History:
    """Fill a database: ended jobs with an attempt, three events, a tag and a checkpoint, and the long running job."""
    database = Database(url)
    database.migrate()
    rows.add_dataset(database)
    template = rows.Run(database, rows.running(database, name="digits, seed 0", tags=("baseline",)))
    template.deliver(rows.started(), rows.metrics(1, loss=1.0), rows.checkpoint(1), rows.end("succeeded"))
    run = rows.Run(database, rows.running(database, name="the long one", preemptible=False))
    run.deliver(rows.started(), *(_report(step, num_series) for step in (0,)))
    with database.engine.begin() as connection:
        connection.execute(text("SET statement_timeout = 0"))
        connection.execute(text("SET session_replication_role = replica"))  # foreign keys hold by construction
        _copy_jobs(connection, template.job_id, num_jobs)
        _add_points(connection, run.job_id, num_points)
    run.seq = num_points
    database.write(lambda session: transitions.deliver(session, run.attempt, []))
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("SET statement_timeout = 0"))
        connection.execute(text("VACUUM ANALYZE"))
    with database.read() as session:
        assert now_cursor(session, run.job_id).delivered_seq == num_points
    return History(database, run, template.job_id, f"01000000-0000-7000-8000-{num_jobs // 10:012x}")


def _report(step: int, num_series: int) -> dict[str, object]:
    return rows.metrics(step, **{f"series/{number:02}": 1.0 for number in range(num_series)})


def _copy_jobs(connection: Connection, template: str, count: int) -> None:
    """Copy the rows of one job under other ids, in the tables that lists and pages read."""
    own = {
        "jobs": {"id": _ID, "name": "'run ' || i", "status": _STATUS, "created_at": "t.created_at - i"},
        "attempts": {"job_id": _ID},
        "events": {"job_id": _ID},
        "tags": {"job_id": _ID, "tag": "'tag ' || i % 100"},
        "checkpoints": {"id": _ID, "job_id": _ID, "sha256": "md5(i::text) || md5('x' || i)"},
    }
    for table, changed in own.items():
        columns = [column.name for column in Base.metadata.tables[table].columns]
        values = ", ".join(changed.get(name, f't."{name}"') for name in columns)
        names = ", ".join(f'"{name}"' for name in columns)
        source = "id" if table == "jobs" else "job_id"
        connection.execute(
            text(
                f"INSERT INTO {table} ({names}) SELECT {values} FROM {table} t, generate_series(0, :last) i "
                f"WHERE t.{source} = :template"
            ),
            {"last": count - 1, "template": template},
        )


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
