"""The rows of the comparison. Each measures perf_analyzer and modelmeter in turn, and prints medians and ratios."""

from statistics import median

import tools
from tools import Responder, modelmeter, perf_analyzer, sums
from triton import Triton


def line(label, values, unit="", digits=1):
    """A row of repeats and their median."""
    listed = " ".join(f"{v:.{digits}f}" for v in values)
    print(f"  {label:<46} median {median(values):.{digits}f}{unit}   ({listed})")
    return median(values)


def closed_32(repeats):
    print("closed loop, 32 in flight, null server: counted and timed from outside, at the server and by the kernel")
    sync, asynchronous, ours, floor, said = [], [], [], [], []
    for _ in range(repeats):
        with Responder("null") as responder:
            load = ["--concurrency-range", 32, "-p", 1500, "-s", 90, "-r", 10]
            sync.append(sums(perf_analyzer(responder, "--sync", *load).steady()))
            asynchronous.append(sums(perf_analyzer(responder, "--async", *load).steady()))
            run = modelmeter(responder, "--concurrency", 32, "--min-duration", "3s", "--max-duration", "3s")
            ours.append(sums(run.steady()))
            point = run.points[-1]
            said.append((point["requests_per_s"], point["client_cpu_cores"]))
            floor.append(tools.floor(responder, 32, 2) | {"most": tools.floor(responder, 1024, 2)["rate"]})
    rates = {}
    for name, runs in {"perf_analyzer --sync": sync, "perf_analyzer --async": asynchronous, "modelmeter": ours}.items():
        rates[name] = line(f"{name}, calls/s", [r["rate"] for r in runs], digits=0)
    line("  as modelmeter itself says", [s[0] for s in said], digits=0)
    costs = {}
    for name, runs in {"perf_analyzer --sync": sync, "perf_analyzer --async": asynchronous, "modelmeter": ours}.items():
        costs[name] = line(f"{name}, µs of client CPU a call", [r["cpu_us"] for r in runs], digits=2)
    line("  as modelmeter itself says", [s[1] / s[0] * 1e6 for s in said], digits=2)
    for name, runs in {"perf_analyzer --sync": sync, "modelmeter": ours}.items():
        line(f"{name}, server's core busy", [r["server_busy"] * 100 for r in runs], " %", 0)
    line("a bare loop on one socket, calls/s", [f["rate"] for f in floor], digits=0)
    line("a bare loop on one socket, µs of client CPU", [f["cpu_us"] for f in floor], digits=2)
    line("the server bears (bare loop, 1024 in flight)", [f["most"] for f in floor], digits=0)
    best = max(("perf_analyzer --sync", "perf_analyzer --async"), key=rates.get)
    print(f"  throughput: {rates['modelmeter'] / rates[best]:.2f} × {best} (wanted: at least 3)")
    print(f"  client CPU: {costs['modelmeter'] / costs[best]:.3f} × {best} (wanted: at most 0.2)")


def closed_1(repeats):
    print("closed loop, 1 in flight, null server")
    theirs, ours, floor = [], [], []
    for _ in range(repeats):
        with Responder("null") as responder:
            run = perf_analyzer(responder, "--sync", "--concurrency-range", 1, "-p", 1500, "-s", 90, "-r", 10)
            theirs.append(sums(run.steady()) | {"p50": float(run.row["p50 latency"])})
            run = modelmeter(responder, "--concurrency", 1, "--min-duration", "3s", "--max-duration", "3s")
            ours.append(sums(run.steady()) | {"p50": run.points[0]["latency_ms"]["p50"]["value"] * 1e3})
            floor.append(tools.floor(responder, 1, 2))
    medians = {}
    for name, runs in {"perf_analyzer": theirs, "modelmeter": ours}.items():
        medians[name] = line(f"{name}, p50", [r["p50"] for r in runs], " µs")
        line(f"{name}, calls/s at the server", [r["rate"] for r in runs], digits=0)
        line(f"{name}, µs of client CPU a call", [r["cpu_us"] for r in runs], digits=1)
    line("a bare loop on one socket, p50", [f["p50_us"] for f in floor], " µs")
    print(f"  p50: {medians['modelmeter'] / medians['perf_analyzer']:.2f} × perf_analyzer (wanted: at most 0.8)")


def memory(_repeats):
    print("memory of the client's process, closed loop, 32 in flight, null server; one run each")
    with Responder("null") as responder:
        run = perf_analyzer(responder, "--sync", "--concurrency-range", 32, "-p", 12_000, "-s", 90, "-r", 10)
        for millions in (0.5, 2):
            print(f"  perf_analyzer after {millions} million requests: {rss_after(run, millions)}")
        run = modelmeter(responder, "--concurrency", 32, "--min-duration", "25s", "--max-duration", "25s")
        for millions in (0.5, 2, 5, 10):
            print(f"  modelmeter after {millions} million requests: {rss_after(run, millions)}")
        print(f"  (wanted: at most 64 MB, flat; {run.slices[-1]['total'] / 1e6:.1f} million in all)")


def rss_after(run, millions):
    reached = [s for s in run.slices if s["total"] >= millions * 1e6 and s["rss_mb"] > 0]
    return f"{reached[0]['rss_mb']:.0f} MB" if reached else f"not reached ({run.slices[-1]['total']})"


def lateness(seen, rate):
    """How late each request came, in ms, by the responder's clock and for a constant rate: against the schedule that
    starts as early as it can without a request before its time."""
    late = [came - i * 1e9 / rate for i, (came, _) in enumerate(seen)]
    least = min(late)
    return [(l - least) / 1e6 for l in late]


def share_over_1ms(seen, rate):
    late = lateness(seen, rate)
    return sum(l > 1 for l in late) / len(late) * 100


def open_20k(repeats):
    rate = 20_000
    print(f"open loop, {rate} calls/s, null server")
    p99, most, valid, constant_p99, ours, theirs = [], [], 0, [], [], []
    open_loop = ["--rate", rate, "--min-duration", "5s", "--max-duration", "5s"]
    constant = ["--request-rate-range", rate, "--request-distribution", "constant"]
    for _ in range(repeats):
        with Responder("null", record=True) as responder:
            point = modelmeter(responder, *open_loop, "--arrivals", "poisson", slices=False).points[0]
            p99.append(point["send_lateness_ms"]["p99"] * 1e3)
            most.append(point["send_lateness_ms"]["max"] * 1e3)
            valid += point["valid"]
            responder.mark()
            point = modelmeter(responder, *open_loop, "--arrivals", "constant", slices=False).points[0]
            constant_p99.append(point["send_lateness_ms"]["p99"] * 1e3)
            ours.append(share_over_1ms(responder.seen()[-point["requests"]:], rate))
            perf_analyzer(responder, *constant, "-p", 2000, "-s", 90, "-r", 3, slices=False)
            # Its last two seconds: by then it has its pace, if it ever does.
            theirs.append(share_over_1ms(responder.seen()[-2 * rate:], rate))
    line("modelmeter, Poisson: p99 of send lateness", p99, " µs")
    line("modelmeter, Poisson: worst send", most, " µs")
    print(f"  modelmeter, Poisson: valid in {valid} of {repeats} runs (not with 0.1 % of sends over 1 ms late)")
    line("modelmeter, constant: p99 of send lateness", constant_p99, " µs")
    line("modelmeter, constant: late as the server saw it", ours, " %", 3)
    line("perf_analyzer, constant: late as the server saw it", theirs, " %", 3)
    print("  (late: by over 1 ms; wanted: below 0.1 %, p99 at most 200 µs)")


def percentile(values, q):
    """The smallest value that is not below q % of them."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * q // 100) - 1)]


def stalls(repeats):
    print("open loop, 100 calls/s, answers after 5 ms, none in the last second of every ten; modelmeter for 120 s, that is 12 stalls")
    rows = {"perf_analyzer": [], "modelmeter": []}
    for _ in range(repeats):
        with Responder("stalls", record=True) as responder:
            responder.mark()
            run = perf_analyzer(responder, "--request-rate-range", 100, slices=False)
            # It says what its last three windows of 5 s held.
            said = {q: run.row and float(run.row[f"p{q} latency"]) / 1e3 for q in (95, 99)}
            rows["perf_analyzer"].append(stall_row(said, responder.seen()[-1500:]))
            long = ["--min-duration", "120s", "--max-duration", "120s"]
            point = modelmeter(responder, "--rate", 100, "--arrivals", "constant", *long, slices=False).points[0]
            latency = {q: point["latency_ms"][f"p{q}"] for q in (95, 99)}
            rows["modelmeter"].append(stall_row(
                {q: l and l["value"] for q, l in latency.items()}, responder.seen()[-point["requests"]:]))
    for name, runs in rows.items():
        for q in (95, 99):
            telling = [r for r in runs if r["said"][q]]
            if len(telling) < len(runs):
                print(f"  {name}, p{q}: said nothing in {len(runs) - len(telling)} of {len(runs)} runs")
            if not telling:
                continue
            line(f"{name}, p{q}", [r["said"][q] for r in telling], " ms")
            line("  by the server's own record", [r["record"][q] for r in telling], " ms")
            line("  off by", [abs(r["said"][q] / r["record"][q] - 1) * 100 for r in telling], " %", 2)
    print("  (wanted: off by at most 1 %)")


def stall_row(said, seen):
    latencies = [(answered - came) / 1e6 for came, answered in seen]
    return {"said": said, "record": {q: percentile(latencies, q) for q in (95, 99)}}


def steady(repeats):
    print("time to answer: 1 in flight, log-normal around 1 ms with σ 0.1, to ±5 %, the whole command")
    theirs, ours, off, converged = [], [], [], 0
    for _ in range(repeats):
        with Responder("log-normal", record=True) as responder:
            theirs.append(perf_analyzer(responder, "--concurrency-range", 1, "-s", 5, slices=False).wall_s)
            responder.mark()
            run = modelmeter(responder, "--concurrency", 1, slices=False)
            ours.append(run.wall_s)
            point = run.points[0]
            converged += point["converged"]
            latencies = [(answered - came) / 1e6 for came, answered in responder.seen()[-point["requests"]:]]
            off.append(point["latency_ms"]["p50"]["value"] - percentile(latencies, 50))
    line("perf_analyzer, no interval", theirs, " s")
    line("modelmeter, to ±5 %", ours, " s")
    line("  its p50 over the server's own record", [o * 1e3 for o in off], " µs")
    print(f"  converged in {converged} of {repeats} runs (wanted: at most 6 s)")


def real_triton(repeats):
    print("a real Triton 2.51, Python backend; perf_analyzer by Triton's statistics and the kernel, modelmeter by what it says itself")
    runs = {(name, c): [] for name in ("perf_analyzer", "modelmeter") for c in (1, 32)}
    with Triton() as triton:
        for _ in range(repeats):
            for c in (1, 32):
                run = perf_analyzer(triton, "--sync", "--concurrency-range", c, "-p", 1500, "-s", 90, "-r", 10)
                runs["perf_analyzer", c].append(sums(run.steady()) | {"p50": float(run.row["p50 latency"])})
            for c in (1, 32):
                rules = ["--min-duration", "3s", "--max-duration", "3s"]
                run = modelmeter(triton, "--concurrency", c, *rules, slices=False)
                point = run.points[-1]
                rate, p50 = point["requests_per_s"], point["latency_ms"]["p50"]["value"] * 1e3
                cpu_us = point["client_cpu_cores"] / rate * 1e6
                runs["modelmeter", c].append({"rate": rate, "cpu_us": cpu_us, "p50": p50})
    for (name, c), each in runs.items():
        line(f"{name}, {c} in flight, calls/s", [r["rate"] for r in each], digits=0)
        line(f"{name}, {c} in flight, p50", [r["p50"] for r in each], " µs")
        line(f"{name}, {c} in flight, µs of client CPU a call", [r["cpu_us"] for r in each], digits=1)


ROWS = {f.__name__: f for f in (closed_32, closed_1, memory, open_20k, stalls, steady, real_triton)}
