"""Serve a study folder with MONAI Label and say how to try it. Run by ``make serve``."""

from __future__ import annotations

import argparse
import json
import os
import re
import runpy
import shutil
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]
APP = ROOT / "apps" / "imis"
SAMPLES = APP / "sample_studies"


def main() -> None:
    args = _arguments()
    if not _is_free(args.host, args.port):
        _refuse(f"port {args.port} is in use; stop what uses it, or choose another: make serve PORT=8001")
    _stop_if_open(args)
    _stop_if_misconfigured(args)
    if not args.studies.startswith("http") and not Path(args.studies).exists():
        shutil.copytree(SAMPLES, args.studies)
        print(f"the sample studies are in {args.studies}/; see ATTRIBUTION.md there")
    # DICOM tools of this environment, and fresh lists of a DICOMweb server rather than two hours old ones.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    os.environ.setdefault("MONAI_LABEL_DICOMWEB_CACHE_EXPIRY", "60")
    threading.Thread(target=_announce, args=(args,), daemon=True).start()
    # In this very process: signals reach the server itself, and nothing is left behind.
    host = ["--host", args.host, "--port", str(args.port)]
    sys.argv = ["monailabel", "start_server", "--app", str(APP), "--studies", args.studies, *host, *args.more]
    runpy.run_module("monailabel.main", run_name="__main__", alter_sys=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="Anything else goes to MONAI Label, as --conf KEY VALUE."
    )
    parser.add_argument("--studies", default="studies", help="folder or DICOMweb URL (default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="another one needs --conf auth tokens or oidc")
    parser.add_argument("--port", type=int, default=8000)
    args, args.more = parser.parse_known_args()
    return args


def _stop_if_open(args: argparse.Namespace) -> None:
    """The app refuses as well; here it costs no start."""
    conf = " ".join(args.more)
    if args.host not in ("127.0.0.1", "localhost", "::1") and not re.search(
        r"auth (tokens|oidc)|let_anybody_in yes", conf
    ):
        _refuse(
            f"refusing to listen on {args.host}: anybody on the network could read and change the studies. Add "
            "--conf auth tokens (or oidc), or, to let anybody in all the same, --conf let_anybody_in yes"
        )


def _stop_if_misconfigured(args: argparse.Namespace) -> None:
    """The app refuses as well, in a traceback of the server's start."""
    sys.path[:0] = [str(APP), str(ROOT / "bundles" / "imis_net")]
    from lib.config import read_config  # after the cheap checks: it imports torch

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-c", "--conf", nargs=2, action="append", default=[])
    try:
        read_config(dict(parser.parse_known_args(args.more)[0].conf))
    except ValueError as error:
        _refuse(str(error))


def _refuse(why: str) -> NoReturn:
    print(why, file=sys.stderr)
    sys.exit(2)


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        try:
            probe.bind((host, port))
        except (OSError, OverflowError):
            return False
    return True


def _announce(args: argparse.Namespace) -> None:
    """Once the server answers, print its address and a command that segments something."""
    url = f"http://{'127.0.0.1' if args.host == '0.0.0.0' else args.host}:{args.port}"
    while not _answers(f"{url}/info/"):
        time.sleep(0.5)
    print(f"\nOpen {url}/imis/ in a browser: click on a structure, drag a box, or type its name", flush=True)
    print(f"Ready at {url}/  (API pages; 3D Slicer's MONAI Label module connects to this address)", flush=True)
    facts = json.loads((SAMPLES / "labels.json").read_text())
    image, label = facts["example"]["image"], facts["example"]["label"]
    if (Path(args.studies) / f"{image}.nii.gz").is_file():
        params = json.dumps({"foreground": [facts["images"][image]["clicks"][label]], "label": label})
        target = f"{url}/infer/imis?image={image}&output=image"
        print(f"Try a click on the {label} of a sample slice:\n", flush=True)
        print(f"  curl -sSf -o mask.nrrd -F 'params={params}' '{target}'\n", flush=True)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            return response.status == 200
    except (OSError, urllib.error.URLError):
        return False


if __name__ == "__main__":
    main()
