"""Shards written by several processes: started as `python -m ssd_tf.records.worker`, fed through pipes.

A plain subprocess rather than multiprocessing: it never imports the caller's main module again, and it ends
when its parent does, however that ended.
"""

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ssd_tf.errors import EnvironmentFault, SsdError
from ssd_tf.records import shard


def write_shards(jobs, num_workers, tick):
    """Writes shards, several at once.

    Args:
      jobs: list of shard.ShardJobs.
      num_workers: processes; 1 writes in this one.
      tick: function (number of images done since the last call), called by one thread at a time.

    Yields:
      (manifest entry, Report) of each job, in order.

    Raises:
      EnvironmentFault: disk full, not writable, or a process was killed.
    """
    if num_workers == 1:
        yield from (shard.write_shard(job, tick) for job in jobs)
        return
    idle, lock = queue.SimpleQueue(), threading.Lock()
    workers = [_Worker() for _ in range(num_workers)]
    for worker in workers:
        idle.put(worker)

    def tick_in_turn(count):
        with lock:
            tick(count)

    def write(job):
        worker = idle.get()
        try:
            return worker.write_shard(job, tick_in_turn)
        finally:
            idle.put(worker)

    pool = ThreadPoolExecutor(num_workers)
    try:
        yield from pool.map(write, jobs)
    finally:
        for worker in workers:  # idle, or in the way of leaving
            worker.kill()
        pool.shutdown(cancel_futures=True)


class _Worker:
    """A process that writes shards, seen from its parent."""

    def __init__(self):
        package = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join([package, *filter(os.path.isabs, sys.path)])
        self._process = subprocess.Popen(
            # -P: a module that lies in the working directory is never imported.
            [sys.executable, "-P", "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
        )

    def write_shard(self, job, tick):
        """As shard.write_shard."""
        try:
            _send(self._process.stdin, job)
            while True:
                kind, value = pickle.load(self._process.stdout)  # noqa: S301 - our own process wrote it
                if kind == "done":
                    return value
                if kind == "error":
                    raise value
                tick(value)
        except (EOFError, OSError, pickle.UnpicklingError):
            raise EnvironmentFault(
                "a worker process ended unexpectedly (killed, or out of memory?); --workers=1 does without"
            ) from None

    def kill(self):
        """Ends the process at once; what it was writing has no final name yet."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):  # a job that was never read
                pipe.close()


def _send(pipe, value):
    pickle.dump(value, pipe)
    pipe.flush()


def main():
    """Writes the shards that the parent process asks for, until it asks no more or is gone."""
    with contextlib.suppress(BrokenPipeError):
        _serve()


def _serve():
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    jobs, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever is printed must not end up among the answers
    while True:
        try:
            job = pickle.load(jobs)  # noqa: S301 - our own parent wrote it
        except EOFError:
            return
        try:
            answer = "done", shard.write_shard(job, lambda count: _send(answers, ("tick", count)))
        except SsdError as error:
            answer = "error", error
        _send(answers, answer)


if __name__ == "__main__":
    main()
