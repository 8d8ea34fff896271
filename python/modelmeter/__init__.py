"""modelmeter in Python: measure a model as it is served, read the hub as data frames, and write inspectors.

`Profiler(model, server_name=…).diagnose(…)` runs the modelmeter program and gives profiles; `results(…)` reads those that a
hub keeps into pandas. `BaseModelInspector` and `run` are for clients of your own: test data, requests and checks. Only the
standard library is needed, and pandas and pymongo where they are used.
"""

from .child import run
from .error import ModelmeterError
from .hub import results
from .inspector import BaseModelInspector, GrpcRequest, Server
from .ports import *  # noqa: F403
from .profiler import Profiler
from .profiles import Profile, Profiles, Summary

__all__ = [
    "BaseModelInspector",
    "GrpcRequest",
    "ModelmeterError",
    "Profile",
    "Profiler",
    "Profiles",
    "Server",
    "Summary",
    "results",
    "run",
]
