"""The other program: what writes the sources, judges the replicas and produces lines. Python's own SQLite does the work."""
import http.client, json, os, random, select, socket, sqlite3, sys, time


def connect(path):
    return sqlite3.connect(path, isolation_level=None, timeout=20)


def name(text):
    return '"' + text.replace('"', '""') + '"'


def dump(path):
    """Every application table, row by row in key order, as SQLite itself quotes it."""
    conn = connect(path)
    conn.text_factory = lambda b: b.decode("latin1")
    out = {}
    # Schema text is UTF-8, whatever the rows hold.
    for (table,) in conn.execute("select name from sqlite_schema where type = 'table'").fetchall():
        table = table.encode("latin1").decode()
        if table.startswith(("sqlite_", "_tm_", "_tidemill")):
            continue
        info = [(r[1].encode("latin1").decode(), r[5]) for r in conn.execute(f"pragma table_xinfo({name(table)})")]
        columns = ", ".join(f"quote({name(c)}), typeof({name(c)})" for c, _ in info)
        key = ", ".join(f"quote({name(c)})" for c, pk in sorted(info, key=lambda i: i[1]) if pk)
        order = f" order by {key}" if key else ""
        out[table] = [list(r) for r in conn.execute(f"select {columns} from {name(table)}{order}")]
    return out


def latency(source, target, count):
    """Changes one row after another; how many milliseconds after the commit a reader of the replica sees each."""
    s, t, rng, taken = connect(source), connect(target), random.Random(7), []
    see = lambda id: t.execute("select v from item where id = ?", (id,)).fetchone()
    for i in range(count):
        id = 1000 + i // 3
        if i % 3 == 0:
            s.execute("insert into item values (?, ?)", (id, f"new {i}")); want = (f"new {i}",)
        elif i % 3 == 1:
            s.execute("update item set v = ? where id = ?", (f"changed {i}", id)); want = (f"changed {i}",)
        else:
            s.execute("delete from item where id = ?", (id,)); want = None
        at = time.monotonic()
        while see(id) != want:
            if time.monotonic() - at > 20:
                sys.exit(f"change {i} is not visible after 20 s")
            time.sleep(0.001)
        taken.append((time.monotonic() - at) * 1000)
        # Not a wait for anything: changes must come at any moment of the follower's rhythm.
        time.sleep(rng.random() * 0.04)
    return taken


SCHEMA = [
    "create table account (id integer primary key, v any, note text, stamp integer not null)",
    'create table "order line" (o int not null, n int not null, item text, stamp integer not null, primary key (o, n)) without rowid',
    "create table tag (name text not null primary key, stamp integer not null)",
]


class Ledger:
    """A file of JSON lines, each on the disk before the next thing happens."""

    def __init__(self, path):
        self.file = open(path, "a")

    def write(self, line):
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        os.fdatasync(self.file.fileno())


def told():
    """What came on standard input meanwhile; None when it was closed."""
    if not select.select([sys.stdin], [], [], 0)[0]:
        return b""
    return os.read(0, 4096) or None


class Writer:
    """Writes transactions. Every version of a row carries a stamp that is never used again, so a change can be told from
    every other; those rolled back burn theirs."""

    def __init__(self, path, ledger, seed):
        self.conn, self.ledger, self.rng = connect(path), Ledger(ledger), random.Random(seed)
        self.stamp, self.rows = 0, {}

    def make(self, mode, rows):
        self.conn.execute(f"pragma journal_mode = {mode}")
        base = []
        self.conn.execute("begin")
        for sql in SCHEMA:
            self.conn.execute(sql)
        for i in range(rows):
            kind = ("account", "account", "account", "order line", "tag")[i % 5]
            key = self.new_key(kind, i)
            base.append({"t": kind, "k": key, "stamp": self.put(kind, key, "insert")})
        self.conn.execute("commit")
        self.ledger.write({"base": base})

    def new_key(self, kind, i=None):
        i = self.rng.randrange(10**7, 10**9) if i is None else i
        if kind == "account":
            return {"id": i}
        return {"o": i // 7, "n": i} if kind == "order line" else {"name": self.rng.choice(["", "é", "a b", "'q\""]) + str(i)}

    def next_stamp(self):
        self.stamp += 1
        return self.stamp

    def put(self, kind, key, verb):
        stamp, k = self.next_stamp(), list(key.values())
        note = self.rng.choice([None, "", "plain", "naïve Größe 表", "x" * 200])
        if kind == "account":
            v = self.rng.choice([None, 1, -2**63, 0.1, 1e300, "text", b"\0\xff", "1"])
            self.conn.execute(f"{verb} into account values (?, ?, ?, ?)", (k[0], v, note, stamp))
        elif kind == "order line":
            self.conn.execute(f'{verb} into "order line" values (?, ?, ?, ?)', (k[0], k[1], note, stamp))
        else:
            self.conn.execute(f"{verb} into tag values (?, ?)", (k[0], stamp))
        self.rows.setdefault(kind, {})[json.dumps(key)] = stamp
        return stamp

    def change(self, tx):
        rng = self.rng
        kind = rng.choice(list(self.rows))
        rows = self.rows[kind]
        where = {"account": "id = ?", "order line": "o = ? and n = ?", "tag": "name = ?"}[kind]
        what = rng.choice("iiuuuudkr")
        if what == "i" or not rows:
            key = self.new_key(kind)
            if json.dumps(key) not in rows:
                tx.append({"t": kind, "k": key, "was": None, "stamp": self.put(kind, key, "insert")})
            return
        # Rows of this transaction are changed again, rows that a copy has just read or is about to are as likely as any.
        mine = [c["k"] for c in tx if c["t"] == kind and json.dumps(c["k"]) in rows]
        text = json.dumps(rng.choice(mine)) if mine and rng.random() < 0.3 else self.any_key(kind)
        key, was = json.loads(text), rows[text]
        if what == "r":
            tx.append({"t": kind, "k": key, "was": was, "stamp": self.put(kind, key, "insert or replace")})
        elif what == "u":
            stamp = rows[text] = self.next_stamp()
            self.conn.execute(f"update {name(kind)} set stamp = ? where {where}", (stamp, *key.values()))
            tx.append({"t": kind, "k": key, "was": was, "stamp": stamp})
        elif what == "d":
            self.conn.execute(f"delete from {name(kind)} where {where}", tuple(key.values()))
            del rows[text]
            tx.append({"t": kind, "k": key, "was": was, "stamp": None})
        else:
            new = self.new_key(kind)
            if json.dumps(new) in rows:
                return
            stamp = self.next_stamp()
            sets = ", ".join(f"{name(c)} = ?" for c in new)
            self.conn.execute(f"update {name(kind)} set {sets}, stamp = ? where {where}", (*new.values(), stamp, *key.values()))
            del rows[text]
            rows[json.dumps(new)] = stamp
            tx.append({"t": kind, "k": key, "was": was, "stamp": None})
            tx.append({"t": kind, "k": new, "was": None, "stamp": stamp})

    def any_key(self, kind):
        """Some hot keys, so that their chains grow long; the others evenly."""
        rows = self.rows[kind]
        at = self.rng.randrange(min(20, len(rows))) if self.rng.random() < 0.5 else self.rng.randrange(min(4000, len(rows)))
        for i, text in enumerate(rows):
            if i == at:
                return text

    def transaction(self):
        tx, kept = [], {kind: dict(rows) for kind, rows in self.rows.items()} if self.rng.random() < 0.15 else None
        self.conn.execute("begin immediate")
        for _ in range(self.rng.randint(1, 5)):
            self.change(tx)
        if kept is not None:
            self.conn.execute("rollback")
            self.rows = kept
            self.ledger.write({"rolled_back": tx})
            return
        self.conn.execute("commit")
        self.ledger.write({"tx": tx})

    def run(self, until_closed=True):
        while (word := told()) is not None:
            if word:
                self.ledger.write({"mark": word.decode().strip()})
            self.transaction()
            time.sleep(self.rng.random() * 0.006)


class OverSocket(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("tidemill", timeout=20)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20)
        self.sock.connect(self.path)


def ask(path, method, url, body):
    conn = OverSocket(path)
    try:
        conn.request(method, url, body, {"content-type": "application/json"})
        answer = conn.getresponse()
        return answer.status, answer.read().decode()
    finally:
        conn.close()


def produce(path, ledger, seed):
    """Appends numbered lines for as long as standard input is open; a request that got no answer is not repeated."""
    ledger, rng, id, made = Ledger(ledger), random.Random(seed), 0, False
    while told() is not None:
        try:
            if not made:
                status, text = ask(path, "POST", "/v1/topics", json.dumps({"name": "lines", "partitions": 1}))
                made = status in (200, 201, 409)
                if not made:
                    ledger.write({"fault": f"{status} {text}"})
                continue
            probe = socket.socket(socket.AF_UNIX)
            probe.connect(path)
            probe.close()
            count = rng.randint(1, 5)
            ids = list(range(id, id + count))
            id += count
            ledger.write({"sent": ids})
            body = "".join(json.dumps({"value": f"line {i}"}) + "\n" for i in ids)
            status, text = ask(path, "POST", "/v1/topics/lines/records", body)
            ledger.write({"acknowledged": ids} if status == 200 else {"fault": f"{status} {text}"})
        except (OSError, http.client.HTTPException):
            time.sleep(0.01)


def shell(command):
    """Types lines into a program on a terminal of its own; each line waits for the prompt."""
    import pty
    lines, argv = json.loads(command[0]), command[1:]
    pid, fd = pty.fork()
    if pid == 0:
        os.execvp(argv[0], argv)
    seen, end = b"", time.monotonic() + 30

    def until(text, start):
        nonlocal seen
        while text not in seen[start:]:
            ready = select.select([fd], [], [], max(0, end - time.monotonic()))[0]
            try:
                piece = os.read(fd, 65536) if ready else b""
            except OSError:
                piece = b""
            if not piece:
                sys.exit(f"no {text!r} in {seen!r}")
            seen += piece
        return len(seen)

    at = until(b"tidemill> ", 0)
    for number, (line, answer) in enumerate(lines):
        os.write(fd, line.encode() + b"\r")
        if answer is not None:
            until(answer.encode(), at)
            at = until(b"tidemill> ", at + seen[at:].index(answer.encode()))
        elif number + 1 < len(lines):
            # What is typed before the prompt stands may be thrown away by the terminal's change of mode.
            at = until(b"...> ", at)
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return {"code": os.waitstatus_to_exitcode(status), "seen": seen.decode(errors="replace")}
        if select.select([fd], [], [], 0.05)[0]:
            try:
                seen += os.read(fd, 65536)
            except OSError:
                pass
    sys.exit(f"did not end: {seen!r}")


def main(command, *args):
    if command == "sql":
        conn, rows = connect(args[0]), []
        for sql in args[1:]:
            rows = conn.execute(sql).fetchall()
        return rows
    if command == "dump":
        return dump(args[0])
    if command == "latency":
        return latency(args[0], args[1], int(args[2]))
    if command == "shell":
        return shell(args)
    if command == "write":
        path, ledger, seed, mode, rows = args
        writer = Writer(path, ledger, int(seed))
        writer.make(mode, int(rows))
        return writer.run()
    if command == "produce":
        return produce(args[0], args[1], int(args[2]))


print(json.dumps(main(*sys.argv[1:])), flush=True)
