"""How a PACS is asked over DICOMweb: never for ever, and what it fails with in words for an annotator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import requests
from dicomweb_client import DICOMwebClient
from monailabel.config import settings
from pydicom import Dataset
from requests.adapters import HTTPAdapter

from lib.uploads import Refused, Unreachable

CONNECT_S = 5.0


@contextmanager
def told() -> Iterator[None]:
    """
    Raises:
        Refused, Unreachable: in place of what a client of HTTP raises.
    """
    try:
        yield
    except requests.HTTPError as error:
        code = error.response.status_code if error.response is not None else "an error"
        raise Refused(f"the PACS answers {code}") from error
    except requests.RequestException as error:
        raise Unreachable("the PACS does not answer") from error


def store(client: DICOMwebClient, file: Dataset) -> None:
    """Unless it is there: an earlier try may have stored it without our hearing of it.

    Raises:
        Refused, Unreachable: it is not stored, as far as we know.
    """
    with told():
        if _is_there(client, file):
            return
        answer = client.store_instances([file])
    failed = [f for f in answer.get("FailedSOPSequence", []) if f.ReferencedSOPInstanceUID == file.SOPInstanceUID]
    if failed:
        raise Refused(f"the PACS does not take it (failure reason {failed[0].get('FailureReason')})")


def never_wait_for_ever(client: DICOMwebClient) -> None:
    """The client knows no time limit, and repeats for half a minute what we repeat by ourselves."""
    client.set_http_retry_params(retry=False)
    client._session.mount(client.base_url, _Patient())


def _is_there(client: DICOMwebClient, file: Dataset) -> bool:
    filters = {"SOPInstanceUID": str(file.SOPInstanceUID)}
    try:
        return bool(client.search_for_instances(file.StudyInstanceUID, search_filters=filters))
    except requests.HTTPError:  # it cannot be asked so; it will not keep two of one UID
        return False


class _Patient(HTTPAdapter):
    def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
        limits_s = (CONNECT_S, settings.MONAI_LABEL_DICOMWEB_PROXY_TIMEOUT)
        return super().send(request, *args, **{**options, "timeout": options.get("timeout") or limits_s})
