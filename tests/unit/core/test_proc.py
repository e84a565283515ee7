"""Files of /proc, as Linux 6.18 wrote them."""

from kubeworker.core.node import proc

TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:20FB 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4012 1 0000 100 0 0 10 0
   1: 0D004D0A:E25E 0C004D0A:192B 01 00000000:00000000 02:00000AA7 00000000     1        0 4711 2 0000 20 4 30 10 -1
   2: 0D004D0A:E25F 0B004D0A:192B 08 00000000:00000000 02:00000AA7 00000000     1        0 4712 2 0000 20 4 30 10 -1
   3: 0100007F:20FB 0100007F:99A6 01 00000000:00000000 02:00000AA7 00000000     1        0 4713 2 0000 20 4 30 10 -1
"""


def test_established_connections_to_a_port_by_socket() -> None:
    assert proc.established(TCP, 6443) == {4711: (57950, "10.77.0.12")}


def test_sockets_among_open_files() -> None:
    assert proc.socket_inodes(["/dev/null", "socket:[4711]", "anon_inode:[eventpoll]", "pipe:[99]"]) == {4711}


def test_the_start_of_a_process_whose_name_is_made_to_confuse() -> None:
    stat = "71 (a) S 9 (b)) S 1 71 71 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 123456 4096 1 18446744073709551615"
    assert proc.start_ticks(stat) == 123456


def test_the_environment_of_a_process() -> None:
    text = b"PATH=/bin\0HTTP2_PING_TIMEOUT_SECONDS=5\0EMPTY=\0broken\0"
    assert proc.environment(text) == {"PATH": "/bin", "HTTP2_PING_TIMEOUT_SECONDS": "5", "EMPTY": ""}
