"""Labels between this server and a PACS: a real Orthanc over DICOMweb."""

from __future__ import annotations

from pathlib import Path

import pytest
from local_pacs import HAS_ORTHANC, run_alone


def test_labels_go_to_the_pacs_come_from_it_and_outlive_it(tmp_path: Path) -> None:
    """Breaks if a label reaches the PACS wrong, twice or never, or one of another program is taken for what it is not.

    Or if a PACS that is killed takes a label with it. The steps are in ``pacs_journey.py``.
    """
    if not HAS_ORTHANC:
        pytest.skip("Orthanc with its DICOMweb plugin is not installed: make e2e")
    run_alone(Path(__file__).with_name("pacs_journey.py"), tmp_path)
