"""What a run cost: wall time, CPU seconds of all processes, told apart by whose they are."""
import os
import resource
import time

from servers import cpu_seconds


def children_ended():
    use = resource.getrusage(resource.RUSAGE_CHILDREN)
    return use.ru_utime + use.ru_stime


class Cost:
    """Open over the work; `tool` gives the process ids of the side; without it, they are clients that end inside."""

    def __init__(self, source, target, tool=None):
        self.source, self.target, self.tool = source, target, tool

    def now(self):
        tool = sum(map(cpu_seconds, self.tool())) if self.tool else children_ended()
        # A route from a server to itself does not exist; readers have no target.
        return time.monotonic(), tool, self.source.cpu(), self.target.cpu() if self.target else 0.0

    def __enter__(self):
        self.load, self.before = os.getloadavg()[0], self.now()
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        if not hasattr(self, "wall"):
            self.wall, self.cpu, self.cpu_source, self.cpu_target = (a - b for a, b in zip(self.now(), self.before))

    @property
    def cpu_all(self):
        return self.cpu + self.cpu_source + self.cpu_target


def fdatasync_ms(folder, times=100):
    """Median and 99th percentile of appending 1,024 bytes durably, now."""
    path, took = os.path.join(folder, "fdatasync"), []
    file = os.open(path, os.O_CREAT | os.O_WRONLY)
    for n in range(times):
        os.pwrite(file, b"x" * 1024, n * 1024)
        start = time.monotonic()
        os.fdatasync(file)
        took.append((time.monotonic() - start) * 1000)
    os.close(file)
    os.unlink(path)
    return percentile(took, 50), percentile(took, 99)


def percentile(values, percent):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * percent / 100))]
