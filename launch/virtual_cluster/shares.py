"""Holding each node to a share of the host's cores: a CPU quota on a cgroup per node, of version 1 or 2."""
import os
import pathlib
import time

from virtual_cluster.namespaces import Refusal

# Short, so that a node that used up its quota pauses for less than a step takes and not for a whole one.
PERIOD_US = 10_000
MOST_OF_HOST = 0.9  # above this, nodes that wait would lend their time to others, and imbalance between nodes could not be seen


def host_cores():
    return len(os.sched_getaffinity(0))


def _hierarchy():
    """(version, mount point, this process's own folder in it) of the hierarchy that has the cpu controller."""
    own = {}
    for line in pathlib.Path("/proc/self/cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            own[controller] = path  # version 2 has the empty name
    found = {}
    for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines():
        left, right = line.split(" - ", 1)
        root, point = left.split()[3:5]
        kind, _, options = right.split()[:3]
        if kind == "cgroup" and "cpu" in options.split(",") and "cpu" in own:
            found[1] = (1, pathlib.Path(point), root, own["cpu"])
        elif kind == "cgroup2" and "" in own:
            found[2] = (2, pathlib.Path(point), root, own[""])
    if not found:
        raise Refusal("no cgroup hierarchy with the cpu controller is mounted")
    version, point, root, path = found[min(found)]  # version 2 has no cpu controller where version 1 has it
    inner = os.path.relpath(path, root) if path.startswith(root.rstrip("/") + "/") else "."
    return version, point, point / inner


def _fill(top, version, shares):
    """Makes the group of a cluster, with a group per node and one without a quota for the head. The whole is heavy: until their quota is used up,
    nodes go before the host's other work."""
    top.mkdir()
    (top / "head").mkdir()
    if version == 2:
        (top / "cgroup.subtree_control").write_text("+cpu")
        (top / "cpu.weight").write_text("10000")
    else:
        (top / "cpu.shares").write_text("262144")
    for node, share in enumerate(shares):
        folder = top / f"node{node}"
        folder.mkdir()
        quota = int(share * PERIOD_US)
        if version == 2:
            (folder / "cpu.max").write_text(f"{quota} {PERIOD_US}")
        else:
            (folder / "cpu.cfs_period_us").write_text(str(PERIOD_US))
            (folder / "cpu.cfs_quota_us").write_text(str(quota))


def places(name):
    """Where the group of a cluster may be: below this process's own group, or as near above it as this user may write."""
    version, point, own = _hierarchy()
    folders = [own, *own.parents]
    return version, [folder / f"shoal-{os.getuid()}-{name}" for folder in folders[: folders.index(point) + 1]]


def make(name, shares):
    """Makes a group per node and returns the folder that has them."""
    version, tops = places(name)
    said = []
    for top in tops:
        try:
            _fill(top, version, shares)
            return str(top)
        except OSError as error:
            said.append(str(error))
            remove(top)
    cure = ("its cpu controller has to be handed down to that group: echo +cpu >cgroup.subtree_control in the folder above" if version == 2 else
            "that folder has to be mounted read-write")
    raise Refusal(f"no cgroup can be made to hold nodes to their share of the CPU ({'; '.join(said)}): this needs root or a delegated group, and {cure}. "
                  "`up --no_cpu_share` goes without")


def remove(top):
    """Removes the groups of a cluster, which ended processes may hold for another moment."""
    top = pathlib.Path(top)
    if not top.is_dir():
        return
    for folder in [*(entry for entry in top.iterdir() if entry.is_dir()), top]:
        end = time.monotonic() + 5
        while True:
            try:
                folder.rmdir()
                break
            except OSError as error:
                if time.monotonic() > end:
                    raise Refusal(f"{folder} stays behind: {error}")
                time.sleep(0.02)


def join(top, member):
    """Moves the calling process, and with it the children it will have, to the group of 'head' or 'node3'."""
    (pathlib.Path(top) / member / "cgroup.procs").write_text("0")
