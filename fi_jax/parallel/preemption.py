"""Stopping in order: signals become "save at the next step", and a step that never ends becomes an error.

Exit status 75 (`EX_TEMPFAIL`) says "saved, run me again"; the launch scripts requeue on it and on nothing else.
"""

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Any

REQUEUE_STATUS = 75
STALLED_STATUS = 70
# SIGUSR1 is what `sbatch --signal` and several schedulers send ahead of the end, SIGHUP a terminal that goes.
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)


class PreemptionFlag:
    """Turns SIGTERM, SIGUSR1, SIGHUP and the first Ctrl-C into a decision that all processes take at the same step.

    Use as a context manager around the loop; ask `reached(step)` once at every step, on every process, with the same
    step numbers. A second Ctrl-C acts as it would have without us. Other signals may come twice for one reason: from a
    launcher and to its whole group, from a shell and from the kernel.
    """

    def __init__(self, num_processes: int = 1):
        self.num_processes = num_processes
        self.received: int | None = None
        self._previous: dict[int, Any] = {}
        self._announced = False

    def __enter__(self) -> "PreemptionFlag":
        # Python runs its handlers between two operations of the main thread, which a first compile can keep for a minute.
        # What C writes into a pipe is read at once.
        reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._wakeup = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        threading.Thread(target=self._announce, args=(reading,), name="signals", daemon=True).start()
        # Among many processes JAX's coordination service owns SIGTERM: any process's notice reaches all of them.
        mine = _SIGNALS if self.num_processes == 1 else _SIGNALS[1:]
        for number in mine:
            # Under nohup nothing happens when the terminal goes.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._writing)

    def _announce(self, reading: int) -> None:
        """Tells at once what a signal will lead to; ends when the other end of the pipe is closed."""
        with open(reading, "rb", buffering=0) as pipe:  # noqa: PTH123 - a descriptor
            while numbers := pipe.read(1):
                if numbers[0] in self._previous and not self._announced:
                    self._announced = True
                    with contextlib.suppress(OSError):
                        name = signal.Signals(numbers[0]).name
                        os.write(2, f"{name}: will save after this step and stop\n".encode())

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        if number == signal.SIGINT:
            signal.signal(number, self._previous[number])
        if self.num_processes > 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def reached(self, step: int) -> bool:
        """Whether to save after `step` and stop; the same answer on every process."""
        if self.num_processes == 1:
            return self.received is not None
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)

    @property
    def exit_status(self) -> int:
        """What to exit with after saving: 130 after Ctrl-C, else `REQUEUE_STATUS`."""
        return 130 if self.received == signal.SIGINT else REQUEUE_STATUS


class Watchdog:
    """Ends the process with an error when `beat()` was not called for `seconds`.

    A host that hangs still sends heartbeats, and everybody else waits for it inside a collective; only a limit on the
    time between steps finds it. Prints where every thread stands and exits with `STALLED_STATUS`. `seconds` 0 is off.
    """

    def __init__(self, seconds: float, what: str = "step"):
        self.seconds = seconds
        self.what = what
        self._last = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        if self.seconds > 0:
            self._last = time.monotonic()
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()

    def beat(self) -> None:
        """Says that work goes on."""
        self._last = time.monotonic()

    def _watch(self) -> None:
        while not self._stop.wait(min(1.0, self.seconds / 4)):
            if time.monotonic() - self._last > self.seconds:
                print(
                    f"error: no {self.what} finished within {self.seconds:g} s; this or another host hangs. "
                    "Restart the job: it resumes from the last checkpoint",
                    file=sys.stderr,
                    flush=True,
                )
                faulthandler.dump_traceback(file=sys.stderr)
                os._exit(STALLED_STATUS)
