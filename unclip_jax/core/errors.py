"""Errors that a person can cause, and how a command ends when one does.

A `UserError` carries one line that says what is wrong and what to do. Commands wrap their main function in
`run_cli`, which prints that line without a traceback and exits with status 2; anything else is a bug and
keeps its traceback.
"""

import errno
import os
import sys
from collections.abc import Callable

from unclip_jax.core.program import as_typed

MAX_LINE = 2_000


class UserError(Exception):
    """A mistake outside the program: `UserError("what is wrong; what to do")`, one line.

    A line that quotes a file may be of any length, so the middle of what is longer than `MAX_LINE` is left out.
    """

    def __init__(self, line: str):
        half = MAX_LINE // 2
        super().__init__(line if len(line) <= MAX_LINE else f"{line[:half]} ... {line[-half:]}")


def run_cli(main: Callable[[], None]) -> None:
    """Run a command's `main`, turning what a person can cause into one line on stderr and an exit status.

    Exits with 2 on `UserError` and on a full disk, with 130 (128 + SIGINT) on an interrupt and with 141 (128 + SIGPIPE)
    where nobody reads the output any more.
    """
    try:
        main()
    except UserError as error:
        line = as_typed(" ".join(str(error).split()))
    except BrokenPipeError:
        # Whoever read the output, such as `head`, has had enough. Python must not try to flush it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f" while writing {error.filename}" if error.filename else ""
        line = f"the disk is full{where}; free some space or choose another folder, then run it again"
    except KeyboardInterrupt:
        sys.exit(130)
    else:
        return
    print(f"error: {line}", file=sys.stderr)
    sys.exit(2)
