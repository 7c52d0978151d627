"""Namespaces of a cluster and how to work inside them.

The head of a cluster is a process with namespaces of its own (net, uts, ipc, mnt, pid; without root also user); each node is one more such
process below it. The kernel ends all processes of a pid namespace with its first one, so that the end of the head is the end of the cluster,
and network devices go with their namespaces.
"""
import ctypes
import json
import os
import pathlib
import select
import shutil
import signal
import subprocess
import sys
import time
import traceback

MARK = "SHOAL_VIRTUAL_CLUSTER"  # in the environment of everything that a cluster started: how `down` finds it

# First process of a namespace. It prints its id as the outer /proc has it. Children that lost their parent come to it, and since it ignores
# SIGCHLD the kernel reaps them. A /dev/shm and an IPC namespace of its own: no shared memory reaches another node.
HOLDER = r"""
read -r pid rest </proc/self/stat
mount -t proc proc /proc && mount -t tmpfs tmpfs /dev/shm && mount --bind "$2" /etc/hosts && hostname "$1" && ip link set lo up || exit 7
echo "$pid"
exec env --ignore-signal=CHLD sleep infinity
"""

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1


class Refusal(Exception):
    """This machine cannot do what was asked, or does not hold it: exit code 7, with the message."""


def without_root():
    return os.geteuid() != 0


def namespaces_of_head():
    return (["user"] if without_root() else []) + ["net", "uts", "ipc", "pid", "mnt"]


def hold(hostname, hosts_file, kinds):
    """Starts a holder with new namespaces of these kinds; returns its process id as seen from here."""
    names = {"user": ["--user", "--map-root-user"], "net": ["--net"], "uts": ["--uts"], "ipc": ["--ipc"], "pid": ["--pid"], "mnt": ["--mount"]}
    command = ["unshare", *(flag for kind in kinds for flag in names[kind]), "--fork", "--kill-child", "sh", "-c", HOLDER, "sh", hostname, hosts_file]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    line = process.stdout.readline().strip()
    if not line.isdigit():
        process.kill()
        raise Refusal(f"namespaces are not to be had here ({line}); this needs root (with CAP_SYS_ADMIN and CAP_NET_ADMIN) or, as another user, user "
                      "namespaces: sysctl kernel.unprivileged_userns_clone=1 (Debian), kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu)")
    # While the shell becomes `sleep`, its environment is away for moments, and `belongs` would not know it.
    while process.poll() is None and not (pathlib.Path(f"/proc/{line}/comm").read_text() == "sleep\n" and belongs(line, os.environ[MARK])):
        time.sleep(0.001)
    return int(line)


def enter(pid, kinds):
    """Moves the caller into the namespaces of a process; into its pid namespace only the children that it makes from here on."""
    files = [os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in kinds]
    for file, kind in zip(files, kinds):
        if _libc.setns(file, 0) != 0:
            error = ctypes.get_errno()
            raise OSError(error, f"cannot enter the {kind} namespace of process {pid}: {os.strerror(error)}")
        os.close(file)


class Task:
    """A function that runs in a process of its own, after `entering` moved that process to where it belongs."""

    def __init__(self, entering, function, *args):
        self.read_end, write_end = os.pipe()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.read_end)
            try:
                entering()
                child = os.fork()  # only a child is in the pid namespace that was entered
                if child != 0:
                    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF)
                answer = {"value": function(*args)}
            except (Refusal, OSError, subprocess.CalledProcessError) as error:
                answer = {"refusal": str(error)}
            except BaseException:
                answer = {"refusal": traceback.format_exc()}
            with os.fdopen(write_end, "w") as out:
                json.dump(answer, out)
            os._exit(0)
        os.close(write_end)

    def result(self, seconds=60):
        """What the function returned (as JSON carries it); raises Refusal with what went wrong."""
        text = b""
        end = time.monotonic() + seconds
        while select.select([self.read_end], [], [], max(0, end - time.monotonic()))[0]:
            chunk = os.read(self.read_end, 65536)
            text += chunk
            if not chunk:
                break
        else:
            os.kill(self.pid, signal.SIGKILL)
        os.close(self.read_end)
        os.waitpid(self.pid, 0)
        answer = json.loads(text or b'{"refusal": "no answer from inside the cluster"}')
        if "refusal" in answer:
            raise Refusal(answer["refusal"])
        return answer["value"]


def run_command(command, **options):
    """Runs a command as a child; passes on the signals that end or stop a job, and ends the child should this process be killed."""

    def end_with_parent():
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    child = None
    early = []

    def forward(number, _):
        if child is None:
            early.append(number)
        else:
            child.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, forward)
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C reaches the child by itself
    try:
        child = subprocess.Popen(command, preexec_fn=end_with_parent, **options)
    except FileNotFoundError as error:
        print(f"virtual-cluster: {error.filename}: not found", file=sys.stderr)
        return 127
    for number in early:
        child.send_signal(number)
    code = child.wait()
    return code if code >= 0 else 128 - code


def call(*command):
    """Runs a tool to its end; Refusal with what it said if it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise Refusal(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def need(*programs, packages):
    for program in programs:
        if shutil.which(program) is None:
            raise Refusal(f"'{program}' is missing; install {packages}")


def belongs(pid, folder):
    """Whether a process was started by the cluster of this state folder."""
    try:
        return f"{MARK}={folder}".encode() in pathlib.Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def end_all(folder, seconds=10):
    """Kills every process of a cluster and waits until they are gone."""
    end = time.monotonic() + seconds
    while True:
        left = [int(entry) for entry in os.listdir("/proc") if entry.isdigit() and int(entry) != os.getpid() and belongs(entry, folder)]
        if not left:
            return
        if time.monotonic() > end:
            raise Refusal(f"processes {left} do not end")
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.02)
