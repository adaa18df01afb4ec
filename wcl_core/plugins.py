"""What else is installed here: backbones, datasets and methods that other distributions bring as entry points.

    [project.entry-points."wcl.backbones"]          [project.entry-points."wcl.methods"]
    my-net = "my_package.networks:build"            my-method = "my_package.options:MyMethod"
    [project.entry-points."wcl.datasets"]
    my-set = "my_package.images:load"

    wcl.backbones   build(config: BackboneConfig, image_size: int) -> torch.nn.Module       see `backbones`
    wcl.datasets    load(cache: pathlib.Path) -> wcl_core.data.builtin.Source               see `data.builtin`
    wcl.methods     a subclass of wcl_core.config.MethodOptions, without torch, and
                    its build(spec: PretrainSpec) -> wcl_core.methods.base.Method                  see `method`

An operator installs them beside server and workers; a spec names one, and no client can send one.  Names are read from
the installed distributions' metadata, so asking for them imports neither the plugin nor torch; a method's options are
imported where a spec names it.  An entry point whose
extra names a distribution (`timm = "…:build [timm]"`) counts only where that one is installed.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib.metadata import EntryPoint, PackageNotFoundError, distribution, entry_points
from typing import Any, Literal

Group = Literal["wcl.backbones", "wcl.datasets", "wcl.methods"]


class PluginError(ValueError):
    """A plugin is absent, there twice, cannot be imported, or is not what its group asks for."""


def names(group: Group) -> tuple[str, ...]:
    """The installed plugins of a group, sorted."""
    return tuple(sorted({entry.name for entry in _entries(group, tuple(sys.path))}))


def load(group: Group, name: str) -> Any:
    """Import a plugin.

    Raises:
        PluginError: it is not installed here, two distributions bring it, or importing it fails.
    """
    found = {entry.value: entry for entry in _entries(group, tuple(sys.path)) if entry.name == name}
    if len(found) != 1:
        reason = f"two distributions bring it: {', '.join(sorted(found))}" if found else "it is not installed here"
        raise PluginError(f"plugin {name} of {group}: {reason}")
    (entry,) = found.values()
    try:
        return entry.load()
    except Exception as error:  # a plugin's import runs anything
        raise PluginError(f"plugin {name} of {group} cannot be imported: {type(error).__name__}: {error}") from error


@cache
def _entries(group: Group, _path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Reading all metadata takes milliseconds, so it is done once for each search path."""
    return tuple(entry for entry in entry_points(group=group) if all(map(_is_installed, entry.extras)))


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True
