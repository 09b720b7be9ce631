"""Make a user's token: the token is printed once, its hash goes into the tokens file of ``--conf tokens_file``."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import secrets
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--file", type=Path, required=True, help="tokens file; made if it is not there")
    parser.add_argument("--user", required=True)
    parser.add_argument("--role", choices=("annotator", "reviewer", "admin"), default="annotator")
    parser.add_argument("--days", type=float, help="how long it is good for (default: until its line is removed)")
    args = parser.parse_args()
    token = secrets.token_urlsafe(32)
    entry = {"user": args.user, "role": args.role, "sha256": hashlib.sha256(token.encode()).hexdigest()}
    if args.days is not None:
        entry["expires"] = round(time.time() + 86400 * args.days)
    descriptor = os.open(args.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "a") as file:
        file.write(json.dumps(entry) + "\n")
    print(token)


if __name__ == "__main__":
    main()
