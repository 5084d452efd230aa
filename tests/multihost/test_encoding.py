"""Encoding on two hosts, one of which is killed: the files are those of one host."""

import json
import signal

import pytest
from PIL import Image

from tests import tiny
from tests.multihost.run import encoded
from tests.multihost.test_multihost import Processes

pytestmark = [pytest.mark.multihost, pytest.mark.usefixtures("quick_compile")]


def files(out):
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_two_hosts_killed_and_started_again_write_the_files_of_one(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, record in enumerate(tiny.records()[:22]):
        Image.fromarray(record.image).save(photos / f"{number:03d}.png")
        (photos / f"{number:03d}.txt").write_text(record.captions[0])
    given = {"photos": str(photos), "bundle": str(tiny_folder)}
    killed = Processes(2, "encoded", **given, out=str(tmp_path / "two"), fate="SIGKILL").end()
    assert killed[1][0] == -signal.SIGKILL and killed[0][0] != 0, killed
    left = files(tmp_path / "two")
    assert json.loads(left["store.json"])["shards"] == [] and "metadata/metadata_1.parquet" in left
    assert "metadata/metadata_3.parquet" not in left
    again = Processes(2, "encoded", **given, out=str(tmp_path / "two")).end()
    assert [status for status, _, _ in again] == [0, 0], again
    assert "process 1: encoded 10 of 10 records" in again[1][1]
    encoded(**given, out=str(tmp_path / "one"))
    assert files(tmp_path / "two") == files(tmp_path / "one")
