"""Measurements of the service. `python -m benchmarks` compares its speed with the fastest possible one."""

import sys
from pathlib import Path

# Some of them use helpers of the tests, which pytest finds by its `pythonpath` setting.
sys.path.append(str(Path(__file__).parent.parent / "packages/hitless/tests"))
