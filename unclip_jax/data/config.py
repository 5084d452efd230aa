"""Where the examples of a run come from."""

import dataclasses
from collections.abc import Generator

import numpy as np

from unclip_jax.core.errors import UserError
from unclip_jax.data.columns import Columns
from unclip_jax.data.filters import Condition, DescribedSource, FilteredSource
from unclip_jax.data.mixtures import MixtureSource, parts_of
from unclip_jax.data.pipeline import BatchSpec, batches
from unclip_jax.data.records import KeyedSource, Source
from unclip_jax.data.sources import open_source
from unclip_jax.data.store_sources import JoinedSource, StoreSource
from unclip_jax.data.store_tables import Wanted
from unclip_jax.data.stores import EmbeddingStore
from unclip_jax.text.tokenizer import Tokenizer

STORE = "store:"
"""Before the folder of a store, as a source."""
RESUMABLE_DATA_FIELDS = ("data.data_dir", "data.num_workers", "data.num_threads", "data.max_bad_share")
"""What a resumed run may change about its data."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where examples come from and how many make a batch."""

    source: str = "captioned_shapes"
    """"captioned_shapes"; a folder of images with captions (x.jpg + x.txt, metadata.jsonl or metadata.csv); files, or a
    folder of them: tar as WebDataset and img2dataset write them ("shards/{000..099}.tar", "a/*.tar::b/*.tar"), parquet,
    TFRecord or ArrayRecord of tf.train.Example; "tfds:NAME/CONFIG:VERSION"; "hf:OWNER/NAME", "hf:FOLDER". Several as a
    mixture: "0.7 * shards/*.tar + 0.3 * photos", or without weights, each record once. Or "store:FOLDER": embeddings
    that `python -m train.encode` or others computed, with captions and without images."""
    embeddings: str = ""
    """A store of embeddings, whose z_i are joined to the images by their keys, instead of encoding these anew."""
    store_clip: str = ""
    """The CLIP, a workdir or a bundle, that a store is of which does not say so itself."""
    store_root: str = ""
    """The folder that a store's image_path are in; what is left of them, without the suffix, are its keys."""
    where: tuple[str, ...] = ()
    """Conditions on what is stored with a record, all of which it has to meet: "aesthetic >= 5", "license == CC0"; and
    on its image, "side >= 256" (px, the shorter one), "aspect <= 2" (the longer over the shorter)."""
    image_column: str = ""
    """Of parquet, TFRecord, ArrayRecord, tfds: and hf:, the column of the image; by default it is guessed."""
    caption_column: str = ""
    """The column of the caption, or of a list of them."""
    key_column: str = ""
    """The column of the key, which stored embeddings are joined by."""
    split: str = "train"
    """"train", "test" (of a folder), "test_seen" or "test_unseen" (of captioned_shapes), or one of tfds: and hf:."""
    data_dir: str = "data"
    """Where captioned_shapes is built and kept."""
    batch_size: int
    """Examples in the global batch, over all hosts."""
    flip: bool = False
    """Mirror half of the images. Not for captions that say left and right."""
    max_bad_share: float = 0.01
    """Largest share of a folder's images, and rows of its metadata, that may be unusable; they are left out."""
    min_side: int = 8
    """Images of a folder with fewer pixels along their shorter side are left out."""
    num_workers: int = 0
    """Reader processes; 0 reads in this one."""
    num_threads: int = 2
    """Reading threads of each process."""
    seed: int = 0
    """Of the order, the crops, the flips and the choice among several captions."""
    num_train: int = 60_000
    """Training examples of captioned_shapes, where it has to be built."""
    resolution: int = 128
    """Side in pixels of captioned_shapes' images."""

    @property
    def alone(self) -> bool:
        """Whether the source is a store of embeddings."""
        return self.source.startswith(STORE)

    def open_store(self) -> EmbeddingStore | None:
        """Open the store of embeddings; None where the config names none, UserError where there is none."""
        if self.alone and self.embeddings:
            raise UserError("the source is a store of embeddings already; leave out --data.embeddings")
        for name in ("store_clip", "store_root"):
            if getattr(self, name) and not (self.alone or self.embeddings):
                raise UserError(f"there is no store of embeddings; leave out --data.{name.replace('_', '-')}")
        folder = self.source.removeprefix(STORE) if self.alone else self.embeddings
        if not folder:
            return None
        # Beside images the options name their columns, and the captions are theirs.
        key, caption = (self.key_column, self.caption_column) if self.alone else ("", "")
        wanted = Wanted(key=key, caption=caption, captions=self.alone, root=self.store_root)
        return EmbeddingStore(folder, wanted)

    def open(self, *, captions: bool, images: bool = True, store: EmbeddingStore | None = None) -> KeyedSource:
        """Open the source of records; raise UserError where there is none, or too much of it is broken.

        Args:
            captions: False takes images alone.
            images: whether the run needs them.
            store: that of `open_store`, once it is known to fit the run.
        """
        conditions = [Condition.parse(text) for text in self.where]
        if self.alone:
            if images or store is None:
                line = f"{self.source} has no images, and this run needs them"
                raise UserError(f"{line}; give them as --data.source, and the store as --data.embeddings")
            rows = StoreSource(store, max_bad_share=self.max_bad_share, captions=captions)
            return FilteredSource(rows, conditions) if conditions else rows
        names, weights = parts_of(self.source)
        parts = [self._open(name, captions) for name in names]
        if conditions:
            parts = [FilteredSource(part, conditions) for part in parts]
        source = parts[0] if len(parts) == 1 else MixtureSource(parts, weights)
        return source if store is None else JoinedSource(source, store, max_bad_share=self.max_bad_share)

    def _open(self, name: str, captions: bool) -> DescribedSource:
        return open_source(
            name,
            self.split,
            self.data_dir,
            resolution=self.resolution,
            num_train=self.num_train,
            columns=Columns(image=self.image_column, caption=self.caption_column, key=self.key_column),
            max_bad_share=self.max_bad_share,
            min_side=self.min_side,
            captions=captions,
        )

    def batch_spec(
        self,
        sizes: tuple[int, ...],
        *,
        crop: int | None = None,
        context: int | None = None,
        negatives: tuple[str, ...] = (),
        embeddings: tuple[tuple[str, int], ...] = (),
    ) -> BatchSpec:
        """Describe batches of images of these sizes, and more; see `BatchSpec`."""
        return BatchSpec(
            batch_size=self.batch_size,
            sizes=sizes,
            crop=crop,
            context=context,
            negatives=negatives,
            embeddings=embeddings,
            flip=self.flip,
            seed=self.seed,
        )

    def batches(
        self,
        source: Source,
        tokenizer: Tokenizer | None,
        spec: BatchSpec,
        start_step: int,
        *,
        process_index: int = 0,
        process_count: int = 1,
    ) -> Generator[dict[str, np.ndarray], None, None]:
        """Yield one host's rows of the global batches from `start_step` on."""
        return batches(
            source,
            tokenizer,
            spec,
            start_step=start_step,
            process_index=process_index,
            process_count=process_count,
            num_workers=self.num_workers,
            num_threads=self.num_threads,
        )
