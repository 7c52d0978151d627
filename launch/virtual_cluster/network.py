"""The network of a cluster: a bridge in the head's namespace, and to each node a link with a token bucket at both of its ends."""
import json
import pathlib
import re

from virtual_cluster.namespaces import call

PREFIX = "10.213.0."  # every cluster has it to itself: nothing is routed out of the namespaces
SUBNET = PREFIX + "0/24"
HEAD = PREFIX + "254"
MOST_NODES = 250


def address(node):
    return f"{PREFIX}{node + 1}"


def parse_rate(text):
    """Bits per second of '1gbit', '100mbit' or '2.5gbit/s'."""
    match = re.fullmatch(r"([0-9.]+)([kmg])bit(/s|ps)?", text.lower())
    if not match:
        raise ValueError(f"rate '{text}'; it is written as 100mbit or 1gbit")
    return float(match[1]) * {"k": 1e3, "m": 1e6, "g": 1e9}[match[2]]


def parse_delay(text):
    """Seconds of '50us' or '2ms'."""
    match = re.fullmatch(r"([0-9.]+)(us|ms)", text.lower())
    if not match:
        raise ValueError(f"delay '{text}'; it is written as 50us or 2ms")
    return float(match[1]) * {"us": 1e-6, "ms": 1e-3}[match[2]]


def hosts(nodes):
    lines = ["127.0.0.1 localhost", f"{HEAD} head"] + [f"{address(node)} node{node}" for node in range(nodes)]
    return "\n".join(lines) + "\n"


def limit(device, rate, delay):
    """Holds what leaves through a device to `rate`, after `delay`.

    The bucket's size is what may pass faster than the rate. It has to bridge the lateness of the kernel's timer (a guest that got 860 of
    1000 Mbit/s with 200 us had 940 with 800), and stay small against the messages that are measured. Packets of the TCP stack are kept smaller than it, since a bucket cuts larger ones into single frames, which
    costs more CPU than a node may have. A queue of 20 ms more than fills what TCP keeps under way.
    """
    burst = max(16_000, int(rate / 8 * 800e-6))
    call("ip", "link", "set", device, "gso_max_size", str(min(65_536, int(0.9 * burst))))
    bucket = ["tbf", "rate", f"{int(rate)}bit", "burst", str(burst), "latency", "20ms"]
    if delay > 0:
        packets = max(1000, int(2 * rate * delay / 8 / 1500))
        call("tc", "qdisc", "add", "dev", device, "root", "handle", "1:", "netem", "delay", f"{delay * 1e6:.0f}us", "limit", str(packets))
        call("tc", "qdisc", "add", "dev", device, "parent", "1:1", "handle", "2:", *bucket)
    else:
        call("tc", "qdisc", "add", "dev", device, "root", *bucket)


def make_switch():
    """In the head: the bridge. The head itself is on it, without a limit, for mpirun's own messages."""
    call("ip", "link", "add", "switch", "type", "bridge")
    call("ip", "addr", "add", f"{HEAD}/24", "dev", "switch")
    call("ip", "link", "set", "switch", "up")
    # mpirun gives up a node that does not take its messages after some 13 s (0.2 s doubled six times) and ends the job; the default is a quarter
    # of an hour. Ranks have their own deadline, and the nodes' TCP is left as it is.
    pathlib.Path("/proc/sys/net/ipv4/tcp_retries2").write_text("5")


def make_link(node, pid, rate):
    """In the head: the link to the node held by process `pid`, and the limit on what comes to the node."""
    call("ip", "link", "add", f"node{node}", "type", "veth", "peer", "name", "eth0", "netns", str(pid))
    call("ip", "link", "set", f"node{node}", "master", "switch", "up")
    limit(f"node{node}", rate, 0)


def make_end(node, rate, delay):
    """In the node: its end of the link, and the limit on what it sends."""
    call("ip", "addr", "add", f"{address(node)}/24", "dev", "eth0")
    call("ip", "link", "set", "eth0", "up")
    limit("eth0", rate, delay)


def set_link(node, state):
    """In the head: 'down' is a pulled cable. The node sees it, the others hear nothing."""
    call("ip", "link", "set", f"node{node}", state)


def links():
    """In the head: of each node whether its link is up, and the bytes that came from it and went to it."""
    found = {}
    for device in json.loads(call("ip", "-json", "-statistics", "link", "show", "type", "veth")):
        bytes_of = device["stats64"]
        found[device["ifname"]] = {"up": "UP" in device["flags"], "sent": bytes_of["rx"]["bytes"], "received": bytes_of["tx"]["bytes"]}
    return found
