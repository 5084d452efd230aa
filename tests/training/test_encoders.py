import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

from tests import tiny
from unclip_jax import bundle as bundles
from unclip_jax.core.errors import UserError
from unclip_jax.data.config import DataConfig
from unclip_jax.models.clip import TextSpec
from unclip_jax.training.encoders import FrozenEncoder


def test_own_caption_encoder_reads_the_tokens_of_the_clip():
    own = TextSpec(vocab_size=7, context=3, width=24, num_layers=2, num_heads=3, eos_id=0)
    theirs = tiny.frozen_clip().encoder.clip.text_tower
    text = own.fitted(theirs.shared_sizes())
    assert (text.vocab_size, text.eos_id, text.context) == (theirs.vocab_size, theirs.eos_id, theirs.context)
    assert (text.width, text.num_layers, text.num_heads) == (own.width, own.num_layers, own.num_heads)


def test_clip_from_a_bundle(tiny_folder):
    loaded, kept = FrozenEncoder.load("clip", str(tiny_folder)), tiny.frozen_clip()
    assert (loaded.tokenizer, loaded.identity) == (kept.tokenizer, kept.identity)
    assert loaded.encoder.network == kept.encoder.network
    jax.tree.map(np.testing.assert_array_equal, loaded.encoder.params, kept.encoder.params)


def test_identity_survives_fewer_bits(tiny_bundle, tmp_path):
    alone = dataclasses.replace(tiny_bundle, stages={}, params={}, streams={}, sampling={}, stats=None)
    bundles.save(alone, tmp_path / "half", dtype="float16")
    assert FrozenEncoder.load("clip", str(tmp_path / "half")).identity == tiny.frozen_clip().identity


def test_no_clip_is_refused(tmp_path):
    with pytest.raises(UserError, match="no CLIP given; set --clip to the workdir"):
        FrozenEncoder.load("clip", "")
    with pytest.raises(UserError, match="no bundle nowhere"):
        FrozenEncoder.load("clip", "nowhere")
    alone = tiny.without("decoder", tiny.without("prior", tiny.without("clip")))
    bundles.save(dataclasses.replace(alone, stats=None), tmp_path / "up")
    with pytest.raises(UserError, match="up has no CLIP with a tokenizer; choose another bundle"):
        FrozenEncoder.load("clip", str(tmp_path / "up"))


def test_images_alone_need_no_captions(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "photos").mkdir()
    Image.fromarray(tiny.records()[0].image).save(tmp_path / "photos" / "x.png")
    data = DataConfig(source=str(tmp_path / "photos"), batch_size=1)
    assert data.open(captions=False)[0].captions == ("",)
    with pytest.raises(UserError, match="1 images and no captions"):
        data.open(captions=True)
