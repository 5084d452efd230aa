"""The device mesh: `data` (replicas), `fsdp` (replicas that split parameters), `tensor` (split layers).

Several slices (TPU slices, or GPU nodes, that only a data-centre network joins) are one mesh too: `data` then runs over
the slices first, so that what crosses the slow network is one sum of gradients a step.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from unclip_jax.core.errors import UserError
from unclip_jax.parallel.layout import AXES


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshSpec:
    """The number of devices along each mesh axis; one axis may be -1, which takes the devices that remain."""

    data: int = -1
    """Devices that hold whole copies of the parameters and split the batch."""
    fsdp: int = 1
    """Devices that split the batch and the parameters."""
    tensor: int = 1
    """Devices that split single layers."""
    slices: int = 1
    """Slices that the data-centre network joins; `data` counts the devices of all of them."""

    def __post_init__(self):
        sizes = {axis: getattr(self, axis) for axis in AXES}
        if wrong := [f"{axis}={size}" for axis, size in sizes.items() if size != -1 and size < 1]:
            raise UserError(f"mesh axis {', '.join(wrong)} is not a device count; use 1 or more, or -1 for the rest")
        if list(sizes.values()).count(-1) > 1:
            raise UserError("two mesh axes are -1; only one can take the devices that remain")
        if self.slices < 1:
            raise UserError(f"mesh has slices={self.slices}; use 1 or more")


def parse_mesh(text: str) -> MeshSpec:
    """Parse a mesh as it is written on a command line, "data=4,fsdp=64"; raise UserError for anything else."""
    try:
        sizes = {axis.strip(): int(size) for axis, size in (pair.split("=") for pair in text.split(","))}
    except ValueError:
        raise UserError(f"mesh {text!r} is not understood; write it as data=4,fsdp=64") from None
    if unknown := sorted(sizes.keys() - set(AXES)):
        raise UserError(f"the mesh has no axis {unknown[0]!r}; it has {', '.join(AXES)}")
    return MeshSpec(**sizes)


def mesh_shape(spec: MeshSpec, num_devices: int) -> tuple[int, ...]:
    """Return the sizes of `AXES` on that many devices; raise UserError where they do not multiply to that number."""
    sizes = [getattr(spec, axis) for axis in AXES]
    fixed = math.prod(size for size in sizes if size != -1)
    if num_devices % fixed or (-1 not in sizes and fixed != num_devices):
        asked = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
        divisors = [str(n) for n in range(1, num_devices + 1) if num_devices % n == 0]
        raise UserError(
            f"the mesh {asked} does not fit {num_devices} devices; its sizes must multiply to that number: "
            f"each one of {', '.join(divisors)}, or -1 for what remains"
        )
    shape = tuple(num_devices // fixed if size == -1 else size for size in sizes)
    if shape[0] % spec.slices:
        raise UserError(
            f"data={shape[0]} does not divide over {spec.slices} slices; make mesh.data a multiple of mesh.slices"
        )
    return shape


def make_mesh(spec: MeshSpec, devices: Sequence[object] | None = None) -> Mesh:
    """Make the mesh of `spec` over `devices` (default: all devices of all processes), with axes `AXES`.

    Raises UserError where the axis sizes do not multiply to the number of devices, and where the devices do not lie in
    as many slices as the spec says.
    """
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(spec, len(devices))
    # Explicit, the default of make_mesh, makes Linen's convolutions require an output sharding.
    types = (AxisType.Auto,) * len(AXES)
    if spec.slices == 1:
        # 64 of a torus 16 x 16 is four times a whole axis: an axis of ours may take a part of one of the chips'.
        array = mesh_utils.create_device_mesh(shape, tuple(devices), allow_split_physical_axes=True)
    else:
        array = _hybrid(spec.slices, shape, devices)
    return Mesh(array, AXES, axis_types=types)


def _hybrid(slices: int, shape: tuple[int, ...], devices: Sequence[object]) -> np.ndarray:
    """Arrange devices in `shape`, slice after slice along `data`; without slice indices, a process is a slice."""
    of_process = getattr(devices[0], "slice_index", None) is None
    found = len({getattr(device, "process_index" if of_process else "slice_index") for device in devices})
    if found != slices:
        raise UserError(f"mesh.slices is {slices}, but the devices lie in {found}; set it to {found}")
    return mesh_utils.create_hybrid_device_mesh(
        (shape[0] // slices, *shape[1:]),
        (slices, 1, 1),
        devices=devices,
        process_is_granule=of_process,
        allow_split_physical_axes=True,
    )
