"""Who may call what: every route of the server, with the least role that it asks for.

A route that is not here is for admins alone, and a test fails until somebody has thought about it. Keys are the
route's template; a value is one role for all methods, or roles by method.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from re import Pattern

from starlette.routing import BaseRoute, Mount, compile_path
from starlette.types import Scope


class Role(IntEnum):
    """Each may do what those before it may."""

    PUBLIC = 0
    ANNOTATOR = 1
    REVIEWER = 2
    ADMIN = 3


PUBLIC, ANNOTATOR, REVIEWER, ADMIN = Role

ACCESS: Mapping[str, Role | Mapping[str, Role]] = {
    # Nothing but the program itself: pages, scripts, the description of the interface, whether it lives.
    "/": PUBLIC,
    "/docs": PUBLIC,
    "/openapi.json": PUBLIC,
    "/favicon.ico": PUBLIC,
    "/static": PUBLIC,
    "/ohif/{path:path}": PUBLIC,
    "/healthz": PUBLIC,
    "/readyz": PUBLIC,
    "/auth/": PUBLIC,
    "/auth/token": PUBLIC,
    "/imis/login": PUBLIC,
    "/imis/": PUBLIC,
    "/imis/static/{name}": PUBLIC,
    "/ohif/app-config.js": PUBLIC,
    # Segmenting and labelling.
    "/auth/token/valid": ANNOTATOR,
    "/info/": ANNOTATOR,
    "/infer/{model}": ANNOTATOR,
    "/infer/wsi/{model}": ANNOTATOR,
    "/infer/wsi_v2/{model}": ANNOTATOR,
    "/session/": ANNOTATOR,
    "/session/{session_id}": ANNOTATOR,
    "/activelearning/{strategy}": ANNOTATOR,
    "/datastore/": {"GET": ANNOTATOR, "PUT": ANNOTATOR, "DELETE": REVIEWER},
    "/datastore/image": {"GET": ANNOTATOR, "HEAD": ANNOTATOR, "PUT": ANNOTATOR, "DELETE": REVIEWER},
    "/datastore/image/info": ANNOTATOR,
    "/datastore/label": {"GET": ANNOTATOR, "HEAD": ANNOTATOR, "PUT": ANNOTATOR, "DELETE": REVIEWER},
    "/datastore/label/info": ANNOTATOR,
    "/datastore/updatelabelinfo": ANNOTATOR,
    "/proxy/dicom/{path:path}": ANNOTATOR,
    "/proxy/dicom/wado/{path:path}": ANNOTATOR,
    "/proxy/dicom/qido/{path:path}": ANNOTATOR,
    "/proxy/dicom/stow/{path:path}": ANNOTATOR,
    "/imis/image": ANNOTATOR,
    "/imis/propagate": ANNOTATOR,
    "/imis/propagate/{job}": ANNOTATOR,
    "/imis/propagate/{job}/mask": ANNOTATOR,
    "/imis/labels/{image}": ANNOTATOR,
    "/imis/labels/{image}/archive": ANNOTATOR,
    "/imis/labels/{image}/archive/{series}": ANNOTATOR,
    "/imis/labels/{image}/{version}": ANNOTATOR,
    "/imis/labels/{image}/{version}/dicom_seg": ANNOTATOR,
    "/imis/labels/{image}/{version}/diff": ANNOTATOR,
    "/imis/labels/{image}/{version}/restore": ANNOTATOR,
    "/imis/targets/{image}": ANNOTATOR,
    "/imis/targets/{image}/{target}": ANNOTATOR,
    "/imis/targets/{image}/{target}/prompts": ANNOTATOR,
    "/imis/targets/{image}/{target}/undo": ANNOTATOR,
    "/imis/targets/{image}/{target}/redo": ANNOTATOR,
    # What changes the model for everybody, or takes the machine for long.
    "/train/": {"GET": ANNOTATOR, "POST": REVIEWER, "DELETE": REVIEWER},
    "/train/{model}": REVIEWER,
    "/batch/infer": {"GET": ANNOTATOR, "DELETE": REVIEWER},
    "/batch/infer/{model}": REVIEWER,
    "/scoring/": {"GET": ANNOTATOR, "POST": REVIEWER, "DELETE": REVIEWER},
    "/scoring/{method}": REVIEWER,
    "/imis/models": REVIEWER,
    "/imis/models/rollback": REVIEWER,
    "/imis/models/reports": REVIEWER,
    "/imis/models/reports/{run}": REVIEWER,
    "/datastore/dataset": REVIEWER,
    "/metrics": REVIEWER,
    # The server itself.
    "/model/{model}": ADMIN,
    "/model/info/{model}": ADMIN,
    "/logs/": ADMIN,
    "/logs/gpu": ADMIN,
    "/reload": ADMIN,
}


@dataclass(frozen=True)
class Endpoint:
    """One route as the table knows it. ``methods`` is empty where all are taken."""

    template: str
    methods: frozenset[str]
    path: Pattern[str]

    def takes(self, method: str, path: str) -> bool:
        return (not self.methods or method in self.methods) and self.path.match(path) is not None


def endpoints(routes: Iterable[BaseRoute]) -> Iterator[Endpoint]:
    """All routes in the order in which they are tried, those of included routers too."""
    for route in routes:
        if hasattr(route, "effective_candidates"):
            yield from endpoints(route.effective_candidates())
        elif isinstance(route, Mount):
            yield Endpoint(route.path, frozenset(), route.path_regex)
        elif getattr(route, "path", None) is not None:
            methods = getattr(route, "methods", None) or ()
            yield Endpoint(route.path, frozenset(methods), compile_path(route.path)[0])  # type: ignore[attr-defined]


def role_needed(template: str, method: str) -> Role:
    """The table's answer; what it does not know is for admins."""
    entry = ACCESS.get(template, ADMIN)
    return entry if isinstance(entry, Role) else entry.get(method, ADMIN)


def path_of(scope: Scope) -> str:
    """The path that routes are matched with: without the prefix that a proxy in front of the server took off."""
    path, root = scope["path"], scope.get("root_path", "")
    return path[len(root) :] if root and path.startswith(f"{root}/") else path
