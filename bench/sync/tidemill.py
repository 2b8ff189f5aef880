"""Our side: `tidemill sync run` in the foreground, with a data folder of its own for each run."""
import os
import pathlib
import shutil
import signal
import subprocess

from servers import PASSWORD

FILE = """[sync.b]
from = {{ url = "{source}", password = "${{env:BENCH_PW}}" }}
to = {{ url = "{target}", password = "${{env:BENCH_PW}}" }}
tables = ["{table}"]
"""


class Tidemill:
    name = "Tidemill"

    def __init__(self, dir, binary):
        self.dir, self.binary, self.process = pathlib.Path(dir), binary, None
        self.dir.mkdir()

    def pids(self):
        return [self.process.pid] if self.process else []

    def prepare(self, source, target, run):
        table = "public.bench" if source.kind == "pg" else "bench"
        self.file = self.dir / f"{run}.toml"
        self.file.write_text(FILE.format(source=source.url("bench"), target=target.url("bench"), table=table))
        self.data = self.dir / run

    def begin(self):
        self.log = open(f"{self.data}.log", "w")
        command = [self.binary, "sync", "run", str(self.file), "--data-dir", str(self.data)]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log, env={**os.environ, "BENCH_PW": PASSWORD})

    def fault(self):
        if self.process.poll() is None:
            return None
        return f"it ended with {self.process.returncode}: " + pathlib.Path(f"{self.data}.log").read_text()[-600:]

    def freeze(self, on):
        os.kill(self.process.pid, signal.SIGSTOP if on else signal.SIGCONT)

    def end(self):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process = None
        shutil.rmtree(self.data, ignore_errors=True)

    def version(self):
        profile = next((p for p in ("release", "dist", "debug") if f"/{p}/" in os.path.realpath(self.binary)), "unknown")
        said = subprocess.run([self.binary, "--version"], capture_output=True, text=True).stdout.strip()
        return f"{said} ({'dev' if profile == 'debug' else profile} profile)"

    def close(self):
        self.end()
