"""The pretrain verb under the real torchrun: its ranks make the weights that one process makes.

torchrun's rendezvous listens on every address, so it is given a network of its own that has loopback alone.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

from tests import parallel
from tests.wcl_core import small
from wcl_core import checkpoint
from wcl_core.reporter import NullReporter
from wcl_core.training.pretrain import pretrain

pytestmark = pytest.mark.process

torch.set_num_threads(1)

ROOT = Path(__file__).parents[2]
ALONE = ("unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")


@pytest.fixture
def loopback_alone() -> tuple[str, ...]:
    """Return a command prefix that hides every network but loopback; skip the test where it does not work."""
    try:
        done = subprocess.run([*ALONE, "true"], capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no unshare command")
    if done.returncode:
        pytest.skip("this user may not make a network of its own")
    names = [*ALONE, parallel.python(), "-c", "import socket; print(socket.if_nameindex())"]
    assert subprocess.run(names, capture_output=True, text=True).stdout == "[(1, 'lo')]\n"
    return ALONE


def test_two_ranks_of_torchrun_make_the_weights_of_one_process(loopback_alone: tuple[str, ...], tmp_path: Path) -> None:
    """The weights agree after two steps in float32; `test_distributed` compares more and to the bit."""
    fields = small.fields(epochs=1, batch_size=716, warmup_epochs=0, knn_every_epochs=0, processes=2)
    (tmp_path / "spec.json").write_text(json.dumps(fields))
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
    verb = ["-m", "wcl_core", "pretrain", str(tmp_path / "spec.json"), "--output", str(tmp_path / "two")]
    command = [*loopback_alone, parallel.python(), *torchrun, *verb]
    ranks_python = {"PYTHON_EXEC": parallel.python()}
    done = subprocess.run(command, cwd=ROOT, env=os.environ | ranks_python, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "other_processes" not in done.stderr
    pretrain(small.spec(**fields), NullReporter(), dataset=small.digits(), output_dir=tmp_path / "one")

    (path,) = (tmp_path / "two" / "checkpoints").iterdir()
    two, one = checkpoint.read(path), checkpoint.read(tmp_path / "one" / "checkpoints" / path.name)
    assert two.metadata["environment"]["world_size"] == 2
    start = small.model(small.spec(**fields)).state_dict()
    for name, tensor in one.part("model/").items():
        torch.testing.assert_close(two.tensors[f"model/{name}"], tensor, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(one.tensors["model/backbone.conv1.weight"], start["backbone.conv1.weight"], atol=1e-2)
