import io
import json
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from tests.data.test_folder import write_captioned
from unclip_jax.core.errors import UserError
from unclip_jax.data import DataConfig, files, tar_index
from unclip_jax.data.folder import FolderSource
from unclip_jax.data.patterns import files_of
from unclip_jax.data.pipeline import BatchSpec, batches
from unclip_jax.data.sources import open_source
from unclip_jax.data.tars import TarSource

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(autouse=True)
def cache_home(tmp_path_factory, monkeypatch):
    home = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    return home


def png(value=0, side=10):
    out = io.BytesIO()
    Image.new("RGB", (side, side), (value, 0, 0)).save(out, "png")
    return out.getvalue()


def write_tar(file, members, format=tarfile.GNU_FORMAT):
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file


def pairs(*keys):
    return [
        part for i, key in enumerate(keys) for part in ((f"{key}.png", png(i)), (f"{key}.txt", f"a {key}".encode()))
    ]


def listed(source):
    return [(record.name, *record.captions) for record in (source[i] for i in range(len(source)))]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_and_names_of_any_length(tmp_path, format):
    keys = ["0000", "a/b/0001", "x" * 90, f"{'folder' * 20}/{'y' * 60}"]
    if format != tarfile.USTAR_FORMAT:
        keys += ["z" * 300, "ü☂"]
    source = TarSource([str(write_tar(tmp_path / "s.tar", pairs(*keys), format))])
    assert listed(source) == [(f"s.tar/{key}", f"a {key}") for key in keys]
    assert [source[i].image[0, 0, 0] for i in range(len(keys))] == list(range(len(keys)))
    assert source.report() == {"images": len(keys), "bad": {}}


def test_batches_are_those_of_the_folder(tmp_path):
    names = [f"{i:04d}.png" for i in range(11)]
    write_captioned(tmp_path / "folder", names)
    for shard in range(3):
        own = names[shard * 4 : shard * 4 + 4]
        files = [tmp_path / "folder" / f"{name[:4]}{suffix}" for name in own for suffix in (".png", ".txt")]
        write_tar(tmp_path / "tars" / f"{shard}.tar", [(file.name, file.read_bytes()) for file in files])
    sources = [
        FolderSource(tmp_path / "folder"),
        open_source(tmp_path / "tars", "train", tmp_path),
        open_source(f"{tmp_path}/tars/{{0..2}}.tar", "train", tmp_path),
        pickle.loads(pickle.dumps(open_source(f"{tmp_path}/tars/*.tar", "train", tmp_path))),
    ]
    for source in sources:
        assert [source.key(i) for i in range(11)] == [source[i].key for i in range(11)] == [n[:4] for n in names]
    spec = BatchSpec(batch_size=4, sizes=(8,), seed=3, flip=True)
    for host in range(2):
        runs = [batches(s, None, spec, start_step=5, process_index=host, process_count=2) for s in sources]
        for _ in range(4):
            first, *others = [next(run)["image_8"] for run in runs]
            assert all((first == other).all() for other in others)
        for run in runs:
            run.close()


def test_captions_are_alternatives_and_text_comes_before_json(tmp_path):
    members = [
        ("0.jpg", png()), ("0.txt", b"one\n\n two  words \n"),
        ("1.webp", png()), ("1.json", json.dumps({"caption": ["a", "b"]}).encode()),
        ("2.json", json.dumps({"text": "c", "url": "x"}).encode()), ("2.JPEG", png()),
        ("3.png", png()), ("3.json", json.dumps({"caption": "not this"}).encode()), ("3.txt", b"this"),
        ("README", b"no key"), (".hidden.png", png()),
    ]  # fmt: skip
    source = TarSource([str(write_tar(tmp_path / "s.tar", members))])
    assert [captions for _, *captions in listed(source)] == [["one", "two words"], ["a", "b"], ["c"], ["this"]]
    images = TarSource([str(tmp_path / "s.tar")], captions=False)
    assert {caption for _, caption in listed(images)} == {""}


def test_the_index_is_kept_until_a_file_changes(tmp_path, monkeypatch):
    file = write_tar(tmp_path / "s.tar", [*pairs("a", "b"), ("c.png", png())])
    given = {"max_bad_share": 0.5}
    before = listed(TarSource([str(file)], **given))
    with monkeypatch.context() as patch:
        patch.setattr(tar_index, "records_of", None)
        again = TarSource([str(file)], **given)
        assert listed(again) == before and again.report()["bad"] == {"s.tar/c": "no caption"}
    write_tar(file, pairs("a", "b", "d", "e"))
    assert len(TarSource([str(file)], **given)) == 4


def test_a_spoilt_cache_is_made_anew(tmp_path, cache_home):
    file = write_tar(tmp_path / "s.tar", pairs("a", "b"))
    TarSource([str(file)])
    (kept,) = cache_home.rglob("tars-*.npz")
    for content in (b"", b"PK\3\4 no zip", kept.read_bytes()[:-30]):
        kept.write_bytes(content)
        assert len(TarSource([str(file)])) == 2


BAD = {
    "no image": ([("x.txt", b"alone")], "s.tar/x: no image"),
    "no caption": ([("x.png", png())], "s.tar/x: no caption"),
    "two images": ([("x.png", png()), ("x.jpg", png()), ("x.txt", b"t")], "s.tar/x: several images"),
    "a key twice": (pairs("a"), "s.tar/a: its key is there twice"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_record_is_counted_and_named(tmp_path, case, capsys):
    members, line = BAD[case]
    file = write_tar(tmp_path / "s.tar", [*pairs("a", "b", "c"), *members])
    assert len(TarSource([str(file)], max_bad_share=0.25)) == 3
    assert capsys.readouterr().err == f"{file}: 1 of 4 records left out: {line}\n"
    with pytest.raises(UserError, match=r"1 of 4 records .* \(25.0%, limit 10.0%\); mend or remove them: s.tar/"):
        TarSource([str(file)], max_bad_share=0.1)


BROKEN = {
    "x.png": (b"no image", b"t", "not an image that Pillow can read"),
    "cut": (png()[:45], b"t", "cannot be read"),
    "small": (png(side=4), b"t", "its shorter side has 4 px, fewer than min_side 8"),
    "bytes": (png(), b"\xff\xfe", "has a caption that"),
    "empty": (png(), b" \n ", "no caption"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_bad_record_is_met_while_reading_and_the_next_one_taken(tmp_path, case, capsys):
    image, text, reason = BROKEN[case]
    file = write_tar(tmp_path / "s.tar", [*pairs("a", "b"), ("x.png", image), ("x.txt", text), *pairs("d")])
    source = TarSource([str(file)], max_bad_share=0.25)
    assert [name for name, _ in listed(source)] == ["s.tar/a", "s.tar/b", "s.tar/d", "s.tar/d"]
    err = capsys.readouterr().err
    assert err.startswith("s.tar/x: ") and reason in err and err.count("\n") == 1
    listed(source)
    assert source.report()["images"] == 3 and capsys.readouterr().err == ""
    with pytest.raises(UserError, match=r"1 of 4 records of .*s.tar are unusable \(25.0%, limit 1.0%\)"):
        listed(TarSource([str(file)]))


def test_a_file_that_ends_early(tmp_path):
    file = write_tar(tmp_path / "s.tar", pairs("a", "b", "c"))
    whole = file.read_bytes()
    with tarfile.open(file) as tar:
        last = tar.getmember("c.txt")
    file.write_bytes(whole[: last.offset_data + 1])
    source = TarSource([str(file)], max_bad_share=0.5)
    assert [name for name, _ in listed(source)] == ["s.tar/a", "s.tar/b"]
    assert source.report()["bad"][f"s.tar, byte {last.offset_data}"] == "the file ends in this member; copy it again"


def test_a_damaged_header_costs_what_it_names(tmp_path):
    file = write_tar(tmp_path / "s.tar", pairs("a", "b", "c"))
    with tarfile.open(file) as tar:
        at = tar.getmember("b.png").offset
    damaged = bytearray(file.read_bytes())
    damaged[at + 3] ^= 1
    file.write_bytes(damaged)
    source = TarSource([str(file)], max_bad_share=0.5)
    assert [name for name, _ in listed(source)] == ["s.tar/a", "s.tar/c"]
    bad = source.report()["bad"]
    assert bad[f"s.tar, byte {at}"] == "is no tar header; the file is damaged here" and bad["s.tar/b"] == "no image"


def test_no_file_of_bytes_is_more_than_an_error(tmp_path):
    rng = np.random.default_rng(0)
    whole = write_tar(tmp_path / "s.tar", pairs("a", "b", "c"), tarfile.PAX_FORMAT).read_bytes()
    for number in range(150):
        data = bytearray(whole if number else rng.bytes(4096))
        for place in rng.integers(0, len(data), size=1 + number % 5):
            data[place] ^= 1 << rng.integers(8)
        file = tmp_path / f"{number}.tar"
        file.write_bytes(data[: rng.integers(1, len(data))] if number % 3 == 0 else data)
        try:
            source = TarSource([str(file)], max_bad_share=1.0)
            assert all(name.startswith(f"{number}.tar/") for name, _ in listed(source))
        except UserError as error:
            assert str(error).count("\n") == 0


@pytest.mark.parametrize(
    ("pattern", "line"),
    [
        ("none.tar", "there is no file .*none.tar; give tar files, as in shards/"),
        ("*.tar", r"there is no file .*\*.tar"),
        ("{5..2}.tar", r"\{5..2\} means -2 files; give a range of 1 to"),
        ("{0..99999999}.tar", r"means 100,000,000 files"),
    ],
)
def test_patterns_that_mean_no_file(tmp_path, pattern, line):
    with pytest.raises(UserError, match=line):
        files_of(f"{tmp_path}/{pattern}")


def test_captions_are_missing_and_splits_too(tmp_path):
    file = write_tar(tmp_path / "s.tar", [("a.png", png()), ("b.png", png())])
    with pytest.raises(
        UserError, match=r"s.tar holds 2 images and no captions; put KEY.txt, or KEY.json with a caption"
    ):
        TarSource([str(file)])
    with pytest.raises(UserError, match="tar files have no split 'test'; name the files of it as the source"):
        open_source(str(file), "test", tmp_path)
    with pytest.raises(UserError, match="holds no images with captions"):
        TarSource([str(write_tar(tmp_path / "e.tar", []))])


def test_what_a_tar_says_of_its_images_and_a_run_that_asks_for_some(tmp_path):
    members = []
    for number, side in enumerate([40, 8, 20, 30]):
        cells = {"caption": f"a {number}", "aesthetic": number + 3, "punsafe": 0.5}
        members += [(f"{number}.png", png(number, side)), (f"{number}.txt", f"a {number}".encode())]
        members += [(f"{number}.json", json.dumps(cells).encode())] if number != 2 else []
    write_tar(tmp_path / "s.tar", members)
    source = TarSource([str(tmp_path / "s.tar")])
    assert list(source.describe(frozenset(["aesthetic", "side"]))) == [
        {"aesthetic": 3, "side": 40.0},
        {"aesthetic": 4, "side": 8.0},
        {"side": 20.0},
        {"aesthetic": 6, "side": 30.0},
    ]
    assert source.columns() == ["caption", "aesthetic", "punsafe"]
    write_captioned(tmp_path / "photos", [f"{i}.png" for i in range(3)])
    where = ("aesthetic >= 4", "side > 8")
    config = DataConfig(source=str(tmp_path / "s.tar"), batch_size=1, where=where)
    assert listed(config.open(captions=True)) == [("s.tar/3", "a 3")]
    mixed = f"{tmp_path}/s.tar + {tmp_path}/photos"
    opened = DataConfig(source=mixed, batch_size=1).open(captions=True)
    assert len(opened) == 7 and opened[6].key == "2" and opened.report() == {"images": 7, "bad": {}}
    opened = DataConfig(source=f"3 * {tmp_path}/s.tar + 1 * {tmp_path}/photos", batch_size=1).open(captions=True)
    assert len(opened) == 12 and [opened.key(i) for i in range(9, 12)] == ["0", "1", "2"]


@pytest.mark.parametrize("between", [0, 100_000])
def test_an_image_and_its_caption_are_read_at_once_where_they_lie_together(tmp_path, monkeypatch, between):
    members = [("0.jpg", png(1)), *([("0.npy", bytes(between))] if between else []), ("0.txt", b"a caption")]
    write_tar(tmp_path / "s.tar", members)
    reads = []

    def read_part(name, at, size):
        reads.append(size)
        return files.read_part(name, at, size)

    monkeypatch.setattr("unclip_jax.data.tars.read_part", read_part)
    record = TarSource([str(tmp_path / "s.tar")])[0]
    assert record.captions == ("a caption",) and record.image[0, 0, 0] == 1
    assert len(reads) == (1 if not between else 2) and sum(reads) < 5_000
