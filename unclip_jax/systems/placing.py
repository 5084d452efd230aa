"""A system's weights on a mesh: a copy per replica of the axis `data`, each split over the other axes."""

import dataclasses

import jax
from jax.sharding import Mesh
from jaxtyping import PyTree

from unclip_jax.core.typing import Params
from unclip_jax.models.base import Network
from unclip_jax.parallel.distributed import put_global
from unclip_jax.parallel.rules import REPLICATE, match_rules
from unclip_jax.parallel.step import replicated
from unclip_jax.stages.encoders import Encoder
from unclip_jax.stages.stage import Stage, Weights
from unclip_jax.systems.system import System


def place(system: System, mesh: Mesh) -> System:
    """Place the weights of `system` on `mesh`; what is sampled with it is sampled by all devices of the mesh.

    Raises UserError where the mesh does not divide a parameter.
    """
    encoders = {name: _place_encoder(encoder, mesh) for name, encoder in system.encoders.items()}
    params = {
        name: put_global(own, network_shardings(system.stages[name].network, own, mesh))
        for name, own in system.params.items()
    }
    stats = put_global(system.stats, jax.tree.map(lambda _: replicated(mesh), system.stats))
    return dataclasses.replace(system, encoders=encoders, params=params, stats=stats, mesh=mesh)


def _place_encoder(encoder: Encoder, mesh: Mesh) -> Encoder:
    params = put_global(encoder.params, network_shardings(encoder.network, encoder.params, mesh))
    return Encoder(network=encoder.network, params=params)


def network_shardings(network: Network, params: Params, mesh: Mesh) -> PyTree:
    """Return where `place` puts the parameters of a network, which may be shapes; {} where none were read."""
    whole = mesh.shape["fsdp"] * mesh.shape["tensor"] == 1 or not params
    return match_rules(REPLICATE if whole else network.sharding_rules(), params, mesh)


def abstract_weights(stage: Stage, networks: dict[str, Network], mesh: Mesh) -> Weights:
    """Return the weights of a stage as shapes laid on `mesh`, for planning."""

    def on_mesh(shapes: PyTree, shardings: PyTree) -> PyTree:
        return jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), shapes, shardings
        )

    def laid(network: Network) -> Params:
        shapes = network.abstract_params()
        return on_mesh(shapes, network_shardings(network, shapes, mesh))

    frozen = stage.abstract_frozen(networks)
    for name, value in frozen.items():
        if isinstance(value, Encoder):
            frozen[name] = Encoder(network=value.network, params=laid(value.network))
        else:
            frozen[name] = on_mesh(value, jax.tree.map(lambda _: replicated(mesh), value))
    return Weights(params=laid(stage.network), frozen=frozen)
