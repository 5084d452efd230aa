"""Sampling settings on a command line: --decoder.steps 25, --upsamplers.sampler dpm++, for the stages of any bundle.

A group with a plural name means every stage of that name and a number. What is not given stays as it is.
"""

import ast
import dataclasses
import inspect
import itertools
import sys
import textwrap
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import tyro

from unclip_jax.bundle import store
from unclip_jax.core import command_line
from unclip_jax.core.config import from_json, to_json
from unclip_jax.core.errors import UserError
from unclip_jax.stages.diffusion import DiffusionStage
from unclip_jax.stages.settings import SamplingSettings
from unclip_jax.systems.system import System

T = TypeVar("T")
Overrides = dict[str, dict[str, Any]]
"""By the name of a stage, or of a group: fields of `SamplingSettings` and their values, as in JSON."""

UNCLIP = ("prior", "decoder", "upsamplers")
"""Groups where no bundle says which stages there are."""


def parse(options: type[T], description: str | None) -> T:
    """Parse the command line, with a group of options for every stage of the bundle that it names.

    Args:
        options: a dataclass with a field `settings` of type `Overrides`, and usually one called `bundle`.

    Raises:
        UserError: as `unclip_jax.core.command_line.parse`.
    """
    groups = _groups(options)
    make = {name: _form(name, own) for name, own in groups.items()}
    field = dataclasses.field(default_factory=lambda: {name: form() for name, form in make.items()})
    annotation = Annotated[dict[str, Any], tyro.conf.arg(name="")]
    form = dataclasses.make_dataclass(
        options.__name__, [("settings", annotation, field)], bases=(options,), frozen=True, kw_only=True
    )
    form.__doc__ = options.__doc__
    parsed = command_line.parse(form, description=description)
    given = {
        name: {key: value for key, value in vars(own).items() if value is not None}
        for name, own in parsed.settings.items()
    }
    fields = {each.name: getattr(parsed, each.name) for each in dataclasses.fields(parsed)}
    return options(**fields | {"settings": {name: to_json(own) for name, own in given.items() if own}})


def override(
    system: System, overrides: Overrides, settings: Mapping[str, SamplingSettings] | None = None
) -> dict[str, SamplingSettings]:
    """Return the settings of every stage: `settings`, the system's own where a stage is not named, with `overrides` on
    top.

    Raises UserError for a group that means no stage, and for values of the wrong kind.
    """
    chosen = {name: system.sampling.get(name, SamplingSettings()) for name in system.stages} | dict(settings or {})
    # A stage's own name says more than its group's.
    for group in sorted(overrides, key=lambda group: group in system.stages):
        meant = [name for name in system.stages if group in (name, group_of(name))]
        if not meant:
            raise UserError(
                f"settings for {group}, which bundle {system.name} has not; it has {', '.join(system.stages)}"
            )
        for name in meant:
            chosen[name] = from_json(SamplingSettings, to_json(chosen[name]) | overrides[group], f"settings of {name}")
    return chosen


def group_of(name: str) -> str:
    """Return the plural name of the stages that are called like this one, `upsamplers` of `upsampler_0`."""
    stem, _, number = name.rpartition("_")
    return f"{stem}s" if number.isdecimal() else name


def _groups(options: type) -> dict[str, SamplingSettings | None]:
    """Return the groups of options, and the settings that each has in the bundle, where it is one stage."""
    words = sys.argv[1:]
    named = [word.partition("=")[2] for word in words if word.startswith("--bundle=")]
    named += [after for word, after in itertools.pairwise(words) if word == "--bundle"]
    default = next((each.default for each in dataclasses.fields(options) if each.name == "bundle"), None)  # pyright: ignore[reportArgumentType]
    try:
        system = store.load(named[-1] if named else str(default or ""), weights=False)
    except UserError:
        # Where it matters, the command says so itself.
        return dict.fromkeys(UNCLIP)
    stages = {
        name: system.sampling.get(name) for name, each in system.stages.items() if isinstance(each, DiffusionStage)
    }
    return {group_of(name): own if group_of(name) == name else None for name, own in stages.items()} | stages


def _form(name: str, own: SamplingSettings | None) -> type:
    """Make a dataclass of all settings, each of which may be left out; its help names the bundle's values."""
    said = _docstrings(SamplingSettings)
    fields = []
    for each in dataclasses.fields(SamplingSettings):
        help = said[each.name] if own is None else f"{said[each.name]} Here: {getattr(own, each.name)}."
        fields.append((each.name, Annotated[each.type | None, tyro.conf.arg(help=help)], None))  # pyright: ignore[reportOperatorIssue]
    form = dataclasses.make_dataclass(name, fields, frozen=True, kw_only=True)
    form.__doc__ = (
        f"How the {name} sample; what is left out is as the bundle says." if own is None else f"How {name} samples."
    )
    return form


def _docstrings(cls: type) -> dict[str, str]:
    """Return what stands below each field of a dataclass, in one line."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body  # pyright: ignore[reportAttributeAccessIssue]
    found = {}
    for field, text in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            found[field.target.id] = " ".join(str(text.value.value).split())  # pyright: ignore[reportAttributeAccessIssue]
    return found
