"""Low-rank adapters: a few trained numbers that change what a network computes.

    lora      the mathematics: parameters, where they lie on a mesh, and how they are merged into a network's
    stage     a stage of which an adapter is trained, and nothing else

`unclip_jax.systems.adapting` merges adapters into a system; `unclip_jax.convert.adapters` has their files.
"""
