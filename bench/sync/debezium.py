"""The peer: one Kafka broker, one Kafka Connect worker with Debezium's sources and its JDBC sink; settings in debezium/."""
import json
import os
import pathlib
import signal
import string
import subprocess
import time
import urllib.error
import urllib.request

from servers import PASSWORD, free_port
from table import CREATE

SETTINGS = pathlib.Path(__file__).parent / "debezium"
LOGGING = """<Configuration><Appenders><Console name="out"><PatternLayout pattern="%d %p %c %m%n"/></Console></Appenders>
<Loggers><Root level="WARN"><AppenderRef ref="out"/></Root></Loggers></Configuration>"""


class Debezium:
    name = "Kafka Connect with Debezium"

    def __init__(self, dir, jars):
        self.dir, self.jars = pathlib.Path(dir), jars
        self.dir.mkdir()
        self.values = {"dir": str(self.dir), "password": PASSWORD, "broker_port": free_port(), "controller_port": free_port(),
                       "rest_port": free_port()}
        self.log = open(self.dir / "log.txt", "w")
        (self.dir / "log4j2.xml").write_text(LOGGING)
        broker = self.write("broker.properties")
        self.java(["kafka.tools.StorageTool", "format", "-t", "MkU3OEVBNTcwNTJENDM2Qg", "-c", broker]).wait()
        self.broker = self.java(["kafka.Kafka", broker], "-Xmx1g", "-Xms1g")
        worker = self.write("worker.properties")
        self.worker = self.java(["org.apache.kafka.connect.cli.ConnectStandalone", worker], "-Xmx2g", "-Xms1g")
        try:
            self.until(self.answers, "Kafka Connect does not start", 120)
        except BaseException:
            self.close()
            raise

    def answers(self):
        try:
            return self.rest("GET", "/connectors") is not None
        except RuntimeError:
            return False  # its pages are not there yet

    def write(self, name):
        path = self.dir / name
        path.write_text(self.filled(name))
        return str(path)

    def filled(self, name, **more):
        return string.Template((SETTINGS / name).read_text()).substitute(self.values, **more)

    def java(self, what, *flags):
        command = ["java", *flags, "-XX:+UseG1GC", "-Duser.timezone=UTC", f"-Dlog4j2.configurationFile={self.dir}/log4j2.xml",
                   "-cp", f"{self.jars}/*", *what]
        return subprocess.Popen(command, stdout=self.log, stderr=self.log, cwd=self.dir)

    def pids(self):
        return [self.broker.pid, self.worker.pid]

    def rest(self, method, path, body=None):
        request = urllib.request.Request(f"http://127.0.0.1:{self.values['rest_port']}{path}", method=method,
                                         data=body and json.dumps(body).encode(), headers={"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.loads(answer.read() or b"{}")
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{method} {path}: {error.read().decode()[:500]}") from None
        except (urllib.error.URLError, OSError):
            return None

    def until(self, true, complaint, seconds):
        end = time.monotonic() + seconds
        while not true():
            if time.monotonic() > end or self.worker.poll() is not None or self.broker.poll() is not None:
                raise RuntimeError(f"{complaint}: see {self.dir}/log.txt")
            time.sleep(0.2)

    def prepare(self, source, target, run):
        """Before the clock: the target's table, as the sink's guide advises for a schema of one's own."""
        target.exec(CREATE[target.kind], "bench")
        if target.kind == "pg":
            url = f"jdbc:postgresql://127.0.0.1:{target.port}/bench?reWriteBatchedInserts=true"
        else:
            url = f"jdbc:mariadb://127.0.0.1:{target.port}/bench?useBulkStmts=true"
        more = {"run": run, "source_port": source.port, "target_url": url,
                "topic": f"{run}.{'public' if source.kind == 'pg' else 'bench'}.bench"}
        self.connectors = {f"{run}-source": json.loads(self.filled(f"source-{source.kind}.json", **more)),
                           f"{run}-sink": json.loads(self.filled("sink.json", **more))}

    def begin(self):
        for name, settings in self.connectors.items():
            if self.rest("PUT", f"/connectors/{name}/config", settings) is None:
                raise RuntimeError("Kafka Connect does not answer")

    def fault(self):
        for name in self.connectors:
            status = self.rest("GET", f"/connectors/{name}/status") or {}
            for task in status.get("tasks", []) + [status.get("connector", {})]:
                if task.get("state") == "FAILED":
                    return task.get("trace", "failed")[:600]
        return None

    def freeze(self, on):
        os.kill(self.worker.pid, signal.SIGSTOP if on else signal.SIGCONT)

    def end(self):
        for name in self.rest("GET", "/connectors") or []:
            self.rest("DELETE", f"/connectors/{name}")
        time.sleep(2)

    def version(self):
        text = (SETTINGS / "pom.xml").read_text()
        of = lambda name: text.split(f"<{name}>")[1].split("<")[0]
        java = subprocess.run(["java", "-version"], capture_output=True, text=True).stderr.split('"')[1]
        return f"Apache Kafka {of('kafka')}, Debezium {of('debezium')}, Java {java}"

    def close(self):
        for process in (self.worker, self.broker):
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
