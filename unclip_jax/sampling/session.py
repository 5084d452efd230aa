"""A system ready to sample: weights placed once, requests in, outputs of stages out.

    session = Session(load("demo"))
    for done in session.submit(Request(inputs=..., seed=0)):     # stage by stage, batch by batch
        ...                                                       # stop iterating to cancel between stages
    images = session.result(Request(...))

Image i of a request is the same whatever the batch size: its noise is folded from the seed, its number and the stage.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int, Shaped

from unclip_jax.core.errors import UserError
from unclip_jax.parallel.distributed import put_global, to_host
from unclip_jax.parallel.step import batch_sharding
from unclip_jax.sampling.batching import batches_of, joined
from unclip_jax.systems.placing import place
from unclip_jax.systems.system import MakeStep, Settings, Step, System, noise_of, program_of, sampling_step

LoadWeights = Callable[[tuple[str, ...]], System]
"""Reads the weights of the named encoders and stages."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be sampled.

    Attributes:
        inputs: named arrays [n ...] on the host (`unclip_jax.stages.stage`): captions as tokens and mask, z_i, images.
        seed: of the whole request.
        until: the last stage that runs; the system's last one by default.
        indices: whose noise each row has; 0, 1, ... by default.
        settings: by stage; the system's own where a stage is not named.
        without: conditions, by their tag, that all networks do without.
        starts: x_T by stage, [n h w 3], instead of noise.
        only: sample this row alone, in the batch that it has in the whole request: to the bit the same.
    """

    inputs: Mapping[str, Shaped[np.ndarray, "n ..."]]
    seed: int
    until: str | None = None
    indices: Int[np.ndarray, " n"] | None = None
    settings: Settings | None = None
    without: tuple[str, ...] = ()
    starts: Mapping[str, Float[np.ndarray, "n ..."]] = dataclasses.field(default_factory=dict)
    only: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed is {self.seed}; it must be at least 0 and below 2**32")
        if self.only is not None and not 0 <= self.only < self.count:
            raise ValueError(f"there is no image {self.only} among {self.count}")

    @property
    def count(self) -> int:
        """Number of rows."""
        return len(next(iter(self.inputs.values())))


class Progress(NamedTuple):
    """What has just been finished: stage number `number` of `num_stages`, for the rows `first` to `done` - 1 of
    `total`; `value` is what it made, these rows first and then what fills up the batch.
    """

    stage: str
    number: int
    num_stages: int
    first: int
    done: int
    total: int
    seconds: float
    value: Float[jax.Array, "b ..."]


class Session:
    """A system that samples batches of one size.

    Args:
        system: with its weights, or without where `load_weights` reads them.
        mesh: devices, of all hosts, that share the rows; every host gets every row. Meshes that split rows
            alone, over two devices or more, make the same rows to the bit; others may round differently, and so may the
            default device alone, for None.
        batch_size: rows sampled at once, by each replica; the last batch is padded, so that it runs the programs of the
            others.
        load_weights: reads the weights of a stage when it begins. All batches then go through one stage after another,
            and the weights of a stage are freed when it ends: the largest stage has to fit, not their sum.

    Raises:
        UserError: the batch size is below 1, or the mesh does not divide a parameter.
    """

    def __init__(
        self, system: System, mesh: Mesh | None = None, *, batch_size: int = 16, load_weights: LoadWeights | None = None
    ):
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; it must be at least 1")
        self._mesh, self._batch_size, self._load_weights = mesh, batch_size, load_weights
        self.system = system if mesh is None or load_weights is not None else place(system, mesh)

    def submit(self, request: Request, step: MakeStep | None = None) -> Iterator[Progress]:
        """Sample as the iterator is advanced, stage by stage; not advancing it cancels the rest.

        Args:
            step: makes the step of each stage, as in `systems.run`; its rows [n ...] are cut into batches too.

        Raises:
            UserError: a setting is out of range, or the system lacks a stage, an encoder or an array.
        """
        names = self.system.path(request.inputs, request.until)
        chosen = self.system.settings(names, request.settings)
        make = step or sampling_step(request.without, request.starts)
        steps = {name: make(name, self.system.stages[name], chosen[name]) for name in names}
        return self._run(request, names, chosen, steps)

    def result(
        self, request: Request, progress: Callable[[Progress], None] | None = None, step: MakeStep | None = None
    ) -> np.ndarray:
        """Return the output of the last stage for the whole request, or for the row `only`; arguments and errors as of
        `submit`.

        Args:
            progress: called after every stage of every batch.
        """
        made = {}
        for each in self.submit(request, step):
            if progress is not None:
                progress(each)
            if each.number == each.num_stages:
                made[each.first] = to_host(each.value)
        return joined(made, request.count, request.only)

    def _size(self, count: int) -> int:
        replicas = 1 if self._mesh is None else self._mesh.shape["data"] * self._mesh.shape["fsdp"]
        return min(self._batch_size, math.ceil(count / replicas)) * replicas

    def _run(self, request: Request, names: list[str], chosen: Settings, steps: dict[str, Step]) -> Iterator[Progress]:
        count, size, key = request.count, self._size(request.count), jax.random.key(request.seed)
        batches = dict(batches_of(count, size, request.only))
        inputs = {first: self._rows(request.inputs, rows) for first, rows in batches.items()}
        by_stage = self._load_weights is not None
        pairs = [(name, first) for name in names for first in batches]
        if not by_stage:
            pairs = [(name, first) for first in batches for name in names]
        system, loaded = self.system, ""
        for name, first in pairs:
            start, rows = time.perf_counter(), batches[first]
            if by_stage and loaded != name:
                # The stage before goes before this one comes.
                del system
                system, loaded = self._loaded(name), name
            step = dataclasses.replace(steps[name], rows=self._rows(steps[name].rows, rows))
            numbers = np.arange(first, first + len(rows)) if request.indices is None else request.indices[rows]
            noise = noise_of(system, name, key, self._put(numbers), chosen)
            value = jax.block_until_ready(program_of(system, name, step, inputs[first], noise)())
            inputs[first][system.stages[name].writes] = value
            yield Progress(
                stage=name,
                number=1 + names.index(name),
                num_stages=len(names),
                first=first,
                done=min(first + size, count),
                total=count,
                seconds=time.perf_counter() - start,
                value=value,
            )

    def _loaded(self, name: str) -> System:
        assert self._load_weights is not None
        system = self._load_weights((*self.system.stages[name].encoders, name))
        return system if self._mesh is None else place(system, self._mesh)

    def _rows(self, arrays: Mapping[str, Any], rows: Int[np.ndarray, " b"]) -> dict[str, Any]:
        return {name: None if array is None else self._put(np.asarray(array)[rows]) for name, array in arrays.items()}

    def _put(self, array: np.ndarray) -> jax.Array:
        return jnp.asarray(array) if self._mesh is None else put_global(array, batch_sharding(self._mesh))
