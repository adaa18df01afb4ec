"""Submit a job by REST, follow it live, evaluate its last checkpoint, and download the weights.

    wcl up                                               # in another terminal
    python examples/follow_a_run.py --preset digits-cpu --epochs 10

The client finds a local server by itself; WCL_URL and WCL_KEY name another one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from wcl_client import WclClient


def main() -> int:
    """Return 0 when the job succeeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="digits-cpu")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--output", type=Path, default=Path("backbone.safetensors"))
    options = parser.parse_args()

    # A preset has a warm-up of its own length; a short run needs a shorter one.
    short = options.epochs // 10
    spec = {"epochs": options.epochs, "warmup_epochs": short, "weak_augmentation_epochs": short}
    with WclClient.connect() as wcl:
        job = wcl.submit("pretrain", spec, preset=options.preset, name="from Python")
        print(f"job {job['id']}")
        follow(wcl, job["id"])
        ended = wcl.job(job["id"])
        if ended["status"] != "succeeded":
            print(f"{ended['status']}: {ended['status_message'] or ended['status_reason']}", file=sys.stderr)
            return 1

        checkpoint = wcl.checkpoints(job["id"])[-1]
        evaluation = wcl.evaluate(checkpoint["id"], {"protocols": ["knn", "few_labels"]})
        wcl.wait(evaluation["id"])
        for number in wcl.evaluations(evaluation["id"]):
            print(f"{number['protocol']:<10} {number['metric']} {number['value']:.1%} {number['params']}")

        file = wcl.download(checkpoint["id"], options.output, kind="backbone")
        print(f"{file.path} {file.size} bytes, sha256 {file.sha256}")
    return 0


def follow(wcl: WclClient, job_id: str) -> None:
    """Print the loss as it arrives; the stream reconnects by itself and misses nothing."""
    for message in wcl.follow(job_id):
        if message.event == "metrics":
            print(message.data)
        elif message.event == "event":
            print("event:", message.data["type"])


if __name__ == "__main__":
    sys.exit(main())
