import errno
import subprocess
import sys

import pytest

from unclip_jax.core.errors import UserError, run_cli


def _raises(error: BaseException):
    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("no folder x; give another"), "error: no folder x; give another\n"),
        (UserError("two\n  lines"), "error: two lines\n"),
        (OSError(errno.ENOSPC, "No space left", "x.png"), "error: the disk is full while writing x.png"),
        (OSError(errno.ENOSPC, "No space left on device"), "error: the disk is full; free some space"),
    ],
)
def test_what_a_person_can_cause_is_one_line_and_status_2(error, line, capsys):
    with pytest.raises(SystemExit) as exit_info:
        run_cli(_raises(error))
    assert exit_info.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(line) and captured.err.count("\n") == 1
    assert captured.out == ""


def test_an_interrupt_exits_with_130(capsys):
    with pytest.raises(SystemExit) as exit_info:
        run_cli(_raises(KeyboardInterrupt()))
    assert exit_info.value.code == 130
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError(errno.EIO, "not the disk's size")])
def test_bugs_keep_their_traceback(error):
    with pytest.raises(type(error)):
        run_cli(_raises(error))


def test_success_returns():
    ran = []
    run_cli(lambda: ran.append(True))
    assert ran == [True]


def test_a_closed_pipe_ends_quietly():
    code = (
        "from unclip_jax.core.errors import run_cli\nrun_cli(lambda: [print('x' * 999) for _ in range(9999)] and None)"
    )
    process = subprocess.run(
        f"{sys.executable} -c \"{code}\" | head -1; exit ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == 141 and process.stderr == ""
