"""The contract between a worker and a training run, typed and without torch.

The worker writes `run.json` (`RunFile`) into an attempt's folder and starts the run.  The run appends one JSON record a
line to `report.jsonl` (`Record`, read by `parse_record`) and leaves its files beside it.  Both sides, and the service
that stores the records, import names and types from here.

    worker ── run.json, request letters ──► run ── report.jsonl, checkpoints/, artifacts/, exit code ──► worker

The records are pydantic models.  A run reports thousands of metrics a second at most, and pydantic reads a line of
eight values in a quarter of the time of `json.loads` with a check of every value in Python.

The JSON is older than these types.  It does not change, so that a worker can deliver the records of an earlier version.
In JSON, `path` is the place of a file in the run's folder, here called `file`.  In `run.json`, `checkpoint` is the
checkpoint to evaluate, here called `evaluated`.  Records of type `groups` carry weak labels.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sized
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Final, Literal, Self, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from wcl_core.config import Kind
from wcl_core.files import read_regular, write_bytes

# --- requests and outcomes -----------------------------------------------------------------------------------------

Request = Literal["cancel", "drain", "pause"]
Outcome = Literal["succeeded", "failed", "cancelled", "drained", "paused"]
Phase = Literal["prepare", "load", "compile", "train", "evaluate", "save"]
FailureReason = Literal[
    "out_of_memory",
    "non_finite_loss",
    "collapse",
    "bad_data",
    "missing_checkpoint",
    "damaged_checkpoint",
    "disk_full",
    "storage_unavailable",
    "no_resources",
    "device_failed",
    "device_error",
    "device_assert",
    "internal_error",
]

REQUEST_LETTERS: dict[Request, bytes] = {"cancel": b"c", "drain": b"d", "pause": b"p"}  # on the control pipe
OUTCOME_OF: dict[Request, Outcome] = {"cancel": "cancelled", "drain": "drained", "pause": "paused"}

ORPHANED_EXIT: Final = 70  # the run lost its worker
PEER_LOST_EXIT: Final = 71  # a rank lost the others; their exit codes give the cause
DISK_FULL_EXIT: Final = 72  # the disk had no room for the run's last report
STORAGE_FAULT_EXIT: Final = 73  # the disk refused it otherwise: it is read-only, away or broken

# --- files of an attempt's folder ----------------------------------------------------------------------------------

RUN_FILE: Final = "run.json"
SPOOL_FILE: Final = "report.jsonl"
OUTPUT_FILE: Final = "output.log"  # stdout and stderr of all ranks
FAILURE_FILES: Final = "failure-*.json"  # glob of `failure_file`
LOST_PEER_FILES: Final = "lost-peer-*.json"  # glob of `lost_peer_file`
DEVICE_FAULT_FILES: Final = "device-fault-*.json"  # glob of `device_fault_file`
CHECKPOINTS_FOLDER: Final = "checkpoints"
ARTIFACTS_FOLDER: Final = "artifacts"
EMBEDDINGS_FILE: Final = "embeddings-2.safetensors"  # the name has the version: version 1 has no paths


_OWN_FILES = (RUN_FILE, SPOOL_FILE, OUTPUT_FILE)
_MAX_JSON_BYTES = 16 << 20  # of the files that a worker reads as a whole


def failure_file(rank: int) -> str:
    """Return the name of the file in which a rank other than the first one leaves its `Failure`."""
    return f"failure-{rank}.json"


def lost_peer_file(rank: int) -> str:
    """Return the name of the file of a rank that lost the others: a `Failure` that counts if no rank has another."""
    return f"lost-peer-{rank}.json"


def device_fault_file(rank: int) -> str:
    """Return the name of the file for the `DeviceFault` of the GPU of this rank; each rank may leave it."""
    return f"device-fault-{rank}.json"


# --- artifacts -----------------------------------------------------------------------------------------------------

MediaType = Literal["image/png", "application/json"]
MEDIA_TYPES: dict[str, MediaType] = {".png": "image/png", ".json": "application/json"}
ARTIFACT_NAME: Final = r"^[a-z0-9][a-z0-9_-]{0,57}\.(png|json)$"
MAX_ARTIFACT_BYTES: Final = 16 << 20

MONITOR_BATCH_PICTURE: Final = "probe.png"
MONITOR_BATCH_FACTS: Final = "probe.json"  # MonitorBatchFacts
MAP_PICTURE: Final = "map.png"
MAP_FACTS: Final = "map.json"  # MapFacts
MAX_MAP_IMAGES: Final = 2000

# --- metrics -------------------------------------------------------------------------------------------------------

TRAIN_PREFIX: Final = "train/"  # and the name of a term of the loss
TRAIN_LOSS: Final = "train/loss"
LEARNING_RATE: Final = "train/lr"
IMAGES_PER_SECOND: Final = "train/images_per_second"
KNN_TOP1: Final = "eval/knn_top1"
VIEW_TOP1: Final = "eval/view_top1"  # of images without labels, with its chance: one divided by their number
VIEW_TOP1_CHANCE: Final = "eval/view_top1_chance"
VIEW_TOP1_PIXELS: Final = "eval/view_top1_pixels"
# After the name of an accuracy: the shares of its images that the untrained network had wrong and this one has right,
# and the other way round.
GAINED: Final = "_gained"
LOST: Final = "_lost"
COMPONENTS: Final = "weak/components"
LARGEST_SHARE: Final = "weak/largest_share"
VIEW_AGREEMENT: Final = "weak/view_agreement"
PAIR_PRECISION: Final = "weak/pair_precision"
PAIR_PRECISION_CHANCE: Final = "weak/pair_precision_chance"
COMPONENT_SHARE: Final = "weak/component_share"
ADJUSTED_MUTUAL_INFORMATION: Final = "weak/ami"
EMBEDDING_DEVIATION: Final = "embedding/std"
EMBEDDING_RANKME: Final = "embedding/rankme"
HARDWARE_PREFIX: Final = "system/"
CPU_PERCENT: Final = "system/cpu_percent"
PROCESS_MEMORY_MIB: Final = "system/process_memory_mib"
GPU_PERCENT: Final = "system/gpu_percent"
GPU_MEMORY_MIB: Final = "system/gpu_memory_mib"

# --- reports on datasets -------------------------------------------------------------------------------------------


class Remark(BaseModel):
    """Files of a dataset with one thing in common: their number, and a few of them."""

    model_config = ConfigDict(frozen=True)

    text: str
    count: int
    examples: list[str]


class DatasetReport(BaseModel):
    """The result of reading an image folder: what is in it, what is left out, what a user should know.

    Attributes:
        layout: how the folder is read, as a clause.
        formats, modes: images by file format and by colour mode.
        smallest, median, largest: width and height in pixels, ordered by area.
        unreadable: image files that cannot be read.
        left_out: files and folders that are not read, by reason.
        odd: images that are read, by what is unusual about them.
    """

    model_config = ConfigDict(frozen=True)

    layout: str
    formats: dict[str, int]
    modes: dict[str, int]
    smallest: tuple[int, int]
    median: tuple[int, int]
    largest: tuple[int, int]
    unreadable: int
    left_out: list[Remark]
    odd: list[Remark]


# --- limits of records -------------------------------------------------------------------------------------------

MAX_DEPTH: Final = 32  # of nested JSON
_NESTS = (dict, list)
MAX_FILE_NAME: Final = 200  # characters
MAX_METRICS: Final = 1_000  # in one record
MAX_LABELS: Final = 10_000
MAX_MESSAGE: Final = 10_000  # characters; a longer message is cut

# --- text and numbers that every database takes --------------------------------------------------------------------

_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


def storable(text: str) -> str:
    """Return text that every database takes: PostgreSQL refuses NUL, and UTF-8 holds no lone surrogate."""
    return _UNSTORABLE.sub("\ufffd", text)


def storable_json(value: Any) -> Any:
    """Return a JSON value that every database takes: text is `storable`, and a number that is not finite is null."""
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {storable(name): storable_json(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [storable_json(entry) for entry in value]
    return value


def _bounded_json(value: Any) -> Any:
    """Return a storable JSON value that every program can read and write again.

    Raises:
        ValueError: it is nested too deeply, or has an integer of more than 64 bits.
    """
    entries = [value]
    for _ in range(MAX_DEPTH):
        if any(isinstance(entry, int) and not -(1 << 63) <= entry < 1 << 63 for entry in entries):
            raise ValueError("expected integers of at most 64 bits")
        containers = [each.values() if isinstance(each, dict) else each for each in entries if isinstance(each, _NESTS)]
        entries = [entry for entries_of_one in containers for entry in entries_of_one]
    if entries:
        raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
    return storable_json(value)


def _inside(file: str) -> str:
    """Return the place of a run's file.

    Raises:
        ValueError: it is outside of the run's folder, or a file of the worker.
    """
    place = PurePosixPath(file)
    if place.is_absolute() or ".." in place.parts or "\0" in file or str(place) in (".", *_OWN_FILES):
        raise ValueError("expected a file below the run's folder")
    return file


_Int64 = Annotated[int, Field(ge=0, lt=1 << 63)]  # of a database's integer column
_Int32 = Annotated[int, Field(ge=0, lt=1 << 31)]
_Label = Annotated[int, Field(ge=-1, lt=1 << 31)]
_Number = Annotated[int | float, Field(ge=0, le=1e18)]
_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{1,64}$")]
_Name = Annotated[str, Field(max_length=64)]
_CutName = Annotated[str, AfterValidator(lambda text: text[:64])]  # of a record that must not get lost
_Message = Annotated[str, AfterValidator(lambda text: text[:MAX_MESSAGE])]
_File = Annotated[str, Field(max_length=MAX_FILE_NAME), AfterValidator(_inside)]
_JsonValue = Annotated[Any, AfterValidator(_bounded_json)]
_JsonObject = Annotated[dict[str, Any], AfterValidator(_bounded_json)]

# --- the run file --------------------------------------------------------------------------------------------------


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False, populate_by_name=True)


class CacheFolder(_Model):
    """The cache of decoded datasets on this machine.

    Attributes:
        folder: it is created when it is first used.
        max_bytes: of all files; None for a quarter of the disk.
    """

    folder: Path
    max_bytes: int | None = None


class DatasetSource(_Model):
    """The dataset of a run.

    Attributes:
        path: folder or packed file on this worker; None for a builtin dataset.
        digest: of the content that the job has pinned; None accepts any content.
        lists: files of label lists by name.
        list_digests: of the content that the worker announced; a list without a digest may have any content.
        cache: where decoded images of a folder are kept; None decodes them at each start.
        has_labels: whether a folder or list may name classes.
    """

    kind: Literal["builtin", "folder", "packed"]
    path: Path | None = None
    digest: str | None = None
    lists: dict[str, Path] = {}
    list_digests: dict[str, str] = {}
    cache: CacheFolder | None = None
    has_labels: bool = True


class Place(_Model):
    """The place of a folder, which tells it from its copies.

    Attributes:
        path: digest of its real path.
        device, inode: of the folder; a restart of the machine may change the number of its device.
        boot: identifies the time between two starts of the machine.
    """

    path: str
    device: int
    inode: int
    boot: str

    def is_same(self, other: Place) -> bool:
        """Return whether both are the same folder."""
        if self.boot == other.boot:
            return (self.device, self.inode) == (other.device, other.inode)
        return (self.path, self.inode) == (other.path, other.inode)


class Rendezvous(_Model):
    """Where the ranks of several machines meet, and from where this machine communicates.

    Attributes:
        address, port: of the first rank.
        secret: that all ranks share.
        own_address: of this machine; its ranks listen on no other one.
    """

    address: str
    port: int
    secret: str
    own_address: str


class RunFile(_Model):
    """The run file: the input of a run, written by its worker.

    Attributes:
        host: name of the machine; only a worker of the same machine recovers the folder.
        place: of the folder when it was made; no worker recovers a copy of it.
        dataset: where its images are.
        resume: the checkpoint file that training continues from.
        weights: the file of the weights that the spec starts from.
        evaluated: the checkpoint file to evaluate.
        sha256: digest of the file that the run starts from or evaluates; None without one.
        gpus: number of GPUs that the run holds and has to use, without stand-ins; None if the worker does not decide
            which GPUs a run sees.
        rendezvous: of ranks on several machines; None for those of one, which meet in the folder.
        request_id: of the request that submitted the job, for the log; None if there was none.
    """

    job_id: str
    attempt: int
    token: str | None = None
    host: str
    place: Place | None = None
    kind: Kind
    spec: dict[str, Any]
    dataset: DatasetSource
    resume: Path | None = None
    weights: Path | None = None
    evaluated: Path | None = Field(default=None, validation_alias="checkpoint", serialization_alias="checkpoint")
    sha256: str | None = None
    gpus: int | None = None
    rendezvous: Rendezvous | None = None
    request_id: str | None = None

    @property
    def start_file(self) -> Path | None:
        """The one file that the run starts from or evaluates; None if there is none."""
        return self.resume or self.weights or self.evaluated

    def write(self, folder: Path) -> None:
        """Write `run.json` into an attempt's folder."""
        # An older version does not know these fields.
        names = ("token", "place", "weights", "sha256", "gpus", "rendezvous", "request_id")
        later: dict[str, Any] = {name: True for name in names if getattr(self, name) is None}
        empty = {name for name in ("list_digests", "cache") if not getattr(self.dataset, name)}
        empty |= {"has_labels"} if self.dataset.has_labels else set()
        if empty:
            later["dataset"] = empty
        write_bytes(folder / RUN_FILE, self.model_dump_json(by_alias=True, exclude=later).encode())

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read `run.json` of an attempt's folder.

        Raises:
            OSError: the file cannot be read.
            ValueError: a field is missing or invalid.
        """
        try:
            return cls.model_validate_json(read_regular(folder / RUN_FILE, _MAX_JSON_BYTES))
        except ValidationError as error:
            raise ValueError(f"{RUN_FILE}: {describe_problems(error)}") from error


class _LeftByRank(_Model):
    """The content of a file that a rank leaves for the worker."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the file of a rank.

        Raises:
            OSError: the file cannot be read.
            ValueError: a field is missing or invalid.
        """
        return cls.model_validate_json(read_regular(path, _MAX_JSON_BYTES))


class Failure(_LeftByRank):
    """The failure of a rank other than the first one, in its `failure_file`."""

    outcome: Outcome
    reason: _CutName | None
    message: _Message


class DeviceFault(_LeftByRank):
    """Why a rank could not use its GPU, in its `device_fault_file`; the worker then gives the GPU to no run.

    Attributes:
        is_whole_machine: whether the cause concerns all GPUs of the machine.
    """

    message: _Message
    is_whole_machine: bool


# --- records of the spool ------------------------------------------------------------------------------------------


class _Record(_Model):
    """A numbered record.

    Attributes:
        seq: place in the spool, from 1 without a gap; 0 before the record is in a spool.
    """

    seq: _Int64 = 0

    def fields(self) -> dict[str, Any]:
        """Return the record's own fields, as in JSON: without type and number."""
        return self.model_dump(by_alias=True, exclude={"type", "seq"})


class StartedRecord(_Record):
    """The start of the run; further fields are facts of its environment, and exact resume holds while they are equal.

    Attributes:
        start_step: the step that the run starts from.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, _JsonValue]

    type: Literal["started"] = "started"
    start_step: _Int64

    @property
    def environment(self) -> dict[str, Any]:
        return self.__pydantic_extra__


class MetricsRecord(_Record):
    """Values by metric name at a step; null where a value was not finite."""

    type: Literal["metrics"] = "metrics"
    step: _Int64
    values: dict[str, float | None] = Field(max_length=MAX_METRICS)


class ProgressRecord(_Record):
    """The progress of the run; only the latest record matters.

    Attributes:
        share: the finished part of the phase, 0 to 1, if steps and epochs do not show it.
        part: the present part of an evaluation, for people.
    """

    type: Literal["progress"] = "progress"
    step: _Int64
    total_steps: _Int64
    epoch: _Number
    total_epochs: _Number
    images_per_second: _Number | None = None
    eta_seconds: _Number | None = None
    phase: _Name
    share: _Number | None = None
    part: _Name | None = None

    def fields(self) -> dict[str, Any]:
        """Return the fields; `share` and `part` only where there is one."""
        absent = {name for name in ("share", "part") if getattr(self, name) is None}
        return {name: value for name, value in super().fields().items() if name not in absent}


class CheckpointRecord(_Record):
    """A checkpoint that is complete on the disk.

    Attributes:
        file: place in the run's folder.
        size: in bytes.
        metrics: latest values at its step.
        kind: `training`, or `embeddings` for a file that no run starts from.
    """

    type: Literal["checkpoint"] = "checkpoint"
    step: _Int64
    epoch: _Int32
    file: _File = Field(validation_alias="path", serialization_alias="path")
    sha256: _Sha256
    size: _Int64
    metrics: dict[str, float | None] = Field(max_length=MAX_METRICS)
    kind: Literal["training", "embeddings"] = "training"

    def fields(self) -> dict[str, Any]:
        """Return the fields; `kind` only where it is not the usual one."""
        fields = super().fields()
        if self.kind == "training":
            del fields["kind"]
        return fields


class ArtifactRecord(_Record):
    """A small file for display that is complete on the disk.

    Attributes:
        name: its name in requests; a later artifact of the same name replaces it.
        file: place in the run's folder.
        size: in bytes.
    """

    type: Literal["artifact"] = "artifact"
    name: str
    file: _File = Field(validation_alias="path", serialization_alias="path")
    sha256: _Sha256
    size: _Int64
    media_type: str

    def refusal(self) -> str | None:
        """Return the reason to reject the artifact; None for a valid one."""
        if not re.fullmatch(ARTIFACT_NAME, self.name):
            return f"expected a name of lower-case letters, digits, - and _ that ends in {' or '.join(MEDIA_TYPES)}"
        if self.media_type != (expected := MEDIA_TYPES[Path(self.name).suffix]):
            return f"media_type is {self.media_type!r}, expected {expected}"
        if self.size > MAX_ARTIFACT_BYTES:
            return f"it has {self.size} bytes, expected at most {MAX_ARTIFACT_BYTES}"
        return None


class WeakLabelRecord(_Record):
    """Weak labels of the monitor batch after an epoch, in the order of its picture."""

    type: Literal["groups"] = "groups"
    epoch: _Int32
    step: _Int64
    labels: list[_Label] = Field(max_length=MAX_LABELS)


class EvaluationRecord(_Record):
    """One measured value; all fields but `value`, `stderr`, `n` and `details` identify it.

    Attributes:
        params: the requested parameters.
        n: images that were classified.
        details: values that the protocol has chosen, such as a strength of regularisation.
    """

    type: Literal["evaluation"] = "evaluation"
    protocol: _Name
    protocol_version: _Int32
    dataset_digest: _Name
    split_digest: _Name
    params: _JsonObject
    seed: _Int64
    metric: _Name
    value: float
    stderr: float | None = None
    n: _Int64
    details: _JsonObject | None = None


class WarningRecord(_Record):
    """A problem that does not end the run."""

    type: Literal["warning"] = "warning"
    reason: _CutName
    message: _Message


class LogRecord(_Record):
    """A line for people."""

    type: Literal["log"] = "log"
    level: _CutName
    message: _Message


class EndRecord(_Record):
    """The last record of a run.

    Attributes:
        outcome: one of `Outcome`; the service takes any other value as a failure.
    """

    type: Literal["end"] = "end"
    outcome: _CutName
    reason: _CutName | None = None
    message: _Message | None = None


Record: TypeAlias = (
    StartedRecord
    | MetricsRecord
    | ProgressRecord
    | CheckpointRecord
    | ArtifactRecord
    | WeakLabelRecord
    | EvaluationRecord
    | WarningRecord
    | LogRecord
    | EndRecord
)
_RECORD: TypeAdapter[Record] = TypeAdapter(Annotated[Record, Field(discriminator="type")])


def to_json(record: Record) -> dict[str, Any]:
    """Return the JSON object of a record, without its number."""
    return {"type": record.type, **record.fields()}


def parse_record(line: bytes) -> Record:
    r"""Read one line of the spool; text and numbers of the record are ones that every database takes.

    Raises:
        ValueError: the line is not a record; the message names the field.
    """
    try:
        if rb"\u0000" not in line:
            return _RECORD.validate_json(line)
    except ValidationError:
        pass  # perhaps only a lone surrogate or a number that is not finite
    try:
        return _RECORD.validate_python(storable_json(json.loads(line)))
    except ValidationError as error:
        raise ValueError(describe_problems(error)) from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def describe_problems(error: ValidationError) -> str:
    """Return the problems of invalid data as one line: `step: Field required; ...`."""
    problems = [(".".join(map(str, each["loc"])), each["msg"]) for each in error.errors(include_url=False)]
    return "; ".join(f"{place}: {message}" if place else message for place, message in problems[:5])


# --- facts of the monitor batch and of the map ---------------------------------------------------------------------


class MonitorBatchFacts(_Model):
    """The images of the monitor batch, in the order of the picture's tiles and of the weak labels.

    Attributes:
        indices: places in the train split, or in the unlabelled split of a dataset without labels.
        classes: true classes; null for an image without one.
        class_names: by class.
        tile: side of a tile in pixels.
        columns: tiles in a row of the picture.
    """

    indices: list[int]
    classes: list[int | None]
    class_names: list[str]
    tile: int
    columns: int

    @property
    def known_classes(self) -> list[int] | None:
        """The true classes; None unless every image has one."""
        labels = [label for label in self.classes if label is not None]
        return labels if len(labels) == len(self.classes) else None

    def name_of(self, label: int) -> str:
        return self.class_names[label] if label < len(self.class_names) else str(label)


class MapFacts(_Model):
    """A map of the feature space; all lists have the order of the picture's tiles.

    Attributes:
        indices: places of the images in their split, ascending.
        labels: true classes; null for an image without one.
        components: weak labels among these images; None where the checkpoint has no head that makes them.
        pca, tsne: x and y within -1 and 1; `pca_shares` of the variance, by axis.
        perplexity: that t-SNE used.
        neighbours, cosines: the nearest images of each, nearest first, as places in these lists.
        files: the path of each image below its folder; None for images from no folder.
    """

    version: int = 1
    dataset: str
    dataset_digest: str | None = None
    split: str
    split_images: int
    split_digest: str | None = None
    class_names: list[str]
    tile: int = Field(ge=1, le=512)
    columns: int = Field(ge=1)
    indices: list[int] = Field(max_length=MAX_MAP_IMAGES)
    labels: list[int | None]
    components: list[int] | None
    pca: list[tuple[float, float]]
    pca_shares: list[float]
    tsne: list[tuple[float, float]]
    perplexity: float
    neighbours: list[list[int]]
    cosines: list[list[float]]
    files: list[str] | None = None

    @model_validator(mode="after")
    def _lists_agree(self) -> Self:
        count = len(self.indices)
        lists: list[Sized] = [self.labels, self.pca, self.tsne, self.neighbours, self.cosines]
        lists += [each for each in (self.components, self.files) if each is not None]
        if any(len(each) != count for each in lists):
            raise ValueError("lists of different lengths")
        if any(not 0 <= place < count for row in self.neighbours for place in row):
            raise ValueError("a neighbour that is no image of the map")
        if any(len(near) != len(cosines) for near, cosines in zip(self.neighbours, self.cosines, strict=True)):
            raise ValueError("neighbours without a cosine")
        return self
