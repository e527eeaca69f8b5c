"""Benchmarks of the service. `python -m benchmarks` compares its speed with that of a minimal server."""

import sys
from pathlib import Path

# Some benchmarks use helpers of the tests, which pytest finds through its `pythonpath` setting.
sys.path.append(str(Path(__file__).parent.parent / "packages/hitless/tests"))
