"""Roll a change out and prove it: python roll_out.py cluster.yaml."""

import asyncio
import sys

import kubeworker
from kubeworker import events


def tell(event: kubeworker.Event) -> None:
    match event:
        case events.NodeDone(node=node, status=status, detail=detail):
            print(f"{node}: {status} {detail}".rstrip())
        case events.Warning_(subject=subject, text=text):
            print(f"warning: {subject}: {text}")
        case _:
            pass


async def containerd_stays_up(plan: kubeworker.Plan) -> bool:
    """Goes on unless containers' runtime would be restarted: somebody should look at that first."""
    shown = plan.as_json()
    restarts = [
        f"{action['subject']} on {node['name']}"
        for node in shown["nodes"]
        for action in node["actions"]
        if action["kind"] == "restart"
    ]
    print(f"{plan.changes} changes; restarts: {', '.join(restarts) or 'none'}")
    return not any(each.startswith("containerd.service") for each in restarts)


async def roll_out(file: str) -> int:
    cluster = await kubeworker.spec(file)
    print(f"{len(cluster.nodes)} nodes, Kubernetes {cluster.versions.kubernetes}, kubeworker {kubeworker.__version__}")

    applied = await kubeworker.apply(file, confirm=containerd_stays_up, serial=1, report=tell)
    if not applied.confirmed or applied.exit_code:
        print("not done:", ", ".join(node.name for node in applied.nodes if node.status != "ok") or "declined")
        return 1

    proof = await kubeworker.verify(file, checks=["kubelet.", "node."], report=tell)
    for node in proof.nodes:
        for check in node.checks:
            if check.status == "failed":
                print(f"{node.name}: {check.id}: {check.detail}")
    print(f"{proof.passed} checks passed, {proof.failed} failed")
    return proof.exit_code


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(roll_out(sys.argv[1])))
    except kubeworker.KubeworkerError as error:
        print(f"{error.subject}: {error.message}\n  {error.hint or error.way_out}", file=sys.stderr)
        sys.exit(error.exit_code)
