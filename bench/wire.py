"""What SSH itself costs the control host: CPU of a connection by key exchange, of a megabyte by cipher.

python -m bench.wire     makes a few simulated nodes, prints the table, takes them away
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import asyncssh

from bench import sim_site
from bench.scale_nodes import simulation
from bench.sim_site import PORT, Site

NODES = 4
CONNECTIONS = 40
CHUNK = bytes(1 << 18)
CHUNKS = 1600
EXCHANGES = ("curve25519-sha256", "ecdh-sha2-nistp256")
CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes256-ctr", "chacha20-poly1305@openssh.com")


def main() -> None:
    """Print it."""
    with simulation(Path("build/bench/wire"), NODES) as site:
        asyncio.run(_measure(site))


async def _measure(site: Site) -> None:
    key, hosts = asyncssh.read_private_key(site.identity), asyncssh.read_known_hosts(str(site.known_hosts))

    async def visit(index: int, exchange: str, cipher: str, chunks: int) -> None:
        async with asyncssh.connect(
            sim_site.address(index % NODES),
            PORT,
            username="root",
            client_keys=[key],
            known_hosts=hosts,
            config=None,
            agent_path=None,
            kex_algs=(exchange,),
            encryption_algs=(cipher,),
            compression_algs=("none",),
        ) as connection:
            process = await connection.create_process("cat > /dev/null", encoding=None)
            for _ in range(chunks):
                process.stdin.write(CHUNK)
                await process.stdin.drain()
            process.stdin.write_eof()
            await process.wait()

    for exchange in EXCHANGES:
        await visit(0, exchange, CIPHERS[0], 0)
        began = time.process_time()
        for index in range(CONNECTIONS):
            await visit(index, exchange, CIPHERS[0], 0)
        print(f"{exchange}: {1000 * (time.process_time() - began) / CONNECTIONS:.2f} ms of CPU a connection")
    megabytes = CHUNKS * len(CHUNK) / 1e6
    for cipher in CIPHERS:
        began, since = time.process_time(), time.perf_counter()
        await visit(0, EXCHANGES[0], cipher, CHUNKS)
        cpu, seconds = time.process_time() - began, time.perf_counter() - since
        print(f"{cipher}: {1000 * cpu / megabytes:.2f} ms of CPU per MB, {megabytes / seconds:.0f} MB/s")


if __name__ == "__main__":
    main()
