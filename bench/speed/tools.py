"""Runs the responder and its clients, and looks at them from outside while they run."""

import array
import csv
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import setup

EXAMPLES = setup.ROOT / "target" / "release" / "examples"
SLICE_S = 0.25


def cpu_s(pid):
    """CPU time of a process: the kernel's clock of it, see clock_getcpuclockid(3)."""
    return time.clock_gettime((~pid << 3) | 2)


def rss_mb(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


class Responder:
    """The null server, or one with a law of its own."""

    def __init__(self, law, record=False):
        self.dump = tempfile.NamedTemporaryFile(prefix="responder-")
        command = [EXAMPLES / "bench-responder", law] + ["record"] * record
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.address = f"127.0.0.1:{int(self.process.stdout.readline())}"

    def mark(self):
        """What it saw since the mark before."""
        self.process.stdin.write(self.dump.name + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def seen(self):
        """Each request since the mark before, as (came, answered) in ns, in the order in which they came."""
        self.mark()
        times = array.array("Q", Path(self.dump.name).read_bytes())
        return sorted(zip(times[::2], times[1::2]))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()


class Run:
    """A client from its start to its end, with what it and the responder used in each quarter of a second."""

    def __init__(self, command, responder, env=None, slices=True):
        begun = time.monotonic()
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            process = subprocess.Popen(command, stdout=out, stderr=err, env=env)
            self.slices = []
            watcher = threading.Thread(target=self._watch, args=(process.pid, responder)) if slices else None
            self._over = threading.Event()
            if watcher:
                watcher.start()
            # Not reaped yet, so that its clock can be read to the end.
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            self.wall_s = time.monotonic() - begun
            self._over.set()
            if watcher:
                watcher.join()
            code = process.wait()
            out.seek(0)
            err.seek(0)
            self.out, self.err = out.read(), err.read()
        # perf_analyzer ends so where its windows differ too much for it to say anything.
        self.is_unstable = code == 2 and "Failed to obtain stable measurement" in self.out + self.err
        if code != 0 and not self.is_unstable:
            sys.exit(f"{command} ended with {code}\n{self.out}\n{self.err}")

    def _watch(self, pid, responder):
        responder.mark()
        before, client_before = time.monotonic(), cpu_s(pid)
        requests = 0
        while not self._over.wait(SLICE_S):
            said, now, client = responder.mark(), time.monotonic(), cpu_s(pid)
            requests += said["requests"]
            self.slices.append({
                "seconds": now - before,
                "requests": said["requests"],
                "rate": said["requests"] / (now - before),
                "client_cpu_s": client - client_before,
                "server_cpu_s": said["cpu_s"],
                "total": requests,
                "rss_mb": rss_mb(pid),
            })
            before, client_before = now, client

    def steady(self):
        """The slices at speed: neither start nor end, nor what a client measures with fewer in flight."""
        most = max(s["rate"] for s in self.slices)
        return [s for s in self.slices if s["rate"] >= 0.3 * most]


def sums(slices):
    """Calls a second, CPU of the client a call in µs, and how busy the server's core was, of some slices."""
    total = {key: sum(s[key] for s in slices) for key in ("seconds", "requests", "client_cpu_s", "server_cpu_s")}
    return {
        "rate": total["requests"] / total["seconds"],
        "cpu_us": total["client_cpu_s"] / total["requests"] * 1e6,
        "server_busy": total["server_cpu_s"] / total["seconds"],
    }


def floor(responder, in_flight, seconds):
    command = [EXAMPLES / "bench-floor", responder.address.split(":")[1], str(in_flight), str(seconds)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def perf_analyzer(responder, *options, model="null", **kwargs):
    """Its run, with `row`, what it reports of the load as a dict of its CSV's columns; none where it was not stable."""
    binary, lib = setup.perf_analyzer()
    with tempfile.NamedTemporaryFile("r", suffix=".csv") as report:
        command = [binary, "-m", model, "-i", "grpc", "-u", responder.address, "-b", "1", "-f", report.name]
        env = dict(os.environ, LD_LIBRARY_PATH=str(lib))
        run = Run([*command, *map(str, options)], responder, env, **kwargs)
        run.row = next(csv.DictReader(report), None)
    return run


def modelmeter(responder, *options, model="null", binary=setup.ROOT / "target" / "release" / "modelmeter", **kwargs):
    """Its run, with `points`, the load points of the profile that it prints."""
    with tempfile.TemporaryDirectory(prefix="modelmeter-bench-") as home:
        command = [binary, "--home", home, "profile", "--endpoint", responder.address, "--protocol", "kserve-v2"]
        command += ["--model", model, "--batch-sizes", "1", "--json", *map(str, options)]
        run = Run(command, responder, **kwargs)
    run.points = json.loads(run.out)[0]["points"]
    return run
