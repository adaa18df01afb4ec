"""A plugin whose networks crash or hang in one way for each variant, as a real distribution on a path."""

from __future__ import annotations

from pathlib import Path

_MODULE = '''
import ctypes, os, signal, subprocess, sys, threading, time
import torch
from torch import nn

class Mean(nn.Module):
    feature_dim = 8

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 8)

    def forward(self, images):
        return self.linear(images.mean(dim=(2, 3)))

def shout():
    while True:
        os.write(1, b"the same line again and again\\n" * 2000)

def multiply(depth):
    """A tree of processes, each in a session of its own, that ignore SIGTERM and outlive their parents."""
    code = (
        "import signal, subprocess, sys, time\\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\\n"
        "depth = int(sys.argv[2])\\n"
        "for _ in range(2 if depth else 0):\\n"
        "    again = [sys.executable, '-c', sys.argv[1], sys.argv[1], str(depth - 1)]\\n"
        "    subprocess.Popen(again, start_new_session=True)\\n"
        "time.sleep(3600)\\n"
    )
    subprocess.Popen([sys.executable, "-c", code, code, str(depth)], start_new_session=True)

def build(config, image_size):
    match config.variant:
        case "segfault":
            ctypes.string_at(0)
        case "exit":
            os._exit(3)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            time.sleep(3600)
        case "cuda-memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        case variant if variant.startswith("cuda-"):
            text = {"ecc": "uncorrectable ECC error encountered", "assert": "device-side assert triggered"}
            raise torch.AcceleratorError(f"CUDA error: {text.get(variant[5:], 'unspecified launch failure')}")
        case "eat-memory":
            eaten = []
            while True:
                eaten.append(os.urandom(1 << 24))
        case "shout":
            threading.Thread(target=shout, daemon=True).start()
        case "multiply":
            multiply(2)
    return Mean()
'''


def install(folder: Path) -> None:
    """Install the distribution `wcl-poison` with the backbone `poison` into a folder."""
    info = folder / "wcl_poison-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: wcl-poison\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[wcl.backbones]\npoison = wcl_poison:build\n")
    (folder / "wcl_poison.py").write_text(_MODULE)
