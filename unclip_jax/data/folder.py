"""A folder of images with captions, as people have them on disk.

    photos/cat.jpg + photos/cat.txt       a caption file beside each image, or
    metadata.jsonl / metadata.csv         rows of file_name (relative to this file) and text or caption

Every image is decoded in full once, before the first record is served (`unclip_jax.data.verdicts`). Checking first, and
not while training, has three reasons: a folder that is too damaged stops the run at its start, not after hours; record
i is the same file on every host and in every worker; and what is left out is known and reported.

    unusable = images that cannot be read, are too small or have no caption + rows and caption files that are no use
    a run stops where unusable / (unusable + images taken) > max_bad_share, and for nothing else in the folder

An image that breaks after that is left out like the others (`unclip_jax.data.skipping`).
"""

import os
import posixpath
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from unclip_jax.core.errors import UserError
from unclip_jax.core.files import atomic_write
from unclip_jax.core.unicode import printable
from unclip_jax.data.captions import NO_CAPTION, Captions, find_captions, find_columns
from unclip_jax.data.filters import MEASURED, measures
from unclip_jax.data.records import Record
from unclip_jax.data.skipping import SkippingSource, check_limits
from unclip_jax.data.verdicts import cache_file_of, check_images
from unclip_jax.images.files import IMAGE_SUFFIXES
from unclip_jax.images.transforms import image_size, read_image

NAMED = 3
"""Unusable things that a message names; where there are more, a file lists all of them."""


class FolderSource(SkippingSource):
    """Images under a folder, at any depth, sorted by path; hidden files and linked folders are left alone.

    Args:
        path: the folder.
        max_bad_share: largest share of images and rows that may be left out.
        min_side: images with fewer pixels along their shorter side are left out.
        captions: False takes images alone; every caption is then "".
        cache_dir: where verdicts are kept; the user's cache folder where it is None.

    Raises UserError where there is nothing to read or too much is unusable.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        max_bad_share: float = 0.01,
        min_side: int = 8,
        captions: bool = True,
        cache_dir: str | Path | None = None,
    ):
        check_limits(max_bad_share, min_side)
        self._folder = Path(os.path.expanduser(path)).absolute()
        if not os.path.isdir(self._folder):
            raise UserError(f"{self._folder} is not a folder; give a folder of images")
        self._bad: dict[str, str] = {}
        names = sorted(_walk(self._folder, self._cannot_list))
        images = [name for name in names if name.lower().endswith(IMAGE_SUFFIXES)]
        if not images and not self._bad:
            raise UserError(f"{self._folder} holds no images; give a folder of {' '.join(IMAGE_SUFFIXES)}")
        found = Captions(dict.fromkeys(images, ("",)), {}, 0)
        if captions:
            found = find_captions(self._folder, images, names)
            if images and set(found.bad.values()) == {NO_CAPTION} and not found.of:
                raise UserError(
                    f"{self._folder} holds {len(images)} images and no captions; put x.txt beside x.jpg or write "
                    "metadata.jsonl with file_name and text"
                )
        cache_file = cache_file_of(self._folder, cache_dir)
        self._bad |= found.bad | check_images(self._folder, list(found.of), min_side, cache_file)
        self._names = [name for name in found.of if name not in self._bad]
        self._captions = [found.of[name] for name in self._names]
        several = sum(len(each) > 1 for each in self._captions)
        if several:
            line = f"{several} of {len(self._names)} images in {self._folder} have several captions"
            print(f"{line} (as lines of x.txt are); training draws one for each epoch", file=sys.stderr)
        num_bad = len(self._bad) - found.counted_twice
        self._check_share(max_bad_share, num_bad, cache_file.with_suffix(".txt"))
        super().__init__(str(self._folder), len(self._names), self._bad, max_bad_share, found.counted_twice)

    def key(self, index: int) -> str:
        return posixpath.splitext(self._names[index])[0]

    def name(self, index: int) -> str:
        return self._names[index]

    def read(self, index: int) -> Record:
        name = self._names[index]
        image = read_image(self._folder / name, name=name)
        return Record(image=np.array(image), captions=self._captions[index], name=name, key=self.key(index))

    def describe(self, names: frozenset[str]) -> Iterator[dict[str, object]]:
        """Yield the columns `names` of every record; see `filters.DescribedSource`."""
        stored = names - MEASURED
        found: dict[str, dict[str, object]] = {}
        if stored:
            for image, cells in find_columns(self._folder, self._names, sorted(_walk(self._folder, self._cannot_list))):
                found.setdefault(image, {}).update((name, cells[name]) for name in stored & cells.keys())
        for name in self._names:
            size = image_size(self._folder / name) if names & MEASURED else None
            yield found.get(name, {}) | measures(size, names)

    def columns(self) -> list[str]:
        """Return the names of all columns."""
        files = sorted(_walk(self._folder, self._cannot_list))
        return list({name: None for _, cells in find_columns(self._folder, self._names, files) for name in cells})

    def _cannot_list(self, error: OSError) -> None:
        name = Path(error.filename).relative_to(self._folder).as_posix()
        self._bad[f"{name}/"] = f"cannot be read ({error.strerror})"

    def _check_share(self, max_bad_share: float, count: int, list_file: Path) -> None:
        if not self._bad:
            return
        total = count + len(self._names)
        # What is wrong with a table says more than what its images lack.
        bad = sorted(self._bad.items(), key=lambda item: (item[1] == NO_CAPTION, item[0]))
        reasons = [f"{printable(name)}: {printable(reason)}" for name, reason in bad]
        found = f"{count} of {total} images in {self._folder} are unusable"
        shown = "; ".join(reasons[:NAMED])
        if len(reasons) > NAMED:
            shown += f"; ...{_listed(list_file, reasons)}"
        if count > max_bad_share * total or not self._names:
            share = f"{count / total:.1%}, limit {max_bad_share:.1%}"
            raise UserError(f"{found} ({share}); mend or remove them: {shown}")
        print(f"{found} and left out: {shown}", file=sys.stderr)


def _walk(folder: Path, cannot_list: Callable[[OSError], None]) -> Iterator[str]:
    """Yield relative names, with forward slashes, of the files under a folder that are not hidden."""
    for directory, subfolders, files in os.walk(folder, onerror=cannot_list):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        relative = Path(directory).relative_to(folder)
        yield from ((relative / name).as_posix() for name in files if not name.startswith("."))


def _listed(file: Path, reasons: list[str]) -> str:
    """Write all reasons to a file, and say where; nothing where it cannot be written."""
    try:
        with atomic_write(file) as draft:
            draft.write_text("\n".join(reasons) + "\n", "utf-8")
    except OSError:
        return ""
    return f" (all {len(reasons)} in {file})"
