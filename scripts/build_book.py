"""Build the book: drop stale outputs, execute, write the status, build strictly, check the site, say where it is."""

from __future__ import annotations

import argparse
import errno
import subprocess
import sys
import time
from pathlib import Path

import check_site
import execute
import fingerprint
import pair
import status
import support

ROOT = Path(__file__).resolve().parents[1]
CANNOT_WRITE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)


def step(text: str) -> None:
    print(f"\n== {text}", flush=True)


def check_outputs(root: Path) -> None:
    changed = fingerprint.drop_stale(root)
    if changed:
        shown = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
        print(f"  Executed outputs dropped, these changed: {shown}")
    else:
        print("  Library, pins and recorded data are those the cached outputs were made with (or there are none)")


def sphinx(root: Path) -> int:
    # A page that left the table of contents must leave the site; executed outputs live elsewhere and stay.
    for name in ("html", ".doctrees", "jupyter_execute"):
        fingerprint.remove(root / "_build" / name)
    # --all: a page that failed last time is read again, or its warning would be missing and the build green.
    program = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()"]
    command = [*program, "build", "--all", "-W", "--keep-going", str(root)]
    return subprocess.run(command, cwd=root).returncode


def build(root: Path) -> int:
    """Build the book at `root`; return the exit status."""
    started = time.monotonic()
    step("Cached outputs")
    check_outputs(root)
    step("Chapters and their notebooks")
    out_of_step = pair.check(root)
    print("\n".join(f"  {line}" for line in out_of_step) or "  in step")
    if out_of_step:
        return 1
    step("Executing the chapters")
    runs = execute.execute_all(root)
    status.write(root, runs)
    support.write(root)
    step("Building the pages (every warning is an error)")
    code = sphinx(root)
    if code:
        print("\nThe build failed: see the warning or error above.", file=sys.stderr)
        return code
    site = root / "_build" / "html"
    step("Checking the site")
    faults = check_site.faults(root, site)
    if faults:
        print("\n".join(faults), file=sys.stderr)
        return 1
    print("  every page is there, nothing is fetched from another host")
    index = site / "index.html"
    print(f"\nBuilt in {time.monotonic() - started:.0f} s. Open it:\n  {index.as_uri()}\nor `make serve`.", flush=True)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=ROOT, help="the book's folder")
    try:
        return build(parser.parse_args().root.resolve())
    except KeyboardInterrupt:
        print("\nStopped. Chapters that had finished are kept; the site is not complete.", file=sys.stderr)
        return 130
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        print(
            f"\nCannot write {error.filename or 'to the disk'}: {error.strerror}. The book is built in _build: "
            "become the owner of that folder or make room there, then run make again.",
            file=sys.stderr,
        )
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
