"""The process that executes notebooks: this interpreter, started once and made fresh for each of them.

Importing torch and loading two models takes longer than most notebooks whose results are kept.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any, ClassVar
from weakref import WeakSet

from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import run_sync

from xai_utils.files import ROOT

ENVIRONMENT = {
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    "XAI_HEADLESS": "1",  # the runner's line is the only one, and no widget is built
}
STARTS = 3  # two kernels that start at once can pick one port (papermill issue 511)
READY = 120  # seconds that a kernel may take to answer
FRESH = "from xai_utils.study.namespace import renew; renew()"


class OwnKernel(AsyncKernelManager):
    """A kernel of the running interpreter, whatever kernels are installed beside it, in the repository's root."""

    started: ClassVar[WeakSet[OwnKernel]] = WeakSet()

    @property
    def kernel_spec(self) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=CRITICAL"]
        return KernelSpec(argv=argv, display_name="Python 3", language="python")

    async def start_kernel(self, **options: Any) -> None:  # type: ignore[override]
        """Start it with figures inline, also where the caller's MPLBACKEND says otherwise."""
        await super().start_kernel(**options | {"env": os.environ | ENVIRONMENT, "cwd": str(ROOT)})
        self.started.add(self)

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
        client = self.blocking_client()
        client.start_channels()
        try:
            client.wait_for_ready(timeout=READY)
            reply = client.execute(FRESH, silent=True, reply=True, timeout=READY)["content"]
        finally:
            client.stop_channels()
        if reply["status"] != "ok":
            raise RuntimeError(reply.get("evalue", "it could not be made fresh"))

    def end(self) -> None:
        """End the process, which holds nothing that is not on disk; another can be begun."""
        if self.has_kernel:
            run_sync(self.shutdown_kernel)(now=True)
            self.context = self._context_default()  # the first one's is closed with it

    @classmethod
    def end_all(cls) -> None:
        """Kill the processes."""
        for process in [getattr(kernel.provisioner, "process", None) for kernel in cls.started]:
            if process is not None:
                process.kill()
