"""Plugins: backbones, datasets and methods that other distributions provide as entry points.

    [project.entry-points."wcl.backbones"]          [project.entry-points."wcl.methods"]
    my-net = "my_package.networks:build"            my-method = "my_package.options:MyMethod"
    [project.entry-points."wcl.datasets"]
    my-set = "my_package.images:load"

    wcl.backbones   build(config: BackboneConfig, image_size: int) -> torch.nn.Module       see `networks.backbones`
    wcl.datasets    load(cache: pathlib.Path) -> wcl_core.data.builtin.Source               see `data.builtin`
    wcl.methods     a subclass of wcl_core.config.MethodOptions, without torch, and
                    its build(spec: PretrainSpec) -> wcl_core.methods.base.Method           see `methods.base`

An operator installs plugins beside the server and the workers.  A spec names a plugin; a client cannot send one.  The
names are read from the metadata of the installed distributions, which imports neither the plugin nor torch.  The
options of a method are imported when a spec names it.  An entry point whose extra names a distribution
(`timm = "…:build [timm]"`) counts only if that distribution is installed.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib.metadata import EntryPoint, PackageNotFoundError, distribution, entry_points
from typing import Any, Literal

Group = Literal["wcl.backbones", "wcl.datasets", "wcl.methods"]


class PluginError(ValueError):
    """A plugin is missing, installed twice, cannot be imported, or is not an object that its group requires."""


def names(group: Group) -> tuple[str, ...]:
    """Return the names of the installed plugins of a group, sorted."""
    return tuple(sorted({entry.name for entry in _entries(group, tuple(sys.path))}))


def load(group: Group, name: str) -> Any:
    """Import a plugin and return its object.

    Raises:
        PluginError: when it is not installed, two distributions provide it, or importing it fails.
    """
    entries = {entry.value: entry for entry in _entries(group, tuple(sys.path)) if entry.name == name}
    if not entries:
        raise PluginError(f"plugin {name} of {group} is not installed here")
    if len(entries) > 1:
        raise PluginError(f"plugin {name} of {group}: two distributions provide it: {', '.join(sorted(entries))}")
    (entry,) = entries.values()
    try:
        return entry.load()
    except Exception as error:  # importing a plugin runs arbitrary code
        raise PluginError(f"plugin {name} of {group} cannot be imported: {type(error).__name__}: {error}") from error


@cache
def _entries(group: Group, _path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Read the entry points once for each search path, because reading all metadata takes milliseconds."""
    return tuple(entry for entry in entry_points(group=group) if all(map(_is_installed, entry.extras)))


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True
