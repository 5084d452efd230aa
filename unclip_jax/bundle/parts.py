"""A trained system in memory."""

import dataclasses
import hashlib
from types import ModuleType
from typing import Any, Literal

import numpy as np
from flax import traverse_util

from unclip_jax.bundle.basis import Basis
from unclip_jax.core.errors import UserError
from unclip_jax.core.typing import Params
from unclip_jax.diffusion.gaussian import ProcessSpec
from unclip_jax.diffusion.samplers import X0Variance
from unclip_jax.models import clip, prior, unet
from unclip_jax.models.clip import CLIPSpec
from unclip_jax.models.prior import EmbeddingStats, PriorSpec
from unclip_jax.models.unet import UNetSpec
from unclip_jax.stages.settings import StageSettings
from unclip_jax.text.tokenizer import Tokenizer

Kind = Literal["clip", "prior", "decoder", "upsampler"]
Spec = CLIPSpec | PriorSpec | UNetSpec

SPECS: dict[str, type[Spec]] = {
    "clip": CLIPSpec,
    "prior": PriorSpec,
    "decoder": UNetSpec,
    "upsampler": UNetSpec,
}
_NETWORKS: dict[str, ModuleType] = {"clip": clip, "prior": prior, "decoder": unet, "upsampler": unet}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One network of the system.

    Attributes:
        kind: what it does.
        spec: what it looks like.
        process: the diffusion that it was trained to reverse; None for CLIP.
        params: its weights; {} where only the description was read.
        clip_identity: the CLIP that it was trained with, see `identity`; CLIP's own; None if it saw none.
        low_res_size: side in pixels of the images that an upsampler starts from; None for the others.
        x0_variance: what the sampler "analytic" needs to know of the network; None where it was not measured.
        experts: training steps that divide the work among networks of one spec: `params["expert_0"]` acts below
            experts[0], expert_1 from there up to experts[1], and so on. () is one network for all steps.
    """

    kind: Kind
    spec: Spec
    process: ProcessSpec | None = None
    params: Params = dataclasses.field(default_factory=dict, repr=False)
    clip_identity: str | None = None
    low_res_size: int | None = None
    x0_variance: X0Variance | None = None
    experts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.experts and (self.kind not in ("decoder", "upsampler") or sorted(set(self.experts)) != [*self.experts]):
            raise UserError(f"{self.kind}: experts is {self.experts}; it must hold ascending steps of a U-Net's part")

    def abstract_params(self) -> Params:
        """Shapes of the weights that `spec` and `experts` ask for."""
        one = _NETWORKS[self.kind].abstract_params(self.spec)
        return {f"expert_{i}": one for i in range(len(self.experts) + 1)} if self.experts else one


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bundle:
    """A trained system.

    Attributes:
        name: what people call it.
        license: an SPDX identifier, or a sentence.
        description: what it was trained on and is good for.
        parts: "clip", "prior", "decoder", "upsampler_0", "upsampler_1", ...; any of them may be absent.
        sampling: how its parts are sampled where nothing else is asked for; a part may be absent.
        tokenizer: how captions become tokens; None if no part reads captions.
        stats: statistics of z_i, the space that the prior works in; they come and go with the prior.
        basis: principal components of z_i; they come and go with CLIP, and may be absent.
        hash: sha256 over all files, hexadecimal; "" if it was never on disk.
    """

    name: str
    license: str = ""
    description: str = ""
    parts: dict[str, Part]
    sampling: dict[str, StageSettings] = dataclasses.field(default_factory=dict)
    tokenizer: Tokenizer | None = None
    stats: EmbeddingStats | None = None
    basis: Basis | None = None
    hash: str = ""

    def part(self, name: str) -> Part:
        """The part called `name`.

        Raises:
            UserError: if the bundle has none.
        """
        if name not in self.parts:
            parts = ", ".join(self.parts)
            raise UserError(f"bundle {self.name} has no {name}, only {parts}; use one that has it")
        return self.parts[name]

    @property
    def upsamplers(self) -> list[Part]:
        """The upsamplers in the order in which they are applied."""
        return [self.parts[name] for name in sorted(self.parts) if self.parts[name].kind == "upsampler"]


def identity(params: Params) -> str:
    """What tells one CLIP's embedding space from another's: sha256 over names, shapes and float32 values.

    Take it from the weights as they were trained; a bundle keeps it when it stores them in fewer bits.
    """
    digest = hashlib.sha256()
    for name, value in sorted(flatten(params).items()):
        array = np.asarray(value, np.float32, order="C")
        digest.update(f"{name} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def flatten(params: Params) -> dict[str, Any]:
    """Nested parameters as a/b/kernel: array."""
    return traverse_util.flatten_dict(params, sep="/")


def unflatten(tensors: dict[str, Any]) -> Params:
    """The inverse of `flatten`."""
    return traverse_util.unflatten_dict(tensors, sep="/")
