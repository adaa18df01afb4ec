"""The client and the command line behind TLS, with a certificate of a private authority."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn

from jobs.database import Database
from tests.api.served import Served
from tests.jobs import rows
from tests.servers import find_program
from wcl_client import cli
from wcl_client.api import WclClient
from wcl_client.errors import InvalidAddress, Unreachable

pytestmark = [pytest.mark.server, pytest.mark.process]


def certificate(folder: Path, name: str, *options: str) -> Path:
    """Make a key and a certificate that is valid for a day, and return the certificate's file."""
    command = [str(find_program("openssl")), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "1", "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.pem"]
    subprocess.run([*command, *options], cwd=folder, check=True, capture_output=True)
    return folder / f"{name}.pem"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a private authority, of a server's certificate from it, and of another authority."""
    folder = tmp_path_factory.mktemp("authority")
    certificate(folder, "ours")
    certificate(folder, "other")
    issued = ("-CA", "ours.pem", "-CAkey", "ours.key", "-addext", "subjectAltName=IP:127.0.0.1")
    certificate(folder, "server", *issued, "-addext", "basicConstraints=critical,CA:FALSE")
    subprocess.run([str(find_program("openssl")), "rehash", str(folder)], check=True, capture_output=True)
    return folder


@pytest.fixture
def server(
    sqlite_database: Database, tmp_path: Path, authority: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Served]:
    """Serve over TLS; the environment names the server."""
    rows.add_dataset(sqlite_database)
    served = Served(sqlite_database, tmp_path / "data")
    files = {"ssl_certfile": authority / "server.pem", "ssl_keyfile": str(authority / "server.key")}
    served._server.config = uvicorn.Config(served.app, log_config=None, access_log=False, **files)
    served.url = served.url.replace("http:", "https:")
    served.start()
    monkeypatch.setenv("WCL_URL", served.url)
    monkeypatch.setenv("WCL_KEY", served.key())
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    yield served
    served.stop()


def test_ssl_cert_file_names_a_private_authority(
    server: Served, authority: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority / "ours.pem"))

    assert cli.run(["submit", "--preset", "digits-cpu", "--name", "behind TLS"]) == 0
    job_id = capsys.readouterr().out.strip()
    assert cli.run(["cancel", job_id]) == 0
    assert cli.run(["jobs", "--json"]) == 0
    assert '"behind TLS"' in capsys.readouterr().out
    with WclClient.connect() as client:
        assert [message.event for message in client.follow(job_id)][-1] == "end"


def test_ssl_cert_dir_names_private_authorities(
    server: Served, authority: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SSL_CERT_DIR", str(authority))

    assert cli.run(["jobs", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.parametrize("name", [None, "other.pem"])
def test_a_certificate_of_another_authority_is_refused(
    server: Served, authority: Path, monkeypatch: pytest.MonkeyPatch, name: str | None
) -> None:
    if name:
        monkeypatch.setenv("SSL_CERT_FILE", str(authority / name))

    with WclClient.connect() as client, pytest.raises(Unreachable, match="SSL_CERT_FILE"):
        client.plan("pretrain", preset="digits-cpu")


@pytest.mark.parametrize(("name", "content"), [("absent.pem", None), ("empty.pem", ""), ("junk.pem", "junk")])
def test_a_file_without_certificates_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str | None
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / name))

    with pytest.raises(InvalidAddress, match=f"^SSL_CERT_FILE: .*{name} cannot be read as certificates"):
        WclClient("https://127.0.0.1:1")
