"""The fleet under a real systemd: in its sandbox, with its model, killed, and warm after each restart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from forecastd.service.launch import FLEET_SERVICE, LaunchSpec
from forecastd.service.template import render_template

NAME = FLEET_SERVICE.name
PYTHON = "/opt/venv/bin/python"
PROGRAM = "/opt/forecastd/submit_prediction.py"

JOB = f"""#!{PYTHON} -I
import fcntl, json, os, pathlib, shutil, signal, socket, struct, subprocess, threading, urllib.request

UNITS = pathlib.Path("/etc/systemd/system")
KEY = "a-key-for-this-box-only"
facts = {{}}

def systemctl(*words):
    if subprocess.run(["systemctl", *words]).returncode:
        subprocess.run(["systemctl", "status", "--no-pager", "-l", "{NAME}"])
        subprocess.run("tail -50 /var/log/forecastd/*.log", shell=True)
        raise SystemExit("the command failed")

def show():
    process = subprocess.run(["systemctl", "show", "{NAME}"], check=True, capture_output=True, text=True)
    return dict(line.split("=", 1) for line in process.stdout.split("\\n") if "=" in line)

def status():
    request = urllib.request.Request("http://127.0.0.1:8080/status", headers={{"X-API-Key": KEY}})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)
    except OSError:
        return {{}}

def wait_until(what, condition):
    for _ in range(900):
        result = condition()
        if result:
            return result
        threading.Event().wait(0.1)
    subprocess.run("tail -50 /var/log/forecastd/*.log", shell=True)
    raise SystemExit(f"{{what}} did not happen: {{status()}}")

def forecasting():
    report = status()
    is_ready = report and report["forecast"]["tft"] == report["servers"]["ready"] == 20 and report["health"]["ok"]
    return report if is_ready else None

def wait_for_restart(before):
    def has_restarted():
        return show()["ActiveState"] == "active" and int(show()["MainPID"]) not in (before, 0)

    return wait_until("another start", has_restarted)

def service_processes():
    return [number for number in os.listdir("/proc") if number.isdigit() and owner(number) == 64000]

def owner(number):
    try:
        return os.stat(f"/proc/{{number}}").st_uid
    except OSError:
        return None

with socket.socket() as sock:  # bring up the box's loopback
    fcntl.ioctl(sock, 0x8914, struct.pack("16sh14x", b"lo", 0x1 | 0x40))
pathlib.Path("/etc/credstore").mkdir(mode=0o700)
pathlib.Path("/etc/credstore/forecastd.fleet-api-keys").write_text(KEY + "\\n")
shutil.copy("/run/box/unit", UNITS / "{NAME}.service")
(UNITS / "{NAME}.service.d").mkdir()
shutil.copy("/run/box/short", UNITS / "{NAME}.service.d/short.conf")
systemctl("daemon-reload")
systemctl("start", "{NAME}")
facts["started"] = show()["ActiveState"]
facts["status"] = show()["StatusText"]

agents = subprocess.Popen(["{PYTHON}", "{PROGRAM}", "fleet", "simulate", "--backfill", "28", "--json", "--api-key", KEY],
                          stdout=subprocess.PIPE, text=True)  # they send until they are stopped
report = wait_until("a forecast by the model", forecasting)
facts["ready"] = report["servers"]["ready"]
facts["health"] = report["health"]
facts["owner"] = (pathlib.Path("/var/lib/forecastd/fleet/window.sqlite").stat().st_uid, owner(show()["MainPID"]))

facts["warm after"] = {{}}
for signal_number in (signal.SIGKILL, signal.SIGSTOP):
    before = int(show()["MainPID"])
    os.kill(before, signal_number)
    wait_for_restart(before)
    facts["warm after"][signal_number.name] = wait_until("a forecast after a restart", forecasting)["servers"]["total"]

agents.send_signal(signal.SIGINT)
facts["agents"] = [json.loads(agents.communicate()[0])["as_expected"], agents.returncode]
log = pathlib.Path("/var/log/forecastd/fleet.log").read_text()
facts["complaints"] = [line for line in log.split("\\n") if "cpuinfo" in line or "Traceback" in line]
systemctl("stop", "{NAME}")
facts["stopped"] = [show()["ActiveState"], show()["Result"]]
wait_until("the end of all its processes", lambda: not service_processes())
facts["left"] = service_processes()
print(json.dumps(facts))
"""
SHORT = (
    "[Service]\nRestartSec=100ms\nWatchdogSec=6\nProtectHome=read-only\n"  # the interpreter may be in a home directory
)


def test_fleet_unit_runs_sandboxed_and_restarts_warm(systemd_box: Any) -> None:
    expected = LaunchSpec(
        python=Path(PYTHON), program=Path(PROGRAM), directory=Path("/opt/forecastd"), options=(), user="forecastd",
        per_user=False, state=None, logs=None, credential=None, service=FLEET_SERVICE,
    )  # fmt: skip
    unit = render_template("systemd", expected)
    output = systemd_box(JOB, unit=unit, short=SHORT)
    lines = [line for line in output.split("\n") if line.startswith("{")]
    assert lines, output
    facts = json.loads(lines[-1])
    assert facts["started"] == "active"
    assert facts["ready"] == 20
    assert facts["health"]["ok"], facts["health"]
    assert facts["owner"] == [64000, 64000]
    assert facts["warm after"] == {"SIGKILL": 20, "SIGSTOP": 20}  # at once, from the file
    assert facts["agents"] == [True, 0]  # every row had the expected result in spite of the kills
    assert facts["complaints"] == []
    assert facts["stopped"] == ["inactive", "success"]
    assert facts["left"] == []
