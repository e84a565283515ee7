from __future__ import annotations

from kubeworker.lab import rootfs

# `apt-get indextargets`, shortened: four sources of a Debian host, one of them a vendor's.
MAIN = """\
MetaKey: main/binary-amd64/Packages
Codename: bookworm
Label: Debian
Origin: Debian
Suite: oldstable
Component: main
Created-By: Packages
Release: {release}
Repo-URI: {mirror}
"""
SECURITY = MAIN.format(release="bookworm-security", mirror="http://security.example/debian-security/").replace(
    "Label: Debian", "Label: Debian-Security"
)
UPDATES = MAIN.format(release="bookworm-updates", mirror="http://mirror.example/debian/")
VENDOR = MAIN.format(release="nodistro", mirror="https://vendor.example/").replace("Debian", "Vendor")


def test_machines_get_the_hosts_own_release_from_its_own_mirror() -> None:
    here = MAIN.format(release="trixie", mirror="http://mirror.example/debian/")
    assert rootfs.source(f"{VENDOR}\n{SECURITY}\n{UPDATES}\n{here}") == ("trixie", "http://mirror.example/debian")


def test_a_host_without_debians_sources_leaves_the_mirror_to_debootstrap() -> None:
    default = (rootfs.DEFAULT_SUITE, "")
    assert rootfs.source("") == default
    assert rootfs.source(f"{VENDOR}\n{SECURITY}\n{UPDATES}") == default


def test_a_mirror_that_debootstrap_cannot_read_is_passed_over() -> None:
    here = MAIN.format(release="trixie", mirror="cdrom://Debian/")
    assert rootfs.source(here) == (rootfs.DEFAULT_SUITE, "")


def test_each_release_has_a_folder_of_its_own() -> None:
    assert rootfs.key("bookworm") != rootfs.key("trixie")
    assert rootfs.key("bookworm") == rootfs.key("bookworm")
