"""Custom inspectors for modelmeter, in Python: test data, requests and checks of your own.

A worker runs the program that its configuration names as its child; `run` is what such a program calls. Nothing
but the standard library is needed.
"""

from .child import run
from .inspector import BaseModelInspector, GrpcRequest, Server
from .ports import *  # noqa: F403

__all__ = ["BaseModelInspector", "GrpcRequest", "Server", "run"]
