"""The unit under a real systemd, process 1 of its own namespaces, with a fake worker that notifies like the daemon."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from forecastd.service.launch import LaunchSpec
from forecastd.service.template import render_template

NAME = "allora-submission"
PYTHON = "/opt/venv/bin/python"

# Notifies through forecastd.runtime.sd_notify. On SIGUSR1 it ends with the code in STATE/code, or with SIGHUP for "hup".
FAKE_WORKER = f"""#!{PYTHON} -I
import ctypes, json, mmap, os, pathlib, resource, signal, socket, subprocess, sys, threading, time
sys.path.insert(0, "/opt/forecastd")
from forecastd.runtime.sd_notify import SystemdNotifier

PLACES = ["/etc", "/usr", "/opt/forecastd"]
state = pathlib.Path(os.environ.get("STATE_DIRECTORY") or sys.argv[2])
signals = []
wake = threading.Event()
for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda number, _: (signals.append(number), wake.set()))
notifier = SystemdNotifier(os.environ.get("NOTIFY_SOCKET"))

def attempt(action):
    try:
        action()
    except (OSError, PermissionError) as error:
        return error.strerror
    return "done"

def crypto():
    import cffi, coincurve, grpc, numpy
    assert numpy.ones((64, 64)).dot(numpy.ones((64, 64)))[0, 0] == 64
    assert len(coincurve.PrivateKey(b"k" * 32).sign_recoverable(b"m")) == 65
    grpc.insecure_channel("127.0.0.1:1").close()

def child():
    limit = lambda: (ctypes.CDLL(None).prctl(1, 9), resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30)))
    subprocess.run([sys.executable, "-c", "import numpy"], check=True, preexec_fn=limit, env={{}})

def look_around():
    status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
    facts = {{
        "who": [os.getuid(), os.getgid()],
        "where": os.getcwd(),
        "umask": os.umask(0o077),
        "capabilities": [status["CapEff"].strip(), status["CapBnd"].strip()],
        "new privileges, seccomp": [status["NoNewPrivs"].strip(), status["Seccomp"].strip()],
        "directories": [os.environ.get("STATE_DIRECTORY"), os.environ.get("LOGS_DIRECTORY")],
        "watchdog": [os.environ.get("WATCHDOG_USEC"), os.environ.get("WATCHDOG_PID") == str(os.getpid())],
        "core": resource.getrlimit(resource.RLIMIT_CORE)[0],
        "write": {{place: attempt(pathlib.Path(place, "new").touch) for place in PLACES + [str(state)]}},
        "write and execute": attempt(lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC | mmap.PROT_READ)),
        "other processes": [name for name in os.listdir("/proc") if name.isdigit() and int(name) < os.getpid()],
        "lease": attempt(lambda: socket.socket(socket.AF_UNIX).bind("\\0forecastd-box")),
        "resolve": attempt(lambda: socket.getaddrinfo("localhost", 80)),
        "libraries": attempt(crypto),
        "child": attempt(child),
    }}
    credential = pathlib.Path(os.environ.get("CREDENTIALS_DIRECTORY", "/nowhere"), "mnemonic")
    facts["credential"] = credential.read_text() if credential.exists() else None
    (state / "facts").write_text(json.dumps(facts))

if not (state / "facts").exists():
    look_around()
notifier.ready("serves topic 67")
while True:
    notifier.watchdog()
    wake.wait(0.5)
    wake.clear()
    while signals:
        number = signals.pop(0)
        if number == signal.SIGHUP:
            notifier.reloading(time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000)
            notifier.ready("reloaded")
        elif number == signal.SIGTERM:
            notifier.stopping("stopped by SIGTERM")
            sys.exit(0)
        elif (state / "code").read_text() == "hup":
            signal.signal(signal.SIGHUP, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGHUP)
        else:
            sys.exit(int((state / "code").read_text()))
"""

# The common start of all jobs.
DRIVE = f"""#!{PYTHON} -I
import json, os, pathlib, shutil, signal, subprocess, sys, threading

def systemctl(*words):
    if subprocess.run([*CALL, *words], env=dict(os.environ, **ENVIRONMENT)).returncode:
        print({{name: show()[name] for name in ("ActiveState", "Result", "ExecMainStatus", "LoadState")}})
        raise SystemExit("systemctl failed")

def show(name="{NAME}"):
    result = subprocess.run([*CALL, "show", name], check=True, capture_output=True, text=True,
                          env=dict(os.environ, **ENVIRONMENT))
    return dict(line.split("=", 1) for line in result.stdout.split("\\n") if "=" in line)

def until(condition):
    for _ in range(600):
        if condition(show()):
            return
        threading.Event().wait(0.1)
    raise SystemExit("the expected state was not reached")

def pid():
    return int(show()["MainPID"])

def running_again(before):
    until(lambda unit: unit["ActiveState"] == "active" and int(unit["MainPID"]) not in (before, 0))

CALL, ENVIRONMENT = ["systemctl"], {{}}
UNITS = pathlib.Path("/etc/systemd/system")
facts = {{}}
"""

SYSTEM = (
    DRIVE
    + f"""
state = pathlib.Path("/var/lib/forecastd")
pathlib.Path("/etc/credstore").mkdir(mode=0o700)
pathlib.Path("/etc/credstore/forecastd.mnemonic").write_text("the phrase")
shutil.copy("/run/box/unit", UNITS / "{NAME}.service")
(UNITS / "{NAME}.service.d").mkdir()
shutil.copy("/run/box/short", UNITS / "{NAME}.service.d/short.conf")
systemctl("daemon-reload")

systemctl("start", "{NAME}")
facts["started"] = [show()["ActiveState"], show()["StatusText"]]
facts["inside"] = json.loads((state / "facts").read_text())

first = pid()
systemctl("reload", "{NAME}")
until(lambda unit: unit["StatusText"] == "reloaded" and unit["ActiveState"] == "active")
facts["reloaded in place"] = pid() == first

for how in (signal.SIGSTOP, signal.SIGKILL):
    before = pid()
    os.kill(before, how)
    running_again(before)

for code in ("5", "6", "hup"):
    before = pid()
    (state / "code").write_text(code)
    os.kill(before, signal.SIGUSR1)
    running_again(before)

facts["ended"] = {{}}
for code in ("2", "0"):
    (state / "code").write_text(code)
    os.kill(pid(), signal.SIGUSR1)
    until(lambda unit: unit["ActiveState"] in ("failed", "inactive"))
    threading.Event().wait(1)  # ten times the restart delay above
    facts["ended"][code] = [show()["ActiveState"], show()["Result"]]
    systemctl("start", "{NAME}")

systemctl("stop", "{NAME}")
facts["stopped"] = [show()["ActiveState"], show()["Result"]]
print(json.dumps(facts))
"""
)

USER_MANAGER = (
    DRIVE
    + f"""
home = pathlib.Path("/home/worker")
# A real machine has, unlike the box, a complete /proc and the directory that the first confined service creates.
subprocess.run(["umount", "/proc/sys"], check=True)
pathlib.Path("/run/systemd/unit-root").mkdir()
for place in (".config/systemd/user", "state", "logs", "here"):
    (home / place).mkdir(parents=True)
shutil.copy("/run/box/unit", home / ".config/systemd/user/{NAME}.service")
shutil.chown(home, 64000, 64000)
for place in home.rglob("*"):
    shutil.chown(place, 64000, 64000)
(UNITS / "manager.service").write_text('''[Service]
User=forecastd
Delegate=yes
RuntimeDirectory=user/64000
Environment=HOME=/home/worker XDG_RUNTIME_DIR=/run/user/64000
ExecStart=/lib/systemd/systemd --user
Type=notify
''')
systemctl("daemon-reload")
systemctl("start", "manager")
CALL = ["setpriv", "--reuid=64000", "--regid=64000", "--clear-groups", "systemctl", "--user"]
ENVIRONMENT = {{"XDG_RUNTIME_DIR": "/run/user/64000"}}
systemctl("start", "{NAME}")
facts["started"] = [show()["ActiveState"], show()["StatusText"]]
facts["inside"] = json.loads((home / "state/facts").read_text())
before = pid()
os.kill(before, signal.SIGKILL)
running_again(before)
systemctl("stop", "{NAME}")
facts["stopped"] = [show()["ActiveState"], show()["Result"]]
print(json.dumps(facts))
"""
)

READ = (
    DRIVE
    + """
for file in pathlib.Path("/run/box").glob("*.service"):
    shutil.copy(file, UNITS)
systemctl("daemon-reload")
for file in pathlib.Path("/run/box").glob("*.service"):
    facts[file.name] = show(file.name)
print(json.dumps(facts))
"""
)

SHORT = "[Service]\nWatchdogSec=6\nRestartSec=100ms\nProtectHome=read-only\n"  # the interpreter may be below a home


def launch(**more: Any) -> LaunchSpec:
    parts: dict[str, Any] = {
        "python": Path(PYTHON), "program": Path("/run/box/daemon"), "directory": Path("/opt/forecastd"), "options": (),
        "user": "forecastd", "per_user": False, "state": None, "logs": None, "credential": None,
    }  # fmt: skip
    return LaunchSpec(**(parts | more))


def unit(launch_spec: LaunchSpec) -> str:
    return render_template("systemd", launch_spec)


def facts(output: str) -> dict[str, Any]:
    """Parse the last line of a job's output; fail with the whole output when it is not JSON."""
    try:
        result: dict[str, Any] = json.loads(output.splitlines()[-1])
    except (IndexError, ValueError):
        pytest.fail(output)
    return result


CONFINED = {
    "umask": 0o077,
    "capabilities": ["0" * 16, "0" * 16],
    "new privileges, seccomp": ["1", "2"],
    "core": 0,
    "write and execute": "Operation not permitted",
    "other processes": [],
    "lease": "done",
    "resolve": "done",
    "libraries": "done",
    "child": "done",
}
READ_ONLY = dict.fromkeys(("/etc", "/usr", "/opt/forecastd"), "Read-only file system")


def test_systemd_starts_reloads_watches_and_stops(systemd_box: Any) -> None:
    output = facts(systemd_box(SYSTEM, unit=unit(launch()), short=SHORT, daemon=FAKE_WORKER))
    assert output["started"] == ["active", "serves topic 67"]
    assert output["inside"] == CONFINED | {
        "who": [64000, 64000],
        "where": "/opt/forecastd",
        "directories": ["/var/lib/forecastd", "/var/log/forecastd"],
        "watchdog": ["6000000", True],
        "write": READ_ONLY | {"/var/lib/forecastd": "done"},
        "credential": "the phrase",
    }
    assert output["reloaded in place"]
    assert output["ended"] == {"2": ["failed", "exit-code"], "0": ["inactive", "success"]}
    assert output["stopped"] == ["inactive", "success"]


def test_systemd_user_manager_confines_the_service(systemd_box: Any) -> None:
    home = Path("/home/worker")
    launch_spec = launch(
        per_user=True,
        directory=home / "here",
        state=home / "state",
        logs=home / "logs",
        options=("--state-dir", f"{home}/state"),
    )
    text = unit(launch_spec).replace("--daemon --state-dir", "--daemon")  # the fake worker takes only the directory
    text = text.replace("RestartSec=15", "RestartSec=100ms")
    output = facts(systemd_box(USER_MANAGER, unit=text, daemon=FAKE_WORKER))
    assert output["started"] == ["active", "serves topic 67"]
    assert output["inside"] == CONFINED | {
        "other processes": output["inside"]["other processes"],  # only root can restrict /proc
        "who": [64000, 64000],
        "where": "/home/worker/here",
        "directories": [None, None],
        "watchdog": ["60000000", True],
        "write": READ_ONLY | {"/home/worker/state": "done"},
        "credential": None,
    }
    assert output["stopped"] == ["inactive", "success"]


PATHS = ["/plain", "/中文", "/-:@+", "/a=b,c", "/~", "/a.b_c-d"]


def test_systemd_reads_every_path_unchanged(systemd_box: Any) -> None:
    launches = {
        f"u{number}.service": launch(
            program=Path(path),
            directory=Path(path),
            state=Path(path),
            options=("--log-dir", path),
            credential=Path(f"{path}/c"),
        )
        for number, path in enumerate(PATHS)
    }
    output = facts(systemd_box(READ, **{name: unit(launch_spec) for name, launch_spec in launches.items()}))
    for name, launch_spec in launches.items():
        actual_paths = output[name]
        assert f"argv[]={' '.join(launch_spec.command)} ; ignore_errors" in actual_paths["ExecStart"]
        assert (actual_paths["LoadState"], actual_paths["WorkingDirectory"]) == ("loaded", str(launch_spec.directory))
        assert actual_paths["ReadWritePaths"] == str(launch_spec.state)
