"""Errors that a person can cause, and how a command ends when one does.

A `UserError` carries one line that says what is wrong and what to do. Commands wrap their main function in
`run_cli`, which prints that line without a traceback and exits with status 2; anything else is a bug and
keeps its traceback.
"""

import errno
import io
import os
import sys
from collections.abc import Callable

from unclip_jax.core.program import as_typed
from unclip_jax.core.unicode import printable

MAX_LINE = 1_500
_OF_A_NAME = (
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP,
)  # fmt: skip


class UserError(Exception):
    """A mistake outside the program: `UserError("what is wrong; what to do")`, one line.

    A line that quotes a file may be of any length, so the middle of what is longer than `MAX_LINE` is left out.
    """

    def __init__(self, line: str):
        half = MAX_LINE // 2
        super().__init__(line if len(line) <= MAX_LINE else f"{line[:half]} ... {line[-half:]}")


def run_cli(main: Callable[[], None]) -> None:
    """Run a command's `main`, turning what a person can cause into one line on stderr and an exit status.

    Exits with 2 on `UserError`, on a full disk and on a name that cannot be read or written, with 130 (128 + SIGINT) on
    an interrupt and with 141 (128 + SIGPIPE) where nobody reads the output any more.
    """
    # A terminal that has no letter for a name gets the number of it, and no traceback after the work is done.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main()
    except UserError as error:
        # A line may quote a file, and a file may hold what a terminal obeys.
        line = printable(as_typed(" ".join(str(error).split())))
    except BrokenPipeError:
        # Whoever read the output, such as `head`, has had enough. Python must not try to flush it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = f" while writing {error.filename}" if error.filename else ""
            line = f"the disk is full{where}; free some space or choose another folder, then run it again"
        elif error.filename is not None and error.errno in _OF_A_NAME:
            name = printable(os.fsdecode(error.filename)) if not isinstance(error.filename, int) else error.filename
            line = f"{name}: {error.strerror}; check the name, and who may read and write it"
        else:
            raise
    except KeyboardInterrupt:
        sys.exit(130)
    else:
        return
    print(f"error: {line}", file=sys.stderr)
    sys.exit(2)
