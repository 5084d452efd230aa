"""Sessions: rows spread over devices, requests cancelled, and weights that come and go with their stage."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from tests import tiny
from unclip_jax.bundle import load
from unclip_jax.core.errors import UserError
from unclip_jax.diffusion.noise import TapeNoise
from unclip_jax.images.pixels import to_uint8
from unclip_jax.parallel.mesh import AXES, MeshSpec, make_mesh
from unclip_jax.sampling.captions import encode_captions
from unclip_jax.sampling.session import Request, Session
from unclip_jax.sampling.text_to_image import text_to_image
from unclip_jax.stages.diffusion import DiffusionStage
from unclip_jax.stages.settings import Options, SamplingSettings
from unclip_jax.systems.placing import place
from unclip_jax.systems.system import Step, program_of

pytestmark = pytest.mark.usefixtures("quick_compile")

PROMPTS = [f"{n} rings" for n in ["a", "two", "three", "four", "five", "six", "seven", "eight", "nine"]]


@pytest.fixture(scope="module")
def images(tiny_bundle):
    """Drawn by one device, two at a time."""
    return text_to_image(tiny_bundle, PROMPTS, seed=3, batch_size=2)


def request(system, count=3, **options):
    encoded = encode_captions(system, PROMPTS[:count])
    return Request(inputs={"tokens": encoded.tokens, "mask": encoded.mask}, **{"seed": 3} | options)


@pytest.mark.slow
def test_outputs_of_every_stage_come_one_by_one(tiny_bundle):
    session = Session(tiny_bundle, batch_size=2)
    outputs = list(session.submit(request(tiny_bundle)))
    assert [(each.stage, each.first, each.done) for each in outputs[:4]] == [
        ("prior", 0, 2), ("decoder", 0, 2), ("upsampler_0", 0, 2), ("prior", 2, 3)
    ]  # fmt: skip
    assert [each.value.shape for each in outputs[:3]] == [(2, 16), (2, 8, 8, 3), (2, 16, 16, 3)]
    joined = np.concatenate([each.value for each in outputs if each.stage == "upsampler_0"])[:3]
    np.testing.assert_array_equal(joined, session.result(request(tiny_bundle)))


def test_a_request_is_cancelled_between_stages(tiny_bundle, monkeypatch):
    ran = []
    own = program_of

    def counted(system, name, *arguments):
        ran.append(name)
        return own(system, name, *arguments)

    monkeypatch.setattr("unclip_jax.sampling.session.program_of", counted)
    outputs = Session(tiny_bundle, batch_size=2).submit(request(tiny_bundle))
    assert ran == []
    next(outputs)
    outputs.close()
    assert ran == ["prior"]


def test_mistakes_are_said_by_the_call(tiny_bundle):
    session = Session(tiny_bundle)
    with pytest.raises(UserError, match="^decoder: steps is 0"):
        session.submit(request(tiny_bundle, settings={"decoder": SamplingSettings(steps=0)}))
    with pytest.raises(UserError, match="bundle tiny has no decodr"):
        session.submit(request(tiny_bundle, until="decodr"))
    with pytest.raises(UserError, match="batch_size is 0"):
        Session(tiny_bundle, batch_size=0)


@pytest.mark.slow
def test_a_start_of_ones_own(tiny_bundle):
    """x_T is what the decoder starts from, row by row."""
    x_T = np.random.default_rng(0).standard_normal((3, 8, 8, 3)).astype(np.float32)
    session = Session(tiny_bundle, batch_size=2)

    def images(x_T):
        return session.result(request(tiny_bundle, until="decoder", starts={"decoder": x_T}))

    one, other = images(x_T), images(np.concatenate([x_T[:2], -x_T[2:]]))
    np.testing.assert_array_equal(one[:2], other[:2])
    assert np.abs(one[2] - other[2]).max() > 0.1


@pytest.mark.slow
def test_several_devices_draw_the_same_images_to_the_bit(tiny_bundle, images):
    two, eight = (
        Session(tiny_bundle, Mesh(np.array(jax.devices()[:n]).reshape(n, 1, 1), AXES), batch_size=2).result(
            request(tiny_bundle, len(PROMPTS))
        )
        for n in (2, 8)
    )
    np.testing.assert_array_equal(two, eight)
    # The program of one device is compiled without partitions: a level of 255 may round to its neighbour.
    assert np.abs(to_uint8(two).astype(int) - images).max() <= 1


def test_one_of_a_request_on_a_mesh(tiny_bundle):
    whole, alone = (
        text_to_image(tiny_bundle, PROMPTS, seed=3, batch_size=2, mesh=make_mesh(MeshSpec()), only=only)
        for only in (None, 5)
    )
    np.testing.assert_array_equal(alone, whole[5:6])


@pytest.mark.slow
def test_split_weights_draw_the_same_images(tiny_bundle, images):
    """Another program, with more rows at once, so a level of 255 may round to its neighbour."""
    mesh = make_mesh(MeshSpec(data=2, fsdp=4))
    kernel = place(tiny_bundle, mesh).params["decoder"]["down_1_0"]["conv_in"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 4
    split = text_to_image(tiny_bundle, PROMPTS, seed=3, batch_size=2, mesh=mesh)
    assert np.abs(split.astype(int) - images).max() <= 1


def test_a_tape_stays_on_one_device(tiny_bundle):
    system = place(tiny_bundle, make_mesh(MeshSpec()))
    tape = TapeNoise(x_T=jnp.zeros((8, 16, 16, 3)), steps=jnp.zeros((2, 8, 16, 16, 3)))
    step = Step(DiffusionStage.sample, Options(settings=SamplingSettings(steps=2)))
    with pytest.raises(ValueError, match="TapeNoise on a mesh"):
        program_of(system, "upsampler_0", step, {"image_8": jnp.zeros((8, 8, 8, 3))}, tape)()


@pytest.mark.slow
def test_weights_come_and_go_with_their_stage(tiny_folder, images):
    system = load(tiny_folder)
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves((system.params, system.encoders)))
    del system
    before = {id(array) for array in jax.live_arrays()}
    seen = []

    def read(parts):
        live = sum(array.nbytes for array in jax.live_arrays() if id(array) not in before)
        seen.append((parts, live))
        return load(tiny_folder, parts=parts)

    described = load(tiny_folder, weights=False)
    drawn = text_to_image(described, PROMPTS, seed=3, batch_size=2, load_weights=read)
    np.testing.assert_array_equal(drawn, images)
    assert [parts for parts, _ in seen] == [("clip", "prior"), ("clip", "decoder"), ("upsampler_0",)]
    # What is left of the stage before are its images.
    assert max(live for _, live in seen) < 0.2 * whole


def test_of_a_missing_row_there_is_no_image(tiny_bundle):
    with pytest.raises(ValueError, match="there is no image 3 among 3"):
        request(tiny_bundle, only=3)
    assert tiny.system() is tiny_bundle
