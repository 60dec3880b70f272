#!/usr/bin/env bash
# Evaluates all runs in the given directories, skipping what is done; run it again after any interruption.
#
#   ./eval.sh DIR [DIR ...] [options of eval.py]     e.g. ./eval.sh logs-mnist-base-*
#   ./eval.sh DIR [DIR ...] --list                   print the command lines instead, one a batch of runs
#
# For each run: losses, accuracies and norms of every checkpoint; best.ckpt is linked to the one with the lowest val_loss;
# then the similarities of its units, their modules, these modules' agreement and lesions. Untrained networks get all of it.
# JOBS processes (default: number of cores, or of GPUs) work side by side on batches of BATCH runs (default 10).
# ENGINE=parallel or slurm uses several machines, see study/engines.sh.
# On two cores demo takes a minute or two, mnist-base about half an hour; 1.5 MB of disk a network.
set -euo pipefail
caller=$PWD
cd "$(dirname "$(realpath "$0")")"
source study/engines.sh

sort_words "--list --help" "$@"
if has --help || [ ${#names[@]} -eq 0 ]; then
    usage eval.sh
    has --help || exit 2
    exit 0
fi
check_settings JOBS RETRIES BATCH
for i in "${!names[@]}"; do
    names[i]=$(from_caller "${names[i]}")
done
lines=$("$PYTHON" -m study.jobs evaluations "${names[@]}" --batch "${BATCH:-10}" -- ${options[@]+"${options[@]}"})
if has --list; then
    echo "$lines"
    exit
fi
if [ ${#options[@]} -gt 0 ]; then # a mistake in them is told once, here
    "$PYTHON" -c "import sys, eval; eval.parser().parse_args(sys.argv[1:])" "${options[@]}"
fi
run_lines "${names[@]}" <<<"$lines"
