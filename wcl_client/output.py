"""Tables of jobs, sweeps, workers and results."""

from __future__ import annotations

import json
import re
import shlex
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import urljoin

from wcl_client.responses import (
    Activity,
    Checkpoint,
    Delivery,
    Evaluation,
    Job,
    Json,
    Key,
    WeakGroups,
    Webhook,
    Weights,
    WhoAmI,
    Worker,
)
from wcl_client.terminal import Rows, out, status
from wcl_core.text import capitalised, counted, file_size, share_done, twin_name
from wcl_core.text import phase_text as text_of_phase

_SEED_NAME = re.compile(r", seed \d+(-\d+)?$")  # as the server names the jobs of a seed group


def age(moment: str) -> str:
    """Return how long ago a moment of a response was, in its largest unit, for example `5 min`."""
    seconds = max(0.0, time.time() - datetime.fromisoformat(moment).timestamp())
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _when(moment: str | None) -> str | None:
    """Return a moment of a response to the second, with its age; None for None."""
    return moment and f"{moment[:19].replace('T', ' ')} UTC, {age(moment)} ago"


def _minute(moment: str) -> str:
    """Return a moment of a response in the time zone of this machine, to the minute."""
    return datetime.fromisoformat(moment).astimezone().strftime("%Y-%m-%d %H:%M")


def phase_text(job: Job) -> str | None:
    """Return the present work of a run; None while it trains or saves."""
    progress = job.get("progress")
    if not progress or job["status"] != "running" or progress.get("phase") in ("train", "save"):
        return None
    return text_of_phase(progress) or None


def duration(seconds: float | None) -> str:
    """Return a duration as `1:02:03` or `2:03`; a dash if it is unknown."""
    if seconds is None or seconds < 0:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def time_left(job: Job) -> str | None:
    """Return the time that a run still takes, by its latest steps; None before the third one and of other jobs."""
    progress = job.get("progress")
    if not progress or job["status"] != "running" or progress.get("phase") == "prepare":
        return None
    seconds = progress.get("eta_seconds")
    return None if seconds is None else f"about {duration(seconds)} left"


def progress_text(job: Job) -> str:
    """Return the share of its own steps that a job has done, as a percentage; "" without a progress report."""
    done = share_done(job.get("progress") or {}, job.get("earlier_epochs", 0))
    return "" if done is None else f"{done:.0%}"


def jobs_table(jobs: Sequence[Job], *, folded: bool = False) -> Rows:
    """Return a table with a row for each job; it shows the end of the id, which every command accepts.

    Args:
        jobs: newest first.
        folded: whether the jobs of a seed group share the row of the newest one.
    """
    of_several = [each for each in ("owner", "project") if len({job.get(each) for job in jobs}) > 1]
    titles = ["by" if each == "owner" else each for each in of_several]
    table = Rows("id", "name", *titles, "dataset", "status", "done", "age", cut=("name", *titles, "dataset"))
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault((folded and job.get("group_id")) or job["id"], []).append(job)
    for job, *others in groups.values():
        reason = f" ({job['status_reason']})" if job.get("status_reason") else ""
        name, state, done = job.get("name") or job["kind"], job["status"] + reason, progress_text(job)
        if others:
            counts = Counter(each["status"] for each in (job, *others))
            shown = " ".join(f"{count} {each}" for each, count in counts.items())
            name = f"{_SEED_NAME.sub('', name)} ({len(others) + 1} seeds)"
            state, done = job["status"] if len(counts) == 1 else shown, ""
        table.add(
            job["id"][-12:],
            ("* " if job.get("starred_at") else "") + name,
            *(str(job.get(each) or "") for each in of_several),
            str((job.get("dataset") or {}).get("name") or ""),
            status(state),
            done,
            age(job["created_at"]),
        )
    return table


def answer_table(job: Job, url: str = "") -> Rows:
    """Return a table of what a job has come to; arguments as for `answer_facts`."""
    (name, state), *others = answer_facts(job, url)
    return _facts_table([(name, status(state or "")), *others])


def answer_facts(job: Job, url: str = "") -> list[tuple[str, str | None]]:
    """Return what a job has come to: its status first, then why it waits, its verdict and so on; None for nothing.

    Args:
        job: as REST returns it.
        url: of the server, for links.
    """
    explanation = _explanation(job)
    reason = f" ({job['status_reason']})" if job.get("status_reason") else ""
    if job.get("status_by"):
        reason = f" by {job['status_by']}"
    return [
        ("status", job["status"] + reason),
        ("message", job.get("status_message")),
        ("meaning", explanation.get("meaning")),
        ("what to do", explanation.get("advice")),
        ("see", urljoin(f"{url}/", explanation["page"]) if explanation else None),  # it has the path of the service
        ("waiting", _waiting(job)),
        ("pending", job.get("pending")),
        ("progress", None if job["status"] == "succeeded" else progress_text(job)),
        ("now", phase_text(job)),
        ("time", time_left(job) or (job.get("expected_time") or {}).get("text")),
        ("busy", (job.get("expected_time") or {}).get("busy")),
        ("verdict", verdict_text(job)),
        ("accuracy", job.get("before_training")),
        ("map", f"{url}/jobs/{job['id']}/map" if _has_map(job) else None),
        *(("compared", each["sentence"]) for each in (job.get("verdict") or {}).get("contrasts", ())),
        ("weak labels", _weak_labels(job)),
        ("warning", (job.get("weak_labels") or {}).get("warning")),
        *(("warning", f"{capitalised(each)}.") for each in job.get("warnings", ())),
    ]


def _has_map(job: Job) -> bool:
    return job["status"] == "succeeded" and "map" in (job.get("spec") or {}).get("protocols", ())


def twin_text(job: Job, twin: Json) -> str:
    """Return the twin of a training with the command that compares both, or the one that trains it."""
    short = job["id"][-12:]
    if twin["job_id"] is not None:
        return f"{twin['title']} twin {twin['name']} ({twin['status']}): wcl compare {short}"
    name = shlex.quote(twin_name(job["name"], twin["method"]))
    adds = f"{twin['title']} twin, which shows what the method adds"
    return f"{adds}: wcl clone {short} --set method={twin['method']} --name {name}"


def verdict_text(job: Job) -> str | None:
    """Return what a job shows; None without a verdict."""
    return (job.get("verdict") or {}).get("sentence")


def metrics_table(job: Job) -> Rows:
    """Return a table of the newest value of each metric of a job, the most telling first."""
    metrics = job.get("metrics") or [{"title": name, "value": value} for name, value in _latest(job)]
    return _facts_table([(metric["title"], _number(metric)) for metric in metrics])


def _latest(job: Job) -> list[tuple[str, float | None]]:
    """Return the metrics of a server that sends no titles."""
    return sorted((job.get("latest_metrics") or {}).items())


def _number(metric: Json) -> str:
    if metric["value"] is None:
        return ""
    return f"{metric['value']:.1%}" if metric.get("is_share") else f"{metric['value']:.4g}"


def job_table(job: Job, environment: Json | None = None) -> Rows:
    """Return a table of a job's origin and surroundings; `environment` is that of its newest attempt."""
    facts: list[tuple[str, Any]] = [
        ("id", job["id"]),
        ("kind", job["kind"]),
        ("dataset", (job.get("dataset") or {}).get("name")),
        ("attempt", job.get("attempt") or None),
        ("device", (environment or {}).get("device")),
        ("steps are", _form(environment or {})),
        ("seed group", job.get("group_id")),
        ("comes from", _lineage(job)),
        ("learning rate", job.get("schedule")),
        ("preset", _preset(job)),
        ("tags", ", ".join(job.get("tags") or ())),
        ("owner", job.get("owner")),
        ("created", _when(job.get("created_at"))),
        ("started", _when(job.get("started_at"))),
        ("ended", _when(job.get("ended_at"))),
    ]
    return _facts_table(facts)


def _facts_table(facts: Sequence[tuple[str, Any]]) -> Rows:
    """Return a table with a row for each fact, without facts that are None or empty."""
    table = Rows()
    for name, value in facts:
        if value not in (None, ""):
            table.add(name, value)
    return table


def _waiting(job: Job) -> str | None:
    if not (waiting := job.get("waiting")):
        return None
    about = "about " if waiting.get("is_estimate") else ""
    place = f", place {about}{waiting['position']} in the queue" if waiting.get("position") else ""
    until = f", until {waiting['until']}" if waiting.get("until") else ""
    return f"{waiting['message']}{until}{place} ({waiting['cause']})"


def _explanation(job: Job) -> Json:
    """Return the explanation of a job that failed, or that is paused for a fault; empty for others."""
    needs_user = job["status"] in ("failed", "paused") and job.get("status_reason") != "user"
    return (job.get("explanation") or {}) if needs_user else {}


def _lineage(job: Job) -> str:
    """Return what a job comes from as a phrase, the nearest first."""
    parts = []
    for origin in job.get("lineage") or ():
        step = "" if origin["step"] is None else f", step {origin['step']}"
        place = f" ({origin['job_id'][-12:]})" if origin["job_id"] else ""
        parts.append(f"{origin['relation'].replace('_', ' ')} {origin['name']}{place}{step}")
    return "; which ".join(parts)


def _form(environment: Json) -> str | None:
    """Return how an attempt executes its steps, and why not as its spec asks; None before its run has begun."""
    form, reason = environment.get("execution"), environment.get("execution_reason")
    return f"{form}: {reason}" if form and reason else form


def _weak_labels(job: Job) -> str | None:
    """Return the quality of a job's weak labels as a phrase; None if it has reported none."""
    if not (quality := job.get("weak_labels")):
        return None
    parts = [
        ("components", "{:.0f} components"),
        ("largest_share", "largest {:.1%} of a batch"),
        ("view_agreement", "view agreement {:.1%}"),
        ("pair_precision", "pair precision {:.1%}"),
        ("pair_precision_chance", "chance {:.1%}"),
    ]
    return ", ".join(text.format(quality[name]) for name, text in parts if quality.get(name) is not None)


def workers_table(workers: Sequence[Worker]) -> Rows:
    """Return a table with a row for each worker; its state shows a requested drain, or that it takes no jobs."""
    table = Rows(
        "id", "name", "pool", "gpus", "state", "job", "datasets", "version", "seen", cut=("name", "datasets", "state")
    )
    for worker in workers:
        drains = worker["is_live"] and worker["drain_requested_at"]
        is_unable = worker["is_live"] and worker.get("unable")
        is_cordoned = worker["is_live"] and worker.get("cordoned_at")
        table.add(
            worker["id"][-12:],
            worker["name"] + (f" ({address})" if (address := worker.get("address")) else ""),
            worker["pool"],
            str(worker["gpus"]),
            worker["state"]
            + (", draining" if drains else "")
            + (", cordoned" if is_cordoned else "")
            + (", takes no jobs" if is_unable else ""),
            (worker["job_id"] or "")[-12:],
            ", ".join(sorted(worker["datasets"])),
            worker.get("version") or "",
            age(worker["seen_at"]),
        )
    return table


def keys_table(keys: Sequence[Key]) -> Rows:
    """Return a table with a row for each key; it names projects if there is more than the default one."""
    has_projects = any(key.get("project") not in (None, "default") for key in keys)
    columns = ("id", "name", *(("project",) if has_projects else ()), "scopes", "limits", "expires", "last used")
    table = Rows(*columns, "created", cut=("name", "limits"))
    for key in keys:
        used = f"{age(key['last_used_at'])} ago" if key["last_used_at"] else "never"
        created = f"{age(key['created_at'])} ago"
        limits = key_limits(key).removeprefix("limits of the service")
        project = (key.get("project") or "all",) if has_projects else ()
        scopes = ", ".join(key["scopes"])
        table.add(key["id"][-12:], key["name"], *project, scopes, limits, expiry(key), used, created)
    return table


def _key_names(rows: Sequence[Json]) -> dict[str, str]:
    """Return what a table calls each key: its name, and its id where another key has the same name."""
    owners = {row["owner_id"]: row["owner"] for row in rows}
    times = Counter(owners.values())
    return {
        key: f"{name} {key[-12:]}" if name and times[name] > 1 else name or key[-12:] or "none"
        for key, name in owners.items()
    }


def usage_table(rows: Sequence[Json]) -> Rows:
    """Return a table with a row for each month and key or project."""
    has_projects = any(row.get("project_id") for row in rows)
    has_keys = not has_projects or any(row["owner_id"] for row in rows)
    of = (*(("key",) if has_keys else ()), *(("project",) if has_projects else ()))
    keys = _key_names(rows)
    table = Rows("month", *of, "GPU hours", "CPU hours", "jobs", "attempts", cut=of)
    for row in rows:
        names = {"key": keys[row["owner_id"]], "project": row.get("project") or "none"}
        hours = (f"{row['gpu_hours']:,.2f}", f"{row['cpu_hours']:,.2f}")
        table.add(row["month"], *(names[each] for each in of), *hours, row["jobs"], row["attempts"])
    return table


def cleaned(result: Json) -> str:
    """Return how many checkpoints were removed, or would be, and of how many jobs."""
    checkpoints, jobs = counted(result["num_checkpoints"], "checkpoint"), counted(result["num_jobs"], "job")
    return f"{checkpoints} of {jobs}, {file_size(result['size'])}"


def storage_tables(storage: Json) -> list[Rows]:
    """Return a table of the stored bytes by key, one by project if there are several, and one of the largest jobs."""
    owners = Rows("key", "jobs", "files", "size", cut=("key",))
    keys = _key_names(storage["owners"])
    for row in storage["owners"]:
        owners.add(keys[row["owner_id"]], row["num_jobs"], row["num_files"], file_size(row["size"]))
    jobs = Rows("id", "job", "key", "status", "files", "size", "removable", cut=("job", "key"))
    for row in storage["jobs"]:
        sizes = (file_size(row["size"]), file_size(row["removable"]))
        jobs.add(row["job_id"][-12:], row["name"], row["owner"], row["status"], row["num_files"], *sizes)
    projects = Rows("project", "jobs", "files", "size", cut=("project",))
    for row in storage.get("projects", ()):
        projects.add(row["project"], row["num_jobs"], row["num_files"], file_size(row["size"]))
    return [owners, *([projects] if len(storage.get("projects", ())) > 1 else []), jobs]


def key_limits(key: Key) -> str:
    """Return the limits of a key's own; those of the service hold for the others."""
    texts = (
        (key.get("max_waiting"), "waiting {}", "job"),
        (key.get("max_devices"), "{} at once", "device"),
        (key.get("max_submissions"), "{} a minute", "submission"),
    )
    limits = (
        f"{limit:,} {text.format(noun if limit == 1 else f'{noun}s')}"
        for limit, text, noun in texts
        if limit is not None
    )
    return ", ".join(limits) or "limits of the service"


def project_limits(project: Json) -> str:
    """Return the limits of a project; a server of an older version has none."""
    gpus, waiting, stored = (project.get(name) for name in ("max_gpus", "max_waiting", "max_bytes"))
    limits = (
        gpus and f"{counted(gpus, 'GPU')} at once",
        waiting and counted(waiting, "waiting job"),
        stored and f"{file_size(stored)} of files",
    )
    return ", ".join(filter(None, limits)) or "no limits"


def whoami_table(key: WhoAmI, url: str) -> Rows:
    """Return the lines of `wcl whoami`."""
    table = Rows()
    table.add("key", f"{key['name']} ({key['id']})")
    table.add("role", f"{key['role']} ({', '.join(key['scopes']) or 'no scopes'})")
    table.add("project", key.get("project") or "all")
    table.add("expiry", expiry(key))
    for name, text in (
        ("max_waiting", "waiting jobs"),
        ("max_devices", "devices at once"),
        ("max_submissions", "jobs a minute"),
    ):
        own, of_service = dict(key).get(name), key["limits"].get(name)
        limit = own if own is not None else of_service
        origin = " (of the service)" if own is None and of_service is not None else ""
        table.add(text, "no limit" if limit is None else f"{limit}{origin}")
    table.add("server", f"{url}, version {key['version']}")
    return table


def expiry(key: Key) -> str:
    """Return when a key ends or has ended."""
    if key["revoked_at"]:
        return f"revoked {key['revoked_at'][:10]}"
    if not key["expires_at"]:
        return "does not expire"
    return f"{'expires' if key['is_active'] else 'expired'} {key['expires_at'][:10]}"


def webhooks_table(webhooks: Sequence[Webhook]) -> Rows:
    """Return a table with a row for each webhook."""
    table = Rows("id", "name", "format", "url", "events", "state", cut=("name", "url", "events"))
    for row in webhooks:
        chosen = ", ".join([*row["events"], *map(_rule, row["rules"])])
        cells = (row["id"][-12:], row["name"], row["format"], row["url"], chosen)
        table.add(*cells, "enabled" if row["enabled"] else "disabled")
    return table


def webhook_table(row: Webhook) -> Rows:
    """Return a table with a row for each field of a webhook."""
    table = Rows("field", "value")
    facts: dict[str, object] = {**row, "events": ", ".join(row["events"]), "rules": ", ".join(map(_rule, row["rules"]))}
    for name, value in facts.items():
        table.add(name, "" if value is None else str(value))
    return table


def _rule(rule: Json) -> str:
    return f"{rule['metric']} {'>' if rule['direction'] == 'above' else '<'} {rule['value']}"


def deliveries_table(deliveries: Sequence[Delivery]) -> Rows:
    """Return a table with a row for each message of a webhook."""
    table = Rows("id", "type", "job", "state", "tries", "result", "age", cut=("result",))
    for row in deliveries:
        result = row["last_error"] or ("" if row["last_status"] is None else str(row["last_status"]))
        cells = (row["id"][-12:], row["type"], (row["job_id"] or "")[-12:], row["state"], str(row["attempts"]))
        table.add(*cells, result, age(row["created_at"]))
    return table


def devices_table(workers: Sequence[Worker]) -> Rows:
    """Return a table with a row for each device of a live worker, and for each of its jobs without devices."""
    names = ("worker", "gpu", "model", "state", "job", "load", "memory", "temperature")
    table = Rows(*names, cut=("worker", "model", "state"))
    for worker in workers:
        for device in worker.get("devices", []) if worker["is_live"] else []:
            load, degrees = device["load"], device["temperature"]
            used, total = device["memory_used"], device["memory_bytes"]
            table.add(
                worker["name"],
                str(device["index"]),
                device["name"],
                device["problem"] or ("busy" if device["job_id"] else "free"),
                (device["job_id"] or "")[-12:],
                "" if load is None else f"{load:.0%}",
                "" if used is None or total is None else f"{used / 2**30:.1f} of {total / 2**30:.1f} GiB",
                "" if degrees is None else f"{degrees} °C",
            )
        for job_id in worker.get("cpu_job_ids", []) if worker["is_live"] else []:
            table.add(worker["name"], "CPU", "", "busy", job_id[-12:], "", "", "")
    return table


def unable_workers(workers: Sequence[Worker]) -> list[str]:
    """Return a sentence for each live worker that takes no jobs."""
    return [
        f"{worker['name']} takes no jobs: {worker.get('unable_message')}"
        for worker in workers
        if worker["is_live"] and worker.get("unable")
    ]


def _preset(job: Job) -> str | None:
    if not (name := job.get("preset")):
        return None
    deviations = job.get("deviations")
    if deviations is None:
        return f"{name}, which this version does not have"
    return f"{name} (deviations: {len(deviations)})" if deviations else f"{name} (no deviations)"


def deviations_table(deviations: Sequence[Mapping[str, Any]]) -> Rows:
    """Return a table of the fields that differ from the job's preset."""
    table = Rows("field", "preset", "this job", title="Deviations from the preset")
    for entry in deviations:
        table.add(entry["pointer"], _json_text(entry["preset"]), _json_text(entry["job"]))
    return table


def _json_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def group_table(results: Sequence[Mapping[str, Any]]) -> Rows:
    """Return a table of the results over the seeds, with the 95 % t-interval of the mean."""
    table = Rows("result", "parameters", "epoch", "seeds", "mean", "deviation", "95 % interval")
    for entry in results:
        table.add(
            entry.get("title") or f"{entry['protocol']} {entry['metric']}",
            settings_text(entry["params"]),
            _epoch(entry),
            ", ".join(map(str, entry["seeds"])),
            f"{entry['mean']:.2%}",
            "" if entry["deviation"] is None else f"{entry['deviation']:.2%}",
            _interval_text(entry["interval"], len(entry["seeds"])),
        )
    return table


def _interval_text(interval: Sequence[float] | None, num_seeds: int) -> str:
    if interval is None:
        return "needs two seeds" if num_seeds < 2 else f"{num_seeds} seeds are too few"
    return f"{max(0.0, interval[0]):.2%} to {min(1.0, interval[1]):.2%}"


def _epoch(result: Mapping[str, Any]) -> str:
    return result["selection"] or ("" if result["epoch"] is None else str(result["epoch"]))


def settings_text(params: Mapping[str, Any]) -> str:
    """Return parameters or settings with their values as a phrase."""
    return ", ".join(f"{name} {value}" for name, value in params.items())


def sweeps_table(sweeps: Sequence[Mapping[str, Any]]) -> Rows:
    """Return a table with a row for each sweep."""
    names = ("id", "name", "search", "dataset", "status", "trials", "metric", "best", "age")
    table = Rows(*names, cut=("name", "dataset", "metric"))
    for sweep in sweeps:
        table.add(
            sweep["id"][-12:],
            sweep["name"],
            sweep["search"],
            sweep["dataset"]["name"],
            status(sweep["status"]),
            str(sweep["trials"]),
            _metric_title(sweep),
            share(sweep["best_value"]),
            age(sweep["created_at"]),
        )
    return table


def _metric_title(sweep: Mapping[str, Any]) -> str:
    return str(sweep.get("metric_title") or f"{sweep['metric']['protocol']} {sweep['metric']['name']}")


def sweep_table(sweep: Mapping[str, Any]) -> Rows:
    best = sweep.get("best")
    facts = [
        ("id", sweep["id"]),
        ("name", sweep["name"]),
        ("status", status(sweep["status"])),
        ("message", sweep["status_message"]),
        ("search", sweep["search"]),
        ("metric", f"{_metric_title(sweep)}, {sweep['direction']}d"),
        ("measured on", measured_on(sweep)),
        ("rungs", ", ".join(f"{r['trials']} x {r['epochs']} epochs" for r in sweep["rungs"] if r["epochs"])),
        ("best", f"trial {best['trial']}, {share(best['value'])}: {settings_text(best['settings'])}" if best else None),
        ("page", sweep["links"]["page"]),
    ]
    return _facts_table(facts)


def measured_on(sweep: Mapping[str, Any]) -> str:
    """Return which images the metric is measured on."""
    share = sweep["held_out_share"]
    return f"{share:.0%} of train, held out" if share else "the test split, so the best value is optimistic"


def trials_table(sweep: Mapping[str, Any]) -> Rows:
    """Return a table of trials: those at the last rung first, and the best of each rung first."""
    names = list(dict.fromkeys(name for trial in sweep["table"] for name in trial["settings"]))
    rungs = [f"{rung['epochs']} epochs" if rung["epochs"] else "value" for rung in sweep["rungs"]]
    table = Rows("trial", *names, *rungs, "state")
    sign = 1 if sweep["direction"] == "minimize" else -1
    for trial in sorted(sweep["table"], key=lambda trial: _place(trial, sign)):
        values = [rung["value"] for rung in trial["rungs"]] + [None] * (len(rungs) - len(trial["rungs"]))
        settings = [_json_text(trial["settings"][name]) for name in names]
        table.add(str(trial["number"]), *settings, *map(share, values), trial["state"])
    return table


def _place(trial: Mapping[str, Any], sign: int) -> tuple[float, ...]:
    measured = [rung["value"] for rung in trial["rungs"] if rung["value"] is not None]
    return (-len(measured), sign * measured[-1] if measured else 0.0, trial["number"])


def share(value: float | None, digits: int = 2) -> str:
    """Return a share as a percentage; "" for None."""
    return "" if value is None else f"{value:.{digits}%}"


def print_weak_groups(weak_groups: WeakGroups) -> None:
    """Print a summary line and a table with a row for each weak-label group."""
    if weak_groups["epoch"] is None:
        out.say("no groups: the run has not reported weak labels yet, or its method makes none")
        return
    precision, chance = weak_groups["pair_precision"], weak_groups["pair_precision_chance"]
    of_pairs = "" if precision is None else f", pair precision {share(precision)} (chance {share(chance)})"
    counts = f"{weak_groups['num_groups']} groups of {weak_groups['num_images']} images"
    out.say(f"epoch {weak_groups['epoch']}: {counts}{of_pairs}")
    table = Rows("images", "precision", "true classes")
    for group in weak_groups["groups"]:
        classes = ", ".join(f"{name} ({count})" for name, count in (group["classes"] or {}).items())
        table.add(str(len(group["places"])), share(group["pair_precision"]), classes)
    out.show(table)


def checkpoints_table(checkpoints: Sequence[Checkpoint]) -> Rows:
    """Return a table with a row for each checkpoint; it shows the whole id, which other tools need."""
    table = Rows("id", "step", "epoch", "size", "sha256", "file", cut=("sha256",))
    for checkpoint in checkpoints:
        table.add(
            checkpoint["id"],
            str(checkpoint["step"]),
            str(checkpoint["epoch"]),
            file_size(checkpoint["size"]),
            checkpoint["sha256"],
            "damaged" if checkpoint.get("damaged_at") else "missing" if checkpoint.get("missing_at") else "",
        )
    return table


def weights_table(rows: Sequence[Weights]) -> Rows:
    """Return a table of imported weights."""
    table = Rows("name", "network", "size", "digest", "age", cut=("name",))
    for row in rows:
        table.add(row["name"], _network(row), file_size(row["size"]), row["sha256"][:12], age(row["created_at"]))
    return table


def weights_facts(row: Weights) -> Rows:
    """Return a table of the facts of imported weights."""
    report = row["report"]
    unused = ", ".join(report.get("unused_names", ()))
    more = report.get("unused", 0) - len(report.get("unused_names", ()))
    facts: list[tuple[str, Any]] = [
        ("network", _network(row)),
        ("image size", f"{row['image_size']} pixels"),
        ("matched", f"{report.get('matched', 0):,} tensors"),
        ("prefix", report.get("prefix")),
        ("set to 0", f"{report['filled']:,} counters of batch norm" if report.get("filled") else None),
        ("not used", f"{unused}{f' and {more:,} more' if more > 0 else ''}" or None),
        ("size", file_size(row["size"])),
        ("sha256", row["sha256"]),
        ("imported", _when(row["created_at"])),
    ]
    return _facts_table(facts)


def _network(row: Weights) -> str:
    backbone = row["backbone"]
    if str(backbone["name"]).startswith("vit"):
        return f"{backbone['name']}, patches of {backbone['patch_size']}"
    width = f", width {backbone['width']}" if backbone["name"] == "tiny" else ""
    return f"{backbone['name']}, stem {backbone['stem']}{width}"


def deletions_table(deletions: Sequence[Json]) -> Rows:
    """Return a table with a row for each deleted job."""
    table = Rows("id", "name", "size", "deleted by", "deleted at", "state")
    for each in deletions:
        state = "restored" if each["restored_at"] else "removed" if each["purged_at"] else "can be restored"
        if each["purge_began_at"] and not each["purged_at"]:
            state = "being removed"
        at = each["deleted_at"]
        table.add(each["job_id"], each["job_name"], file_size(each["size"]), each["deleted_by_name"], at, state)
    return table


def activity_table(entries: Sequence[Activity]) -> Rows:
    """Return a table with a row for each entry of the activity log."""
    table = Rows("time", "by", "action", "object", "id", "details", "age", cut=("by", "object", "details"))
    for each in entries:
        short, at = each["object_id"][-12:], _minute(each["at"])
        table.add(at, each["actor"], each["action"], each["object_name"], short, each.get("text", ""), age(each["at"]))
    return table


def invitations_table(rows: Sequence[Json]) -> Rows:
    """Return a table with a row for each open invitation of a machine."""
    table = Rows("id", "by", "created", "expires", cut=("by",))
    for each in rows:
        table.add(each["id"], each["by"], _minute(each["created_at"]), _minute(each["expires_at"]))
    return table


def results_table(job: Job, evaluations: Sequence[Evaluation]) -> Rows:
    """Return a table with a row for each measured number, beside those that it must beat if they are measured.

    The first rows are the accuracies that a training measures itself.
    """
    measures = list((job.get("verdict") or {}).get("measures") or ())
    measures = [_at_home(each, evaluations) for each in measures]
    findings = {each["evaluation_id"]: _FINDINGS.get(each["finding"], "") for each in measures}
    own = [each for each in measures if each["evaluation_id"] is None]
    if not own and all(entry.get("untrained") is None for entry in evaluations):
        return _alone(evaluations)
    is_judged = all(each["finding"] in _FINDINGS for each in measures)  # a job that goes on has no finding yet
    columns = ("result", "trained", "untrained", "pixels", "difference (95 %)")
    table = Rows(*columns, *(("finding",) if is_judged else ()))
    for each in own:
        interval = _points(each["difference"], each["low"], each["high"])
        pixels = (job.get("verdict") or {}).get("pixels")
        accuracies = share(each["accuracy"], 1), share(each["untrained"], 1), "" if pixels is None else share(pixels, 1)
        table.add(each["title"], *accuracies, interval, *((_FINDINGS[each["finding"]],) if is_judged else ()))
    epochs = {entry.get("epoch") for entry in evaluations}
    for entry in evaluations:
        value, untrained, gap = entry["value"], entry.get("untrained"), entry.get("difference")
        difference = ""
        if gap is not None:
            difference = _points(gap["value"], gap["low"], gap["high"])
        elif value is not None and untrained is not None:
            difference = f"{100 * (value - untrained):+.1f}"
        epoch = f", epoch {entry['epoch']}" if len(epochs) > 1 and entry.get("epoch") is not None else ""
        cells = share(value, 1), share(untrained, 1), share(entry.get("pixels"), 1), difference
        table.add(_label(entry) + epoch, *cells, *((findings.get(entry.get("id", ""), ""),) if is_judged else ()))
    return table


def legend(job: Job) -> list[str]:
    """Return a sentence for each word of the results that a beginner may not know."""
    named = [*((job.get("verdict") or {}).get("measures") or ()), *(job.get("metrics") or ())]
    shown = ("eval/", "weak/pair_precision", "weak/view_agreement", "weak/components", "embedding/rankme")
    sentences: dict[str, str] = {}
    for each in named:
        name = each.get("name", shown[0])
        if each.get("about") and name.startswith(shown) and not name.endswith(_NO_WORDS):
            sentences.setdefault(each["about"], each["title"].partition(" (")[0])
    return [f"{title}: {about[:1].lower()}{about[1:]}." for about, title in sentences.items()]


_NO_WORDS = ("_gained", "_lost", "_chance", "_pixels")  # ends of names that need no explanation beside the accuracy


def _at_home(measure: Json, evaluations: Sequence[Evaluation]) -> Json:
    """Return a measure; the kNN accuracy of a training's end has the row of an equal evaluation, if there is one."""
    for entry in evaluations:
        is_knn = (measure["metric"], entry["protocol"]) == ("eval/knn_top1", "knn")
        if is_knn and (entry["value"], entry.get("untrained")) == (measure["accuracy"], measure["untrained"]):
            return {**measure, "evaluation_id": entry["id"]}
    return measure


_FINDINGS = {"better": "better", "worse": "worse", "unclear": "not shown"}


def _points(value: float, low: float, high: float) -> str:
    """Return a difference of two shares with its interval, in points."""
    return f"{100 * value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def _label(entry: Evaluation) -> str:
    return entry.get("label") or entry.get("title") or f"{entry['protocol']} {entry['metric']}"


def _alone(evaluations: Sequence[Evaluation]) -> Rows:
    """Return a table with a row for each measured number, with its standard error or 95 % interval."""
    table = Rows("result", "parameters", "value")
    for entry in evaluations:
        error = f" ± {entry['stderr']:.2%}" if entry.get("stderr") is not None else ""
        if ends := entry.get("interval"):
            error = f" ({ends[0]:.1%} to {ends[1]:.1%})"
        table.add(_label(entry), settings_text(entry["params"]), f"{share(entry['value'])}{error}")
    return table
