"""invert, interpolate, text_diff and probe, with programs of one shape: two images at once, two steps, 8 px."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from sample import again, decode, interpolate, invert, probe, text_diff, variations
from tests.sample.helpers import assert_drawn_again, assert_one_line, call, pixels, tiles
from unclip_jax.images.png import read_text, save_png

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def run(tiny_folder):
    def run(command, *words):
        # What is given twice counts as it is given last.
        shared = ["--bundle", tiny_folder, "--batch-size", 2]
        if command is not decode:
            shared += ["--decoder.steps", 2]
        return call(command, *shared, *([] if command is invert else ["--stop-at", 8]), *words)

    return run


@pytest.fixture(scope="module")
def latents(run, pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("latents") / "made" / "latents.npz"
    result = run(invert, *pictures, "--out", out)
    assert result.status == 0, result.err
    lines = result.out.splitlines()
    assert [line.split("PSNR")[0] for line in lines[:3]] == ["red: ", "soft: ", "median: "]
    assert lines[3:] == [str(out), str(out.with_suffix(".png"))]
    return out


@pytest.mark.slow
def test_inversion(run, pictures, latents, tmp_path):
    with np.load(latents, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    assert sorted(arrays) == ["bundle_hash", "names", "settings", "x_T", "z_i"]
    assert arrays["z_i"].shape == (2, 16) and arrays["x_T"].shape == (2, 8, 8, 3)
    assert arrays["names"].tolist() == ["red", "soft"] and '"steps": 2' in str(arrays["settings"])
    sheet = latents.with_suffix(".png")
    drawn = tiles(pixels(sheet), 8)
    assert drawn.shape == (2, 2, 8, 8, 3) and (drawn[0, 0] == [255, 0, 0]).all()
    assert_drawn_again(sheet)
    # A file per image, and the reconstructions: what variations draws from the latents, to the bit.
    result = run(invert, *pictures, "--out", tmp_path / "each")
    assert result.status == 0 and sorted(path.name for path in (tmp_path / "each").iterdir()) == [
        "reconstruction.png", "red.npz", "soft.npz"
    ]  # fmt: skip
    np.testing.assert_array_equal(np.load(tmp_path / "each" / "soft.npz")["x_T"][0], arrays["x_T"][1])
    words = ["--latents", latents, "--num-images", 1, "--out", tmp_path / "x.png"]
    assert run(variations, *words).status == 0
    np.testing.assert_array_equal(tiles(pixels(tmp_path / "x.png"), 8).reshape(2, 8, 8, 3), drawn[:, 1])
    assert run(decode, "--embeddings", latents, "--out", tmp_path / "y.png").status == 0
    np.testing.assert_array_equal(tiles(pixels(tmp_path / "y.png"), 8)[0], drawn[:, 1])
    assert_drawn_again(tmp_path / "y.png")


@pytest.mark.slow
def test_the_path_between_images(run, pictures, latents, tmp_path):
    out = tmp_path / "path.png"
    assert run(interpolate, *pictures, "--frames", 3, "--out", out).status == 0
    assert run(interpolate, "--latents", latents, "--frames", 3, "--out", tmp_path / "frames").status == 0
    files = sorted((tmp_path / "frames").iterdir())
    assert [path.name for path in files] == [f"{i:04d}.png" for i in range(4)]
    frames = np.stack([pixels(path) for path in files])
    np.testing.assert_array_equal(tiles(pixels(out), 8).reshape(4, 8, 8, 3), frames)
    # The ends are the images as they come back.
    back = tiles(pixels(latents.with_suffix(".png")), 8)[:, 1]
    assert np.abs(frames[[0, 3]].astype(int) - back).max() <= 1
    assert read_text(out)["images"] == "red\nsoft"
    assert_drawn_again(out)
    assert_drawn_again(files[2])
    words = ["--latents", latents, "--frames", 3, "--spacing", "theta", "--out", tmp_path / "by_theta"]
    assert run(interpolate, *words).status == 0
    by_theta = [path for path in sorted((tmp_path / "by_theta").iterdir())]
    assert read_text(by_theta[2])["place"] == "0.666667" != read_text(files[2])["place"]

    def unevenness(images):
        steps = np.sqrt(np.mean(np.square(np.diff(images.astype(float), axis=0)), axis=(1, 2, 3)))
        return steps.max() / steps.mean()

    assert unevenness(frames) < unevenness(np.stack([pixels(path) for path in by_theta]))


@pytest.mark.slow
def test_the_path_between_prompts_as_a_film(run, tmp_path):
    words = ["--prompts", "a red circle", "two rings", "a green star", "--frames", 2, "--prior.steps", 2]
    assert run(interpolate, *words, "--out", tmp_path / "path.gif").status == 0
    with Image.open(tmp_path / "path.gif") as film:
        assert film.n_frames == 5 and film.size == (8, 8) and film.info["loop"] == 0
    assert run(interpolate, *words, "--out", tmp_path / "path.png").status == 0
    text = read_text(tmp_path / "path.png")
    assert text["prompts"] == "a red circle\ntwo rings\na green star" and '"prior": {' in text["settings"]
    assert_drawn_again(tmp_path / "path.png")


@pytest.mark.slow
def test_text_diffs(run, pictures, latents, tmp_path):
    words = ["--from", "a red circle", "--to", "a blue circle", "--thetas", 0, 0.5]
    assert run(text_diff, *pictures, *words, "--out", tmp_path / "diff.png").status == 0
    drawn = tiles(pixels(tmp_path / "diff.png"), 8)
    assert drawn.shape == (2, 3, 8, 8, 3)
    back = tiles(pixels(latents.with_suffix(".png")), 8)
    np.testing.assert_array_equal(drawn[:, 0], back[:, 0])
    assert np.abs(drawn[:, 1].astype(int) - back[:, 1]).max() <= 1
    assert (drawn[:, 2] != drawn[:, 1]).any()
    text = read_text(tmp_path / "diff.png")
    assert (text["from"], text["to"], text["thetas"]) == ("a red circle", "a blue circle", "0.0 0.5")
    assert_drawn_again(tmp_path / "diff.png")
    # The decoder hears the words too, where one asks for it.
    words = ["--latents", latents, "--to", "a blue circle", "--thetas", 0, 0.5, "--captioned"]
    assert run(text_diff, *words, "--out", tmp_path / "files").status == 0
    files = sorted((tmp_path / "files").iterdir())
    assert [path.name for path in files] == ["red_00.png", "red_01.png", "soft_00.png", "soft_01.png"]
    assert read_text(files[3])["theta"] == "0.5" and (pixels(files[0]) != drawn[0, 1]).any()
    assert_drawn_again(files[3])


@pytest.fixture(scope="module")
def basis(tmp_path_factory):
    rng = np.random.default_rng(0)
    arrays = {"mean": rng.normal(size=16) / 4, "components": np.linalg.qr(rng.normal(size=(16, 16)))[0]}
    path = tmp_path_factory.mktemp("basis") / "basis.npz"
    np.savez(path, **arrays, variance=np.arange(16.0)[::-1])
    return path


@pytest.mark.slow
def test_probing(run, pictures, basis, tmp_path):
    words = [*pictures, "--basis", basis, "--components", 0, 3, "all"]
    assert run(probe, *words, "--out", tmp_path / "probe.png").status == 0
    drawn = tiles(pixels(tmp_path / "probe.png"), 8)
    assert drawn.shape == (2, 4, 8, 8, 3)
    # The mean is of no image, and the noise is the same for both; then they part.
    assert np.abs(drawn[0, 1].astype(int) - drawn[1, 1]).max() <= 1
    assert (drawn[0, 2] != drawn[1, 2]).any()
    # All components are z_i itself, decoded from the noise of image 0.
    assert run(variations, *pictures, "--num-images", 1, "--out", tmp_path / "x.png").status == 0
    assert np.abs(tiles(pixels(tmp_path / "x.png"), 8)[0, 1].astype(int) - drawn[0, 3]).max() <= 1
    assert_drawn_again(tmp_path / "probe.png")
    assert run(probe, *words, "--out", tmp_path / "files").status == 0
    names = [f"{name}_{kept}.png" for name in ("red", "soft") for kept in ("0", "3", "all")]
    assert sorted(path.name for path in (tmp_path / "files").iterdir()) == sorted(names)


MISTAKES = [
    (invert, [], "no image given; name one or more files, or a folder of them"),
    (invert, ["RED", "--decoder.steps", "1"], "steps is 1; an inversion takes at least 2"),
    (invert, ["RED", "--corrections", "-1"], "corrections is -1; choose 0 to 100"),
    (invert, ["RED", "--out", "x.jpg"], "x.jpg is no .npz; give a name that ends in .npz or .png, or a folder"),
    (interpolate, ["RED"], "one image is no path; give two or more"),
    (interpolate, ["RED", "--prompts", "a"], "both --prompts and images are given; give one of them"),
    (interpolate, ["--prompts", "a", "b", "--x-t", "slerp"], "prompts have no noise of their own; leave --x-t out"),
    (interpolate, ["RED", "RED", "--frames", "0"], "frames is 0; choose 1 to 10000"),
    (interpolate, ["RED", "RED", "--out", "x.avi"], "x.avi is no PNG; give a name that ends in .gif, .mp4, .png, or"),
    (interpolate, ["RED", "RED", "--out", "x.gif", "--only", "1"], "x.gif is for all images; with --only, give a .png"),
    (text_diff, ["RED", "--to", "a", "--thetas", "1.5"], "theta is 1.5; choose 0 to 1"),
    (text_diff, ["RED", "--from", "a", "--to", "a"], '--from and --to say the same, "a"; say what is to change'),
    (probe, ["RED"], "has no principal components; run python -m train.measure BUNDLE --data"),
    (probe, ["RED", "--basis", "BASIS", "--components", "17"], "the basis has 16 components; ask for 0 to that many"),
    (probe, ["RED", "--components", "1", "1"], "a number of components is given twice; give each once"),
    (probe, ["RED", "--basis", "LATENTS"], "has no mean, only "),
    (variations, ["--latents", "BASIS"], "has no names, only "),
    (variations, ["--latents", "RED"], "is no .npz that can be read ("),
    (decode, ["--embeddings", "BASIS"], "has no z_i, only mean, components, variance; give a file that has it"),
    (decode, ["--embeddings", "NARROW"], "z_i is float64 of shape (2, 3); numbers of shape (n, 16) are needed"),
    (decode, ["--embeddings", "PICKLE"], "is no .npz that can be read (z_i.npy is to hold object"),
    (decode, ["--embeddings", "NAN"], "z_i holds numbers that are not finite; make the file again"),
]


@pytest.mark.parametrize(("command", "words", "line"), MISTAKES)
def test_mistakes(run, pictures, latents, basis, monkeypatch, tmp_path, command, words, line):
    monkeypatch.chdir(tmp_path)
    names = {"RED": pictures[0], "LATENTS": latents, "BASIS": basis}
    bad = {"NARROW": np.zeros((2, 3)), "PICKLE": np.array([None]), "NAN": np.full((1, 16), np.nan)}
    for name, z_i in bad.items():
        if name in words:
            names[name] = tmp_path / f"{name}.npz"
            np.savez(names[name], z_i=z_i)
    before = list(tmp_path.iterdir())
    assert_one_line(run(command, *(names.get(word, word) for word in words)), line)
    assert list(tmp_path.iterdir()) == before


def test_latents_of_another_bundle(run, latents, tiny_folder, tmp_path):
    copy = shutil.copytree(tiny_folder, tmp_path / "copy")
    config = copy / "config.json"
    config.write_text(config.read_text() + "\n")
    line = "belongs to another bundle than tiny; invert the images with this one (python -m sample.invert)"
    for words in ([variations, "--latents"], [decode, "--embeddings"]):
        assert_one_line(run(*words, latents, "--bundle", copy, "--out", tmp_path / "x.png"), line)


@pytest.mark.slow
def test_a_path_of_an_older_version_is_drawn_again(run, latents, tmp_path):
    """It names the module, its options have other names, and the decoder's settings are among them."""
    out = tmp_path / "x.png"
    words = ["--latents", latents, "--frames", 2, "--spacing", "theta", "--only", 1, "--decoder.guidance-scale", 2]
    assert run(interpolate, *words, "--out", out).status == 0
    text = read_text(out)
    said = json.loads(text["again"])
    options = said["options"]
    assert options.pop("settings") == {"decoder": {"steps": 2, "guidance_scale": 2.0}}
    options |= {"points": options.pop("latents"), "pace": options.pop("spacing")}
    options |= {"steps": 2, "guidance_scale": 2.0, "eta": None, "prior": {"steps": None}, "upsamplers": {"eta": None}}
    old = {"module": "sample.interpolate", "options": options, "inputs": said["inputs"]}
    save_png(tmp_path / "old.png", pixels(out), text | {"again": json.dumps(old)})
    result = call(again, tmp_path / "old.png")
    assert result.status == 0, result.err
    np.testing.assert_array_equal(pixels(tmp_path / "old_again.png"), pixels(out))
    assert json.loads(read_text(tmp_path / "old_again.png")["settings"]) == json.loads(text["settings"])


@pytest.mark.parametrize("command", [invert, interpolate, text_diff, probe])
def test_nothing_is_overwritten(run, pictures, basis, tmp_path, command):
    (tmp_path / "x.png").write_text("mine")
    more = {text_diff: ["--to", "a"], probe: ["--basis", basis]}.get(command, [])
    line = "x.png is already there; give another --out, or replace it with --overwrite"
    assert_one_line(run(command, *pictures, *more, "--out", tmp_path / "x.png"), line)
    assert (tmp_path / "x.png").read_text() == "mine"
