"""A plan in words and in JSON."""

import dataclasses
import math
from typing import TypedDict

from unclip_jax.nn.remat import Remat
from unclip_jax.planning.plan import Memory, Plan

DAY = 86_400.0


class Tried(TypedDict):
    """What a search has changed of a recipe."""

    accumulate: int
    remat: Remat


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """What a number of steps takes at an assumed MFU, or at the roofline where that is slower."""

    steps: int
    mfu: float
    step: float
    """Seconds."""
    days: float
    chip_hours: float
    price: float | None
    """In the currency of the price of a chip-hour that was given."""


def cost_of(plan: Plan, steps: int, mfu: float, price: float | None, peak: float) -> Cost | None:
    """Return the cost of a plan that fits; `peak` in FLOP/s of the whole slice, `price` of one chip for an hour."""
    if plan.times is None:
        return None
    step = max(plan.times.step, plan.model_flops / (mfu * peak))
    hours = steps * step / 3600 * plan.num_chips
    return Cost(
        steps=steps,
        mfu=plan.model_flops / (step * peak),
        step=step,
        days=steps * step / DAY,
        chip_hours=hours,
        price=None if price is None else hours * price,
    )


def as_json(name: str, layout: Tried | None, plan: Plan, cost: Cost | None) -> dict[str, object]:
    """Return everything in a plan as JSON; bytes, seconds and FLOPs."""
    data: dict[str, object] = {"recipe": name, **(layout or {}), **dataclasses.asdict(plan), "fits": plan.memory.fits}
    if plan.times is not None:
        data["times"] = dataclasses.asdict(plan.times) | {"step": plan.times.step, "bound": plan.times.bound}
    return data | {"cost": None if cost is None else dataclasses.asdict(cost)}


def in_words(name: str, layout: Tried | None, plan: Plan, cost: Cost | None) -> str:
    """Write a page for a person; without a layout, about sampling `plan.batch_size` images."""
    mesh = ", ".join(f"{axis} {size}" for axis, size in plan.mesh.items() if size > 1) or "one device"
    one = "a batch" if layout is None else "a step"
    how = f"{plan.batch_size} images" if layout is None else f"batch {plan.batch_size}"
    if layout is not None:
        how += f", accumulate {layout['accumulate']}, remat {layout['remat']}"
    lines = [
        f"{name} on {plan.topology} ({plan.num_chips} chips): {plan.parameters / 1e6:,.0f} M parameters",
        f"  mesh {mesh}; {how}",
        f"  memory per device: {_memory(plan.memory)}",
        f"  FLOPs: {plan.model_flops:.3g} {one} of the model, {plan.hardware_flops:.3g} with recomputation",
    ]
    if plan.times is not None and plan.traffic is not None:
        for kind, traffic in sorted(plan.traffic.items(), key=lambda item: -item[1].bytes):
            lines.append(f"  {kind}: {traffic.count} {one}, {traffic.bytes / 1e9:.2f} GB sent by each device")
        times = plan.times
        lines.append(
            f"  roofline: {times.step:.3f} s {one}, bound by {times.bound} (compute {times.compute:.3f}, "
            f"memory {times.memory:.3f}, links {times.links:.3f}); MFU {times.mfu:.0%}"
        )
    if cost is not None:
        money = "" if cost.price is None else f", {cost.price:,.0f} at the price given"
        lines.append(
            f"  at MFU {cost.mfu:.0%}: {cost.step:.3f} s a step, {cost.days:.1f} days for {cost.steps:,} steps, "
            f"{cost.chip_hours:,.0f} chip-hours{money}"
        )
    if not plan.memory.fits:
        lines.append(f"  does not fit: {advice(layout)}")
    lines.append(f"  compiled in {plan.compile_seconds:.0f} s for {math.prod(plan.mesh.values())} devices")
    return "\n".join(lines)


def table(rows: list[tuple[str, Tried | None, Plan, Cost | None]]) -> str:
    """Write a table of plans in Markdown, one a row."""
    columns = [
        "recipe", "slice", "mesh", "batch", "state", "temporaries", "of", "collectives", "roofline", "MFU there",
        "chip-hours", "compiled in",
    ]  # fmt: skip
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for name, layout, plan, cost in rows:
        mesh = " x ".join(f"{size} {axis}" for axis, size in plan.mesh.items() if size > 1) or "1"
        microbatches = 1 if layout is None else layout["accumulate"]
        batch = f"{plan.batch_size}" + (f" / {microbatches}" if microbatches > 1 else "")
        memory, cells = plan.memory, [name, f"{plan.topology} ({plan.num_chips} chips)", mesh, batch]
        if memory.arguments is None or memory.temporaries is None or plan.times is None or plan.traffic is None:
            cells += ["", f"needs {memory.total / 2**30:.1f} GiB", _gib(memory.limit), "", "", "", ""]
        else:
            sent = sum(traffic.bytes for traffic in plan.traffic.values())
            cells += [_gib(memory.arguments), _gib(memory.temporaries), _gib(memory.limit), f"{sent / 1e9:.1f} GB"]
            cells += [f"{plan.times.step:.2f} s ({plan.times.bound})", f"{plan.times.mfu:.0%}"]
            cells += ["" if cost is None else f"{cost.chip_hours:,.0f}"]
        lines.append("| " + " | ".join([*cells, f"{plan.compile_seconds:.0f} s"]) + " |")
    return "\n".join(lines)


def _gib(count: float) -> str:
    return f"{count / 2**30:.2f} GiB"


def advice(layout: Tried | None) -> str:
    """Advise what to change when a program does not fit."""
    if layout is None:
        return "split the weights with fsdp in --mesh, or draw fewer images at once"
    remat = "" if layout["remat"] is True else "--remat True, "
    accumulate = f"--accumulate {layout['accumulate'] * 2}"
    return f"try {remat}{accumulate}, a larger fsdp in --mesh or a smaller --batch, or let --fit find what does"


def _memory(memory: Memory) -> str:
    verdict = "fits" if memory.fits else "DOES NOT FIT"
    if memory.arguments is None or memory.temporaries is None or memory.outputs is None or memory.code is None:
        return f"{memory.total / 2**30:.2f} of {memory.limit / 2**30:.2f} GiB, {verdict}"
    return (
        f"state and batch {memory.arguments / 2**30:.2f} + temporaries {memory.temporaries / 2**30:.2f} "
        f"+ outputs {memory.outputs / 2**30:.2f} + program {memory.code / 2**30:.2f} = {memory.total / 2**30:.2f} "
        f"of {memory.limit / 2**30:.2f} GiB, {verdict}"
    )
