"""Work spread over spawned processes that stop with the program, however it ends."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from fi_jax.errors import UserError


def end_with_parent(*_: int) -> None:
    """Ends this worker process when its parent was killed, and leaves nothing in shared memory.

    Python's tracker frees what it knows. It learns of a block after that was made: one being made is unlinked here, on
    the main thread, which makes them.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    main = threading.get_ident()

    def leave(*_: object) -> None:
        for descriptor in Path("/proc/self/fd").glob("*"):
            with contextlib.suppress(OSError):
                file = descriptor.readlink()
                # As Python names its blocks: other files there are somebody's data.
                if file.match("/dev/shm/psm_*"):
                    file.unlink()
        os._exit(1)

    def watch() -> None:
        parent.join()  # Returns when the parent ended, be it before this line.
        signal.pthread_kill(main, signal.SIGUSR2)
        # A call into C that does not return keeps Python from seeing signals.
        time.sleep(10)
        os._exit(1)

    signal.signal(signal.SIGUSR2, leave)
    threading.Thread(target=watch, daemon=True).start()


def in_processes(
    work: Callable[..., object], jobs: Sequence[tuple], workers: int, start: Callable[[], None] | None = None
) -> Iterator[int]:
    """Runs `work(*job)` for every job and yields the index of each as it is done; `start` runs first in each process.

    When one fails, or the program is interrupted, running jobs are finished and no other is started.

    Raises:
      UserError: a process was killed (out of memory).
    """
    # Spawned: the program may have started threads (JAX's) that a forked process would not have.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(jobs)), context, _start, (start,)) as pool:
        running = {pool.submit(work, *job): index for index, job in enumerate(jobs)}
        try:
            for done in as_completed(running):
                done.result()
                yield running[done]
        except BrokenProcessPool:
            raise UserError("a worker process was killed, by lack of memory perhaps; try fewer --workers") from None
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _start(start: Callable[[], None] | None) -> None:
    end_with_parent()
    # The parent stops its workers, each at the end of its job.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if start:
        start()
