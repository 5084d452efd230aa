"""Test scenes with their captions, and the shares of images that are right."""

import contextlib
import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from unclip_jax.core.errors import UserError
from unclip_jax.data.captioned_shapes import scenes as shapes
from unclip_jax.eval.shapes.checker import Verdict, check

GROUPS: dict[str, tuple[shapes.Split, int]] = {
    "one object, unseen pair": ("test_unseen", 1),
    "one object, seen pair": ("test_seen", 1),
    "two objects, unseen pair": ("test_unseen", 2),
    "two objects, seen pairs": ("test_seen", 2),
}
CRITERIA = ("count", "colour", "shape", "relation", "all")


@dataclasses.dataclass(frozen=True)
class Case:
    """A test scene and its caption."""

    scene: shapes.Scene
    caption: str


def cases(split: shapes.Split, num_objects: int, count: int) -> list[Case]:
    """Return the first `count` examples of a split with that many objects."""
    found, index = [], 0
    while len(found) < count:
        scene, caption = shapes.example(split, index)
        if len(scene.objects) == num_objects:
            found.append(Case(scene, caption))
        index += 1
    return found


def shares(verdicts: list[Verdict]) -> dict[str, float]:
    """Return the share of images for which each criterion holds; NaN where it does not apply."""
    result = {}
    for name in CRITERIA:
        values = [getattr(verdict, name) for verdict in verdicts if getattr(verdict, name) is not None]
        result[name] = float(np.mean(values)) if values else math.nan
    return result


def read_captions(
    images: UInt8[np.ndarray, "n h w 3"], true: UInt8[np.ndarray, "n h w 3"], captions: Sequence[str]
) -> dict[str, float]:
    """Return shares of images that are what their captions say, as a metric of `--validation.metric`; captions that
    were cut, so that they cannot be read, are left out."""
    del true
    verdicts = []
    for image, caption in zip(images, captions, strict=True):
        with contextlib.suppress(UserError):
            verdicts.append(check(image, shapes.parse(caption)))
    return shares(verdicts)


def evaluate(images: UInt8[np.ndarray, "n h w 3"], groups: dict[str, list[Case]]) -> dict[str, dict[str, float]]:
    """Return shares by group, for images in the order of the groups' cases; the last row has the captions shuffled."""
    table, start = {}, 0
    for name, members in groups.items():
        own = images[start : start + len(members)]
        start += len(members)
        queries = [shapes.parse(case.caption) for case in members]
        table[name] = shares([check(image, query) for image, query in zip(own, queries, strict=True)])
        shuffled = np.roll(np.arange(len(members)), 1)
        table[f"{name}, captions shuffled"] = shares(
            [check(image, queries[i]) for image, i in zip(own, shuffled, strict=True)]
        )
    return table
