"""Find a Chromium for the site tests; with --install, get one where none is there. Prints its path.

Looked for in this order: $PRUNING_LIB_CHROMIUM, chromium, chromium-browser, google-chrome on the path, then the browser
that playwright may have downloaded before. Debian has a package; elsewhere (Ubuntu's is a snap, which a headless test
cannot drive) playwright fetches its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from system_packages import apt_install

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MISSING = (
    "The site tests need a Chromium and none was found or could be installed. "
    "Install one (Debian: apt-get install chromium; elsewhere: .venv/bin/python -m playwright install chromium) "
    "or name one with PRUNING_LIB_CHROMIUM=/path/to/chrome."
)


def is_snap_stub(path: str) -> bool:
    """Return True for Ubuntu's placeholder, a small script that only asks for the snap."""
    try:
        return b"/snap/" in Path(path).read_bytes()[:4000]
    except OSError:
        return False


def playwright_browser() -> str | None:
    """Return playwright's own Chromium where it has been downloaded."""
    code = "from playwright.sync_api import sync_playwright as s\nwith s() as p: print(p.chromium.executable_path)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    path = result.stdout.strip()
    return path if result.returncode == 0 and Path(path).exists() else None


def find() -> str | None:
    """Return the path of a Chromium, None where there is none.

    Raises:
        SystemExit: where PRUNING_LIB_CHROMIUM names a file that is not there.
    """
    named = os.environ.get("PRUNING_LIB_CHROMIUM")
    if named:
        if not Path(named).is_file():
            raise SystemExit(f"PRUNING_LIB_CHROMIUM is {named!r}, which is not a file; give the path of a Chromium.")
        return named
    for name in NAMES:
        path = shutil.which(name)
        if path and not is_snap_stub(path):
            return path
    return playwright_browser()


def on_debian() -> bool:
    """Return True on Debian itself, whose archive has a Chromium that is not a snap."""
    try:
        return "\nID=debian\n" in "\n" + Path("/etc/os-release").read_text()
    except OSError:
        return False


def install() -> str | None:
    """Install a Chromium, say how, and return its path; None where that failed."""
    if on_debian():
        apt_install(["chromium"], why="for the site tests")
    else:
        print("Fetching playwright's Chromium for the site tests", flush=True)
        if subprocess.run([sys.executable, "-m", "playwright", "install", "--with-deps", "chromium"]).returncode:
            subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"])
    return find()


def main() -> int:
    path = find() or (install() if "--install" in sys.argv[1:] else None)
    print(path or MISSING, file=sys.stdout if path else sys.stderr)
    return 0 if path else 1


if __name__ == "__main__":
    raise SystemExit(main())
