"""Chips, and slices of them that exist only as a description.

Peak rates are those that Google publishes (cloud.google.com/tpu/docs): dense bfloat16, HBM, and all of a chip's links
to its neighbours together.
"""

import dataclasses
import importlib.metadata
import os
from typing import Any

import jax

from unclip_jax.core.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """What one chip can do; `cores` is how many devices JAX sees in it."""

    flops: float
    """bfloat16 FLOP/s."""
    memory: float
    """Bytes of HBM that a program may use, as the compiler says."""
    bandwidth: float
    """Bytes/s of HBM."""
    links: float
    """Bytes/s to neighbours."""
    cores: int = 1


GIB = 2.0**30
_QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}
CHIPS = {
    "v4": Chip(flops=275e12, memory=30.75 * GIB, bandwidth=1.2e12, links=300e9),
    "v5e": Chip(flops=197e12, memory=15.75 * GIB, bandwidth=0.819e12, links=200e9),
    "v5p": Chip(flops=459e12, memory=95.74 * GIB, bandwidth=2.765e12, links=600e9),
    "v6e": Chip(flops=918e12, memory=31.25 * GIB, bandwidth=1.64e12, links=448e9),
    "tpu7x": Chip(flops=2307e12, memory=189.5 * GIB, bandwidth=7.38e12, links=1200e9, cores=2),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """A described slice: its chips' kind and the devices that JAX would see, which can be compiled for."""

    name: str
    chip: Chip
    devices: list[object]

    @property
    def num_chips(self) -> int:
        """Chips, which is what is rented."""
        return len(self.devices) // self.chip.cores


def libtpu_requirement() -> str:
    """Return the libtpu that the installed jax requires, as pip takes it."""
    for line in importlib.metadata.requires("jax") or ():
        requirement, _, condition = line.partition(";")
        if requirement.startswith("libtpu") and 'extra == "tpu"' in condition:
            return requirement.strip()
    raise UserError("this jax names no libtpu; install it by hand: pip install libtpu")


def describe(topology: str, num_slices: int = 1) -> Slice:
    """Describe the slice that `topology` names, "v5e:16x16", `num_slices` times; this needs libtpu, and no TPU.

    Raises UserError where libtpu is missing, and for a kind or a shape that it does not support.
    """
    kind = topology.partition(":")[0]
    if kind not in CHIPS:
        raise UserError(f"no chip {kind!r} in topology {topology!r}; use one of {', '.join(CHIPS)}, as in v5e:16x16")
    try:
        import libtpu  # noqa: F401  # pyright: ignore[reportMissingImports, reportUnusedImport]
    except ImportError:
        raise UserError("planning compiles with libtpu; install it: pip install 'unclip_jax[tpu]'") from None
    # No chip is opened, so neither the machine's metadata nor the lock that guards its chips is of any concern.
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    options: dict[str, Any] = {} if num_slices == 1 else {"num_slices": num_slices}
    if kind == "v4":
        # Its two cores are one device to JAX, which libtpu has to be given when it describes one.
        options["chip_config_name"] = "megacore"
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0].removeprefix("INVALID_ARGUMENT: ")
        raise UserError(f"libtpu knows no topology {topology!r} ({reason}); give {EXAMPLES[kind]}") from None
    return Slice(topology, CHIPS[kind], list(described.devices))


EXAMPLES = {
    "v4": "v4:2x2x4 or v4:4x4x8",
    "v5e": "v5e:4x4, v5e:8x8 or v5e:16x16",
    "v5p": "v5p:2x2x4 or v5p:4x4x8",
    "v6e": "v6e:4x4, v6e:8x8 or v6e:16x16",
    "tpu7x": "tpu7x:2x2x2 or tpu7x:4x4x4",
}
