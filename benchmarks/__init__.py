"""Benchmarks of the service. `python -m benchmarks` compares the service with a minimal server."""

import sys
from pathlib import Path

# Some benchmarks import test helpers. pytest finds them through its `pythonpath` setting, which plain Python ignores.
sys.path.append(str(Path(__file__).parent.parent / "packages/hitless/tests"))
