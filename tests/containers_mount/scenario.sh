#!/usr/bin/env bash
# Runs in a mount namespace of its own: what is mounted here is gone with it.
# Arguments: the program, a directory to work in, the registry's URL.
set -euo pipefail
musherfs=$1 work=$2
export MUSHER_HOME=$work/home MUSHER_API_URL=$3
shared=$work/shared mount=$shared/mnt

clean_up() {
    crun_ delete -f early >/dev/null 2>&1 || true
    "$musherfs" umount --force "$mount" >/dev/null 2>&1 || true
}
trap clean_up EXIT
say() { printf '%s\n' "$*"; }
fail() {
    printf 'FAILED: %s\n' "$*"
    exit 1
}
crun_() { crun --root "$work/state" --cgroup-manager=disabled "$@"; }
inside() { crun --root "$work/state" exec "$@"; }

# crun does not like a mixture of both versions of cgroups.
umount -R /sys/fs/cgroup 2>/dev/null || true
mount -t cgroup2 none /sys/fs/cgroup

mkdir -p "$shared/mnt" "$work"/rootfs/{bin,dev,proc,srv/musher}
cp "$(command -v busybox)" "$work/rootfs/bin/busybox"
for tool in sh cat ls sleep touch; do ln -s busybox "$work/rootfs/bin/$tool"; done
mount --bind "$shared" "$shared"
mount --make-shared "$shared"

# As after a first run: the directory beneath the mount says what is missing.
"$musherfs" mount --marker --allow-other "$mount"
"$musherfs" umount "$mount"

cat >"$work/config.json" <<CONFIG
{
  "ociVersion": "1.0.2",
  "process": {
    "terminal": false, "user": { "uid": 0, "gid": 0 }, "cwd": "/", "env": ["PATH=/bin"],
    "args": ["/bin/sleep", "1000"]
  },
  "root": { "path": "rootfs", "readonly": true },
  "mounts": [
    { "destination": "/proc", "type": "proc", "source": "proc" },
    { "destination": "/srv/musher", "type": "bind", "source": "$shared", "options": ["rbind", "rslave", "ro"] }
  ],
  "linux": { "rootfsPropagation": "rslave", "namespaces": [{ "type": "mount" }, { "type": "pid" }] }
}
CONFIG
cd "$work"
crun_ run -d early

say "early: $(inside early /bin/ls /srv/musher/mnt)"
marker=$(inside early /bin/cat /srv/musher/mnt/NOT-MOUNTED)
[[ $marker == *'Nothing is mounted'* ]] || fail "the marker says: $marker"

"$musherfs" mount --marker --allow-other "$mount"
say "mounted: $(inside early /bin/cat /srv/musher/mnt/acme/kit/a.md)"
say "plain user: $(inside --user 1000:1000 early /bin/cat /srv/musher/mnt/acme/kit/b.md)"

# Read-only twice: the bind, and the filesystem.
if inside early /bin/touch /srv/musher/mnt/acme/x 2>"$work/said"; then fail 'it was written to'; fi
grep -q 'Read-only file system' "$work/said" || fail "$(cat "$work/said")"

"$musherfs" umount "$mount"
say "unmounted: $(inside early /bin/ls /srv/musher/mnt)"
"$musherfs" mount --marker --allow-other "$mount"
say "again: $(inside early /bin/cat /srv/musher/mnt/acme/kit/a.md)"

# Without a runtime: a sandbox for one command, as root and as a plain user.
sandbox() {
    bwrap --ro-bind "$work/rootfs" / --ro-bind "$shared" /srv/musher --proc /proc --dev /dev "$@"
}
say "bwrap root: $(sandbox /bin/cat /srv/musher/mnt/acme/kit/a.md)"
say "bwrap user: $(sandbox --unshare-user --uid 1000 --gid 1000 /bin/cat /srv/musher/mnt/acme/kit/b.md)"
say 'all done'
