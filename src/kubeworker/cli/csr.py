"""`kubeworker csr`."""

from __future__ import annotations

import asyncio
from typing import Literal

from cyclopts import App

from kubeworker.cli.options import DEFAULT_FILE, PROGRESS, Compare, File, Flag, Json, ProgressOptions

app = App(name="csr", help="Kubelets' certificate requests: list them, approve those that hold every rule.")


@app.command(name="list")
async def list_(*, file: File = DEFAULT_FILE, json: Json = False) -> int:
    """Show every certificate signing request, client and serving ones, with what stops it.

    A pending one shows the rule that it breaks, or that it may be approved; one that was approved and never issued says
    who should have signed it; one that failed or was denied says why.

    Args:
        file: The cluster file; paths in it are relative to it.
        json: Print the list as one JSON document.
    """
    from kubeworker.cli.output import console, print_document
    from kubeworker.cli.report_csr import print_requests
    from kubeworker.cli.spec import load_cluster
    from kubeworker.flow import csr

    cluster = load_cluster(file)
    async with await csr.connect(cluster) as kube:
        listed = await csr.listing(kube, cluster)
    if json:
        print_document({"requests": [each.as_json() for each in listed]})
    else:
        print_requests(console(), listed)
    return 0


@app.command
async def approve(
    *,
    file: File = DEFAULT_FILE,
    watch: Flag = False,
    serving_only: Flag = False,
    compare: Compare = True,
    health_port: int | None = None,
    json: Json = False,
    progress: ProgressOptions = PROGRESS,
) -> int:
    """Approve kubelets' requests that hold every rule; exit code 1 if one stays pending because it breaks a rule.

    With --watch it goes on until it is stopped, which is no failure then: as a service it approves renewals unattended.
    After the approval it connects to each node's kubelet and compares the certificate that is shown there with the one
    that was issued; another one is an alarm, and exit code 1.

    Args:
        file: The cluster file; paths in it are relative to it.
        watch: Go on until interrupted: renewals come months later. Broken rules are reported once each; cluster.yaml is
            read again when it changes.
        serving_only: Leave requests of bootstrap tokens alone, and read no token: `apply` looks at them itself.
        compare: Connect to the kubelets of approved requests (port 10250), straight from here.
        health_port: With --watch: answer HTTP on this port, /healthz with 200 while it goes round, /readyz with 200
            while the API answers too, else with 503. A systemd service (Type=notify, WatchdogSec=) needs none.
        json: Print what was approved and what stays pending as one JSON document.
    """
    from kubeworker.cli.output import console, print_document
    from kubeworker.cli.report import reporting
    from kubeworker.cli.report_csr import print_requests
    from kubeworker.cli.spec import load_cluster
    from kubeworker.errors import UsageError
    from kubeworker.flow import csr, csr_alive, csr_shown, csr_watch

    kinds = csr.SERVING_ONLY if serving_only else csr.BOTH
    if watch and json:
        hint = "use --json-events: one line for each decision"
        what = "--json prints one document, and --watch has no end"
        raise UsageError(what, subject="kubeworker csr approve", hint=hint)
    if health_port is not None and not watch:
        raise UsageError(
            "--health-port answers only while --watch runs", subject="kubeworker csr approve", hint="add --watch"
        )
    with reporting(progress.form) as report:
        if watch:
            try:
                async with csr_alive.shown(health_port) as alive:
                    heard = alive.heard(report)
                    await csr_watch.watch(file, heard, kinds=kinds, compare=compare, turned=alive.turned)
            except asyncio.CancelledError:
                return 0  # SIGTERM or Ctrl-C: there is no other way to end it
        cluster = load_cluster(file)
        async with await csr.connect(cluster) as kube:
            look = csr_shown.from_here(cluster) if compare else None
            done = await csr.approve(kube, cluster, report, kinds=kinds, look=look)
    if json:
        print_document(done.as_json())
    elif done.left:
        print_requests(console(), done.left)
    return 0 if done.well else 1


@app.command
def service(
    *,
    kind: Literal["systemd", "deployment"],
    file: File = DEFAULT_FILE,
    image: str = "",
    user: str = "kubeworker",
) -> int:
    """Print what runs `csr approve --watch --serving-only` unattended: a systemd unit, or objects for the cluster.

    The unit is for this host. The objects are a Deployment, its ServiceAccount with the rights that it uses, and the
    names and addresses of cluster.yaml: `kubeworker csr service --kind deployment --image IMAGE | kubectl apply -f -`,
    again whenever nodes are added.

    Args:
        kind: Where it is to run.
        file: The cluster file; the unit names it, the Deployment takes its inventory along.
        image: With deployment: an image that has kubeworker on its PATH.
        user: With systemd: the user that it runs as, who can read the cluster file and the kubeconfig.
    """
    import sys
    from pathlib import Path

    from kubeworker.cli.spec import load_cluster
    from kubeworker.core.certificates import approver
    from kubeworker.errors import UsageError

    cluster = load_cluster(file)
    if kind == "systemd":
        program = Path(sys.argv[0]).absolute()
        text = approver.systemd_unit(program=str(program), cluster_file=str(file.absolute()), user=user)
    elif image:
        text = approver.manifest(cluster, image=image)
    else:
        hint = "name one with --image: there is no official image; any with kubeworker installed will do"
        raise UsageError("--kind deployment needs an image", subject="kubeworker csr service", hint=hint)
    sys.stdout.write(text)
    return 0
