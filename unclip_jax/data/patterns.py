"""Names of files by patterns: {00..99}, * and ?, several of them joined by "::"."""

import os
import re

from unclip_jax.core.errors import UserError
from unclip_jax.data.files import matching

MOST_FILES = 1_000_000
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def files_of(pattern: str, kind: str = "tar") -> list[str]:
    """Return the files that a pattern means, sorted.

    Args:
        kind: of the files, for the message.

    Raises UserError where a part of the pattern means no file.
    """
    found: dict[str, None] = {}
    for each in pattern.split("::"):
        for name in _expanded(os.path.expanduser(each)):
            if not (files := matching(name)):
                raise UserError(f"there is no file {name}; give {kind} files, as in shards/{{00000..00099}}.{kind}")
            found |= dict.fromkeys(files)
    return sorted(found)


def _expanded(pattern: str) -> list[str]:
    match = _RANGE.search(pattern)
    if match is None:
        return [pattern]
    first, last = int(match[1]), int(match[2])
    if not 0 <= last - first < MOST_FILES:
        raise UserError(f"{match[0]} means {last - first + 1:,} files; give a range of 1 to {MOST_FILES:,}")
    numbers = [f"{number:0{len(match[1])}d}" for number in range(first, last + 1)]
    before, after = pattern[: match.start()], pattern[match.end() :]
    return [name for number in numbers for name in _expanded(f"{before}{number}{after}")]
