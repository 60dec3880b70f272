#!/usr/bin/env bash
# Evaluates all runs in the given directories, skipping what is done; run it again after any interruption.
#
#   ./eval.sh DIR [DIR ...] [options of eval.py]     e.g. ./eval.sh logs-mnist-base-*
#   ./eval.sh DIR [DIR ...] --list                   print the command lines instead, one a batch of runs
#
# For each run: losses, accuracies and norms of every checkpoint; best.ckpt is linked to the one with the lowest val_loss;
# then the similarities of its units, their modules, and the modules' agreement. Untrained networks get all of it.
# JOBS processes (default: number of cores, or of GPUs) work side by side on batches of BATCH runs (default 10).
# ENGINE=parallel or slurm uses several machines, see study/engines.sh.
# On two cores demo takes a minute or two, mnist-base about half an hour; 1.5 MB of disk a network.
set -euo pipefail
cd "$(dirname "$0")"
source study/engines.sh

list=false dirs=() options=()
while [ $# -gt 0 ]; do
    case $1 in
        --list) list=true ;;
        -*) options=("$@"); break ;;
        *) dirs+=("$1") ;;
    esac
    shift
done
[ ${#dirs[@]} -gt 0 ] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 2; }

lines=$("$PYTHON" -m study.jobs evaluations "${dirs[@]}" --batch "${BATCH:-10}" --options="${options[*]@Q}")
if $list; then echo "$lines"; else run_lines "${dirs[0]}" <<<"$lines"; fi
