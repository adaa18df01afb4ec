"""Each program of examples/ is run as its docstring says, on small images."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from jobs.webhooks import messages
from tests import parallel
from tests.docs.pages import ROOT
from tests.servers import free_port
from tests.waiting import PATIENCE, eventually

EXAMPLES = sorted((ROOT / "examples").rglob("*.py"))


def run(script: str, *arguments: str, cwd: Path, path: Path | None = None) -> str:
    """Run an example and return what it printed."""
    search = os.pathsep.join([str(ROOT)] + ([] if path is None else [str(path)]))
    done = subprocess.run(
        [parallel.python(), str(ROOT / script), *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": search, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_short_and_shows_its_command(path: Path) -> None:
    text = path.read_text()

    assert len(text.splitlines()) <= 70
    assert text.startswith('"""')
    if path.parent.name == "examples":
        assert f"python examples/{path.name}" in text


def test_train_on_a_folder_and_use_the_weights(flowers: Path, tmp_path: Path) -> None:
    from wcl_core.__main__ import main
    from wcl_core.export import backbone_file

    small = ("--epochs", "1", "--batch-size", "16", "--image-size", "32")
    printed = run("examples/train_on_a_folder.py", str(flowers), *small, cwd=tmp_path)
    assert len(re.findall(r"^(?:un)?trained +(?:knn|few_labels) .*%$", printed, re.MULTILINE)) == 6

    (native,) = (tmp_path / "runs" / "folder" / "checkpoints").iterdir()
    backbone_file(native, tmp_path / "backbone.safetensors")
    printed = run(
        "examples/use_the_weights.py", "backbone.safetensors", str(flowers / "test"), "--size", "32", cwd=tmp_path
    )
    assert len(re.findall(r"^(\w+/\d+\.png) -> (?!\1$)\w+/\d+\.png$", printed, re.MULTILINE)) == 20

    assert main(["features", str(native), str(flowers), str(tmp_path / "features.csv")]) == 0
    printed = run("examples/similar_images.py", "features.csv", "--similarity", "0.5", cwd=tmp_path)
    assert re.match(r"\d+ alike: \w+/\w+/\d+\.png, ", printed)
    assert main(["classify-fit", str(native), str(flowers), str(tmp_path / "classifier.safetensors")]) == 0
    arguments = [str(tmp_path / "classifier.safetensors"), str(flowers / "test"), str(tmp_path / "classes.csv")]
    assert main(["classify-predict", *arguments]) == 0
    printed = run("examples/sort_photos.py", "classes.csv", str(flowers / "test"), "sorted", cwd=tmp_path)
    assert sum(int(line.split()[0]) for line in printed.splitlines()) == 20
    assert len(list((tmp_path / "sorted").glob("*/*/*.png"))) == 20


def test_the_method_plugin_learns(plugin_site: Path, tmp_path: Path) -> None:
    spec = (
        "method: vicreg\nmethod_options: {projection_dim: 16}\ndata: {name: digits, image_size: 8}\nepochs: 6\n"
        "backbone: {name: tiny, width: 4}\nlog_every_steps: 1\nwarmup_epochs: 0\n"
        "optimizer: {name: sgd, learning_rate: 0.2, scaling: none}\n"
    )
    (tmp_path / "spec.yaml").write_text(spec)
    done = subprocess.run(
        [parallel.python(), "-m", "wcl_core", "pretrain", "spec.yaml", "--output", "run"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(plugin_site))), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr

    curve = [float(value) for value in re.findall(r"train/loss=(\S+)", done.stderr)]
    assert len(curve) == 30
    assert sum(curve[-10:]) / 10 < 0.98 * sum(curve[:5]) / 5
    assert {"train/invariance", "train/variance", "train/covariance"} <= set(re.findall(r"train/\w+", done.stderr))


def test_the_receiver_of_webhooks_takes_signed_messages_once() -> None:
    key, port = messages.new_secret(), free_port()
    command = [sys.executable, str(ROOT / "examples" / "receive_webhooks.py"), str(port)]
    environment = os.environ | {"WEBHOOK_SECRET": key}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        job = {"name": "night", "status": "failed", "reason": "collapse", "message": None}
        payload = {"type": "job.failed", "data": {"job": job}}
        url = f"http://127.0.0.1:{port}/"

        def send(message_id: str, with_key: str, age: int = 0) -> int | None:
            now = int(time.time()) - age
            _, headers, body = messages.request(url, "standard", with_key, message_id, payload, now)
            try:
                return httpx.post(url, headers=headers, content=body, trust_env=False, timeout=PATIENCE).status_code
            except httpx.ConnectError:
                return None

        try:
            eventually(lambda: send("first", key) == 204, "the start of the receiver")
            results = [send("first", key), send("second", messages.new_secret()), send("second", key, age=1_000)]
            results.append(send("second", key))
        finally:
            process.terminate()
        assert results == [204, 401, 401, 204]
        assert process.stdout is not None
        assert process.stdout.read() == "job.failed night collapse\n" * 2
