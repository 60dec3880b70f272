#!/usr/bin/env bash
# Trains the networks of one experiment, skipping what is done; run it again after any interruption.
#
#   ./train.sh EXPERIMENT [l2|l1|drop|dummy ...]     all parts by default; experiments: see grids.py
#   ./train.sh EXPERIMENT [...] --list               print the command lines instead, one a network
#   ./train.sh EXPERIMENT [...] --status             what is done, running, failed and left
#
# JOBS (default: number of cores, or of GPUs) networks train side by side, each on one CPU thread or one of the GPUs.
# On two cores demo takes about a minute, mnist-base about 45 minutes and 500 MB of disk.
set -euo pipefail
cd "$(dirname "$0")"
source engines.sh

what=run
words=()
for word in "$@"; do
    case $word in
        --list) what=list ;;
        --status) what=status ;;
        *) words+=("$word") ;;
    esac
done
[ ${#words[@]} -gt 0 ] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 2; }

[ $what = run ] || exec "$PYTHON" grids.py $what "${words[@]}"
"$PYTHON" grids.py list "${words[@]}" >/dev/null # a wrong name fails here
run_lines < <("$PYTHON" grids.py todo "${words[@]}")
