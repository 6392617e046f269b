#!/usr/bin/env bash
# What happens in the container: scenario.sh RESTARTS KILLS STALLS. Writes /out/report.json.
set -euo pipefail
restarts=$1 kills=$2 stalls=$3

main_pid() { systemctl show --property=MainPID --value musherfs; }
# The mount's number and the device that it shows.
mounted() { awk '$5 == "/mnt/musher" { print $1, $3 }' /proc/self/mountinfo; }
# Waits until another daemon than $1 serves; what systemd says it is waiting for comes first. $by_itself
# is how often systemd has started one without having been told to.
another() {
    local tries=0
    while [[ $(main_pid) == "$1" || $(systemctl is-active musherfs) != active ]]; do
        ((++tries < 600)) || {
            systemctl status --no-pager --full musherfs
            exit 1
        }
        sleep 0.1
    done
    seen+=("$(mounted)")
    by_itself=$(systemctl show --property=NRestarts --value musherfs)
    # Counted from here again.
    systemctl reset-failed musherfs
}

systemctl start registry
systemctl start musherfs
ready=false
[[ $(stat --file-system --format=%T /mnt/musher) == fuse* && -r /mnt/musher/acme/code-review/README.md ]] && ready=true
seen=("$(mounted)")

python3 /opt/readers.py >/out/readers.json 2>/out/readers.log &
readers=$!
until grep -q reading /out/readers.log; do
    kill -0 "$readers"
    sleep 0.05
done

restarted=0 replaced=0 ended=0
for ((n = 0; n < restarts; n++)); do
    before=$(main_pid)
    systemctl restart musherfs
    another "$before"
    ((by_itself != 0)) || restarted=$((restarted + 1))
done
for ((n = 0; n < kills; n++)); do
    before=$(main_pid)
    systemctl kill --signal=KILL --kill-whom=main musherfs
    another "$before"
    ((by_itself != 1)) || replaced=$((replaced + 1))
done
mkdir -p /run/systemd/system/musherfs.service.d
printf '[Service]\nWatchdogSec=2\nTimeoutAbortSec=1\n' >/run/systemd/system/musherfs.service.d/impatient.conf
systemctl daemon-reload
before=$(main_pid)
systemctl restart musherfs
another "$before"
for ((n = 0; n < stalls; n++)); do
    before=$(main_pid)
    kill -STOP "$before"
    another "$before"
    ((by_itself != 1)) || ended=$((ended + 1))
done

kill -TERM "$readers"
wait "$readers"
systemctl stop musherfs
gone=false
[[ -n $(mounted) ]] || gone=true
mapfile -t distinct < <(printf '%s\n' "${seen[@]}" | sort -u)
cat >/out/report.json <<REPORT
{"readyWhenStarted": $ready, "restarts": $restarted, "kills": $replaced, "stalls": $ended,
 "mounts": ${#distinct[@]}, "goneWhenStopped": $gone,
 "systemd": "$(systemctl --version | awk 'NR == 1 { print $2 }')",
 "readers": $(cat /out/readers.json)}
REPORT
