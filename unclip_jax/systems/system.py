"""A trained system in memory: an ordered list of stages with their weights, and the walk through it.

(1) values = inputs;   for each stage of path(inputs, until): values[stage.writes] = stage.sample(values)

A family of models is a list of stages (`unclip_jax.systems.unclip`); nothing here depends on which. Noise belongs
to an example (its index in the request) and to a stage's stream, never to a place in a batch: image 7 of a request is
the same picture whatever the batch size.
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

from unclip_jax.core.config import suggest
from unclip_jax.core.errors import UserError
from unclip_jax.core.typing import Params
from unclip_jax.diffusion.noise import KeyNoise, NoiseSource
from unclip_jax.models.base import Network
from unclip_jax.stages import compiled
from unclip_jax.stages.compiled import Operation
from unclip_jax.stages.diffusion import DiffusionStage
from unclip_jax.stages.encoders import Arrays, Encoder
from unclip_jax.stages.settings import Options, SamplingSettings
from unclip_jax.stages.spaces import EmbeddingStats
from unclip_jax.stages.stage import Stage, Weights
from unclip_jax.systems.basis import Basis
from unclip_jax.text.tokenizer import Tokenizer

Settings = Mapping[str, SamplingSettings]
"""By the name of a stage; the system's own where a stage is not named."""


@dataclasses.dataclass(frozen=True)
class StageOutput:
    """The output of one stage: its name, and the array that it writes, [b ...]."""

    stage: str
    value: Float[Array, "b ..."]


@dataclasses.dataclass(frozen=True)
class Step:
    """One stage of a run: the operation, its options, and rows besides what the stage reads."""

    operation: Operation
    options: Hashable
    rows: Mapping[str, Any] = dataclasses.field(default_factory=dict)


MakeStep = Callable[[str, Stage, SamplingSettings], Step]
"""From a stage's name, itself and its settings to its step."""


def sampling_step(without: tuple[str, ...] = (), starts: Arrays | None = None) -> MakeStep:
    """Make steps in which stages are sampled.

    Args:
        without: conditions, by their tag, that all networks do without.
        starts: x_T by stage, [b ...], instead of noise of their own.
    """

    def make(name: str, stage: Stage, settings: SamplingSettings) -> Step:
        rows = {"x_T": starts[name]} if starts and name in starts else {}
        return Step(type(stage).sample, Options(settings=settings, without=without), rows)

    return make


@dataclasses.dataclass(frozen=True, kw_only=True)
class System:
    """A trained system.

    Attributes:
        name: its name.
        license: an SPDX identifier, or a sentence.
        description: what it was trained on and is good for.
        encoders: frozen networks that stages need, by name.
        stages: by name, in the order in which they run.
        params: the stages' parameters, by name; absent where only the description was read.
        streams: each stage's stream of noise, a number that is its own.
        sampling: the default sampling settings of stages; a stage may be absent.
        identities: by encoder and stage, which encoder's embeddings they were made for (`identity`).
        tokenizer: how captions become tokens; None if nothing reads captions.
        stats: statistics of z_i, for the stages that need them.
        basis: principal components of z_i, where they were measured.
        hash: sha256 over all files, hexadecimal; "" if it was never on disk.
        mesh: devices that share the rows of what is computed; None for one.
    """

    name: str
    license: str = ""
    description: str = ""
    encoders: dict[str, Encoder] = dataclasses.field(default_factory=dict, repr=False)
    stages: dict[str, Stage]
    params: dict[str, Params] = dataclasses.field(default_factory=dict, repr=False)
    streams: dict[str, int] = dataclasses.field(default_factory=dict)
    sampling: dict[str, SamplingSettings] = dataclasses.field(default_factory=dict)
    identities: dict[str, str] = dataclasses.field(default_factory=dict)
    tokenizer: Tokenizer | None = None
    stats: EmbeddingStats | None = None
    basis: Basis | None = None
    hash: str = ""
    mesh: Mesh | None = None

    @property
    def networks(self) -> dict[str, Network]:
        """All networks by name, encoders first."""
        encoders = {name: encoder.network for name, encoder in self.encoders.items()}
        return encoders | {name: stage.network for name, stage in self.stages.items()}

    def stage(self, name: str) -> DiffusionStage:
        """Return the diffusion stage called `name`; UserError if there is none."""
        self._check_has(name)
        stage = self.stages[name]
        if not isinstance(stage, DiffusionStage):
            raise UserError(f"{name} of bundle {self.name} is no diffusion stage; use a bundle in which it is")
        return stage

    def encoder(self, name: str) -> Encoder:
        """Return the encoder called `name`; UserError if there is none."""
        if name not in self.encoders:
            raise UserError(f"bundle {self.name} has no {name}, only {self._parts}; use one that has it")
        return self.encoders[name]

    @property
    def _parts(self) -> str:
        return ", ".join(self.networks)

    def _check_has(self, name: str) -> None:
        if name not in self.stages:
            raise UserError(f"bundle {self.name} has no {name}, only {self._parts}; use one that has it")

    def writer(self, array: str, before: str | None = None) -> str:
        """Name the stage that writes an array, among those before a stage; UserError if none does."""
        for name, stage in self.stages.items():
            if name == before:
                break
            if stage.writes == array:
                return name
        made = ", ".join(stage.writes for stage in self.stages.values())
        raise UserError(f"bundle {self.name} makes no {array}, only {made}; give it, or use a bundle that makes it")

    def reader(self, array: str) -> str:
        """Name the first stage that reads an array; UserError if none does."""
        for name, stage in self.stages.items():
            if array in stage.reads:
                return name
        raise UserError(f"bundle {self.name} has no stage that reads {array}, only {self._parts}; use one that does")

    def image_sizes(self) -> dict[int, str]:
        """Return the stages that write images, by the size of these in px."""
        sizes = {}
        for name, stage in self.stages.items():
            if stage.image_size is not None:
                sizes[stage.image_size] = name
        return sizes

    def weights(self, name: str) -> Weights:
        """Return what a stage computes with; UserError where the system lacks some of it."""
        stage = self.stages[name]
        frozen: dict[str, Any] = {encoder: self.encoder(encoder) for encoder in stage.encoders}
        if stage.needs_stats:
            frozen["stats"] = self.stats
        return Weights(params=self.params[name], frozen=frozen)

    def path(self, given: Mapping[str, object], until: str | None = None) -> list[str]:
        """Return the stages that lead from the arrays `given` to the stage `until`, in order; to the last one for None.

        Raises UserError where there is no such stage, or an array is missing that none of them makes.
        """
        last = until if until is not None else next(reversed(self.stages), None)
        if last is None:
            raise UserError(f"bundle {self.name} has no stages; use one that has some")
        self._check_has(last)
        needed: set[str] = set()

        def need(name: str) -> None:
            needed.add(name)
            for array in self.stages[name].reads:
                if given.get(array) is None:
                    need(self.writer(array, before=name))

        need(last)
        for name in needed:
            for encoder in self.stages[name].encoders:
                self.encoder(encoder)
        return [name for name in self.stages if name in needed]

    def settings(self, names: list[str], settings: Settings | None = None) -> dict[str, SamplingSettings]:
        """Return the system's own settings with `settings` on top, checked for the stages `names`."""
        chosen = {name: self.sampling.get(name, SamplingSettings()) for name in self.stages}
        for name, own in (settings or {}).items():
            if name not in chosen:
                known = suggest(name, list(chosen))
                raise UserError(f"settings for {name}, which bundle {self.name} has not; {known}")
            chosen[name] = own
        for name in names:
            self.stages[name].check_settings(name, chosen[name])
        return chosen


def run(
    system: System,
    inputs: Arrays,
    key: Key[Array, ""],
    *,
    until: str | None = None,
    indices: Int[Array, " b"] | None = None,
    settings: Settings | None = None,
    step: MakeStep | None = None,
) -> Iterator[StageOutput]:
    """Run equation (1), stage by stage as the iterator is advanced.

    Args:
        inputs: named arrays [b ...] (`unclip_jax.stages.stage`): with z_i it starts after the stage that writes it.
        key: of the whole request. Stages and examples fold their own numbers into it.
        until: the last stage that runs; the system's last one by default.
        indices: each row's number in the request; 0, 1, ... by default.
        settings: by stage; the system's own where a stage is not named.
        step: makes the step of each stage; by default it is sampled (`sampling_step`).

    Raises:
        UserError: a setting is out of range, or the system lacks a stage, an encoder or an array.
    """
    names = system.path(inputs, until)
    chosen = system.settings(names, settings)
    values: dict[str, Any] = dict(inputs)
    numbers = jnp.arange(len(next(iter(jax.tree.leaves(values))))) if indices is None else indices
    make = step or sampling_step()
    steps = {name: make(name, system.stages[name], chosen[name]) for name in names}

    def outputs() -> Iterator[StageOutput]:
        for name in names:
            noise = noise_of(system, name, key, numbers, chosen)
            value = program_of(system, name, steps[name], values, noise)()
            values[system.stages[name].writes] = value
            yield StageOutput(name, value)

    return outputs()


def noise_of(system: System, name: str, key: Key[Array, ""], indices: Int[Array, " b"], settings: Settings) -> KeyNoise:
    """Return the noise of a stage in the request with that key, for the examples with these numbers."""
    return system.stages[name].noise(jax.random.fold_in(key, system.streams[name]), indices, settings[name])


def program_of(
    system: System, name: str, step: Step, values: Arrays, noise: NoiseSource | None
) -> Callable[[], Float[Array, "b ..."]]:
    """Return one stage by itself, ready to be called: `step`, on what the stage reads of `values`."""
    stage = system.stages[name]
    rows = {array: values.get(array) for array in stage.reads} | dict(step.rows)
    program = compiled.program(step.operation, system.mesh)
    return functools.partial(program, stage, step.options, system.weights(name), rows, noise)
