"""`wcl up` as a unit of the user's systemd: it starts with the machine, and again after an error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from wcl_client.errors import WclError
from wcl_client.up import UpOptions
from wcl_core.files import write_bytes

NAME = "wcl.service"
_STOP_SECONDS = 45  # `wcl up` ends within 30 s


class UnitError(WclError):
    """The unit cannot be installed; the message says what to do."""


def unit_path() -> Path:
    """Return the place of the unit."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "systemd" / "user" / NAME


def unit_text(options: UpOptions) -> str:
    """Return the unit that runs `wcl up` with these options; relative paths are of the present folder."""
    command = [sys.executable, "-m", "wcl_client", "up", "--data-dir", str(options.data_dir.absolute())]
    command += ["--host", options.host, "--port", str(options.port), "--workers", str(options.workers)]
    for name, folder in options.datasets.items():
        command += ["--dataset", name if folder is None else f"{name}={folder.absolute()}"]
    return f"""[Unit]
Description=WCL experiment service
Wants=network-online.target
After=network-online.target

[Service]
ExecStart={" ".join(map(_quoted, command))}
# Lines NAME=VALUE of this file, if it exists, are settings of the service.
EnvironmentFile=-%E/wcl/environment
Restart=on-failure
RestartSec=10
# The running jobs save first. Only `wcl up` gets the signal; it stops its processes.
KillMode=mixed
# A run that the kernel kills for lack of memory ends its job, and not the service.
OOMPolicy=continue
TimeoutStopSec={_STOP_SECONDS}

[Install]
WantedBy=default.target
"""


def _quoted(word: str) -> str:
    """Return a word of a command as systemd reads it: quoted, without specifiers, variables and line ends.

    Raises:
        UnitError: no unit can hold it.
    """
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in word):
        raise UnitError(f"{word!r} has a control character, which a unit cannot hold; rename it")
    for letter, written in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%"), ("$", "$$")):
        word = word.replace(letter, written)
    return f'"{word}"'


def install(options: UpOptions) -> Path:
    """Write the unit, start it, and let it start with the user's session; return its file.

    Raises:
        UnitError: systemd does not run for this user, or refused the unit.
    """
    path, text = unit_path(), unit_text(options)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, text.encode(errors="surrogateescape"))
    _systemctl("daemon-reload")
    _systemctl("enable", NAME)
    _systemctl("restart", NAME)  # also with the options of a changed unit
    return path


def remove() -> Path:
    """Stop the service, and remove its unit; the data folder stays.

    Raises:
        UnitError: there is no unit, or systemd does not run for this user.
    """
    path = unit_path()
    if not path.exists():
        raise UnitError(f"there is no {path}; `wcl service install` would write it")
    _systemctl("disable", "--now", NAME)
    path.unlink()
    _systemctl("daemon-reload")
    return path


def _systemctl(*arguments: str) -> None:
    command = ["systemctl", "--user", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise UnitError(f"systemd is not here ({error.strerror}); keep `wcl up` running in tmux instead") from error
    if done.returncode:
        problem = " ".join((done.stderr or done.stdout).split())
        raise UnitError(
            f"{' '.join(command)}: {problem or f'exit code {done.returncode}'}. In a session of ssh or sudo "
            "XDG_RUNTIME_DIR may be missing; otherwise keep `wcl up` running in tmux"
        )
