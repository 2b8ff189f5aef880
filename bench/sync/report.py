"""The report: one table of work, one of latencies, with the settings and the state of the machine beside them."""
import datetime
import os
import statistics

from measure import percentile


def median(values):
    return statistics.median(values) if values else 0.0


def spread(values, form="{:,.0f}"):
    if not values:
        return "-"
    middle = form.format(median(values))
    return middle if len(values) == 1 else f"{middle} ({form.format(min(values))} to {form.format(max(values))})"


def latency_words(values):
    return f"p50 {percentile(values, 50):,.0f} ms, p99 {percentile(values, 99):,.0f} ms"


def text(bench):
    return "\n".join([*head(bench), "", *work(bench), "", *latencies(bench), "", *foot(bench)])


def head(bench):
    versions = [s.version() for s in {s.kind: s for s in bench.servers}.values()] + [s.version() for s in bench.followers.values()]
    loads = [r["cost"].load for r in bench.results if "cost" in r]
    model = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "unknown")
    p50, p99 = zip(*bench.disks) if bench.disks else ([0], [0])
    return [
        f"Taken {datetime.datetime.now():%Y-%m-%d %H:%M} on {os.cpu_count()} cores ({model}); {'; '.join(versions)}.",
        f"{bench.rows:,} rows of about {bench.row_bytes} bytes of text; {bench.changes:,} changes; {bench.rounds} rounds, in turn;"
        " median (least to most).",
        f"Load average before a run {min(loads, default=0):.1f} to {max(loads, default=0):.1f}. Disk, fdatasync of 1,024 bytes before"
        f" each run: p50 {min(p50):.2f} to {max(p50):.2f} ms, p99 {min(p99):.2f} to {max(p99):.2f} ms.",
    ]


def work(bench):
    lines = ["| route | work | side | rows/s | rows per CPU s, all processes | CPU s: side, source, target | wall s | result |",
             "|---|---|---|---|---|---|---|---|"]
    keys = []
    for r in bench.results:
        key = (r["route"], r["work"], r["side"])
        if key not in keys:
            keys.append(key)
    for key in sorted(keys, key=lambda k: (k[0], ["first copy", "read changes", "changes", "latency"].index(k[1]))):
        runs = [r for r in bench.results if (r["route"], r["work"], r["side"]) == key]
        good = [r for r in runs if r.get("equal")]
        bad = [r["fault"] if "fault" in r else "unequal: void" for r in runs if not r.get("equal")]
        costs = [r["cost"] for r in good]
        said = f"{len(good)} of {len(runs)} " + ("read" if key[1] == "read changes" else "equal") if not bad else "; ".join(bad)
        cpu = ", ".join(f"{median([getattr(c, name) for c in costs]):.1f}" for name in ("cpu", "cpu_source", "cpu_target"))
        lines.append(f"| {key[0]} | {key[1]} | {key[2]} | {spread([r['rows'] / r['cost'].wall for r in good])} "
                     f"| {spread([r['rows'] / max(r['cost'].cpu_all, 0.01) for r in good])} | {cpu if costs else '-'} "
                     f"| {spread([c.wall for c in costs], '{:.1f}')} | {said.replace('|', '/')} |")
    return lines


def latencies(bench):
    lines = ["| route | side | changes/s: asked, made | rows timed | commit to visible, ms: p50 | p99 | most | load average | result |",
             "|---|---|---|---|---|---|---|---|---|"]
    for r in bench.latencies:
        ms = r["ms"]
        lines.append(f"| {r['route']} | {r['side']} | {r['asked']:,}, {r['made']:,.0f} | {len(ms):,} | {percentile(ms, 50):,.0f} "
                     f"| {percentile(ms, 99):,.0f} | {max(ms):,.0f} | {r['load']:.1f} | {'equal' if r['equal'] else 'unequal: void'} |")
    return lines if bench.latencies else ["No latencies were taken."]


def foot(bench):
    pg = next(s for s in bench.servers if s.kind == "pg")
    my = next((s for s in bench.servers if s.kind == "my"), None)
    lines = [
        "- A result is compared before its figure counts: all cells of all rows, in the order of the key, as text.",
        "- CPU seconds are user and system time of the side's processes and those they started, and of the two servers, which do the same"
        " work for each side.",
        "- First copy: ours from the start of the process, with an empty data folder; the peer from the request that makes its connectors,"
        f" in a worker that runs and has done the same {bench.given['WARM_UP']} times before, unmeasured.",
        "- Changes: the side is stopped (SIGSTOP) while they are made, so that the writer is not what is measured; the clock starts with"
        " SIGCONT and ends when the last is visible in the target.",
        "- Latency: from the return of a marked row's commit in the source to the first query of the target that sees it, asked every 2 ms,"
        " while the same changes come at half of the rate at which the side took the backlog; the lower rate is the slower side's half.",
        "- Kafka acknowledges before it syncs to the disk, as its guide recommends; Tidemill syncs its log before it acknowledges.",
        "- PostgreSQL: " + ", ".join(f"{k}={v}" for k, v in pg.SETTINGS.items()) + ".",
    ]
    if my:
        lines.append("- MariaDB: " + ", ".join(f"{k}={v}" for k, v in my.SETTINGS.items()) + ".")
    return lines + ["- The peer's settings: bench/sync/debezium/."]
