"""Run by tests/tools/dev/test_bench.py in a namespace of its own: are bytes the same behind the emulated link?"""

from __future__ import annotations

import socket
import subprocess
import sys

from qwen3vl_edge.tools.dev.bench.end_to_end.namespaces import SERVER_ADDRESS, connected, enter
from qwen3vl_edge.tools.plan.transfer import LinkSpeed

SIZE = 3_000_000
SENDER = """
import random, socket, sys
sys.stdin.readline()
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as connection:
    connection.sendall(random.Random(0).randbytes(int(sys.argv[3])))
"""


def main() -> None:
    import random

    enter("tests.support.link_probe")
    listener = socket.create_server(("0.0.0.0", 0))
    port = str(listener.getsockname()[1])
    command = ["unshare", "--net", sys.executable, "-c", SENDER, SERVER_ADDRESS, port, str(SIZE)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True) as device, connected(device.pid) as emulator:
        emulator.shape(LinkSpeed(100, 0.02))
        assert device.stdin is not None
        device.stdin.write("go\n")
        device.stdin.flush()
        listener.settimeout(60)
        connection, found = listener.accept()[0], bytearray()
        while part := connection.recv(2**16):
            found += part
        device.stdin.close()
        device.wait(60)
    print(len(found), "same" if found == random.Random(0).randbytes(SIZE) else "other")


if __name__ == "__main__":
    main()
