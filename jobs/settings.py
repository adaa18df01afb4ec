"""All settings of server and worker: environment variables `WCL_<NAME>` or arguments."""

from __future__ import annotations

import json
import os
import re
import socket
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, IPvAnyNetwork, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from jobs.logs import Format
from wcl_core.text import Secret

ScopeName = Literal["read", "submit", "priority", "admin"]  # of a key
_MOST_SECONDS = 1e9  # longer waits than any clock of the system takes are mistakes
_MOST_SECRET_BYTES = 100_000  # a larger file is the wrong one
SECRETS: Final = ("database_url", "database_password", "broker_url", "broker_password")  # also read from files
_PASSWORDS = ("database_password", "broker_password")  # taken as they are, with blanks at their ends


class InvalidSettings(Exception):  # noqa: N818 (named as the state of the settings)
    """Environment variables have wrong values.

    Attributes:
        problems: a line for each variable.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class Settings(BaseSettings):
    """Settings; the defaults are for one machine: SQLite, no broker, loopback.  URLs select everything else.

    `jobs.settings_help` has the meaning of each.

    `WCL_DATASETS` is a JSON object from dataset name to image folder or packed file, `WCL_LABEL_LISTS` one from dataset
    name to objects from a list's name to its file; only workers read them.
    """

    model_config = SettingsConfigDict(env_prefix="WCL_", frozen=True, extra="ignore", allow_inf_nan=False)

    data_dir: Path = Field(default=Path("wcl-data"))
    database_url: Secret | None = Field(default=None)
    database_password: Secret | None = Field(default=None)
    database_connections: int = Field(
        default=5,
        ge=1,
        le=10_000,
    )
    storage_url: str | None = Field(
        default=None, pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*/?$"
    )
    storage_endpoint: str | None = Field(default=None, pattern=r"^https?://[^\s/?#@]+/?$")
    storage_downloads: Literal["stream", "redirect"] = Field(default="stream")
    broker_url: Secret = Field(default=Secret("memory://localhost"))
    broker_password: Secret | None = Field(default=None)
    host: str = Field(default="127.0.0.1", min_length=1, max_length=255)
    port: int = Field(default=8000, ge=0, le=65535)
    allowed_hosts: list[str] = Field(default=[])
    trusted_proxies: list[IPvAnyNetwork] = Field(default=[])
    shared_links: bool = Field(default=True)
    proxy_user_header: str | None = Field(default=None, pattern=r"^[A-Za-z0-9-]{1,64}$")
    proxy_groups_header: str | None = Field(default=None, pattern=r"^[A-Za-z0-9-]{1,64}$")
    proxy_scopes: list[ScopeName] = Field(default=["read"])
    proxy_group_scopes: dict[str, list[ScopeName]] = Field(default={})
    proxy_sign_out_url: str | None = Field(default=None, pattern=r"^https?://[^\s\"'<>]+$")
    nginx_files: str | None = Field(default=None, pattern=r"^(/[A-Za-z0-9._~-]+)+/?$")
    root_path: str = Field(default="", pattern=r"^(/[A-Za-z0-9._~-]+)*/?$")

    worker_settings: Path | None = Field(default=None)
    worker_name: str = Field(default_factory=socket.gethostname)
    pool: str = Field(default="default", pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")
    gpus: int | None = Field(default=None, ge=0, le=1_024)
    devices: int | None = Field(
        default=None,
        ge=0,
        le=1_024,
    )
    cpu_slots: int = Field(default=1, ge=0, le=1_024)
    node_address: str | None = Field(
        default=None,
        min_length=1,
        max_length=64,
    )
    node_wait_seconds: float = Field(
        default=600,
        ge=0,
        le=_MOST_SECONDS,
    )
    hold_seconds: float = Field(
        default=60,
        ge=0,
        le=_MOST_SECONDS,
    )
    datasets: dict[str, Path] = Field(default={})
    dataset_roots: list[Path] = Field(default=[Path("/")])
    datasets_without_labels: list[str] = Field(default=[])
    label_lists: dict[str, dict[str, Path]] = Field(default={})
    cache_dir: Path | None = Field(default=None)
    cache_bytes: int | None = Field(default=None, ge=0)
    run_environment: list[str] = Field(default=[])
    standby: bool = Field(
        default=True,
    )
    builtin_datasets: list[str] = Field(default=["digits"])

    lease_seconds: float = Field(default=60, gt=0, le=_MOST_SECONDS)
    look_seconds: float = Field(
        default_factory=lambda given: given["lease_seconds"] / 12,
        gt=0,
        le=_MOST_SECONDS,
    )
    claim_seconds: float | None = Field(default=None, gt=0, le=_MOST_SECONDS)
    stall_seconds: float = Field(default=3600, gt=0, le=_MOST_SECONDS)
    drain_seconds: float = Field(default=25, gt=0, le=_MOST_SECONDS)
    max_failures: int = Field(default=3, ge=1, le=1_000_000)

    scrub_mib_per_second: float = Field(
        default=8,
        ge=0,
        le=1_000_000,
    )
    scrub_days: float = Field(default=7, ge=0, le=36_500)

    public_url: str | None = Field(
        default=None,
        pattern=r"^https?://[^\s/?#@]+(/[A-Za-z0-9._~/-]*)?$",
    )
    webhook_networks: list[IPvAnyNetwork] = Field(default=[])
    webhook_hosts: list[str] = Field(default=[])
    webhook_log_days: float = Field(default=30, gt=0, le=36_500)
    restore_days: float = Field(
        default=7,
        ge=0,
        le=36_500,
    )
    activity_days: float = Field(default=730, gt=0, le=36_500)

    log_format: Format = Field(default="lines")
    access_log: bool = Field(default=False)

    key_waiting: int | None = Field(default=None, ge=1, le=1_000_000)
    key_devices: int | None = Field(default=None, ge=1, le=1_000_000)
    key_submissions: int | None = Field(default=None, ge=1, le=1_000_000)
    fair_share_days: int = Field(default=7, ge=0, le=365)
    keep_checkpoints: int | None = Field(default=None, ge=1, le=1_000_000)
    most_checkpoints: int | None = Field(default=None, ge=1, le=1_000_000)
    log_days: float | None = Field(default=None, gt=0, le=36_500)
    point_days: float | None = Field(default=None, gt=0, le=36_500)
    event_days: float | None = Field(default=None, gt=0, le=36_500)
    export_days: float = Field(default=90, gt=0, le=36_500)
    worker_days: float = Field(default=90, ge=7, le=36_500)

    max_body_bytes: int = Field(default=1_000_000, ge=1_000, le=1_000_000_000)
    idempotency_hours: float = Field(default=24, gt=0, le=100_000)

    @field_validator("*", mode="before")
    @classmethod
    def _is_text(cls, value: object, info: ValidationInfo) -> object:
        try:
            json.dumps(value, ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError as error:
            raise ValueError("expected text in UTF-8") from error
        return value.strip() if isinstance(value, str) and info.field_name not in _PASSWORDS else value

    @field_validator("database_url", "broker_url")
    @classmethod
    def _is_url(cls, url: Secret | None, info: ValidationInfo) -> Secret | None:
        if url is not None:
            _check_url(url.reveal(), _SCHEMES[str(info.field_name)])
        return url

    @field_validator("proxy_user_header", "nginx_files")
    @classmethod
    def _has_proxies(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value and info.data.get("trusted_proxies") == []:
            does = "set the header" if info.field_name == "proxy_user_header" else "send the files"
            raise ValueError(f"expected the addresses of the proxies that {does}, in WCL_TRUSTED_PROXIES")
        return value

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
    def resolved_broker_url(self) -> str:
        """The broker's URL, with its password."""
        if self.broker_password is None:
            return self.broker_url.reveal()
        url = make_url(self.broker_url.reveal())
        url = url.set(username=url.username or "", password=self.broker_password.reveal())
        return url.render_as_string(hide_password=False)

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
        return Settings(**_secrets_of_files())
    except SettingsError as error:
        variable = _variable(str(error).split('"')[1])  # the message quotes the field first
        raise InvalidSettings(f"{variable}: expected JSON; {error.__cause__}") from None
    except ValidationError as error:
        wrong = [
            f"{_variable(str(each['loc'][0]))}: {each['msg'].removeprefix('Value error, ')}"
            for each in error.errors(include_url=False, include_input=False)
            if each["type"] != "default_factory_not_called"  # it depends on a variable that is wrong
        ]
        raise InvalidSettings(*wrong) from None  # the cause holds the values
    except RecursionError as error:
        raise InvalidSettings("a variable WCL_* holds JSON that is nested too deeply") from error


def _secrets_of_files() -> dict[str, Any]:
    """Return the secrets in the files that the variables `WCL_<NAME>_FILE` name, without the last line break.

    Raises:
        InvalidSettings: a file cannot be read, or the secret is in the environment, too.
    """
    secrets: dict[str, Any] = {}
    problems: list[str] = []
    for name in SECRETS:
        variable = f"{_variable(name)}_FILE"
        if not (path := os.environ.get(variable)):
            continue
        if _variable(name) in os.environ:
            problems.append(f"{variable}: {_variable(name)} is set, too; expected one of both")
            continue
        try:
            with Path(path).open("rb") as file:
                text = file.read(_MOST_SECRET_BYTES + 1).decode()
        except UnicodeDecodeError:
            problems.append(f"{variable}: expected a file of text in UTF-8")
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "no file has such a name"
            problems.append(f"{variable}: the file cannot be read: {why}")
        else:
            secrets[name] = Secret(text.removesuffix("\n").removesuffix("\r"))
            if not 0 < len(text) <= _MOST_SECRET_BYTES:
                problems.append(
                    f"{variable}: expected the secret alone; the file is {'too large' if text else 'empty'}"
                )
    if problems:
        raise InvalidSettings(*problems)
    return secrets


def _variable(name: str) -> str:
    return f"WCL_{name.upper()}"
