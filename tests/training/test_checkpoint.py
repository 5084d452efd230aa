import dataclasses
import functools
import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from tests.helpers import assert_trees_equal
from tests.training.toy import Toy
from unclip_jax.core.errors import UserError
from unclip_jax.parallel.mesh import MeshSpec, make_mesh
from unclip_jax.training.checkpoint import FOLDER, Checkpoints, Meta, load_params
from unclip_jax.training.config import OptimConfig, RunConfig
from unclip_jax.training.state import abstract_state, init


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    workers: int = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    model: Toy = Toy()
    multiples: tuple[int, ...] = (1, 2)
    run: RunConfig = RunConfig(workdir="here", steps=5)
    data: Reading = Reading()


@dataclasses.dataclass(frozen=True, kw_only=True)
class NewerConfig(Config):
    """What a later version may have made of it."""

    warmth: float = 0.5


OPTIM = OptimConfig()
META = Meta(
    kind="toy",
    config=Config(),
    extra={"tokenizer": {"a": 1}},
    may_change=("data.workers",),
)


@functools.cache
def fresh_state(mesh, stage):
    return init(stage, OPTIM, mesh, jax.random.key(0))


def toy_state(step, mesh=None, **fields):
    state = fresh_state(mesh or make_mesh(MeshSpec()), Toy(**fields))
    return jax.tree.map(lambda x: x + step, state).replace(ema=jax.tree.map(lambda x: x - step, state.ema))


def abstract(mesh=None):
    return abstract_state(Toy(), OPTIM, mesh or make_mesh(MeshSpec()))


@pytest.fixture
def checkpoints(tmp_path):
    checkpoints = Checkpoints(tmp_path, meta=META, keep=2)
    yield checkpoints
    checkpoints.close()


def save(checkpoints, *steps):
    for step in steps:
        checkpoints.save(step, toy_state(step), {"loss": [0.1, float(step)]})
    checkpoints.wait()


def reopened(tmp_path, **changes):
    meta = Meta(**{**vars(META), **changes})
    checkpoints = Checkpoints(tmp_path, meta=meta, keep=2)
    try:
        return checkpoints.restore(abstract())
    finally:
        checkpoints.close()


def damage(tmp_path, step):
    for item in ("state", "ema"):
        for path in (tmp_path / FOLDER / str(step) / item).rglob("d/*"):
            path.write_bytes(path.read_bytes()[:10])


def test_nothing_saved(checkpoints):
    assert checkpoints.latest_step() is None
    assert checkpoints.restore(abstract()) is None


@pytest.mark.slow
def test_keeps_the_newest_and_restores_the_last(checkpoints, tmp_path):
    save(checkpoints, 1, 2, 10)
    assert {path.name for path in (tmp_path / FOLDER).iterdir()} == {"2", "10"}
    assert checkpoints.latest_step() == 10
    state, progress = reopened(tmp_path)
    assert_trees_equal(state, toy_state(10))
    assert progress == {"loss": [0.1, 10]}


@pytest.mark.slow
def test_some_steps_are_kept_for_ever(tmp_path):
    checkpoints = Checkpoints(tmp_path, meta=META, keep=1, keep_period=4)
    save(checkpoints, 2, 4, 6, 8, 9, 11)
    checkpoints.close()
    assert {path.name for path in (tmp_path / FOLDER).iterdir()} == {"4", "8", "11"}


def test_a_save_is_of_its_moment(checkpoints, tmp_path):
    """Donating the state to a step right after `save` returns does not reach into what is being written."""
    state = toy_state(3)
    checkpoints.save(3, state, {})
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    jax.block_until_ready(
        jax.jit(lambda s: jax.tree.map(jnp.zeros_like, s), donate_argnums=0, out_shardings=shardings)(state)
    )
    checkpoints.wait()
    assert_trees_equal(reopened(tmp_path)[0], toy_state(3))


@pytest.mark.slow
def test_any_mesh_and_parameters_alone(checkpoints, tmp_path):
    split = make_mesh(MeshSpec(data=2, fsdp=4))
    saved = toy_state(4, split, split=True)
    checkpoints.save(4, saved, {})
    checkpoints.wait()

    for mesh in (make_mesh(MeshSpec(data=1, tensor=8)), make_mesh(MeshSpec(), jax.devices()[:1])):
        state, _ = checkpoints.restore(abstract(mesh))
        assert_trees_equal(state, saved)
        assert state.params["hidden"]["kernel"].sharding.mesh == mesh

    ema, meta = load_params(tmp_path)
    assert_trees_equal(ema, saved.ema)
    assert_trees_equal(load_params(tmp_path, "params", step=4)[0], saved.params)
    assert ema["hidden"]["kernel"].devices() == {jax.devices()[0]}
    assert (meta["step"], meta["kind"], meta["extra"]) == (4, "toy", META.extra)
    assert meta["config"]["model"]["hidden"] == 16 and meta["versions"]["jax"] == jax.__version__


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "prior"}, "holds a toy run, not a prior"),
        ({"config": Config(model=Toy(hidden=32))}, "^model.hidden is 32, .* with 16;"),
        ({"config": Config(multiples=(1, 2, 3))}, r"^multiples is \[1, 2, 3\]"),
        ({"config": Config(run=RunConfig(workdir="here", steps=5, seed=1))}, "^run.seed is 1"),
        ({"config": NewerConfig(warmth=0.75)}, "^warmth is 0.75, .* with 0.5;"),
        ({"config": Reading()}, "version with other settings .*unknown field.*choose another workdir"),
    ],
)
def test_another_config_is_refused(checkpoints, tmp_path, changes, message):
    save(checkpoints, 1)
    with pytest.raises(UserError, match=message):
        reopened(tmp_path, **changes)


def test_what_may_change(checkpoints, tmp_path):
    save(checkpoints, 1)
    run = RunConfig(workdir="there", steps=9, save_every=7)
    assert reopened(tmp_path, config=Config(run=run, data=Reading(workers=8))) is not None


def test_settings_newer_than_the_run_have_their_defaults(checkpoints, tmp_path):
    save(checkpoints, 1)
    assert reopened(tmp_path, config=NewerConfig()) is not None


def test_damaged_newest_falls_back(checkpoints, tmp_path):
    save(checkpoints, 1, 2)
    damage(tmp_path, 2)
    with pytest.warns(UserWarning, match="checkpoint 2 cannot be read .* from step 1"):
        state, progress = checkpoints.restore(abstract())
    assert int(state.step) == 1 and progress == {"loss": [0.1, 1]}
    assert (tmp_path / f"{FOLDER}.unreadable" / "2").exists()
    save(checkpoints, 2)
    assert int(checkpoints.restore(abstract())[0].step) == 2


def test_all_damaged(checkpoints, tmp_path):
    save(checkpoints, 1)
    (tmp_path / FOLDER / "1" / "meta" / "metadata").write_text("{")
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read \(step 1"):
        checkpoints.restore(abstract())
    assert (tmp_path / FOLDER / "1").exists()


def test_load_params_errors(checkpoints, tmp_path):
    with pytest.raises(UserError, match="no checkpoint in"):
        load_params(tmp_path / "elsewhere")
    save(checkpoints, 1)
    with pytest.raises(UserError, match="no checkpoint of step 3 .* there are 1"):
        load_params(tmp_path, step=3)
    damage(tmp_path, 1)
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read \(step 1"):
        load_params(tmp_path)
    with pytest.raises(UserError, match="checkpoint 1 .* cannot be read"):
        load_params(tmp_path, step=1)


@pytest.mark.slow
def test_failed_write_leaves_the_last_one(checkpoints, tmp_path):
    """A file size limit stands in for the end of the disk."""
    save(checkpoints, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(UserError, match="File too large.*; the checkpoint of step 1 is whole and usable"):
            checkpoints.save(2, toy_state(2, hidden=10_000), {})
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert int(reopened(tmp_path)[0].step) == 1


@pytest.mark.parametrize(
    "error",
    [
        ValueError("RESOURCE_EXHAUSTED: x: No space left on device [28]"),
        OSError(28, "full"),
        OSError(122, "q"),
    ],
)
def test_full_disk_says_so(checkpoints, monkeypatch, error):
    def fail(*_, **__):
        raise RuntimeError("save failed") from error

    monkeypatch.setattr(checkpoints._manager, "save", fail)
    with pytest.raises(UserError, match="^the disk is full.*no checkpoint is saved yet"):
        checkpoints.save(1, toy_state(1), {})


def test_workdir_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write checkpoints to"):
        Checkpoints(tmp_path / "file", meta=META, keep=1)


def test_a_bucket_without_its_package_or_permission(monkeypatch):
    workdir = "gs://somewhere/run"
    for error, message in (
        (ImportError("Please install gcsfs to access Google Storage"), "ImportError: Please install gcsfs"),
        (PermissionError(13, "Permission denied"), "Permission denied"),
    ):

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr(epath.Path("gs://somewhere").__class__, "mkdir", fail)
        with pytest.raises(UserError, match=f"^cannot write checkpoints to {workdir}/{FOLDER}: {message}"):
            Checkpoints(workdir, meta=META, keep=1)


def test_leftovers_of_a_killed_save(checkpoints, tmp_path):
    save(checkpoints, 1)
    (tmp_path / FOLDER / "2.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    assert int(reopened(tmp_path)[0].step) == 1
    assert np.array_equal([path.name for path in (tmp_path / FOLDER).iterdir()], ["1"])
