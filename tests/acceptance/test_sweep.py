"""A real sweep: trainings on digits, ranked by evaluations on images held out of train."""

from __future__ import annotations

from typing import Any

import pytest

from tests.acceptance.service import SHORT_SPEC, Service
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(600)

SWEEP: dict[str, Any] = {
    "name": "two temperatures",
    "spec": SHORT_SPEC | {"checkpoints": {"every_epochs": 100}, "monitor_every_epochs": 0},
    "search": "halving",
    "parameters": {"loss.temperature": [0.02, 1.0]},
    "eta": 2,
    "rungs": [1, 2],
    "metric": {"protocol": "few_labels", "settings": {"labels_per_class": [1]}},
}


def test_halving_promotes_the_trial_with_the_better_evaluation(small_service: Service) -> None:
    with small_service.client() as client:
        eventually(lambda: "digits" in [entry["name"] for entry in client.datasets()], "the digits data set")
        plan = client.plan_sweep(SWEEP)
        sweep = client.submit_sweep(SWEEP)
        assert len(plan["trials"]) == sweep["trials"] == 2

        eventually(lambda: client.sweep(sweep["id"])["status"] != "running", "the end of the sweep", 480)

        ended = client.sweep(sweep["id"])
        values = []
        for trial in ended["table"]:
            run = trial["rungs"][0]["runs"][0]
            measured = client.evaluations(run["evaluation_id"])
            assert len(measured) == 1
            assert measured[0]["params"]["held_out_share"] == 0.2
            assert measured[0]["n"] == 287  # a fifth of 1,438 train images, class by class
            assert run["value"] == measured[0]["value"]
            values.append(run["value"])
        assert ended["status"] == "succeeded", small_service.words()
        better = values.index(max(values))
        assert [len(trial["rungs"]) for trial in ended["table"]] == [2 if number == better else 1 for number in (0, 1)]
        assert ended["best_trial"] == better
        last = client.job(ended["table"][better]["rungs"][1]["runs"][0]["job_id"])
        assert (last["spec"]["epochs"], last["spec"]["loss"]["temperature"]) == (2, [0.02, 1.0][better])
