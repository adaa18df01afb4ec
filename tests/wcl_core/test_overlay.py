"""Nested spec dicts: overlays, and differences between two of them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wcl_core.config.overlay import (
    blocking_parent,
    changed_fields,
    changes_from,
    differences,
    leaves,
    merged,
    overlaid,
    with_fields,
)

_VALUES = st.one_of(st.integers(0, 2), st.lists(st.integers(0, 1), max_size=2))
_SPECS = st.recursive(
    st.dictionaries(st.sampled_from("abc"), _VALUES, max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("abc"), st.one_of(_VALUES, inner), max_size=3),
    max_leaves=8,
)


def test_objects_merge_field_by_field_and_all_else_whole() -> None:
    base = {"loss": {"temperature": 0.1, "weak_weight": 1}, "shares": [1, 2], "map": {"images": 9}, "seed": 0}
    overrides = {"loss": {"temperature": 0.5}, "shares": [3], "map": None, "seed": {"odd": 1}}

    assert merged(base, overrides) == {
        "loss": {"temperature": 0.5, "weak_weight": 1},
        "shares": [3],
        "map": None,
        "seed": {"odd": 1},
    }


def test_dotted_names_set_fields_and_an_object_replaces_what_is_in_the_way() -> None:
    base = {"loss": {"temperature": 0.1}, "map": None, "seed": 0}

    assert with_fields(base, {"loss.temperature": 0.5, "loss.new.deep": 1, "map.images": 9, "seed": 1}) == {
        "loss": {"temperature": 0.5, "new": {"deep": 1}},
        "map": {"images": 9},
        "seed": 1,
    }


@pytest.mark.parametrize(
    ("name", "parent"),
    [
        ("seed", None),
        ("loss.temperature", None),
        ("new.deep.er", None),
        ("seed.x", "seed"),
        ("loss.temperature.x", "temperature"),
    ],
)
def test_a_value_along_the_path_blocks_a_name(name: str, parent: str | None) -> None:
    assert blocking_parent({"loss": {"temperature": 0.1}, "seed": 0}, name) == parent


def test_leaves_have_dotted_names_and_lists_are_whole() -> None:
    spec = {"a": {"b": 1, "c": {"d": [1, 2]}}, "e": {}, "f": None}

    assert list(leaves(spec)) == [("a.b", 1), ("a.c.d", [1, 2]), ("e", {}), ("f", None)]


def test_changed_fields_keep_their_nesting() -> None:
    base = {"a": {"b": 1, "c": 2}, "d": [1], "e": 5}

    assert changed_fields({"a": {"b": 1, "c": 3}, "d": [1], "e": 6, "f": 7}, base) == {"a": {"c": 3}, "e": 6, "f": 7}


def test_differences_have_both_values_and_a_missing_field_is_null() -> None:
    result = list(differences({"a": {"b": 1, "d": [1, 2]}, "e": {"f": 1}}, {"a": {"b": 2, "d": [1, 2]}, "e": None}))

    assert result == [(("a", "b"), 1, 2), (("e",), {"f": 1}, None)]


@given(_SPECS, _SPECS)
def test_no_function_changes_its_arguments(first: dict[str, Any], second: dict[str, Any]) -> None:
    before = copy.deepcopy((first, second))
    merged(first, second)
    with_fields(first, dict(leaves(second)))
    changed_fields(first, second)
    list(differences(first, second))

    assert (first, second) == before


@given(_SPECS, _SPECS)
def test_changed_fields_laid_over_the_base_give_the_spec(base: dict[str, Any], changes: dict[str, Any]) -> None:
    spec = merged(base, changes)

    assert merged(base, changed_fields(spec, base)) == spec


@given(_SPECS)
def test_leaves_set_one_by_one_give_the_spec(spec: dict[str, Any]) -> None:
    assert with_fields({}, dict(leaves(spec))) == spec


# --- fields that follow others ---------------------------------------------------------------------------------------

RUN = {
    "epochs": 200,
    "warmup_epochs": 10,
    "weak_augmentation_epochs": 15,
    "backbone": {"name": "tiny", "stem": "small", "width": 16},
    "method": "plugin",
    "method_options": {"gamma": 2},
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"epochs": 6}, {"warmup_epochs": 0.3, "weak_augmentation_epochs": 0}),
        ({"epochs": 400}, {"warmup_epochs": 20, "weak_augmentation_epochs": 30}),
        ({"epochs": 200}, {}),
        ({"epochs": 6, "warmup_epochs": 10}, {"weak_augmentation_epochs": 0}),
        ({"epochs": "six"}, {}),
        ({"epochs": True}, {}),
        ({"backbone": {"name": "resnet18"}}, {"backbone": {"name": "resnet18", "stem": "small", "width": 64}}),
        (
            {"backbone": {"name": "resnet18", "width": 8}},
            {"backbone": {"name": "resnet18", "stem": "small", "width": 8}},
        ),
        ({"backbone": {"name": "tiny"}}, {}),
        ({"backbone": {"stem": "stride2"}}, {}),
        ({"method": "wcl"}, {"method_options": {}}),
    ],
)
def test_a_changed_spec_keeps_its_shape(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    spec = overlaid(RUN, changes)

    assert spec == merged(RUN, changes) | expected
    assert overlaid(RUN, changes_from(RUN, spec)) == spec


def test_changes_leave_out_the_fields_that_follow() -> None:
    assert changes_from(RUN, overlaid(RUN, {"epochs": 6, "seed": 1})) == {"epochs": 6, "seed": 1}


def test_lengths_of_a_spec_without_epochs_stay() -> None:
    assert overlaid({"warmup_epochs": 10}, {"epochs": 6}) == {"warmup_epochs": 10, "epochs": 6}


def test_features_of_another_kind_have_their_own_fields_only() -> None:
    base = {"features": {"kind": "checkpoint", "checkpoint_id": "x"}, "protocols": ["knn"]}

    assert overlaid(base, {"features": {"kind": "pixels"}}) == {"features": {"kind": "pixels"}, "protocols": ["knn"]}
