"""Imported weights on the pages: their list, the form of a job, the lineage of a run."""

from __future__ import annotations

from tests.api.rest.test_weights import DIGEST, put
from tests.api.served import Served
from tests.weight_files import TINY


def test_pages_name_imported_weights(small: Served) -> None:
    client, browser = small.client(), small.browser()
    assert "wcl weights import FILE --name NAME" in browser.get("/checkpoints").text
    put(client, name="moco-v2")

    shown = browser.get("/checkpoints").text
    assert all(text in shown for text in ("moco-v2", "tiny, stem small, width 4", DIGEST))
    assert "moco-v2" not in browser.get("/checkpoints?pinned=yes").text
    for form in ("/submit", "/sweeps/new"):
        assert f'<option value="{DIGEST}">moco-v2: tiny</option>' in browser.get(form).text
    spec = {"data": {"name": "digits", "image_size": 8}, "backbone": TINY, "weights": DIGEST}
    job_id = client.post("/v1/jobs", json={"kind": "pretrain", "spec": spec}).json()["id"]
    assert 'starts from <a href="/checkpoints#weights">moco-v2</a>' in browser.get(f"/jobs/{job_id}").text
    client.post(f"/v1/jobs/{job_id}/cancel")
    assert client.delete(f"/v1/weights/{DIGEST}").status_code == 204
    assert "starts from <b>weights that are removed</b>" in browser.get(f"/jobs/{job_id}").text


def test_the_form_takes_the_network_of_the_weights_unless_another_one_is_typed(small: Served) -> None:
    client, browser = small.client(), small.browser()
    put(client, name="moco-v2")
    body = {"kind": "pretrain", "preset": "digits-cpu", "spec.weights": DIGEST}
    origin = {"Origin": small.url}
    checked = browser.post("/submit", data={"step": "check"} | body, headers=origin)
    assert checked.status_code == 200, checked.text
    assert "width: 4" in checked.text
    other = browser.post("/submit", data={"step": "check", "spec.backbone.width": "8"} | body, headers=origin)
    assert other.status_code == 422
