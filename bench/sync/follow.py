"""What is asked of a side that follows: a first copy, a backlog of changes, and changes at a steady rate."""
import threading
import time

from measure import Cost
from table import MARK, change, digest, mark


def wait(side, session, question, answer, seconds, pause=0.05):
    end, looked = time.monotonic() + seconds, time.monotonic()
    while session.one(question) != answer:
        now = time.monotonic()
        if now - looked > 2:
            looked = now
            fault = side.fault()
            if fault:
                raise RuntimeError(f"{side.name} failed: {fault}")
        if now > end:
            raise RuntimeError(f"{side.name} was not done after {seconds} s: {question} is {session.one(question)}")
        time.sleep(pause)


def equal(source, target):
    return digest(source) == digest(target)


def first_copy(side, source, target, run, rows, limit):
    """From the command to the last row, the start of the process (ours) or of the connectors (the worker runs already) included."""
    side.prepare(source, target, run)
    schema = "public" if target.kind == "pg" else "bench"
    with target.session("bench") as session, Cost(source, target, side.pids) as cost:
        side.begin()
        there = f"SELECT count(*) FROM information_schema.tables WHERE table_schema = '{schema}' AND table_name = 'bench'"
        wait(side, session, there, "1", limit)
        wait(side, session, f"SELECT count(*) FROM bench WHERE id = {rows}", "1", limit)
        wait(side, session, "SELECT count(*) FROM bench", str(rows), limit, 0.2)
        cost.stop()
    return cost, equal(source, target)


def backlog(side, source, target, rows, low, changes, limit):
    """The side is frozen while the changes are made, so that it is the side and not their writer that is measured."""
    time.sleep(2)
    side.freeze(True)
    try:
        change(source, low, low + changes - 1, rows)
        with source.session("bench") as session:
            mark(session, low)
        source.exec("CHECKPOINT" if source.kind == "pg" else "SELECT 1")
    except BaseException:
        side.freeze(False)
        raise
    with target.session("bench") as session, Cost(source, target, side.pids) as cost:
        side.freeze(False)
        wait(side, session, f"SELECT count(*) FROM bench WHERE id = {MARK + low}", "1", limit)
        cost.stop()
    return cost, equal(source, target)


def latency(side, source, target, rows, low, rate, seconds, limit):
    """Milliseconds from the return of a commit to the sight of its row in the target, while changes come at `rate` a second."""
    step, stop, written, seen, made = 0.05, threading.Event(), {}, {}, []

    def load():
        number, each = low, max(10, int(rate * step) // 10 * 10)
        interval = each / rate
        with source.session("bench") as session:
            session.ask("SET synchronous_commit = off" if source.kind == "pg" else "SELECT 1")
            call = "change" if source.kind == "pg" else "change_rows"
            start = time.monotonic()
            for turn in range(int(seconds / interval)):
                time.sleep(max(0, start + turn * interval - time.monotonic()))
                session.ask(f"CALL {call}({number}, {number + each - 1}, {rows})")
                number += each
            made.append((number - low) / (time.monotonic() - start))

    def marks():
        with source.session("bench") as session:
            number, last = low + 1, False
            # One more after the load, so that all of it is there when the last is seen.
            while not last:
                last = stop.is_set()
                mark(session, number)
                written[MARK + number] = time.monotonic()
                number += 1
                time.sleep(step)

    if source.kind == "my":
        source.durable(False)
    with target.session("bench") as session:
        threads = [threading.Thread(target=load), threading.Thread(target=marks)]
        for thread in threads:
            thread.start()
        last, end = MARK + low, time.monotonic() + seconds + limit
        while any(t.is_alive() for t in threads) or len(seen) < len(written):
            if not threads[0].is_alive():
                stop.set()
            for row in session.ask(f"SELECT id FROM bench WHERE id > {last} ORDER BY id"):
                last = int(row)
                seen[last] = time.monotonic()
            if time.monotonic() > end:
                raise RuntimeError(f"{side.name}: {len(written) - len(seen)} rows were not seen")
            time.sleep(0.002)
        for thread in threads:
            thread.join()
    if source.kind == "my":
        source.durable(True)
    return [max(0.0, (seen[n] - written[n]) * 1000) for n in sorted(written)], made[0] if made else 0.0, equal(source, target)
