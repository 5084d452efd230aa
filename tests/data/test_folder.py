import json
import os
import pickle
import unicodedata

import numpy as np
import pytest
from PIL import Image

from unclip_jax.core.errors import UserError
from unclip_jax.data import verdicts
from unclip_jax.data.folder import FolderSource


@pytest.fixture(autouse=True)
def cache_home(tmp_path_factory, monkeypatch):
    home = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    return home


def write_image(file, value=0, size=(12, 10)):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 0)).save(file)


def write_captioned(root, names):
    for value, name in enumerate(names):
        write_image(root / name, value)
        (root / name).with_suffix(".txt").write_text(f"caption of {name}")


def listed(source):
    return [(record.name, *record.captions) for record in (source[i] for i in range(len(source)))]


def test_images_of_any_kind_at_any_depth_in_order_of_path(tmp_path):
    names = ["b.png", "a/z.jpg", "a/b/c.webp", "B.JPEG", "c.bmp", "d.tif", "e.gif"]
    write_captioned(tmp_path, names)
    (tmp_path / "notes.md").write_text("not an image")
    source = FolderSource(tmp_path)
    assert listed(source) == [(name, f"caption of {name}") for name in sorted(names)]
    record = source[sorted(names).index("c.bmp")]
    assert record.image.shape == (10, 12, 3) and record.image[0, 0, 0] == names.index("c.bmp")
    assert source.report() == {"images": 7, "bad": {}}


def test_hidden_files_and_folders_are_left_alone(tmp_path):
    write_captioned(tmp_path, ["a.png", ".cache/b.png", "._a.png"])
    assert [name for name, _ in listed(FolderSource(tmp_path))] == ["a.png"]


def test_captions_lose_bom_and_spaces_and_keep_their_letters(tmp_path):
    write_image(tmp_path / "ü ☂.png")
    (tmp_path / "ü ☂.txt").write_bytes("\ufeffa red  cïrcle 🟥\r\n\n".encode())
    assert listed(FolderSource(tmp_path)) == [("ü ☂.png", "a red cïrcle 🟥")]


@pytest.mark.parametrize("column", ["text", "caption"])
def test_metadata_jsonl(tmp_path, column):
    for name in ("a.png", "deep/b.png"):
        write_image(tmp_path / name)
    rows = [{"file_name": "deep/b.png", column: "two\nlines", "id": 1}, {"file_name": "./a.png", column: "ä"}]
    text = "\ufeff" + "\n".join(json.dumps(row) for row in rows) + "\n\n"
    (tmp_path / "metadata.jsonl").write_text(text, "utf-8")
    assert listed(FolderSource(tmp_path)) == [("a.png", "ä"), ("deep/b.png", "two lines")]


def test_metadata_csv_is_relative_to_itself(tmp_path):
    write_image(tmp_path / "train" / "a, 1.png")
    write_image(tmp_path / "train" / "b.png")
    text = '\ufefffile_name,text\n"a, 1.png","say ""hi"",\nplease"\nb.png,bee\n'
    (tmp_path / "train" / "metadata.csv").write_text(text, "utf-8")
    assert listed(FolderSource(tmp_path)) == [("train/a, 1.png", 'say "hi", please'), ("train/b.png", "bee")]


@pytest.mark.parametrize(("on_disk", "in_metadata"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_composed_and_decomposed_names_are_the_same_file(tmp_path, on_disk, in_metadata):
    name = unicodedata.normalize(on_disk, "é.png")
    write_image(tmp_path / name)
    row = {"file_name": unicodedata.normalize(in_metadata, "é.png"), "text": "e"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row))
    assert listed(FolderSource(tmp_path)) == [(name, "e")]


@pytest.mark.parametrize("outside", ["../secret.png", "a/../../secret.png", "/etc/passwd", "..\\secret.png", ".."])
def test_metadata_may_not_leave_the_folder(tmp_path, outside):
    write_image(tmp_path / "secret.png")
    write_image(tmp_path / "data" / "a.png")
    (tmp_path / "data" / "a.txt").write_text("a")
    (tmp_path / "data" / "metadata.jsonl").write_text(json.dumps({"file_name": outside, "text": "x"}))
    source = FolderSource(tmp_path / "data", max_bad_share=0.5)
    assert listed(source) == [("a.png", "a")]
    reason = f"names {outside!r}, which is not inside {tmp_path / 'data'}"
    assert source.report()["bad"] == {"metadata.jsonl, line 1": reason}


@pytest.mark.parametrize("absolute", ["as given", "resolved"])
def test_an_absolute_path_may_lie_inside(tmp_path, absolute):
    write_image(tmp_path / "data" / "deep" / "a.png")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    inside = tmp_path / ("link" if absolute == "as given" else "data") / "deep" / "a.png"
    (tmp_path / "data" / "metadata.jsonl").write_text(json.dumps({"file_name": str(inside), "text": "x"}))
    assert listed(FolderSource(tmp_path / "link")) == [("deep/a.png", "x")]


def test_alternatives_from_everywhere_each_once(tmp_path, capsys):
    write_captioned(tmp_path, ["a.png", "b.png", "c.png"])
    (tmp_path / "a.txt").write_text("first\n\n second  one\rthird\r\n")
    rows = [("b.png", ["x", "", "y"]), ("a.png", "second one"), ("b.png", "z\nz"), ("b.png", "x")]
    lines = [json.dumps({"file_name": name, "text": text}) for name, text in rows]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    assert listed(FolderSource(tmp_path)) == [
        ("a.png", "first", "second one", "third"),
        ("b.png", "caption of b.png", "x", "y", "z z"),
        ("c.png", "caption of c.png"),
    ]
    told = capsys.readouterr().err
    assert "2 of 3 images" in told and "training draws one for each epoch" in told


def test_captions_are_needed_unless_told_otherwise(tmp_path):
    write_image(tmp_path / "a.png")
    with pytest.raises(UserError, match="1 images and no captions; put x.txt beside x.jpg"):
        FolderSource(tmp_path)
    assert listed(FolderSource(tmp_path, captions=False)) == [("a.png", "")]


def test_nothing_to_read(tmp_path):
    with pytest.raises(UserError, match="holds no images"):
        FolderSource(tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        FolderSource(tmp_path / "missing")
    for path in ("~no-such-user/photos", "x" * 5000):
        with pytest.raises(UserError, match="is not a folder"):
            FolderSource(path)


@pytest.mark.parametrize(("name", "value"), [("max_bad_share", float("nan")), ("max_bad_share", -1.0), ("min_side", 0)])
def test_limits_that_make_no_sense(tmp_path, name, value):
    write_captioned(tmp_path, ["a.png"])
    with pytest.raises(UserError, match=f"{name} is {value}; give"):
        FolderSource(tmp_path, **{name: value})


def damaged_folder(root):
    """Four good images and one of each defect."""
    write_captioned(root, [f"good{i}.png" for i in range(4)])
    (root / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    (root / "broken.txt").write_text("x")
    write_image(root / "bare.png")
    write_image(root / "blank.png")
    (root / "blank.txt").write_text(" \n")
    write_image(root / "latin.png")
    (root / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    os.symlink(root / "nowhere.png", root / "link.png")
    (root / "link.txt").write_text("x")
    (root / "metadata.jsonl").write_text(json.dumps({"file_name": "gone.png", "text": "x"}))


def test_what_is_unusable_is_left_out_and_named(tmp_path, capsys, cache_home):
    damaged_folder(tmp_path)
    source = FolderSource(tmp_path, max_bad_share=0.6)
    assert [name for name, _ in listed(source)] == [f"good{i}.png" for i in range(4)]
    report = source.report()
    assert report["images"] == 4
    bad = report["bad"]
    assert list(bad) == ["bare.png", "blank.png", "broken.jpg", "gone.png", "latin.png", "link.png"]
    assert bad["bare.png"] == "no caption" and bad["blank.png"] == "blank.txt has an empty caption"
    assert bad["latin.png"] == "latin.txt has a caption that is not UTF-8"
    assert bad["gone.png"] == "named in metadata.jsonl, line 1, but missing"
    assert bad["broken.jpg"].startswith(("not an image", "cannot be read"))
    assert bad["link.png"].startswith("cannot be read")
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "6 of 10 images" in told and "blank.png: blank.txt has an empty caption" in told
    (listed_in,) = (cache_home / "unclip_jax").glob("*.txt")
    assert f"(all 6 in {listed_in})" in told
    assert sorted(line.split(": ")[0] for line in listed_in.read_text().splitlines()) == sorted(bad)


def test_too_much_damage_stops_in_one_line(tmp_path):
    damaged_folder(tmp_path)
    with pytest.raises(UserError) as caught:
        FolderSource(tmp_path, max_bad_share=0.59)
    line = str(caught.value)
    assert "6 of 10 images" in line and "60.0%, limit 59.0%" in line and "\n" not in line
    assert "blank.png: blank.txt has an empty caption" in line and "; ... (all 6 in " in line


ODD = {
    "directory.png": lambda file: file.mkdir(),
    "empty.png": lambda file: file.touch(),
    "link.png": lambda file: file.symlink_to("nowhere.png"),
    "loop.png": lambda file: file.symlink_to("loop.png"),
    "pipe.png": os.mkfifo,
    "small.png": lambda file: write_image(file, size=(7, 400)),
    "text.png": lambda file: file.write_text("text"),
    os.fsdecode(b"caf\xe9\n.png"): lambda file: file.touch(),
}


@pytest.mark.parametrize("name", ODD)
def test_no_image_stops_a_run(tmp_path, name, capsys):
    write_captioned(tmp_path, ["a.png"])
    ODD[name](tmp_path / name)
    (tmp_path / name).with_suffix(".txt").write_text("x")
    source = FolderSource(tmp_path, max_bad_share=0.5)
    assert listed(source) == [("a.png", "caption of a.png")]
    # A folder is no image, whatever it is called.
    assert list(source.report()["bad"]) == ([] if name == "directory.png" else [name])
    assert capsys.readouterr().err.encode().count(b"\n") == (name != "directory.png")
    if name == "small.png":
        assert len(FolderSource(tmp_path, min_side=7)) == 2


ODD_CAPTIONS = {
    "link": (lambda file: file.symlink_to("nowhere.txt"), "cannot be read (No such file or directory)"),
    "pipe": (os.mkfifo, "is not a file"),
    "device": (lambda file: file.symlink_to("/dev/zero"), "is not a file"),
    "endless": (lambda file: file.write_text("x" * (1 << 20) + "y"), "more than the limit of 1,048,576"),
    "latin": (lambda file: file.write_bytes(b"good\ncaf\xe9"), "has a caption that is not UTF-8"),
    "utf-16": (lambda file: file.write_bytes("red".encode("utf-16-le")), "null character; write the file in UTF-8"),
    "blank": (lambda file: file.write_text("\n \r\n"), "has an empty caption"),
}


@pytest.mark.parametrize("kind", ODD_CAPTIONS)
def test_no_caption_file_stops_a_run(tmp_path, kind):
    make, reason = ODD_CAPTIONS[kind]
    write_captioned(tmp_path, ["a.png"])
    write_image(tmp_path / "b.png")
    make(tmp_path / "b.txt")
    bad = FolderSource(tmp_path, max_bad_share=0.5).report()["bad"]
    assert list(bad) == ["b.png"] and bad["b.png"].startswith("b.txt ") and reason in bad["b.png"]

    # What a table says of the same image is used none the less.
    (tmp_path / "metadata.csv").write_text("file_name,text\nb.png,bee\n")
    source = FolderSource(tmp_path, max_bad_share=0.5)
    assert listed(source)[1] == ("b.png", "bee") and list(source.report()["bad"]) == ["b.txt"]


def test_a_folder_that_cannot_be_listed_is_counted(tmp_path, monkeypatch):
    write_captioned(tmp_path, ["a.png", "closed/b.png"])
    scandir = os.scandir

    def closed(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(UserError, match="1 of 2 images .* closed/: cannot be read .Permission denied."):
        FolderSource(tmp_path)


def test_a_damaged_row_and_its_image_are_one_loss(tmp_path):
    for name in ("a.png", "b.png", "c.png", "d.png"):
        write_image(tmp_path / name)
    rows = [json.dumps({"file_name": name, "text": name}) for name in ("a.png", "b.png", "c.png")]
    (tmp_path / "metadata.jsonl").write_text("\n".join([*rows, '{"file_name": "d.png", "text": "d']))
    source = FolderSource(tmp_path, max_bad_share=0.25)
    assert len(source) == 3 and list(source.report()["bad"]) == ["d.png", "metadata.jsonl, line 4"]
    with pytest.raises(
        UserError, match=r"1 of 4 images .* \(25.0%, limit 24.0%\).* metadata.jsonl, line 4: is not JSON"
    ):
        FolderSource(tmp_path, max_bad_share=0.24)


def test_what_a_table_names_and_is_no_image(tmp_path):
    write_captioned(tmp_path, ["a.png"])
    (tmp_path / "b.svg").write_text("<svg/>")
    (tmp_path / "metadata.csv").write_text("file_name,text\nb.svg,x\nb.svg,y\nA.png,z\n")
    bad = FolderSource(tmp_path, max_bad_share=0.9).report()["bad"]
    assert bad == {
        "b.svg": "named in metadata.csv, line 3, but no image that is read",
        "A.png": "named in metadata.csv, line 4, but missing",
    }


def test_everything_broken_stops_even_at_a_share_of_one(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no")
    with pytest.raises(UserError, match="1 of 1 images"):
        FolderSource(tmp_path, captions=False, max_bad_share=1.0)


def test_a_second_start_decodes_only_what_changed(tmp_path, monkeypatch, cache_home):
    write_captioned(tmp_path, ["a.png", "b.png", "c.png"])
    (tmp_path / "b.png").write_bytes(b"broken")
    read = []

    def counting_read(file, *, name=None):
        read.append(name)
        return original(file, name=name)

    original = verdicts.read_image
    monkeypatch.setattr(verdicts, "read_image", counting_read)
    first = FolderSource(tmp_path, max_bad_share=0.5)
    assert sorted(read) == ["a.png", "b.png", "c.png"]

    read.clear()
    assert FolderSource(tmp_path, max_bad_share=0.5).report() == first.report()
    assert read == []

    write_image(tmp_path / "b.png")
    assert len(FolderSource(tmp_path)) == 3
    assert read == ["b.png"]

    read.clear()
    (cache,) = (cache_home / "unclip_jax").iterdir()
    whole = json.loads(cache.read_text())
    for damaged in (
        "damaged",
        "[" * 100_000,
        json.dumps(whole | {"files": [1]}),
        json.dumps(whole | {"files": {"a.png": 1}}),
    ):
        cache.write_text(damaged)
        assert len(FolderSource(tmp_path)) == 3
        assert sorted(read) == ["a.png", "b.png", "c.png"]
        read.clear()


def test_an_interrupted_check_keeps_what_it_found(tmp_path, monkeypatch):
    write_captioned(tmp_path, ["a.png", "b.png"])
    original, read = verdicts.read_image, []

    def interrupted_read(file, *, name=None):
        if name == "b.png":
            raise KeyboardInterrupt
        return original(file, name=name)

    def counting_read(file, *, name=None):
        read.append(name)
        return original(file, name=name)

    monkeypatch.setattr(verdicts, "read_image", interrupted_read)
    with pytest.raises(KeyboardInterrupt):
        FolderSource(tmp_path)
    monkeypatch.setattr(verdicts, "read_image", counting_read)
    FolderSource(tmp_path)
    assert read == ["b.png"]


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path):
    write_captioned(tmp_path / "data", ["a.png"])
    (tmp_path / "file").write_text("in the way")
    assert len(FolderSource(tmp_path / "data", cache_dir=tmp_path / "file")) == 1


def test_pickled_for_a_reader_process(tmp_path):
    write_captioned(tmp_path, ["a.png", "b.png"])
    source = FolderSource(tmp_path)
    again = pickle.loads(pickle.dumps(source))
    assert listed(again) == listed(source)
    np.testing.assert_array_equal(again[1].image, source[1].image)


def test_a_file_that_breaks_after_the_check_is_named(tmp_path):
    write_captioned(tmp_path, ["a.png"])
    source = FolderSource(tmp_path)
    (tmp_path / "a.png").write_bytes(b"overwritten")
    with pytest.raises(UserError, match=r"1 of 1 records .* \(100.0%, limit 1.0%\); mend .*: a\.png: not an image"):
        source[0]


def test_a_file_that_breaks_after_the_check_stops_nothing(tmp_path, capsys):
    write_captioned(tmp_path, ["a.png", "b.png", "c.png"])
    source = FolderSource(tmp_path, max_bad_share=0.4)
    (tmp_path / "b.png").unlink()
    assert [name for name, _ in listed(source)] == ["a.png", "c.png", "c.png"]
    assert capsys.readouterr().err.startswith("b.png: cannot be read")
    assert source.report()["images"] == 2 and list(source.report()["bad"]) == ["b.png"]
    (tmp_path / "a.png").unlink()
    with pytest.raises(UserError, match="2 of 3 records of"):
        source[0]
