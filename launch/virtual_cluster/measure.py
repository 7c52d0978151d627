"""What `up` measures before it calls a cluster usable. The functions run inside nodes."""
import math
import os
import pathlib
import socket
import time

PORT = 29_400
WARM_SECONDS = 0.3
SECONDS = 0.6
TOLERANCE = 0.1


def _arrived():
    """Bytes that came in over the node's link so far."""
    for line in pathlib.Path("/proc/self/net/dev").read_text().splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == "eth0":
            return int(counters.split()[0])
    raise OSError("this node has no eth0")


def receive(address):
    """Bits per second that arrive while one TCP connection sends what it can, after a warm-up that fills buckets, queues and windows.

    The device counts them, not the reader: what waited in the socket while the reader had no CPU would count as too much.
    """
    with socket.create_server((address, PORT)) as server:
        server.settimeout(10)
        connection, _ = server.accept()
    buffer = bytearray(1 << 18)
    begin = end = None
    with connection:
        connection.settimeout(10)
        connection.recv_into(buffer)
        start = time.monotonic()
        while connection.recv_into(buffer):
            now = time.monotonic()
            if begin is None and now > start + WARM_SECONDS:
                begin = (now, _arrived())
            elif end is None and now > start + WARM_SECONDS + SECONDS:
                end = (now, _arrived())
    return 8 * (end[1] - begin[1]) / (end[0] - begin[0])


def _connect(address, port):
    end = time.monotonic() + 10
    while True:
        try:
            return socket.create_connection((address, port), timeout=10)
        except ConnectionRefusedError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)


def send(address):
    buffer = bytes(1 << 18)
    with _connect(address, PORT) as connection:
        end = time.monotonic() + WARM_SECONDS + SECONDS + 0.1
        while time.monotonic() < end:
            connection.sendall(buffer)


def answer(address):
    with socket.create_server((address, PORT)) as server:
        server.settimeout(10)
        connection, _ = server.accept()
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while byte := connection.recv(1):
            connection.sendall(byte)


def ask(address):
    """Median seconds of a byte's way there and back."""
    times = []
    with _connect(address, PORT) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(101):
            begin = time.monotonic()
            connection.sendall(b"x")
            connection.recv(1)
            times.append(time.monotonic() - begin)
    return sorted(times)[50]


def burn(begin, share):
    """Keeps more processes busy than `share` cores hold, from `begin` on the monotonic clock; cores' worth of time that they got."""
    seconds = 1.0
    children = []
    for _ in range(math.floor(share) + 1):
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            time.sleep(max(0, begin - time.monotonic()))
            used = time.process_time()
            while time.monotonic() < begin + seconds:
                pass
            os.write(write_end, repr(time.process_time() - used).encode())
            os._exit(0)
        os.close(write_end)
        children.append((pid, read_end))
    used = 0.0
    for pid, read_end in children:
        used += float(os.read(read_end, 64) or 0)
        os.close(read_end)
        os.waitpid(pid, 0)
    return used / seconds
