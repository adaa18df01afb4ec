"""Which methods there are, which parts of a spec each can use, and what else it may be told."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, get_args

from wcl_core import plugins
from wcl_core.config.fields import SpecModel

Ability = Literal["weak_labels", "multi_crop", "momentum"]


class MethodOptions(SpecModel):
    """The `method_options` of a spec for one method, and the method itself.

    A plugin of the group `wcl.methods` is a subclass: its fields are the options, validated wherever specs are, so its
    module must not import torch.  `build` may, and runs in the training process alone.
    """

    abilities: ClassVar[frozenset[Ability]] = frozenset()

    def build(self, spec: Any) -> Any:
        """The method: a `wcl_core.methods.base.Method` for a `PretrainSpec`."""
        raise NotImplementedError(f"{type(self).__name__} builds no method")


class _WclOptions(MethodOptions):
    abilities = frozenset(get_args(Ability))


class _SimClrOptions(MethodOptions):
    abilities = frozenset({"multi_crop", "momentum"})


_BUILTIN: dict[str, type[MethodOptions]] = {"wcl": _WclOptions, "simclr": _SimClrOptions}


def method_names() -> tuple[str, ...]:
    """Every method that a spec may name here."""
    return (*_BUILTIN, *plugins.names("wcl.methods"))


def options_of(method: str) -> type[MethodOptions]:
    """What a method may be told.

    Raises:
        PluginError: there is no such method here, or it is none.
    """
    if method in _BUILTIN:
        return _BUILTIN[method]
    found = plugins.load("wcl.methods", method)
    if not (isinstance(found, type) and issubclass(found, MethodOptions)):
        raise plugins.PluginError(f"plugin {method} of wcl.methods is no subclass of wcl_core.config.MethodOptions")
    return found


def check_ability(method: str | None, ability: Ability, field: str) -> None:
    """Refuse a part of a spec that its method cannot use.

    Raises:
        ValueError: naming field and method.
    """
    if method is not None and ability not in options_of(method).abilities:
        raise ValueError(f"{field} needs {_NEEDED[ability]}, which {method} does not have")


_NEEDED: dict[Ability, str] = {
    "weak_labels": "weak labels",
    "multi_crop": "a loss of small crops",
    "momentum": "a loss with keys of their own",
}
