"""The device mesh: `data` (replicas), `fsdp` (replicas that split parameters), `tensor` (split layers)."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

from unclip_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshSpec:
    """How many devices lie along each mesh axis; one axis may be -1, which takes the devices that remain."""

    data: int = -1
    """Devices that hold whole copies of the parameters and split the batch."""
    fsdp: int = 1
    """Devices that split the batch and the parameters."""
    tensor: int = 1
    """Devices that split single layers."""

    def __post_init__(self):
        sizes = dataclasses.asdict(self)
        if wrong := [f"{axis}={size}" for axis, size in sizes.items() if size != -1 and size < 1]:
            raise UserError(f"mesh axis {', '.join(wrong)} is not a device count; use 1 or more, or -1 for the rest")
        if list(sizes.values()).count(-1) > 1:
            raise UserError("two mesh axes are -1; only one can take the devices that remain")


def make_mesh(spec: MeshSpec, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of `spec` over `devices` (default: all devices of all processes), with axes `AXES`.

    Raises UserError when the axis sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [getattr(spec, axis) for axis in AXES]
    fixed = math.prod(size for size in sizes if size != -1)
    if len(devices) % fixed or (-1 not in sizes and fixed != len(devices)):
        asked = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
        raise UserError(f"the mesh {asked} does not fit {len(devices)} devices; its sizes must multiply to that number")
    shape = tuple(len(devices) // fixed if size == -1 else size for size in sizes)
    # Explicit, the default of make_mesh, makes Linen's convolutions ask for an output sharding.
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=tuple(devices))
