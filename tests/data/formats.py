"""The same captioned pictures in every format, written as their own tools do."""

import io
import json
import struct
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from unclip_jax.data import examples
from unclip_jax.data.tfrecords import masked_crc

KINDS = ("folder", "tar", "parquet", "hub", "tfrecord", "array_record", "tfds", "hf", "hf_disk")


def pictures(count, side=12):
    """Return (key, PNG, captions) of pictures that differ; every third has two captions."""
    found = []
    for number in range(count):
        out = io.BytesIO()
        pixels = np.random.default_rng(number).integers(0, 256, (side, side + number % 3, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(out, "png")
        captions = [f"picture {number}"] + (["another one"] if number % 3 == 0 else [])
        found.append((f"{number:06d}", out.getvalue(), captions))
    return found


def write(kind, folder, records):
    """Write records in a format; return the name to open them by."""
    folder.mkdir(parents=True, exist_ok=True)
    return globals()[f"_{kind}"](folder, records)


def _folder(folder, records):
    for key, image, captions in records:
        (folder / f"{key}.png").write_bytes(image)  # or JPEG: names do not matter
        (folder / f"{key}.txt").write_text("\n".join(captions))
    return str(folder)


def _tar(folder, records):
    for shard in range(2):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for key, image, captions in records[shard * 7 : shard * 7 + 7] if shard == 0 else records[7:]:
                for suffix, data in ((".png", image), (".txt", "\n".join(captions).encode())):
                    member = tarfile.TarInfo(key + suffix)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return f"{folder}/{{0..1}}.tar"


def _parquet(folder, records):
    """img2dataset's columns, several captions as a list in JSON."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for shard, part in enumerate((records[:7], records[7:])):
        captions = [each[2][0] if len(each[2]) == 1 else json.dumps(each[2]) for each in part]
        columns = {"key": [each[0] for each in part], "caption": captions, "jpg": [each[1] for each in part]}
        table = pa.table(columns | {"width": [12] * len(part)})
        pq.write_table(table, folder / f"{shard:05d}.parquet", row_group_size=3)
    return str(folder)


def _hub(folder, records):
    """The Hub's columns and names."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"image": {"bytes": i, "path": f"{k}.png"}, "text": c, "id": k} for k, i, c in records]
    for shard, part in enumerate((rows[:7], rows[7:])):
        pq.write_table(pa.Table.from_pylist(part), folder / f"train-{shard:05d}-of-00002.parquet")
    pq.write_table(pa.Table.from_pylist(rows[:1]), folder / "test-00000-of-00001.parquet")
    return str(folder)


def example(cells):
    """Return a serialised tf.train.Example of bytes, texts, whole numbers and lists of them."""
    message = examples._example()()
    for name, cell in cells.items():
        for value in cell if isinstance(cell, list) else [cell]:
            if isinstance(value, int):
                message.features.feature[name].int64_list.value.append(value)
            elif isinstance(value, float):
                message.features.feature[name].float_list.value.append(value)
            else:
                data = value if isinstance(value, bytes) else value.encode()
                message.features.feature[name].bytes_list.value.append(data)
    return message.SerializeToString()


def _examples(records):
    return [example({"image/encoded": i, "caption": c, "image/id": k, "width": 12}) for k, i, c in records]


def write_tfrecord(path, payloads):
    with open(path, "wb") as out:
        for record in payloads:
            length = struct.pack("<Q", len(record))
            parts = length, struct.pack("<I", masked_crc(length)), record, struct.pack("<I", masked_crc(record))
            out.write(b"".join(parts))


def _tfrecord(folder, records):
    for shard, part in enumerate((records[:7], records[7:])):
        write_tfrecord(folder / f"x.tfrecord-{shard:05d}-of-00002", _examples(part))
    return str(folder)


def _array_record(folder, records):
    from array_record.python.array_record_module import ArrayRecordWriter

    for shard, part in enumerate((records[:7], records[7:])):
        writer = ArrayRecordWriter(str(folder / f"{shard}.array_record"), "group_size:1")
        for record in _examples(part):
            writer.write(record)
        writer.close()
    return f"{folder}/*.array_record"


def _tfds(folder, records):
    import tensorflow_datasets as tfds

    # Read later from its files alone, as by someone who has no code for it.
    with tfds.core.registered.skip_registration():

        class CaptionedPictures(tfds.core.GeneratorBasedBuilder):
            """Captioned pictures."""

            VERSION = tfds.core.Version("1.0.0")
            code_path = None

            def _info(self):
                features = {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "captions": tfds.features.Sequence({"text": tfds.features.Text()}),
                    "key": tfds.features.Text(),
                }
                features = tfds.features.FeaturesDict(features)
                return tfds.core.DatasetInfo(builder=self, description="", features=features, disable_shuffling=True)

            def _split_generators(self, dl_manager):
                del dl_manager
                return {"train": self._generate_examples()}

            def _generate_examples(self):
                for number, (key, image, captions) in enumerate(records):
                    texts = [{"text": caption} for caption in captions]
                    yield number, {"image": io.BytesIO(image), "captions": texts, "key": key}

    CaptionedPictures(data_dir=folder, file_format="array_record").download_and_prepare()
    return "tfds:captioned_pictures:1.0.0"


def _hf(folder, records):
    """A folder of images with metadata, which the library reads."""
    with open(folder / "metadata.jsonl", "w") as rows:
        for key, image, captions in records:
            (folder / f"{key}.png").write_bytes(image)
            rows.write(json.dumps({"file_name": f"{key}.png", "text": captions, "key": key}) + "\n")
    return f"hf:{folder}"


def _hf_disk(folder, records):
    import datasets

    rows = [{"image": {"bytes": i, "path": None}, "text": c, "key": k} for k, i, c in records]
    features = {"image": datasets.Image(), "text": datasets.Sequence(datasets.Value("string"))}
    features = datasets.Features(features | {"key": datasets.Value("string")})
    found = datasets.Dataset.from_list(rows, features=features)
    datasets.DatasetDict({"train": found}).save_to_disk(str(Path(folder) / "disk"))
    return f"hf:{folder}/disk"
