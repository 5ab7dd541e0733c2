"""What `import execsafe` adds to a bare interpreter: time, memory and modules."""

import json
import subprocess
import sys

import pytest

MEASURE = """
import json, pathlib, sys, time
began = time.perf_counter()
before = set(sys.modules)
{work}
spent = time.perf_counter() - began
loaded = sorted({{name.partition(".")[0] for name in set(sys.modules) - before}})
status = pathlib.Path("/proc/self/status")  # ru_maxrss would include what the parent had before the exec
lines = status.read_text().splitlines() if status.exists() else []
mib = next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)
print(json.dumps({{"ms": spent * 1000, "mib": mib, "loaded": loaded}}))
"""
IMPORT = "import execsafe"
ALL_NAMES = "import execsafe\nfor name in execsafe.__all__: getattr(execsafe, name)"
HEAVY = {"ccxt", "aiohttp", "sqlite3", "trio", "rich", "psycopg", "redis", "coredis", "pytest", "hypothesis"}
MS_MAX, MIB_MAX = 120.0, 25.0


def measured(work: str, rounds: int = 5) -> dict:
    """The best of several fresh interpreters."""
    runs = []
    for _ in range(rounds):
        done = subprocess.run(
            [sys.executable, "-c", MEASURE.format(work=work)], check=True, capture_output=True, text=True
        )
        runs.append(json.loads(done.stdout))
    return {
        "ms": min(run["ms"] for run in runs),
        "mib": min(run["mib"] for run in runs),
        "loaded": set(runs[0]["loaded"]),
    }


@pytest.mark.parametrize("work", [IMPORT, ALL_NAMES], ids=["import execsafe", "all public names"])
def test_import(work, benchmark, ratio, request):
    """Under 120 ms and 25 MiB above the bare interpreter; nothing heavy is loaded, whatever name is used."""
    name = request.node.callspec.id
    bare, asyncio_, ours = measured("pass"), measured("import asyncio"), measured(work)

    assert ours["loaded"] & HEAVY == set()
    is_bare = work == IMPORT
    ratio(f"{name}, ms", ours["ms"], MS_MAX, floor="120 ms", reach=1.0 if is_bare else None)
    ratio(f"{name}, MiB", ours["mib"] - bare["mib"], MIB_MAX, floor="25 MiB", reach=1.0 if is_bare else None)
    ratio(f"{name}, ms", ours["ms"], asyncio_["ms"], floor="import asyncio", reach=1.5 if is_bare else None)
    benchmark(lambda: None)
