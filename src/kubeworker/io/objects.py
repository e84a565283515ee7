"""Objects of any kind through the Kubernetes API: server-side apply, dry runs, and what the API says of its kinds."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from kubeworker.core.cluster.cluster_objects import ObjectAction
from kubeworker.core.cluster.kube_views import Document
from kubeworker.core.cluster.manifest import FIELD_MANAGER, Conflict, Ref, ref
from kubeworker.errors import ApiConflict, ApiError, ApiNotFound, ApiRefused
from kubeworker.io.kube import Kube, api_path, deletion

ESTABLISHED_SECONDS = 30
"""How long a CustomResourceDefinition may take to be served."""
GONE_SECONDS = 60
"""How long an object may take to be gone before it is made anew (finalizers)."""

_APPLY = "application/apply-patch+yaml"
"""JSON is YAML; the API server takes it under this name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """How the API addresses a kind."""

    plural: str
    namespaced: bool


class Objects:
    """Reads and writes objects of any kind that the cluster serves. Errors are ApiError."""

    def __init__(self, kube: Kube) -> None:
        """Nothing is asked before the first use."""
        self._kube = kube
        self._known: dict[str, Mapping[str, Resource]] = {}
        self._asking = asyncio.Lock()

    async def resource(self, api_version: str, kind: str) -> Resource | None:
        """How the kind is addressed; None where the cluster does not serve it (yet: it is asked again)."""
        async with self._asking:
            known = self._known.get(api_version)
            if known is None or kind not in known:
                known = self._known[api_version] = await self._discover(api_version)
            return known.get(kind)

    async def _discover(self, api_version: str) -> Mapping[str, Resource]:
        try:
            answer = await self._kube.request("GET", api_path(api_version), subject=f"the kinds of {api_version}")
        except ApiNotFound:
            return {}
        return {
            each["kind"]: Resource(plural=each["name"], namespaced=bool(each.get("namespaced")))
            for each in answer.get("resources") or ()
            # pods/exec and the like are no objects.
            if "/" not in each["name"]
        }

    async def get(self, which: Ref) -> dict[str, Any] | None:
        """The object, None if there is none or its kind is not served."""
        try:
            return await self._kube.request("GET", await self._path(which), subject=str(which))
        except ApiNotFound:
            return None

    async def count(self, which: Ref) -> int:
        """How many objects of the kind that this CustomResourceDefinition defines there are (more than one: two)."""
        definition = await self.get(which)
        if definition is None:
            return 0
        spec = definition["spec"]
        served = [each["name"] for each in spec["versions"] if each.get("served")]
        if not served:
            return 0
        path = f"/apis/{spec['group']}/{served[0]}/{spec['names']['plural']}?limit=2"
        try:
            answer = await self._kube.request("GET", path, subject=f"the objects of {which.name}")
        except ApiNotFound:
            return 0
        return len(answer.get("items") or ())

    async def apply(self, document: Document, *, force: bool, dry_run: bool = False) -> dict[str, Any]:
        """Server-side apply; what the object is then. ApiRefused, with the API's causes, for conflicts and faults."""
        query = f"fieldManager={FIELD_MANAGER}" + ("&force=true" if force else "") + ("&dryRun=All" if dry_run else "")
        which = ref(document)
        return await self._kube.request(
            "PATCH", f"{await self._path(which)}?{query}", body=document, content_type=_APPLY, subject=str(which)
        )

    async def delete(self, which: Ref, *, uid: str = "") -> bool:
        """Delete with all that it owns; False if there was nothing to delete, or not the object of that `uid`."""
        try:
            await self._kube.request(
                "DELETE",
                f"{await self._path(which)}?propagationPolicy=Background",
                body=deletion(uid) if uid else None,
                content_type="application/json" if uid else "",
                subject=str(which),
            )
        except ApiConflict:
            if not uid:
                raise
            return False
        except ApiNotFound:
            return False
        return True

    async def carry_out(self, action: ObjectAction) -> None:
        """Do what a plan shows; a CustomResourceDefinition is served when this returns.

        Where the plan saw no object, ApiRefused if somebody else has made one since and differs; what another run of
        this tool has made meanwhile is as good as made here.
        """
        which = ref(action.document)
        match action.verb:
            case "apply":
                await self.apply(action.document, force=bool(action.uid))
            case "recreate":
                if await self.delete(which, uid=action.uid):
                    await self._gone(which, action.uid)
                await self.apply(action.document, force=False)
            case "delete":
                await self.delete(which)
            case other:
                raise ValueError(f"{other} is not done by server-side apply")
        if which.kind == "CustomResourceDefinition" and action.verb != "delete":
            await self._established(which)

    async def _gone(self, which: Ref, uid: str) -> None:
        end = asyncio.get_running_loop().time() + GONE_SECONDS
        while ((await self.get(which) or {}).get("metadata") or {}).get("uid") == uid:
            if asyncio.get_running_loop().time() > end:
                text = f"it was deleted, and is still there after {GONE_SECONDS} s"
                raise ApiError(text, subject=str(which), hint="see what holds it: metadata.finalizers")
            await asyncio.sleep(0.3)

    async def _established(self, which: Ref) -> None:
        end = asyncio.get_running_loop().time() + ESTABLISHED_SECONDS
        while not await self._is_served(await self.get(which)):
            if asyncio.get_running_loop().time() > end:
                raise ApiError(f"it is not served after {ESTABLISHED_SECONDS} s", subject=str(which))
            await asyncio.sleep(0.1)

    async def _is_served(self, definition: Mapping[str, Any] | None) -> bool:
        """Established, and named among the API's kinds: that follows a moment later."""
        conditions = ((definition or {}).get("status") or {}).get("conditions") or ()
        if definition is None or not any(
            each["type"] == "Established" and each["status"] == "True" for each in conditions
        ):
            return False
        spec = definition["spec"]
        served = (f"{spec['group']}/{each['name']}" for each in spec["versions"] if each.get("served"))
        return all([await self.resource(version, spec["names"]["kind"]) is not None for version in served])

    async def _path(self, which: Ref) -> str:
        found = await self.resource(which.api_version, which.kind)
        if found is None:
            raise ApiNotFound(
                f"the cluster serves no {which.kind} of {which.api_version}",
                subject=str(which),
                hint="install what defines it, or choose values without it",
            )
        scope = f"namespaces/{quote(which.namespace, safe='')}/" if found.namespaced else ""
        return f"{api_path(which.api_version)}/{scope}{found.plural}/{quote(which.name, safe='')}"


def conflicts(error: ApiRefused) -> tuple[Conflict, ...]:
    """The fields that others hold, of a refused server-side apply; () where it was refused for another reason."""
    return tuple(
        Conflict(manager=match[1] if (match := _MANAGER.search(each.message)) else "somebody else", field=each.field)
        for each in error.causes
        if each.reason == "FieldManagerConflict"
    )


def immutable(error: ApiRefused) -> str:
    """Which fields can't be changed in place, of a refused change; empty where it was refused for another reason."""
    fields = [each.field for each in error.causes if _IMMUTABLE.search(each.message)]
    return ", ".join(dict.fromkeys(fields))


_MANAGER = re.compile(r'conflict with "([^"]*)"')
_IMMUTABLE = re.compile(r"immutable|cannot change roleRef|may not be changed|may not change once set")
