"""Encoding a source of images with a CLIP once, into a store (`unclip_jax.data.stores`).

    shard s       records s R ... (s + 1) R - 1 of the source, those that can be used, in order
    process p     encodes the shards p, p + P, p + 2 P, ... of P processes
    device d      of D takes the rows (g D + d) B ... (g D + d + 1) B - 1 of a shard in its group g

Every device is compiled for B rows, whatever D and P are, and a row has the same place among its B: so the files are
the same on any number of devices of a kind, and of hosts. A killed run leaves shards that are whole; the next one makes
those that are missing, and what is bad is found again as it was.
"""

import contextlib
import dataclasses
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import xxhash
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Float, Int, UInt8

from unclip_jax.core.errors import UserError
from unclip_jax.core.files import try_writing
from unclip_jax.core.unicode import printable
from unclip_jax.data.config import DataConfig
from unclip_jax.data.records import KeyedSource
from unclip_jax.data.skipping import NAMED
from unclip_jax.data.store_writing import Encoded, file_names, read_shard, remove_drafts, write_info, write_shard
from unclip_jax.data.stores import INFO, StoredShard, StoreInfo, read_info
from unclip_jax.data.strict import Blocks, Reading, readings
from unclip_jax.images.pixels import to_float
from unclip_jax.parallel.distributed import from_all
from unclip_jax.parallel.layout import AXES, data_parallel
from unclip_jax.stages.encoders import Encoder
from unclip_jax.text.tokenizer import Tokenizer
from unclip_jax.training.encoders import FrozenEncoder
from unclip_jax.training.lock import ENCODED, FILE, hold_folder

KEYS = 64
"""Keys of a source that tell it from another."""
EVERY = 10.0
"""Seconds between lines of progress."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """What is encoded, with what, and where to; the commands' options say it in full."""

    data: DataConfig
    clip: str
    out: Path
    dtype: Literal["float16", "float32"] = "float16"
    text: bool = False
    captions: bool = True
    batch_size: int = 64
    shard_records: int = 10_000
    take_over: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.shard_records < 1:
            found = f"batch_size is {self.batch_size} and shard_records {self.shard_records}"
            raise UserError(f"{found}; both must be at least 1")
        if self.text and not self.captions:
            raise UserError("there are no captions whose embeddings could be stored; leave out --text or --no-captions")


def encode(config: EncodeConfig) -> StoreInfo:
    """Encode what `config` describes, or what is missing of it; every process of a run must call it.

    Returns what the store says of itself; of its shards in the first process alone.

    Raises UserError for a place that cannot be written, another process that writes there, a store of something else,
    and a source of which too much is bad.
    """
    out = config.out.expanduser().absolute()
    _try_writing(out)
    with hold_folder(str(out), insist=config.take_over, busy=ENCODED) as lock:
        known, first = read_info(out), host()[0] == 0
        strange = first and known is None and any(each.name != FILE for each in out.iterdir())
        # All have looked before anyone writes.
        if any(from_all(strange)):
            raise UserError(f"{out} holds something that is no store; choose another --out")
        clip = FrozenEncoder.load("clip", config.clip, {"image", "text"} if config.text else {"image"})
        source = config.data.open(captions=config.captions)
        info = _begun(config, clip, source)
        if known is not None:
            _check_same(out, known, info)
            if known.shards:
                print(f"{out} has all its {sum(each.rows for each in known.shards):,} embeddings already", flush=True)
                return known
        if first:
            remove_drafts(out)
            if known is None:
                write_info(out, info)
        from_all(0)
        work = _Work(out, info, config, clip, source)
        work.run(lambda: None if lock is None else lock.check())
        from_all(0)
        if first:
            info = dataclasses.replace(info, shards=tuple(map(work.shard, range(work.num_shards))))
            if lock is not None:
                lock.check(read=True)
            write_info(out, info)
            bad = sum(each.bad for each in info.shards)
            left_out = f", {bad:,} records left out" if bad else ""
            print(f"wrote {out}: {sum(each.rows for each in info.shards):,} embeddings{left_out}", flush=True)
        from_all(0)
        return info


def _try_writing(out: Path) -> None:
    """Make sure, in the first process alone, that a store can be written: two at once are in each other's way."""
    problem = None
    if host()[0] == 0:
        try:
            try_writing(out / INFO)
        except UserError as error:
            problem = error
    if any(from_all(problem is not None)):
        raise problem or UserError(f"process 0 cannot write to {out}; see its line")


def host() -> tuple[int, int]:
    """Return this process's number, and how many there are."""
    return jax.process_index(), jax.process_count()


def _begun(config: EncodeConfig, clip: FrozenEncoder, source: KeyedSource) -> StoreInfo:
    """Return what the store says of itself before it has shards."""
    spec, count = clip.encoder.clip, len(source)
    some = np.unique(np.linspace(0, count - 1, KEYS).astype(int)).tolist() if count else []
    keys = "\n".join(source.key(index) for index in some)
    return StoreInfo(
        clip=clip.identity,
        embed_dim=spec.embed_dim,
        dtype=config.dtype,
        embedding=spec.embedding,
        text=config.text,
        source=config.data.source,
        records=count,
        keys=xxhash.xxh3_128_hexdigest(keys.encode("utf-8", "surrogatepass")),
        shard_records=config.shard_records,
        batch_size=config.batch_size,
    )


def _check_same(out: Path, known: StoreInfo, info: StoreInfo) -> None:
    for field in dataclasses.fields(StoreInfo):
        ours, theirs = getattr(info, field.name), getattr(known, field.name)
        if field.name not in ("shards", "source") and ours != theirs:
            what = "keys of the source" if field.name == "keys" else field.name
            found = f"{what} is {ours!r}, and the store in {out} was begun with {theirs!r}"
            raise UserError(f"{found}; give the same, or choose another --out")


class _Work:
    """The shards of one store."""

    def __init__(self, out: Path, info: StoreInfo, config: EncodeConfig, clip: FrozenEncoder, source: KeyedSource):
        self._out, self._info, self._data, self._source = out, info, config.data, source
        self._encode = _Devices(clip.encoder, clip.tokenizer if info.text else None, info.batch_size)
        self.num_shards = -(-info.records // info.shard_records)
        self._shards: dict[int, StoredShard] = {}
        self._bad: dict[str, str] = {}

    def shard(self, number: int) -> StoredShard:
        """Return a shard that is done, by whatever process."""
        if number not in self._shards:
            found = read_shard(self._out, self._names(number))
            if found is None:
                raise UserError(f"shard {number} of {self._out} is missing; let all hosts see the same folder")
            self._shards[number] = found[0]
            self._count_bad(found[1], said=True)
        return self._shards[number]

    def run(self, check: Callable[[], None]) -> None:
        """Make those shards of this process that are not there; `check` is called before each is written."""
        index, count = host()
        mine = range(index, self.num_shards, count)
        for number in mine:
            if (found := read_shard(self._out, self._names(number))) is not None:
                self._shards[number] = found[0]
                self._count_bad(found[1], said=True)
        missing = tuple(number for number in mine if number not in self._shards)
        blocks = Blocks(missing, self._info.shard_records, self._info.records)
        done = sum(len(blocks.block(number)) for number in self._shards)
        progress = _Progress(done + len(blocks), done)
        size, threads = self._encode.image_size, {"num_threads": self._data.num_threads}
        if not missing:
            return
        iterator = readings(self._source, blocks, size, **threads, num_workers=self._data.num_workers)
        with contextlib.closing(iterator):
            for number in missing:
                own = itertools.islice(iterator, len(blocks.block(number)))
                encoded = self._encoded(map(progress.seen, own))
                self._count_bad(encoded.bad)
                check()
                self._shards[number] = write_shard(self._out, self._names(number), encoded)
        progress.say()

    def _names(self, number: int) -> dict[str, str]:
        return file_names(number, self.num_shards, text=self._info.text)

    def _encoded(self, records: Iterator[Reading]) -> Encoded:
        kept: list[Reading] = []
        bad: dict[str, str] = {}

        def good() -> Iterator[tuple[UInt8[np.ndarray, "h w 3"], Int[np.ndarray, " n"] | None]]:
            for each in records:
                try:
                    tokens = None if each.fault is not None else self._encode.tokens(each.captions[0])
                except UserError as error:
                    bad[each.name] = str(error)
                    continue
                if each.image is None:
                    bad[each.name] = each.fault or "no image"
                else:
                    kept.append(each)
                    yield each.image, tokens

        embeddings = {name: rows.astype(self._info.dtype) for name, rows in self._encode(good()).items()}
        fine = np.ones(len(kept), bool)
        for name, rows in embeddings.items():
            fine &= np.isfinite(rows).all(1) & rows.any(1)
            for each in itertools.compress(kept, ~fine):
                bad.setdefault(each.name, f"its {name} is not finite in {self._info.dtype}, or all zeros")
        kept = list(itertools.compress(kept, fine))
        return Encoded(
            keys=[each.key for each in kept],
            names=[each.name for each in kept],
            captions=[each.captions for each in kept],
            z_i=embeddings["z_i"][fine],
            z_t=embeddings["z_t"][fine] if "z_t" in embeddings else None,
            bad=bad,
        )

    def _count_bad(self, bad: Mapping[str, str], *, said: bool = False) -> None:
        for name, reason in bad.items():
            self._bad[name] = reason
            if not said and len(self._bad) <= NAMED:
                print(f"{printable(name)}: {printable(reason)}; left out", file=sys.stderr)
        if len(self._bad) > self._data.max_bad_share * self._info.records:
            found = f"{len(self._bad):,} of {self._info.records:,} records are unusable"
            limit = f"({len(self._bad) / self._info.records:.1%}, limit {self._data.max_bad_share:.1%})"
            first = "; ".join(f"{printable(name)}: {printable(why)}" for name, why in list(self._bad.items())[:3])
            raise UserError(f"{found} {limit}; mend or remove them, or raise --data.max-bad-share: {first}")


class _Devices:
    """The towers on all devices of this process, `batch_size` rows each."""

    def __init__(self, encoder: Encoder, tokenizer: Tokenizer | None, batch_size: int):
        clip = encoder.clip
        devices = jax.local_devices()
        self._mesh = Mesh(np.array(devices).reshape(-1, 1, 1), AXES)
        self._rows, self._width = len(devices) * batch_size, clip.embed_dim
        self._params = jax.device_put(encoder.params, NamedSharding(self._mesh, P()))
        self._tokenizer, self._context = tokenizer, clip.text_tower.context if tokenizer is not None else 0
        self.image_size = clip.image_tower.image_size
        self._image = jax.jit(
            data_parallel(lambda params, pixels: clip.encode_image(params, to_float(pixels)), self._mesh, 1)
        )
        self._text = jax.jit(data_parallel(lambda params, tokens: clip.encode_text(params, tokens).z_t, self._mesh, 1))
        self._compiled = False

    def tokens(self, caption: str) -> Int[np.ndarray, " n"] | None:
        """Tokenise a caption, where captions are encoded; UserError for one that is no text."""
        return None if self._tokenizer is None else self._tokenizer.encode([caption], self._context).tokens[0]

    def __call__(
        self, rows: Iterator[tuple[UInt8[np.ndarray, "h w 3"], Int[np.ndarray, " n"] | None]]
    ) -> dict[str, Float[np.ndarray, "n d"]]:
        """Encode images, and tokens where there are any: z_i and z_t of all rows, float32."""
        names = ("z_i",) if self._tokenizer is None else ("z_i", "z_t")
        made: dict[str, list[np.ndarray]] = {name: [np.zeros((0, self._width), np.float32)] for name in names}
        under_way: tuple[int, list[jax.Array]] | None = None

        def settle() -> None:
            if under_way is not None:
                count, arrays = under_way
                for name, array in zip(names, arrays, strict=True):
                    made[name].append(np.asarray(array)[:count])

        while group := list(itertools.islice(rows, self._rows)):
            started = self._group(group)
            settle()  # the group before, while this one is computed
            under_way = len(group), started
        settle()
        return {name: np.concatenate(parts) for name, parts in made.items()}

    def _group(self, group: Sequence[tuple]) -> list[jax.Array]:
        columns = [np.stack(column) for column in zip(*group, strict=True) if column[0] is not None]
        filled = [np.concatenate([rows, np.repeat(rows[:1], self._rows - len(rows), axis=0)]) for rows in columns]
        first, self._compiled = not self._compiled and host()[0] == 0, True
        if first:
            print(f"compiling for {self._mesh.size} devices of {len(filled[0]) // self._mesh.size} images", flush=True)
        start = time.monotonic()
        found = [program(self._params, rows) for program, rows in zip((self._image, self._text), filled, strict=False)]
        if first:
            print(f"compiled in {time.monotonic() - start:.1f} s", flush=True)
        return found


class _Progress:
    """Lines that say how far this process is."""

    def __init__(self, total: int, done: int):
        self._total, self._done, self._new = total, done, 0
        self._start = self._said = time.monotonic()

    def seen(self, reading: Reading) -> Reading:
        """Count a record."""
        self._new += 1
        if time.monotonic() - self._said >= EVERY:
            self.say()
        return reading

    def say(self) -> None:
        """Print how much is done, how fast, and how long the rest will take."""
        self._said = time.monotonic()
        rate = self._new / max(self._said - self._start, 1e-9)
        done = self._done + self._new
        index, count = host()
        who = f"process {index}: " if count > 1 else ""
        left = int((self._total - done) / rate) if self._new else 0
        rest = f", {left // 60}m{left % 60:02d}s left" if done < self._total else ""
        print(f"{who}encoded {done:,} of {self._total:,} records ({rate:.0f}/s{rest})", flush=True)
