"""Webhooks: which event is a message, and how messages reach a real receiver, also through failures and restarts."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from jobs import transitions, workers
from jobs.database import Database, now_ms
from jobs.errors import Conflict, Invalid, NotFound
from jobs.keys import Principal
from jobs.models import Webhook, WebhookDelivery, WebhookLevel, Worker
from jobs.reconciler import Reconciler
from jobs.settings import Settings
from jobs.webhooks import messages, sender, subscriptions, targets
from jobs.webhooks.sender import Sender, StallWatch
from tests.jobs import rows
from tests.receiver import Receiver, receiving

ADMIN = Principal("00000000-0000-7000-8000-0000000000a1", "admin", frozenset({"read", "submit", "admin"}))
OTHER = Principal("00000000-0000-7000-8000-0000000000a2", "other", frozenset({"read", "submit"}))
OPEN = Settings(webhook_networks=["127.0.0.0/8"])
CLOSED = Settings()
PAGE = "http://wcl.example:8000"
ALL = ("job.succeeded", "job.failed", "job.cancelled", "job.lost", "job.collapsed", "job.stalled", "worker.lost")
PUBLIC = "https://hooks.example/path"


@pytest.fixture
def receiver() -> Any:
    with receiving() as started:
        yield started


def add(database: Database, url: str = PUBLIC, principal: Principal = ADMIN, **fields: Any) -> tuple[str, str]:
    """Create a webhook; return its id and its secret."""
    defaults = {"name": "w", "format": "standard", "events": list(ALL), "rules": None, "stalled_minutes": 10}
    rest = dict.fromkeys(("tag", "job_name", "kind"))
    values = defaults | rest | fields

    def create(session: Any) -> tuple[str, str]:
        row, secret = subscriptions.create(session, principal, OPEN, url=url, **values)
        return row.id, secret

    return database.write(create)


def log(database: Database, webhook_id: str | None = None) -> list[WebhookDelivery]:
    with database.read() as session:
        every = select(WebhookDelivery).order_by(WebhookDelivery.id)
        return list(session.execute(every if webhook_id is None else every.filter_by(webhook_id=webhook_id)).scalars())


def types(database: Database, webhook_id: str | None = None) -> list[str]:
    return [each.type for each in log(database, webhook_id)]


def send(database: Database, settings: Settings = OPEN, **options: Any) -> None:
    """Let one server make one pass, and wait for its requests."""
    for thread in Sender(database, settings, PAGE, **options).poll():
        thread.join()


def make_due(database: Database) -> None:
    """End every backoff and every lease."""
    past = {"due_at": now_ms(), "leased_until": None}
    database.write(lambda session: session.execute(update(WebhookDelivery).values(**past)))


def failed(database: Database, **fields: Any) -> str:
    rows.add_dataset(database)
    run = rows.Run(database, rows.running(database, **fields))
    run.deliver(rows.started(), rows.end("failed", "bad_data", "no images"))
    return run.job_id


# --- which event is a message ----------------------------------------------------------------------------------------


def test_each_end_of_a_job_is_one_message(database: Database) -> None:
    add(database)
    rows.add_dataset(database)
    job_id = rows.submit(database)
    database.write(lambda session: transitions.cancel(session, job_id))
    for outcome in ("succeeded", "failed"):
        rows.Run(database, rows.running(database)).deliver(rows.started(), rows.end(outcome, None))

    assert types(database) == ["job.cancelled", "job.succeeded", "job.failed"]


def test_a_transition_that_is_rolled_back_leaves_no_message(database: Database) -> None:
    add(database)
    rows.add_dataset(database)
    job_id = rows.submit(database)

    def fail_late(session: Any) -> None:
        transitions.cancel(session, job_id)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        database.write(fail_late)

    assert (rows.status(database, job_id), types(database)) == ("queued", [])


def test_a_lost_attempt_is_a_message_and_an_end_by_loss_is_one_too(database: Database) -> None:
    only_lost, _ = add(database, events=["job.lost"])
    both, _ = add(database, events=["job.lost", "job.failed"])
    rows.add_dataset(database)
    for _ in range(3):
        claim = rows.running(database) if not log(database) else rows.claim(database)
        renewals = rows.attempts(database, claim.job_id)[-1].renewals
        database.write(lambda session, c=claim, r=renewals: transitions.reap(session, c.attempt, r))
        rows.make_due(database)

    assert types(database, only_lost) == ["job.lost"] * 3
    assert types(database, both) == ["job.lost", "job.lost", "job.failed"]


def test_a_collapse_is_a_message_before_the_end(database: Database) -> None:
    add(database)
    rows.add_dataset(database)
    run = rows.Run(database, rows.running(database))
    run.deliver(rows.started(), {"type": "warning", "reason": "collapse", "message": "rank 1"})
    run.deliver({"type": "warning", "reason": "other", "message": "no collapse"})

    assert types(database) == ["job.collapsed"]


def test_a_metric_that_passes_a_line_is_one_message_until_it_is_back(database: Database) -> None:
    rules = [{"metric": "loss", "direction": "above", "value": 2.0}]
    add(database, events=[], rules=rules)
    rows.add_dataset(database)
    run = rows.Run(database, rows.running(database))
    for step, value in enumerate([1.0, 2.0, 2.5, 3.0, None, 1.5, 4.0]):
        run.deliver(rows.metrics(step, loss=value, other=9.0))
    run.deliver(*(rows.metrics(step, loss=value) for step, value in ((10, 1.0), (11, 5.0), (12, 6.0), (13, 0.0))))

    assert [each.payload["data"]["metric"]["step"] for each in log(database)] == [2, 6, 11]
    metric = log(database)[0].payload["data"]["metric"]
    assert metric == {"name": "loss", "value": 2.5, "step": 2, "direction": "above", "line": 2.0}


def test_a_further_attempt_that_is_beyond_the_line_sends_nothing_again(database: Database) -> None:
    add(database, events=[], rules=[{"metric": "acc", "direction": "below", "value": 0.5}])
    rows.add_dataset(database)
    run = rows.Run(database, rows.running(database))
    run.deliver(rows.metrics(1, acc=0.4))
    run.end("failed", "killed")
    rows.make_due(database)
    rows.Run(database, rows.claim(database)).deliver(rows.metrics(1, acc=0.4))

    assert types(database) == ["job.metric"]


def test_a_run_that_reports_nothing_is_one_message_for_each_standstill(database: Database) -> None:
    clock = [0.0]
    watches = [StallWatch(database, lambda: clock[0]) for _ in range(2)]  # two servers

    def after(seconds: float) -> int:
        clock[0] += seconds
        for watch in watches:
            watch.poll()
        return len(log(database))

    add(database, stalled_minutes=10)
    rows.add_dataset(database)
    run = rows.Run(database, rows.running(database))
    run.deliver(rows.started())
    assert after(0) == after(599) == 0
    run.deliver()  # a renewal is no report
    assert after(1) == 1
    assert after(900) == 1
    run.deliver(rows.progress(3))
    assert after(1) == after(500) == 1
    assert after(100) == 2
    assert types(database) == ["job.stalled"] * 2


def test_a_lost_worker_is_a_message_for_webhooks_of_all_jobs(database: Database) -> None:
    everything, _ = add(database)
    add(database, tag="night")
    add(database, principal=OTHER)
    facts = {"pool": "default", "gpus": 0, "pid": 1, "datasets": {}, "spec_versions": [], "state": "idle"}
    worker = Worker(id=rows.WORKER.id, name="host-7", **facts)
    database.write(lambda session: session.add(worker))
    for heartbeats in (1, 0, 0):  # one that is not its count, and a repeat
        database.write(lambda session, h=heartbeats: workers.mark_lost(session, rows.WORKER.id, h))

    assert [(each.webhook_id, each.type) for each in log(database)] == [(everything, "worker.lost")]


@pytest.mark.parametrize(
    ("fields", "concerns"),
    [
        ({"tag": "night"}, True),
        ({"tag": "nigh"}, False),
        ({"job_name": "LONG"}, True),
        ({"job_name": "short"}, False),
        ({"kind": "pretrain"}, True),
        ({"kind": "evaluate"}, False),
        ({"events": ["job.succeeded"]}, False),
        ({"principal": OTHER}, False),
    ],
)
def test_a_filter_chooses_the_jobs(sqlite_database: Database, fields: dict[str, Any], concerns: bool) -> None:
    add(sqlite_database, **fields)
    failed(sqlite_database, name="a long run", tags=("night",))

    assert bool(log(sqlite_database)) is concerns


def test_a_key_without_admin_hears_of_its_own_jobs_and_manages_its_own_webhooks(sqlite_database: Database) -> None:
    own, _ = add(sqlite_database, principal=OTHER)
    all_jobs, _ = add(sqlite_database)
    failed(sqlite_database, created_by=OTHER.key_id)

    assert types(sqlite_database, own) == types(sqlite_database, all_jobs) == ["job.failed"]
    with sqlite_database.read() as session:
        assert [each.id for each in subscriptions.all_of(session, OTHER)] == [own]
        assert {each.id for each in subscriptions.all_of(session, ADMIN)} == {own, all_jobs}
        with pytest.raises(NotFound):
            subscriptions.get(session, OTHER, all_jobs)


# --- delivery --------------------------------------------------------------------------------------------------------


def test_a_message_is_signed_and_has_what_a_reader_needs(database: Database, receiver: Receiver) -> None:
    _, secret = add(database, f"{receiver.url}/hook?key=1")
    job_id = failed(database, name="night <1>", tags=("t",))
    send(database)
    send(database)

    (message,) = receiver.requests
    (row,) = log(database)
    assert (message.path, message.id) == ("/hook?key=1", row.id)
    assert message.is_signed(secret)
    data = message.content["data"]
    assert message.content["type"] == "job.failed"
    assert data["url"] == f"{PAGE}/jobs/{job_id}"
    job = {"name": "night <1>", "status": "failed", "reason": "bad_data", "message": "no images", "tags": ["t"]}
    assert job.items() <= data["job"].items()
    assert (row.state, row.attempts, row.last_status, row.last_error) == ("delivered", 1, 204, None)


def test_a_message_is_sent_again_with_one_id_and_one_body_until_the_receiver_takes_it(
    database: Database, receiver: Receiver
) -> None:
    receiver.answers = [(500, {}), (503, {}), (302, {"Location": f"{receiver.url}/elsewhere"}), (200, {})]
    _, secret = add(database, f"{receiver.url}/hook")
    failed(database)
    for _ in range(5):
        send(database)
        send(database)  # not due
        make_due(database)

    assert len(receiver.requests) == 4
    assert {each.path for each in receiver.requests} == {"/hook"}  # the redirect was not followed
    assert len({each.id for each in receiver.requests}) == len({each.body for each in receiver.requests}) == 1
    assert all(each.is_signed(secret) for each in receiver.requests)
    assert [(each.state, each.attempts) for each in log(database)] == [("delivered", 4)]


@pytest.mark.server
def test_a_receiver_that_is_away_gets_the_message_after_its_return(database: Database) -> None:
    with receiving() as before:
        add(database, f"{before.url}/hook")
    failed(database)
    send(database)
    (row,) = log(database)
    assert (row.state, row.last_status) == ("pending", None)
    assert row.last_error

    make_due(database)
    with receiving(int(before.url.rpartition(":")[2])) as after:
        send(database)
        assert [each.id for each in after.requests] == [row.id]


def test_a_server_that_dies_after_sending_leads_to_a_repeat_with_the_same_id(
    database: Database, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(database, f"{receiver.url}/hook")
    failed(database)

    def die(session: Any, **_: Any) -> None:
        raise RuntimeError("the process ends here")

    with monkeypatch.context() as dying:
        dying.setattr(sender, "record", die)
        send(database)
    send(database)  # the lease holds
    assert len(receiver.requests) == 1

    make_due(database)
    send(database)
    first, second = receiver.requests
    assert (first.id, first.body) == (second.id, second.body)
    assert log(database)[0].state == "delivered"


def test_servers_at_once_send_each_message_once(database: Database, receiver: Receiver) -> None:
    for _ in range(4):
        add(database, f"{receiver.url}/hook")
    failed(database)

    rows.at_once(4, lambda _: send(database))

    assert len(receiver.requests) == len({each.id for each in receiver.requests}) == 4


def test_a_slow_receiver_delays_its_own_messages_only(database: Database, receiver: Receiver) -> None:
    is_over = threading.Event()
    receiver.wait = lambda path: path == "/slow" and is_over.wait(30)
    slow, _ = add(database, f"{receiver.url}/slow")
    quick, _ = add(database, f"{receiver.url}/quick")
    rows.add_dataset(database)
    for _ in range(6):
        job_id = rows.submit(database)
        database.write(lambda session, job_id=job_id: transitions.cancel(session, job_id))
    server = Sender(database, OPEN, PAGE)
    threads: list[threading.Thread] = []
    while any(each.state == "pending" for each in log(database, quick)):
        threads += server.poll()
    assert [each.state for each in log(database, slow)] == ["pending"] * 6
    assert sum(each.path == "/slow" for each in receiver.requests) == 1
    is_over.set()
    for thread in threads:
        thread.join()


def test_a_response_that_never_ends_reaches_a_deadline(
    database: Database, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_over = threading.Event()
    monkeypatch.setattr(targets, "SECONDS", 0.3)
    receiver.wait = lambda path: is_over.wait(30)
    add(database, f"{receiver.url}/hook")
    failed(database)
    send(database)
    is_over.set()

    (row,) = log(database)
    assert (row.state, row.last_status) == ("pending", None)


def test_gone_disables_the_webhook(database: Database, receiver: Receiver) -> None:
    receiver.answers = [(410, {})]
    webhook_id, _ = add(database, f"{receiver.url}/hook")
    failed(database)
    send(database)
    other = rows.submit(database)
    database.write(lambda session: transitions.cancel(session, other))

    with database.read() as session:
        row = session.get_one(Webhook, webhook_id)
    assert row.disabled_at is not None
    assert "410" in (row.disabled_reason or "")
    assert [each.state for each in log(database)] == ["failed"]  # and no message about the second job


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("120", 120), ("99999999999", 86_400), ("date", 3_600), ("soon", 0), ("-5", 0), ("\u00b2", 0)],
)
def test_retry_after_is_honoured(sqlite_database: Database, receiver: Receiver, header: str, seconds: int) -> None:
    if header == "date":
        header = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    receiver.answers = [(429, {"Retry-After": header})]
    add(sqlite_database, f"{receiver.url}/hook")
    failed(sqlite_database)
    send(sqlite_database)

    with sqlite_database.read() as session:
        wait_ms = session.execute(select(WebhookDelivery.due_at - now_ms())).scalar_one()
    assert seconds - 60 < wait_ms / 1000 <= max(seconds, sender._FIRST_WAIT_SECONDS)


def test_the_backoff_reaches_hours_and_the_tries_go_on_for_days() -> None:
    waits = [sender.wait_seconds(attempt) for attempt in range(1, 40)]

    assert 2.5 <= waits[0] <= 5
    assert 5_400 <= max(waits) <= 10_800
    assert len(set(waits)) == len(waits)  # jitter
    assert sum(waits) > 86_400


def test_a_message_that_nobody_takes_fails_after_three_days(database: Database, receiver: Receiver) -> None:
    receiver.answers = [(500, {})]
    add(database, f"{receiver.url}/hook")
    failed(database)
    late = update(WebhookDelivery).values(give_up_at=now_ms() + 1)
    database.write(lambda session: session.execute(late))
    send(database)

    assert [(each.state, each.last_status) for each in log(database)] == [("failed", 500)]


def test_a_message_is_sent_again_on_request_under_its_id(database: Database, receiver: Receiver) -> None:
    webhook_id, _ = add(database, f"{receiver.url}/hook")
    failed(database)
    (row,) = log(database)
    again = lambda session: subscriptions.redeliver(session, ADMIN, webhook_id, row.id)  # noqa: E731
    with pytest.raises(Conflict):
        database.write(again)
    send(database)
    database.write(again)
    send(database)

    assert [each.id for each in receiver.requests] == [row.id] * 2


def test_a_webhook_that_is_removed_beside_an_event_does_not_hold_up_the_job(postgres_database: Database) -> None:
    webhook_id, _ = add(postgres_database)
    rows.add_dataset(postgres_database)
    job_id = rows.submit(postgres_database)

    def cancel_late(session: Any) -> None:
        session.execute(select(func.count()).select_from(Webhook))
        transitions.cancel(session, job_id)

    with Session(postgres_database.engine) as session:  # a removal that has yet to commit
        subscriptions.remove(session, ADMIN, webhook_id)
        with rows.in_background(lambda: postgres_database.write(cancel_late)) as done:
            rows.until_a_statement_waits_for_a_lock(postgres_database, done)
            session.commit()
            done.result()

    assert rows.status(postgres_database, job_id) == "cancelled"
    assert types(postgres_database) == []


def test_old_messages_leave_the_log(database: Database, receiver: Receiver) -> None:
    rules = [{"metric": "loss", "direction": "above", "value": 0.0}]
    add(database, f"{receiver.url}/hook", rules=rules)
    rows.add_dataset(database)
    run = rows.Run(database, rows.running(database))
    run.deliver(rows.metrics(1, loss=1.0))
    run.deliver(rows.end("failed", "bad_data"))
    send(database)
    age = update(WebhookDelivery).where(WebhookDelivery.state == "delivered").values(ended_at=now_ms() - 86_400_001)
    database.write(lambda session: session.execute(age))
    Reconciler(database, Settings(webhook_log_days=1), sends_wake_ups=False).poll()

    assert [each.state for each in log(database)] == ["pending"]
    assert rows.rows_of(database, WebhookLevel) == []


# --- targets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1",
        "fd00:ec2::254",
        "::ffff:127.0.0.1",
        "::ffff:a9fe:a9fe",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
    ],
)
def test_an_address_that_is_not_public_is_refused_as_text_and_as_the_result_of_a_name(
    sqlite_database: Database, receiver: Receiver, address: str
) -> None:
    host = f"[{address}]" if ":" in address else address
    with pytest.raises(Invalid, match="WCL_WEBHOOK_NETWORKS"):
        targets.check_url(f"http://{host}/hook", CLOSED)

    port = receiver.url.rpartition(":")[2]
    add(sqlite_database, f"http://hooks.example:{port}/hook")
    failed(sqlite_database)
    send(sqlite_database, CLOSED, resolver=lambda *_: [address])

    assert receiver.requests == []
    assert "not a public address" in str(log(sqlite_database)[0].last_error)


def test_a_name_is_resolved_once_and_the_connection_goes_to_the_checked_address(
    sqlite_database: Database, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = int(receiver.url.rpartition(":")[2])
    results = [["10.0.0.1", "127.0.0.2"], ["10.0.0.1"]]  # a second look would reach the private address
    add(sqlite_database, f"http://hooks.example:{port}/hook")
    failed(sqlite_database)
    calls: list[str] = []

    def resolver(host: str, _: int) -> Sequence[str]:
        calls.append(host)
        return results.pop(0)

    connected: list[str] = []
    real = targets.httpcore.SyncBackend.connect_tcp

    def connect(self: Any, host: str, *rest: Any, **options: Any) -> Any:
        connected.append(host)
        return real(self, "127.0.0.1", *rest, **options)

    monkeypatch.setattr(targets.httpcore.SyncBackend, "connect_tcp", connect)
    send(sqlite_database, Settings(webhook_networks=["127.0.0.2"]), resolver=resolver)

    assert (calls, connected) == (["hooks.example"], ["127.0.0.2"])
    assert receiver.requests[0].headers["host"] == f"hooks.example:{port}"


@pytest.mark.parametrize(
    "url",
    [
        "ftp://hooks.example/",
        "file:///etc/passwd",
        "https://user:word@hooks.example/",
        "https://hooks.example/#part",
        "https:///path",
        "https://hooks.example:99999/",
        "https://[::1/",
        "https://hooks.example/\n",
        "https://hooks.example/ä",
        "hooks.example",
    ],
)
def test_a_url_that_cannot_be_a_target_is_refused(url: str) -> None:
    with pytest.raises(Invalid):
        targets.check_url(url, OPEN)


def test_an_administrator_allows_networks_and_hosts(sqlite_database: Database, receiver: Receiver) -> None:
    targets.check_url("http://10.1.2.3/hook", Settings(webhook_networks=["10.0.0.0/8"]))
    port = receiver.url.rpartition(":")[2]
    add(sqlite_database, f"http://inside:{port}/hook")
    failed(sqlite_database)
    send(sqlite_database, Settings(webhook_hosts=["inside"]), resolver=lambda *_: ["127.0.0.1"])

    assert len(receiver.requests) == 1


# --- formats ---------------------------------------------------------------------------------------------------------


def test_the_formats_of_chat_services_hold_the_same_facts(sqlite_database: Database, receiver: Receiver) -> None:
    for form in ("slack", "discord", "ntfy"):
        add(sqlite_database, f"{receiver.url}/{form}/secret", format=form)
    job_id = failed(sqlite_database, name="a <!channel> & @everyone")
    send(sqlite_database)
    by_path = {each.path: each.content for each in receiver.requests}
    link = f"{PAGE}/jobs/{job_id}"

    slack = by_path["/slack/secret"]["text"]
    assert "*a &lt;!channel&gt; &amp; @everyone failed*" in slack
    assert f"<{link}|Open the job>" in slack
    discord = by_path["/discord/secret"]
    assert discord["allowed_mentions"] == {"parse": []}
    assert link in discord["content"]
    assert by_path["/ntfy/"] == {
        "topic": "secret",
        "title": "a <!channel> & @everyone failed",
        "message": "Status: failed (bad_data)\nno images",
        "click": link,
    }


def test_the_signature_is_that_of_the_published_example() -> None:
    # From the specification's reference libraries.
    key = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    body = b'{"test": 2432232314}'
    expected = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="

    assert messages.signature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body) == expected
