"""Rows that do not fit are named, and spoil no others: each table has a good row after the one that is tried."""

import json
import os

import pytest

from unclip_jax.data.tables import read_table

GOOD_JSON = '{"file_name": "z.png", "text": "zet"}'


def rows(tmp_path, name, content):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_table(tmp_path / name))


def one_bad(found, line):
    """The fault of the row that starts in a line; every other row is good and has its caption."""
    (bad,) = (row for row in found if row.fault is not None)
    assert bad.line == line
    assert [(row.file_name, row.captions) for row in found if row.fault is None][-1] == ("z.png", ("zet",))
    return bad


@pytest.mark.parametrize(
    ("row", "file_name", "fault"),
    [
        # The two cases that were taken without a word.
        (
            "x.png,a red circle, on a blue square",
            "x.png",
            "has 3 cells where the header has 2; put text with commas in",
        ),
        ('x.png,"a red circle', None, "is not CSV (a quote is left open)"),
        ('x.png,"a red" circle', None, "is not CSV"),
        ('x.png,a red circle"",,', None, "is not CSV (a cell has a quote and none around it)"),
        ('x.png,a 6" ruler', None, "is not CSV (a cell has a quote and none around it)"),
        ("x.png", "x.png", "has 1 cells"),
        ("x.png,", "x.png", "has no text (or caption)"),
        ("x.png,  ", "x.png", "has an empty text"),
        (",a red circle", None, "has no file_name"),
        (b"x.png,caf\xe9", "x.png", "has a text that is not UTF-8"),
        ("x.png,a\0b", "x.png", "has a text with a null character"),
        (f"x.png,{'a' * 200_000}", None, "is not CSV (field larger than field limit"),
    ],
)
def test_csv_rows(tmp_path, row, file_name, fault):
    row = row if isinstance(row, bytes) else row.encode()
    found = rows(tmp_path, "metadata.csv", b"file_name,text\n" + row + b"\r\nz.png,zet\n")
    bad = one_bad(found, 2)
    assert bad.file_name == file_name and bad.fault.startswith(fault) and len(found) == 2


@pytest.mark.parametrize("last", ["three", '"three"', '"th""ree"'])
@pytest.mark.parametrize("name_first", [True, False])
def test_an_open_quote_costs_one_row(tmp_path, name_first, last):
    """Though the next row, or a quote of it, would end the cell."""
    cells = [("a.png", "one"), ("b.png", '"two'), ("c.png", last), ("z.png", "zet")]
    lines = [
        ",".join(("name", *pair) if name_first else ("name", *pair[::-1])) for pair in (("file_name", "text"), *cells)
    ]
    found = rows(tmp_path, "metadata.csv", "\n".join(lines))
    assert one_bad(found, 3).fault.startswith("is not CSV")
    assert [row.captions for row in found if row.fault is None] == [
        ("one",),
        (last.strip('"').replace('""', '"'),),
        ("zet",),
    ]


def test_a_cell_that_swallows_a_row_costs_both(tmp_path):
    found = rows(
        tmp_path, "metadata.csv", 'file_name,text\na.png,"one\nb.png,two"\nc.png,"three\nand, more"\nz.png,zet\n'
    )
    assert [row.line for row in found if row.fault is not None] == [2, 3]
    assert [row.captions for row in found if row.fault is None] == [("three\nand, more",), ("zet",)]


def test_quoted_cells_of_several_lines_are_text(tmp_path):
    lines = ["text,file_name", '"one,', "", 'two ""x""",a.png', '"', '",b.png', "zet,z.png"]
    found = rows(tmp_path, "metadata.csv", "\r\n".join(lines))
    assert found[0].captions == ('one,\r\n\r\ntwo "x"',) and found[0].fault is None
    assert one_bad(found, 5).fault == "has an empty text"


@pytest.mark.slow
def test_many_open_quotes_take_no_time(tmp_path):
    lines = ["file_name,text", *(f'{i}.png,"a' for i in range(20_000)), "z.png,zet"]
    found = rows(tmp_path, "metadata.csv", "\n".join(lines))
    assert sum(row.fault is not None for row in found) == 20_000 and found[-1].captions == ("zet",)


def test_other_columns_are_left_alone(tmp_path):
    (row,) = rows(tmp_path, "metadata.csv", "id,file_name,,text,\n5,z.png,a,zet,b\n")
    assert (row.file_name, row.captions, row.fault) == ("z.png", ("zet",), None)


@pytest.mark.parametrize(
    "header", ["file,text", "file_name", "file_name;text", "file_name,text,text", 'file_name,"text', "\xff\xfef\0i\0"]
)
def test_a_header_that_does_not_fit(tmp_path, header):
    (row,) = rows(tmp_path, "metadata.csv", header.encode("latin-1") + b"\na.png,x\nb.png,y\n")
    assert row.line == 1 and row.fault.startswith(("must name the columns file_name and text", "is not CSV"))


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("{not json}", "is not JSON"),
        ("[1, 2]", "is not a JSON object; write one a line"),
        ("null", "is not a JSON object"),
        ("NaN", "is not a JSON object"),
        ("[" * 100_000, "is not JSON"),
        ('{"file_name": "x.png", "text": ' + "1" * 5000 + "}", "is not JSON"),
        ('{"file_name": "x.png"}', "has no text (or caption)"),
        ('{"file_name": "x.png", "text": null}', "has no text (or caption)"),
        ('{"file_name": "x.png", "text": NaN}', "has nan as its text, not a string or a list of them"),
        ('{"file_name": "x.png", "caption": 5}', "has 5 as its caption, not a string"),
        ('{"file_name": "x.png", "text": {"en": "x"}}', "has {'en': 'x'} as its text"),
        ('{"file_name": "x.png", "text": ["x", null]}', "has ['x', None] as its text"),
        ('{"file_name": "x.png", "text": []}', "has an empty text"),
        ('{"file_name": "x.png", "text": ["", " "]}', "has an empty text"),
        ('{"file_name": "x.png", "text": "x", "text": "y"}', "is not JSON (it has a key twice)"),
        ('{"file_name": "x.png", "text": "a \\ud83d circle"}', "has a text that holds half a surrogate pair, U+D83D"),
        ('{"file_name": "x.png", "text": "a\\u0000"}', "has a text with a null character"),
        (
            f'{{"file_name": "x.png", "text": "{"a" * 16_385}"}}',
            "has a text of 16,385 characters, more than the limit",
        ),
        ('{"file_name": null, "text": "x"}', "has no file_name"),
        ('{"file_name": "", "text": "x"}', "has no file_name"),
        ('{"file_name": ["x.png"], "text": "x"}', "has a file_name that is not a string"),
        (b'{"file_name": "x.png", "text": "caf\xe9"}', "has a text that is not UTF-8"),
    ],
)
def test_json_rows(tmp_path, row, fault):
    row = row if isinstance(row, bytes) else row.encode()
    found = rows(tmp_path, "metadata.jsonl", b"\n" + row + b"\n\r\n" + GOOD_JSON.encode())
    assert one_bad(found, 2).fault.startswith(fault) and len(found) == 2


def test_a_list_in_json_is_alternatives(tmp_path):
    (row,) = rows(tmp_path, "metadata.jsonl", json.dumps({"file_name": "x.png", "caption": ["a", "b\nc"]}))
    assert (row.captions, row.fault) == (("a", "b\nc"), None)


@pytest.mark.parametrize("make", [os.mkfifo, lambda file: file.symlink_to("nowhere"), lambda file: file.mkdir()])
def test_a_table_that_is_no_file(tmp_path, make):
    make(tmp_path / "metadata.csv")
    (row,) = read_table(tmp_path / "metadata.csv")
    assert row.fault in ("is not a file", "cannot be read (No such file or directory)")
