"""Sampling settings of a bundle's parts, changed from a command line: decoder.guidance_scale=2 prior.steps=25."""

import json
from collections.abc import Sequence

from unclip_jax.core.config import from_json, suggest, to_json
from unclip_jax.core.errors import UserError
from unclip_jax.stages.settings import StageSettings


def changed(sampling: dict[str, StageSettings], assignments: Sequence[str]) -> dict[str, StageSettings]:
    """`sampling` with assignments of the form part.field=value on top; UserError for one that says nothing."""
    settings = {name: to_json(how) for name, how in sampling.items()}
    for assignment in assignments:
        target, equals, text = assignment.partition("=")
        part, dot, field = target.partition(".")
        if not (equals and dot):
            raise UserError(f"cannot read --sampling {assignment}; write it as decoder.guidance_scale=2")
        if part not in settings:
            raise UserError(f"--sampling {assignment}: no {part} is sampled; {suggest(part, list(settings))}")
        try:
            settings[part][field] = json.loads(text)
        except ValueError:
            settings[part][field] = text
    return {name: from_json(StageSettings, how, f"--sampling {name}") for name, how in settings.items()}
