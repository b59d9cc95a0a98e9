#!/bin/sh
# The first process of the virtual machine. The kernel hands over `cgroups=v1` or `cgroups=v2` as a variable.

# The root of an initramfs cannot be changed by pivot_root(2), which is how containers leave it. Mounted over itself it can.
if [ "$1" != moved ]; then
    mount --bind / /run
    cd /run
    mount --move . /
    exec chroot . /init moved
fi

export PATH=/usr/bin:/usr/sbin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /run
for module in /modules/*.ko; do insmod "$module"; done

mount_v1() {
    mkdir "/sys/fs/cgroup/$1"
    mount -t cgroup -o "$2" cgroup "/sys/fs/cgroup/$1"
}

if [ "$cgroups" = v2 ]; then
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
else
    # As systemd does on a host with its legacy hierarchy.
    mount -t tmpfs cgroup /sys/fs/cgroup
    mount_v1 systemd none,name=systemd
    for set in cpu,cpuacct net_cls,net_prio cpuset blkio memory devices freezer perf_event hugetlb pids; do
        mount_v1 "$set" "$set"
    done
    for name in cpu cpuacct; do ln -s cpu,cpuacct "/sys/fs/cgroup/$name"; done
    for name in net_cls net_prio; do ln -s net_cls,net_prio "/sys/fs/cgroup/$name"; done
fi

cd /cupola
PYTHONPATH=/cupola:/cupola/src python3 -m tests.vm.guest "$cgroups"
poweroff -f
