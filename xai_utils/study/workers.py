"""Processes of this machine that compute cases: a dask cluster that ends with whoever started it, however that ends.

It has a session of its own, so that Ctrl-C in a terminal reaches the runner alone; its input closes with the runner.
"""

import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from xai_utils.errors import UserError

PATIENCE = 20  # seconds for its end, in which a case that is half done is given up


@contextmanager
def local(count: int, threads: int) -> Iterator[str]:
    """The address of a cluster of `count` processes with so many threads each. Raises UserError if it does not start.

    They import from the same folders as this process.
    """
    code = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import serve; serve({count}, {threads})"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdin and process.stdout
    try:
        address = process.stdout.readline().strip()
        if not address:
            raise UserError(f"--workers {count}: they did not start; try fewer, or leave it out")
        yield address
    finally:
        process.stdin.close()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
        process.stdout.close()


def serve(count: int, threads: int) -> None:
    """Print the address of a cluster and keep it until the input ends."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=count,
        threads_per_worker=threads,
        dashboard_address="127.0.0.1:0",
        silence_logs=logging.CRITICAL,
    ) as cluster:
        print(cluster.scheduler_address, flush=True)
        sys.stdin.read()
