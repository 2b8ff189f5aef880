"""The other program: executes one JSON command a line, answers one JSON line. Python's own SQLite library does the work."""
import json, os, random, sqlite3, sys, time

INF = float("inf")
POOL = {
    "int": [1, 2, 3, 4, 5, 6, -1, 2**40],
    "text": ["a", "A", "b", "B", "a ", "é", "", "x'y\"z", "1"],
    "real": [0.0, 1.0, 1.5, -2.25, 1e300, INF, -INF],
    "any": [1, 1.0, "1", b"1", 0.0, -0.0, 2**63 - 1, -2**63, INF, "a\0b", "a\0c", b"\x00\xff", ("bad", b"\xffA"), "A", "a", 0.1 + 0.2],
}
# name, create statement, key columns with pools, other columns with pools
TABLES = [
    ("alias", "create table alias(id integer primary key, u int unique, v, w text)", {"id": "int"}, {"u": "int", "v": "any", "w": "text"}),
    ("multi", 'create table multi(id integer primary key, u1 unique, u2 text collate nocase unique, v, "we ird" int, unique(v, "we ird"))',
     {"id": "int"}, {"u1": "any", "u2": "text", "v": "int", '"we ird"': "int"}),
    ("auto", "create table auto(id integer primary key autoincrement, u text unique, v real)", {"id": "int"}, {"u": "text", "v": "real"}),
    ("norow", "create table norow(k text collate nocase primary key, u int unique, v) without rowid", {"k": "text"}, {"u": "int", "v": "any"}),
    ("comp", 'create table comp(a int not null, "b" text not null, v, u unique, primary key(a, "b"))', {"a": "int", "b": "text"}, {"v": "any", "u": "int"}),
    ("untyped", "create table untyped(k not null primary key, v, u any unique)", {"k": "any"}, {"v": "any", "u": "any"}),
    ("bincol", "create table bincol(k text not null, v, u text, primary key(k collate nocase))", {"k": "text"}, {"v": "any", "u": "text"}),
    ("rtrim", "create table rtrim(k text collate rtrim not null primary key, v, u text collate rtrim unique)", {"k": "text"}, {"v": "any", "u": "text"}),
    ("realkey", 'create table "real""key"(k real not null primary key, v, u numeric)', {"k": "real"}, {"v": "any", "u": "any"}),
    ("worint", "create table worint(k integer primary key, u unique, v) without rowid", {"k": "int"}, {"u": "any", "v": "any"}),
    ("strict", "create table strict(k any primary key, v any, u int unique) strict, without rowid", {"k": "any"}, {"v": "any", "u": "int"}),
    ("gen", "create table gen(id integer primary key, u int unique, v, g1 as (u * 2) virtual, g2 text as (v || 'x') stored)", {"id": "int"}, {"u": "int", "v": "text"}),
    ("tree", "create table tree(id integer primary key, u references tree(id) on delete cascade on update cascade, v)", {"id": "int"}, {"u": "int", "v": "any"}),
]

class Writer:
    def __init__(self, path, seed):
        self.path, self.seed, self.rng = path, seed, random.Random(seed)
        self.conn = sqlite3.connect(path, isolation_level=None, timeout=5)
        self.conn.execute("pragma synchronous=off")
        # Triggers that call each other without end must fail soon, not after 1000 levels.
        self.conn.setlimit(sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH, 25)
        self.conn.execute(self.rng.choice(["pragma journal_mode=wal", "pragma journal_mode=delete"]))
        self.recursive = self.rng.random() < 0.4
        self.conn.execute(f"pragma recursive_triggers={int(self.recursive)}")
        self.conn.execute(f"pragma foreign_keys={int(self.rng.random() < 0.5)}")
        self.tables = self.rng.sample(TABLES, self.rng.choice([1, 2, 3]))
        self.count = 0
        self.stats = {"ok": 0, "failed": 0}
        for _, sql, _, _ in self.tables:
            self.conn.execute(sql)
        for _ in range(8):
            self.attempt(self.insert)

    def name(self, t):
        return '"real""key"' if t[0] == "realkey" else t[0]

    def value(self, pool, null=0.1):
        if self.rng.random() < null:
            return "null"
        v = self.rng.choice(POOL[pool])
        if isinstance(v, tuple):
            return "cast(x'%s' as text)" % v[1].hex()
        if isinstance(v, bytes):
            return "x'%s'" % v.hex()
        if isinstance(v, str):
            return "cast(x'%s' as text)" % v.encode().hex() if "\0" in v else "'%s'" % v.replace("'", "''")
        if v == -2**63:
            return "(-9223372036854775807 - 1)"
        if v in (INF, -INF):
            return "9e999" if v > 0 else "-9e999"
        return repr(v)

    def clause(self):
        # OR FAIL keeps a row whose triggers failed: exact only while the capture's triggers are the newest.
        fail = "or fail" if self.seed % 2 == 0 else "or abort"
        return self.rng.choice(["", "", "or replace", "or replace", "or replace", "or ignore", fail, fail, "or rollback"])

    def columns(self, t, drop_key=False):
        cols = {**t[2], **t[3]}
        if drop_key:
            cols = dict(t[3])
        return cols

    def insert(self):
        t = self.rng.choice(self.tables)
        auto = "integer primary key" in t[1] and t[0] != "worint" and self.rng.random() < 0.4
        cols = self.columns(t, auto)
        rows = []
        for _ in range(self.rng.choice([1, 1, 2, 3])):
            rows.append("(" + ", ".join(self.value(p, 0 if c in t[2] else 0.1) for c, p in cols.items()) + ")")
        clause = self.clause()
        upsert = ""
        if clause == "" and self.rng.random() < 0.6:
            sets = ", ".join(f"{c} = {self.rng.choice([f'excluded.{c}', self.value(p, 0)])}" for c, p in self.rng.sample(list(cols.items()), k=self.rng.choice([1, min(2, len(cols))])))
            upsert = f" on conflict do update set {sets}"
        return f"insert {clause} into {self.name(t)}({', '.join(cols)}) values {', '.join(rows)}{upsert}"

    def where(self, t):
        kind = self.rng.random()
        if kind < 0.1:
            return ""
        c, p = self.rng.choice(list(self.columns(t).items()))
        return f" where {c} {self.rng.choice(['=', '=', '>', '<='])} {self.value(p, 0)}"

    def update(self):
        t = self.rng.choice(self.tables)
        cols = list(self.columns(t).items())
        sets = []
        for c, p in self.rng.sample(cols, k=self.rng.choice([1, 1, 2])):
            value = self.value(p, 0 if c in t[2] else 0.1)
            if p == "int" and self.rng.random() < 0.3:
                value = f"{c} + 1"
            if p == "text" and self.rng.random() < 0.3:
                value = self.rng.choice([f"upper({c})", f"lower({c})"])
            sets.append(f"{c} = {value}")
        return f"update {self.clause()} {self.name(t)} set {', '.join(sets)}{self.where(t)}"

    def delete(self):
        t = self.rng.choice(self.tables)
        return f"delete from {self.name(t)}{self.where(t)}"

    def shuffle(self):
        t = self.rng.choice(self.tables)
        cols = list(self.columns(t))
        auto = [c if self.rng.random() < 0.8 else self.value(p, 0) for c, p in self.columns(t).items()]
        return f"insert or {self.rng.choice(['replace', 'ignore'])} into {self.name(t)}({', '.join(cols)}) select {', '.join(auto)} from {self.name(t)}{self.where(t)}"

    def attempt(self, make):
        sql = make()
        try:
            self.conn.execute(sql)
            self.stats["ok"] += 1
        except (sqlite3.Error, OverflowError):
            self.stats["failed"] += 1

    def transaction(self):
        r = self.rng
        if r.random() < 0.3:
            return self.attempt(r.choice([self.insert, self.insert, self.update, self.delete, self.shuffle]))
        self.conn.execute("begin immediate")
        depth = 0
        for _ in range(r.randint(1, 6)):
            if not self.conn.in_transaction:
                return
            k = r.random()
            if k < 0.1:
                self.conn.execute(f"savepoint s{depth}"); depth += 1
            elif k < 0.2 and depth:
                depth -= 1
                if r.random() < 0.5:
                    self.conn.execute(f"rollback to s{depth}")
                self.conn.execute(f"release s{depth}")
            else:
                self.attempt(r.choice([self.insert, self.insert, self.update, self.update, self.delete, self.shuffle]))
        if self.conn.in_transaction:
            self.conn.execute("rollback" if r.random() < 0.15 else "commit")

    def hostile(self, count):
        for _ in range(count):
            t = self.rng.choice(self.tables)
            o = self.rng.choice(self.tables)
            n, self.count = self.name(t), self.count + 1
            key = list(t[2])
            same = lambda img: " and ".join(f"{k} = {img}.{k}" for k in key)
            c, p = self.rng.choice(list(t[3].items()))
            d, q = self.rng.choice(list(t[3].items()))
            v = self.value(p, 0)
            oc = ", ".join({**o[2], **o[3]})
            ov = lambda: ", ".join(self.value(pp, 0) for pp in {**o[2], **o[3]}.values())
            x = f"trigger \"app {self.count}\""
            made = self.rng.choice([
                f"create {x} after update on {n} when new.{c} is not {v} begin update {n} set {c} = {v} where {same('new')}; end",
                f"create {x} after insert on {n} when new.{c} is not {v} begin update {n} set {c} = {v} where {same('new')}; end",
                f"create {x} before insert on {n} begin delete from {n} where {c} = new.{c}; end",
                f"create {x} after delete on {n} when old.{c} = {v} begin insert or ignore into {self.name(o)}({oc}) values ({ov()}); end",
                f"create {x} before insert on {n} when new.{c} is not {v} begin insert or replace into {self.name(o)}({oc}) values ({ov()}); end",
                f"create {x} after insert on {n} when new.{c} = {v} begin delete from {n} where {same('new')}; end",
                f"create {x} after update on {n} when new.{c} is not old.{c} begin update or replace {n} set {d} = {self.value(q, 0)} where {c} = old.{c}; end",
                f"create {x} after insert on {n} when new.{c} is not {v} begin insert or replace into {self.name(o)}({oc}) values ({ov()}); end",
                f"create {x} before update on {n} when new.{c} is not old.{c} begin update {n} set {c} = new.{c} where {d} = {self.value(q, 0)} and not ({same('old')}); end",
                f"create {x} before insert on {n} begin update {n} set {c} = new.{c} where {d} = {self.value(q, 0)}; end",
                f"create {x} after insert on {n} begin update or replace {n} set {key[0]} = {self.value(t[2][key[0]], 0)} where {same('new')} and {c} = {v}; end",
            ])
            try:
                self.conn.execute(made)
            except sqlite3.Error as e:
                raise Exception(made) from e

WRITER = None
CONNS = {}

def dump(path, names):
    conn = sqlite3.connect(path)
    conn.text_factory = bytes
    out = {}
    for name in names:
        q = '"' + name.replace('"', '""') + '"'
        cols = [r[1].decode() for r in conn.execute(f"pragma table_xinfo({q})")]
        quoted = ['"' + c.replace('"', '""') + '"' for c in cols]
        # hex beside quote: quote stops at an embedded NUL
        rows = conn.execute(f"select {', '.join(f'quote({c}), typeof({c}), hex({c})' for c in quoted)} from {q}").fetchall()
        out[name] = sorted([[x.decode("latin1") for x in row] for row in rows])
    conn.close()
    return out

def spin(path, seconds, pause, timeout):
    """Writes for some seconds and answers with each write's latency in ms, and how many failed."""
    conn = sqlite3.connect(path, isolation_level=None, timeout=timeout)
    conn.execute("pragma synchronous=off")
    taken, failed, i = [], 0, 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        i += 1
        at = time.monotonic()
        try:
            conn.execute("begin immediate")
            conn.execute("insert into t(v) values (?)", (i,))
            conn.execute("update t set v = v + 1 where id = ?", (i // 2,))
            conn.execute("commit")
        except sqlite3.OperationalError:
            failed += 1
            if conn.in_transaction: conn.execute("rollback")
        taken.append((time.monotonic() - at) * 1000)
        time.sleep(pause)
    taken.sort()
    at = lambda p: taken[min(len(taken) - 1, int(len(taken) * p))]
    return {"count": len(taken), "p50": at(0.5), "p99": at(0.99), "max": taken[-1], "failed": failed}

def handle(c):
    global WRITER
    cmd = c["cmd"]
    if cmd == "new":
        if WRITER: WRITER.conn.close()
        WRITER = Writer(c["path"], c["seed"])
    elif cmd == "run":
        for _ in range(c["count"]): WRITER.transaction()
        return WRITER.stats
    elif cmd == "hostile":
        WRITER.hostile(c["count"])
    elif cmd == "same":
        a, b = dump(c["source"], c["names"]), dump(c["target"], c["names"])
        return [] if a == b else [[n, [r for r in a[n] if r not in b[n]], [r for r in b[n] if r not in a[n]]] for n in c["names"] if a[n] != b[n]]
    elif cmd == "sql":
        # A connection per path that stays open, as an application's would.
        conn = CONNS.get(c["path"])
        if conn is None:
            conn = CONNS[c["path"]] = sqlite3.connect(c["path"], isolation_level=None, timeout=c.get("timeout", 5))
        conn.text_factory = lambda b: b.decode("latin1")
        try:
            rows = []
            for sql in c["sql"]: rows = conn.execute(sql).fetchall()
            return {"rows": [[x if not isinstance(x, bytes) else x.hex() for x in r] for r in rows]}
        except sqlite3.Error as e:
            if conn.in_transaction and not c.get("keep"): conn.execute("rollback")
            return {"error": str(e)}
    elif cmd == "close":
        conn = CONNS.pop(c["path"], None)
        if conn: conn.close()
    elif cmd == "spin":
        return spin(c["path"], c["seconds"], c["pause"], c["timeout"])
    elif cmd == "time":
        conn = sqlite3.connect(c["path"], isolation_level=None)
        conn.execute("begin")
        at = time.monotonic()
        for i in range(c["count"]): conn.execute(c["sql"], (i,))
        took = (time.monotonic() - at) / c["count"] * 1e6
        conn.execute("commit")
        return took

for line in sys.stdin:
    try:
        answer = {"ok": handle(json.loads(line))}
    except Exception as e:
        import traceback
        answer = {"failed": traceback.format_exc()}
    print(json.dumps(answer), flush=True)
