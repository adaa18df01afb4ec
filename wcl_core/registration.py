"""The process that reads a worker's folders, packed files and digits: names first, then contents, one after the other.

    worker ── requests, one JSON object a line ──► python -m wcl_core.registration
           ◄── messages, one JSON object a line ──┘

A message names its dataset, and has one of `listed` (counts and classes by the names of the files), `share` (of the
files that are read), `description` (as `describe-dataset` prints it, with the `path` of its images) and `error`.  The
process never loads torch, gives way to other work, and ends when the worker does.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from wcl_core.data import archive
from wcl_core.data.images import DataError, Description, class_counts
from wcl_core.data.kinds import is_archive, kind_of
from wcl_core.data.layout import list_files
from wcl_core.data.loading import describe
from wcl_core.text import visible_json, write_line

_NICENESS = 10
_TELL_SECONDS = 1.0


def description_json(description: Description) -> dict[str, Any]:
    """Return a description for JSON."""
    samples, report = description.samples, description.report
    return {
        "name": description.name,
        "kind": description.kind,
        "digest": description.digest,
        "counts": description.counts,
        "classes": description.classes,
        "class_counts": description.class_counts,
        "image_size": description.image_size,
        "label_lists": {name: asdict(entry) for name, entry in description.label_lists.items()},
        "samples": samples and {**vars(samples), "png": base64.b64encode(samples.png).decode()},
        "report": report and report.model_dump(mode="json"),
    }


def main(lines: Iterable[str]) -> None:
    """Answer requests: objects with `name`, `path` (null for the digits), `cache`, `lists`, `kind` and `has_labels`.

    Without a kind, the path decides.
    """
    requests = [json.loads(line) for line in lines]
    for request in requests:
        request.setdefault("kind", kind_of(request["path"] and Path(request["path"])))
    for request in requests:
        if request["kind"] == "builtin":  # it takes no time
            _answer(request, _read)
    others = [request for request in requests if request["kind"] != "builtin"]
    archives = [each for each in others if each["kind"] == "folder" and is_archive(Path(each["path"]))]
    listed = [request for request in others if request in archives or _answer(request, _list)]
    for request in listed:
        if request not in archives or _answer(request, _list):  # it is unpacked to be listed, which takes long
            _answer(request, _read)


def _answer(request: dict[str, Any], act: Callable[[dict[str, Any]], None]) -> bool:
    """Act on one request, and return whether there was no error."""
    try:
        act(request)
        return True
    except (DataError, OSError) as error:
        _send(request["name"], error=str(error))
    except Exception as error:  # one dataset must not keep the others from being read
        logging.getLogger(__name__).exception("dataset %s", request["name"])
        _send(request["name"], error=f"it cannot be described: {type(error).__name__}")
    return False


def _list(request: dict[str, Any]) -> None:
    """Send how many images a folder has by the names of its files."""
    if request["kind"] != "folder":
        return
    request["path"] = str(_place(request))
    files = list_files(request["name"], Path(request["path"]), has_labels=request.get("has_labels", True))
    labels = {which: [label for _, label in files.splits[which]] for which in ("train", "test")}
    counts = {which: len(entries) for which, entries in files.splits.items()}
    by_class = class_counts(labels, len(files.classes))
    _send(request["name"], listed={"counts": counts, "classes": list(files.classes), "class_counts": by_class})


def _read(request: dict[str, Any]) -> None:
    """Read a dataset's content and send its description."""
    told_at = time.monotonic()

    def tell(share: float) -> None:
        nonlocal told_at
        if (now := time.monotonic()) - told_at >= _TELL_SECONDS:
            told_at = now
            _send(request["name"], share=round(share, 4))

    lists = {name: Path(path) for name, path in request["lists"].items()}
    cache = Path(request["cache"]) if request["kind"] == "folder" else None
    path = None if request["path"] is None else Path(request["path"])
    has_labels = request.get("has_labels", True)
    described = describe(request["name"], request["kind"], path, cache, lists, tell, has_labels=has_labels)
    _send(request["name"], description=description_json(described), path=request["path"])


def _place(request: dict[str, Any]) -> Path:
    """Return where a folder's images are: an archive is unpacked beside the cache of its description."""
    path = Path(request["path"])
    if not is_archive(path):
        return path
    place = Path(request["cache"]).with_suffix("")
    return archive.source(request["name"], archive.unpacked(request["name"], path, place))


def _send(name: str, **content: Any) -> None:
    write_line(visible_json(json.dumps({"name": name, **content})))
    sys.stdout.flush()


def _end_with_the_parent(parent: int) -> None:
    """End this process when the process that started it has ended, also by a kill."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_the_parent, args=(os.getppid(),), daemon=True).start()
    with contextlib.suppress(OSError):
        os.nice(_NICENESS)
    main(sys.stdin)
