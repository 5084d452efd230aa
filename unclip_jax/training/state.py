"""The state of a run: everything a step changes, and all that a checkpoint needs to hold.

No random key is part of it: keys are folded from (seed, step, row), see `unclip_jax.training.step`.
"""

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Key, PyTree

from unclip_jax.core.errors import UserError
from unclip_jax.parallel.rules import match_rules, path_name
from unclip_jax.parallel.step import replicated
from unclip_jax.stages.stage import Stage
from unclip_jax.training.config import OptimConfig
from unclip_jax.training.optim import make_transform


@flax.struct.dataclass
class State:
    """Parameters in training, their moving average, and the optimiser's moments."""

    # Shapes and shardings take the place of the arrays at times, so the counts are annotated as trees too.
    step: PyTree
    """int32 []: steps taken, skipped ones included; the index of the next step and of its batch."""
    params: PyTree
    ema: PyTree
    opt_state: PyTree
    skipped: PyTree
    """int32 []: steps skipped in a row up to now because their loss or gradient was not finite."""


def _build(params: PyTree, optim: OptimConfig) -> State:
    zero = jnp.zeros((), jnp.int32)
    # A copy, not an alias: params and ema are donated as two buffers.
    ema = jax.tree.map(jnp.copy, params)
    return State(step=zero, params=params, ema=ema, opt_state=make_transform(optim).init(params), skipped=zero)


def abstract_state(stage: Stage, optim: OptimConfig, mesh: Mesh) -> State:
    """Return the state's shapes, types and shardings with no memory behind them, as a State of ShapeDtypeStructs.

    The moving average and the optimiser's moments lie as the parameter they belong to; the counts, and moments of
    fewer dimensions than the parameter (Adafactor's), are replicated.
    """
    shapes = jax.eval_shape(lambda key: _build(stage.init(key), optim), jax.random.key(0))
    whole = replicated(mesh)

    def is_masked(moment) -> bool:  # a parameter that this half of the optimiser leaves to the other
        return isinstance(moment, optax.MaskedNode)

    params = match_rules(stage.sharding_rules(), shapes.params, mesh)
    shardings = State(
        step=whole,
        params=params,
        ema=params,
        opt_state=optax.tree_map_params(
            make_transform(optim),
            lambda moment, param, sharding: moment if is_masked(moment) else _beside(sharding, param, moment),
            shapes.opt_state,
            shapes.params,
            params,
            transform_non_params=lambda _: whole,
            is_leaf=is_masked,
        ),
        skipped=whole,
    )
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def _beside(sharding: NamedSharding, param: jax.ShapeDtypeStruct, moment: jax.ShapeDtypeStruct) -> NamedSharding:
    """Return where a moment of a parameter lies: as the parameter does, but for the dimensions that it has one number
    for."""
    if moment.shape == param.shape:
        return sharding
    if moment.ndim != param.ndim:
        return NamedSharding(sharding.mesh, P())
    axes = [*sharding.spec, *[None] * (param.ndim - len(sharding.spec))]
    split = [
        axis if ours == theirs else None for axis, ours, theirs in zip(axes, moment.shape, param.shape, strict=True)
    ]
    return NamedSharding(sharding.mesh, P(*split)) if any(split) else NamedSharding(sharding.mesh, P())


def state_shardings(abstract: State) -> State:
    """Return the shardings of an abstract or a real state."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)


def init(stage: Stage, optim: OptimConfig, mesh: Mesh, key: Key[Array, ""]) -> State:
    """Create the state before step 0 where it will lie: no device ever holds the unsharded parameters."""
    shardings = state_shardings(abstract_state(stage, optim, mesh))
    return jax.jit(lambda key: _build(stage.init(key), optim), out_shardings=shardings)(key)


def start_from(params: PyTree, abstract: State, optim: OptimConfig) -> State:
    """Return the state before step 0 with given parameters, laid out as `abstract` says.

    Raises UserError, by name, where the parameters are not those of the network.
    """
    found = {path_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    wanted = {path_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(abstract.params)}
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            raise UserError(
                f"the weights to start from have {name} of shape {found.get(name)}, the network {wanted.get(name)}; "
                "start from weights of the same model"
            )
    return jax.jit(lambda params: _build(params, optim), out_shardings=state_shardings(abstract))(params)
