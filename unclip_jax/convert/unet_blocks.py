"""The blocks of our U-Net in the order in which they run: what name maps of U-Nets walk along."""

import dataclasses
from typing import Literal

from unclip_jax.models.unet import UNetSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
    """One block: `ours` is its path, `level` 0 the full resolution, `index` its number within level and place.

    A ResBlock takes `width_in` channels and gives `width`; the other kinds keep theirs.
    """

    ours: str
    place: Literal["down", "middle", "up"]
    kind: Literal["res", "attention", "resample"]
    level: int
    index: int
    width_in: int
    width: int

    @property
    def has_skip(self) -> bool:
        """Whether its skip connection changes the number of channels."""
        return self.width_in != self.width


def unet_blocks(spec: UNetSpec) -> list[Block]:
    """All blocks but the convolutions at either end."""
    blocks: list[Block] = []
    widths = [spec.channels * multiplier for multiplier in spec.channel_mult]
    last = len(widths) - 1

    def add(place, kind, level, index, width_in, width, ours) -> None:
        blocks.append(
            Block(ours=ours, place=place, kind=kind, level=level, index=index, width_in=width_in, width=width)
        )

    def attends(level: int) -> bool:
        return spec.image_size // (spec.patch * 2**level) in spec.attention_at

    current, skips = widths[0], [widths[0]]
    for level, width in enumerate(widths):
        for i in range(spec.depth):
            add("down", "res", level, i, current, width, f"down_{level}_{i}")
            if attends(level):
                add("down", "attention", level, i, width, width, f"down_{level}_{i}_attention")
            current = width
            skips.append(width)
        if level != last:
            add("down", "resample", level, 0, width, width, f"down_{level}_resample")
            skips.append(width)
    add("middle", "res", last, 0, current, current, "middle_0")
    if spec.attention_at:
        add("middle", "attention", last, 0, current, current, "middle_attention")
    add("middle", "res", last, 1, current, current, "middle_1")
    for level in range(last, -1, -1):
        width = widths[level]
        for i in range(spec.depth + 1):
            add("up", "res", level, i, current + skips.pop(), width, f"up_{level}_{i}")
            if attends(level):
                add("up", "attention", level, i, width, width, f"up_{level}_{i}_attention")
            current = width
        if level:
            add("up", "resample", level, 0, width, width, f"up_{level}_resample")
    return blocks
