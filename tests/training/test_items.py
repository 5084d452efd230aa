"""What became of the files of a checkpoint since they were written."""

import json

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from benchmarks.bit_flips import outcomes
from tests.helpers import assert_trees_equal
from tests.training.test_checkpoint import META, abstract, reopened, save, toy_state
from unclip_jax.core.config import to_json
from unclip_jax.core.errors import UserError
from unclip_jax.training.checkpoint import FOLDER, Checkpoints, load_params, newest_meta
from unclip_jax.training.items import DIGESTS

ITEMS = ("params", "ema", "state", "meta")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run with checkpoints of steps 1 and 2."""
    workdir = tmp_path_factory.mktemp("run")
    checkpoints = Checkpoints(workdir, meta=META, keep=2)
    save(checkpoints, 1, 2)
    checkpoints.close()
    return workdir


@pytest.fixture
def run(saved, tmp_path):
    """A copy of it to damage."""
    for path in saved.rglob("*"):
        target = tmp_path / path.relative_to(saved)
        target.mkdir() if path.is_dir() else target.write_bytes(path.read_bytes())
    return tmp_path


def flip(run, step, item, bit=2):
    """Flip a bit in the middle of the largest file of an item."""
    files = [path for path in (run / FOLDER / str(step) / item).rglob("*") if path.is_file() and path.name != DIGESTS]
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1 << bit
    largest.write_bytes(content)


def without_digests(run, step):
    for path in (run / FOLDER / str(step)).rglob("digests*.json"):
        path.unlink()


def edit_meta(run, step, change):
    path = run / FOLDER / str(step) / "meta" / "metadata"
    meta = json.loads(path.read_text())
    change(meta)
    path.write_text(json.dumps(meta))


def test_digests_are_of_every_file_and_are_there_before_the_step_counts(saved):
    for item in ITEMS:
        folder = saved / FOLDER / "2" / item
        files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        known = json.loads((folder / DIGESTS).read_text())
        for name in [name for name in known if name.startswith("digests.")]:
            known |= json.loads((folder / name).read_text())
        # Orbax's own mark comes last.
        assert files - {DIGESTS, "commit_success.txt"} == set(known)


@pytest.mark.parametrize("item", ITEMS)
def test_a_flipped_bit_is_noticed_and_the_checkpoint_set_aside(run, item):
    flip(run, 2, item)
    with pytest.warns(UserWarning, match="checkpoint 2 cannot be read .* going on from step 1"):
        state, progress = reopened(run)
    assert_trees_equal(state, toy_state(1))
    assert progress == {"loss": [0.1, 1]}
    assert (run / f"{FOLDER}.unreadable" / "2").is_dir() and not (run / FOLDER / "2").exists()


def test_reading_weights_alone_falls_back_too_and_moves_nothing(run):
    flip(run, 2, "ema")
    with pytest.warns(UserWarning, match=f"checkpoint 2 cannot be read .* going on from step 1 in {run}"):
        ema, meta = load_params(run)
    assert meta["step"] == 1
    assert_trees_equal(ema, toy_state(1).ema)
    assert (run / FOLDER / "2").is_dir()
    with pytest.raises(UserError, match="checkpoint 2 in .* cannot be read"):
        load_params(run, step=2)


def test_what_is_not_read_is_not_compared(run):
    flip(run, 2, "state")
    assert load_params(run)[1]["step"] == 2


def test_what_the_meta_says_is_compared(run):
    edit_meta(run, 2, lambda meta: meta["extra"].update(tokenizer={"a": 2}))
    assert newest_meta(run)["step"] == 1


def test_the_comparison_can_be_left_out(run, monkeypatch):
    edit_meta(run, 2, lambda meta: meta["progress"].clear())
    monkeypatch.setenv("UNCLIP_JAX_NO_CHECK", "1")
    state, progress = reopened(run)
    assert int(state.step) == 2 and progress == {}


@pytest.mark.slow
def test_bits_flipped_anywhere(run):
    """One at a time; `python -m benchmarks.bit_flips` flips a thousand in a checkpoint of a real stage."""
    for path in sorted((run / FOLDER / "1").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (run / FOLDER / "1").rmdir()

    checkpoints = Checkpoints(run, meta=META, keep=2)

    def read():
        params, meta = load_params(run)
        return jax.device_get((checkpoints.restore(abstract()), params)), str(meta["extra"])

    counts, bad = outcomes(run / FOLDER, read, flips=24, seed=1)
    checkpoints.close()
    assert bad == [] and counts["refused"] >= 12


@pytest.mark.parametrize("progress", [7, [], {"loss": 3}, {"loss": ["a", 1]}, {"loss": [1, 2, 3]}, None])
def test_progress_that_makes_no_sense_stops_nothing(run, progress):
    without_digests(run, 2)
    edit_meta(run, 2, lambda meta: meta.update(progress=progress))
    with pytest.warns(UserWarning, match="checkpoint 2 in .* has no digests"):
        state, found = reopened(run)
    assert int(state.step) == 2 and found == {}


@pytest.mark.parametrize("change", [lambda meta: meta.pop("extra"), lambda meta: meta.update(config=[])])
def test_a_meta_that_makes_no_sense_is_damage(run, change):
    without_digests(run, 2)
    edit_meta(run, 2, change)
    assert newest_meta(run)["step"] == 1
    with pytest.warns(UserWarning, match="checkpoint 2 cannot be read .*does not say what it should"):
        assert int(reopened(run)[0].step) == 1


@pytest.mark.slow
def test_numbers_that_are_not_finite_are_refused_by_name(tmp_path):
    state = toy_state(1)
    ema = jax.tree.map(lambda leaf: leaf, state.ema)
    ema["hidden"]["kernel"] = ema["hidden"]["kernel"].at[0, 0].set(np.nan)
    checkpoints = Checkpoints(tmp_path, meta=META, keep=1)
    checkpoints.save(1, state.replace(ema=ema), {})
    checkpoints.wait()
    checkpoints.close()
    with pytest.raises(UserError, match="checkpoints/1, ema: tensor hidden/kernel is not finite; take other weights"):
        load_params(tmp_path)
    load_params(tmp_path, "params")


@pytest.mark.slow
def test_checkpoints_of_version_0_1_have_all_arrays_in_one_item(tmp_path):
    meta = {"step": 3, "kind": "toy", "config": to_json(META.config), "extra": META.extra, "progress": {}}
    with ocp.CheckpointManager(tmp_path / FOLDER, item_names=("state", "meta")) as manager:
        items = {"state": ocp.args.StandardSave(toy_state(3)), "meta": ocp.args.JsonSave(meta | {"versions": {}})}
        manager.save(3, args=ocp.args.Composite(**items))
    with pytest.warns(UserWarning, match="checkpoint 3 in .* has no digests, since an older version wrote it"):
        assert_trees_equal(load_params(tmp_path)[0], toy_state(3).ema)
    checkpoints = Checkpoints(tmp_path, meta=META, keep=2)
    with pytest.warns(UserWarning, match="has no digests"):
        restored = checkpoints.restore(abstract())
    assert restored is not None
    assert_trees_equal(restored[0], toy_state(3))
    # It goes on in the new layout.
    save(checkpoints, 4)
    checkpoints.close()
    assert_trees_equal(reopened(tmp_path)[0], toy_state(4))
