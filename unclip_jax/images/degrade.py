"""The low-resolution condition of an upsampler: real images in training, the last stage's in sampling.

    (1)  x_low = degrade(bicubic(x_high, 1 / scale))        training
         x_low = output of the stage before                 sampling
    (2)  condition = bicubic(x_low, scale)                  both, by one function

Degrading hides the difference between a real image made small and a sample (unCLIP section 2.2):
  blur   a Gaussian, kernel 3 and sigma 0.6: the paper's 64 -> 256 stage.
  bsr    blur, resize, noise and JPEG in a shuffled order, after BSRGAN (arXiv:2103.14006): the paper's
         256 -> 1024 stage. Here all four act on x_low, so their ranges are in low-resolution pixels.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from unclip_jax.core.errors import UserError
from unclip_jax.images.resize import resize, weights

BSR_KERNEL = 7
BSR_SIGMA = (0.2, 1.4)
BSR_NOISE = (1 / 255, 25 / 255)
BSR_QUALITY = (30.0, 95.0)
BSR_RATIOS = (0.5, 0.65, 0.8)

# ITU-T T.81 (the JPEG standard), tables K.1 and K.2.
JPEG_LUMA = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ],
    np.float32,
)
JPEG_CHROMA = np.full((8, 8), 99, np.float32)
JPEG_CHROMA[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]
JPEG_TABLES = np.stack([JPEG_LUMA, JPEG_CHROMA, JPEG_CHROMA])
RGB_TO_YCBCR = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], np.float32)
YCBCR_TO_RGB = np.linalg.inv(RGB_TO_YCBCR.astype(np.float64)).astype(np.float32)
DCT = np.cos(np.pi / 8 * np.outer(np.arange(8), np.arange(8) + 0.5)) / 2
DCT[0] /= np.sqrt(2)
DCT = DCT.astype(np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LowRes:
    """The low-resolution condition of an upsampler.

    Attributes:
        scale: high resolution over low resolution.
        degradation: what training does to the low-resolution image.
        blur_sigma, blur_kernel: of "blur": standard deviation and odd width in low-resolution px.
        strength: of "bsr": 0 leaves almost no damage, 1 has the ranges of BSRGAN.
    """

    scale: int = 4
    degradation: Literal["none", "blur", "bsr"] = "blur"
    blur_sigma: float = 0.6
    blur_kernel: int = 3
    strength: float = 1.0

    def __post_init__(self):
        if self.scale < 1:
            raise UserError(f"scale is {self.scale}; it must be at least 1")
        if self.blur_kernel % 2 == 0 or self.blur_kernel < 1 or self.blur_sigma <= 0:
            raise UserError(f"blur is {self.blur_kernel} px, sigma {self.blur_sigma}; give an odd width and sigma > 0")
        if not 0 <= self.strength <= 1:
            raise UserError(f"strength is {self.strength}; it must lie in [0, 1]")

    def from_high(self, x_high: Float[Array, "b H W c"], keys: Key[Array, " b"]) -> Float[Array, "b h w c"]:
        """Compute equation (1): degraded low-resolution images; each depends on its own key alone, not on the batch.

        Raises UserError where the size is not a multiple of the scale.
        """
        size, width = x_high.shape[1:3]
        if size != width or size % self.scale:
            raise UserError(f"images of {size} x {width} px do not shrink by {self.scale}; give squares that do")
        x_low = jnp.clip(resize(x_high, size // self.scale), -1, 1)
        if self.degradation == "blur":
            kernel = _gaussian_kernel(self.blur_kernel, self.blur_sigma, self.blur_sigma, 0.0)
            return jax.vmap(_filter, in_axes=(0, None))(x_low, kernel)
        if self.degradation == "bsr":
            return jax.vmap(functools.partial(_bsr, strength=self.strength))(x_low, keys)
        return x_low

    def condition(self, x_low: Float[Array, "b h w c"]) -> Float[Array, "b H W c"]:
        """Compute equation (2): low-resolution images at the size of the upsampler's own."""
        return resize(x_low, x_low.shape[1] * self.scale)


def jpeg(x: Float[Array, "h w 3"], quality: Float[Array, ""]) -> Float[Array, "h w 3"]:
    """Compress an image in [-1, 1] by JPEG at a quality of 1 ... 100 as in libjpeg, chroma at full resolution."""
    height, width, _ = x.shape
    rows, columns = -(-height // 8), -(-width // 8)
    padded = jnp.pad(x, ((0, rows * 8 - height), (0, columns * 8 - width), (0, 0)), mode="edge")
    dot = functools.partial(jnp.einsum, precision="highest")
    ycbcr = dot("hwc,yc->yhw", padded * 127.5, RGB_TO_YCBCR)
    # Centred values: [-1, 1] already holds JPEG's level shift of 128, up to half a level.
    blocks = ycbcr.reshape(3, rows, 8, columns, 8)
    coefficients = dot("ui,yrisj,vj->yrsuv", DCT, blocks, DCT)
    percent = jnp.where(quality < 50, 5000 / quality, 200 - 2 * quality)
    table = jnp.clip(jnp.round(JPEG_TABLES * percent / 100), 1, 255)[:, None, None]
    coefficients = jnp.round(coefficients / table) * table
    blocks = dot("ui,yrsuv,vj->yrisj", DCT, coefficients, DCT)
    rgb = dot("yhw,cy->hwc", blocks.reshape(3, rows * 8, columns * 8), YCBCR_TO_RGB)
    return jnp.clip(rgb[:height, :width] / 127.5, -1, 1)


def _bsr(x: Float[Array, "h w 3"], key: Key[Array, ""], *, strength: float) -> Float[Array, "h w 3"]:
    steps = (_random_blur, _random_resize, _random_noise, _random_jpeg)
    steps = [functools.partial(step, strength=strength) for step in steps]
    order_key, *step_keys = jax.random.split(key, 1 + len(steps))
    order = jax.random.permutation(order_key, len(steps))

    def apply(x, step):
        index, key = step
        return jnp.clip(jax.lax.switch(index, steps, x, key), -1, 1), None

    return jax.lax.scan(apply, x, (order, jnp.stack(step_keys)))[0]


def _random_blur(x: Float[Array, "h w c"], key: Key[Array, ""], *, strength: float) -> Float[Array, "h w c"]:
    """Blur by a Gaussian of random widths and angle; isotropic for half of the keys."""
    sigma_key, angle_key, kind_key = jax.random.split(key, 3)
    low, high = BSR_SIGMA
    sigma = jax.random.uniform(sigma_key, (2,), minval=low, maxval=low + strength * (high - low))
    sigma_y = jnp.where(jax.random.bernoulli(kind_key), sigma[0], sigma[1])
    angle = jax.random.uniform(angle_key, maxval=np.pi)
    return _filter(x, _gaussian_kernel(BSR_KERNEL, sigma[0], sigma_y, angle))


def _random_resize(x: Float[Array, "h w c"], key: Key[Array, ""], *, strength: float) -> Float[Array, "h w c"]:
    """Resize down by a random ratio and back up, each by a random method, as one matrix per axis."""
    rows = jnp.asarray(_down_up_matrices(x.shape[0], strength))
    columns = jnp.asarray(_down_up_matrices(x.shape[1], strength))
    index = jax.random.randint(key, (), 0, len(rows))
    return jnp.einsum("hwc,hH,wW->HWc", x, rows[index], columns[index], precision="highest")


@functools.lru_cache(maxsize=32)
def _down_up_matrices(size: int, strength: float) -> np.ndarray:
    """Return [k size size]: each pair of methods at each ratio, as one matrix of the kind of `resize.weights`."""
    small = [max(1, round(size * (1 - strength * (1 - ratio)))) for ratio in BSR_RATIOS]
    return np.stack(
        [
            weights(size, n, down) @ weights(n, size, up)
            for n in small
            for down in ("bicubic", "area", "nearest")
            for up in ("bicubic", "nearest")
        ]
    )


def _random_noise(x: Float[Array, "h w c"], key: Key[Array, ""], *, strength: float) -> Float[Array, "h w c"]:
    """Add Gaussian noise of a random level, in colour or (half of the keys) in grey."""
    level_key, kind_key, noise_key = jax.random.split(key, 3)
    low, high = BSR_NOISE
    level = 2 * jax.random.uniform(level_key, minval=strength * low, maxval=strength * high)
    noise = jax.random.normal(noise_key, x.shape, x.dtype)
    return x + level * jnp.where(jax.random.bernoulli(kind_key), noise, noise[..., :1])


def _random_jpeg(x: Float[Array, "h w 3"], key: Key[Array, ""], *, strength: float) -> Float[Array, "h w 3"]:
    low, high = BSR_QUALITY
    return jpeg(x, jax.random.uniform(key, minval=high - strength * (high - low), maxval=high))


def _gaussian_kernel(
    size: int,
    sigma_x: float | Float[Array, ""],
    sigma_y: float | Float[Array, ""],
    angle: float | Float[Array, ""],
) -> Float[Array, "{size} {size}"]:
    offset = jnp.arange(size) - size // 2
    y, x = offset[:, None], offset[None]
    along, across = x * jnp.cos(angle) + y * jnp.sin(angle), y * jnp.cos(angle) - x * jnp.sin(angle)
    kernel = jnp.exp(-0.5 * ((along / sigma_x) ** 2 + (across / sigma_y) ** 2))
    return kernel / kernel.sum()


def _filter(x: Float[Array, "h w c"], kernel: Float[Array, "k k"]) -> Float[Array, "h w c"]:
    """Convolve with a symmetric kernel, borders mirrored."""
    size, (height, width, _) = kernel.shape[0], x.shape
    padded = jnp.pad(x, ((size // 2, size // 2), (size // 2, size // 2), (0, 0)), mode="reflect")
    # A sum of shifted images fuses into one loop, where a convolution with one kernel per example does not.
    shifted = [kernel[i, j] * padded[i : i + height, j : j + width] for i in range(size) for j in range(size)]
    return functools.reduce(jnp.add, shifted)
