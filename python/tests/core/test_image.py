"""Images that are fetched, written and read again, with a real registry on this host."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import tarfile
from pathlib import Path
from typing import Iterator

import pytest

import testyard
import testyard.aio
from support import Home, needs_program
from support.home import came

PASSWORDS = "tester:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n"


@pytest.fixture
def registry(home: Home) -> Iterator[str]:
    """`localhost:PORT` of a registry that knows the user `tester` with the password `secret`."""
    program = needs_program("docker-registry")
    (home.work / "passwords").write_text(PASSWORDS)
    (home.work / "registry.yml").write_text(
        f"version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {home.work}/registry}}}}\n"
        f"http:\n  addr: 127.0.0.1:0\nauth:\n  htpasswd:\n    realm: testyard\n    path: {home.work}/passwords\n"
    )
    log = home.work / "registry.log"
    with log.open("wb") as told:
        command = [program, "serve", str(home.work / "registry.yml")]
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=told, stderr=told)
    try:
        pattern = re.compile(r"listening on 127\.0\.0\.1:(\d+)")
        assert came(lambda: pattern.search(log.read_text())), "it does not listen"
        yield f"localhost:{pattern.search(log.read_text()).group(1)}"
    finally:
        server.kill()
        server.wait()


def small(home: Home) -> Path:
    """The archive of a root file system with one program."""
    archive = home.work / "root.tar"
    with tarfile.open(archive, "w") as out:
        out.add(needs_program("busybox"), "bin/sh")
    return archive


def test_an_image_goes_to_a_registry_and_comes_back(home: Home, registry: str) -> None:
    made = testyard.Image.import_("small:1", small(home))
    archive = home.work / "small.oci"
    assert testyard.Image.export("small:1", archive) == archive.stat().st_size
    name = f"{registry}/team/small:1"
    copied = ["skopeo", "copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false", "--dest-creds=tester:secret"]
    needs_program("skopeo")
    home.run([*copied, f"oci-archive:{archive}", f"docker://{name}"]).check_returncode()
    with pytest.raises(testyard.PermissionRefused, match="not to everybody"):
        testyard.Image.pull(name)
    with pytest.raises(testyard.PermissionRefused):
        testyard.Image.pull(name, user="tester", password="wrong")
    pulled = testyard.Image.pull(name, user="tester", password="secret", timeout=60)
    assert pulled.references == (name,) and pulled.digest != made.digest
    with testyard.Machine.create(image=name) as machine:
        assert machine.run(["/bin/sh", "-c", "echo it runs"]).stdout == "it runs\n"
    # What `docker login` writes is enough, and is told nobody else.
    login = {"auths": {registry: {"auth": "dGVzdGVyOnNlY3JldA=="}}}
    (home.user_home / ".docker").mkdir()
    (home.user_home / ".docker" / "config.json").write_text(json.dumps(login))
    again = asyncio.run(testyard.aio.Image.pull(name, name="again:1"))
    assert again.digest == pulled.digest and set(again.references) == {name, "again:1"}
    (home.user_home / ".docker" / "config.json").write_text(json.dumps({"credHelpers": {registry: "vault"}}))
    with pytest.raises(testyard.InvalidInput, match="docker-credential-vault"):
        testyard.Image.pull(f"{registry}/team/small:2")
    assert {one.digest for one in asyncio.run(testyard.aio.Image.list())} == {made.digest, pulled.digest}


def test_what_is_no_image_is_told(home: Home) -> None:
    with pytest.raises(testyard.InvalidInput, match="from which server"):
        testyard.Image.pull("debian:12")
    with pytest.raises(testyard.InvalidInput, match="without a user"):
        testyard.Image.pull("localhost:1/app", password="x")
    with pytest.raises(testyard.InvalidInput, match="length of time"):
        testyard.Image.pull("localhost:1/app", timeout=0)
    with pytest.raises(testyard.InfrastructureError):
        testyard.Image.pull("localhost:1/app")
    with pytest.raises(testyard.NotFound):
        testyard.Image.export("nothing:1", str(home.work / "out.tar"))
