"""Finds the compiler for TPUs where `make test` has put it, apart from what other programs find."""

import importlib.util
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / ".libtpu"
sys.path.append(str(FOLDER))
needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="planning compiles with libtpu")
