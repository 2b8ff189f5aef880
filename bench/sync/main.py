"""`make bench-sync`: Tidemill's syncs beside the databases' own clients and beside Kafka Connect with Debezium.

Settings are environment variables, see SETTINGS. Prints one report in Markdown; progress goes to stderr.
"""
import datetime
import os
import pathlib
import shutil
import sys
import tempfile
import traceback

import by_hand
import follow
import report
from debezium import Debezium
from measure import fdatasync_ms
from servers import MariaDb, Postgres
from table import seed
from tidemill import Tidemill

SETTINGS = {
    "ROWS": "300000", "CHANGES": "100000", "READ": "300000", "ROUNDS": "3", "LATENCY_SECONDS": "20", "LIMIT": "600",
    "ROUTES": "pg-my pg-pg", "SIDES": "hand debezium tidemill", "TIDEMILL": "", "JARS": "", "WARM_UP": "2",
}


class Bench:
    def __init__(self, dir):
        given = {k: os.environ.get(k) or v for k, v in SETTINGS.items()}
        self.rows, self.changes, self.read, self.rounds, self.seconds, self.limit = (
            int(given[k]) for k in ("ROWS", "CHANGES", "READ", "ROUNDS", "LATENCY_SECONDS", "LIMIT"))
        if self.changes > self.rows:
            sys.exit("CHANGES is larger than ROWS: a delete would find no row")
        self.routes, self.sides, self.given, self.dir = given["ROUTES"].split(), given["SIDES"].split(), given, dir
        self.results, self.latencies, self.disks, self.followers = [], [], [], {}

    def say(self, text):
        print(f"{datetime.datetime.now():%H:%M:%S} {text}", file=sys.stderr, flush=True)

    def start(self):
        self.say("servers")
        self.servers = [Postgres(f"{self.dir}/source-pg")]
        if any(r.endswith("-pg") for r in self.routes):
            self.servers.append(Postgres(f"{self.dir}/target-pg"))
        if any("my" in r for r in self.routes):
            self.servers.append(MariaDb(f"{self.dir}/my"))
        of = lambda kind, n=0: [s for s in self.servers if s.kind == kind][n]
        ends = {"pg-my": lambda: (of("pg"), of("my")), "pg-pg": lambda: (of("pg"), of("pg", 1)), "my-pg": lambda: (of("my"), of("pg", 1))}
        self.ends = {route: ends[route]() for route in self.routes}
        my = next((s for s in self.servers if s.kind == "my"), None)
        self.row_bytes = seed(of("pg"), my, self.rows)
        if "debezium" in self.sides:
            self.say("Kafka and Kafka Connect")
            self.followers["debezium"] = Debezium(f"{self.dir}/debezium", self.given["JARS"])
        if "tidemill" in self.sides:
            self.followers["tidemill"] = Tidemill(f"{self.dir}/tidemill", self.given["TIDEMILL"])

    def fresh(self, route):
        for server in self.servers:
            server.fresh(full=server is self.ends[route][0])
        disk = fdatasync_ms(self.dir)
        self.disks.append(disk)

    def keep(self, route, work, side, rows, cost, equal, counted=True):
        made = f"{rows / cost.wall:,.0f}/s, {rows / max(cost.cpu_all, 0.01):,.0f} per CPU s"
        self.say(f"{route}: {work}: {side}: {made}{'' if equal else ', UNEQUAL'}{'' if counted else ' (warm-up)'}")
        if counted:
            self.results.append({"route": route, "work": work, "side": side, "rows": rows, "cost": cost, "equal": equal})

    def fail(self, route, work, side, error):
        self.say(f"{route}: {work}: {side}: {error}")
        self.results.append({"route": route, "work": work, "side": side, "fault": str(error).split("\n")[0][:200]})

    def by_hand(self, route):
        source, target = self.ends[route]
        merge = "COPY, then INSERT ON CONFLICT" if target.kind == "pg" else "LOAD DATA, then INSERT ON DUPLICATE KEY"
        ways = [(f"by hand: {merge}", lambda: by_hand.first_copy(source, target, True)),
                (f"by hand: {'COPY' if target.kind == 'pg' else 'LOAD DATA'} alone", lambda: by_hand.first_copy(source, target, False))]
        if source.kind == "pg" and target.kind == "my":
            ways.append(("by hand: upserts of 1,000 rows, from a file", lambda: by_hand.upserts(source, target, self.dir)))
        for name, way in ways:
            try:
                self.fresh(route)
                cost = way()
                self.keep(route, "first copy", name, self.rows, cost, follow.equal(source, target))
            except Exception as error:
                self.fail(route, "first copy", name, error)

    def readers(self, route):
        source = self.ends[route][0]
        if source.kind == "pg":
            ways = [("pg_recvlogical to nowhere", lambda: by_hand.pg_recvlogical(source, self.rows, self.read))]
        else:
            ways = [("mariadb-binlog, raw", lambda: by_hand.binlog_reader(source, self.rows, self.read, False, self.dir)),
                    ("mariadb-binlog, decoded, to nowhere", lambda: by_hand.binlog_reader(source, self.rows, self.read, True, self.dir))]
        for name, way in ways:
            try:
                self.fresh(route)
                self.keep(source.name, "read changes", name, self.read, way(), True)
            except Exception as error:
                self.fail(source.name, "read changes", name, error)

    def follower(self, route, name, number, counted=True, latency=False):
        side, (source, target) = self.followers[name], self.ends[route]
        work = "first copy"
        try:
            self.fresh(route)
            run = f"{name[:1]}{route.replace('-', '')}{number}"
            cost, equal = follow.first_copy(side, source, target, run, self.rows, self.limit)
            self.keep(route, work, side.name, self.rows, cost, equal, counted)
            work = "changes"
            cost, equal = follow.backlog(side, source, target, self.rows, 0, self.changes, self.limit)
            self.keep(route, work, side.name, self.changes, cost, equal, counted)
            if latency:
                work = "latency"
                self.latency(route, side, source, target)
        except Exception as error:
            traceback.print_exc()
            self.fail(route, work, side.name, error)
        finally:
            side.end()

    def latency(self, route, side, source, target):
        all = [r for r in self.results if r["route"] == route and r["work"] == "changes" and "cost" in r and r["equal"]]
        own = {s: report.median([r["rows"] / r["cost"].wall for r in all if r["side"] == s]) for s in {r["side"] for r in all}}
        low = self.changes
        for half in sorted({round(own[side.name] / 2), round(min(own.values()) / 2)}):
            low = (low + 9) // 10 * 10
            values, made, equal = follow.latency(side, source, target, self.rows, low, half, self.seconds, self.limit)
            self.latencies.append({"route": route, "side": side.name, "asked": half, "made": made, "ms": values, "equal": equal,
                                   "load": os.getloadavg()[0]})
            self.say(f"{route}: {side.name}: {report.latency_words(values)} at {made:,.0f} changes/s{'' if equal else ', UNEQUAL'}")
            low += int(half * self.seconds * 1.1) + 1000

    def run(self):
        for route in self.routes:
            # A JVM is slow until it has seen the work a few times; ours is measured from a cold start all the same.
            if "debezium" in self.followers:
                for turn in range(int(self.given["WARM_UP"])):
                    self.follower(route, "debezium", f"warm{turn}", counted=False)
            for number in range(1, self.rounds + 1):
                self.say(f"{route}: round {number} of {self.rounds}, load {os.getloadavg()[0]:.1f}")
                if "hand" in self.sides:
                    self.by_hand(route)
                    source = self.ends[route][0]
                    if all(self.ends[before][0] is not source for before in self.routes[:self.routes.index(route)]):
                        self.readers(route)
                for name in self.followers:
                    # Latency is taken in the last round, at half of what the rounds before it sustained.
                    self.follower(route, name, number, latency=number == self.rounds)

    def close(self):
        for each in [*self.followers.values(), *getattr(self, "servers", [])]:
            each.close()


def main():
    dir = tempfile.mkdtemp(prefix="bench-sync-", dir=os.environ.get("DIR") or None)
    os.chmod(dir, 0o755)
    bench = Bench(dir)
    try:
        bench.start()
        bench.run()
        print(report.text(bench))
    finally:
        bench.close()
        if os.environ.get("KEEP"):
            bench.say(f"kept: {dir}")
        else:
            shutil.rmtree(dir, ignore_errors=True)


if __name__ == "__main__":
    main()
