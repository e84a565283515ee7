"""The disk image that full-kernel machines start from: the lab's root file system with the kernel's modules, as ext4.

Made once and never changed, as the root file system itself: each machine keeps what it writes in a file of its own.
"""

from __future__ import annotations

import hashlib
import shlex
import shutil
from pathlib import Path

from kubeworker.flow.events import Note, Reporter
from kubeworker.lab import cache, host

SIZE_GIB = 8
"""Size of a machine's disk. The files are sparse: they take what is written."""
BOOT = "/opt/lab/boot"
"""What the kernel starts first."""

_MODULES = Path("/usr/lib/uml/modules")

BOOT_SCRIPT = """\
#!/bin/sh
# At the first boot the machine's own files (host name, keys, units) come from its second disk, before systemd reads
# any of them. A boot that is cut off here does it again.
if [ ! -e /opt/lab/seeded ]; then tar -x -C / -f /dev/ubdb && : > /opt/lab/seeded; fi
exec /sbin/init "$@"
"""

# In a mount namespace of its own, in which an overlay keeps the shared root file system as it is. Without
# `metadata_csum_seed` and `orphan_file` every kernel since 4.x mounts it, whatever this host's mke2fs has as default.
_BUILD = """\
set -e
mount -t tmpfs tmpfs {work}
mkdir {work}/upper {work}/work {work}/root
mount -t overlay overlay -o lowerdir={rootfs},upperdir={work}/upper,workdir={work}/work {work}/root
mkdir -p {work}/root/usr/lib/modules
cp -a {modules}/. {work}/root/usr/lib/modules/
# The kernel has no nf_tables family of its own for IPv4 and IPv6, which Debian's default iptables needs.
for name in iptables ip6tables; do
  chroot {work}/root update-alternatives --quiet --set $name /usr/sbin/$name-legacy
done
cat > {work}/root{boot}
chmod 0755 {work}/root{boot}
truncate -s {size}G {image}
mke2fs -q -t ext4 -O ^metadata_csum_seed,^orphan_file -E lazy_itable_init=1,lazy_journal_init=1 -m 0 \\
  -d {work}/root {image}
"""


def ensure(folder: Path, rootfs: Path, report: Reporter) -> Path:
    """The finished image, made now if the cache has none (some seconds)."""

    def make(image: Path) -> None:
        report(Note(text="making the disk image of full-kernel machines"))
        work = image.with_name(f"{image.name}.work.tmp")
        work.mkdir()
        host.run(
            ["unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", _script(rootfs, work, image)],
            stdin=BOOT_SCRIPT,
        )
        shutil.rmtree(work)

    return cache.once(folder / "full-kernel" / f"{key(rootfs)}.ext4", make)


def key(rootfs: Path) -> str:
    """Name of the image: the same exactly where the content would be."""
    releases = sorted(each.name for each in _MODULES.iterdir())
    text = "\n".join((rootfs.name, *releases, _BUILD, BOOT_SCRIPT, str(SIZE_GIB)))
    return f"{rootfs.name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _script(rootfs: Path, work: Path, image: Path) -> str:
    words = {
        name: shlex.quote(str(path))
        for name, path in {"rootfs": rootfs, "work": work, "image": image, "modules": _MODULES, "boot": BOOT}.items()
    }
    return _BUILD.format(size=SIZE_GIB, **words)
