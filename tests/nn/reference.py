"""The layers again in NumPy float64, written from their equations, and random parameters for them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import erf

# Networks run once or twice here: what counts is the time to compile them.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def random_params(shapes: Any, seed: int = 0) -> Any:
    """Parameters of the shapes given, nothing at its initial value: also what starts at zero or one is random."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name == "kernel":
            scale, mean = np.prod(leaf.shape[-4:-1] if leaf.ndim > 3 else leaf.shape[-2:-1]) ** -0.5, 0.0
        else:
            scale, mean = 0.3, float(name == "scale")
        return jnp.asarray(mean + scale * rng.standard_normal(leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def init_random(module, *arguments, seed: int = 0):
    """`random_params` of a module called with `arguments`."""
    shapes = jax.eval_shape(lambda *args: module.init(jax.random.key(0), *args), *arguments)["params"]
    return random_params(shapes, seed)


def f64(x) -> np.ndarray:
    return np.asarray(x, np.float64)


def apply(module, params, *arguments, **options) -> Any:
    """What a module makes of `arguments`; Flax says that it may come with variables, which it does not here."""
    return module.apply({"params": params}, *arguments, **options)


def silu(x):
    return x / (1 + np.exp(-x))


def gelu(x):
    return x * (1 + erf(x / np.sqrt(2))) / 2


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def dense(params, x):
    return f64(x) @ f64(params["kernel"]) + f64(params["bias"])


def attention(query, key, value, mask=None):
    """One head at a time; `mask` broadcasts to [b, heads, q, s]."""
    query, key, value = (f64(each) for each in (query, key, value))
    b, q, heads, d = query.shape
    visible = np.broadcast_to(True if mask is None else mask, (b, heads, q, key.shape[1]))
    out = np.zeros(query.shape)
    for i in range(b):
        for k in range(heads):
            logits = query[i, :, k] @ key[i, :, k].T / np.sqrt(d)
            out[i, :, k] = softmax(np.where(visible[i, k], logits, -np.inf)) @ value[i, :, k]
    return out


def group_norm(params, x, groups, scale: Any = 0.0, shift: Any = 0.0):
    x = f64(x)
    b, h, w, c = x.shape
    grouped = x.reshape(b, h * w, groups, c // groups)
    mean, variance = grouped.mean((1, 3), keepdims=True), grouped.var((1, 3), keepdims=True)
    normal = ((grouped - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape)
    scale, shift = (each[:, None, None, :] if np.ndim(each) else each for each in (scale, shift))
    return (normal * params["scale"] + params["bias"]) * (1 + scale) + shift


def layer_norm(params, x):
    x = f64(x)
    normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return normal * params["scale"] + params["bias"]


def conv3x3(params, x):
    x, kernel = f64(x), f64(params["kernel"])
    b, h, w, _ = x.shape
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    out = np.zeros((b, h, w, kernel.shape[-1]))
    for y in range(h):
        for column in range(w):
            out[:, y, column] = np.einsum("bijc,ijce->be", padded[:, y : y + 3, column : column + 3], kernel)
    return out + params["bias"]


def self_attention(params, x, heads, mask=None):
    b, n, d = np.shape(x)
    query, key, value = (dense(params[name], x).reshape(b, n, heads, d // heads) for name in ("query", "key", "value"))
    return dense(params["out"], attention(query, key, value, mask).reshape(b, n, d))


def block(params, x, heads, mask=None):
    """One block of the Transformer, with the exact GELU."""
    x = x + self_attention(params["attention"], layer_norm(params["norm_attention"], x), heads, mask)
    return x + dense(params["proj"], gelu(dense(params["fc"], layer_norm(params["norm_mlp"], x))))
