import json
import os
import pickle
import unicodedata

import numpy as np
import pytest
from PIL import Image

from unclip_jax.core.errors import UserError
from unclip_jax.data import folder as folder_module
from unclip_jax.data.folder import FolderSource


@pytest.fixture(autouse=True)
def cache_home(tmp_path_factory, monkeypatch):
    home = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    return home


def write_image(file, value=0, size=(6, 5)):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 0)).save(file)


def write_captioned(root, names):
    for value, name in enumerate(names):
        write_image(root / name, value)
        (root / name).with_suffix(".txt").write_text(f"caption of {name}")


def listed(source):
    return [(record.name, record.caption) for record in (source[i] for i in range(len(source)))]


def test_images_of_any_kind_at_any_depth_in_order_of_path(tmp_path):
    names = ["b.png", "a/z.jpg", "a/b/c.webp", "B.JPEG", "c.bmp", "d.tif", "e.gif"]
    write_captioned(tmp_path, names)
    (tmp_path / "notes.md").write_text("not an image")
    source = FolderSource(tmp_path)
    assert listed(source) == [(name, f"caption of {name}") for name in sorted(names)]
    record = source[sorted(names).index("c.bmp")]
    assert record.image.shape == (5, 6, 3) and record.image[0, 0, 0] == names.index("c.bmp")
    assert source.report() == {"images": 7, "bad": {}}


def test_hidden_files_and_folders_are_left_alone(tmp_path):
    write_captioned(tmp_path, ["a.png", ".cache/b.png", "._a.png"])
    assert [name for name, _ in listed(FolderSource(tmp_path))] == ["a.png"]


def test_captions_lose_bom_and_line_breaks_and_keep_their_letters(tmp_path):
    write_image(tmp_path / "ü ☂.png")
    (tmp_path / "ü ☂.txt").write_bytes("\ufeffa red\r\n  cïrcle 🟥\n".encode())
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
    (tmp_path / "data" / "metadata.jsonl").write_text(json.dumps({"file_name": outside, "text": "x"}))
    with pytest.raises(UserError, match=r"metadata\.jsonl, row 1: .* lies outside"):
        FolderSource(tmp_path / "data")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.jsonl", "{not json}\n", "cannot be read"),
        ("metadata.jsonl", "[1, 2]\n", "one JSON object a line"),
        (
            "metadata.jsonl",
            '{"file_name": "a.png", "text": "x"}\n{"file_name": "a.png"}',
            "row 2: no file_name and text",
        ),
        ("metadata.csv", "file,text\na.png,x\n", "row 1: no file_name and text"),
        ("metadata.csv", b"file_name,text\na.png,\xff\n", "cannot be read"),
    ],
)
def test_malformed_metadata_is_named(tmp_path, name, content, message):
    write_image(tmp_path / "a.png")
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        FolderSource(tmp_path)


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


def test_what_is_unusable_is_left_out_and_named(tmp_path, capsys):
    damaged_folder(tmp_path)
    source = FolderSource(tmp_path, max_bad_share=0.6)
    assert [name for name, _ in listed(source)] == [f"good{i}.png" for i in range(4)]
    report = source.report()
    assert report["images"] == 4
    bad = report["bad"]
    assert list(bad) == ["bare.png", "blank.png", "broken.jpg", "gone.png", "latin.png", "link.png"]
    assert bad["bare.png"] == bad["blank.png"] == "no caption"
    assert bad["latin.png"] == "latin.txt is not UTF-8"
    assert bad["gone.png"] == "named in metadata.jsonl but missing"
    assert bad["broken.jpg"].startswith(("not an image", "cannot be read"))
    assert bad["link.png"].startswith("cannot be read")
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "6 of 10 images" in told and "bare.png: no caption" in told


def test_too_much_damage_stops_in_one_line(tmp_path):
    damaged_folder(tmp_path)
    with pytest.raises(UserError) as caught:
        FolderSource(tmp_path, max_bad_share=0.59)
    line = str(caught.value)
    assert "6 of 10 images" in line and "60.0%, limit 59.0%" in line and "\n" not in line
    assert "bare.png: no caption" in line and line.endswith("; ...")


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

    original = folder_module.read_image
    monkeypatch.setattr(folder_module, "read_image", counting_read)
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
    cache.write_text("damaged")
    assert len(FolderSource(tmp_path)) == 3
    assert sorted(read) == ["a.png", "b.png", "c.png"]


def test_an_interrupted_check_keeps_what_it_found(tmp_path, monkeypatch):
    write_captioned(tmp_path, ["a.png", "b.png"])
    original, read = folder_module.read_image, []

    def interrupted_read(file, *, name=None):
        if name == "b.png":
            raise KeyboardInterrupt
        return original(file, name=name)

    def counting_read(file, *, name=None):
        read.append(name)
        return original(file, name=name)

    monkeypatch.setattr(folder_module, "read_image", interrupted_read)
    with pytest.raises(KeyboardInterrupt):
        FolderSource(tmp_path)
    monkeypatch.setattr(folder_module, "read_image", counting_read)
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
    with pytest.raises(UserError, match=r"a\.png: not an image"):
        source[0]
