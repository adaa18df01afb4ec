"""Spec files: JSON or YAML of plain values, with one reading.  Loads neither pydantic nor torch."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

_MAX_BYTES = 4_000_000
_MAX_VALUES = 100_000
_SUFFIXES = (".json", ".yaml", ".yml")
_PLAIN_INTEGER = re.compile("[-+]?(0|[1-9][0-9]*)")


class SpecFileError(ValueError):
    """A spec file or an override is wrong; the message names the place."""


def read_spec(path: Path) -> dict[str, Any]:
    """Read a spec from a .json, .yaml or .yml file.

    Raises:
        SpecFileError: the file cannot be read, or it does not hold one mapping of plain values.
    """
    specs = read_specs(path)
    if len(specs) != 1:
        raise SpecFileError(f"{path}: expected one spec, but the file holds {len(specs)}")
    return specs[0]


def read_specs(path: Path) -> list[dict[str, Any]]:
    """Read the specs of a .yaml or .yml file, one a document, or of a .json file that holds one, or a list of them.

    Raises:
        SpecFileError: the file cannot be read, or it does not hold mappings of plain values.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        text = content.decode("utf-8")
    except OSError as error:
        raise SpecFileError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SpecFileError(f"{path}: expected JSON or YAML in UTF-8, but the file is not UTF-8 text") from error
    if len(content) > _MAX_BYTES:
        raise SpecFileError(f"{path}: expected a spec of at most {_MAX_BYTES:,} bytes, but the file is larger")
    try:
        values = _read_json(text) if path.suffix == ".json" else _read_yaml(text)
        check_plain(values)
    except RecursionError as error:
        raise SpecFileError(f"{path}: the values are nested too deeply") from error
    except (ValueError, LookupError) as error:
        raise SpecFileError(f"{path}: {error}") from error
    for place, value in enumerate(values, start=1):
        if not isinstance(value, dict):
            which = f"document {place} is" if len(values) > 1 else "the file holds"
            raise SpecFileError(f"{path}: expected a mapping of fields, but {which} a {type(value).__name__}")
    return values


def spec_files(folder: Path) -> list[Path]:
    """Return the spec files of a folder by name, without those of folders in it.

    Raises:
        SpecFileError: there are none, or the folder cannot be read.
    """
    try:
        files = sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES and path.is_file())
    except OSError as error:
        raise SpecFileError(f"{folder}: {error.strerror}") from error
    if not files:
        raise SpecFileError(f"{folder}: expected files that end in {', '.join(_SUFFIXES)}, but the folder has none")
    return files


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; raise if a key occurs twice, because one of its values would be lost."""
    for name, count in Counter(name for name, _ in pairs).items():
        if count > 1:
            raise ValueError(f"the key {name} occurs {count} times; expected once")
    return dict(pairs)


def _read_json(text: str) -> list[Any]:
    value = json.loads(text, object_pairs_hook=unique_keys)
    return value if isinstance(value, list) and value else [value]


def _read_yaml(text: str) -> list[Any]:
    """Return the values of the YAML documents of a text.

    Raises:
        ValueError: a document is no YAML, a key occurs twice, or a number has two readings.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """A loader that refuses keys which occur twice, and numbers which YAML 1.1 and 1.2 read differently."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            names = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
            for name, count in names.items():
                if count > 1 and name != "<<":
                    raise ValueError(f"the key {name} occurs {count} times; expected once (line {_line(node)})")
            return super().construct_mapping(node, deep)

        def construct_yaml_int(self, node: Any) -> int:
            if not _PLAIN_INTEGER.fullmatch(node.value):
                raise ValueError(
                    f"{node.value} has two readings as a number; write it in decimals (line {_line(node)})"
                )
            return super().construct_yaml_int(node)

        yaml_constructors: ClassVar[dict[str | None, Any]] = yaml.SafeLoader.yaml_constructors | {
            "tag:yaml.org,2002:int": construct_yaml_int,
            "tag:yaml.org,2002:timestamp": yaml.SafeLoader.construct_yaml_str,
        }

    try:
        return list(yaml.load_all(text, Loader)) or [None]
    except yaml.MarkedYAMLError as error:
        place = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        raise ValueError(f"{error.problem or error.context}{place}") from error
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def _line(node: Any) -> int:
    return int(node.start_mark.line) + 1


def check_plain(value: Any, name: str = "", budget: list[int] | None = None) -> None:
    """Raise ValueError with the name of a field whose value JSON cannot carry.

    Args:
        value: a decoded document; in YAML its parts may be shared.
        name: of the field.
        budget: how many values are left.
    """
    budget = budget if budget is not None else [_MAX_VALUES]
    budget[0] -= 1
    if budget[0] < 0:
        raise ValueError(f"expected at most {_MAX_VALUES:,} values")
    if isinstance(value, dict):
        for key, part in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{name or 'the file'} has the key {key!r}; expected text as a key")
            check_plain(part, f"{name}.{key}" if name else key, budget)
    elif isinstance(value, list):
        for part in value:
            check_plain(part, name, budget)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} is {value}; expected a finite number")
    elif not isinstance(value, str | int | float | None):
        raise ValueError(f"{name} is a {type(value).__name__}; expected text, a number, a list or a mapping")
