"""The inputs of the forwards that are compared, by name; and where what torch makes of them is kept."""

from pathlib import Path

import numpy as np

from tests.convert.tokenizer import CONTEXT
from tests.parity.weights import draw

GOLDEN = Path(__file__).parent.parent / "golden" / "parity"
T = np.array([5, 700])
EMBED_DIM, DECODER_SIZE, UPSAMPLER_SIZE = 32, 16, 32

z_t = draw("z_t", (2, EMBED_DIM))
hidden = draw("hidden", (2, CONTEXT, EMBED_DIM))
mask = np.arange(CONTEXT) < np.array([[9], [4]])
z_i = draw("z_i", (2, EMBED_DIM))
x_prior = draw("x_prior", (2, EMBED_DIM))
x_decoder = draw("x_decoder", (2, DECODER_SIZE, DECODER_SIZE, 3))
x_upsampler = draw("x_upsampler", (2, UPSAMPLER_SIZE, UPSAMPLER_SIZE, 3))
low_res = draw("low_res", (2, UPSAMPLER_SIZE, UPSAMPLER_SIZE, 3))
images = np.tanh(draw("images", (2, 32, 32, 3)))
"""In [-1, 1]; CLIP's own normalisation is the network's business on our side and the caller's on theirs."""


def tokens(vocab_size: int) -> np.ndarray:
    """Two captions: a first token, words, end-of-text (the last id), and padding with id 0."""
    rows = np.zeros((2, CONTEXT), np.int32)
    for row, length in enumerate((9, 4)):
        rows[row, 0], rows[row, length - 1] = vocab_size - 2, vocab_size - 1
        rows[row, 1 : length - 1] = 5 + 7 * np.arange(length - 2)
    return rows
