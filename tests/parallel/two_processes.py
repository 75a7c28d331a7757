"""A tiny distributed program that the tests start several times: joins, sums over processes, stops in order.

Usage: two_processes.py FOLDER STEPS [hang|odd|own-folder|interleaved]. Each step is one collective; prints what it saw as JSON.
"""

import json
import os
import sys
import time
from pathlib import Path


def main() -> int:
    from fi_jax.errors import UserError
    from fi_jax.parallel import hosts
    from fi_jax.parallel.preemption import PreemptionFlag, Watchdog

    folder, steps, mode = Path(sys.argv[1]), int(sys.argv[2]), (sys.argv + [""])[3]
    try:
        me = hosts.initialise()
        hosts.check_same("config", f"{mode}{me.index}" if mode == "odd" else "same", me)
        hosts.check_shared(folder / str(me.index) if mode == "own-folder" else folder, me, timeout=1.0)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    import jax
    import numpy as np
    from jax.sharding import Mesh

    from fi_jax.config import MeshConfig
    from fi_jax.parallel.mesh import make_mesh
    from fi_jax.parallel.rules import local_rows, place_batch

    mesh = make_mesh(MeshConfig(data=-1))
    if mode == "interleaved":
        # As on a TPU, where an axis follows the wires and not the hosts.
        mesh = Mesh(mesh.devices.reshape(2, -1).T.reshape(mesh.devices.shape), mesh.axis_names)
        assert [device.process_index for device in mesh.devices.flat] == [0, 1, 0, 1]
    rows = local_rows(mesh, 8)
    total = jax.jit(lambda batch: (batch["x"] ** 2).sum())
    (folder / f"pid{me.index}").write_text(str(os.getpid()))
    done = 0
    with hosts.ends_together(me), PreemptionFlag(me.count) as flag, Watchdog(3.0 if mode == "hang" else 0.0) as dog:
        for step in range(steps):
            if mode == "hang" and me.index == 1 and step == 3:
                time.sleep(600)
            x = np.arange(8.0)[rows] + step
            value = float(total(place_batch({"x": x}, mesh)))
            assert value == float((np.arange(8.0) + step) @ (np.arange(8.0) + step)), value
            dog.beat()
            done = step + 1
            if steps > 100:
                time.sleep(0.05)
            (folder / f"step{me.index}").write_text(str(done))
            if flag.reached(step):
                print(json.dumps({"process": me.index, "stopped": done}), flush=True)
                return flag.exit_status
    print(
        json.dumps({"process": me.index, "count": me.count, "rows": [rows.start, rows.stop], "done": done}), flush=True
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
