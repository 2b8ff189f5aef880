"""The same work by the databases' own clients: what a person would type."""
import os
import subprocess
import time

from measure import Cost
from servers import PG
from table import CREATE, change, copy_out, load_data, mark, pipe

SET = "customer = {0}customer{1}, amount = {0}amount{1}, note = {0}note{1}, at = {0}at{1}"
MERGE = {
    "pg": "INSERT INTO bench SELECT * FROM came ON CONFLICT (id) DO UPDATE SET " + SET.format("excluded.", ""),
    "my": "INSERT INTO bench SELECT * FROM came ON DUPLICATE KEY UPDATE " + SET.format("VALUES(", ")"),
}


def out_of(source, binary):
    if source.kind == "pg":
        return copy_out(source, binary=binary)
    return source, source.client("bench") + ["-BN", "--quick", "-e", "SELECT * FROM bench"]


def into(target, source, merge):
    form = "FORMAT binary" if source.kind == target.kind else "NULL 'NULL'"
    if target.kind == "pg":
        if not merge:
            return target, target.client("bench") + ["-Xqc", f"COPY bench FROM STDIN ({form})"]
        steps = ["CREATE TEMP TABLE came (LIKE bench)", f"COPY came FROM STDIN ({form})", MERGE["pg"]]
        return target, target.client("bench") + ["-Xq1", *(w for s in steps for w in ("-c", s))]
    server, command = load_data(target)
    if merge:
        load = command[-1].replace("INTO TABLE bench", "INTO TABLE came")
        command[-1] = f"CREATE TEMPORARY TABLE came LIKE bench; {load}; {MERGE['my']}"
    return server, command


def first_copy(source, target, merge):
    target.exec(CREATE[target.kind], "bench")
    with Cost(source, target) as cost:
        pipe(out_of(source, source.kind == target.kind), into(target, source, merge))
    return cost


def upserts(source, target, folder, batch=1000):
    """Upserts of a thousand rows a statement, one transaction each, from a file that is written before the clock starts."""
    target.exec(CREATE["my"], "bench")
    path = os.path.join(folder, "upserts.sql")
    quoted = "SELECT '(' || id || ',' || coalesce(customer::text, 'NULL') || ',' || coalesce(amount::text, 'NULL') || ','" \
             " || coalesce(quote_literal(note), 'NULL') || ',' || coalesce(quote_literal(at::text), 'NULL') || ')' FROM bench"
    rows = source.exec(quoted, "bench")
    end = " ON DUPLICATE KEY UPDATE " + SET.format("VALUES(", ")") + ";\n"
    with open(path, "w") as file:
        for n in range(0, len(rows), batch):
            file.write("INSERT INTO bench VALUES " + ",".join(rows[n:n + batch]) + end)
    with open(path) as file, Cost(source, target) as cost:
        subprocess.run(target.client("bench"), stdin=file, env=target.env, check=True)
    os.unlink(path)
    return cost


def pg_recvlogical(source, rows, changes):
    """Reads a backlog of changes from a slot to nowhere: decoding by the server and the wire, nothing applied or kept."""
    source.exec("CREATE PUBLICATION reader FOR TABLE bench", "bench")
    source.exec("SELECT pg_create_logical_replication_slot('reader', 'pgoutput')", "bench")
    change(source, 0, changes - 1, rows)
    end = source.exec("SELECT pg_current_wal_insert_lsn()", "bench")[0]
    source.exec("SELECT pg_logical_emit_message(false, 'end', 'end')", "bench")
    source.exec("CHECKPOINT")
    command = source.client("bench", "pg_recvlogical") + [
        "--slot", "reader", "--start", "--no-loop", "-f", "/dev/null", "--endpos", end,
        "-o", "proto_version=1", "-o", "publication_names=reader"]
    with Cost(source, None) as cost:
        subprocess.run(command, env=source.env, check=True)
        # The server's half ends a moment after the client's.
        while source.exec("SELECT count(*) FROM pg_stat_replication")[0] != "0":
            time.sleep(0.01)
    return cost


def binlog_reader(source, rows, changes, decode, folder):
    """Reads a backlog of changes from the binlog: as raw files, or decoded to text that goes nowhere."""
    source.exec("FLUSH BINARY LOGS")
    file = source.exec("SHOW MASTER STATUS")[0].split("\t")[0]
    change(source, 0, changes - 1, rows)
    source.exec("FLUSH BINARY LOGS")
    command = source.client("bench", "mariadb-binlog") + ["--read-from-remote-server"]
    raw = os.path.join(folder, "raw-")
    command += ["--base64-output=DECODE-ROWS", "--verbose"] if decode else ["--raw", f"--result-file={raw}"]
    with Cost(source, None) as cost:
        subprocess.run(command + [file], env=source.env, stdout=subprocess.DEVNULL, check=True)
    if not decode:
        os.unlink(raw + file)
    return cost
