"""Webhooks over REST: who manages which one, secrets that no response repeats, tests and repeats by request."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from jobs.models import WebhookDelivery
from jobs.settings import Settings
from jobs.webhooks.sender import Sender
from tests.api.served import Served, assert_problem
from tests.jobs import rows
from tests.receiver import Receiver, receiving

BODY = {"name": "night", "url": "https://hooks.example/hook?token=abc", "events": ["job.failed"]}


@pytest.fixture
def receiver() -> Any:
    with receiving() as started:
        yield started


def create(client: httpx.Client, **changes: Any) -> dict[str, Any]:
    response = client.post("/v1/webhooks", json=BODY | changes)
    assert response.status_code == 201, response.text
    created: dict[str, Any] = response.json()
    return created


def test_the_secret_is_in_the_first_response_only(small: Served) -> None:
    client = small.client()
    created = create(client)
    secret = created.pop("secret")
    address = f"/v1/webhooks/{created['id']}"

    assert secret.startswith("whsec_")
    assert client.get(address).json() == created
    assert client.get("/v1/webhooks").json() == {"items": [created]}
    everything = client.get(address).text + client.patch(address, json={"name": "n"}).text
    assert secret not in everything
    assert "abc" not in everything + client.get("/v1/webhooks").text


def test_the_addresses_of_chat_services_are_secrets(small: Served) -> None:
    for form in ("slack", "discord", "ntfy"):
        shown = create(small.client(), url="https://hooks.example/services/T0/abc", format=form)
        assert shown["url"] == "https://hooks.example/…"


def test_a_change_keeps_the_other_fields(small: Served) -> None:
    client = small.client()
    created = create(client, tag="night", rules=[{"metric": "loss", "direction": "above", "value": 3}])
    address = f"/v1/webhooks/{created['id']}"

    changed = client.patch(address, json={"tag": None, "enabled": False, "stalled_minutes": 30}).json()
    assert (changed["tag"], changed["enabled"], changed["stalled_minutes"]) == (None, False, 30)
    assert changed["rules"] == created["rules"]
    assert_problem(client.post(f"{address}/test"), 409)
    assert client.patch(address, json={"enabled": True}).json()["disabled_reason"] is None
    assert_problem(client.patch(address, json={"url": "http://127.0.0.1/"}), 422, "/url")
    assert_problem(client.patch(address, json={"events": [], "rules": []}), 422, "/events")
    assert client.delete(address).status_code == 204
    assert_problem(client.get(address), 404)


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"url": "http://169.254.169.254/latest"}, "/url"),
        ({"url": "https://a:b@hooks.example/"}, "/url"),
        ({"url": "https://ntfy.sh/", "format": "ntfy"}, "/url"),
        ({"events": []}, "/events"),
        ({"events": ["job.exploded"]}, "/events/0"),
        ({"rules": [{"metric": "loss", "direction": "over", "value": 1}]}, "/rules/0/direction"),
        ({"format": "fax"}, "/format"),
        ({"stalled_minutes": 0}, "/stalled_minutes"),
        ({"secret": "whsec_mine"}, "/secret"),
    ],
)
def test_a_wrong_field_is_named(small: Served, changes: dict[str, Any], pointer: str) -> None:
    assert_problem(small.client().post("/v1/webhooks", json=BODY | changes), 422, pointer)


def test_a_key_without_admin_manages_its_own_webhooks_only(small: Served) -> None:
    admin, first, second = small.client(), small.client("read", "submit"), small.client("read", "submit")
    own = create(first)
    assert own["own_jobs"]
    assert_problem(small.client("read").get("/v1/webhooks"), 403)
    for method, rest in (
        ("GET", ""),
        ("PATCH", ""),
        ("DELETE", ""),
        ("POST", "/test"),
        ("GET", "/deliveries"),
        ("POST", "/deliveries/x/redeliver"),
    ):
        json = {} if method == "PATCH" else None
        assert_problem(second.request(method, f"/v1/webhooks/{own['id']}{rest}", json=json), 404)
    assert second.get("/v1/webhooks").json() == {"items": []}
    assert [each["id"] for each in admin.get("/v1/webhooks").json()["items"]] == [own["id"]]


def test_a_test_message_arrives_and_is_sent_again_on_request(small: Served, receiver: Receiver) -> None:
    client = small.client()
    created = create(client)  # this server allows public addresses only; the sender of the test allows this one
    address = f"/v1/webhooks/{created['id']}"
    port = receiver.url.rpartition(":")[2]
    client.patch(address, json={"url": f"http://hooks.example:{port}/hook"}).raise_for_status()
    sender = Sender(
        small.database, Settings(webhook_networks=["127.0.0.0/8"]), small.url, resolver=lambda *_: ["127.0.0.1"]
    )
    pending = client.post(f"{address}/test")
    assert (pending.status_code, pending.json()["state"]) == (202, "pending")
    assert receiver.requests == []  # no request thread sends

    def send() -> list[dict[str, Any]]:
        for thread in sender.poll():
            thread.join()
        items: list[dict[str, Any]] = client.get(f"{address}/deliveries").json()["items"]
        return items

    (delivered,) = send()
    assert (delivered["id"], delivered["state"], delivered["type"]) == (
        pending.json()["id"],
        "delivered",
        "webhook.test",
    )
    assert client.post(f"{address}/deliveries/{delivered['id']}/redeliver").status_code == 202
    assert_problem(client.post(f"{address}/deliveries/{delivered['id']}/redeliver"), 409)
    assert [each["attempts"] for each in send()] == [2]
    assert [each.id for each in receiver.requests] == [delivered["id"]] * 2
    assert receiver.requests[1].is_signed(created["secret"])
    assert 'wcl_webhook_deliveries{state="delivered"} 1.0' in client.get("/metrics").text


def test_a_job_that_is_cancelled_over_rest_is_a_message(served: Served) -> None:
    client = served.client("read", "submit")
    created = create(client, events=["job.cancelled"])
    own = client.post(
        "/v1/jobs", json={"kind": "pretrain", "spec": {"data": {"name": "digits", "image_size": 8}}}
    ).json()
    other = rows.submit(served.database)
    for job_id in (own["id"], other):
        assert served.client().post(f"/v1/jobs/{job_id}/cancel").is_success

    items = client.get(f"/v1/webhooks/{created['id']}/deliveries").json()["items"]
    assert [(each["type"], each["job_id"]) for each in items] == [("job.cancelled", own["id"])]


def test_the_page_creates_tests_and_removes_a_webhook(small: Served) -> None:
    browser, own = small.browser(), {"Origin": small.url}
    form = {"name": "<b>night</b>", "url": "https://hooks.example/hook?token=secret", "events": ["job.failed"]}

    def shown(address: str = "/webhooks") -> str:
        return browser.get(address).text

    created = browser.post("/webhooks", data=form | {"key": "a"}, headers=own)
    (secret,) = set(re.findall(r"whsec_[\w+/=-]+", created.text))
    again = browser.post("/webhooks", data=form | {"key": "a"}, headers=own)
    log = again.headers["location"]
    page = shown(log)
    assert (again.status_code, page.count("&lt;b&gt;night&lt;/b&gt;")) == (303, 3)  # its row, its button, its log
    assert secret not in page
    assert "token=" not in page
    assert "No messages yet." in page

    webhook_id = log.partition("=")[2]
    assert browser.post(f"/webhooks/{webhook_id}/test", headers=own).headers["location"] == log
    assert "test message" in shown(log).partition('id="log"')[2]
    assert "Send again" not in shown(log)
    failed = update(WebhookDelivery).values(state="failed", last_error="it <i>fell</i>", attempts=3)
    small.database.write(lambda session: session.execute(failed))
    assert "it &lt;i&gt;fell&lt;/i&gt;" in shown(log)
    (address,) = re.findall(r'action="([^"]+/redeliver)"', shown(log))
    assert browser.post(address, headers=own).headers["location"] == log
    assert "pending" in shown(log)
    assert browser.post(f"/webhooks/{webhook_id}/disable", headers=own).status_code == 303
    assert "disabled by a user" in shown()
    assert browser.post(f"/webhooks/{webhook_id}/test", headers=own).status_code == 409
    assert browser.post(f"/webhooks/{webhook_id}/enable", headers=own).status_code == 303
    assert browser.post(f"/webhooks/{webhook_id}/remove", headers=own).headers["location"] == "/webhooks"
    assert "night" not in shown()
    for wrong in ({"url": "http://127.0.0.1/"}, {"events": []}, {"name": " "}, {"events": ["job.born"]}):
        assert browser.post("/webhooks", data=form | {"key": "b"} | wrong, headers=own).status_code == 422


def test_an_administrator_chooses_whose_jobs_a_webhook_is_for(small: Served) -> None:
    admin, member = small.client(), small.client("read", "submit")
    member_id = create(member)["owner_id"]
    hook = create(admin, by=member_id)

    assert (hook["owner_id"], hook["own_jobs"]) == (member_id, False)
    assert create(member, by=member_id)["own_jobs"]
    assert_problem(admin.post("/v1/webhooks", json=BODY | {"by": "absent"}), 422, "/by")
    admin_id = hook["created_by"]
    refused = [member.post("/v1/webhooks", json=BODY | {"by": by}) for by in (admin_id, "absent")]
    for response in refused:
        assert_problem(response, 422, "/by")
    assert refused[0].json()["errors"] == refused[1].json()["errors"]  # no answer tells which keys there are
    assert_problem(member.get(f"/v1/webhooks/{hook['id']}"), 404)  # it is the administrator's


def test_the_page_makes_rules_and_filters(small: Served) -> None:
    browser, own = small.browser(), {"Origin": small.url}
    form: dict[str, Any] = {
        "name": "lines",
        "url": "https://hooks.example/hook",
        "rule_metric": ["train/loss", "", " eval/knn_top1 "],
        "rule_direction": ["above", "above", "below"],
        "rule_value": ["5", "", "0.25"],
        "stalled_minutes": "30",
        "tag": "paper",
        "job_name": "abl<i>",
        "kind": "pretrain",
    }
    assert browser.post("/webhooks", data=form | {"key": "a"}, headers=own).status_code == 200
    hook = next(each for each in small.client().get("/v1/webhooks").json()["items"] if each["name"] == "lines")
    assert hook["events"] == []
    assert hook["rules"] == [
        {"metric": "train/loss", "direction": "above", "value": 5.0},
        {"metric": "eval/knn_top1", "direction": "below", "value": 0.25},
    ]
    assert (hook["stalled_minutes"], hook["tag"], hook["job_name"], hook["kind"]) == (30, "paper", "abl<i>", "pretrain")
    page = browser.get("/webhooks").text
    assert "train/loss above 5, eval/knn_top1 below 0.25" in page
    assert "pretrain jobs, with tag paper, whose name contains “abl&lt;i&gt;”" in page
    for wrong in (
        {"rule_value": ["much", "", "1"]},
        {"rule_value": ["inf", "", "1"]},
        {"rule_metric": ["", "", "x"]},
        {"rule_direction": ["over", "above", "below"]},
        {"stalled_minutes": "soon"},
        {"kind": "walk"},
    ):
        assert browser.post("/webhooks", data=form | {"key": "b"} | wrong, headers=own).status_code == 422


def test_the_page_of_another_key_has_its_own_webhooks_only(small: Served) -> None:
    webhook = small.client("submit").post("/v1/webhooks", json=BODY).json()
    other = small.browser("read", "submit")

    assert "No messages yet." not in other.get(f"/webhooks?webhook={webhook['id']}").text
    assert webhook["name"] not in other.get("/webhooks").text
    assert webhook["name"] in small.browser().get("/webhooks").text
