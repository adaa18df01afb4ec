"""Stars and notes over REST and the pages."""

from __future__ import annotations

import pytest

from tests.api.route_cases import Member
from tests.api.served import Served, assert_problem
from tests.jobs import rows


def test_a_star_and_a_note_are_written_shown_and_removed(small: Served) -> None:
    member = Member.of(small, "test")
    client = member.client
    job_id, other = rows.submit(small.database, created_by=member.key_id), rows.submit(small.database)

    changed = client.patch(f"/v1/jobs/{job_id}", json={"starred": True, "note": "# Why\r\n**best** so far\n"}).json()
    assert changed["starred_at"]
    assert changed["note"] == "# Why\n**best** so far"
    assert [job["id"] for job in client.get("/v1/jobs?starred=true").json()["items"]] == [job_id]
    assert "note" not in client.get("/v1/jobs").json()["items"][0]
    assert client.get(f"/v1/jobs/{other}").json()["note"] is None
    assert [event.data for event in rows.events(small.database, job_id)][-1] == {
        "starred": True,
        "note": "21 characters",
        "by": "test",
    }

    changed = client.patch(f"/v1/jobs/{job_id}", json={"starred": False, "note": " "}).json()
    assert (changed["starred_at"], changed["note"]) == (None, None)
    assert client.get("/v1/jobs?starred=true").json()["items"] == []
    assert client.get("/v1/audit").status_code == 403


@pytest.mark.parametrize("body", [{}, {"note": "a" * 10_001}, {"note": 3}, {"starred": "perhaps"}, {"star": True}])
def test_wrong_changes_are_refused(shared: Served, body: dict[str, object]) -> None:
    job_id = rows.submit(shared.database)

    assert_problem(shared.client().patch(f"/v1/jobs/{job_id}", json=body), 422)


def test_the_page_has_the_star_and_the_note_without_scripts(small: Served) -> None:
    browser, headers = small.browser(), {"Origin": small.url}
    job_id, other = rows.submit(small.database), rows.submit(small.database)

    assert browser.post(f"/jobs/{job_id}/star", headers=headers).headers["location"] == f"/jobs/{job_id}"
    written = browser.post(f"/jobs/{job_id}/note", data={"note": "**bold** <script>x</script>"}, headers=headers)
    assert written.headers["location"] == f"/jobs/{job_id}#note"
    assert "<strong>bold</strong> &lt;script&gt;" in browser.get(f"/jobs/{job_id}").text
    starred = browser.get("/?starred=true").text
    assert f'id="job-{job_id}"' in starred
    assert f'id="job-{other}"' not in starred
    reader = small.browser("read")
    assert "<strong>bold</strong>" in reader.get(f"/jobs/{job_id}").text
    assert "<textarea" not in reader.get(f"/jobs/{job_id}").text

    browser.post(f"/jobs/{job_id}/unstar", headers=headers)
    assert f'id="job-{job_id}"' not in browser.get("/?starred=true").text
    assert browser.post(f"/jobs/{job_id}/note", data={"note": "a" * 10_001}, headers=headers).status_code == 422


def test_what_is_done_to_all_that_match_a_filter_is_done_to_starred_jobs_only(small: Served) -> None:
    browser, headers = small.browser(), {"Origin": small.url}
    job_id, other = rows.submit(small.database), rows.submit(small.database)
    browser.post(f"/jobs/{job_id}/star", headers=headers)

    shown = browser.get("/change/cancel?matching=?starred=true").text
    assert "Cancel 1 job?" in shown
    assert f'value="{other}"' not in shown
    browser.post("/jobs/cancel", data={"job": [job_id]}, headers=headers)
    assert [rows.job(small.database, each).status for each in (job_id, other)] == ["cancelled", "queued"]
    assert f'value="{other}"' not in browser.get("/delete?matching=?starred=true").text
    plan = small.client().post("/v1/jobs/delete", json={"filter": {"starred": True}, "dry_run": True}).json()
    assert [each["id"] for each in plan["jobs"]] == [job_id]
