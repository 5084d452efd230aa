"""Embeddings computed once: stores on disk in the layout of clip-retrieval, and what others write.

    store.json                          ours alone: the CLIP, the width, the type, counts and digests; written last
    img_emb/img_emb_0.npy               z_i, float16 or float32 [n d]; partition numbers padded with zeros
    text_emb/text_emb_0.npy             z_t likewise, of each row's first caption; may be absent
    metadata/metadata_0.parquet         key, image_path, caption, ... in the order of the rows

    embeddings/*.npy + metadata/*.parquet   PD12M: the parquet is cut otherwise, the counts of all rows agree
    *.npy, with *.parquet or without        embedding-reader's, as DALLE2-pytorch's prior reads them
    *_00012.npy alone                       DALLE2-pytorch's decoder: row 34 has img2dataset's key 000120034

A row of zeros stands for an embedding that is missing, as in the last, and one that is not finite for a broken one:
both are bad records. What z_i is the CLIP's spec decides: unit vectors, or as they leave the tower. clip-retrieval
stores unit vectors, so that a CLIP of the second kind cannot work with them, and one of the first divides what is no
unit vector by its norm.
"""

import dataclasses
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float

from unclip_jax.core.config import from_json
from unclip_jax.core.digests import Altered, compare
from unclip_jax.core.errors import UserError
from unclip_jax.core.reading import parse_json, read_text
from unclip_jax.data.npy_rows import NpyFile, NpyRows
from unclip_jax.data.skipping import BadRecordError
from unclip_jax.data.store_index import RowTexts, StoreIndex, open_index
from unclip_jax.data.store_tables import Wanted, read_cells, read_table, table_columns

INFO, IMAGES, TEXTS, METADATA = "store.json", "img_emb", "text_emb", "metadata"
FORMAT = 1
INDEX_WIDTH = 4
"""Digits of the number of a record in its shard, at the end of img2dataset's keys."""
UNIT = 0.01
"""How far the norm of a unit vector may be from 1; float16 rounds it by 0.0005."""
LOOKED_AT = 256
"""Rows whose norms are looked at, to tell whether a store is of unit vectors."""
ANNOUNCED = 1_000_000
EVERYTHING = Wanted()

Stated = Literal["unit", "raw"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Space:
    """The embeddings that a run works with: the CLIP's identity, their width, and whether they are unit vectors."""

    clip: str
    embed_dim: int
    unit: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredShard:
    """One shard of a store: its rows, how many records were left out of it, and digests by file."""

    rows: int
    bad: int
    digests: dict[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoreInfo:
    """What store.json says. `shards` is empty until all are written."""

    format: int = FORMAT
    clip: str
    """Identity of the CLIP's weights (`unclip_jax.models.parameters.identity`)."""
    embed_dim: int
    dtype: Literal["float16", "float32"]
    embedding: Stated
    """Whether z_i are unit vectors, or as they leave the tower."""
    text: bool
    """Whether it has z_t."""
    source: str
    """What was encoded, as it was named."""
    records: int
    """Records of the source."""
    keys: str
    """Digest of keys of the source: the first, the last and some between them."""
    shard_records: int
    """Records of the source that make a shard."""
    batch_size: int
    """Pictures that one device encoded at once."""
    shards: tuple[StoredShard, ...] = ()

    @property
    def space(self) -> Space:
        """The embeddings that it has."""
        return Space(clip=self.clip, embed_dim=self.embed_dim, unit=self.embedding == "unit")


def read_info(folder: Path) -> StoreInfo | None:
    """Read store.json; None where there is none, UserError for one that makes no sense."""
    path = folder / INFO
    if not os.path.lexists(path):
        return None
    try:
        data = parse_json(read_text(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not JSON: {error}; copy the store again") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, dict) else None
        raise UserError(f"{path} has format {found!r}, this version reads {FORMAT}; upgrade unclip_jax")
    return from_json(StoreInfo, data, str(path))


class EmbeddingStore:
    """A store of any of the layouts above, read by row and by key; picklable.

    Args:
        folder: the store.
        wanted: what is read of its tables.
        cache_dir: where the index is kept; the user's cache folder where it is None.

    Raises UserError for a folder that is no store, and for files that contradict each other.
    """

    def __init__(self, folder: str | Path, wanted: Wanted = EVERYTHING, cache_dir: str | Path | None = None):
        self.path = Path(os.path.expanduser(folder)).absolute()
        if not self.path.is_dir():
            raise UserError(f"there is no folder {self.path}; give a store of embeddings")
        self.info, self._divide, self._wanted = read_info(self.path), False, wanted
        if self.info is not None and not self.info.shards:
            raise UserError(f"{self.path} is not encoded to its end; run the same command again, it carries on")
        images, texts, self._tables = _layout(self.path)
        self._images = NpyRows([NpyFile.open(each) for each in images])
        self._texts = NpyRows([NpyFile.open(each) for each in texts]) if texts else None
        if not len(self._images):
            raise UserError(f"{self.path} holds no embeddings; give a store that does")
        self._check_counts()
        if self.info is not None:
            self._check_info(self.info)
        files = [each.path for each in self._images.files] + self._tables
        stamps = [(str(each), each.stat().st_size, each.stat().st_mtime_ns) for each in files]
        self.index: StoreIndex = open_index([wanted, *stamps], self._rows, cache_dir)
        if self.index.count != len(self):
            raise self._miscounted(f"{self.index.count:,} rows of metadata")

    def __len__(self) -> int:
        return len(self._images)

    @property
    def width(self) -> int:
        """Numbers of an embedding."""
        return self._images.width

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of what it has of every row; z_t is of one caption, so not where a row has several."""
        return ("z_i",) if self._texts is None or self.index.several else ("z_i", "z_t")

    def row_of(self, key: str) -> int | None:
        """Return the row of a key; None where the store has none."""
        return self.index.row_of(key)

    def z_i(self, row: int) -> Float[np.ndarray, " d"]:
        """Read the embedding of an image; BadRecordError for one that is missing or broken."""
        return self._read(self._images, row)

    def z_t(self, row: int) -> Float[np.ndarray, " d"]:
        """Read the embedding of a caption; likewise."""
        assert self._texts is not None, "arrays says whether there is z_t"
        return self._read(self._texts, row)

    def columns(self) -> list[str]:
        """Return the names of the columns of its metadata."""
        return [] if not self._tables else table_columns(self._tables[0])

    def describe(self, names: frozenset[str]) -> Iterator[dict[str, object]]:
        """Yield what every row has of the columns `names`."""
        if not self._tables:
            yield from ({} for _ in range(len(self)))
        for table in self._tables:
            yield from read_cells(table, [name for name in table_columns(table) if name in names])

    def _read(self, rows: NpyRows, row: int) -> Float[np.ndarray, " d"]:
        try:
            found = rows[row].astype(np.float32)
        except OSError as error:
            raise BadRecordError(f"cannot be read ({error}); copy the store again") from error
        if not np.isfinite(found).all():
            raise BadRecordError("its embedding is not finite")
        if not found.any():
            raise BadRecordError("its embedding is all zeros, which stands for one that is missing")
        return found / np.linalg.norm(found) if self._divide else found

    def fit(self, space: Space, stated: str | None = None) -> None:
        """Make sure that the embeddings are those of a CLIP, and have them as this one has: see the module.

        Args:
            space: that of the run's CLIP.
            stated: the identity of the CLIP that a person says a store is of which does not say so itself.

        Raises UserError for a store of another CLIP, with both identities; and for one that states none.
        """
        own = self.info.clip if self.info is not None else stated
        if own is None:
            raise UserError(
                f"{self.path} does not say which CLIP its embeddings are of; say so with --data.store-clip, "
                "the workdir or the bundle of that CLIP"
            )
        if self.info is not None and stated not in (None, own):
            found = f"{self.path} is of the CLIP {own[:12]}, not of {str(stated)[:12]}"
            raise UserError(f"{found} as --data.store-clip says; leave that out")
        if own != space.clip:
            raise UserError(
                f"{self.path} is of another CLIP: it is of {own[:12]}, and --clip is {space.clip[:12]}; "
                "give that CLIP, or encode with this one (python -m train.encode)"
            )
        if self.width != space.embed_dim:
            found = f"{self.path} has embeddings of {self.width} numbers, and the CLIP of {space.embed_dim}"
            raise UserError(f"{found}; it is a store of another CLIP, give the right one")
        unit = self._looks_unit() if self.info is None else self.info.embedding == "unit"
        if unit and not space.unit:
            raise UserError(
                f"{self.path} holds unit vectors, and z_i of this CLIP are none, so that their norms are lost; "
                "encode with python -m train.encode"
            )
        self._divide = space.unit and self.info is None

    def _looks_unit(self) -> bool:
        norms = []
        for row in np.unique(np.linspace(0, len(self) - 1, LOOKED_AT).astype(int)).tolist():
            found = self._images[row].astype(np.float64)
            if np.isfinite(found).all() and found.any():
                norms.append(np.linalg.norm(found))
        return bool(norms) and bool(np.all(np.abs(np.array(norms) - 1) < UNIT))

    def _check_counts(self) -> None:
        if self._texts is not None and len(self._texts) != len(self):
            raise self._miscounted(f"{len(self._texts):,} of captions")
        if not self._tables and any(each.rows > 10**INDEX_WIDTH for each in self._images.files):
            most = f"{10**INDEX_WIDTH:,} rows a file have keys of img2dataset"
            raise UserError(f"{self.path} has no parquet that says what its rows are, and more than the {most}")

    def _check_info(self, info: StoreInfo) -> None:
        if sum(each.rows for each in info.shards) != len(self) or info.embed_dim != self.width:
            stated = f"{sum(each.rows for each in info.shards):,} rows of {info.embed_dim} numbers"
            raise UserError(
                f"{self.path} holds {len(self):,} rows of {self.width} numbers, and {INFO} says {stated}; copy it again"
            )
        if info.dtype != self._images.dtype or info.text != (self._texts is not None):
            raise UserError(f"{self.path} does not hold what {INFO} says; copy it again")

    def _miscounted(self, others: str) -> UserError:
        return UserError(f"{self.path} holds {len(self):,} embeddings of images and {others}; copy it again")

    def _rows(self) -> Iterator[RowTexts]:
        """Yield what the tables say, once the files are known to be as they were written."""
        if len(self) >= ANNOUNCED:
            print(f"reading what {self.path} says of {len(self):,} embeddings", file=sys.stderr)
        if self.info is not None:
            digests = {name: digest for shard in self.info.shards for name, digest in shard.digests.items()}
            try:
                compare({self.path / name: digest for name, digest in digests.items()})
            except Altered as error:
                raise UserError(f"{error}; copy the store again") from error
        if not self._tables:
            for each in self._images.files:
                digits = re.search(r"(\d*)$", each.path.stem)
                number = digits[1] if digits is not None else ""
                for row in range(each.rows):
                    yield RowTexts(f"{number}{row:0{INDEX_WIDTH}d}", f"{each.path.name}, row {row}")
            return
        paired = len(self._tables) == len(self._images.files)
        for number, table in enumerate(self._tables):
            count = 0
            for count, row in enumerate(read_table(table, self._wanted), 1):  # noqa: B007
                yield row
            if paired and count != (own := self._images.files[number]).rows:
                raise UserError(f"{own.path} has {own.rows:,} rows, and {table} {count:,}; copy them again")


def _layout(folder: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """Return the files of a store: z_i, z_t and metadata, in the order of their numbers."""
    for images, texts, tables in ((IMAGES, TEXTS, METADATA), ("embeddings", None, METADATA), ("", None, "")):
        found = _files(folder / images, ".npy")
        if found:
            return found, [] if texts is None else _files(folder / texts, ".npy"), _files(folder / tables, ".parquet")
    layouts = f"{IMAGES}/*.npy, embeddings/*.npy or *.npy"
    raise UserError(f"{folder} is no store of embeddings, it has no {layouts}; make one with python -m train.encode")


def _files(folder: Path, suffix: str) -> list[Path]:
    if not folder.is_dir():
        return []
    names = [each.name for each in os.scandir(folder) if each.name.endswith(suffix) and not each.name.startswith(".")]
    return [folder / name for name in sorted(names, key=_by_number)]


def _by_number(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() and part.isascii() else (-1, part) for part in re.split(r"(\d+)", name)]
