#!/usr/bin/env bash
# Trains the networks of one experiment, skipping what is done; run it again after any interruption.
#
#   ./train.sh EXPERIMENT [l2|l1|drop|dummy ...]     all parts by default; experiments: see study/grids.py
#   ./train.sh EXPERIMENT [...] --then-eval          and evaluates them when the training has ended
#   ./train.sh EXPERIMENT [...] --list               print the command lines instead, one a network
#   ./train.sh EXPERIMENT [...] --status             what is done, running, failed and left, and the time left
#   ./train.sh EXPERIMENT [...] --OPTION ...         this and all that follows goes to train.py, e.g. --device cpu
#
# JOBS (default: number of cores, or of GPUs) networks train side by side, each on one CPU thread or one of the GPUs. A job
# trains up to BATCH (default 3) repetitions of a grid point one after the other, since starting it takes seconds.
# ENGINE=parallel or slurm uses several machines, for instance
#   ENGINE=slurm JOBS=50 SBATCH_OPTIONS="--gres=gpu:1 --time=1:00:00" ./train.sh mnist-base --then-eval
# On two cores demo takes about a minute, mnist-base about an hour and a half, and 1.5 GB of disk.
set -euo pipefail
cd "$(dirname "$0")"
source study/engines.sh

what=run then_eval=false words=() options=()
while [ $# -gt 0 ]; do
    case $1 in
        --list) what=list ;;
        --status) what=status ;;
        --then-eval) then_eval=true ;;
        -*) options=("$@"); break ;;
        *) words+=("$1") ;;
    esac
    shift
done
[ ${#words[@]} -gt 0 ] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 2; }

grid() { "$PYTHON" -m study.jobs "$1" "${words[@]}" "${@:2}" --options="${options[*]@Q}"; }
lines=$(grid todo --batch "${BATCH:-3}") # a wrong name fails here
mapfile -t folders < <(grid dirs)
[ $what != list ] || { grid list; exit; }
[ $what != status ] || { grid status; last_failures "${folders[0]}"; exit; }
status=0
run_lines "${folders[0]}" <<<"$lines" || status=1
if [ "$ENGINE" != slurm ]; then
    grid status
    ! $then_eval || ./eval.sh "${folders[@]}"
elif $then_eval; then # the list of evaluations is made when the training has ended
    sbatch ${submitted:+--dependency="afterany:$submitted"} --job-name=then-eval --output="${folders[0]}/then-eval-%j.out" \
        --wrap "exec ./eval.sh ${folders[*]}"
fi
exit $status
