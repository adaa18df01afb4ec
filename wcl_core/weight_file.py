"""Files of weights that a training starts from, checked without PyTorch: names, types, shapes and bytes.

`python -m wcl_core import-weights` writes them, and the server takes them; no line here trusts the file.
"""

from __future__ import annotations

import json
import os
from typing import Annotated, BinaryIO, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictInt, ValidationError, model_validator

from wcl_core.config import BackboneConfig
from wcl_core.config.network import RESIDUAL, TRANSFORMERS
from wcl_core.config.tensors import backbone_tensors
from wcl_core.export import ExportError, in_order, read_header
from wcl_core.text import visible

MAX_BYTES: Final = 2 * 2**30  # of a file, and of its tensors in memory
MAX_LISTED: Final = 50  # names that are not used, in the report
_MAX_HEADER_BYTES = 1_000_000


class WeightFileError(ValueError):
    """The file is no weight file of a backbone that this project has; the message gives the reason."""


def _printable(text: str) -> str:
    if visible(text) != text:
        raise ValueError("expected printable text")
    return text


_Text = Annotated[str, Field(max_length=2_000), AfterValidator(_printable)]


class ImportReport(BaseModel):
    """What an import has taken of a file: numbers of tensors, and the first names of those that were not used."""

    model_config = ConfigDict(frozen=True)

    prefix: _Text = ""
    matched: StrictInt = Field(default=0, ge=0, le=1_000_000)
    filled: StrictInt = Field(default=0, ge=0, le=1_000_000)
    unused: StrictInt = Field(default=0, ge=0, le=100_000_000)
    unused_names: tuple[_Text, ...] = Field(default=(), max_length=MAX_LISTED)


class _Data(BaseModel):
    image_size: StrictInt = Field(ge=8, le=512)


class WeightFile(BaseModel):
    """What a weight file says of itself.

    Attributes:
        backbone: the network that the weights are of.
        data: the side of the images that it was trained on.
        report: of the import.
    """

    model_config = ConfigDict(frozen=True)

    backbone: BackboneConfig
    data: _Data
    report: ImportReport = Field(default=ImportReport(), validation_alias="import")

    @model_validator(mode="after")
    def _check_network(self) -> WeightFile:
        if self.backbone.name not in RESIDUAL + TRANSFORMERS:
            raise ValueError(f"{self.backbone.name} is a plugin; expected one of {', '.join(RESIDUAL + TRANSFORMERS)}")
        self.backbone.check_image_size(self.data.image_size)
        return self


def check_weight_file(source: BinaryIO) -> WeightFile:
    """Return what a weight file says of itself, after a comparison of its tensors with the network that it names.

    Values are not read; a training refuses those that are not finite.

    Args:
        source: the file, open; its position changes.

    Raises:
        WeightFileError: it is another kind of file, or names, types, shapes or bytes differ.
    """
    try:
        header, base = read_header(source, _MAX_HEADER_BYTES)
        text = header.pop("__metadata__")["wcl"]
        facts = WeightFile.model_validate(json.loads(text))
        tensors = in_order(header, os.fstat(source.fileno()).st_size - base)
    except ExportError as error:
        raise WeightFileError(str(error)) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise WeightFileError(f"its metadata are wrong: {place}{': ' if place else ''}{first['msg']}") from error
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise WeightFileError("it has no metadata of imported weights") from error
    expected = backbone_tensors(facts.backbone, facts.data.image_size)
    given = {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in tensors}
    for name in sorted(expected.keys() | given.keys()):
        if given.get(name) != expected.get(name):
            is_, should = _described(given.get(name)), _described(expected.get(name))
            raise WeightFileError(f"tensor {name[:100]!r} of {facts.backbone.name} is {is_}, expected {should}")
    return facts


def _described(tensor: tuple[str, tuple[int, ...]] | None) -> str:
    if tensor is None:
        return "absent"
    return f"{tensor[0]} {'x'.join(map(str, tensor[1])) or 'number'}"
