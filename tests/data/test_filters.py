import json
import math
import pickle

import numpy as np
import pytest
from PIL import Image

from unclip_jax.core.errors import UserError
from unclip_jax.data import Record
from unclip_jax.data.filters import Condition, FilteredSource
from unclip_jax.data.folder import FolderSource

IMAGE = np.zeros((2, 2, 3), np.uint8)
ROWS = [
    {"score": 4.5, "license": "CC0"},
    {"score": 5, "license": "CC-BY"},
    {"score": "6.5", "license": "CC0"},
    {"license": "CC0"},
    {"score": None, "license": "CC0"},
    {"score": math.nan, "license": "CC0"},
    {"score": [7], "license": "CC0"},
    {"score": "high", "license": "CC0"},
    {"score": 9, "license": 7},
]


class Table:
    def __len__(self):
        return len(ROWS)

    def __getitem__(self, index):
        return Record(image=IMAGE, captions=("",), name=str(index), key=str(index))

    def key(self, index):
        return str(index)

    def report(self):
        return {"images": len(ROWS), "bad": {}}

    def describe(self, names):
        return ({name: row[name] for name in names if name in row} for row in ROWS)

    def columns(self):
        return list(ROWS[0])


def kept(*conditions):
    source = pickle.loads(pickle.dumps(FilteredSource(Table(), [Condition.parse(each) for each in conditions])))
    keys = [source.key(i) for i in range(len(source))]
    assert [source[i].key for i in range(len(source))] == keys
    return [int(key) for key in keys], dict(source.left_out)


@pytest.mark.parametrize(
    "conditions, rows, left_out",
    [
        (["score >= 5"], [1, 2, 8], {"not score >= 5": 1, "no score": 5}),
        (["score>5"], [2, 8], {"not score > 5": 2, "no score": 5}),
        (["score < 5"], [0], {"not score < 5": 3, "no score": 5}),
        (["score <= 5"], [0, 1], {"not score <= 5": 2, "no score": 5}),
        (["score == 5"], [1], {"not score == 5": 4, "no score": 4}),
        (
            ["license == CC0", "score != 4.5"],
            [2, 7],
            {"not license == CC0": 1, "no license": 1, "not score != 4.5": 1, "no score": 4},
        ),
        (["license != CC0"], [1], {"not license != CC0": 7, "no license": 1}),
        (["license == 7"], [8], {"not license == 7": 8}),
    ],
)
def test_what_passes_and_what_is_counted(conditions, rows, left_out, capsys):
    assert kept(*conditions) == (rows, left_out)
    said = capsys.readouterr().err
    assert said.startswith(f"{len(ROWS) - len(rows)} of {len(ROWS)} records do not pass: ") and said.count("\n") == 1


@pytest.mark.parametrize(
    "conditions, line",
    [
        (["score"], "'score' is no condition; write one as in 'aesthetic >= 5'"),
        ([">= 5"], "'>= 5' is no condition"),
        (["score >="], "'score >=' is no condition"),
        (["score = 5"], "'score = 5' is no condition"),
        (["score >= high"], "'score >= high' compares with 'high', which is no number"),
        (["score >= nan"], "which is no number"),
        (["beauty >= 5"], "no record has a column 'beauty'; there are side, aspect, score, license"),
        (["score >= 50"], "none of 9 records passes the filters: no score 5, not score >= 50 4; ask for less"),
    ],
)
def test_bad_conditions_get_a_line(conditions, line):
    with pytest.raises(UserError) as error:
        kept(*conditions)
    assert line in str(error.value) and "\n" not in str(error.value)


def test_what_a_folder_says_of_its_images(tmp_path):
    rows = []
    for number, (width, height) in enumerate([(30, 20), (20, 40), (25, 25)]):
        Image.new("RGB", (width, height)).save(tmp_path / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "text": f"picture {number}", "score": number / 2, "other": [1]})
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "1.json").write_text('{"punsafe": 0.25, "score": 9}')
    (tmp_path / "2.json").write_text("[1")
    source = FolderSource(tmp_path)
    assert list(source.describe(frozenset(["score", "side", "punsafe"]))) == [
        {"score": 0.0, "side": 20},
        {"score": 9, "punsafe": 0.25, "side": 20},
        {"score": 1.0, "side": 25},
    ]
    assert [row["aspect"] for row in source.describe(frozenset(["aspect"]))] == [1.5, 2.0, 1.0]
    assert source.columns() == ["file_name", "text", "score", "other", "punsafe"]
    filtered = FilteredSource(source, [Condition.parse("score > 0"), Condition.parse("aspect < 1.5")])
    assert [filtered.key(i) for i in range(len(filtered))] == ["2"] and filtered[0].captions == ("picture 2",)


def test_no_record_that_does_not_pass_stands_in_for_a_bad_one(tmp_path):
    for number in range(6):
        Image.new("RGB", (20 + 20 * (number % 2), 20)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"picture {number}")
    source = FilteredSource(FolderSource(tmp_path, max_bad_share=0.5), [Condition.parse("aspect <= 1")])
    (tmp_path / "2.png").write_bytes(b"broken meanwhile")
    assert [source[i].captions for i in range(3)] == [("picture 0",), ("picture 4",), ("picture 4",)]
