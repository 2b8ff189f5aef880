"""The table of the bench: its rows, the changes to them, and whether two servers hold the same."""
import hashlib
import pathlib
import subprocess

HERE = pathlib.Path(__file__).parent
MARK = 2_000_000_000  # ids from here on mark a moment: the end of a load, or a row that is waited for

CREATE = {
    "pg": "CREATE TABLE bench (id bigint PRIMARY KEY, customer int, amount numeric(12,2), note text, at timestamp)",
    "my": "CREATE TABLE bench (id bigint PRIMARY KEY, customer int, amount decimal(12,2), note text, at datetime(6)) CHARSET utf8mb4",
}
# About 145 bytes a row; one in fifty without a note, one in a hundred without an amount.
FILL = """INSERT INTO bench SELECT i, i % 5000, CASE WHEN i % 100 = 7 THEN NULL ELSE (i * 31 % 9999999) / 100.0 END,
  CASE WHEN i % 50 = 3 THEN NULL ELSE md5(i::text) || ' grün, blå ' || md5((i + 1)::text) || repeat('x', (i % 40)::int) END,
  timestamp '2026-01-01' + i * interval '1.000007 s' FROM generate_series(1, {rows}::bigint) i"""
# All cells as text that both servers spell alike.
SPELL = {
    "pg": "SELECT id, coalesce(customer::text, '-'), coalesce(amount::text, '-'), coalesce(note, '-'),"
          " coalesce(to_char(at, 'YYYY-MM-DD HH24:MI:SS.US'), '-') FROM bench ORDER BY id",
    "my": "SELECT id, coalesce(customer, '-'), coalesce(amount, '-'), coalesce(note, '-'),"
          " coalesce(date_format(at, '%Y-%m-%d %H:%i:%s.%f'), '-') FROM bench ORDER BY id",
}


def digest(server):
    """Of all rows in the order of their keys, as the server's own client prints them."""
    flags = ["-XqAt", "-F", "\t", "-c"] if server.kind == "pg" else ["-BN", "--quick", "-e"]
    text = hashlib.sha256()
    client = subprocess.Popen(server.client("bench") + flags + [SPELL[server.kind]], stdout=subprocess.PIPE, env=server.env)
    for block in iter(lambda: client.stdout.read(1 << 20), b""):
        text.update(block)
    if client.wait():
        raise RuntimeError(f"the rows of {server.name} cannot be read")
    return text.hexdigest()


def seed(postgres, mariadb, rows):
    """Makes the database `seed` on both servers, with the same rows."""
    postgres.exec("CREATE DATABASE seed")
    postgres.exec(CREATE["pg"], "seed")
    postgres.exec(FILL.format(rows=rows), "seed")
    postgres.exec((HERE / "change.postgresql.sql").read_text().rstrip().rstrip(";"), "seed")
    postgres.exec("VACUUM ANALYZE bench", "seed")
    bytes = int(postgres.exec("SELECT sum(length(bench::text)) / count(*) FROM bench", "seed")[0].split(".")[0])
    if mariadb:
        mariadb.exec("CREATE DATABASE seed")
        mariadb.exec(CREATE["my"], "seed")
        pipe(copy_out(postgres, "seed"), load_data(mariadb, "bench", "seed"))
        mariadb.exec("ANALYZE TABLE bench", "seed")
    return bytes


def copy_out(server, db="bench", binary=False):
    form = " (FORMAT binary)" if binary else ""
    return server, server.client(db) + ["-Xqc", f"COPY bench TO STDOUT{form}"]


def load_data(server, table="bench", db="bench"):
    return server, server.client(db) + ["-e", f"LOAD DATA LOCAL INFILE '/dev/stdin' INTO TABLE {table} CHARACTER SET utf8mb4"]


def pipe(*commands, into=None):
    """Runs commands, each reading what the one before writes, as a shell does."""
    processes, before = [], None
    for n, (server, command) in enumerate(commands):
        last = n + 1 == len(commands)
        out = into if last else subprocess.PIPE
        processes.append(subprocess.Popen(command, stdin=before, stdout=out, env=server.env))
        if before:
            before.close()
        before = processes[-1].stdout
    if any([p.wait() for p in processes]):
        raise RuntimeError(f"failed: {' | '.join(' '.join(c[1]) for c in commands)}")


def change(server, low, high, rows):
    """Makes the changes numbered low to high in the source, as the session of a writer would, without a sync for each."""
    if server.kind == "pg":
        with server.session("bench") as session:
            session.ask("SET synchronous_commit = off")
            session.ask(f"CALL change({low}, {high}, {rows})")
    else:
        server.durable(False)
        server.exec(f"CALL change_rows({low}, {high}, {rows})", "bench")
        server.durable(True)


def mark(session, number):
    session.ask(f"INSERT INTO bench VALUES ({MARK + number}, 1, 1, 'mark', NULL)")
