#!/usr/bin/env python3
"""Does the packaged service let kvxferd reach what it serves: RDMA devices, GPUs of both vendors, what their runtimes read?

usage: check_unit.py ROOT. Prints what is wrong; exit status 1 when something is. Where systemd-analyze is installed it
reads the units, too.
"""
import os
import shutil
import subprocess
import sys
import tempfile

DEVICES = {  # names of /proc/devices, by whom they are needed
    "char-infiniband_verbs": "RDMA devices",
    "/dev/infiniband/rdma_cm": "connections between RDMA devices",
    "char-nvidia*": "NVIDIA GPUs: nvidia or nvidia-frontend, nvidiactl, nvidia-uvm, nvidia-caps",
    "char-kfd": "AMD GPUs: /dev/kfd",
    "char-drm": "AMD GPUs: /dev/dri/renderD*",
}
# What the start may take at most: trying runtimes, starting one, opening devices.
START_S = 43 + 35 + 30


def settings(path):
    """Of a unit: the values of each key, in order."""
    found = {}
    with open(path, encoding="utf-8") as unit:
        for line in unit:
            if "=" in line and not line.startswith("#"):
                key, value = line.strip().split("=", 1)
                found.setdefault(key, []).append(value)
    return found


def check_service(unit):
    allowed = dict(value.split() for value in unit.get("DeviceAllow", []))
    for device, what in DEVICES.items():
        if allowed.get(device) != "rw":
            yield f"DeviceAllow={device} rw is missing: {what}"
    if unit.get("PrivateDevices", ["no"]) != ["no"]:
        yield "PrivateDevices= hides all devices"
    if unit.get("ProcSubset", ["all"]) != ["all"]:
        yield "ProcSubset= hides /proc/cpuinfo and /proc/driver/nvidia from GPU runtimes"
    if "SupplementaryGroups" in unit:
        yield "SupplementaryGroups= keeps the service from starting where there is no such group"
    if int(unit.get("TimeoutStartSec", ["90"])[0]) < START_S:
        yield f"TimeoutStartSec= is less than {START_S} s: GPUs that hang end the start"


def check_groups(path):
    with open(path, encoding="utf-8") as sysusers:
        lines = [line.split() for line in sysusers]
    for group in ("render", "video"):
        if ["m", "kvxfer", group] not in lines:
            yield f"kvxfer is not made a member of the group {group}, which may open AMD GPUs"


def analyze(folder):
    """What systemd says of the units; the program need not be installed."""
    with tempfile.TemporaryDirectory() as temp:
        with open(os.path.join(folder, "kvxferd.service.in"), encoding="utf-8") as source:
            lines = ["ExecStart=/bin/true\n" if line.startswith("ExecStart=") else line for line in source]
        with open(os.path.join(temp, "kvxferd.service"), "w", encoding="utf-8") as unit:
            unit.writelines(lines)
        shutil.copy(os.path.join(folder, "kvxferd.socket"), temp)
        said = subprocess.run(["systemd-analyze", "--man=no", "verify", "./kvxferd.service", "./kvxferd.socket"],
                              cwd=temp, capture_output=True, text=True, check=False)
    return [line for line in said.stderr.splitlines() if "kvxferd." in line]


def main():
    packaging = os.path.join(sys.argv[1], "packaging")
    folder = os.path.join(packaging, "systemd")
    problems = list(check_service(settings(os.path.join(folder, "kvxferd.service.in"))))
    problems += check_groups(os.path.join(packaging, "sysusers", "kvxfer.conf"))
    if shutil.which("systemd-analyze"):
        problems += analyze(folder)
    else:
        print("systemd-analyze is not installed: the units were not read by systemd")
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
