"""Any image through the upsamplers of a cascade, which no caption conditions.

(1) x_next ~ upsampler(x)     as equation (3) of `unclip_jax.systems.unclip`
"""

from unclip_jax.core.errors import UserError
from unclip_jax.systems.system import System


def upscaling_stages(system: System, from_size: int | None = None, stop_at: int | None = None) -> list[str]:
    """Return the stages that take images of `from_size` px to images of `stop_at` px; first and last by default.

    Raises UserError where the bundle has none such.
    """
    starts: dict[int, str] = {}
    for name, stage in system.stages.items():
        starts |= {int(array.removeprefix("image_")): name for array in stage.reads if array.startswith("image_")}
    if not starts:
        raise UserError(f"bundle {system.name} has no upsamplers; use one that has some")
    if from_size is not None and from_size not in starts:
        sizes = ", ".join(map(str, starts))
        raise UserError(f"from_size is {from_size}; bundle {system.name} starts from {sizes} px")
    first = next(iter(starts)) if from_size is None else from_size
    ends = {size: name for size, name in system.image_sizes().items() if size > first}
    if stop_at is not None and stop_at not in ends:
        sizes = ", ".join(map(str, ends))
        raise UserError(f"stop_at is {stop_at}; from {first} px bundle {system.name} makes {sizes} px")
    until = None if stop_at is None else ends[stop_at]
    return system.path({f"image_{first}": True}, until)
