"""Networks: each file holds a spec, the module that it describes, its sharding rules and its presets."""

from unclip_jax.models.base import NETWORKS, Denoiser, Network
from unclip_jax.models.clip import CLIPSpec
from unclip_jax.models.experts import TimestepExperts
from unclip_jax.models.prior import PriorSpec
from unclip_jax.models.unet import UNetSpec

# The one table from a name in JSON to a class.
NETWORKS |= {cls.TAG[1]: cls for cls in (CLIPSpec, PriorSpec, UNetSpec, TimestepExperts)}

__all__ = ["NETWORKS", "CLIPSpec", "Denoiser", "Network", "PriorSpec", "TimestepExperts", "UNetSpec"]
