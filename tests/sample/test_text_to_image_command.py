import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from sample import again
from sample import text_to_image as command
from tests.bundle.helpers import edit
from tests.sample.helpers import assert_drawn_again, assert_one_line, call, pixels
from unclip_jax.bundle import load
from unclip_jax.images.png import read_text

pytestmark = pytest.mark.usefixtures("quick_compile")

PROMPT = "a red circle above a blue square"


@pytest.fixture(scope="module")
def draw(tiny_folder):
    """Runs the command with the tiny bundle."""

    def draw(*words, bundle=tiny_folder):
        return call(command, *words, "--bundle", bundle)

    return draw


@pytest.mark.slow
def test_a_grid_that_says_how_it_was_drawn(draw, tmp_path, tiny_folder):
    out = tmp_path / "made" / "x.png"
    status, stdout, err = draw(PROMPT, "--num-images", 4, "--seed", 5, "--out", out, "--decoder.guidance-scale", 3)
    assert (status, stdout) == (0, f"{out}\n")
    assert [line.split(" in ")[0] for line in err.splitlines()] == [
        "4 of 4 images: prior (1 of 3)",
        "4 of 4 images: decoder (2 of 3)",
        "4 of 4 images: upsampler_0 (3 of 3)",
    ]
    assert pixels(out).shape == (34, 34, 3)
    text = read_text(out)
    assert text["prompt"] == PROMPT and text["seed"] == "5" and text["num_images"] == "4"
    assert text["bundle"] == "tiny" and text["bundle_hash"] == load(tiny_folder).hash
    settings = json.loads(text["settings"])
    # The bundle's, and what the command line changed.
    assert settings["decoder"]["guidance_scale"] == 3 and settings["decoder"]["steps"] == 3
    assert set(settings) == {"prior", "decoder", "upsampler_0"}


def test_a_prompt_that_is_no_text(draw, tmp_path):
    assert_one_line(draw("caf\udce9", "--out", tmp_path / "x.png"), r"'caf\udce9' on the command line is not UTF-8")
    assert not (tmp_path / "x.png").exists()


@pytest.mark.slow
def test_every_stage_with_a_sampler_of_its_own(draw, tmp_path):
    prior = ["--prior.sampler", "dpm++", "--prior.guidance-scale", 2, "--prior.guidance-interval", 10, 90]
    decoder = ["--decoder.sampler", "sde_dpm++", "--decoder.spacing", "karras"]
    upsamplers = ["--upsamplers.sampler", "ddpm", "--upsamplers.spacing", "leading"]
    status, _, err = draw(PROMPT, "--out", tmp_path / "x.png", *prior, *decoder, *upsamplers)
    assert status == 0, err
    settings = json.loads(read_text(tmp_path / "x.png")["settings"])
    assert settings["prior"]["sampler"] == "dpm++" and settings["prior"]["guidance_interval"] == [10, 90]
    assert settings["decoder"]["sampler"] == "sde_dpm++" and settings["decoder"]["spacing"] == "karras"
    assert settings["upsampler_0"]["sampler"] == "ddpm" and settings["upsampler_0"]["spacing"] == "leading"


@pytest.mark.slow
def test_a_file_of_prompts_into_a_folder(draw, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f"{PROMPT}\n\n  two rings \n", encoding="utf-8-sig")
    options = ["--num-images", 2, "--seed", 5, "--decoder.guidance-scale", 3]
    status, stdout, _ = draw("--prompts", prompts, "--out", tmp_path / "folder", *options)
    names = ["0000_00.png", "0000_01.png", "0001_00.png", "0001_01.png"]
    assert status == 0 and stdout.split() == [str(tmp_path / "folder" / name) for name in names]
    texts = [read_text(tmp_path / "folder" / name) for name in names]
    assert [(text["prompt"], text["index"]) for text in texts] == [
        (PROMPT, "0"), (PROMPT, "1"), ("two rings", "2"), ("two rings", "3")
    ]  # fmt: skip

    # The same images as in one grid: a row per prompt.
    draw("--prompts", prompts, "--out", tmp_path / "grid.png", *options)
    images = [pixels(tmp_path / "folder" / name) for name in names]
    sheet = pixels(tmp_path / "grid.png")
    np.testing.assert_array_equal(sheet[:16, 18:], images[1])
    np.testing.assert_array_equal(sheet[18:, :16], images[2])
    assert read_text(tmp_path / "grid.png")["prompt"] == f"{PROMPT}\ntwo rings"
    assert_drawn_again(tmp_path / "grid.png")
    assert_drawn_again(tmp_path / "folder" / names[2])
    # The prompts are not those any more.
    prompts.write_text(PROMPT)
    assert_one_line(call(again, tmp_path / "grid.png"), f"{prompts} is not as it was when ")


def test_nothing_is_overwritten(draw, tmp_path):
    out = tmp_path / "x.png"
    out.write_text("mine")
    assert_one_line(draw(PROMPT, "--out", out), f"{out} is already there; give another --out, or replace it with --ov")
    assert out.read_text() == "mine"


@pytest.mark.slow
def test_a_prompt_that_is_too_long_is_drawn_with_a_warning(draw, tmp_path):
    long = "a red circle " * 30 + "END"
    options = ["--num-images", 4, "--decoder.guidance-scale", 3, "--out", tmp_path / "x.png"]
    status, _, err = draw(long, *options)
    (warning,) = [line for line in err.splitlines() if line.startswith("warning: ")]
    assert status == 0 and f"{long!r} is too long; this was cut: '" in warning and warning.endswith("END'")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], 'give a prompt, as in "a red circle", or a file of them with --prompts'),
        ([""], "the prompt is empty; say what to draw"),
        ([PROMPT, "--prompts", "x.txt"], "give a prompt, as in"),
        (["--prompts", "absent.txt"], "cannot read absent.txt: "),
        (["a", "red", "circle"], "'red' belongs to no option; put words that belong together in quotes"),
        ([PROMPT, "--prior.step", "3"], "no option --prior.step; did you mean --prior.steps?"),
        ([PROMPT, "--prior.steps", "0"], "prior: steps is 0; choose 1 to 100"),
        ([PROMPT, "--upsamplers.steps", "101"], "upsampler_0: steps is 101; choose 1 to 100"),
        ([PROMPT, "--decoder.guidance-scale", "-1"], "decoder: guidance_scale is -1.0; choose 0 to 100"),
        ([PROMPT, "--decoder.eta", "2"], "decoder: eta is 2.0; choose 0 to 1"),
        ([PROMPT, "--decoder.sampler", "euler"], "invalid choice 'euler' for argument '--decoder.sampler'"),
        ([PROMPT, "--decoder.sampler", "analytic"], "sampler analytic needs the network's statistics, which"),
        ([PROMPT, "--prior.guidance-interval", "9", "2"], "prior: guidance_interval is 9 to 2; choose two times of 0"),
        ([PROMPT, "--prior.num-candidates", "0"], "prior: num_candidates is 0; choose 1 to 64"),
        ([PROMPT, "--num-images", "0"], "num_images is 0; it must be at least 1"),
        ([PROMPT, "--batch-size", "0"], "batch_size is 0; it must be at least 1"),
        ([PROMPT, "--seed", "-1"], "seed is -1; it must be at least 0 and below 2**32"),
        ([PROMPT, "--stop-at", "12"], "stop_at is 12; bundle tiny makes 8, 16 px"),
        ([PROMPT, "--only", "1"], "only is 1; this request draws images 0 to 0"),
        ([PROMPT, "--out", "x.jpg"], "x.jpg is no PNG; give a name that ends in .png, or a folder"),
    ],
)
def test_requests_that_make_no_sense(draw, monkeypatch, tmp_path, words, line):
    monkeypatch.chdir(tmp_path)
    assert_one_line(draw(*words), line)
    assert not list(tmp_path.iterdir())


def test_no_such_bundle(draw):
    assert_one_line(draw(PROMPT, bundle="nowhere"), "no bundle nowhere; give a bundle's folder or a name (")


@pytest.fixture
def copy(tiny_folder, tmp_path):
    return shutil.copytree(tiny_folder, tmp_path / "copy")


def test_weights_that_are_cut_off(draw, copy):
    file = copy / "decoder.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert_one_line(draw(PROMPT, bundle=copy), f"{file} is damaged (")


def test_parts_that_do_not_fit(draw, copy):
    edit(copy, lambda config: config["stages"]["decoder"].update(identity="0" * 64))
    assert_one_line(draw(PROMPT, bundle=copy), "decoder belongs to CLIP 000000000000 but clip to CLIP ")


@pytest.mark.slow
def test_as_a_program(copy):
    edit(copy, lambda config: config["stages"]["upsampler_0"]["stage"]["conditions"][0]["low_res"].update(scale=4))
    done = subprocess.run(
        [sys.executable, "-m", "sample.text_to_image", PROMPT, "--bundle", str(copy)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and done.stdout == ""
    line = "error: decoder makes image_8 but upsampler_0 starts from image_4; pack stages whose sizes meet\n"
    assert done.stderr == line
