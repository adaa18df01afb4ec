"""Write `wcl_client/async_client.py`, the asynchronous client, from the sources of the synchronous one.

    PYTHONPATH=. python docs/write_async_client.py

Functions that wait become coroutines, calls of them are awaited, and generators become asynchronous ones.  All else is
imported from the sources, so each route has one home.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent
TARGET: Final = ROOT / "wcl_client" / "async_client.py"
_SOURCES: Final = ("connection", "sweeps", "download", "api")
_LEFT_OUT: Final = {"run", "train"}  # they return objects for notebooks, which are synchronous
_CLASSES: Final = {"Connection": "AsyncConnection", "SweepClient": "AsyncSweepClient", "WclClient": "AsyncWclClient"}
_NAMES: Final = {**_CLASSES, "Iterator": "AsyncIterator", "__enter__": "__aenter__", "__exit__": "__aexit__"}
_ATTRIBUTES: Final = {
    ("httpx", "Client"): "AsyncClient",
    ("time", "sleep"): "asyncio.sleep",
    ("response", "read"): "aread",
    ("response", "iter_lines"): "aiter_lines",
    ("response", "iter_raw"): "aiter_raw",
    ("response", "close"): "aclose",
    ("_http", "close"): "aclose",
}
_WAITING: Final = {("time", "sleep"), ("response", "read"), ("response", "close")} | {
    (client, verb) for client in ("http", "_http") for verb in ("send", "put", "get", "head", "close")
}
_THREADED: Final = {"_verify"}  # it hashes a whole file, so it runs beside the event loop
_HEADER: Final = '''"""`AsyncWclClient`: `WclClient` for asyncio, with the same methods, results and errors.

docs/write_async_client.py writes this file from the sources of `WclClient`: change these, and run it.
"""

# ruff: noqa: ASYNC240 (files are read and written in small parts between awaits)

from __future__ import annotations

import asyncio
'''
_Function = ast.FunctionDef


def _called(node: ast.Call) -> tuple[str, str]:
    """Return the object and the name of a call, such as (`_http`, `send`) for `self._http.send()`."""
    function = node.func
    if isinstance(function, ast.Name):
        return "", function.id
    if not isinstance(function, ast.Attribute):
        return "", ""
    owner = function.value
    return owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(
        owner, ast.Attribute
    ) else "", function.attr


def _is_generator(function: _Function) -> bool:
    return any(isinstance(node, ast.Yield | ast.YieldFrom) for node in ast.walk(function))


class _Sources:
    """The parsed sources, and which of their functions wait."""

    def __init__(self) -> None:
        self.texts = {name: (ROOT / "wcl_client" / f"{name}.py").read_bytes() for name in _SOURCES}
        self.trees = {name: ast.parse(text) for name, text in self.texts.items()}
        functions = [node for tree in self.trees.values() for node in ast.walk(tree) if isinstance(node, _Function)]
        self.generators = {each.name for each in functions if _is_generator(each)}
        self.waiting = set(self.generators)
        while more := {each.name for each in functions if self._waits(each)} - self.waiting:
            self.waiting |= more

    def _waits(self, function: _Function) -> bool:
        return function.name in ("__enter__", "__exit__") or any(
            isinstance(node, ast.Call) and (self.is_awaited(node) or _called(node)[1] == "stream")
            for node in ast.walk(function)
        )

    def is_awaited(self, node: ast.Call) -> bool:
        owner, name = _called(node)
        if not owner and name in _THREADED:
            return True
        is_own = owner in ("", "self") and name in self.waiting - self.generators
        return (owner, name) in _WAITING or is_own

    def kept(self, tree: ast.Module) -> Iterator[ast.stmt]:
        """Yield the statements of a source that the asynchronous client has in a form of its own."""
        for node in tree.body:
            is_class = isinstance(node, ast.ClassDef) and node.name in _CLASSES
            if is_class or (isinstance(node, _Function) and node.name in self.waiting):
                yield node


def _edits(sources: _Sources, root: ast.stmt) -> Iterator[tuple[int, int, str, int, str]]:
    """Yield (line, column, old text, order, new text) of each change."""
    left_out = [each for each in ast.walk(root) if isinstance(each, _Function) and each.name in _LEFT_OUT]
    skipped = {id(part) for each in left_out for part in ast.walk(each)}
    statements = {id(node.value) for node in ast.walk(root) if isinstance(node, ast.Expr)}
    for node in ast.walk(root):
        if id(node) in skipped:
            continue
        if isinstance(node, _Function) and node.name in sources.waiting:
            yield node.lineno, node.col_offset, "", 0, "async "
            if node.name in _NAMES:
                yield node.lineno, node.col_offset + 4, node.name, 1, _NAMES[node.name]
        elif isinstance(node, ast.ClassDef):
            yield node.lineno, node.col_offset + 6, node.name, 1, _NAMES[node.name]
        elif isinstance(node, ast.With) and any(
            isinstance(each.context_expr, ast.Call) and _called(each.context_expr)[1] == "stream" for each in node.items
        ):
            yield node.lineno, node.col_offset, "", 0, "async "
        elif isinstance(node, ast.For) and isinstance(node.iter, ast.Call):
            owner, name = _called(node.iter)
            if (owner, name) in _ATTRIBUTES or (owner in ("", "self") and name in sources.generators):
                yield node.lineno, node.col_offset, "", 0, "async "
        elif isinstance(node, ast.Name) and node.id in _NAMES:
            yield node.lineno, node.col_offset, node.id, 1, _NAMES[node.id]
        elif isinstance(node, ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else getattr(node.value, "attr", "")
            new = _ATTRIBUTES.get((owner, node.attr))
            if new and node.end_lineno is not None and node.end_col_offset is not None:
                old = f"time.{node.attr}" if owner == "time" else node.attr
                yield node.end_lineno, node.end_col_offset - len(old), old, 1, new
        elif isinstance(node, ast.YieldFrom) and node.value.end_lineno and node.value.end_col_offset:
            yield node.lineno, node.col_offset, "yield from", 1, "for each in"
            indent = " " * (node.col_offset + 4)
            yield node.value.end_lineno, node.value.end_col_offset, "", 2, f":\n{indent}yield each"
        if isinstance(node, ast.Call) and sources.is_awaited(node) and node.end_lineno and node.end_col_offset:
            if _called(node)[1] in _THREADED:
                name = _called(node)[1]
                yield node.lineno, node.col_offset, f"{name}(", 1, f"asyncio.to_thread({name}, "
            opening, closing = ("", "") if id(node) in statements else ("(", ")")
            yield node.lineno, node.col_offset, "", 0, f"{opening}await "
            yield node.end_lineno, node.end_col_offset, "", 2, closing


def _rewritten(sources: _Sources, text: bytes, root: ast.stmt) -> str:
    lines = text.splitlines(keepends=True)
    for line, column, old, _, new in sorted(
        set(_edits(sources, root)), key=lambda each: (each[0], each[1], each[3]), reverse=True
    ):
        row = lines[line - 1]
        assert row[column : column + len(old)] == old.encode(), (row, column, old)
        lines[line - 1] = row[:column] + new.encode() + row[column + len(old) :]
    functions = [each for each in ast.walk(root) if isinstance(each, _Function) and each.name in _LEFT_OUT]
    for function in sorted(functions, key=lambda each: -each.lineno):
        del lines[function.lineno - 1 : (function.end_lineno or 0) + 1]
        root.end_lineno = (root.end_lineno or 0) - ((function.end_lineno or 0) + 2 - function.lineno)
    return b"".join(lines[root.lineno - 1 : root.end_lineno]).decode()


def generated() -> str:
    """Return the text of the asynchronous client."""
    sources = _Sources()
    imports, bodies = [_HEADER], []
    for name, tree in sources.trees.items():
        kept = list(sources.kept(tree))
        bodies += [_rewritten(sources, sources.texts[name], node) for node in kept]
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and node.module != "__future__":
                aliases = [each.name for each in node.names if each.name not in _CLASSES | {"download": ""}]
                names = [_NAMES.get(each, each) for each in aliases]
                imports += [f"from {node.module} import {', '.join(names)}\n"] if names else []
            elif isinstance(node, ast.Import):
                imports.append(ast.unparse(node) + "\n")
        own = [
            node.name
            if isinstance(node, _Function | ast.ClassDef)
            else ast.unparse(getattr(node, "target", None) or node.targets[0])
            for node in tree.body
            if node not in kept and isinstance(node, _Function | ast.ClassDef | ast.Assign | ast.AnnAssign)
        ]
        imports.append(f"from wcl_client.{name} import {', '.join(own)}\n" if own else "")
    text = "".join(imports) + "\n\n" + "\n\n".join(bodies)
    ruff = [sys.executable, "-m", "ruff"]
    name = ["--stdin-filename", str(TARGET)]
    for command in (
        [*ruff, "check", "--fix-only", "--quiet", "--select", "F401,F811,I,UP034", *name, "-"],
        [*ruff, "format", *name, "-"],
    ):
        text = subprocess.run(command, input=text, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    return text


if __name__ == "__main__":
    TARGET.write_text(generated(), encoding="utf-8")
