"""One optimiser step of any stage as a pure function (state, frozen, batch) -> (state, metrics).

The loss is the mean over the global batch of B examples; every example draws from its own key,

    key_i = fold_in(fold_in(key(seed), step), i),   i = row in the global batch               (1)

so the numbers of a run depend neither on how many devices share the batch nor on how many microbatches it is
cut into. A step whose loss or gradient norm is not finite leaves parameters, average and moments as they
were.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from unclip_jax.core.errors import UserError
from unclip_jax.parallel.layout import global_rows, num_batch_shards, shard_batch, sum_over_batch
from unclip_jax.stages.stage import Batch, Stage, StageMetrics
from unclip_jax.training.config import OptimConfig
from unclip_jax.training.optim import clip, learning_rate, make_transform, update_ema
from unclip_jax.training.state import State

Metrics = dict[str, Float[Array, ""]]
StepFn = Callable[[State, PyTree, Batch], tuple[State, Metrics]]

_OWN_METRICS: tuple[str, ...] = ("loss", "grad_norm", "learning_rate", "skipped")


def example_keys(seed: int, step: Int[Array, ""], rows: Int[Array, " b"]) -> Key[Array, " b"]:
    """Compute equation (1) for the given rows of the global batch."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)


def make_step(stage: Stage, optim: OptimConfig, *, total_steps: int, seed: int) -> StepFn:
    """Make the train step of `stage`, to be compiled by `unclip_jax.parallel.step.compile_step`.

    Metrics are scalars: `loss`, `grad_norm` (before clipping), `learning_rate`, `skipped` (`State.skipped`
    after the step) and the stage's own, weighted over the global batch; NaN where the batch gave a metric no
    weight. Raises UserError, when traced, for a batch that `optim.accumulate` does not divide.
    """
    transform = make_transform(optim)
    rate = learning_rate(optim, total_steps)

    def step(state: State, frozen: PyTree, batch: Batch) -> tuple[State, Metrics]:
        rows = global_rows(len(jax.tree.leaves(batch)[0]))
        size = len(rows) * num_batch_shards()

        def part(params: PyTree, rows: Int[Array, " b"], batch: Batch):
            keys = example_keys(seed, state.step, rows)
            per_example, values = stage.loss(params, state.ema, frozen, batch, keys)
            return jnp.sum(per_example) / size, _sums(values)

        gradient = _accumulated(jax.value_and_grad(part, has_aux=True), optim.accumulate)
        (loss, sums), grads = sum_over_batch(gradient(state.params, rows, batch))
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)

        updates, opt_state = transform.update(clip(grads, grad_norm, optim), state.opt_state, state.params)
        lr = rate(state.step)
        params = jax.tree.map(lambda p, u: p - lr * u, state.params, updates)
        ema = update_ema(state.ema, params, state.step, optim.ema_decay)

        def unless_bad(new: PyTree, old: PyTree) -> PyTree:
            return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

        new_state = State(
            step=state.step + 1,
            params=unless_bad(params, state.params),
            ema=unless_bad(ema, state.ema),
            opt_state=unless_bad(opt_state, state.opt_state),
            skipped=jnp.where(finite, 0, state.skipped + 1),
        )
        metrics = {name: jnp.where(w > 0, vw / jnp.maximum(w, 1e-12), jnp.nan) for name, (vw, w) in sums.items()}
        own = (loss, grad_norm, lr, new_state.skipped.astype(jnp.float32))
        return new_state, metrics | dict(zip(_OWN_METRICS, own, strict=True))

    return step


def _sums(values: StageMetrics) -> dict[str, tuple[Float[Array, ""], Float[Array, ""]]]:
    """Return {metric: (sum of value * weight, sum of weight)}."""
    if taken := set(values) & set(_OWN_METRICS):
        raise ValueError(f"the stage's metrics {sorted(taken)} have names that the step itself uses")
    return {name: (jnp.sum(jnp.where(w > 0, v * w, 0.0)), jnp.sum(w)) for name, (v, w) in values.items()}


def _accumulated(gradient: Callable[..., PyTree], microbatches: int) -> Callable[..., PyTree]:
    """Return `gradient(params, rows, batch)` as a sum over microbatches, computed one after another."""
    if microbatches == 1:
        return gradient

    def accumulated(params: PyTree, rows: Int[Array, " b"], batch: Batch) -> PyTree:
        if len(rows) % microbatches:
            raise UserError(
                f"accumulate is {microbatches}, which does not divide the batch of {len(rows)}; choose a divisor"
            )
        # Row i goes to microbatch i mod A: dimension 0 of [B/A, A] keeps the batch's sharding, so no row moves.
        strided = jax.tree.map(
            lambda x: jnp.swapaxes(x.reshape(-1, microbatches, *x.shape[1:]), 0, 1),
            (rows, batch),
        )

        def add(sums, microbatch):
            microbatch = jax.tree.map(shard_batch, microbatch)
            return jax.tree.map(jnp.add, sums, gradient(params, *microbatch)), None

        first = jax.eval_shape(gradient, params, *jax.tree.map(lambda x: x[0], strided))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), first)
        return jax.lax.scan(add, zeros, strided)[0]

    return accumulated
