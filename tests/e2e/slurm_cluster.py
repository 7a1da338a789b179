"""A Slurm cluster on one machine: every node is a network of its own with its own host name.

All of it lives in namespaces (processes, mounts, network, host names) that enter() makes: nothing is
seen from outside, and when the test ends, however it ends, the kernel ends every daemon and takes
every mount, interface and file away.
"""
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

SKIP = 77  # ctest's SKIP_RETURN_CODE
PROGRAMS = ("slurmctld slurmd srun sbatch scancel scontrol sinfo munged ip mount hostname "
            "squeue unshare").split()
INSIDE = "TRIREME_SLURM_NAMESPACE"
NAMESPACES = ["unshare", "--mount", "--net", "--uts", "--ipc", "--pid", "--fork", "--kill-child",
              "--mount-proc", "--propagation", "private"]
NODE_NAMESPACES = ["unshare", "--net", "--uts", "--ipc", "--mount", "--propagation", "private"]
STATE = Path("/run/trireme-slurm")  # on a tmpfs of the namespace
NETWORK = "10.77.0"                 # of the namespace as well
NODES = ["n1", "n2", "n3"]

CONFIGURATION = f"""
ClusterName=onetest
SlurmctldHost=ctl({NETWORK}.254)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={STATE}/munge.socket
CryptoType=crypto/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0
KillWait=20
StateSaveLocation={STATE}/ctl
SlurmdSpoolDir={STATE}/spool.%n
SlurmdPidFile={STATE}/slurmd.%n.pid
SlurmctldPidFile={STATE}/slurmctld.pid
SlurmctldLogFile={STATE}/slurmctld.log
SlurmdLogFile={STATE}/slurmd.%n.log
PluginDir={{plugins}}
NodeName=n[1-3] NodeAddr={NETWORK}.[1-3] Sockets=1 CoresPerSocket=2 RealMemory=1000 State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""

# What a node does: stands still until its network card is there, then becomes slurmd.
NODE = f"""
set -e
read -r name number
hostname "$name"
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs {STATE}/tmp
ip link set lo up
ip addr add {NETWORK}.$number/24 dev eth0
ip link set eth0 up
ip route add default via {NETWORK}.254
exec slurmd -D -N "$name"
"""


def skip(reason):
    print("skipped:", reason)
    sys.exit(SKIP)


def plugin_dir():
    found = sorted(Path("/usr").glob("lib*/**/slurm*/mpi_pmix.so"))
    return found[0].parent if found else None


def enter():
    """Goes on inside the namespaces, or ends with SKIP where that cannot be."""
    if os.environ.get(INSIDE):
        return
    os.environ["PATH"] += ":/usr/local/sbin:/usr/sbin:/sbin"
    missing = [name for name in PROGRAMS if not shutil.which(name)]
    if missing:
        skip("no " + ", ".join(missing) + " (launch/install --tests installs them)")
    if not plugin_dir():
        skip("Slurm has no PMIx plugin")
    if os.geteuid() != 0:
        skip("a cluster of network namespaces needs root")
    probe = ("mount -t tmpfs tmpfs /run && ip link add probe0 type veth peer name probe1 && "
             "ip link add probe2 type bridge && hostname probe")
    tried = subprocess.run([*NAMESPACES, "sh", "-c", probe], capture_output=True, timeout=20)
    if tried.returncode != 0:
        skip("no namespaces here: " + tried.stderr.decode(errors="replace").strip())
    os.environ[INSIDE] = "1"
    # bash stays as the namespace's first process: it takes over the daemons' orphans.
    os.execvp("unshare", [*NAMESPACES, "bash", "-c", '"$@"; exit $?', "bash", sys.executable, "-B",
                          *sys.argv])


def run(*arguments, check=True, timeout=30, **options):
    done = subprocess.run([str(word) for word in arguments], capture_output=True, timeout=timeout,
                          stdin=subprocess.DEVNULL, **options)
    if check and done.returncode != 0:
        raise AssertionError(f"{arguments}: exit {done.returncode}: {done.stderr.decode()}")
    return done


class Cluster:
    def __init__(self):
        self.daemons = {}

    def start(self):
        run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
        for folder in ("ctl", "tmp", *(f"spool.{node}" for node in NODES)):
            (STATE / folder).mkdir(parents=True)
        STATE.chmod(0o755)
        (STATE / "slurm.conf").write_text(CONFIGURATION.format(plugins=plugin_dir()))
        (STATE / "cgroup.conf").write_text("CgroupAutomount=no\n")
        (STATE / "mpi.conf").write_text(f"PMIxCliTmpDirBase={STATE}/tmp\n")
        hosts = ["127.0.0.1 localhost", f"{NETWORK}.254 ctl"]
        hosts += [f"{NETWORK}.{i} {node}" for i, node in enumerate(NODES, 1)]
        (STATE / "hosts").write_text("\n".join(hosts) + "\n")
        run("mount", "--bind", STATE / "hosts", "/etc/hosts")
        run("hostname", "ctl")
        os.environ.update(SLURM_CONF=str(STATE / "slurm.conf"), TMPDIR=str(STATE / "tmp"))
        for name in [name for name in os.environ if name.startswith(("OMPI_", "PMIX_", "PRTE_"))]:
            del os.environ[name]  # of a launcher around the test
        self.start_network()
        self.start_munge()
        self.daemon("slurmctld", "slurmctld", "-D")
        for number, node in enumerate(NODES, 1):
            self.start_node(node, number)
        self.wait_for_nodes()

    def daemon(self, name, *line, stdin=subprocess.DEVNULL):
        with open(STATE / f"{name}.out", "wb") as log:
            self.daemons[name] = subprocess.Popen(line, stdin=stdin, stdout=log, stderr=log)
        return self.daemons[name]

    def start_network(self):
        run("ip", "link", "set", "lo", "up")
        run("ip", "link", "add", "cluster", "type", "bridge")
        run("ip", "addr", "add", f"{NETWORK}.254/24", "dev", "cluster")
        run("ip", "link", "set", "cluster", "up")

    def start_munge(self):
        (STATE / "munge.key").write_bytes(os.urandom(128))
        (STATE / "munge.key").chmod(0o400)
        files = [f"--{name}-file={STATE}/munge.{name}" for name in ("key", "pid", "log", "seed")]
        self.daemon("munged", "munged", "--foreground", "--force",
                    f"--socket={STATE}/munge.socket", *files)
        self.wait("munged", 10, lambda: (STATE / "munge.socket").exists())

    def start_node(self, node, number):
        card = f"to-{node}"
        process = self.daemon(node, *NODE_NAMESPACES, "bash", "-c", NODE, stdin=subprocess.PIPE)
        own = os.readlink("/proc/self/ns/net")
        self.wait(node, 10, lambda: os.readlink(f"/proc/{process.pid}/ns/net") != own)
        run("ip", "link", "add", card, "type", "veth", "peer", "name", "eth0", "netns", process.pid)
        run("ip", "link", "set", card, "master", "cluster", "up")
        process.stdin.write(f"{node} {number}\n".encode())
        process.stdin.close()

    def wait_for_nodes(self):
        def idle():
            return run("sinfo", "-h", "-t", "idle", "-o", "%D", check=False).stdout.strip() == b"3"
        self.wait("slurm", 40, idle)

    def wait(self, what, seconds, ready):
        until = time.monotonic() + seconds
        while not ready():
            dead = [name for name, process in self.daemons.items() if process.poll() is not None]
            if dead or time.monotonic() > until:
                raise AssertionError(f"{what} is not up (ended: {dead}): {self.logs()}")
            time.sleep(0.05)

    def logs(self):
        files = sorted([*STATE.glob("*.out"), *STATE.glob("*log")])
        return "\n".join(f"--- {file.name}\n{file.read_text(errors='replace')[-2000:]}"
                         for file in files if file.stat().st_size)

    def stop(self):
        for name in reversed(list(self.daemons)):
            process = self.daemons.pop(name)
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
