"""What a child process imports: its memory and the time of its start depend on it."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "lightning", "pytorch_forecasting", "pandas", "scipy", "pydantic", "requests", "orjson")
CODE = """
import sys
import forecastd.inference.child
from forecastd.inference.runner import open_runner
open_runner(sys.argv[1])
print(*sys.modules)
"""


@pytest.mark.parametrize(
    ("kind", "absent"),
    [
        ("market", (*HEAVY, "models.fleet.engines", "models.train")),
        ("fleet", (*(name for name in HEAVY if name != "orjson"), "models.market.engine", "models.train")),
    ],
)
def test_child_imports_only_what_its_kind_needs(kind: str, absent: tuple[str, ...]) -> None:
    result = subprocess.run([sys.executable, "-c", CODE, kind], capture_output=True, text=True, timeout=120, check=True)
    assert set(result.stdout.split()).isdisjoint(absent)
