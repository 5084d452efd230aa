"""Held-out examples are measured alike at each evaluation, and a run says when it learns by heart."""

import dataclasses
import functools
import json
import operator

import jax
import numpy as np
import pytest

from tests import tiny
from tests.helpers import assert_trees_equal
from tests.stages.examples import example, keys
from tests.training.test_devices import small
from tests.training.test_loop import logged
from tests.training.toy import FROZEN, WIDTH, Toy, batches, config
from unclip_jax.core.errors import UserError
from unclip_jax.parallel.mesh import MeshSpec, make_mesh
from unclip_jax.stages.encoders import frozen_shardings
from unclip_jax.training.checkpoint import FOLDER, load_params
from unclip_jax.training.config import ValidationConfig
from unclip_jax.training.loop import train
from unclip_jax.training.state import abstract_state, state_shardings
from unclip_jax.training.tracker import HELD_OUT, TRAINING, Tracker, best_step
from unclip_jax.training.validation import Evaluator, Judged, Validation, metric_of

pytestmark = pytest.mark.usefixtures("quick_compile")


def examples_of(batch):
    """Batches of any size of what is in one."""

    def read(rows):
        count = len(jax.tree.leaves(batch)[0])
        numbers = np.arange(-(-count // rows) * rows) % count
        return [jax.tree.map(operator.itemgetter(n), batch) for n in numbers.reshape(-1, rows)]

    return read


def validation(held_out, training, **fields):
    fields = {"every": 2, "patience": 2, "most_rows": 16, "what": "a test"} | fields
    count = len(jax.tree.leaves(held_out)[0])
    return Validation(
        count=count, examples={HELD_OUT: examples_of(held_out), TRAINING: examples_of(training)}, **fields
    )


ONE_LEVEL = {"channel_mult": (1,)}


def evaluator(kind, devices, most_rows=16, count=14):
    stage, params, frozen, batch = small(kind, **ONE_LEVEL)
    mesh = make_mesh(MeshSpec(), jax.devices()[:devices])
    where, layout = (
        frozen_shardings(frozen, mesh),
        state_shardings(abstract_state(stage, config("x", 1)["optim"], mesh)),
    )
    part = jax.tree.map(lambda x: x[:count], batch)
    other = jax.tree.map(lambda x: x[::-1][:count], batch)
    judge = Evaluator(stage, validation(part, other, most_rows=most_rows), mesh, layout.ema, where)
    return functools.partial(judge, params, jax.device_put(frozen, where))


NAMES = {
    "clip": {"loss", "image_to_text", "image_to_text_5", "text_to_image", "text_to_image_5", "retrieval"},
    "prior": {"loss", "mse", "loss_without_caption", "cosine", "cosine_z_t", "retrieval", "retrieval_5"},
    "decoder": {"loss", "mse", "vlb", "loss_without_clip_image", "loss_without_caption"},
    "upsampler": {"loss", "mse"},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", NAMES)
def test_the_same_on_any_number_of_devices_and_again(kind):
    one, eight = evaluator(kind, 1, most_rows=5), evaluator(kind, 8)
    first = eight()
    assert first == eight() and list(first) == [HELD_OUT, TRAINING]
    quarters = set() if kind == "clip" else {f"mse_q{i}" for i in range(4)}
    assert NAMES[kind] <= set(first[HELD_OUT]) <= NAMES[kind] | quarters
    for name, found in one().items():
        assert found.keys() == first[name].keys()
        # Sums within the network are taken in another order.
        np.testing.assert_allclose(list(found.values()), list(first[name].values()), rtol=2e-5, atol=1e-6)


@pytest.mark.slow
def test_a_clip_is_measured_among_all_pairs():
    """Whatever batches they were in: with one row at a time its loss would be 0."""
    stage, params, frozen, batch = example("clip")
    found = evaluator("clip", 1, most_rows=1, count=16)()[HELD_OUT]
    loss, metrics = jax.jit(stage.loss)(params, params, frozen, batch, keys())
    np.testing.assert_allclose(found["loss"], np.mean(loss), rtol=1e-5)
    for name in ("image_to_text", "text_to_image"):
        np.testing.assert_allclose(found[name], np.mean(metrics[name][0]))


@pytest.mark.slow
def test_a_condition_that_is_not_used_makes_no_gap():
    stage, params, frozen, batch = example("decoder")
    stage = dataclasses.replace(stage, network=stage.network.without_dropout())
    measure = jax.jit(lambda frozen, batch: stage.measure(params, frozen, batch, keys())[0])
    found = measure(frozen, batch)
    loss = np.asarray(found["loss"][0])
    # With random weights both conditions change what is predicted.
    for name in ("clip_image", "caption"):
        assert (np.asarray(found[f"loss_without_{name}"][0]) != loss).all()
    shuffled = measure(frozen, batch | {"tokens": batch["tokens"][::-1], "mask": batch["mask"][::-1]})
    np.testing.assert_array_equal(found["loss_without_caption"][0], shuffled["loss_without_caption"][0])
    assert (np.asarray(shuffled["loss"][0]) != loss).any()


@pytest.mark.slow
def test_what_a_decoder_samples_is_judged():
    stage, params, frozen, batch = small("decoder", **ONE_LEVEL)
    seen = []

    def metric(sampled, true, captions):
        seen.append((sampled, true, captions))
        return {"difference": float(np.mean(np.abs(sampled.astype(int) - true))), "never": float("nan")}

    def found(devices, most_rows):
        mesh = make_mesh(MeshSpec(), jax.devices()[:devices])
        layout = state_shardings(abstract_state(stage, config("x", 1)["optim"], mesh))
        examples = {HELD_OUT: examples_of(batch), TRAINING: examples_of(batch)}
        judged = Judged(metric=metric, count=6, examples=examples, tokenizer=tiny.tokenizer())
        given = validation(batch, batch, most_rows=most_rows, judged=judged)
        where = frozen_shardings(frozen, mesh)
        return Evaluator(stage, given, mesh, layout.ema, where)(params, jax.device_put(frozen, where))

    scores = found(8, 8)
    assert scores[HELD_OUT] == scores[TRAINING] and "sampled_never" not in scores[HELD_OUT]
    (sampled, true, captions), again = seen
    np.testing.assert_array_equal(true, batch["image_8"][:6])
    assert captions == tiny.tokenizer().decode(batch["tokens"][:6]) and (sampled != true).any()
    np.testing.assert_array_equal(sampled, again[0])
    other = found(1, 4)[HELD_OUT]
    assert other["sampled_difference"] == pytest.approx(scores[HELD_OUT]["sampled_difference"], rel=1e-3)


def test_a_metric_by_its_name():
    judge = metric_of("unclip_jax.eval.shapes.cases:read_captions")
    images = np.stack([record.image for record in tiny.records()[:8]])
    captions = [record.captions[0] for record in tiny.records()[:8]]
    right, wrong = judge(images, images, captions), judge(images, images, captions[::-1])
    assert right["all"] > wrong["all"] and judge(images, images, ["cut"] * 8).keys() == right.keys()
    for name in ("nowhere:f", "json:nothing", "json", "json:", ":x"):
        with pytest.raises(UserError, match="there is no such function .*; give package.module:function"):
            metric_of(name)


def toy_examples(seed, count=10):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, WIDTH)).astype(np.float32)
    return {"x": x, "label": rng.integers(0, 4, count, dtype=np.int32)}


JUDGED = validation(toy_examples(1), toy_examples(2), every=4)


def run(workdir, steps=14, *, data=batches, judged=JUDGED, **options):
    return train(Toy(), FROZEN, data, **config(workdir, steps, **{"save_every": 5, **options}), validation=judged)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("straight")
    return run(workdir), workdir


@pytest.mark.slow
def test_training_is_the_same_with_and_without(straight, tmp_path):
    state, workdir = straight
    assert_trees_equal(jax.device_get(run(tmp_path, judged=None)), jax.device_get(state))
    lines = logged(workdir)
    assert [line for line in lines if "loss" in line] == logged(tmp_path)
    evaluated = [line for line in lines if "loss" not in line]
    assert [line["step"] for line in evaluated] == [4, 8, 12, 14]
    assert {f"{HELD_OUT}/loss", f"{TRAINING}/loss", f"{HELD_OUT}/noisy_loss"} < evaluated[0].keys()
    assert all("never" not in name for name in evaluated[0])


@pytest.mark.slow
def test_pmap_finds_the_same(straight, tmp_path):
    run(tmp_path, backend="pmap")
    (found, expected) = ([line for line in logged(path) if "loss" not in line] for path in (tmp_path, straight[1]))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-5)


def interrupted(workdir, at, how):
    """A run that ends before step `at`."""

    def data(start_step):
        for step, batch in enumerate(batches(start_step), start_step):
            if step == at:
                raise how
            yield batch

    with pytest.raises(type(how)):
        run(workdir, data=data)


@pytest.mark.slow
@pytest.mark.parametrize("at", [7, 11])
def test_resumed_is_uninterrupted(straight, tmp_path, at):
    interrupted(tmp_path, at, KeyboardInterrupt())
    assert_trees_equal(jax.device_get(run(tmp_path)), jax.device_get(straight[0]))
    assert logged(tmp_path) == logged(straight[1])
    (ours, theirs) = (load_params(path, step="best") for path in (tmp_path, straight[1]))
    assert ours[1]["validation"] == theirs[1]["validation"] and ours[1]["step"] == theirs[1]["step"]
    assert_trees_equal(jax.device_get(ours[0]), jax.device_get(theirs[0]))


@pytest.mark.slow
def test_a_step_that_was_saved_and_not_evaluated_is_evaluated_on_the_way_on(straight, tmp_path):
    """As where a host is told to go: evaluation has to wait, saving does not."""
    run(tmp_path, steps=14, judged=None, save_every=4)
    for step in (12, 14):
        for path in sorted((tmp_path / FOLDER / str(step)).rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        (tmp_path / FOLDER / str(step)).rmdir()
    run(tmp_path)
    evaluated = [line for line in logged(tmp_path) if "loss" not in line]
    assert evaluated == [line for line in logged(straight[1]) if "loss" not in line][1:]


@pytest.mark.slow
def test_the_best_is_kept_and_read(tmp_path, monkeypatch):
    found = ({HELD_OUT: {"loss": loss}, TRAINING: {"loss": 1.0}} for loss in (3.0, 1.0, 2.0, 1.5, 4.0, 1.1))
    monkeypatch.setattr(Evaluator, "__call__", lambda *_: next(found))
    run(tmp_path, steps=6, judged=dataclasses.replace(JUDGED, every=1), keep=1, save_every=100)
    assert {path.name for path in (tmp_path / FOLDER).iterdir()} == {"2", "6"}
    _, meta = load_params(tmp_path, step="best")
    assert meta["step"] == 2 and load_params(tmp_path)[1]["step"] == 6


@pytest.mark.slow
def test_a_run_without_held_out_examples_has_no_best(tmp_path):
    run(tmp_path, steps=2, judged=None)
    with pytest.raises(UserError, match="has not been evaluated on held-out examples, so none .* --validation.share"):
        load_params(tmp_path, step="best")
    with pytest.raises(UserError, match="none of its checkpoints is known as the best"):
        best_step({"best_step": "x"}, "run")


def tracker(stage=None, patience=2, saved=None, count=100, what="x"):
    return Tracker(stage or Toy(), what, count, patience, saved or {})


def fed(values, patience=2, again_from=None):
    """(step, line) of what a tracker says of (held out, training) losses."""
    judge, said = tracker(patience=patience), []
    for step, (held_out, training) in enumerate(values, 1):
        if step == again_from:
            judge = tracker(patience=patience, saved=json.loads(json.dumps(judge.to_json())))
        lines = judge.add(step, {HELD_OUT: {"loss": held_out}, TRAINING: {"loss": training}})
        said += [(step, line) for line in lines]
    return said, judge


FALLING = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4]


@pytest.mark.parametrize("again_from", [None, 3, 5, 6])
def test_that_they_part_is_said_once(again_from):
    said, judge = fed(zip([1.0, 0.9, 1.0, 0.95, 1.2, 1.3, 1.4], FALLING, strict=True), again_from=again_from)
    ((step, line),) = said
    assert step == 4 and judge.best_step == 2
    assert "since step 2 the held-out loss has risen from 0.9 to 0.95" in line
    assert "training examples fell from 0.9 to 0.7" in line and "the checkpoint of step 2, which is kept as the" in line


def test_that_they_part_is_said_anew_after_a_better_one():
    values = [1.0, 1.1, 1.1, 0.9, 1.0, 1.0, 1.0]
    assert [step for step, _ in fed(zip(values, FALLING, strict=True))[0]] == [3, 6]


@pytest.mark.parametrize(
    "values",
    [
        zip(FALLING, FALLING, strict=True),
        zip([1.0, 1.1, 1.2, 1.3], [1.0, 1.1, 1.2, 1.3], strict=True),
        zip([1.0, 1.1, 0.9, 1.0, 0.8], FALLING[:5], strict=True),
    ],
    ids=["both fall", "both rise", "it comes and goes"],
)
def test_nothing_is_said_otherwise(values):
    assert fed(values)[0] == []


def test_the_best_of_other_examples_is_none():
    judge = tracker(what="a share")
    judge.add(3, {HELD_OUT: {"loss": 1.0}, TRAINING: {"loss": 1.0}})
    saved = judge.to_json()
    assert tracker(what="a share", saved=saved).best_step == 3
    assert tracker(what="a split", saved=saved).best_step is None
    assert tracker(what="a share", saved=saved | {"best": "high"}).best_step is None


@pytest.mark.parametrize("kind", ["clip", "prior"])
def test_what_is_learnt_by_heart_is_said_once_until_it_is_no_more(kind):
    judge, said = tracker(example(kind).stage), []
    for step, (own, held_out) in enumerate([(0.3, 0.2), (0.998, 0.08), (1.0, 0.1), (1.0, 0.7), (1.0, 0.09)], 1):
        scores = {HELD_OUT: {"retrieval": held_out}, TRAINING: {"retrieval": own}}
        said += [(step, line) for line in judge.add(step, scores)]
    assert [step for step, _ in said] == [2, 5]
    assert "99.8%" in said[0][1] and "8.0%" in said[0][1] and "by heart" in said[0][1]
    assert judge.best_step == (4 if kind == "clip" else None)


def test_a_few_examples_prove_nothing():
    judge = tracker(example("clip").stage, count=4)
    assert judge.add(1, {HELD_OUT: {"retrieval": 0.25}, TRAINING: {"retrieval": 0.75}}) == []


def test_one_thing_is_held_out():
    with pytest.raises(UserError, match="^--validation.share and --validation.split are given; one says what"):
        ValidationConfig(share=0.1, split="test")
    with pytest.raises(UserError, match=r"validation.share is 1.0; it must be"):
        ValidationConfig(share=1.0)
    assert tiny.NUM_TRAIN and not ValidationConfig().wanted
