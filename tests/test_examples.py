"""The files in examples/ do what they say; and the public face, which they use."""

import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import unclip_jax
from unclip_jax.models.unet import UNetSpec

pytestmark = pytest.mark.usefixtures("quick_compile")

EXAMPLES = Path(__file__).parent.parent / "examples"


def example(name):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]


def size_of(path):
    with Image.open(path) as image:
        return image.size


@pytest.mark.slow
def test_sample_a_batch(tmp_path, capsys):
    example("sample_a_batch")(tmp_path / "sheets" / "batch.png", steps=2)
    assert size_of(tmp_path / "sheets" / "batch.png")[0] > 2 * 128
    assert capsys.readouterr().out.endswith("batch.png: 4 pictures of 128 px\n")


@pytest.mark.slow
def test_train_a_decoder(tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    for i, colour in enumerate(np.random.default_rng(0).integers(0, 256, (20, 3))):
        Image.new("RGB", (40, 30), tuple(colour.tolist())).save(tmp_path / "photos" / f"{i}.jpg")
        (tmp_path / "photos" / f"{i}.txt").write_text("a photo")
    model = {"image_size": 16, "channels": 8, "channel_mult": (1,), "num_blocks": 1, "groups": 4, "head_channels": 8}
    widths = {"embed_dim": 128, "context_width": 16, "text_width": 128, "attention_resolutions": (16,)}
    spec = UNetSpec(**model, **widths, learned_sigma=False)
    example("train_a_decoder")(tmp_path / "photos", tmp_path / "run", spec, steps=4)
    assert size_of(tmp_path / "run" / "photo.png")[0] > 2 * 16
    assert "step 4/4 (100%)" in capsys.readouterr().out


@pytest.mark.slow
def test_emoji_pictures(tmp_path):
    module = runpy.run_path(str(EXAMPLES / "emoji_pictures.py"))
    if not module["FONT"].is_file():
        pytest.skip(f"there is no {module['FONT']}")
    count = module["main"](tmp_path)
    assert count > 1000 and len(list(tmp_path.glob("*.png"))) == len(list(tmp_path.glob("*.txt"))) == count
    assert (tmp_path / "1f600.txt").read_text() == "grinning face\n"
    with Image.open(tmp_path / "1f600.png") as face:
        yellow = np.asarray(face)[68, 40]
    assert yellow[0] > 200 and yellow[1] > 150 and yellow[2] < 120 and size_of(tmp_path / "1f600.png") == (136, 136)


@pytest.mark.slow
def test_write_a_sampler():
    errors = example("write_a_sampler")(steps=8, accurate=40)
    assert 0 < errors["Adams-Bashforth"] < 0.9 * errors["DDIM"]


def test_every_name_of_the_face_is_there():
    for name in (*unclip_jax.__all__, *unclip_jax._NAMESPACES):
        value = getattr(unclip_jax, name)
        for inner in getattr(value, "__all__", ()):
            assert getattr(value, inner) is not None
    assert set(unclip_jax.__all__) <= set(dir(unclip_jax))
    with pytest.raises(AttributeError, match="no attribute 'text_to_imag'"):
        _ = unclip_jax.text_to_imag


def test_importing_it_loads_neither_jax_nor_numpy():
    code = "import sys, unclip_jax; assert not {'jax', 'numpy', 'flax'} & set(sys.modules), 'not lazy'"
    subprocess.run([sys.executable, "-c", code], check=True)
