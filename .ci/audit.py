"""Look the locked packages up in the OSV database of known vulnerabilities: `make audit`. Needs the network.

Exit code: 0 all looked up, nothing known; 1 something is known, listed; 75 the database cannot be reached, or some
packages could not be looked up: nothing is proven.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
AWAY = 75


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lock", type=Path, default=ROOT / "requirements.lock")
    parser.add_argument("--tools", type=Path, default=ROOT / "build" / "tools" / "bin")
    parser.add_argument("--service", default="https://api.osv.dev/v1/query", help="address of an OSV API")
    parser.add_argument("--timeout", type=int, default=15, help="seconds for one request")
    given = parser.parse_args()
    command = [given.tools / "pip-audit", "--requirement", given.lock, "--no-deps", "--disable-pip"]
    service = ["--vulnerability-service", "osv", "--osv-url", given.service, "--timeout", str(given.timeout)]
    options = ["--format", "json", "--progress-spinner", "off", *service]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no output")
        print(
            f"audit: NOT AUDITED: {given.service} cannot be reached or gives no answer: {last[:300]}", file=sys.stderr
        )
        return AWAY
    known = [(one, bug) for one in packages for bug in one.get("vulns", [])]
    for one, bug in known:
        fixed = ", ".join(bug["fix_versions"]) or "none yet"
        print(f"{one['name']} {one['version']}: {bug['id']} ({', '.join(bug['aliases'])}); mended in: {fixed}")
    skipped = [f"{one['name']} ({one['skip_reason']})" for one in packages if "skip_reason" in one]
    print(f"audit: {len(packages) - len(skipped)} packages looked up, {len(known)} known vulnerabilities")
    if known:
        return 1
    if skipped or not packages:
        print(f"audit: NOT AUDITED: {', '.join(skipped) or 'no package at all'}", file=sys.stderr)
        return AWAY
    return 0


if __name__ == "__main__":
    sys.exit(main())
