import dataclasses
import json
import os
import re
import threading
import time

import pytest
from etils import epath
from etils.epath import backend
from fsspec import register_implementation
from fsspec.implementations.memory import MemoryFileSystem

from unclip_jax.core.errors import UserError
from unclip_jax.training import lock as locks
from unclip_jax.training.config import RunConfig
from unclip_jax.training.lock import FILE, Holder, Lock, hold


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(locks, "HEARTBEAT", 0.05)
    monkeypatch.setattr(locks, "LEASE", 0.4)
    monkeypatch.setattr(locks, "SETTLE", 0.02)


@pytest.fixture
def bucket(monkeypatch):
    """gs://run, in memory, as gcsfs has it: what is created must be new."""

    class Bucket(MemoryFileSystem):
        store = {}  # noqa: RUF012  # as there
        pseudo_dirs = [""]  # noqa: RUF012
        protocol = "gs"

        @classmethod
        def _strip_protocol(cls, path):
            return MemoryFileSystem._strip_protocol(str(path).removeprefix("gs://"))

    register_implementation("gs", Bucket, clobber=True)
    system = Bucket()
    monkeypatch.setattr(type(backend.fsspec_backend), "fs", lambda *_: system)
    yield "gs://bucket/run"
    register_implementation("gs", "gcsfs.GCSFileSystem", clobber=True)


@pytest.fixture(params=["local", "bucket"])
def workdir(request, tmp_path):
    return request.getfixturevalue("bucket") if request.param == "bucket" else str(tmp_path)


def run_of(workdir, **run):
    return RunConfig(workdir=str(workdir), steps=1, **run)


def other(workdir, **changes):
    """What another process would write: one of this machine that lives."""
    lock = Lock(epath.Path(workdir))
    parent = os.getppid()
    holder = dataclasses.replace(lock.holder, token="theirs", pid=parent, born=locks._born(parent))
    return dataclasses.replace(holder, **changes)


def write(workdir, holder):
    (epath.Path(workdir) / FILE).write_text(holder if isinstance(holder, str) else holder.write())


def read(workdir):
    return Holder.read((epath.Path(workdir) / FILE).read_text())


def until(holds):
    ends = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_held_while_inside_and_gone_afterwards(workdir):
    with hold(run_of(workdir)) as lock, hold(run_of(workdir)) as again:
        assert lock is again
        first = read(workdir)
        assert (first.pid, first.token) == (os.getpid(), lock.holder.token)
        until(lambda: (now := read(workdir)) is not None and now.beats > first.beats)
        lock.check(read=True)
    assert not (epath.Path(workdir) / FILE).exists()
    with pytest.raises(ZeroDivisionError), hold(run_of(workdir)):
        raise ZeroDivisionError
    assert not (epath.Path(workdir) / FILE).exists()


def test_of_two_at_the_same_moment_one_makes_it(workdir):
    locks_ = [Lock(epath.Path(workdir)) for _ in range(8)]
    barrier, made = threading.Barrier(8), []

    def create(lock):
        barrier.wait()
        made.append(lock._create())

    threads = [threading.Thread(target=create, args=[lock]) for lock in locks_]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [False] * 7 + [True]


def test_a_process_that_lives_is_named(workdir):
    holder = other(workdir)
    write(workdir, holder)
    line = f"{workdir} is being trained by process {os.getppid()} of {holder.owner} on {holder.host}, since "
    with pytest.raises(UserError, match=f"^{re.escape(line + holder.since)}; wait"), hold(run_of(workdir)):
        pass
    assert read(workdir) == holder


@pytest.mark.parametrize("changes", [{"pid": 2**22 + 1}, {"born": "12345"}])
def test_a_process_of_this_machine_that_is_gone_is_replaced_at_once(workdir, changes, monkeypatch):
    monkeypatch.setattr(locks, "LEASE", 1e6)
    write(workdir, other(workdir, **changes))
    with hold(run_of(workdir)) as lock:
        assert read(workdir).token == lock.holder.token


def test_the_lock_of_a_folder_is_not_that_of_its_copy(tmp_path):
    write(tmp_path, other(tmp_path, folder="1:2"))
    with hold(run_of(tmp_path)):
        pass


@pytest.mark.slow
def test_another_machine_is_heard_or_its_lease_ends(workdir, capsys, monkeypatch):
    holder = other(workdir, machine="elsewhere", host="elsewhere")
    write(workdir, holder)
    started = time.monotonic()
    with hold(run_of(workdir)) as lock:
        assert time.monotonic() - started > 0.4
        assert read(workdir).token == lock.holder.token
    assert f"waiting up to 0.4 s for a sign of life of process {holder.pid}" in capsys.readouterr().out

    monkeypatch.setattr(locks, "LEASE", 20.0)
    write(workdir, holder)
    over = threading.Event()

    def live():
        beats = 0
        while not over.wait(0.1):
            beats += 1
            write(workdir, dataclasses.replace(holder, beats=beats))

    thread = threading.Thread(target=live)
    thread.start()
    try:
        with pytest.raises(UserError, match="is being trained by .* on elsewhere, since"), hold(run_of(workdir)):
            pass
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 3}', "\x00\x01"])
def test_a_damaged_lock_stops_nobody_for_ever(tmp_path, text):
    """But it may be one that is just being written: it is watched as that of another machine is."""
    write(tmp_path, text)
    started = time.monotonic()
    with hold(run_of(tmp_path)) as lock:
        assert time.monotonic() - started > 0.4
        assert read(tmp_path).token == lock.holder.token


def test_who_insists_has_it_and_who_had_it_stops(workdir):
    """The two in one process, so by hand."""
    first = Lock(epath.Path(workdir))
    first.take(insist=False)
    second = Lock(epath.Path(workdir))
    with pytest.raises(UserError, match="is being trained by process"):
        second.take(insist=False)
    second.take(insist=True)
    until(lambda: not first._thread.is_alive())
    with pytest.raises(UserError, match=r"was taken over by process \d+ of .*; this process stops, what it has saved"):
        first.check()
    first.release()
    assert read(workdir).token == second.holder.token
    second.check(read=True)
    second.release()
    assert not (epath.Path(workdir) / FILE).exists()


def test_a_lost_lock_is_noticed_before_a_save(workdir, monkeypatch):
    monkeypatch.setattr(locks, "HEARTBEAT", 1e6)
    with hold(run_of(workdir)) as lock:
        write(workdir, other(workdir))
        lock.check()
        with pytest.raises(UserError, match="was taken over by process"):
            lock.check(read=True)
    assert read(workdir).token == "theirs"


def test_of_several_hosts_the_first_holds_it(workdir, monkeypatch):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    monkeypatch.setattr(locks, "from_all", lambda free: [1, free])
    with hold(run_of(workdir)) as lock:
        assert lock is None
    assert not (epath.Path(workdir) / FILE).exists()
    monkeypatch.setattr(locks, "from_all", lambda free: [0, free])
    with pytest.raises(UserError, match="process 0 does not have .* to itself; see its line"), hold(run_of(workdir)):
        pass


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    line = r"cannot write to .*file/run: .*; choose another run\.workdir"
    with pytest.raises(UserError, match=line), hold(run_of(tmp_path / "file" / "run")):
        pass


def test_what_a_lock_says(tmp_path):
    with hold(run_of(tmp_path)):
        said = json.loads((tmp_path / FILE).read_text())
    assert set(said) >= {"owner", "host", "pid", "since", "beats"}
