"""Judges what bench/gpu-check measured: modelmeter against nvidia-smi and against a bare torch loop. No torch needed.

    report.py PROFILES.json HUB.sqlite BARE.jsonl [SMI.csv BEGAN]

The windows of the load points are taken from the hub's own record: the end of an attempt, and before it, back to
back, the durations and warm-ups of its points. nvidia-smi is averaged over a window less MARGIN_S at each end; its
samples before BEGAN (Unix time) show the idle device.
Exits 1 when a check fails.
"""

import csv
import datetime
import json
import sqlite3
import sys

MARGIN_S = 0.5
MIN_SAMPLES = 8
# What counts as agreement. The driver's utilization is itself an average over up to a second.
UTILIZATION_TOLERANCE = 0.10
POWER_TOLERANCE = 0.10
MEMORY_TOLERANCE = 0.02
MEMORY_SLACK_BYTES = 64 << 20
# A server cannot beat the model alone by more than noise, and one far below it is broken.
FASTEST, SLOWEST = 1.10, 0.10
# Calls in flight = calls a second × mean latency (Little's law), for a closed loop.
LITTLE_TOLERANCE = 0.05

SMI_FIELDS = ("timestamp", "utilization", "memory_mib", "power_w", "temperature_c", "clock_mhz", "reserved_mib")


class Checks:
    def __init__(self):
        self.failed, self.passed = [], 0

    def expect(self, good, what):
        print(f"  {'pass' if good else 'FAIL'}  {what}")
        if good:
            self.passed += 1
        else:
            self.failed.append(what)


def seconds(text):
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def windows(hub):
    """(batch size, concurrency) → (begin, end) in Unix time."""
    database = sqlite3.connect(f"file:{hub}?mode=ro", uri=True)
    found = {}
    for task, attempt, final in database.execute("SELECT task_id, attempt, doc FROM finals").fetchall():
        final = json.loads(final)
        if "done" not in final["outcome"]:
            continue
        end = seconds(final["ended_at"])
        query = "SELECT doc FROM parts WHERE task_id = ? AND attempt = ? ORDER BY seq DESC"
        for (part,) in database.execute(query, (task, attempt)).fetchall():
            point = json.loads(part)["point"]
            begin = end - point["duration_s"]
            if "closed" in point["load"]:
                found[point["batch_size"], point["load"]["closed"]["concurrency"]] = (begin, end)
            end = begin - point["warmup_s"]
    return found


def read_smi(path):
    """nvidia-smi's samples; a figure that the device does not have is None."""
    samples = []
    with open(path, newline="") as file:
        for row in csv.reader(file):
            row = [cell.strip() for cell in row]
            if len(row) != len(SMI_FIELDS):
                continue
            try:
                # In local time, as nvidia-smi writes it.
                at = datetime.datetime.strptime(row[0], "%Y/%m/%d %H:%M:%S.%f").timestamp()
            except ValueError:
                continue
            sample = dict(zip(SMI_FIELDS[1:], map(number, row[1:])))
            samples.append({"at": at, **sample})
    return samples


def number(text):
    try:
        return float(text)
    except ValueError:
        return None


def mean(samples, field):
    values = [sample[field] for sample in samples if sample[field] is not None]
    return sum(values) / len(values) if values else None


def shown(value, digits=1):
    return "null" if value is None else f"{value:,.{digits}f}"


def mib(value):
    return None if value is None else value / (1 << 20)


def value(interval):
    return None if interval is None else interval["value"]


def six_indicators(profile, point):
    gpu, latency = point["gpu"] or {}, point["latency_ms"]
    total = profile["device"]["memory_total_bytes"]
    print(f"\n== batch {profile['batch_size']}, {point['load']['concurrency']} in flight")
    print(f"  device            {profile['device']['name']} ({profile['device']['class']}), driver {profile['device'].get('driver')}")
    print(f"  throughput        {shown(value(point['throughput_inferences_per_s']))} inferences/s over {point['duration_s']:.2f} s")
    percentiles = ", ".join(f"{q} {shown(value(latency[q]), 3)}" for q in ("p50", "p95", "p99"))
    print(f"  latency           {percentiles} ms (mean {shown(latency['mean'], 3)})")
    print(f"  memory total      {shown(mib(total), 0)} MiB")
    ratio = gpu.get("memory_used_ratio")
    print(f"  memory used       {shown(mib(gpu.get('memory_used_bytes')), 0)} MiB ({shown(ratio and 100 * ratio)} %), over idle "
          f"{shown(mib(gpu.get('memory_delta_bytes')), 0)} MiB, by the engine {shown(mib(gpu.get('memory_process_bytes')), 0)} MiB")
    utilization = gpu.get("utilization_ratio")
    print(f"  utilization       {shown(utilization and 100 * utilization)} %")
    energy = gpu.get("energy_j")
    per_inference = 1e3 * energy / point["inferences"] if energy is not None and point["inferences"] else None
    print(f"  power, energy     {shown(gpu.get('power_w'))} W, {shown(energy)} J, {shown(per_inference)} mJ an inference")
    print(f"  clock, heat       {shown(gpu.get('sm_clock_mhz'), 0)} MHz, {shown(gpu.get('temperature_c'), 0)} °C, throttle {gpu.get('throttle')}")
    print(f"  engine, client    {shown((point['engine_cpu'] or {}).get('cores'), 2)} and {shown(point['client_cpu_cores'], 2)} cores")
    for warning in point["warnings"]:
        print(f"  warning           {warning['code']}: {warning['message']}")
    for path, reason in point["unavailable"].items():
        print(f"  null              {path}: {reason['code']}: {reason['message']}")


def against_smi(checks, point, window, samples, idle):
    gpu = point["gpu"]
    checks.expect(gpu is not None, "modelmeter has GPU figures")
    if gpu is None:
        return
    begin, end = window[0] + MARGIN_S, window[1] - MARGIN_S
    inside = [sample for sample in samples if begin <= sample["at"] <= end]
    checks.expect(len(inside) >= MIN_SAMPLES, f"nvidia-smi has {len(inside)} samples within the point (at least {MIN_SAMPLES})")
    if not inside:
        return
    compare(checks, "utilization", gpu["utilization_ratio"], scaled(mean(inside, "utilization"), 0.01), "", 2,
            lambda ours, theirs: abs(ours - theirs) <= UTILIZATION_TOLERANCE, f"±{UTILIZATION_TOLERANCE} absolute")
    compare(checks, "power", gpu["power_w"], mean(inside, "power_w"), " W", 1,
            lambda ours, theirs: abs(ours / theirs - 1) <= POWER_TOLERANCE, f"±{POWER_TOLERANCE:.0%}")

    def near(ours, theirs):
        return abs(ours - theirs) <= max(MEMORY_TOLERANCE * theirs, MEMORY_SLACK_BYTES)

    tolerance = f"±{MEMORY_TOLERANCE:.0%} or {MEMORY_SLACK_BYTES >> 20} MiB"
    used = scaled(mean(inside, "memory_mib"), 1 << 20)
    # The older form of the driver's call counts what it reserves for itself as used; nvidia-smi does not.
    with_reserved = None if used is None else used + (mean(inside, "reserved_mib") or 0) * (1 << 20)
    ours = gpu["memory_used_bytes"]
    includes = None not in (ours, used) and not near(ours, used) and near(ours, with_reserved)
    name = "memory used (what the driver reserves included)" if includes else "memory used"
    compare(checks, name, mib(ours), mib(with_reserved if includes else used), " MiB", 0,
            lambda a, b: near(a * (1 << 20), b * (1 << 20)), tolerance)
    before = scaled(mean(idle, "memory_mib"), 1 << 20)
    if used is not None and before is not None:
        compare(checks, "memory over idle", mib(gpu["memory_delta_bytes"]), mib(used - before), " MiB", 0,
                lambda a, b: near(a * (1 << 20), b * (1 << 20)), tolerance)
    for name, field, theirs, unit in [
        ("SM clock", "sm_clock_mhz", "clock_mhz", "MHz"),
        ("temperature", "temperature_c", "temperature_c", "°C"),
    ]:
        print(f"  info  {name}: modelmeter {shown(gpu[field])}, nvidia-smi {shown(mean(inside, theirs))} {unit}")


def scaled(value, factor):
    return None if value is None else value * factor


def compare(checks, name, ours, theirs, unit, digits, agrees, tolerance):
    if theirs is None:
        print(f"  info  {name}: nvidia-smi does not say")
        return
    ratio = shown(ours / theirs, 3) if ours is not None and theirs else "-"
    good = ours is not None and (ours == theirs or agrees(ours, theirs))
    text = f"{name}: modelmeter {shown(ours, digits)}{unit}, nvidia-smi {shown(theirs, digits)}{unit}, ratio {ratio} ({tolerance})"
    checks.expect(good, text)


def main():
    profiles_path, hub, bare_path, *smi = sys.argv[1:]
    with open(profiles_path) as file:
        profiles = json.load(file)
    with open(bare_path) as file:
        bare = {figures["batch_size"]: figures for figures in map(json.loads, file)}
    when = windows(hub)
    samples = read_smi(smi[0]) if smi else []
    idle = [sample for sample in samples if sample["at"] < float(smi[1])] if smi else []
    checks = Checks()
    print(f"engine {profiles[0]['engine']['name']} {profiles[0]['engine']['version']}" if profiles else "no profiles")
    checks.expect(bool(profiles), f"{len(profiles)} profiles")
    if smi:
        checks.expect(len(idle) >= MIN_SAMPLES, f"nvidia-smi has {len(idle)} samples of the idle device, {len(samples)} in all")
        print(f"  info  idle: {shown(mean(idle, 'memory_mib'), 0)} MiB, {shown(mean(idle, 'power_w'))} W, "
              f"utilization {shown(mean(idle, 'utilization'))} %, reserved {shown(mean(idle, 'reserved_mib'), 0)} MiB")
    for profile in sorted(profiles, key=lambda profile: profile["batch_size"]):
        batch = profile["batch_size"]
        if profile["state"] != "done":
            checks.expect(False, f"batch {batch} is {profile['state']}: {profile['error']}")
            continue
        print(f"\nbatch {batch}: deployed in {shown(profile['deploy_ms'], 0)} ms, first inference {shown(profile['first_inference_ms'])} ms")
        for point in profile["points"]:
            six_indicators(profile, point)
            concurrency, got = point["load"]["concurrency"], value(point["throughput_inferences_per_s"])
            checks.expect(got is not None and point["errors"] == 0, f"{point['errors']} of {point['requests']} calls failed")
            if smi:
                against_smi(checks, point, when[batch, concurrency], samples, idle)
            else:
                print("  skip  nvidia-smi: not on a GPU")
            if got is None or batch not in bare:
                checks.expect(False, "there is a throughput and a bare torch loop to compare")
                continue
            in_flight = got / batch * point["latency_ms"]["mean"] / 1e3
            # Calls that were begun before the window or end after it count by halves, as it were.
            tolerance = LITTLE_TOLERANCE + concurrency / point["requests"]
            good = abs(in_flight / concurrency - 1) <= tolerance
            checks.expect(good, f"rate × mean latency is {in_flight:.2f} calls in flight (±{tolerance:.0%})")
            alone = bare[batch]["model_alone_inferences_per_s"]
            copied = bare[batch]["with_copies_inferences_per_s"]
            best = max(alone, copied)
            checks.expect(SLOWEST <= got / best <= FASTEST,
                          f"served {got:,.1f}/s; bare torch {alone:,.1f}/s, with copies {copied:,.1f}/s; "
                          f"ratios {got / alone:.3f}, {got / copied:.3f} ({SLOWEST} to {FASTEST} of the faster)")
    print(f"\n{checks.passed} checks passed, {len(checks.failed)} failed")
    for failed in checks.failed:
        print(f"  FAIL  {failed}")
    return 1 if checks.failed else 0


if __name__ == "__main__":
    sys.exit(main())
