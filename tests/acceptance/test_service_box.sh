#!/bin/bash
# Boots systemd as process 1 in its own namespaces (the box), over a temporary layer on this machine's files, with a user
# forecastd, the checkout at /opt/forecastd and its virtual environment at /opt/venv. Runs SHARE/job there as root, with SHARE at
# /run/box, and ends with that job. Nothing outside the box is changed. Requires root.
#
# Usage: test_service_box.sh SHARE CHECKOUT VENV BASE      BASE: the directory of the interpreter that VENV links to
set -euo pipefail

outside() {
    mount --make-rprivate /
    mount -t tmpfs box /mnt
    mkdir /mnt/cgroup
    mount -t cgroup2 cgroup /mnt/cgroup
    local box_cgroup
    box_cgroup=/mnt/cgroup$(sed -n 's/^0:://p' /proc/self/cgroup)/forecastd-box-$$
    mkdir "$box_cgroup"
    local code=0
    (
        echo "$BASHPID" >"$box_cgroup/cgroup.procs"
        exec unshare --mount --pid --fork --kill-child --uts --ipc --net --cgroup bash "$0" inside "$@"
    ) || code=$?
    for _ in $(seq 100); do
        find "$box_cgroup" -depth -type d -exec rmdir {} + 2>/dev/null && break
        sleep 0.1
    done
    return "$code"
}

inside() {
    local share=$1 checkout=$2 venv=$3 base=$4 root=/mnt/root
    mount --make-rprivate /
    mkdir /mnt/upper /mnt/work $root
    mount -t overlay box -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work $root

    mount -t proc proc $root/proc
    mount --bind $root/proc/sys $root/proc/sys
    mount -o remount,bind,ro $root/proc/sys
    mount -t sysfs -o ro sysfs $root/sys
    mount -t cgroup2 cgroup $root/sys/fs/cgroup
    mount -t tmpfs -o mode=755 dev $root/dev
    local device
    for device in null zero full random urandom tty; do
        touch $root/dev/$device
        mount --bind /dev/$device $root/dev/$device
    done
    mkdir $root/dev/pts $root/dev/shm
    mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts $root/dev/pts
    ln -s pts/ptmx $root/dev/ptmx
    ln -s /proc/self/fd $root/dev/fd
    mount -t tmpfs -o mode=755 run $root/run
    mount -t tmpfs -o mode=1777 tmp $root/tmp

    mkdir -p $root/run/box $root/opt/forecastd $root/opt/venv "$root$base"
    mount --bind "$share" $root/run/box
    mount --bind "$checkout" $root/opt/forecastd
    mount --bind "$venv" $root/opt/venv
    mount --bind "$base" "$root$base"
    local parent=$base
    while [ "$parent" != / ]; do # let every user run this interpreter inside the box
        parent=$(dirname "$parent")
        chmod a+x "$root$parent"
    done
    echo forecastd:x:64000:64000::/var/lib/forecastd:/usr/sbin/nologin >>$root/etc/passwd
    echo forecastd:x:64000: >>$root/etc/group

    # Start at boot only what units depend on explicitly.
    rm -rf $root/etc/systemd/system $root/lib/systemd/system/*.wants $root/lib/systemd/system-generators
    mkdir -p $root/etc/systemd/system
    cat >$root/etc/systemd/system/job.service <<END
[Unit]
DefaultDependencies=no
SuccessAction=exit
FailureAction=exit
[Service]
Type=oneshot
ExecStart=/run/box/job
StandardOutput=file:/run/box/output
StandardError=inherit
TimeoutStartSec=240
END
    cd $root
    mkdir old
    pivot_root . old
    umount -l /old
    mount --make-rshared /
    exec env -i container=box PATH=/usr/sbin:/usr/bin:/sbin:/bin \
        /lib/systemd/systemd --system --unit=job.service --log-target=console --log-level=warning --show-status=no </dev/null
}

if [ "$1" = inside ]; then
    shift
    inside "$@"
else
    export -f outside
    exec unshare --mount bash -c "set -euo pipefail; outside \"\$@\"" "$0" "$@"
fi
