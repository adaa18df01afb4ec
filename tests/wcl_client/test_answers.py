"""The client's types name what the server sends."""

from __future__ import annotations

import pytest

from api.rest import responses as sent
from wcl_client import responses as known


@pytest.mark.parametrize(("client", "server"), [(known.Checkpoint, sent.CheckpointAnswer)])
def test_no_field_of_an_answer_is_missing(client: type, server: type) -> None:
    assert set(client.__annotations__) == set(server.__annotations__)
