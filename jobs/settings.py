"""Every setting of server and worker, in one class: environment variables `WCL_<NAME>` or arguments."""

from __future__ import annotations

import socket
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import URL


class Settings(BaseSettings):
    """One machine by default: SQLite, no broker, loopback.  URLs choose everything else.

    `WCL_DATASETS` is a JSON object from dataset name to image folder or packed file, `WCL_LABEL_LISTS` one from dataset
    name to objects from a list's name to its file; only workers read them.
    """

    model_config = SettingsConfigDict(env_prefix="WCL_", frozen=True, extra="ignore")

    data_dir: Path = Field(default=Path("wcl-data"), description="Database, attempts, checkpoints, exports, key file.")
    database_url: str | None = Field(default=None, description="sqlite:///… or postgresql://…; default in data_dir.")
    broker_url: str = Field(default="memory://localhost", description="memory://localhost or redis://…")
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    allowed_hosts: list[str] = Field(default=[], description="Further names the Host header may carry.")

    worker_name: str = Field(default_factory=socket.gethostname)
    pool: str = Field(default="default", pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")
    gpus: int | None = Field(default=None, ge=0, description="GPUs this worker offers; unset: those it sees.")
    datasets: dict[str, Path] = Field(default={}, description="Image folders and packed files by dataset name.")
    label_lists: dict[str, dict[str, Path]] = Field(
        default={}, description="Fixed lists of labelled train images, by dataset and by their own names."
    )
    builtin_datasets: list[str] = Field(default=["digits"], description="digits; fetched: cifar10, cifar100, stl10.")

    lease_seconds: float = Field(default=60, gt=0, description="Unchanged for so long, an attempt counts as lost.")
    look_seconds: float = Field(
        default_factory=lambda given: given["lease_seconds"] / 12,
        gt=0,
        description="Pause between two looks of a reconciler; unset, a twelfth of a lease.",
    )
    claim_seconds: float | None = Field(default=None, gt=0, description="Pause between looks for work.")
    stall_seconds: float = Field(default=3600, gt=0, description="A run that reports nothing for so long is killed.")
    drain_seconds: float = Field(default=25, gt=0, description="Time a stopping worker gives its run.")
    max_failures: int = Field(default=3, ge=1, description="Infrastructure failures that end a job.")

    max_body_bytes: int = Field(default=1_000_000, ge=1_000)
    idempotency_hours: float = Field(default=24, gt=0)

    @property
    def resolved_database_url(self) -> str:
        """The database's URL with its driver named."""
        if self.database_url is None:
            # A folder's name may hold characters that mean something in a URL.
            path = str(self.data_dir.absolute() / "wcl.sqlite3")
            return URL.create("sqlite", database=path).render_as_string(hide_password=False)
        return self.database_url.replace("postgresql://", "postgresql+psycopg://", 1)

    @property
    def is_sqlite(self) -> bool:
        return self.resolved_database_url.startswith("sqlite")

    @property
    def is_memory_broker(self) -> bool:
        return self.broker_url.startswith("memory")

    @property
    def poll_seconds(self) -> float:
        """How often an idle worker looks for work by itself."""
        return self.claim_seconds or (1.0 if self.is_sqlite else 10.0)

    @property
    def attempts_dir(self) -> Path:
        """A worker's own: run files and spools of its attempts."""
        return self.data_dir.absolute() / "attempts"

    @property
    def checkpoints_dir(self) -> Path:
        """Registered checkpoints; all servers and workers see the same folder."""
        return self.data_dir.absolute() / "checkpoints"

    @property
    def descriptions_dir(self) -> Path:
        """A worker's own: what its image folders held when they were last hashed."""
        return self.data_dir.absolute() / "descriptions"

    @property
    def exports_dir(self) -> Path:
        return self.data_dir.absolute() / "exports"
