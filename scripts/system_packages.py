"""Install a system package on Debian or Ubuntu without asking, where that is allowed, and say so."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence

__all__ = ["apt_install"]


def _prefix() -> list[str] | None:
    """Return what to put before apt-get: nothing for root, `sudo -n` where it asks no password, None otherwise."""
    if not shutil.which("apt-get"):
        return None
    if os.geteuid() == 0:
        return []
    if shutil.which("sudo") and subprocess.run(["sudo", "-n", "true"], capture_output=True).returncode == 0:
        return ["sudo", "-n"]
    return None


def apt_install(packages: Sequence[str], why: str) -> bool:
    """Install `packages` with apt-get.

    Args:
        packages: Debian package names.
        why: the end of the sentence "Installing x ...".

    Returns:
        True where apt-get succeeded; False, with a message, where it may not or could not.
    """
    names = " ".join(packages)
    prefix = _prefix()
    if prefix is None:
        print(f"Missing {why}: {names}. As an administrator: apt-get install {names}", file=sys.stderr)
        return False
    print(f"Installing {names} {why}", flush=True)
    environment = ["env", "DEBIAN_FRONTEND=noninteractive"]
    for arguments in (["update", "-qq"], ["install", "-y", "-q", "--no-install-recommends", *packages]):
        if subprocess.run([*prefix, *environment, "apt-get", *arguments]).returncode and arguments[0] == "install":
            print(f"apt-get could not install {names}.", file=sys.stderr)
            return False
    return True
