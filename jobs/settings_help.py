"""The meaning of each setting, and what an unset one stands for: the only home of both.

`wcl settings` prints them with the present values, and docs/tables.py writes the table of docs/operating.md.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from sqlalchemy import make_url

from jobs.settings import SECRETS, Settings
from wcl_core.text import Secret


class Setting(NamedTuple):
    """A setting as users see it.

    Attributes:
        variable: of the environment.
        value: with passwords as stars; empty for an unset one.
        is_set: whether the environment sets it.
        default: what holds while it is unset.
    """

    variable: str
    value: str
    is_set: bool
    default: str
    meaning: str


# name -> what holds while it is unset, and the meaning; both in Markdown
TEXTS: Final[dict[str, tuple[str, str]]] = {
    "data_dir": ("`wcl-data`", "the data folder"),
    "database_url": ("a file in the data folder", "`sqlite:///…` or `postgresql://…`"),
    "database_password": ("none", "password for `WCL_DATABASE_URL`, as it is; in the URL it must be encoded"),
    "database_connections": (
        "5",
        "most connections to PostgreSQL that a process opens; a request waits up to 10 s for one",
    ),
    "storage_url": (
        "the folder `checkpoints` in the data folder",
        "`s3://BUCKET/PREFIX`: the bucket for registered files; credentials come from `AWS_*`, as of other programs",
    ),
    "storage_endpoint": ("AWS", "address of another S3-compatible service, such as `https://minio.example.org:9000`"),
    "storage_downloads": (
        "`stream`",
        "`stream`: the server sends checkpoints of a bucket; `redirect`: it sends clients to a signed address there",
    ),
    "broker_url": ("`memory://localhost`", "`redis://…` for many machines, `rediss://…` with TLS"),
    "broker_password": ("none", "password for `WCL_BROKER_URL`, as it is"),
    "host": ("`127.0.0.1`", "address of the server"),
    "port": ("`8000`", "port of the server"),
    "allowed_hosts": ("`[]`", "JSON list of further host names"),
    "trusted_proxies": (
        "`[]`",
        "JSON list of addresses and networks of reverse proxies; `X-Forwarded-*` headers count only from them",
    ),
    "shared_links": (
        "`true`",
        "whether keys may create links that show jobs without a key; `false` also closes those that exist",
    ),
    "proxy_user_header": (
        "none",
        "header in which a trusted proxy names the signed-in person, such as `X-Auth-Request-Email`; the proxy must "
        "remove it from the requests of clients",
    ),
    "proxy_groups_header": ("none", "header in which the proxy names the person's groups, separated by commas"),
    "proxy_scopes": (
        '`["read"]`',
        "scopes of each person whom the proxy has signed in; `[]`: of those in a group only",
    ),
    "proxy_group_scopes": ("`{}`", "JSON object from a group to the scopes that its members have, too"),
    "proxy_sign_out_url": ("none", "address that signs a person out at the proxy; the pages link to it"),
    "nginx_files": (
        "none",
        "internal location of nginx that has the data folder, such as `/wcl-files`: nginx then sends checkpoints",
    ),
    "root_path": ("", "path below which a proxy shows the service, such as `/wcl`"),
    "worker_settings": (
        "none",
        "file on the server's machine, with the settings that `wcl worker join` gives to new machines: a line "
        "`WCL_NAME=VALUE` for each",
    ),
    "worker_name": ("the machine's name", "name of the worker"),
    "pool": ("`default`", "the worker's pool; a job names the pool that it runs in"),
    "gpus": (
        "those that it sees",
        "number of GPUs that the worker offers; required for GPUs that NVML, the library of "
        "NVIDIA's driver, does not list",
    ),
    "devices": ("none", "number of stand-ins that the worker offers in place of GPUs; jobs on them train on the CPU"),
    "hold_seconds": (
        "60",
        "time for which smaller jobs may pass a job that needs more GPUs than are free; then a "
        "worker keeps its GPUs for it",
    ),
    "node_address": (
        "none",
        "address or interface of this machine for jobs on several machines; without it the worker takes none",
    ),
    "node_wait_seconds": ("600", "time for which a worker with `--once` waits for the other workers of such a job"),
    "cpu_slots": ("1", "number of jobs without GPUs that the worker runs at once, beside those with GPUs"),
    "datasets": ("`{}`", "JSON object from dataset name to image folder, list, archive or packed file"),
    "datasets_without_labels": ("`[]`", "names of those that are read without classes"),
    "dataset_roots": ('`["/"]`', "folders whose files administrators may add as datasets while the worker runs"),
    "builtin_datasets": ('`["digits"]`', "JSON list of `digits`, `cifar10`, `cifar100`, `stl10` and plugins"),
    "label_lists": ("`{}`", "JSON object from dataset name to an object from list name to file"),
    "cache_dir": (
        "`cache` in the data folder",
        "folder of decoded images; on a local disk of each machine, shared by its workers",
    ),
    "cache_bytes": (
        "a quarter of the disk",
        "limit of that folder, with `compiler/` in it; 0 keeps no images, and each run decodes its folder",
    ),
    "run_environment": (
        "`[]`",
        "JSON list of further environment variables that runs and plugins get; by default those of "
        "the system, of Python and of libraries that compute",
    ),
    "standby": (
        "`on`",
        "the worker keeps a process that has imported PyTorch and forks its runs from it; the "
        "process holds about 500 MB; Linux only",
    ),
    "lease_seconds": ("60", "an attempt that is not renewed for so long is declared lost"),
    "look_seconds": ("a twelfth of the lease", "time between two passes of the reconciler"),
    "claim_seconds": ("1 with SQLite, else 10", "time between two polls of an idle worker"),
    "stall_seconds": ("3600", "a run that reports nothing for so long is killed"),
    "drain_seconds": ("25", "time that a stopping worker gives its run"),
    "max_failures": ("3", "infrastructure failures after which a job fails"),
    "scrub_mib_per_second": ("8", "pace at which a worker re-reads checkpoints; 0 switches this off"),
    "scrub_days": ("7", "days within which no checkpoint is read again"),
    "restore_days": ("7", "days for which a deleted job can be restored; then a server removes its files and rows"),
    "activity_days": ("730", "days for which the activity log keeps who did what"),
    "key_waiting": (
        "no limit",
        "most waiting jobs of a key, those of its sweeps included; a key may have another limit (`wcl keys change`)",
    ),
    "key_devices": (
        "no limit",
        "most devices that the jobs of a key use at once; a job without GPUs counts as one device",
    ),
    "key_submissions": ("no limit", "most jobs that a key submits within a minute; a sweep counts as its trainings"),
    "fair_share_days": (
        "7",
        "half-life of the use of devices by which the queue chooses between keys: among jobs of equal priority, those "
        "of the key with the least recent use start first; 0: the oldest job starts first",
    ),
    "keep_checkpoints": (
        "all",
        "number of newest checkpoints that a training keeps whose spec has no `checkpoints.keep_last`; pinned ones and "
        "those that an unfinished job needs stay, too",
    ),
    "most_checkpoints": (
        "no limit",
        "the most newest and the most best checkpoints that a training keeps, whatever its spec says; it may keep less",
    ),
    "log_days": (
        "as long as the job",
        "days after the end of a job for which the output of its processes is kept",
    ),
    "point_days": (
        "as long as the job",
        "days after the end of a job for which each point of its curves is kept; then a curve with more than 4,000 "
        "points in an attempt keeps up to 4,000 of them, and the buckets that charts show",
    ),
    "event_days": (
        "as long as the job",
        "days after the end of a job for which its events are kept; then that of its end and later ones stay",
    ),
    "export_days": ("90", "days for which a backbone that the server has exported is kept without a download"),
    "worker_days": ("90", "days for which the rows of workers that ended are kept"),
    "log_format": (
        "`lines`",
        "`lines`, or `json`: one object a line, with the ids of the request and the job",
    ),
    "access_log": (
        "`false`",
        "`true`: the server logs each request, without the query of its address and secrets",
    ),
    "max_body_bytes": ("1000000", "largest body of a request"),
    "idempotency_hours": ("24", "time for which the server keeps an `Idempotency-Key`"),
    "public_url": ("of the server", "address under which people open the service, for links in messages of webhooks"),
    "webhook_networks": (
        "`[]`",
        "JSON list of addresses and networks that webhooks may reach although they are not public, "
        'such as `["10.0.0.0/8"]`',
    ),
    "webhook_hosts": ("`[]`", "JSON list of host names that webhooks may reach at any address"),
    "webhook_log_days": ("30", "days for which delivered and failed messages of webhooks are kept"),
}


def settings_in_use(settings: Settings) -> Iterator[Setting]:
    """Yield every setting with its present value."""
    for name, (default, meaning) in TEXTS.items():
        variable = f"WCL_{name.upper()}"
        value = _shown(name, getattr(settings, name))
        variables = {variable, f"{variable}_FILE"} if name in SECRETS else {variable}
        is_set = any(each.upper() in variables for each in os.environ)
        yield Setting(variable, value, is_set, default.replace("`", ""), meaning.replace("`", ""))


def table() -> str:
    """Return the table of the documentation."""
    rows = [f"| `WCL_{name.upper()}` | {default} | {meaning} |" for name, (default, meaning) in TEXTS.items()]
    return "\n".join(["| variable | default | meaning |", "|---|---|---|", *rows]) + "\n"


def _shown(name: str, value: object) -> str:
    if isinstance(value, Secret):
        return "***" if name.endswith("_password") else make_url(value.reveal()).render_as_string(hide_password=True)
    if value is None or isinstance(value, str | Path):
        return str(value or "")
    return json.dumps(value, default=str)
