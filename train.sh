#!/usr/bin/env bash
# Trains the networks of one experiment, skipping what is done; run it again after any interruption.
#
#   ./train.sh EXPERIMENT [l2|l1|drop|dummy ...]     all parts by default; experiments: see study/grids.py
#   ./train.sh EXPERIMENT [...] --then-eval          and evaluates them when the training has ended
#   ./train.sh EXPERIMENT [...] --list               print the command lines instead, one a network
#   ./train.sh EXPERIMENT [...] --status             what is done, running, failed and left, and the time left
#   ./train.sh EXPERIMENT [...] --OPTION ...         these go to train.py, which lists them: --device cpu, --max-epochs 2 ...
#
# JOBS (default: number of cores, or of GPUs) networks train side by side, each on one CPU thread or one of the GPUs. A job
# trains up to BATCH (default 3) repetitions of a grid point one after the other, since starting it takes seconds.
# ENGINE=parallel or slurm uses several machines, for instance
#   ENGINE=slurm JOBS=50 SBATCH_OPTIONS="--gres=gpu:1 --time=1:00:00" ./train.sh mnist-base --then-eval
# On two cores demo takes about a minute, mnist-base about an hour and a half, and 1.5 GB of disk.
set -euo pipefail
caller=$PWD
cd "$(dirname "$(realpath "$0")")"
source study/engines.sh

sort_words "--list --status --then-eval --help" "$@"
if has --help || [ ${#names[@]} -eq 0 ]; then
    usage train.sh
    has --help || exit 2
    exit 0
fi
check_settings JOBS RETRIES BATCH
grid() { "$PYTHON" -m study.jobs "$1" "${names[@]}" --batch "${BATCH:-3}" -- ${options[@]+"${options[@]}"}; }
dirs=$(grid dirs) # a wrong name or option fails here
mapfile -t folders <<<"$dirs"
if has --list; then
    BATCH=1 grid list
elif has --status; then
    grid status
    last_failures "${folders[@]}"
else
    lines=$(grid todo)
    status=0
    run_lines "${folders[@]}" <<<"$lines" || status=1
    [ "$ENGINE" = slurm ] || grid status
    if has --then-eval; then
        shared=$(grid shared)
        evaluation=(./eval.sh "${folders[@]}")
        [ -z "$shared" ] || mapfile -t -O ${#evaluation[@]} evaluation <<<"$shared"
        if [ "$ENGINE" = slurm ]; then # the list of evaluations is made when the training has ended
            sbatch ${submitted:+--dependency="afterany:$submitted"} --job-name=then-eval \
                --output="${folders[0]}/then-eval-%j.out" --wrap "exec ${evaluation[*]@Q}"
        else
            "${evaluation[@]}" || status=1
        fi
    fi
    exit $status
fi
