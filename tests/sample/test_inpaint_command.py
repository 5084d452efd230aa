import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from sample import inpaint
from tests import tiny
from tests.sample.helpers import assert_drawn_again, assert_one_line, call, pixels, tiles
from unclip_jax import bundle as bundles
from unclip_jax.images.png import read_text
from unclip_jax.images.transforms import fit, read_image

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def run(tiny_folder):
    def run(*words):
        # What is given twice counts as it is given last.
        steps = ["--times", 1, "--decoder.steps", 2, "--upsamplers.steps", 2, "--prior.steps", 2]
        shared = ["--bundle", tiny_folder, "--batch-size", 2, "--prompt", "a red circle", "--stop-at", 8]
        return call(inpaint, *shared, *steps, *words)

    return run


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    """An oblong of soft colours, whose central square is 32 px wide and begins 4 px from the left."""
    folder = tmp_path_factory.mktemp("photo")
    soft = np.random.default_rng(1).integers(0, 256, (4, 5, 3), np.uint8)
    Image.fromarray(soft).resize((40, 32), Image.Resampling.BICUBIC).save(folder / "photo.png")
    return folder / "photo.png"


def mask_of(photo, box):
    """A mask of the image's size that is white in left, top, right, bottom."""
    mask = Image.new("RGB", read_image(photo).size)
    mask.paste("white", box)
    mask.save(photo.with_name("mask.png"))
    return photo.with_name("mask.png")


@pytest.mark.slow
def test_outside_the_mask_all_stays_to_the_bit(run, photo, tmp_path):
    # Of the square's 32 px, 8 to 20 across and 4 to 18 down: 4 to 10 and 2 to 9 at 16 px.
    mask = mask_of(photo, (12, 4, 24, 18))
    words = [photo, "--mask", mask, "--num-images", 2, "--stop-at", 16]
    assert run(*words, "--out", tmp_path / "x.png").status == 0
    drawn = tiles(pixels(tmp_path / "x.png"), 16)[0]
    known, region = fit(read_image(photo), 16), np.zeros((16, 16), bool)
    region[2:9, 4:10] = True
    for image in drawn:
        np.testing.assert_array_equal(image[~region], known[~region])
        assert np.abs(image[region].astype(int) - known[region]).mean() > 5
    assert (drawn[0] != drawn[1]).any()
    text = read_text(tmp_path / "x.png")
    assert text["prompt"] == "a red circle" and text["images"] == "photo.png" and '"prior": {' in text["settings"]
    assert_drawn_again(tmp_path / "x.png")
    mask_of(photo, (12, 4, 24, 20))
    assert run(*words, "--out", tmp_path / "x.png", "--overwrite").status == 0
    assert (tiles(pixels(tmp_path / "x.png"), 16)[0, 0][9, 4:10] != drawn[0][9, 4:10]).any()


@pytest.mark.slow
def test_a_folder_of_images_with_a_mask_each(run, photo, tmp_path):
    boxes = {"a": (4, 0, 20, 32), "b": (20, 8, 36, 24)}
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for name, box in boxes.items():
        image = read_image(photo)
        (image if name == "a" else image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)).save(
            tmp_path / f"images/{name}.png"
        )
        mask_of(photo, box).rename(tmp_path / f"masks/{name}.png")
    words = [tmp_path / "images", "--mask", tmp_path / "masks", "--num-images", 2]
    result = run(*words, "--out", tmp_path / "out")
    assert result.status == 0 and "4 of 4 images" in result.err, result.err
    files = sorted((tmp_path / "out").iterdir())
    assert [file.name for file in files] == ["a_00.png", "a_01.png", "b_00.png", "b_01.png"]
    regions = {"a": np.s_[:, :4], "b": np.s_[2:6, 4:]}
    for file in files:
        known, region = fit(read_image(tmp_path / f"images/{file.name[0]}.png"), 8), np.zeros((8, 8), bool)
        region[regions[file.name[0]]] = True
        np.testing.assert_array_equal(pixels(file)[~region], known[~region])
        assert (pixels(file)[region] != known[region]).any() and read_text(file)["image"] == f"{file.name[0]}.png"
    assert (pixels(files[2]) != pixels(files[3])).any()
    assert_drawn_again(files[3])
    # On one sheet, a row for each image.
    assert run(*words, "--out", tmp_path / "sheet.png").status == 0
    np.testing.assert_array_equal(tiles(pixels(tmp_path / "sheet.png"), 8)[1, 1], pixels(files[3]))


@pytest.mark.slow
def test_a_bundle_whose_sampler_cannot_inpaint(run, photo, tiny_bundle, tmp_path):
    """By default DDIM takes its place, but in an upsampler that was trained to inpaint."""
    sampling = {name: dataclasses.replace(how, sampler="dpm++") for name, how in tiny_bundle.sampling.items()}
    system = tiny.with_stage("upsampler_0", 9, of=tiny_bundle, inpainting=True)
    bundles.save(dataclasses.replace(system, sampling=sampling), tmp_path / "bundle")
    words = [photo, "--bundle", tmp_path / "bundle", "--box", "12,8,16,8", "--stop-at", 16, "--out", tmp_path / "x.png"]
    result = run(*words)
    assert result.status == 0, result.err
    settings = json.loads(read_text(tmp_path / "x.png")["settings"])
    assert {name: how["sampler"] for name, how in settings.items()} == {
        "prior": "dpm++", "decoder": "ddim", "upsampler_0": "dpm++"
    }  # fmt: skip
    assert settings["decoder"]["steps"] == 2


@pytest.mark.slow
def test_a_box_in_pixels_and_in_fractions(run, photo, tmp_path):
    same = ["--num-images", 2, "--out"]
    assert run(photo, "--box", "12,8,16,8", *same, tmp_path / "a").status == 0
    assert run(photo, "--box", "0.3,0.25,0.4,0.25", *same, tmp_path / "b").status == 0
    names = ["photo_00.png", "photo_01.png"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == names
    for name in names:
        np.testing.assert_array_equal(pixels(tmp_path / "a" / name), pixels(tmp_path / "b" / name))
    assert_drawn_again(tmp_path / "a" / names[1])
    known, region = fit(read_image(photo), 8), np.zeros((8, 8), bool)
    region[2:4, 2:6] = True
    np.testing.assert_array_equal(pixels(tmp_path / "a" / names[0])[~region], known[~region])


@pytest.mark.slow
def test_around_the_image(run, photo, tmp_path):
    out = tmp_path / "x.png"
    result = run(photo, "--outpaint", "5,0,2,3", "--num-images", 2, "--out", out)
    assert result.status == 0, result.err
    # Beside the image one window to the right and two to the left; below it a band of three.
    assert "2 of 2 images: window 6\n" in result.err and "window 7" not in result.err
    canvas = pixels(out)
    assert canvas.shape == (11, 15 + 2 + 15, 3)
    known = fit(read_image(photo), 8)
    for left in (5, 22):
        np.testing.assert_array_equal(canvas[:8, left : left + 8], known)
    assert (canvas[8:, :15] != canvas[8:, 17:]).any() and canvas[:, :5].std() > 5
    assert_drawn_again(out)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "give one of --mask, --box and --outpaint"),
        (["--box", "0,0,2,2", "--outpaint", "1,1,1,1"], "give one of --mask, --box and --outpaint"),
        (["--mask", "SMALL"], "small.png is 32 x 32 px and PHOTO 40 x 32 px; give a mask of that size"),
        (["--mask", "BLACK"], "nothing of the central square of PHOTO is to be drawn; mark some of it (white)"),
        (["--mask", "absent.png"], "absent.png: cannot be read"),
        (["--mask", "MASKS"], "masks has no mask for PHOTO; put one there that is named photo.png"),
        (["--box", "0,0,3,32"], "nothing of the central square of PHOTO is to be drawn; mark some of it (the box)"),
        (["--box", "0,0,3"], "cannot read --box 0,0,3; write four numbers, left,top,width,height"),
        (["--box", "0,0,0,3"], "--box 0,0,0,3 has no inside; write left,top,width,height, the last two above 0"),
        (["--box", "30,0,20,3"], "--box 30,0,20,3 reaches beyond the image, which is 40 x 32 px"),
        (["--box", "0.5,0.5,0.6,0.1"], "--box 0.5,0.5,0.6,0.1 reaches beyond the image"),
        (["--box", "nan,0,1.,1"], "--box nan,0,1.,1 has no inside"),
        (["--outpaint", "1,2,3"], "cannot read --outpaint 1,2,3; write left,top,right,bottom in pixels"),
        (["--outpaint", "0,0,0,0"], "cannot read --outpaint 0,0,0,0; write left,top,right,bottom in pixels"),
        (["--box", "0,0,9,9", "--prompt", " "], "the prompt is empty; say what to draw"),
        (["--box", "0,0,9,9", "--num-images", "0"], "num_images is 0; it must be at least 1"),
        (["--box", "0,0,9,9", "--times", "0"], "times is 0; choose 1 to 100"),
        (["--box", "0,0,9,9", "--decoder.sampler", "dpm++"], "decoder: sampler is dpm++, which cannot inpaint; set it"),
        (["--box", "0,0,9,9", "--out", "x.jpg"], "x.jpg is no PNG"),
    ],
)
def test_mistakes(run, photo, monkeypatch, tmp_path, words, line):
    Image.new("RGB", (32, 32), "white").save(tmp_path / "small.png")
    Image.new("RGB", (40, 32)).save(tmp_path / "black.png")
    for name in ("here", "masks"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (40, 32), "white").save(tmp_path / "masks" / "other.png")
    monkeypatch.chdir(tmp_path / "here")
    names = {"SMALL": tmp_path / "small.png", "BLACK": tmp_path / "black.png", "MASKS": tmp_path / "masks"}
    assert_one_line(run(photo, *(names.get(word, word) for word in words)), line.replace("PHOTO", str(photo)))
    assert list((tmp_path / "here").iterdir()) == []
