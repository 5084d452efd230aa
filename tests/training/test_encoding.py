"""Embeddings computed once, and runs that are trained from them: recipe tiny on forty pictures."""

import contextlib
import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests import tiny
from train.recipes import tiny as recipes
from unclip_jax.core.errors import UserError
from unclip_jax.data import folder, store_writing
from unclip_jax.data.config import DataConfig
from unclip_jax.data.stores import EmbeddingStore
from unclip_jax.images.pixels import to_float
from unclip_jax.images.transforms import fit
from unclip_jax.training import encoding, loop, statistics
from unclip_jax.training.encoding import EncodeConfig, encode
from unclip_jax.training.run import train
from unclip_jax.training.step import example_keys

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compile")]

COUNT, BAD = 40, (5, 17)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    out = tmp_path_factory.mktemp("photos")
    for number, record in enumerate(tiny.records()[:COUNT]):
        Image.fromarray(record.image).save(out / f"{number:03d}.png")
        (out / f"{number:03d}.txt").write_text(record.captions[0])
    return out


def config(photos, bundle, out, **changes):
    data = DataConfig(source=str(photos), batch_size=1, max_bad_share=0.1)
    fields = {"dtype": "float32", "batch_size": 2, "shard_records": 12, "text": True} | changes
    return EncodeConfig(data=data, clip=str(bundle), out=out, **fields)


@pytest.fixture(scope="module")
def stores(photos, tiny_folder, tmp_path_factory):
    """A store of either type."""
    out = tmp_path_factory.mktemp("stores")
    for dtype in ("float32", "float16"):
        encode(config(photos, tiny_folder, out / dtype, dtype=dtype))
    return out


def files(out):
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_a_store_holds_what_the_clip_makes_of_each_picture(photos, stores):
    clip = tiny.frozen_clip().encoder
    captions = [(photos / f"{number:03d}.txt").read_text() for number in range(COUNT)]
    images = np.stack([fit(Image.open(photos / f"{number:03d}.png"), 16) for number in range(COUNT)])
    z_i = np.asarray(clip.encode_image(jnp.asarray(to_float(images))))
    tokens = tiny.tokenizer().encode(captions, tiny.CONTEXT).tokens
    z_t = np.asarray(clip.encode_text(jnp.asarray(tokens)).z_t)
    for dtype, rounding in (("float32", 0.0), ("float16", 2.0**-11)):
        store = EmbeddingStore(stores / dtype)
        assert store.info.clip == tiny.frozen_clip().identity and store.info.dtype == dtype
        assert len(store) == COUNT and store.arrays == ("z_i", "z_t")
        for number in range(COUNT):
            assert store.index[number].key == f"{number:03d}" and store.index[number].captions == (captions[number],)
            # Unit vectors: sums of tens of products in another order, and then what the type rounds.
            for found, expected in ((store.z_t(number), z_t[number]), (store.z_i(number), z_i[number])):
                np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 + rounding)


class Killed(BaseException):
    pass


def killed_after(monkeypatch, count):
    """Let the work end in the middle of the file after `count` files of shards."""
    left, atomic_write = [count], store_writing.atomic_write

    @contextlib.contextmanager
    def dying(path):
        left[0] -= 1
        with atomic_write(path) as draft:
            yield draft
            if left[0] < 0:
                raise Killed

    monkeypatch.setattr(store_writing, "atomic_write", dying)


def encode_killed(count, *args, **changes):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        killed_after(patch, count)
        encode(config(*args, **changes))


def test_killed_five_times_it_writes_the_same_files(photos, tiny_folder, stores, tmp_path):
    out = tmp_path / "s"
    for count in (0, 1, 2, 3, 4):
        encode_killed(count, photos, tiny_folder, out)
        with pytest.raises(UserError, match="not encoded to its end; run the same command again"):
            EmbeddingStore(out)
    (out / "img_emb" / ".img_emb_2.npy.0123abcd.tmp").write_bytes(b"left of a file")
    # A shard that is damaged is made again.
    shard = out / "img_emb" / "img_emb_0.npy"
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    encode(config(photos, tiny_folder, out))
    assert files(out) == files(stores / "float32")


def test_what_is_there_already_is_not_made_again(photos, tiny_folder, stores, capsys, monkeypatch):
    monkeypatch.setattr(encoding, "_Work", None)
    encode(config(photos, tiny_folder, stores / "float32"))
    assert "has all its 40 embeddings already" in capsys.readouterr().out


@pytest.mark.parametrize("devices", [1, 3])
def test_any_number_of_devices_writes_the_same_files(photos, tiny_folder, stores, tmp_path, monkeypatch, devices):
    every = jax.local_devices()
    monkeypatch.setattr(encoding.jax, "local_devices", lambda: every[:devices])
    encode(config(photos, tiny_folder, tmp_path / "s"))
    assert files(tmp_path / "s") == files(stores / "float32")


@pytest.mark.parametrize("hosts", [2, 4])
def test_any_number_of_hosts_writes_the_same_files(photos, tiny_folder, stores, tmp_path, monkeypatch, hosts):
    def as_process(number):
        monkeypatch.setattr(encoding, "host", lambda: (number, hosts))
        encode(config(photos, tiny_folder, tmp_path / "s"))

    # Here the first does not wait for the others.
    with pytest.raises(UserError, match="shard 1 of .* is missing; let all hosts see the same folder"):
        as_process(0)
    for number in reversed(range(hosts)):
        as_process(number)
    assert files(tmp_path / "s") == files(stores / "float32")


def broken_later(monkeypatch):
    """Let pictures break once the folder is checked."""
    read_image = folder.read_image

    def reading(file, *, name):
        if name in {f"{number:03d}.png" for number in BAD}:
            return read_image(b"no picture", name=name)
        return read_image(file, name=name)

    monkeypatch.setattr(folder, "read_image", reading)


def test_a_picture_that_breaks_is_named_and_absent(photos, tiny_folder, tmp_path, capsys, monkeypatch):
    broken_later(monkeypatch)
    info = encode(config(photos, tiny_folder, tmp_path / "s"))
    said = capsys.readouterr()
    assert said.err.count("not an image that Pillow can read; convert it to PNG or JPEG; left out") == len(BAD)
    assert "38 embeddings, 2 records left out" in said.out
    assert [each.bad for each in info.shards] == [1, 1, 0, 0]
    store = EmbeddingStore(tmp_path / "s")
    assert store.row_of("005") is None and store.row_of("006") == 5
    for count in (2, 3):
        encode_killed(count, photos, tiny_folder, tmp_path / "again")
    encode(config(photos, tiny_folder, tmp_path / "again"))
    assert files(tmp_path / "again") == files(tmp_path / "s")
    strict = config(photos, tiny_folder, tmp_path / "t")
    strict = dataclasses.replace(strict, data=dataclasses.replace(strict.data, max_bad_share=0.04))
    with pytest.raises(UserError, match="2 of 40 records are unusable .5.0%, limit 4.0%.; mend or remove them"):
        encode(strict)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"dtype": "float16"}, "dtype is 'float16', and the store in .* was begun with 'float32'"),
        ({"shard_records": 13}, "shard_records is 13, and .* begun with 12; give the same, or choose another --out"),
        ({"text": False}, "text is False, and .* begun with True"),
    ],
)
def test_a_store_of_something_else_is_not_carried_on(photos, tiny_folder, stores, changes, line):
    with pytest.raises(UserError, match=line):
        encode(config(photos, tiny_folder, stores / "float32", **changes))


def test_where_it_cannot_write_it_says_so_first(photos, tiny_folder, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file, so nothing can be written into it; give another --out"):
        encode(config(photos, "no clip", tmp_path / "file" / "s"))
    with pytest.raises(UserError, match="holds something that is no store; choose another --out"):
        encode(config(photos, "no clip", tmp_path))


def run(kind, out, bundle, *, workdir=None, steps=4, **data):
    """Losses of recipe tiny, trained from `data`."""
    recipe = getattr(recipes, kind)()
    if kind == "decoder":
        recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, channel_mult=(1,)))
    workdir = workdir or out / "-".join([kind, *map(str, data.values())]).replace("/", "_")
    own = {"workdir": str(workdir), "sample_every": 0, "save_every": 2, "tensorboard": False, "steps": steps}
    data = {"max_bad_share": 0.1} | {name: str(value) for name, value in data.items()}
    train(
        dataclasses.replace(
            recipe,
            clip=str(bundle),
            data=dataclasses.replace(recipe.data, **data),
            run=dataclasses.replace(recipe.run, **own),
        )
    )
    return [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def few_statistics(monkeypatch):
    monkeypatch.setattr(statistics, "STATS_EXAMPLES", 32)


@dataclasses.dataclass
class First:
    """What a run is about to do: its first batch, and the losses of that; nothing is optimised."""

    monkeypatch: pytest.MonkeyPatch

    def losses(self, *args, **data):
        with self.monkeypatch.context() as patch:
            patch.setattr(loop, "train", self._train)
            with pytest.raises(Killed):
                run(*args, **data)
        return self.found

    def _train(self, stage, frozen, batches, **_):
        self.frozen = frozen
        with contextlib.closing(batches(0)) as iterator:
            self.batch = next(iterator)
        keys = example_keys(0, jnp.zeros((), jnp.int32), jnp.arange(8))
        params = tiny.weights(stage.network, 0)
        self.found = np.asarray(jax.jit(stage.loss)(params, params, frozen, self.batch, keys)[0])
        raise Killed


def test_a_prior_learns_from_a_store_as_from_pictures(
    photos, tiny_folder, stores, tmp_path, few_statistics, monkeypatch
):
    first = First(monkeypatch)
    expected = first.losses("prior", tmp_path, tiny_folder, source=photos)
    stats = first.frozen["stats"]
    assert "z_i" not in first.batch
    # float32 and float16 round z_i by 2**-24 and 2**-11 of itself. Whitening divides that by the deviation, and the
    # loss squares numbers of 1 or so; sums of a few dozen products add 1e-6.
    enlarged = float(np.abs(stats.mean).max() + 3 * stats.std.max()) / float(stats.std.min())
    assert enlarged < 50
    for dtype, rounding in (("float32", 2.0**-24), ("float16", 2.0**-11)):
        found = first.losses("prior", tmp_path, tiny_folder, source=f"store:{stores}/{dtype}")
        np.testing.assert_allclose(found, expected, rtol=2 * enlarged * rounding + 1e-6)
        np.testing.assert_allclose(first.frozen["stats"].std, stats.std, rtol=enlarged * rounding + 1e-6)
        assert set(first.batch) == {"z_i", "tokens", "mask"}
    leaves = jax.tree_util.tree_leaves_with_path(first.frozen["clip"])
    names = " ".join(jax.tree_util.keystr(path) for path, _ in leaves)
    assert "text_blocks" in names and "vision" not in names and "image_projection" not in names


def test_a_prior_that_reads_tokens_needs_no_tower_at_all(tiny_folder, stores, tmp_path, few_statistics, monkeypatch):
    first, recipe = First(monkeypatch), recipes.prior()
    reads_tokens = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, text=recipes.TEXT))
    monkeypatch.setattr(recipes, "prior", lambda: reads_tokens)
    losses = first.losses("prior", tmp_path, tiny_folder, source=f"store:{stores}/float32")
    assert first.frozen["clip"].params == {} and np.isfinite(losses).all()
    store = EmbeddingStore(stores / "float32")
    np.testing.assert_array_equal(
        np.sort(first.batch["z_t"], 0)[0], np.sort([store.z_t(row) for row in _rows(store, first.batch["z_i"])], 0)[0]
    )


def _rows(store, z_i):
    every = np.stack([store.z_i(row) for row in range(len(store))])
    return [int(np.flatnonzero((every == each).all(1))[0]) for each in z_i]


def test_a_run_from_a_store_carries_on_to_the_bit(tiny_folder, stores, tmp_path, few_statistics):
    source = f"store:{stores}/float32"
    whole = run("prior", tmp_path, tiny_folder, workdir=tmp_path / "whole", source=source)
    run("prior", tmp_path, tiny_folder, workdir=tmp_path / "halves", steps=2, source=source)
    resumed = run("prior", tmp_path, tiny_folder, workdir=tmp_path / "halves", source=source)
    # The schedule is constant, so its end does not matter.
    assert resumed == whole


def test_a_decoder_learns_from_pictures_with_stored_embeddings(photos, tiny_folder, stores, tmp_path, monkeypatch):
    first = First(monkeypatch)
    expected = first.losses("decoder", tmp_path, tiny_folder, source=photos)
    found = first.losses("decoder", tmp_path, tiny_folder, source=photos, embeddings=stores / "float32")
    np.testing.assert_allclose(found, expected, rtol=3e-6)  # sums of float32 in another order
    assert set(first.batch) == {"image_8", "z_i", "tokens", "mask"}
    # It reads captions with an encoder of its own, so no tower is left.
    assert first.frozen["clip"].params == {}


def test_stores_that_do_not_fit_a_run_are_refused(tiny_folder, stores, tmp_path, few_statistics, monkeypatch):
    other = tmp_path / "other"
    shutil.copytree(stores / "float32", other)
    said = json.loads((other / "store.json").read_text())
    (other / "store.json").write_text(json.dumps(said | {"clip": "f" * 64}))
    own = tiny.frozen_clip().identity[:12]
    with pytest.raises(UserError, match=f"of another CLIP: it is of ffffffffffff, and --clip is {own}"):
        run("prior", tmp_path, tiny_folder, source=f"store:{other}")
    with pytest.raises(UserError, match="has no images, and this run needs them"):
        run("decoder", tmp_path, tiny_folder, source=f"store:{stores}/float32")
    (other / "store.json").unlink()
    with pytest.raises(UserError, match="does not say which CLIP its embeddings are of; say so with --data.store-clip"):
        run("prior", tmp_path, tiny_folder, source=f"store:{other}")
    assert np.isfinite(First(monkeypatch).losses("prior", tmp_path, tiny_folder, source=f"store:{other}",
                                                 store_clip=tiny_folder)).all()  # fmt: skip
    upsampler = dataclasses.replace(recipes.upsampler(), data=dataclasses.replace(recipes.DATA, embeddings=str(other)))
    with pytest.raises(
        UserError, match="a run of the kind upsampler takes no embeddings of images; leave the store out"
    ):
        train(tiny.replaced(upsampler, run={"workdir": str(tmp_path / "up")}))
