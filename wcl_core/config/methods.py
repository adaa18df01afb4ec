"""The methods that a spec may name: their options, the parts of a spec that each can use, and their titles."""

from __future__ import annotations

import contextlib
from typing import Any, ClassVar, Literal, get_args

from wcl_core import plugins
from wcl_core.config.fields import SpecModel

Ability = Literal["weak_labels", "multi_crop", "momentum"]


class MethodOptions(SpecModel):
    """The `method_options` of a spec for one method, and all facts about the method that the service needs.

    A plugin of the group `wcl.methods` is a subclass: its fields are the options. They are validated wherever specs
    are, so the module of the plugin must not import torch. `build` may: it runs in the training process only.

    Attributes:
        abilities: the parts of a spec that the method can use.
        title: as pages show the method; its name in a spec unless set.
        why_no_weak_labels: the sentence that a page shows instead of weak-label groups, for a method without them.
    """

    abilities: ClassVar[frozenset[Ability]] = frozenset()
    title: ClassVar[str] = ""
    why_no_weak_labels: ClassVar[str] = "This method makes no weak labels, so there are no groups to show."

    def build(self, spec: Any) -> Any:
        """Return the method, a `wcl_core.methods.base.Method`, for a `PretrainSpec`."""
        raise NotImplementedError(f"{type(self).__name__} builds no method")


class _WclOptions(MethodOptions):
    abilities = frozenset(get_args(Ability))
    title = "WCL"


class _SimClrOptions(MethodOptions):
    abilities = frozenset({"multi_crop", "momentum"})
    title = "SimCLR"
    why_no_weak_labels = "SimCLR makes no weak labels: each image is its own class, so there are no groups to show."


_BUILTIN: dict[str, type[MethodOptions]] = {"wcl": _WclOptions, "simclr": _SimClrOptions}


def method_names() -> tuple[str, ...]:
    """Return every method that a spec may name on this machine."""
    return (*_BUILTIN, *plugins.names("wcl.methods"))


def options_of(method: str) -> type[MethodOptions]:
    """Return the options class of a method.

    Raises:
        PluginError: no such method is installed on this machine, or its plugin is no subclass of `MethodOptions`.
    """
    if method in _BUILTIN:
        return _BUILTIN[method]
    loaded = plugins.load("wcl.methods", method)
    if not (isinstance(loaded, type) and issubclass(loaded, MethodOptions)):
        raise plugins.PluginError(f"plugin {method} of wcl.methods is no subclass of wcl_core.config.MethodOptions")
    return loaded


def method_title(method: str) -> str:
    """Return the title of a method; the name itself for a method that is not installed on this machine."""
    with contextlib.suppress(plugins.PluginError):
        return options_of(method).title or method
    return method


def twin_of(method: str) -> str:
    """Return the method of the twin: SimCLR, or for SimCLR itself WCL."""
    return "wcl" if method == "simclr" else "simclr"


def why_no_weak_labels(method: str) -> str | None:
    """Return the sentence on why a method has no weak labels; None if it has some or is not installed here."""
    with contextlib.suppress(plugins.PluginError):
        options = options_of(method)
        return None if "weak_labels" in options.abilities else options.why_no_weak_labels
    return None


def check_ability(method: str | None, ability: Ability, field: str) -> None:
    """Raise if the method of a spec cannot use a part of the spec.

    Raises:
        ValueError: the method lacks the ability; the message names field and method.
    """
    if method is not None and ability not in options_of(method).abilities:
        raise ValueError(f"{field} needs {_NEEDED[ability]}, which method {method} does not have; leave it out")


_NEEDED: dict[Ability, str] = {
    "weak_labels": "weak labels",
    "multi_crop": "a loss for small crops",
    "momentum": "a loss with separate keys",
}
