"""All settings of server and worker: environment variables `WCL_<NAME>` or arguments."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

from pydantic import Field, IPvAnyNetwork, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from wcl_core.text import Secret

_MOST_SECONDS = 1e9  # longer waits than any clock of the system takes are mistakes


class InvalidSettings(Exception):  # noqa: N818 (named as the state of the settings)
    """Environment variables have wrong values; the message names each in one line."""


class Settings(BaseSettings):
    """Settings; the defaults are for one machine: SQLite, no broker, loopback.  URLs select everything else.

    `WCL_DATASETS` is a JSON object from dataset name to image folder or packed file, `WCL_LABEL_LISTS` one from dataset
    name to objects from a list's name to its file; only workers read them.
    """

    model_config = SettingsConfigDict(env_prefix="WCL_", frozen=True, extra="ignore", allow_inf_nan=False)

    data_dir: Path = Field(default=Path("wcl-data"), description="Database, attempts, checkpoints, exports, key file.")
    database_url: Secret | None = Field(default=None, description="sqlite:///… or postgresql://…; default in data_dir.")
    database_password: Secret | None = Field(
        default=None, description="Password for database_url, as it is; a password in the URL must be encoded."
    )
    database_connections: int = Field(
        default=5,
        ge=1,
        le=10_000,
        description="The most connections to PostgreSQL that a process opens; callers wait for one.",
    )
    broker_url: Secret = Field(default=Secret("memory://localhost"), description="memory://localhost or redis://…")
    host: str = Field(default="127.0.0.1", min_length=1, max_length=255)
    port: int = Field(default=8000, ge=0, le=65535)
    allowed_hosts: list[str] = Field(default=[], description="Further host names that requests may use.")
    trusted_proxies: list[IPvAnyNetwork] = Field(
        default=[], description="Addresses and networks of reverse proxies whose X-Forwarded-* headers count."
    )
    root_path: str = Field(
        default="", pattern=r"^(/[A-Za-z0-9._~-]+)*/?$", description="Path below which a proxy shows the service."
    )

    worker_name: str = Field(default_factory=socket.gethostname)
    pool: str = Field(default="default", pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")
    gpus: int | None = Field(
        default=None, ge=0, le=1_024, description="GPUs that this worker offers; by default all visible ones."
    )
    devices: int | None = Field(
        default=None,
        ge=0,
        le=1_024,
        description="Stand-ins that this worker offers in place of GPUs, for tests and trials: runs train on the CPU.",
    )
    cpu_slots: int = Field(
        default=1, ge=0, le=1_024, description="Attempts without GPUs that this worker runs at once, beside its GPUs."
    )
    node_address: str | None = Field(
        default=None,
        min_length=1,
        max_length=64,
        description="Address or interface through which this worker trains with others; unset, it takes no such job.",
    )
    node_wait_seconds: float = Field(
        default=600,
        ge=0,
        le=_MOST_SECONDS,
        description="Time for which a worker with --once waits for the other workers of a job of several nodes.",
    )
    hold_seconds: float = Field(
        default=60,
        ge=0,
        le=_MOST_SECONDS,
        description="Time for which smaller jobs may pass a job that needs more GPUs than are free.",
    )
    datasets: dict[str, Path] = Field(default={}, description="Image folders and packed files by dataset name.")
    dataset_roots: list[Path] = Field(
        default=[Path("/")], description="Folders whose files administrators may add as datasets while the worker runs."
    )
    datasets_without_labels: list[str] = Field(
        default=[], description="Names of folders and lists that are read without classes."
    )
    label_lists: dict[str, dict[str, Path]] = Field(
        default={}, description="Fixed lists of labelled train images, by dataset and by their own names."
    )
    cache_dir: Path | None = Field(
        default=None, description="Decoded images of folders; on a local disk, by default in data_dir."
    )
    cache_bytes: int | None = Field(
        default=None, ge=0, description="Limit of that folder; 0 keeps nothing, by default a quarter of its disk."
    )
    run_environment: list[str] = Field(
        default=[], description="Further environment variables that training and describing processes get, by name."
    )
    standby: bool = Field(
        default=True,
        description="Keep a process that has imported PyTorch and forks each run; it holds about 500 MB. Linux only.",
    )
    builtin_datasets: list[str] = Field(default=["digits"], description="digits; fetched: cifar10, cifar100, stl10.")

    lease_seconds: float = Field(
        default=60, gt=0, le=_MOST_SECONDS, description="An attempt that is not renewed for this long is declared lost."
    )
    look_seconds: float = Field(
        default_factory=lambda given: given["lease_seconds"] / 12,
        gt=0,
        le=_MOST_SECONDS,
        description="Pause between two polls of a reconciler; by default a twelfth of the lease.",
    )
    claim_seconds: float | None = Field(
        default=None, gt=0, le=_MOST_SECONDS, description="Pause between two polls of an idle worker for a job."
    )
    stall_seconds: float = Field(
        default=3600, gt=0, le=_MOST_SECONDS, description="A run that reports nothing for this long is killed."
    )
    drain_seconds: float = Field(
        default=25, gt=0, le=_MOST_SECONDS, description="Time that a stopping worker gives its run to save."
    )
    max_failures: int = Field(
        default=3, ge=1, le=1_000_000, description="Number of infrastructure failures that ends a job."
    )

    scrub_mib_per_second: float = Field(
        default=8,
        ge=0,
        le=1_000_000,
        description="Pace at which a worker re-reads registered checkpoints; 0 switches this off.",
    )
    scrub_days: float = Field(default=7, ge=0, le=36_500, description="Days within which no checkpoint is re-read.")

    public_url: str | None = Field(
        default=None,
        pattern=r"^https?://[^\s/?#@]+(/[A-Za-z0-9._~/-]*)?$",
        description="Address under which people open the service, for links in messages; by default the one it serves.",
    )
    webhook_networks: list[IPvAnyNetwork] = Field(
        default=[], description="Addresses and networks that webhooks may reach although they are not public."
    )
    webhook_hosts: list[str] = Field(
        default=[], description="Host names that webhooks may reach at any address, also at a private one."
    )
    webhook_log_days: float = Field(
        default=30, gt=0, le=36_500, description="Days for which delivered and failed messages of webhooks are kept."
    )
    restore_days: float = Field(
        default=7,
        ge=0,
        le=36_500,
        description="Days for which an administrator can restore a deleted job; then its files and rows are removed.",
    )

    max_body_bytes: int = Field(default=1_000_000, ge=1_000, le=1_000_000_000)
    idempotency_hours: float = Field(default=24, gt=0, le=100_000)

    @field_validator("*", mode="before")
    @classmethod
    def _is_text(cls, value: object, info: ValidationInfo) -> object:
        try:
            json.dumps(value, ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError as error:
            raise ValueError("expected text in UTF-8") from error
        return value.strip() if isinstance(value, str) and info.field_name != "database_password" else value

    @field_validator("database_url", "broker_url")
    @classmethod
    def _is_url(cls, url: Secret | None, info: ValidationInfo) -> Secret | None:
        if url is not None:
            _check_url(url.reveal(), _SCHEMES[str(info.field_name)])
        return url

    @field_validator("root_path")
    @classmethod
    def _without_last_slash(cls, path: str) -> str:
        return path.removesuffix("/")

    @property
    def resolved_database_url(self) -> str:
        """The database's URL, with its driver."""
        if self.database_url is None:
            # The folder's name may contain characters that have a meaning in URLs.
            path = str(self.data_dir.absolute() / "wcl.sqlite3")
            return URL.create("sqlite", database=path).render_as_string(hide_password=False)
        url = self.database_url.reveal().replace("postgresql://", "postgresql+psycopg://", 1)
        if self.database_password is None:
            return url
        return make_url(url).set(password=self.database_password.reveal()).render_as_string(hide_password=False)

    @property
    def is_sqlite(self) -> bool:
        return self.resolved_database_url.startswith("sqlite")

    @property
    def sqlite_file(self) -> Path | None:
        """The file of the SQLite database; None for another database, or one in memory."""
        name = make_url(self.resolved_database_url).database if self.is_sqlite else None
        return None if name in (None, "", ":memory:") else Path(str(name))

    @property
    def is_memory_broker(self) -> bool:
        return self.broker_url.reveal().startswith("memory")

    @property
    def poll_seconds(self) -> float:
        """Seconds between two polls of an idle worker for a job."""
        return self.claim_seconds or (1.0 if self.is_sqlite else 10.0)

    @property
    def attempts_dir(self) -> Path:
        """Run files and spools of a worker's attempts; local to the worker."""
        return self.data_dir.absolute() / "attempts"

    @property
    def checkpoints_dir(self) -> Path:
        """Registered checkpoints; servers and workers share this folder."""
        return self.data_dir.absolute() / "checkpoints"

    @property
    def descriptions_dir(self) -> Path:
        """Descriptions of a worker's image folders, from when they were last hashed; local to the worker."""
        return self.data_dir.absolute() / "descriptions"

    @property
    def resolved_cache_dir(self) -> Path:
        """Decoded images of folders; workers of one machine share it."""
        return (self.cache_dir or self.data_dir / "cache").absolute()

    @property
    def exports_dir(self) -> Path:
        return self.data_dir.absolute() / "exports"


_SCHEMES = {
    "database_url": ("sqlite", "postgresql", "postgresql+psycopg"),
    "broker_url": ("memory", "redis", "rediss", "redis+socket"),
}
_UNENCODED = re.compile(r"[/?#@\s\[\]]|%(?![0-9A-Fa-f]{2})")


def _check_url(url: str, schemes: tuple[str, ...]) -> None:
    """Raise ValueError if a URL cannot be one; its text is no part of the message, because it may hold a password."""
    scheme, _, rest = url.partition("://")
    if scheme not in schemes:
        raise ValueError(f"expected a URL that begins with {' or '.join(f'{each}://' for each in schemes)}")
    if _UNENCODED.search(rest.rpartition("@")[0]):
        advice = "expected them encoded, such as %40 for @ and %2F for /"
        password = ", or the password in WCL_DATABASE_PASSWORD" if "postgresql" in schemes else ""
        raise ValueError(f"user name or password hold characters with a meaning in URLs; {advice}{password}")
    try:
        port = make_url(url).port
    except (ArgumentError, ValueError):
        port = -1
    if port is not None and not 0 < port < 1 << 16:
        raise ValueError("the host or the port cannot be one; expected for example SCHEME://NAME:PASSWORD@HOST:5432/…")


def read_settings() -> Settings:
    """Return the settings of the environment.

    Raises:
        InvalidSettings: a variable has a wrong value.
    """
    try:
        return Settings()
    except SettingsError as error:
        variable = _variable(str(error).split('"')[1])  # the message quotes the field first
        raise InvalidSettings(f"{variable}: expected JSON; {error.__cause__}") from None
    except ValidationError as error:
        wrong = [
            f"{_variable(str(each['loc'][0]))}: {each['msg'].removeprefix('Value error, ')}"
            for each in error.errors(include_url=False, include_input=False)
            if each["type"] != "default_factory_not_called"  # it depends on a variable that is wrong
        ]
        raise InvalidSettings("; ".join(wrong)) from None  # the cause holds the values
    except RecursionError as error:
        raise InvalidSettings("a variable WCL_* holds JSON that is nested too deeply") from error


def _variable(name: str) -> str:
    return f"WCL_{name.upper()}"
