"""`Profiler` with the real program: profiles, errors, inspectors of this Python, and how it is stopped."""

import contextlib
import io
import os
import signal
import struct
import subprocess
import sys
import textwrap
import threading
import unittest
from pathlib import Path

import support

import modelmeter
from modelmeter import BaseModelInspector, ModelmeterError, Profiler, binary
from modelmeter.options import Options

SHORT = {"batches": 20, "concurrency": 1}


class Ones(BaseModelInspector):
    """Sends ones to `mlp`, and keeps what was answered."""

    def __init__(self, **arguments):
        super().__init__(repeat_data=[struct.pack("<784f", *[1.0] * 784)], **arguments)
        self.answers = []

    def infer(self, request, response=None):
        super().infer(request, response)
        self.answers.append(threading.get_ident())


class Refusing(BaseModelInspector):
    def infer(self, request, response=None):
        raise ValueError("no such class")


class Timed(BaseModelInspector):
    calls = []

    def make_request(self, input_batch):
        return input_batch

    def infer(self, request, response=None):
        Timed.calls.append(request)


def diagnose(*args, inspector=None, timed_in="modelmeter", **options):
    """Of `mlp` on rten, without a word."""
    with contextlib.redirect_stderr(io.StringIO()):
        return Profiler("mlp", "rten", inspector, timed_in=timed_in).diagnose(*args, **{**SHORT, **options})


class Profiling(unittest.TestCase):
    def setUp(self):
        self.home = self.enterContext(support.own_home()) if sys.version_info >= (3, 11) else self.enter(support.own_home())

    def enter(self, context):
        self.addCleanup(context.__exit__, None, None, None)
        return context.__enter__()

    def refused(self, *args, **options):
        with self.assertRaises(ModelmeterError) as caught:
            diagnose(*args, **options)
        return caught.exception

    def test_each_batch_size_has_a_profile(self):
        told = []
        profiler = Profiler("mlp", server_name="rten", say=told.append)
        profiles = profiler.diagnose(
            [2, 1], device="cpu", batches=200, concurrency=[1, 2], sla={"p95": "5s"}, labels={"team": "a b"}
        )
        self.assertEqual(
            [(each.batch_size, each.state, each.engine) for each in profiles], [(1, "done", "rten"), (2, "done", "rten")]
        )
        one = profiles[0]
        self.assertEqual((one.model, one.device_class, one.error, dict(one.labels)), ("mlp", "cpu", None, {"team": "a b"}))
        self.assertEqual(one.throughput, one.document["peak"]["throughput_inferences_per_s"])
        self.assertEqual(one.p95_latency_ms, one.document["peak"]["p95_latency_ms"])
        self.assertGreater(one.throughput, 0)
        self.assertEqual((one.reference.concurrency, len(one.points)), (1, 2))
        self.assertIn("[2/2]", told[-1], told)
        html = profiles._repr_html_()
        self.assertIn("<td>mlp</td><td>rten</td><td>cpu</td><td>1</td>", html)
        # The hub keeps the same.
        import pandas

        kept = modelmeter.results(label="team=a b").sort_values("batch_size").reset_index(drop=True)
        pandas.testing.assert_frame_equal(kept, profiles.to_frame())
        points = modelmeter.results(points=True)
        self.assertEqual(sorted(points["concurrency"]), [1, 1, 2, 2])

    def test_what_the_program_refuses_has_its_fields(self):
        with self.assertRaises(ModelmeterError) as caught:
            Profiler("mlp", "onxx").diagnose([1])
        error = caught.exception
        self.assertEqual((error.code, error.field), ("invalid_argument", "engines"))
        self.assertIn("did you mean 'onnx'?", error.hint)
        self.assertIn("hint: ", str(error))
        self.assertEqual(self.refused(1, "cuda:7").field, "devices")
        self.assertEqual(self.refused([1], min_duration="soon").field, "arguments")

    def test_what_makes_no_sense_is_said_before_the_program_runs(self):
        for arguments, field, hint in [
            ((["a"],), "batch_sizes", "whole numbers"),
            ((True,), "batch_sizes", "whole numbers"),
            (([],), "batch_sizes", "whole numbers"),
            (("cuda:0",), "batch_sizes", "diagnose(device="),
        ]:
            error = self.refused(*arguments)
            self.assertEqual(error.field, field, arguments)
            self.assertIn(hint, error.hint)
        self.assertIn("did you mean 'budget'?", self.refused(1, budgte=3).hint)
        self.assertEqual(self.refused(1, "cpu", devices=["cpu"]).field, "devices")
        with self.assertRaises(ModelmeterError) as caught:
            Profiler("mlp", inspector=int)
        self.assertEqual(caught.exception.field, "inspector")
        with self.assertRaises(ModelmeterError) as caught:
            Profiler("mlp", inspector=Ones, coordinator="http://127.0.0.1:1").diagnose(1)
        self.assertIn("modelmeter.toml", caught.exception.hint)

    def test_each_option_is_a_flag_of_the_program(self):
        told = subprocess.run([support.binary(), "profile", "--help"], capture_output=True, text=True, check=True).stdout
        for name in Options.__annotations__:
            self.assertRegex(told, rf"(?m)^ +(-\w, )?--{name.replace('_', '-')}\b", name)

    def test_a_failed_cell_is_a_profile_with_an_error(self):
        (profile,) = diagnose(1, inspector=Refusing)
        self.assertEqual((profile.state, profile.throughput, profile.error.code), ("failed", None, "bad_response"))
        self.assertIn("ValueError: no such class", profile.error.message)
        self.assertIn("no such class", modelmeter.results()["error_message"][0])

    def test_an_instance_stays_in_this_process(self):
        inspector = Ones()
        profiles = diagnose([1, 2], inspector=inspector)
        self.assertEqual({(each.state, each.document["inspector"]) for each in profiles}, {("done", "Ones")})
        self.assertTrue(inspector.answers, "its copies check the answers")
        self.assertEqual(inspector.batch_size, 1, "the instance itself is as it was")
        self.assertEqual(list(self.home.glob("**/*.toml")), [], "nothing is left of the configuration")

    def test_a_class_is_made_for_each_cell(self):
        made = []

        class Mine(Ones):
            def __init__(self, **arguments):
                super().__init__(**arguments)
                made.append(arguments)

        self.assertEqual([each.state for each in diagnose([1, 2], inspector=Mine)], ["done", "done"])
        self.assertEqual({each["batch_size"] for each in made}, {1, 2})

    def test_its_infer_can_be_what_is_timed(self):
        (profile,) = diagnose(1, inspector=Timed, timed_in="child", batches=50)
        self.assertEqual((profile.state, profile.points[0]["errors"]), ("done", 0))
        self.assertGreaterEqual(len(Timed.calls), 50)
        self.assertEqual(self.refused(1, inspector=Timed, timed_in="python").field, "timed_in")

    def test_the_configuration_still_holds(self):
        Path("modelmeter.toml").write_text('[inspectors.mine]\ncommand = ["python3"]\n[worker]\nlabels = { rack = "7" }\n')
        (profile,) = diagnose(1, inspector=Ones)
        self.assertEqual(profile.state, "done")
        Path("modelmeter.toml").write_text('[inspectors.Ones]\ncommand = ["python3"]\n')
        self.assertIn("rename the class", self.refused(1, inspector=Ones).hint)
        Path("modelmeter.toml").write_text("no = toml = at all\n")
        self.assertEqual(self.refused(1, inspector=Ones).field, "config")

    def test_an_inspector_by_name_is_the_configurations(self):
        program = f"import sys; sys.path.insert(0, {str(support.PACKAGE)!r}); from modelmeter import *; run(BaseModelInspector)"
        Path("modelmeter.toml").write_text(f"[inspectors.named]\ncommand = [{sys.executable!r}, '-c', \"{program}\"]\n")
        (profile,) = diagnose(1, inspector="named")
        self.assertEqual((profile.state, profile.document["inspector"]), ("done", "named"))

    def test_without_the_program_it_is_said_what_to_do(self):
        del os.environ["MODELMETER_BINARY"]
        os.environ["PATH"] = str(self.home)
        if binary.BUNDLED.exists():
            self.fail(f"{binary.BUNDLED} is in the checkout")
        self.assertEqual(self.refused(1).code, "not_installed")
        os.environ["MODELMETER_BINARY"] = str(self.home / "nothing")
        self.assertEqual(self.refused(1).field, "MODELMETER_BINARY")
        os.environ["MODELMETER_BINARY"] = "/bin/false"
        self.assertEqual(self.refused(1).code, "internal")


PROGRAM = """
    import sys
    from modelmeter import Profiler
    try:
        Profiler("mlp", "rten", say=lambda line: print(line, flush=True)).diagnose([1, 2], budget=600)
    except KeyboardInterrupt:
        print("interrupted cleanly", flush=True)
"""


def processes_of(home):
    """Processes with this home in their environment."""
    found = set()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and f"MODELMETER_HOME={home}".encode() in (entry / "environ").read_bytes():
                found.add(int(entry.name))
    return found - {os.getpid()}


@contextlib.contextmanager
def ended(process):
    """Kills the process at the end: a test that fails does not wait for it."""
    with process:
        try:
            yield process
        finally:
            process.kill()


class Stopping(unittest.TestCase):
    def interrupted(self, how):
        """What the Python said that profiled for ten minutes, and whose group got this signal once it measured."""
        with support.own_home() as home:
            env = {**os.environ, "PYTHONPATH": str(support.PACKAGE)}
            command = [sys.executable, "-c", textwrap.dedent(PROGRAM)]
            with ended(subprocess.Popen(command, stdout=subprocess.PIPE, env=env, text=True, start_new_session=True)) as python:
                said = []
                for line in python.stdout:
                    said.append(line)
                    if "measuring" in line:
                        break
                else:
                    self.fail(f"it never measured: {said}")
                others = processes_of(home) - {python.pid}
                self.assertTrue(others, "the program runs")
                # A terminal's signal goes to the whole group: the program would take a second one for impatience.
                self.assertNotIn(python.pid, {os.getpgid(pid) for pid in others})
                os.killpg(python.pid, how)
                said.append(python.communicate(timeout=support.DEADLINE_S)[0])
            support.eventually("the program and its engines end", lambda: not processes_of(home))
            return "".join(said)

    def test_an_interruption_stops_the_engines_first(self):
        said = self.interrupted(signal.SIGINT)
        self.assertIn("interrupted, stopping", said)
        self.assertIn("interrupted cleanly", said)

    def test_the_program_does_not_outlive_a_python_that_is_killed(self):
        self.interrupted(signal.SIGKILL)


if __name__ == "__main__":
    unittest.main()
