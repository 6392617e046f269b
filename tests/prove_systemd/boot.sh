#!/usr/bin/env bash
# Starts systemd as the first process of a container, and waits for its end.
#
#   boot.sh PROGRAM REPOSITORY OUT RESTARTS KILLS STALLS
#
# Everything is in namespaces that end with it: nothing is mounted outside, nothing is left. The one
# exception is a control group, which is removed.
set -euo pipefail

if [[ ${1:-} != --inside ]]; then
    groups=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/self/mounts)
    group=$groups/musherfs-prove-$$
    mkdir "$group"
    trap 'find "$group" -depth -type d -exec rmdir {} +' EXIT
    (
        echo "$BASHPID" >"$group/cgroup.procs"
        exec timeout --kill-after=5 1h unshare --mount --pid --fork --kill-child --cgroup --ipc --uts --net \
            --propagation private bash "$0" --inside "$@"
    )
    exit
fi

program=$2 repository=$3 out=$4
shift 4
root=$(mktemp -d)
mount -t tmpfs -o mode=0755 none "$root"
# Gone for everybody else when this namespace is; the empty directory goes at once.
cd "$root"
mkdir -p usr etc/systemd/system etc/musher var/lib var/cache var/log run tmp dev proc sys out srv opt old mnt
for name in bin sbin lib lib64; do
    [[ ! -e /usr/$name ]] || ln -s "usr/$name" "$name"
done
mount --rbind /usr usr
mount -o remount,bind,ro usr
cp -a /etc/{alternatives,passwd,group,nsswitch.conf,ld.so.cache} etc/
echo 0123456789abcdef0123456789abcdef >etc/machine-id
mount -t tmpfs -o mode=0755 none dev
for name in fuse null zero full random urandom tty; do
    : >"dev/$name"
    mount --bind "/dev/$name" "dev/$name"
done
ln -s /proc/self/fd dev/fd
mount -t proc proc proc
# The kernel's settings are the machine's, and no business of this systemd.
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t tmpfs none sys/fs/cgroup
mount -t cgroup2 none sys/fs/cgroup
mount -t tmpfs -o mode=0755 none run
mount --bind "$out" out
ip link set lo up

DESTDIR=$root PREFIX=/opt/musherfs SBINDIR=/opt/musherfs/sbin "$repository/scripts/install" "$program" >/dev/null
cp opt/musherfs/lib/systemd/system/musherfs.service etc/systemd/system/
echo MUSHER_API_URL=http://127.0.0.1:8787 >etc/musher/musherfs.env
cp -r "$repository/src/registry/samples/acme/code-review/1.2.0" opt/published
"$program" registry publish --root srv/registry opt/published >/dev/null
cp "$repository"/tests/prove_systemd/{scenario.sh,readers.py} opt/
cat >etc/systemd/system/registry.service <<'UNIT'
[Unit]
DefaultDependencies=no
[Service]
ExecStart=/opt/musherfs/bin/musherfs registry serve --root /srv/registry --listen 127.0.0.1:8787
UNIT
cat >etc/systemd/system/scenario.service <<UNIT
[Unit]
DefaultDependencies=no
SuccessAction=exit-force
FailureAction=exit-force
[Service]
Type=oneshot
TimeoutStartSec=infinity
ExecStart=/bin/bash /opt/scenario.sh $*
StandardOutput=append:/out/log
StandardError=inherit
UNIT
cat >etc/systemd/system/prove.target <<'UNIT'
[Unit]
DefaultDependencies=no
Wants=scenario.service
UNIT

pivot_root . old
# shellcheck disable=SC2016
exec chroot . /bin/sh -c 'rmdir "/old$1"; umount -l /old
    exec env -i container=musherfs-prove PATH=/usr/sbin:/usr/bin \
        /usr/lib/systemd/systemd --system --unit=prove.target --log-target=console --show-status=no' sh "$root"
