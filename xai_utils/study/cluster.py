"""Where cases are computed: in this process, or on a dask cluster. `computed` is the one way from jobs to results.

A worker loads a model the first time that a case asks for it and keeps it. The results come back to the caller, who
writes them into the cache, so that no folder has to be shared. Cases of a worker that is lost are computed elsewhere.
dask-jobqueue and dask-kubernetes start such clusters on SLURM and Kubernetes; dask sends pickles over the wire, so a
scheduler belongs into a network that one trusts.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from xai_utils.errors import UserError, first_line
from xai_utils.study.workers import local

if TYPE_CHECKING:  # the runner of notebooks imports this and no torch
    from xai_utils.models.entry import ModelEntry
    from xai_utils.models.loading import LoadedModel
    from xai_utils.study.jobs import Job

SCHEDULER = "XAI_SCHEDULER"  # the address that this process and the kernels it starts send cases to
AHEAD = 2  # cases sent for each thread of the cluster: one is computed, one waits, the rest are not made yet
PATIENCE = 10  # seconds to wait for a scheduler to answer

Outcome = str | Exception

_one_at_a_time = threading.Lock()  # methods set seeds and a model's passes use all threads


def computed(jobs: Iterator[Job], models: Mapping[str, LoadedModel]) -> Iterator[tuple[Job, Outcome]]:
    """Each job with its result or the error that it ended with, in any order; jobs are taken as they are needed."""
    address, first = os.environ.get(SCHEDULER), list(islice(jobs, 1))
    if not first:
        return iter(())
    asked = chain(first, jobs)
    return _remotely(asked, address) if address else _here(asked, models)


@contextmanager
def scheduler(address: str | None = None, workers: int | None = None) -> Iterator[None]:
    """Cases go to the scheduler at `address`, or to so many processes of this machine; with neither they stay here.

    Raises UserError when both are given or no scheduler answers.
    """
    if address and workers:
        raise UserError("--scheduler and --workers: both are given; name a cluster, or have one made here")
    with ExitStack() as open_until_then:
        if address:
            open_until_then.enter_context(_connected(address))
        if workers:
            address = open_until_then.enter_context(local(workers, max((os.cpu_count() or 1) // workers, 1)))
        if address:
            open_until_then.enter_context(_named(address))
        yield


@contextmanager
def _named(address: str) -> Iterator[None]:
    before = os.environ.get(SCHEDULER)
    os.environ[SCHEDULER] = address
    try:
        yield
    finally:
        os.environ.pop(SCHEDULER)
        if before is not None:
            os.environ[SCHEDULER] = before


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    from distributed import Client
    from distributed.comm import resolve_address

    try:
        resolve_address(address)  # a Client that cannot read it stays half open, and its collection can lock the next
        client = Client(address, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"--scheduler {address}: no answer from it ({first_line(error)}); expected the address of a running dask "
            "scheduler, such as tcp://127.0.0.1:8786"
        ) from None
    with client:
        yield client


def _here(jobs: Iterator[Job], models: Mapping[str, LoadedModel]) -> Iterator[tuple[Job, Outcome]]:
    for job in jobs:
        yield job, _outcome(job, [models[case.model] for case in job.cases])


def _outcome(job: Job, models: list[LoadedModel]) -> Outcome:
    try:
        return job.run(*models)
    except Exception as error:
        return error


def _remotely(jobs: Iterator[Job], address: str) -> Iterator[tuple[Job, Outcome]]:
    from distributed import as_completed

    with _connected(address) as client:
        sent: dict[Any, Job] = {}
        done = as_completed(loop=client.loop)

        def send() -> None:
            free = max(AHEAD * sum(client.nthreads().values()), 1) - len(sent)
            for job in islice(jobs, max(free, 0)):
                future = client.submit(_on_worker, job, pure=False)
                sent[future] = job
                done.add(future)

        send()
        for future in done:
            yield sent.pop(future), _fetched(future, address)
            send()


def _fetched(future: Any, address: str) -> Outcome:
    from distributed.scheduler import KilledWorker

    if future.status == "cancelled":
        raise UserError(f"the scheduler at {address} is gone; start it again and run again: what came back is kept")
    error = future.exception()
    if isinstance(error, KilledWorker):
        return UserError("each worker that took it was lost, most likely for lack of memory; use larger workers")
    return error or str(future.result())


def _on_worker(job: Job) -> str:
    from xai_utils.study.jobs import makers

    with _one_at_a_time:
        pairs = zip(job.entries, job.references, strict=True)
        models = [dataclasses.replace(_loaded(entry), reference=reference) for entry, reference in pairs]
        for model, asked in zip(models, job.makers, strict=True):
            own = makers(model, job.function)
            if other := [name for name in own if own[name] != asked[name]]:
                raise UserError(
                    f"the worker's {' and '.join(other)} differ from those of the process that asks; expected the same "
                    "package, libraries, model files and kind of device on every machine of a cluster"
                )
        return job.run(*models)


@functools.cache
def _loaded(entry: ModelEntry) -> LoadedModel:
    import torch
    from distributed import get_worker

    from xai_utils.models.loading import load

    torch.set_num_threads(get_worker().state.nthreads)  # dask starts a worker with one, however many are its own
    return load(entry)
