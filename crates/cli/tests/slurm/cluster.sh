#!/bin/bash
# A Slurm cluster of three nodes in namespaces of its own: FOLDER UID, started by
#   unshare --mount --net --uts --pid --fork --mount-proc --kill-child
# Its nodes are one host with three slurmd, and run jobs of root and of the user with that id. `up` appears in the
# folder once it is there.
set -e
folder=$1
hostname controller
ip link set lo up
ip link add cluster0 type bridge
ip addr add 10.9.0.1/24 dev cluster0
ip link set cluster0 up
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/munge
# What is kept on nodes is this cluster's own.
mount -t tmpfs -o mode=1777 tmpfs /var/tmp
mkdir "$folder"/{etc,state,spool,log,munge}
printf '127.0.0.1 localhost\n10.9.0.1 controller n1 n2 n3\n' > "$folder/hosts"
mount --bind "$folder/hosts" /etc/hosts
head -c 1024 /dev/urandom > "$folder/munge/key"
chmod 400 "$folder/munge/key"
chown -R munge: "$folder/munge" /run/munge
chmod 711 "$folder"
setpriv --reuid=munge --regid=munge --clear-groups munged --force --key-file="$folder/munge/key" \
    --pid-file="$folder/munge/pid" --log-file="$folder/munge/log" --seed-file="$folder/munge/seed"
cat > "$folder/etc/slurm.conf" <<CONF
ClusterName=t
SlurmctldHost=controller(10.9.0.1)
SlurmUser=root
AuthType=auth/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
SlurmctldPidFile=$folder/state/pid
SlurmdPidFile=$folder/state/%n.pid
SlurmctldLogFile=$folder/log/controller
SlurmdLogFile=$folder/log/%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=5
KillWait=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=200
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
MpiDefault=none
NodeName=n[1-3] NodeHostname=controller NodeAddr=10.9.0.1 Port=17001-17003 CPUs=2 RealMemory=2000
PartitionName=debug Nodes=n[1-3] Default=YES MaxTime=INFINITE PriorityTier=1 State=UP
PartitionName=urgent Nodes=n[1-3] MaxTime=INFINITE PriorityTier=2 State=UP
CONF
echo CgroupAutomount=no > "$folder/etc/cgroup.conf"
mkdir -p /etc/slurm
mount --bind "$folder/etc" /etc/slurm
slurmctld -D > "$folder/log/controller.out" 2>&1 &
for _ in $(seq 200); do (exec 3<> /dev/tcp/10.9.0.1/6817) 2> /dev/null && break; sleep 0.05; done
for node in n1 n2 n3; do
    slurmd -D -N $node > "$folder/log/$node.out" 2>&1 &
    echo $! > "$folder/state/$node.process"
done
for _ in $(seq 200); do [ "$(sinfo -h -o %D -t idle)" = 3 ] && break; sleep 0.05; done
echo $$ > "$folder/up.new"
mv "$folder/up.new" "$folder/up"
exec sleep 3600
