"""Canonical JSON: equal values have one text and one digest."""

from __future__ import annotations

from wcl_core.digests import canonical_json, digest_of


def test_the_order_of_keys_does_not_change_the_digest() -> None:
    assert digest_of({"b": [1, 2], "a": {"d": None, "c": 0.5}}) == digest_of({"a": {"c": 0.5, "d": None}, "b": [1, 2]})
    assert digest_of([1, 2]) != digest_of([2, 1])


def test_canonical_json_has_sorted_keys_and_no_spaces() -> None:
    assert canonical_json({"b": [1, 2], "a": "é"}) == '{"a":"\\u00e9","b":[1,2]}'
