"""perftest's programs between two guests: what kvxfer is compared with, in the same guests and the same run."""
import re

from harness.machine import Failed

PORT = 18515
LISTENING = f"i=0; until netstat -tln | grep -q :{PORT}; do i=$((i+1)); [ $i -lt 100 ] || exit 1; sleep 0.1; done"


class Bandwidth:
    """MB are 2^20 bytes, as perftest prints them; messages per second."""

    def __init__(self, words):
        self.size, self.n = int(words[0]), int(words[1])
        self.peak, self.average = float(words[2]), float(words[3])
        self.rate = float(words[4]) * 1e6


def perftest(a, b, tool, rail=0, size=65536, n=1000, check=True, over=1, options="", timeout=60):
    """a is the client, b the server. The two meet over TCP on the interface `over`. None when it fails and check is false."""
    # -u 20: 4 s until a packet is sent again. The default of 67 ms is over before a guest on a busy machine has answered, and rxe
    # does not survive going back in the middle of a long message every time.
    common = f"{tool} -F -d {a.device(rail)} -x 1 -u 20 -s {size} -n {n} -p {PORT} {options}"
    server = b.start(common)
    b.run(LISTENING, 15)
    client = a.run(f"timeout {timeout} {common} {b.ip(over)}", timeout + 5, check=False)
    if client.rc != 0:
        server.kill()
        server.wait(10)
        if check:
            raise Failed(f"{tool}: exit code {client.rc}: {client.out[-500:]} {client.err[-500:]}")
        return None
    server.wait(timeout)
    found = re.search(rf"^ *{size} +\d+ .*$", client.out, re.M)
    if found is None:
        raise Failed(f"{tool}: no result line: {client.out[-800:]}")
    return Bandwidth(found[0].split())
