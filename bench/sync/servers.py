"""The database servers of the bench: started on scratch folders as unprivileged users, durable as their defaults say.

Every route reads from one server and writes to another, so that the CPU seconds of source and target are told apart.
"""
import os
import pathlib
import shutil
import socket
import subprocess
import time

PG = pathlib.Path(os.environ.get("PG_BIN", "/usr/lib/postgresql/15/bin"))
PASSWORD = "bench"
TICK = os.sysconf("SC_CLK_TCK")
ROOT = os.getuid() == 0


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def cpu_seconds(pid):
    """CPU seconds of a process and all below it, those that ended included: a parent that waits for its children has theirs."""
    fields, children = {}, {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat") as f:
                rest = f.read().rsplit(")", 1)[1].split()
        except OSError:
            continue
        fields[int(entry)] = sum(map(int, rest[11:15]))
        children.setdefault(int(rest[1]), []).append(int(entry))
    total, todo = 0, [pid]
    while todo:
        each = todo.pop()
        total += fields.get(each, 0)
        todo += children.get(each, [])
    return total / TICK


class Session:
    """A client that stays: statements in, rows of text out."""

    END = "__end_of_answer__"

    def __init__(self, command, end, env=None):
        self.end = end
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

    def ask(self, sql):
        self.process.stdin.write(f"{sql};\n{self.end}\n")
        self.process.stdin.flush()
        rows = []
        while True:
            line = self.process.stdout.readline()
            if not line:
                raise RuntimeError(f"the client stopped at: {sql[:200]}")
            line = line.rstrip("\n")
            if line == self.END:
                return rows
            rows.append(line)

    def one(self, sql):
        rows = self.ask(sql)
        return rows[0] if rows else None

    def close(self):
        self.process.stdin.close()
        self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Server:
    def cpu(self):
        return cpu_seconds(self.process.pid)

    def ready(self):
        for _ in range(600):
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.dir} did not start: see {self.dir}.log")
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.1)
        raise RuntimeError(f"{self.dir} does not answer")

    def exec(self, sql, db=None):
        with self.session(db or self.admin) as session:
            return session.ask(sql)

    def prepare(self, dir, user):
        self.dir, self.port, self.user = pathlib.Path(dir), free_port(), user if ROOT else None
        self.dir.mkdir()
        if ROOT:
            shutil.chown(self.dir, user, user)
        self.log = open(f"{dir}.log", "w")

    def run(self, command, **more):
        extra = {"user": self.user, "group": self.user, "extra_groups": []} if ROOT else {}
        return subprocess.Popen([str(c) for c in command], stdout=self.log, stderr=self.log, cwd=self.dir, **extra, **more)

    def stop(self, signal):
        if self.process.poll() is None:
            self.process.send_signal(signal)
            self.process.wait()


class Postgres(Server):
    kind, admin, name = "pg", "postgres", "PostgreSQL"
    SETTINGS = {
        "wal_level": "logical", "fsync": "on", "synchronous_commit": "on", "shared_buffers": "512MB",
        "max_wal_size": "4GB", "checkpoint_timeout": "30min", "max_replication_slots": "20", "max_wal_senders": "20",
        "wal_sender_timeout": "5min",
    }

    def __init__(self, dir):
        self.prepare(dir, "postgres")
        pwfile = self.dir / "password"
        pwfile.write_text(PASSWORD)
        pwfile.chmod(0o644)
        data = self.dir / "data"
        if self.run([PG / "initdb", "-D", data, "-U", "bench", "--pwfile", pwfile, "-A", "scram-sha-256", "-E", "UTF8",
                     "--locale=C.UTF-8"]).wait():
            raise RuntimeError(f"initdb failed: see {dir}.log")
        settings = [w for k, v in self.SETTINGS.items() for w in ("-c", f"{k}={v}")]
        self.process = self.run([PG / "postgres", "-D", data, "-p", self.port, "-k", self.dir, *settings])
        self.ready()
        for _ in range(50):
            if subprocess.run([str(PG / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]).returncode == 0:
                break
            time.sleep(0.1)

    @property
    def env(self):
        return {**os.environ, "PGPASSWORD": PASSWORD, "PGTZ": "UTC", "PGOPTIONS": "-c client_min_messages=warning"}

    def client(self, db, program="psql"):
        return [str(PG / program), "-h", "127.0.0.1", "-p", str(self.port), "-U", "bench", "-d", db]

    def session(self, db):
        command = self.client(db) + ["-XqAt", "-F", "\t", "-v", "ON_ERROR_STOP=1"]
        return Session(command, f"\\echo {Session.END}", self.env)

    def url(self, db):
        return f"postgres://bench@127.0.0.1:{self.port}/{db}"

    def fresh(self, full):
        """An empty database for a run, or one with the table as it was before all runs."""
        for slot in self.exec("SELECT slot_name FROM pg_replication_slots"):
            self.exec(f"SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{slot}'")
            for _ in range(50):
                if self.one_shot(f"SELECT pg_drop_replication_slot('{slot}')"):
                    break
                time.sleep(0.2)
        self.exec("DROP DATABASE IF EXISTS bench WITH (FORCE)")
        self.exec("CREATE DATABASE bench" + (" TEMPLATE seed" if full else ""))
        self.exec("CHECKPOINT")

    def one_shot(self, sql):
        return subprocess.run(self.client(self.admin) + ["-Xqc", sql], env=self.env, stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL).returncode == 0

    def version(self):
        return "PostgreSQL " + self.exec("SHOW server_version")[0].split()[0]

    def close(self):
        self.stop(2)


class MariaDb(Server):
    kind, admin, name = "my", "mysql", "MariaDB"
    SETTINGS = {
        "log-bin": "bin", "binlog-format": "ROW", "binlog-row-image": "FULL", "server-id": "1", "sync-binlog": "1",
        "innodb-flush-log-at-trx-commit": "1", "innodb-buffer-pool-size": "512M", "innodb-log-file-size": "1G",
        "max-binlog-size": "1G", "binlog-row-metadata": "FULL", "local-infile": "1", "character-set-server": "utf8mb4", "default-time-zone": "+00:00",
        "max-allowed-packet": "64M", "skip-name-resolve": "1",
    }

    def __init__(self, dir):
        self.prepare(dir, "mysql")
        data = self.dir / "data"
        install = shutil.which("mariadb-install-db") or shutil.which("mysql_install_db")
        base = ["--no-defaults", f"--datadir={data}"]
        if self.run([install, *base, "--auth-root-authentication-method=normal", "--skip-test-db"]).wait():
            raise RuntimeError(f"mariadb-install-db failed: see {dir}.log")
        script = self.dir / "init.sql"
        script.write_text(f"CREATE USER bench@'%' IDENTIFIED BY '{PASSWORD}';\nGRANT ALL ON *.* TO bench@'%';\n")
        settings = [f"--{k}={v}" for k, v in self.SETTINGS.items()]
        mariadbd = shutil.which("mariadbd") or "/usr/sbin/mariadbd"
        self.process = self.run([mariadbd, *base, f"--port={self.port}", f"--socket={self.dir}/s", "--bind-address=127.0.0.1",
                                 f"--init-file={script}", *settings])
        self.ready()

    @property
    def env(self):
        return {**os.environ, "MYSQL_PWD": PASSWORD}

    def client(self, db, program="mariadb"):
        command = [program, "--no-defaults", "-h", "127.0.0.1", "-P", str(self.port), "-u", "bench"]
        return command + ([] if program == "mariadb-binlog" else ["--local-infile=1", "--default-character-set=utf8mb4", "-D", db])

    def session(self, db):
        return Session(self.client(db) + ["-BNn", "--quick"], f"SELECT '{Session.END}';", self.env)

    def url(self, db):
        return f"mysql://bench@127.0.0.1:{self.port}/{db}"

    def fresh(self, full):
        self.exec("DROP DATABASE IF EXISTS bench; CREATE DATABASE bench")
        if full:
            self.exec("SET sql_log_bin=0; CREATE TABLE bench LIKE seed.bench; INSERT INTO bench SELECT * FROM seed.bench", "bench")
            for line in (pathlib.Path(__file__).parent / "change.mariadb.sql").read_text().split("//"):
                if line.strip():
                    self.exec(f"DELIMITER //\n{line.strip()}//\nDELIMITER ", "bench")

    def durable(self, on):
        """The load of changes is written without a sync per commit, or it would be the disk that is measured."""
        self.exec(f"SET GLOBAL sync_binlog={int(on)}; SET GLOBAL innodb_flush_log_at_trx_commit={1 if on else 2}")

    def version(self):
        return "MariaDB " + self.exec("SELECT version()")[0].split("-")[0]

    def close(self):
        self.stop(15)
