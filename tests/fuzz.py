"""What the tests of damaged files share: how many mutations a format gets, and a bound on the memory they may take.

CI makes 200; `FI_JAX_MUTATIONS=4000` before pytest makes more (CONTRIBUTING.md).
"""

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

MUTATIONS = int(os.environ.get("FI_JAX_MUTATIONS", "200"))


@contextlib.contextmanager
def bounded_memory(more: int = 2**30) -> Iterator[None]:
    """Lets this process take `more` bytes than it has: what asks for more gets a `MemoryError`, which is no `UserError`."""
    used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (used + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
