import dataclasses
import math
import sys

import numpy as np
import pytest

from unclip_jax.bundle import load
from unclip_jax.core.errors import UserError
from unclip_jax.data.captioned_shapes import render as draw
from unclip_jax.data.captioned_shapes import scenes as shapes
from unclip_jax.eval.shapes import __main__ as command
from unclip_jax.eval.shapes.cases import CRITERIA, GROUPS, cases, evaluate, shares
from unclip_jax.eval.shapes.checker import Verdict

PROMPTS = 32


@pytest.fixture(scope="module")
def groups():
    return {name: cases(*which, PROMPTS // len(GROUPS)) for name, which in GROUPS.items()}


@pytest.fixture(scope="module")
def table(groups):
    members = [case for group in groups.values() for case in group]
    return evaluate(np.stack([draw.render(case.scene, 128) for case in members]), groups)


def test_cases_are_what_their_group_says(groups):
    assert list(groups) == list(GROUPS)
    for name, members in groups.items():
        split, num_objects = GROUPS[name]
        assert len(members) == 8
        for case in members:
            assert len(case.scene.objects) == num_objects
            pairs = {(one.colour, one.shape) for one in case.scene.objects}
            assert bool(pairs & shapes.HELD_OUT) == (split == "test_unseen")
            assert len(shapes.parse(case.caption).objects) == num_objects


def test_cases_are_always_the_same_ones():
    assert cases("test_seen", 1, 3) == cases("test_seen", 1, 5)[:3]


def test_true_renders_are_right(table):
    for name in GROUPS:
        row = {criterion: share for criterion, share in table[name].items() if not math.isnan(share)}
        assert row == dict.fromkeys(row, 1.0)
        assert ("relation" in row) == ("two" in name)


def test_captions_of_neighbours_are_near_chance(table):
    for name in GROUPS:
        row = table[f"{name}, captions shuffled"]
        # The neighbour has as many objects, but is seldom of the same colours and shapes.
        assert row["count"] == 1.0
        assert row["all"] <= 0.25 and row["colour"] <= 0.5 and row["shape"] <= 0.6


def test_images_of_nothing_are_wrong(groups):
    blank = np.full((PROMPTS, 64, 64, 3), 200, np.uint8)
    for row in evaluate(blank, groups).values():
        assert row["count"] == 0 and row["all"] == 0


def test_shares():
    right = Verdict(count=True, colour=True, shape=True, relation=None, all=True)
    wrong = dataclasses.replace(right, shape=False, all=False)
    row = shares([right, wrong, wrong, wrong])
    assert list(row) == list(CRITERIA)
    assert (row["count"], row["shape"], row["all"]) == (1, 0.25, 0.25) and math.isnan(row["relation"])
    with_relation = dataclasses.replace(right, relation=True)
    assert shares([right, with_relation, dataclasses.replace(right, relation=False)])["relation"] == 0.5


def run(monkeypatch, *words):
    monkeypatch.setenv("UNCLIP_JAX_NO_CACHE", "1")
    monkeypatch.setattr(sys, "argv", ["shapes", *words])
    command.main()


def test_command_judges_true_renders(monkeypatch, capsys, tmp_path):
    run(monkeypatch, "--true-renders", "--prompts", "8", "--out", str(tmp_path / "x.png"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == list(CRITERIA) and len(lines) == 9
    assert lines[1].split()[-2:] == ["100.0", "%"] and lines[1].startswith("one object, unseen pair")
    assert (tmp_path / "x.png").is_file()


def test_command_draws_with_settings_of_its_own(tiny_folder, monkeypatch, capsys):
    drawn = []

    def draw(system, captions, **options):
        drawn.append(options["settings"])
        return np.full((len(captions), 64, 64, 3), 200, np.uint8)

    monkeypatch.setattr(command, "text_to_image", draw)
    run(monkeypatch, "--bundle", str(tiny_folder), "--prompts", "8", "--decoder.steps", "2")
    assert capsys.readouterr().out.splitlines()[1].endswith(" 0.0 %")
    own = load(tiny_folder, weights=False).sampling
    assert drawn == [own | {"decoder": dataclasses.replace(own["decoder"], steps=2)}]


def test_command_needs_a_neighbour_in_each_group(monkeypatch):
    with pytest.raises(UserError, match="prompts is 7; give at least 8, two for each group"):
        run(monkeypatch, "--true-renders", "--prompts", "7")
