"""That `results` gives the same frame from the three sources of the same hub: `sources.py HOME MONGODB HTTP`.

tests/tests/python.rs fills the hubs by their own adapters and runs it.
"""

import sys
from datetime import timedelta

import support
from pandas import isna
from pandas.testing import assert_frame_equal

import modelmeter

assert support.PACKAGE.as_posix() in modelmeter.__file__


def questions(everything):
    """Filters of every kind, made of what is there, and of what is not."""
    yield {}
    for _, row in everything.iterrows():
        yield {"model": row["model"]}
        yield {"model": f"{row['model']}:{row['model_version']}"}
        yield {"engine": row["engine"], "batch_size": row["batch_size"]}
        yield {"device_class": row["device_class"], "points": True}
        at = row["created_at"].to_pydatetime()
        for since in (at, at + timedelta(microseconds=1), at + timedelta(milliseconds=1), at.isoformat(), at.date()):
            yield {"since": since}
    for label in ("team=vision", "built_at=2026-03-20T14:34:56.789Z", {"a.b": "$c"}, ["team=vision", "a.b=$c"], "team=none"):
        yield {"label": label}
    yield {"model": "none"}
    yield {"engine": "none", "points": True}


def main(home, *others):
    everything = modelmeter.results(home)
    assert set(everything["state"]) == {"done", "failed"}, everything
    assert not isna(everything["peak_throughput_inferences_per_s_lo"]).all()
    sizes = []
    for question in questions(everything):
        first = modelmeter.results(home, **question)
        sizes.append(len(first))
        for other in others:
            try:
                assert_frame_equal(first, modelmeter.results(other, **question))
            except AssertionError as error:
                sys.exit(f"{question}: {other} differs from {home}\n{error}")
    assert 0 in sizes and len({size for size in sizes if size}) > 2, f"the filters tell profiles apart: {sizes}"
    print(f"{len(sizes)} questions, the same answers")


main(*sys.argv[1:])
