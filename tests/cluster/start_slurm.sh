#!/bin/bash
# start_slurm.sh DIR: start a real Slurm of two nodes, a and b, on this machine; everything it writes is below DIR.
# stop_slurm.sh DIR ends it. Needs root and Debian's packages slurmctld, slurmd, slurm-client and munge (README.md).
set -euo pipefail
dir=$(mkdir -p "$1" && cd "$1" && pwd)
host=$(hostname -s)
# All at once: one after the other, the same port may be found twice.
read -r port_ctld port_a port_b < <(python3 -c '
import socket
sockets = [socket.create_server(("", 0)) for _ in range(3)]
print(*(one.getsockname()[1] for one in sockets))')

mkdir -p "$dir"/{state,spool-a,spool-b,munge}
chmod 755 "$dir"
chmod 700 "$dir/munge"
dd if=/dev/urandom of="$dir/munge/key" bs=1024 count=1 status=none
chmod 400 "$dir/munge/key"
chown -R munge "$dir/munge"
socket=$(mktemp -d /tmp/munge-XXXXXX)  # a socket's path must be short, and every user has to reach it
chmod 755 "$socket"
chown munge "$socket"
echo "$socket" > "$dir/socket"
setpriv --reuid munge --regid munge --clear-groups munged --key-file="$dir/munge/key" --socket="$socket/s" \
    --pid-file="$dir/munge/pid" --log-file="$dir/munge/log" --seed-file="$dir/munge/seed"

for number in 0 1 2 3; do
    [ -e "$dir/gpu$number" ] || mknod "$dir/gpu$number" c 1 3
done

cat > "$dir/slurm.conf" <<END
ClusterName=tests
SlurmctldHost=$host
SlurmctldPort=$port_ctld
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$socket/s
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool-%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd-%n.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=1,sched_interval=5,bf_interval=5
ReturnToService=2
SlurmdTimeout=60
KillWait=20
MinJobAge=3600
OverTimeLimit=0
GresTypes=gpu
NodeName=a NodeHostname=$host Port=$port_a CPUs=4 RealMemory=8000 Gres=gpu:2
NodeName=b NodeHostname=$host Port=$port_b CPUs=4 RealMemory=8000 Gres=gpu:2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=tests Nodes=a,b Default=YES MaxTime=1:00:00 State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=a,b MaxTime=1:00:00 State=UP PriorityTier=2 PreemptMode=OFF
END
cat > "$dir/gres.conf" <<END
NodeName=a Name=gpu File=$dir/gpu[0-1]
NodeName=b Name=gpu File=$dir/gpu[2-3]
END
# Before 23.02 a slurmd without the plugin of its machine's cgroups does not start, though nothing uses it here.
version=$(slurmd -V | grep -o '[0-9]*' | head -n 1)
if [ "$version" -ge 23 ]; then plugin=disabled; elif [ -e /sys/fs/cgroup/freezer ]; then plugin=cgroup/v1; else plugin=autodetect; fi
printf 'CgroupPlugin=%s\nCgroupAutomount=no\n' "$plugin" > "$dir/cgroup.conf"

export SLURM_CONF=$dir/slurm.conf
slurmctld -f "$SLURM_CONF" -c
for node in a b; do
    slurmd -f "$SLURM_CONF" -N "$node"
done
for _ in $(seq 60); do
    [ "$(sinfo --partition=tests --noheader --Node --format=%T 2>/dev/null | grep -c '^idle$')" = 2 ] && exit 0
    sleep 1
done
echo "start_slurm.sh: the nodes do not come up" >&2
sinfo --Node --long >&2 || true
tail -n 20 "$dir"/*.log >&2
exit 1
