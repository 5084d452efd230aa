"""Ends a process whose steps have stopped coming: on GPUs and TPUs a collective waits for a lost partner for ever."""

import threading
import time

from unclip_jax.parallel import distributed


class Watchdog:
    """To be entered around the steps of a run; a thread looks whether they keep coming.

    After `timeout` seconds (0: never) without a sign of life the process ends with one line and status
    `distributed.EXIT_PEER_LOST`, and so it does for an error inside that says that another process is gone. Nothing
    else would wake a thread that waits in a collective.
    """

    def __init__(self, timeout: float | int):
        self._timeout = timeout
        self._last: tuple[int, float] | None = None
        self._over = threading.Event()

    def alive(self, step: int) -> None:
        """Restart the clock: something has been finished; `step` is the newest step whose numbers are known."""
        self._last = (step, time.monotonic())

    def rest(self) -> None:
        """Stop the clock until `alive` is called again."""
        self._last = None

    def __enter__(self):
        if self._timeout:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, kind, error, trace):
        self._over.set()
        if distributed.is_lost_peer(error):
            reason = str(error).strip().splitlines()[0]
            line = f"{distributed.whoami()}: another process is gone ({reason}); {distributed.start_again()}"
            distributed.exit_now(line, distributed.EXIT_PEER_LOST)

    def _watch(self) -> None:
        while not self._over.wait(min(1.0, self._timeout / 4)):
            last = self._last
            if last is not None and time.monotonic() - last[1] > self._timeout:
                distributed.exit_now(
                    f"{distributed.whoami()}: no step finished for {self._timeout:g} s after step {last[0]}; "
                    f"another process is gone or the data have stopped; {distributed.start_again()}",
                    distributed.EXIT_PEER_LOST,
                )
