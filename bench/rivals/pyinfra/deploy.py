"""pyinfra's deploy of the same nodes: files.put and files.template, then systemd.service, restarting what changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pyinfra import host
from pyinfra.operations import files, systemd

payload = Path(host.data.payload)
manifest: dict[str, Any] = json.loads((payload / "manifest.json").read_text())

for folder in manifest["directories"]:
    files.directory(name=folder["path"], path=folder["path"], mode=folder["mode"])

changed: dict[str, list[Any]] = {unit: [] for unit in manifest["units"]}
for file in manifest["files"]:
    path = file["path"]
    if file["place"] == "templates":
        done = files.template(
            name=path,
            src=str(payload / f"templates{path}"),
            dest=path,
            mode=file["mode"],
            node_name=host.name,
            node_ip=host.data.ssh_hostname,
        )
    else:
        place = "common" if file["place"] == "common" else f"nodes/{host.name}"
        done = files.put(name=path, src=str(payload / f"{place}{path}"), dest=path, mode=file["mode"])
    for unit in file["restarts"]:
        changed[unit].append(done)

units_written = [each for unit in manifest["units"] for each in changed[unit]]
systemd.daemon_reload(name="daemon-reload", _if=lambda: any(each.did_change() for each in units_written))
for unit, files_of_it in changed.items():
    systemd.service(name=unit, service=unit, running=True, enabled=True)
    systemd.service(
        name=f"{unit}, changed",
        service=unit,
        restarted=True,
        _if=lambda its=files_of_it: any(each.did_change() for each in its),
    )
