"""Finding the other processes of a run, one per host, and leaving when one of them is gone.

JAX's client answers the loss of another process with abort(), from a thread of its own where no Python handler runs.
`start` therefore puts a C handler in its place, so that every loss ends in one line and the status `EXIT_PEER_LOST`.
"""

import ctypes
import dataclasses
import importlib.util
import os
import re
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, TypedDict

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.typing import ArrayLike
from jaxtyping import PyTree

from unclip_jax.core.errors import UserError

EXIT_PEER_LOST = 75
"""Exit status where another process is gone or nothing moves (EX_TEMPFAIL): a launcher may start all of them again."""

_C_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)
# How a lost process shows: gloo's sockets, and the coordination service.
_LOST = re.compile(r"(?i)gloo|coordination|unavailable|deadline_exceeded|connection|socket|heartbeat|barrier")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClusterSpec:
    """Which processes train together. Slurm, Open MPI, GKE and Cloud TPU say so themselves."""

    coordinator: str = ""
    """"host:port" where process 0 listens, the same for all; empty takes what the cluster says."""
    num_processes: int | None = None
    """Processes of the run, with `coordinator`; 1 stays alone whatever the cluster says."""
    process_id: int | None = None
    """This process's number, from 0, with `coordinator`."""
    start_timeout: int = 300
    """Seconds to wait for the other processes at the start."""
    heartbeat_timeout: int = 100
    """Seconds without a sign of life after which a process counts as gone."""

    def __post_init__(self):
        asked = f"coordinator={self.coordinator!r}, num_processes={self.num_processes}, process_id={self.process_id}"
        if self.coordinator and not re.fullmatch(r".+:\d+", self.coordinator):
            raise UserError(f"the coordinator is {self.coordinator}; give host:port, such as 10.0.0.2:8476")
        if self.num_processes is not None and self.num_processes < 1:
            raise UserError(f"num_processes is {self.num_processes}; it must be 1 or more")
        given = [bool(self.coordinator), self.num_processes is not None, self.process_id is not None]
        if any(given) and not all(given) and self.num_processes != 1:
            raise UserError(f"the cluster has {asked}; give all three, or none where the cluster says them itself")
        if self.process_id is not None and not 0 <= self.process_id < (self.num_processes or 1):
            raise UserError(
                f"process_id is {self.process_id} of {self.num_processes} processes; they are numbered from 0"
            )
        for name in ("start_timeout", "heartbeat_timeout"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be 1 or more seconds")


def start(cluster: ClusterSpec) -> None:
    """Join the other processes; on a plain machine do nothing. Call it before anything touches a device.

    Raises UserError for settings that cannot be. Where the others are not there within `start_timeout`, the process
    ends with one line and status 2; JAX's client could not be stopped in another way.
    """
    joining = how_to_join(cluster, os.environ, _has_tpu())
    if joining is None:
        return
    me = "{process_id} of {num_processes}".format(**joining) if "process_id" in joining else "of this host"
    nobody = (
        f"error: process {me} has not found all the others within {cluster.start_timeout} s; start the same command "
        "on every host at about the same time, and see that the coordinator can be reached"
    )
    _at_abort(nobody, 2)
    timer = threading.Timer(cluster.start_timeout, exit_now, (nobody, 2))
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            **joining,
            # The timer is first: the client would abort.
            initialization_timeout=cluster.start_timeout + 60,
            heartbeat_timeout_seconds=cluster.heartbeat_timeout,
            # Who fails alone waits for the others when it ends, and they for it.
            shutdown_timeout_seconds=cluster.heartbeat_timeout,
        )
        # Makes the backend, for which the processes need each other once more.
        name = whoami()
    except Exception as error:
        line = (str(error).strip().splitlines() or [""])[0]
        raise UserError(
            f"cannot join the other processes ({type(error).__name__}: {line}); give run.cluster.coordinator, "
            "run.cluster.num_processes and run.cluster.process_id, or run.cluster.num_processes 1 to stay alone"
        ) from error
    finally:
        timer.cancel()
    _at_abort(f"{name}: JAX gave up, most likely since another process is gone; {start_again()}", EXIT_PEER_LOST)


class Join(TypedDict, total=False):
    """Arguments of `jax.distributed.initialize`."""

    coordinator_address: str
    num_processes: int | None
    process_id: int | None
    cluster_detection_method: str


def how_to_join(cluster: ClusterSpec, env: Mapping[str, str], has_tpu: bool) -> Join | None:
    """Return the arguments of `jax.distributed.initialize`: {} where it finds out itself, None to stay alone."""
    if cluster.num_processes == 1:
        return None
    if not cluster.coordinator and "JAX_COORDINATOR_ADDRESS" in env and "JAX_NUM_PROCESSES" in env:
        cluster = dataclasses.replace(
            cluster,
            coordinator=env["JAX_COORDINATOR_ADDRESS"],
            num_processes=_number(env, "JAX_NUM_PROCESSES"),
            process_id=_number(env, "JAX_PROCESS_ID"),
        )
    if cluster.coordinator:
        return {
            "coordinator_address": cluster.coordinator,
            "num_processes": cluster.num_processes,
            "process_id": cluster.process_id,
            "cluster_detection_method": "deactivate",
        }
    # Outside of srun a job has its variables too, but only one process.
    slurm = {"SLURM_JOB_ID", "SLURM_STEP_NODELIST"} <= env.keys() and (_number(env, "SLURM_NTASKS") or 1) > 1
    mpi = (_number(env, "OMPI_COMM_WORLD_SIZE") or 1) > 1
    return {} if slurm or mpi or _on_tpu_cluster(env, has_tpu) else None


def _on_tpu_cluster(env: Mapping[str, str], has_tpu: bool) -> bool:
    if "tpu" not in (env.get("JAX_PLATFORMS") or "tpu").split(","):
        return False
    if "MEGASCALE_COORDINATOR_ADDRESS" in env:
        return True
    hosts = env.get("TPU_PROCESS_ADDRESSES") or env.get("TPU_WORKER_HOSTNAMES")  # GKE's
    if hosts:
        return "," in hosts
    # A TPU VM queries its metadata server; this variable says that there is none.
    return has_tpu and "TPU_SKIP_MDS_QUERY" not in env


def _number(env: Mapping[str, str], name: str) -> int | None:
    if name in env and not env[name].isdigit():
        raise UserError(f"{name} is {env[name]!r} in the environment; it must be a number")
    return int(env[name]) if name in env else None


def _has_tpu() -> bool:
    chips = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev/vfio").glob("[0-9]*")]
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


def whoami() -> str:
    """Name this process for messages."""
    return f"process {jax.process_index()} of {jax.process_count()}"


def start_again() -> str:
    """Return what messages advise where a run cannot go on."""
    return "start all processes again with the same command to carry on from the newest checkpoint"


def is_lost_peer(error: BaseException | None) -> bool:
    """Return whether an error says that another process is gone."""
    return jax.process_count() > 1 and isinstance(error, jax.errors.JaxRuntimeError) and bool(_LOST.search(str(error)))


def exit_now(line: str, status: int) -> NoReturn:
    """End this process with a line on stderr, at once: nothing that would wait for other processes runs."""
    for stream in (sys.stdout, sys.stderr):
        # Whoever closed it no longer reads.
        if not stream.closed:
            stream.flush()
    os.write(2, f"{line}\n".encode())
    os._exit(status)


_handler: Any = None


def _at_abort(line: str, status: int) -> None:
    global _handler  # C keeps no reference of its own.
    handler = _C_HANDLER(lambda _: exit_now(line, status))
    ctypes.CDLL(None).signal(int(signal.SIGABRT), handler)
    _handler = handler


def put_global(tree: PyTree, shardings: PyTree) -> PyTree[jax.Array]:
    """Lay out arrays that every process holds whole over the devices of all of them."""

    def put(leaf: ArrayLike, sharding: jax.sharding.Sharding) -> jax.Array:
        value = np.asarray(leaf)
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    return jax.tree.map(put, tree, shardings) if jax.process_count() > 1 else jax.device_put(tree, shardings)


def to_host(array: jax.Array) -> np.ndarray:
    """Fetch the whole of an array whose parts may lie on other hosts; all processes must call it."""
    return np.asarray(array if array.is_fully_addressable else multihost_utils.process_allgather(array, tiled=True))


def gather_rows(rows: np.ndarray) -> np.ndarray:
    """Gather the rows [b ...] of all processes, in order of index; all of them must call it."""
    return np.asarray(multihost_utils.process_allgather(rows, tiled=True))


def from_all(value: int) -> list[int]:
    """Gather the value of every process, in order of index; all of them must call it."""
    return np.ravel(multihost_utils.process_allgather(np.asarray([value]), tiled=True)).tolist()
