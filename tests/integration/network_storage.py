"""Storage that several machines reach over a network: GlusterFS, served by one virtual node.

Every node and this machine mount it on their own, so what one writes the others see through a
server, with caches on the way, as on a cluster's NFS or Lustre. (NFS itself needs a kernel's help.)
"""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.virtual_nodes import VirtualNodes, wait_until

_VOLUME = "shared"


def why_not() -> str | None:
    """Why this machine cannot have it; None if it can."""
    for tool in ("glusterd", "gluster", "mount.glusterfs"):
        if shutil.which(tool, path="/usr/sbin:/usr/bin:/sbin:/bin") is None:
            return f"network storage needs `{tool}` (Debian: glusterfs-server)"
    if not Path("/dev/fuse").exists():
        return "network storage needs /dev/fuse"
    return None


@contextmanager
def network_storage(nodes: VirtualNodes, folder: Path, mount: Path) -> Iterator[None]:
    """At `mount`, on all nodes and this machine, while inside; the server keeps it in `folder`."""
    server = nodes[0]
    # The server's own state: this machine may have a GlusterFS too.
    for own in ("/var/lib/glusterd", "/run/gluster", "/var/log/glusterfs"):
        server.run("mkdir", "-p", own, check=True)
        server.run("mount", "-t", "tmpfs", "none", own, check=True)
    (folder / "brick").mkdir(parents=True)
    mount.mkdir()
    source = f"{server.address}:/{_VOLUME}"
    how = ["mount", "-t", "glusterfs", "-o", f"log-file={folder / 'mount.log'}", source, str(mount)]
    server.run("glusterd", check=True)
    gluster = ["gluster", "--mode=script", "volume"]
    brick = f"{server.address}:{folder / 'brick'}"

    def is_made() -> bool:
        return server.run(*gluster, "create", _VOLUME, brick, "force").returncode == 0

    wait_until(is_made, "a GlusterFS volume", seconds=60)
    server.run(*gluster, "start", _VOLUME, check=True)
    try:
        subprocess.run(how, check=True, capture_output=True, timeout=60)
        for node in nodes.nodes:
            node.run(*how, check=True)
        yield
    except subprocess.CalledProcessError as error:
        pytest.fail(f"{error}: {error.stdout} {error.stderr} {_told(folder)}")
    finally:
        subprocess.run(["umount", "--lazy", str(mount)], check=False, capture_output=True)


def _told(folder: Path) -> str:
    log = folder / "mount.log"
    return log.read_text()[-2000:] if log.exists() else ""
