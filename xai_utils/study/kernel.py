"""The process that executes notebooks: this interpreter, started once and made fresh for each of them.

Importing torch and loading two models takes longer than most notebooks whose results are kept.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty
from typing import Any, ClassVar
from uuid import uuid4
from weakref import WeakSet

from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import run_sync

from xai_utils.errors import UserError
from xai_utils.files import ROOT
from xai_utils.notices import HEADLESS

ENVIRONMENT = {
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    "MALLOC_ARENA_MAX": "1",  # else glibc keeps what each core's passes freed apart: 0.8 GB of 2.9
    HEADLESS: "1",  # the runner's line is the only one, and no widget is built
}
STARTS = 3  # two kernels that start at once can pick one port (papermill issue 511)
READY = 120  # seconds that a kernel may take to answer
ASKED_AGAIN = 1  # seconds without a message, after which a process is asked whether it lives
DIED = "the kernel was killed, most likely for lack of memory; close programs, or use a smaller model or text"
FRESH = "from xai_utils.study.namespace import renew; renew()"


class OwnKernel(AsyncKernelManager):
    """A kernel of the running interpreter, whatever kernels are installed beside it, in the repository's root."""

    started: ClassVar[WeakSet[OwnKernel]] = WeakSet()

    def __init__(self, folder: Path | None = None):
        """`folder` gets the file that says how to connect to the process; else Jupyter's own folder does."""
        self._client: AsyncKernelClient | None = None
        super().__init__(**{"connection_file": str(folder / f"{uuid4()}.json")} if folder else {})

    @property
    def kernel_spec(self) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=CRITICAL"]
        return KernelSpec(argv=argv, display_name="Python 3", language="python")

    async def start_kernel(self, **options: Any) -> None:  # type: ignore[override]
        """Start it with figures inline, also where the caller's MPLBACKEND says otherwise."""
        await super().start_kernel(**options | {"env": os.environ | ENVIRONMENT, "cwd": str(ROOT)})
        self.started.add(self)

    def client(self, **options: Any) -> AsyncKernelClient:  # type: ignore[override]
        """A client, the only one that executes a notebook; the last one's connection is closed."""
        self.hang_up()
        self._client = super().client(**options)
        return self._client

    def hang_up(self) -> None:
        if self._client is not None:
            self._client.stop_channels()
            self._client = None

    def begin(self) -> None:
        """A process, started where there is none, that is as a new one. Raises RuntimeError where none starts."""
        for attempt in range(1, STARTS + 1):
            try:
                if not self.has_kernel:
                    run_sync(self.start_kernel)()
                return self._renew()
            except RuntimeError:
                self.end()
                if attempt == STARTS:
                    raise
                time.sleep(attempt)

    def _renew(self) -> None:
        reply, _ = self._execute(FRESH)
        if reply["status"] != "ok":
            raise RuntimeError(reply.get("evalue", "it could not be made fresh"))

    def _execute(self, code: str) -> tuple[dict[str, Any], str]:
        """The reply to code that is no notebook's, and what it printed. Raises RuntimeError when the process dies."""
        printed, idle = [], False
        client = self.blocking_client()
        client.start_channels()
        try:
            client.wait_for_ready(timeout=READY)
            asked = client.execute(code, store_history=False, allow_stdin=False)
            while not idle:
                message = self._next(client.get_iopub_msg, asked)
                printed += [message["text"]] if message.get("name") == "stdout" else []
                idle = message.get("execution_state") == "idle"
            return self._next(client.get_shell_msg, asked), "".join(printed)
        finally:
            client.stop_channels()

    def _next(self, get: Callable[..., dict[str, Any]], asked: str) -> dict[str, Any]:
        """What the next message of one of a client's channels that answers a request says."""
        while True:
            try:
                message = get(timeout=ASKED_AGAIN)
            except Empty:
                if not run_sync(self.is_alive)():
                    raise RuntimeError(DIED) from None
                continue
            if message["parent_header"].get("msg_id") == asked:
                return message["content"]

    def run(self, code: str) -> str:
        """What code that is no notebook's prints, run with the modules and models that the process holds.

        Raises UserError as the code does and when the process dies, and for other errors RuntimeError, which is noted
        with their traceback.
        """
        self.begin()
        try:
            reply, printed = self._execute(code)
        except RuntimeError as died:
            raise UserError(str(died)) from None
        if reply["status"] == "ok":
            return printed
        if reply["ename"] == UserError.__name__:
            raise UserError(reply["evalue"])
        error = RuntimeError(f"{reply['ename']}: {reply['evalue']}")
        error.add_note("\n".join(reply["traceback"]))
        raise error

    def end(self) -> None:
        """End the process, which holds nothing that is not on disk; another can be begun."""
        self.hang_up()
        if self.has_kernel:
            run_sync(self.shutdown_kernel)(now=True)
            self.context = self._context_default()  # the first one's is closed with it

    @classmethod
    def end_all(cls) -> None:
        """Kill the processes."""
        for kernel in list(cls.started):
            process = getattr(kernel.provisioner, "process", None)
            if process is not None:
                process.kill()
            kernel.cleanup_connection_file()


@contextmanager
def kernels(folder: Path, fresh: bool = False) -> Iterator[Callable[[], OwnKernel]]:
    """Gives a function that gives the kernel of the next notebook: the same for all, or with `fresh` one for each.

    Their connection files lie in `folder`, which holds nothing else and is emptied: a runner that was killed leaves
    them. An error or an interruption kills the processes.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    current = OwnKernel(folder)

    def given() -> OwnKernel:
        nonlocal current
        if fresh:
            current.end()
            current = OwnKernel(folder)
        return current

    try:
        yield given
        current.end()
    except BaseException:
        OwnKernel.end_all()
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
