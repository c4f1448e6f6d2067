"""The `supervise` command: each job ends, whatever a model process does, and no process outlives the command."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil
import pytest

SHORT_TIMEOUT = ("--timeout", "predicting=2")


def remaining_processes(pids: Iterable[int]) -> list[int]:
    """Which of these processes and their descendants still run; each leads a session of its own."""
    sessions, processes = set(pids), []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError):
            if os.getsid(process.pid) in sessions:
                processes.append(process)
    return [process.pid for process in psutil.wait_procs(processes, timeout=60)[1]]


@pytest.fixture
def supervise(command: Any) -> Callable[..., Any]:
    """Runs `supervise --json`: the output is one object, and every process in it has ended."""

    def run(*arguments: str, **more: str) -> Any:
        result = command("supervise", "--json", *arguments, **more)
        assert "Traceback" not in result.err.replace("Traceback (most recent call first)", "")
        assert result.document["exit_code"] == result.code
        if "pids" in result.document:
            assert result.document["pids"]
            assert remaining_processes(result.document["pids"]) == []
        return result

    return run


def event_kinds(report: dict[str, Any]) -> list[str]:
    return [event["kind"] for event in report["events"]]


def test_healthy_model_completes_every_job(supervise: Callable[..., Any]) -> None:
    result = supervise("--jobs", "3")
    assert result.code == 0, result.err
    report = result.document
    assert report["outcome"] == "served"
    assert [job["name"] for job in report["jobs"]] == ["forecast 1", "forecast 2", "forecast 3"]
    assert {job["outcome"] for job in report["jobs"]} == {"result"}
    assert len({job["value"] for job in report["jobs"]}) == 1, "the same input gives the same forecast"
    assert {job["pid"] for job in report["jobs"]} <= set(report["pids"])
    assert report["bundle"]["name"] == "demo"
    assert report["input"] == "the bundle's canary"
    assert not {"hung", "died", "invalid_result", "deadline_exceeded"} & set(event_kinds(report))
    assert event_kinds(report).count("ready") == 2, "the worker and its standby"
    assert event_kinds(report).index("dispatched") > event_kinds(report).index("ready")
    assert set(report["slowest"]) >= {"starting", "loading", "warming_up", "predicting"}


@pytest.mark.parametrize(
    ("fault", "kind", "message", "more"),
    [
        ("hang@0", "hung", "no progress", SHORT_TIMEOUT),
        ("hang@99", "hung", "no progress", SHORT_TIMEOUT),
        ("hang@post_processing", "hung", "the limit in post_processing", ("--timeout", "post_processing=2")),
        ("hang,ignore-term", "hung", "no progress", (*SHORT_TIMEOUT, "--timeout", "stopping=2")),
        ("oscillate", "hung", "no progress", SHORT_TIMEOUT),
        ("stale", "hung", "no progress", SHORT_TIMEOUT),
        ("deaf", "hung", "no progress", SHORT_TIMEOUT),
        ("silent", "hung", "no heartbeat for", ("--timeout", "heartbeat=4")),
        ("crash", "died", "SIGSEGV", ()),
        ("exit:7", "died", "exit status 7", ()),
        ("torn", "died", "SIGKILL", ()),
        ("raise", "died", "a_library_that_is_not_there", ()),
        ("raise@loading", "died", "phase loading", ()),
        ("garbage", "died", "invalid message", ()),
        ("shape", "invalid_result", "shape", ()),
        ("nan:1", "invalid_result", "not finite", ()),
        ("leak", "invalid_result", "memory", ()),
    ],
)
def test_faulty_process_has_its_job_completed_by_another(
    supervise: Callable[..., Any], fault: str, kind: str, message: str, more: tuple[str, ...]
) -> None:
    result = supervise("--fault", fault, "--jobs", "2", "--memory", "512", *more)
    assert result.code == 0, result.err
    report = result.document
    assert [job["outcome"] for job in report["jobs"]] == ["result", "result"]
    lost = [event for event in report["events"] if event["kind"] == kind]
    assert lost, event_kinds(report)
    assert message in lost[0]["text"]
    assert lost[0]["pid"] not in {job["pid"] for job in report["jobs"][1:]}
    assert report["counts"]["replacements"] >= 1
    assert ("failed_over" in event_kinds(report)) is (lost[0]["job"] != ""), (
        "a process without a job has nothing to hand over"
    )


@pytest.mark.parametrize("fault", ["fork", "print:256", "slow:0.05", "ignore-term"])
def test_harmless_fault_does_not_replace_process(supervise: Callable[..., Any], fault: str) -> None:
    result = supervise("--fault", fault, "--timeout", "stopping=2")
    assert result.code == 0, result.err
    assert not {"hung", "died", "invalid_result", "deadline_exceeded"} & set(event_kinds(result.document))


def test_job_without_standby_waits_for_new_process(supervise: Callable[..., Any]) -> None:
    result = supervise("--fault", "crash", "--standbys", "0")
    assert result.code == 0, result.err
    assert result.document["counts"]["failovers"] == 0
    assert result.document["counts"]["launches"] >= 2


def test_always_crashing_bundle_fails_and_is_not_quarantined_on_disk(
    supervise: Callable[..., Any], command: Any
) -> None:
    result = supervise("--fault", "crash", "--faulty", "0", "--jobs", "2")
    assert result.code == 4
    report = result.document
    assert report["outcome"] == "skipped"
    assert {job["outcome"] for job in report["jobs"]} == {"failed"}
    assert all("SIGSEGV" in job["reason"] and "in quarantine" in job["reason"] for job in report["jobs"])
    assert "quarantined" in event_kinds(report)
    assert "in quarantine" in result.err
    assert command("model", "quarantine", "--json").document == {"quarantined": []}


def test_job_past_deadline_fails_with_its_progress(supervise: Callable[..., Any]) -> None:
    result = supervise("--fault", "slow:60@predicting", "--faulty", "0", "--deadline", "5")
    assert result.code == 4
    assert "deadline has passed" in result.document["reason"]
    assert "deadline_exceeded" in event_kinds(result.document)


def test_source_option_predicts_from_candles(supervise: Callable[..., Any]) -> None:
    result = supervise("--source", "sample", "--as-of", "2025-01-01T00:00:00Z")
    assert result.code == 0, result.err
    assert "2025-01-01T00:00:00Z" in result.document["input"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--fault", "explode"), "hang, silent, oscillate"),
        (("--fault", "hang:3"), "takes no value"),
        (("--fault", "hang@101"), "from 0 to 100"),
        (("--fault", "hang@nowhere"), "post_processing"),
        (("--timeout", "thinking=3"), "warming_up"),
        (("--timeout", "predicting=soon"), "PHASE=SECONDS"),
        (("--timeout", "predicting=0"), "PHASE=SECONDS"),
        (("--timeout", "predicting=nan"), "PHASE=SECONDS"),
        (("--deadline", "0"), "deadline"),
        (("--jobs", "0"), "jobs"),
        (("--as-of", "2025-01-01"), "--source"),
    ],
)
def test_wrong_usage_exits_2_and_lists_choices(command: Any, arguments: tuple[str, ...], message: str) -> None:
    result = command("supervise", *arguments)
    assert result.code == 2
    assert message in " ".join(result.err.split())
    assert result.out == ""


def test_invalid_bundle_exits_5(supervise: Callable[..., Any], root: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "copy"
    shutil.copytree(root / "models" / "demo", bundle)
    weights = bundle / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    for path, check in ((bundle, "hash"), (tmp_path / "nowhere", "missing")):
        result = supervise("--model", str(path))
        assert result.code == 5
        assert f"(check: {check})" in result.document["reason"]


def test_help_fits_eighty_columns_and_imports_nothing_heavy(command: Any, root: Path) -> None:
    result = command("supervise", "--help")
    assert max(map(len, result.out.splitlines())) <= 80
    for variable in ("MODEL", "STANDBYS", "JOB_ATTEMPTS", "MODEL_MEMORY_MB", "STARTING_TIMEOUT"):
        assert f"[{variable}" in result.out
    code = (
        "import sys\nfrom cli.main import main\nmain(['supervise', '--help'])\n"
        "heavy = {'numpy', 'rich', 'pydantic', 'torch', 'lightning', 'pytorch_forecasting', 'pandas', 'scipy'}\n"
        "heavy |= {'google.protobuf', 'grpc', 'onnxruntime'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert result.stderr.strip() == "[]"


def test_fault_list_fits_eighty_columns(command: Any) -> None:
    result = command("supervise", "--faults")
    assert result.code == 0
    for kind in ("hang", "silent", "oscillate", "crash", "leak", "garbage", "ignore-term", "KIND[:VALUE][@PLACE]"):
        assert kind in result.out
    assert max(map(len, result.out.splitlines())) <= 80


def test_piped_output_has_one_line_per_event(command: Any) -> None:
    # Five seconds are enough for a healthy child on a busy machine.
    result = command("supervise", "--fault", "hang@43", "--timeout", "predicting=5")
    assert result.code == 0, result.out + result.err
    assert result.err == ""
    (hang,) = [line for line in result.out.splitlines() if " hung: " in line]
    for message in (
        "phase predicting",
        "job forecast 1",
        "at 43 %",
        "last heartbeat",
        "last progress",
        "handed over to",
    ):
        assert message in hang
    times = [float(line.split()[0]) for line in result.out.splitlines() if re.match(r" *\d+\.\d{3}  ", line)]
    assert len(times) > 8
    assert "served" in result.out
    assert "\x1b" not in result.out


def test_terminal_output_shows_running_processes(root: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    screen, terminal = pty.openpty()
    try:
        with subprocess.Popen(
            [sys.executable, str(root / "submit_prediction.py"), "supervise", "--fault", "hang@43", *SHORT_TIMEOUT],
            cwd=tmp_path, env={**environment, "TERM": "xterm"}, stdin=terminal, stdout=terminal, stderr=terminal,
        ) as process:  # fmt: skip
            os.close(terminal)
            output = b""
            with contextlib.suppress(OSError):  # Linux reports the end of the terminal as an error
                while part := os.read(screen, 4096):
                    output += part
            assert process.wait(timeout=60) == 0
    finally:
        os.close(screen)
    for message in (b"heartbeat", b"43 %", b" hung: ", b"served"):
        assert message in output


def test_ctrl_c_exits_130_and_leaves_no_process(root: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    with subprocess.Popen(
        [sys.executable, str(root / "submit_prediction.py"), "supervise", "--fault", "hang,ignore-term,fork"],
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        output = ""
        while "works on forecast 1" not in output:
            line = process.stdout.readline()
            assert line, output
            output += line
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    assert process.returncode == 130, output + rest + errors
    assert errors.strip() == "Interrupted."
    pids = [int(pid) for pid in re.findall(r"process (\d+) started", output + rest)]
    assert len(pids) == 2
    assert remaining_processes(pids) == []
