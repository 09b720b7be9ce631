"""Look over made masks in a browser: python scripts/review_masks.py DIR [--port 8000] [--reviewer NAME]

DIR was made by build_masks. The server listens on this machine alone. Exit status 2 where DIR cannot be used.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "bundles" / "imis_net"), str(ROOT / "apps" / "review")]

import uvicorn

from imis_net.errors import ImisError
from review_app import make_app


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--reviewer", default="reviewer", help="written beside each verdict")
    args = parser.parse_args()
    try:
        app = make_app(args.folder, args.reviewer)
    except (ImisError, OSError) as error:
        print(f"review: {error}", file=sys.stderr)
        return 2
    print(f"http://127.0.0.1:{args.port}", flush=True)
    uvicorn.run(app, host="127.0.0.1", port=args.port, log_level="warning")
    return 0


if __name__ == "__main__":
    sys.exit(main())
