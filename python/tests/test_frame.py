"""Frames, views and filters of documents, and what is said of sources that cannot be read; no program is run."""

import contextlib
import copy
import json
import os
import re
import socket
import sqlite3
import sys
import tempfile
import unittest
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from unittest import mock

import support

import modelmeter
from modelmeter import ModelmeterError, Profiles, frame, hub
from modelmeter.options import flags

GOLDEN = support.CHECKOUT / "coordinator/tests/golden/v1.json"
DOCS = (support.CHECKOUT / "docs/python.md").read_text()


def old_document():
    """What version 1 wrote: a done profile without intervals in its summaries."""
    return json.loads(GOLDEN.read_text())["profiles"][0]["doc"]


def failed_document():
    document = copy.deepcopy(old_document())
    error = {"code": "no_worker", "field": None, "message": "no slot <can> run it", "hint": None}
    document.update(_id="f", state="failed", error=error, peak=None, reference=None, points=[], artifact=None)
    return document


class Frames(unittest.TestCase):
    def test_every_column_is_documented(self):
        documented = re.findall(r"^\| `([^`]+)`", DOCS, re.MULTILINE)
        stated = set()
        for name in documented:
            stated.update([name] if not name.endswith("*") else [name[:-1], f"{name[:-1]}_lo", f"{name[:-1]}_hi"])
        columns = [column.name for column in (*frame.PROFILE_COLUMNS, *frame.POINT_COLUMNS)]
        expected = {re.sub(r"^(peak|reference)_(?!gpu)", "S_", name) for name in columns}
        expected = {re.sub(r"(^|_)p(50|90|95|99|99_9)_latency", r"\1P_latency", name) for name in expected}
        self.assertEqual(stated, expected)
        self.assertEqual(len({column.name for column in frame.PROFILE_COLUMNS}), len(frame.PROFILE_COLUMNS))

    def test_the_kinds_are_the_same_whatever_is_there(self):
        documents = [old_document(), failed_document()]
        for points in (False, True):
            columns = frame.POINT_COLUMNS if points else frame.PROFILE_COLUMNS
            expected = [(column.name, column.kind) for column in columns]
            for some in ([], documents, documents[1:]):
                found = frame.frame(some, points)
                self.assertEqual([(name, str(kind)) for name, kind in found.dtypes.items()], expected)
        self.assertEqual(len(frame.frame(documents, True)), len(documents[0]["points"]))

    def test_values_are_those_of_the_document(self):
        document = old_document()
        document["peak"]["throughput_ci95_inferences_per_s"] = [1.5, 2]
        document["labels"] = {"b": "ü", "a": "1"}
        row = frame.frame([document]).iloc[0]
        self.assertEqual(row["peak_throughput_inferences_per_s"], document["peak"]["throughput_inferences_per_s"])
        self.assertEqual((row["peak_throughput_inferences_per_s_lo"], row["peak_throughput_inferences_per_s_hi"]), (1.5, 2.0))
        self.assertTrue(row.isna()["peak_p50_latency_ms_lo"], "no interval in version 1")
        self.assertEqual(row["labels"], '{"a": "1", "b": "ü"}')
        self.assertEqual(row["repeats"], len(document["repeats"]))
        self.assertEqual(row["created_at"].isoformat(timespec="milliseconds"), document["created_at"].replace("Z", "+00:00"))

    def test_views_of_what_is_missing_are_none(self):
        done, failed = Profiles([old_document(), failed_document()])
        self.assertIsNone(done.peak.p95_latency_ci95_ms)
        self.assertEqual(done.created_at.tzinfo, timezone.utc)
        self.assertEqual((failed.throughput, failed.p95_latency_ms, failed.reference, failed.sla_met), (None,) * 4)
        self.assertEqual(failed.error.code, "no_worker")
        both = Profiles([done.document, failed.document])
        self.assertIn("no slot &lt;can&gt; run it", both._repr_html_())
        self.assertEqual((len(both[:1]), both[-1].state, both.request_id), (1, "failed", done.request_id))
        self.assertIsNone(Profiles([]).request_id)

    def test_without_pandas_it_is_said_what_to_install(self):
        with mock.patch.dict(sys.modules, pandas=None), self.assertRaises(ModelmeterError) as caught:
            modelmeter.results()
        self.assertIn("pip install", caught.exception.hint)
        with mock.patch.dict(sys.modules, pymongo=None), self.assertRaises(ModelmeterError) as caught:
            modelmeter.results("mongodb://127.0.0.1/x")
        self.assertIn("pymongo", caught.exception.hint)

    def test_a_newer_schema_is_refused(self):
        with open(support.CHECKOUT / "common/src/lib.rs") as file:
            (current,) = re.findall(r"pub const SCHEMA_VERSION: u32 = (\d+);", file.read())
        self.assertEqual(hub.SCHEMA_VERSION, int(current))


class Asking(unittest.TestCase):
    def test_times_are_read_in_every_form(self):
        at = datetime(2026, 3, 20, tzinfo=timezone.utc)
        for given in (
            "2026-03-20",
            "2026-03-20T00:00:00Z",
            "2026-03-20T01:00:00+01:00",
            date(2026, 3, 20),
            datetime(2026, 3, 20),
            at,
        ):
            self.assertEqual(hub.moment(given), at, given)
        for given in ("7d", timedelta(days=7)):
            ago = datetime.now(timezone.utc) - hub.moment(given)
            self.assertLess(abs(ago - timedelta(days=7)), timedelta(minutes=1), given)
        self.assertEqual(hub.moment(at + timedelta(microseconds=1)), at + timedelta(milliseconds=1), "of the next millisecond")
        with self.assertRaises(ModelmeterError) as caught:
            hub.moment("last week")
        self.assertIn("7d", caught.exception.hint)

    def test_options_are_flags(self):
        given = dict(
            budget=2.5, timeout=timedelta(seconds=3), deadline="2h", concurrency=[1, 4], rate="10:20:5", certified=True, no_wait=False,
            seed=None, labels={"team": "a b"}, shape={"x": [1, 3], "y": (1,)}, set={"rten.threads": [1, 2], "onnx.graph": True},
            sla={"p95": 0.05}, precision=0.03, input=["x:fp32:3", "y:int64:1"], data={"x": Path("a.npy")}, max_in_flight=8,
        )  # fmt: skip
        expected = """--budget=2500ms --timeout=3000ms --deadline=2h --concurrency=1,4 --rate=10:20:5 --certified
            --labels=team=a\0b --shape=x=1,3 --shape=y=1 --set=rten.threads=1,2 --set=onnx.graph=true --sla=p95=50ms
            --precision=0.03 --input=x:fp32:3 --input=y:int64:1 --data=x=a.npy --max-in-flight=8"""
        self.assertEqual(flags(given), [word.replace("\0", " ") for word in expected.split()])
        with self.assertRaises(ModelmeterError) as caught:
            flags({"labels": {"team": "a,b"}})
        self.assertEqual(caught.exception.field, "labels")
        self.assertEqual(flags({"data": "all.npz", "sla": "p95=50ms"}), ["--data=all.npz", "--sla=p95=50ms"])

    def test_labels_are_pairs(self):
        for given in ("a=b=c", ["a=b=c"], {"a": "b=c"}):
            self.assertEqual(hub._labels(given), {"a": "b=c"})
        with self.assertRaises(ModelmeterError) as caught:
            hub._labels("team")
        self.assertEqual(caught.exception.field, "label")


class Sources(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def refused(self, source):
        with self.assertRaises(ModelmeterError) as caught:
            modelmeter.results(source)
        return caught.exception

    def test_what_is_no_hub_is_said(self):
        self.assertEqual(self.refused(self.folder).code, "not_found")
        with mock.patch.dict(os.environ, MODELMETER_HOME=str(self.folder)):
            self.assertIn(str(self.folder), self.refused(None).message)
        file = self.folder / "hub.sqlite"
        file.write_bytes(b"not a hub at all" * 100)
        self.assertIn("is not a hub", self.refused(self.folder).message)
        file.unlink()
        with contextlib.closing(sqlite3.connect(file)) as connection:
            connection.execute("CREATE TABLE other (id)")
            connection.commit()
            self.assertIn("is not a hub", self.refused(f"sqlite:{file}").message)
            connection.execute("PRAGMA user_version = 99")
            connection.commit()
        newer = self.refused(file)
        self.assertIn("schema 99", newer.message)
        self.assertTrue(newer.hint)
        self.assertEqual(self.refused("postgres://host/db").field, "source")

    def test_a_file_of_version_1_is_read(self):
        old = json.loads(GOLDEN.read_text())["profiles"]
        with contextlib.closing(sqlite3.connect(self.folder / "hub.sqlite")) as connection:
            columns = "id, request_id, model, version, created_at, revision, doc"
            connection.execute(f"CREATE TABLE profiles ({columns})")
            for row in old:
                values = [row[name] for name in columns.split(", ")[:-1]] + [json.dumps(row["doc"])]
                connection.execute("INSERT INTO profiles VALUES (?, ?, ?, ?, ?, ?, ?)", values)
            connection.commit()
        document = old[0]["doc"]
        count = lambda **asked: len(modelmeter.results(self.folder, **asked))
        self.assertEqual(count(), len(old))
        self.assertEqual(count(engine=document["engine"]["name"], batch_size=document["batch_size"], device_class="cpu"), 1)
        self.assertEqual(count(engine="none"), 0)
        self.assertEqual(count(model=f"{document['model']['name']}:{document['model']['version']}"), 1)

    def test_a_hub_in_a_folder_that_cannot_be_written_to_is_read(self):
        self.test_a_file_of_version_1_is_read()
        with contextlib.closing(sqlite3.connect(self.folder / "hub.sqlite")) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
        with mock.patch("os.access", return_value=False):
            self.assertEqual(len(modelmeter.results(self.folder)), 1)
        self.assertEqual(os.listdir(self.folder), ["hub.sqlite"])

    def test_nobody_there_is_said_with_the_address(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        http = self.refused(f"http://{address}")
        self.assertEqual(http.code, "unreachable")
        self.assertIn(address, http.message)
        self.assertIn("7601", http.hint)
        mongo = self.refused(f"mongodb://user:secret@{address}/db?serverSelectionTimeoutMS=300")
        self.assertEqual(mongo.code, "unreachable")
        self.assertIn(address, mongo.message)
        self.assertNotIn("secret", str(mongo))
        self.assertEqual(self.refused("mongodb://").code, "invalid_argument")


if __name__ == "__main__":
    unittest.main()
