"""One writer a run: `lock.json` in its folder says which process writes there.

(1) It is made only where there is none: by O_EXCL, or as the first generation of an object where the store has those.
(2) Where its process is one of this machine and gone, it is taken over at once: a killed run goes on with no flag.
(3) Of another machine it is watched: a sign of life, one every `HEARTBEAT` seconds, and the newcomer is refused; none
    for `LEASE` seconds of the newcomer's own clock, so that no two clocks need agree, and it is taken over.
(4) It belongs to who wrote it last. Whoever finds another's in its place has lost it, and saves no more.

On several hosts the first process holds it for all of them.
"""

import contextlib
import dataclasses
import datetime
import fcntl
import getpass
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jax
from etils import epath

from unclip_jax.core.errors import UserError
from unclip_jax.core.files import atomic_write
from unclip_jax.parallel.distributed import from_all
from unclip_jax.training.config import RunConfig
from unclip_jax.training.workdir import is_remote, open_folder

FILE = "lock.json"
HEARTBEAT = 10.0
LEASE = 60.0
SETTLE = 2.0
"""Seconds in which two that take over an object at the same moment see which of them wrote last."""
TRAINED = "trained by {}; wait for it or stop it, choose another run.workdir, or take the run over with --run.take-over"
ENCODED = "written by {}; wait for it or stop it, choose another --out, or take the work over with --take-over"
"""What is said to who comes second."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Holder:
    """What a lock says."""

    owner: str
    """The user."""
    host: str
    pid: int
    since: str
    """When it took the lock."""
    token: str
    """Its own, of this one hold."""
    machine: str
    """Tells hosts of one name, their starts and their containers apart."""
    born: str
    """Tells processes apart that had the same number, one after the other."""
    folder: str
    """Tells the folder from a copy of it, on one machine."""
    beats: int = 0
    """Signs of life."""

    @classmethod
    def read(cls, text: str) -> "Holder | None":
        """Return what a lock says, None where it makes no sense."""
        try:
            data = json.loads(text)
            return cls(**data) if all(isinstance(data[field.name], field.type) for field in _FIELDS) else None  # pyright: ignore[reportArgumentType]
        except (ValueError, TypeError, KeyError):
            return None

    def write(self) -> str:
        """Return its text."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    def __str__(self) -> str:
        return f"process {self.pid} of {self.owner} on {self.host}, since {self.since}"


_FIELDS = dataclasses.fields(Holder)
_held: dict[str, "Lock"] = {}
"""The locks of this process, by folder."""


class Lock:
    """The hold of this process on the folder of a run."""

    def __init__(self, workdir: epath.Path, busy: str = TRAINED):
        self._path, self._busy = workdir / FILE, busy
        folder = "" if is_remote(workdir) else "{0.st_dev}:{0.st_ino}".format(os.stat(workdir))
        self.holder = Holder(
            owner=_owner(),
            host=socket.gethostname(),
            pid=os.getpid(),
            since=datetime.datetime.now(datetime.UTC).isoformat(" ", "seconds"),
            token=secrets.token_hex(8),
            machine=_machine(),
            born=_born(os.getpid()),
            folder=folder,
        )
        self._lost_to: Holder | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lock", daemon=True)

    def check(self, *, read: bool = False) -> None:
        """Raise UserError once another process has taken the run over; `read` looks at the lock itself."""
        if read and not self._over.is_set():
            # A bucket's client has errors of its own; the next look may succeed.
            with contextlib.suppress(Exception):
                self._look()
        if self._lost_to is not None:
            raise UserError(
                f"{self._path.parent} was taken over by {self._lost_to}; this process stops, what it has saved is whole"
            )

    def take(self, *, insist: bool) -> None:
        """Take the lock, after (1) to (3); `insist` takes it from a process that lives.

        Raises UserError, naming the process that has it.
        """
        watched, since = None, time.monotonic()
        while not self._create():
            text = _text(self._path)
            if text is None:
                continue
            holder = Holder.read(text)
            here = holder is not None and holder.machine == self.holder.machine
            if here and holder is not None and self._is_gone(holder):
                if self._replace(text):
                    break
                continue
            if insist:
                if self._replace(text):
                    # It notices at its next sign of life.
                    time.sleep(HEARTBEAT + SETTLE)
                    self._look()
                    self.check()
                    break
                continue
            if holder is not None and (here or watched not in (None, text)):
                raise UserError(f"{self._path.parent} is being {self._busy.format(holder)}")
            if text != watched:
                print(f"waiting up to {LEASE:g} s for a sign of life of {holder or self._path}", flush=True)
                watched, since = text, time.monotonic()
            elif time.monotonic() - since > LEASE and self._replace(text):
                break
            time.sleep(min(1.0, LEASE / 10))
        self._thread.start()

    def release(self) -> None:
        """Remove the lock, if it is still ours."""
        self._over.set()
        self._thread.join()
        with contextlib.suppress(Exception):
            self._look()
            if self._lost_to is None:
                self._path.unlink()

    def _create(self) -> bool:
        """Make the lock where there is none, (1)."""
        text = self.holder.write()
        try:
            if is_remote(self._path):
                return self._create_object(text)
            with open(self._path, "x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            return False
        return True

    def _create_object(self, text: str) -> bool:
        try:
            import fsspec

            system, name = fsspec.url_to_fs(str(self._path))
        except ImportError:
            # TensorFlow's client, which epath then uses, has no such condition: (4) alone decides.
            return not self._path.exists() and self._write(text)
        system.pipe_file(name, text.encode(), mode="create")
        return True

    def _replace(self, text: str) -> bool:
        """Take over a lock that says `text`; False where it has changed."""
        with _alone(self._path.parent):
            return _text(self._path) == text and self._write(self.holder.write())

    def _write(self, text: str) -> bool:
        """Write the lock; returns whether it is ours then, (4)."""
        if not is_remote(self._path):
            with atomic_write(Path(self._path)) as draft:
                draft.write_text(text, "utf-8")
            return True
        self._path.write_text(text)
        time.sleep(SETTLE)
        return _text(self._path) == text

    def _is_gone(self, holder: Holder) -> bool:
        """Whether a process of this machine has ended, or holds the folder that this one was copied from."""
        return _born(holder.pid) != holder.born or holder.folder != self.holder.folder

    def _look(self) -> None:
        text = _text(self._path)
        holder = None if text is None else Holder.read(text)
        if holder is not None and holder.token != self.holder.token:
            self._lost_to = holder

    def _beat(self) -> None:
        while not self._over.wait(HEARTBEAT):
            # What cannot be reached or written now may be at the next time.
            with contextlib.suppress(Exception):
                self._look()
                if self._lost_to is not None:
                    return
                self.holder = dataclasses.replace(self.holder, beats=self.holder.beats + 1)
                if is_remote(self._path):
                    self._path.write_text(self.holder.write())
                else:
                    self._write(self.holder.write())


def hold(run: RunConfig) -> contextlib.AbstractContextManager[Lock | None]:
    """Hold the lock of a run, see `hold_folder`."""
    return hold_folder(run.workdir, insist=run.take_over)


@contextlib.contextmanager
def hold_folder(folder: str, *, insist: bool, busy: str = TRAINED) -> Iterator[Lock | None]:
    """Hold the lock of a folder; every process that works on it must call it, the first one gets it.

    Inside itself it yields the same lock again. Raises UserError, with the words `busy`, where another process has it.
    """
    workdir = open_folder(folder)
    if str(workdir) in _held:
        yield _held[str(workdir)]
        return
    lock, problem, made = None, None, False
    if jax.process_index() == 0:
        try:
            made = not workdir.exists()
            workdir.mkdir(parents=True, exist_ok=True)
            lock = Lock(workdir, busy)
            lock.take(insist=insist)
        except UserError as error:
            problem = error
        except Exception as error:
            # A bucket's client has errors of its own.
            if not (isinstance(error, OSError) or is_remote(workdir)):
                raise
            reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
            problem = UserError(f"cannot write to {workdir}: {reason}; choose another run.workdir")
    free = all(from_all(problem is None))
    if problem is not None:
        raise problem
    if not free:
        raise UserError(f"process 0 does not have {workdir} to itself; see its line")
    if lock is None:
        yield None
        return
    _held[str(workdir)] = lock
    try:
        yield lock
    finally:
        del _held[str(workdir)]
        lock.release()
        if made:
            # A run that came to nothing leaves none.
            with contextlib.suppress(OSError):
                os.rmdir(workdir)


@contextlib.contextmanager
def _alone(folder: epath.Path) -> Iterator[None]:
    """Keep other processes of this machine out, where the file system can."""
    if is_remote(folder):
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _text(path: epath.Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        return ""


def _owner() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return str(os.getuid())


def _machine() -> str:
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)


def _born(pid: int) -> str:
    """Return when a process of this machine was started, "" where there is none."""
    try:
        # After the name, which may hold anything: state, and as the 20th the start in ticks since the machine's.
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if state in "ZX" else rest[18]
    except OSError:
        pass
    if Path("/proc/self/stat").exists():
        return ""
    try:  # no Linux
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "alive"
