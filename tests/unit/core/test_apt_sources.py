from __future__ import annotations

from kubeworker.core.artifacts.apt_sources import source_lines

DEB822 = """\
Types: deb
# http://commented.example/debian
URIs: http://debian.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb deb-src
URIs: http://debian.example/debian-security
Suites: bookworm-security
Components: main

Types: deb
Enabled: no
URIs: http://switched.off/debian
Suites: bookworm
Components: main
"""
ONE_LINE = """\
# deb http://commented.out/debian bookworm main
deb [arch=amd64 signed-by=/etc/apt/site.gpg] http://mirror.site/debian bookworm main  non-free # comment
deb https://vendor.example/apt tool-bookworm main
deb-src http://mirror.site/debian bookworm main
"""
VENDOR = """\
Types: deb
URIs: https://other.example/node_20.x
Suites: nodistro
Components: main
"""


def test_both_forms_give_source_lines_of_the_distributions_own_suites() -> None:
    signed = "signed-by=/usr/share/keyrings/debian-archive-keyring.gpg"
    assert source_lines([ONE_LINE, DEB822, VENDOR], "bookworm") == (
        "deb-src [signed-by=/etc/apt/site.gpg] http://mirror.site/debian bookworm main non-free",
        "deb-src http://mirror.site/debian bookworm main",
        f"deb-src [{signed}] http://debian.example/debian bookworm main contrib",
        f"deb-src [{signed}] http://debian.example/debian bookworm-updates main contrib",
        "deb-src http://debian.example/debian-security bookworm-security main",
    )


def test_no_source_of_another_release_is_used() -> None:
    assert source_lines([DEB822], "trixie") == ()
