#!/usr/bin/env bash
# How a list of self-contained command lines is run: sourced by train.sh and eval.sh, started once more for each line.
#
#   ENGINE=local      JOBS lines side by side by xargs (default JOBS: number of cores, or of GPUs)
#   ENGINE=parallel   GNU parallel, with its job log, RETRIES tries a line (default 2) and a progress bar on a terminal;
#                     SSHLOGINS="host1 host2" or SSHLOGINS=FILE: several machines that share this folder, JOBS on each
#   ENGINE=slurm      one array of jobs, at most JOBS at a time; SBATCH_OPTIONS="--gres=gpu:1" adds options;
#                     and returns when all is submitted
#
# A line is done when its program says so, never because an engine remembers it: after any failure, start it all again.
# Visible GPUs are dealt out to the lines that run side by side. A machine called NAME-gpuN by ssh is the N-th GPU of NAME.

# Whoever sources this is in the project's folder; `caller` is the folder that the user's relative paths start from.

caller=${caller:-$PWD}

# from_caller PATH: the path, which the caller gave, as it is called from here.
from_caller() {
    if [[ $1 == /* || $caller -ef . ]]; then echo "$1"; else echo "$caller/$1"; fi
}

if [[ ${PYTHON:-} == */* ]]; then
    PYTHON=$(from_caller "$PYTHON")
fi
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
ENGINE=${ENGINE:-local}

# sort_words FLAGS WORD ...: splits a command line into `flags` (those of FLAGS, wherever they stand), `options` (from the
# first other word with a dash on) and `names` (the words before). Paths in options are made relative to here.
sort_words() {
    local known=" $1 " word last=
    flags=" " names=() options=()
    shift
    for word; do
        [ "$word" != -h ] || word=--help
        case $word in --data-dir=*) word=--data-dir=$(from_caller "${word#*=}") ;; esac
        [ "$last" != --data-dir ] || word=$(from_caller "$word")
        if [[ $known == *" $word "* ]]; then
            flags+="$word "
        elif [[ $word == -* || ${#options[@]} -gt 0 ]]; then
            options+=("$word")
        else
            names+=("$word")
        fi
        last=$word
    done
}

has() { [[ $flags == *" $1 "* ]]; }

# usage FILE: the text above a script's code.
usage() { sed -n '2,/^set/s/^# \{0,1\}//p' "$1"; }

# check_settings NAME ...: refuses settings that are not whole numbers from 1, and what cannot be run.
check_settings() {
    local name
    for name; do
        [[ -z ${!name:-} || ${!name} =~ ^0*[1-9][0-9]{0,5}$ ]] && continue
        echo "$name=${!name}: expected a whole number from 1 to 999999" >&2
        return 2
    done
    command -v "$PYTHON" >/dev/null || { echo "PYTHON=$PYTHON: no such program" >&2; return 2; }
    case $ENGINE in local | parallel | slurm) ;; *) echo "ENGINE=$ENGINE: expected local, parallel or slurm" >&2; return 2 ;; esac
}

# run_lines FOLDER ...: runs the lines on stdin. Their output goes to a new folder in FOLDER/jobs. A failed line does not
# stop the others, and is named at the end. What failed before in any of the folders is forgotten.
run_lines() {
    local dir mark n line
    check_settings JOBS RETRIES || return
    mkdir -p "$1/jobs" || return
    failures "$@" | while read -r mark; do rm "$mark"; done
    dir=$(mktemp -d "$1/jobs/$(date +%Y%m%d-%H%M%S)-XXX") || return
    while read -r line; do
        [ -z "$line" ] || echo "${PYTHON@Q} ${line#python }"
    done >"$dir/lines"
    n=$(wc -l <"$dir/lines")
    if [ "$n" -eq 0 ]; then
        rm -r "$dir"
        rmdir "$(dirname "$dir")" 2>/dev/null || true
        echo "nothing to do"
    elif [ "$ENGINE" = slurm ]; then
        submit "$dir" "$n"
    else
        echo "$n jobs to do; their output is in $dir"
        supervised "with_$ENGINE" "$dir" "$n"
        report_failures "$dir" "$n"
    fi
}

with_local() {
    seq "$2" | xargs -P "${JOBS:-$(slots)}" --process-slot-var=SLOT -I{} sh -c 'bash study/engines.sh "$0" {} "$SLOT" || true' "$1"
}

with_parallel() {
    local where=(-j "${JOBS:-$(slots)}") slot='$(({%} - 1))'
    if [ -n "${SSHLOGINS:-}" ] && [ -f "$(from_caller "$SSHLOGINS")" ]; then
        where=(--sshloginfile "$(from_caller "$SSHLOGINS")")
    elif [ -n "${SSHLOGINS:-}" ]; then
        where=(--sshlogin "${SSHLOGINS// /,}")
    fi
    if [ -n "${SSHLOGINS:-}" ]; then
        where+=(--workdir "$PWD" --filter-hosts ${JOBS:+-j "$JOBS"})
        slot='${PARALLEL_SSHLOGIN##*-gpu}' # {%} counts over all machines there
    fi
    [ ! -t 2 ] || where+=(--bar)
    seq "$2" | parallel "${where[@]}" --will-cite --joblog "$1/joblog" --retries "${RETRIES:-2}" \
        bash study/engines.sh "${1@Q}" {} "$slot" || true
}

# submit DIR N: hands the lines to Slurm, in arrays as large as it allows, and sets `submitted` to JOB[:JOB...].
submit() {
    local first size job limit after=
    limit=$(scontrol show config | awk '$1 == "MaxArraySize" { print $3 - 1 }')
    [ -n "$limit" ] || return 1
    submitted=
    for ((first = 1; first <= $2; first += size)); do
        size=$(($2 - first + 1 < limit ? $2 - first + 1 : limit))
        job=$(sbatch --parsable --array="1-$size${JOBS:+%$JOBS}" ${after:+--dependency="afterany:$after"} \
            --job-name="$(basename "$0")" --output="$1/slurm-%A_%a.out" --open-mode=append --requeue ${SBATCH_OPTIONS:-} \
            --wrap "exec bash study/engines.sh '$1' \$((SLURM_ARRAY_TASK_ID + $first - 1))") || return 1
        job=${job%%;*} submitted=${submitted:+$submitted:}$job
        [ -z "${JOBS:-}" ] || after=$job # one array after another, or more than JOBS would run
        echo "submitted $size jobs as array $job; their output is in $1"
    done
}

# run_one DIR NUMBER [SLOT]: runs one line of DIR/lines with its output in DIR/NUMBER.log, and says how far the list is.
run_one() {
    local line mark=failed finished n left
    line=$(sed -n "${2}p" "$1/lines")
    deal_gpu "${3:-}" "$line"
    export OMP_NUM_THREADS=1
    bash -c "exec $line" >>"$1/$2.log" 2>&1 </dev/null && mark="done"
    rm -f "$1/$2.failed"
    touch "$1/$2.$mark"
    finished=$(find "$1" -name '*.done' -o -name '*.failed' | wc -l) n=$(wc -l <"$1/lines")
    left=$((($(date +%s) - $(date -r "$1/lines" +%s)) * (n - finished) / finished))
    echo "[$finished/$n, $((left / 60)) min $((left % 60)) s left] ${mark/failed/FAILED: $line:} $(tail -n 1 "$1/$2.log")"
    [ $mark = "done" ]
}

# deal_gpu SLOT LINE: makes only the visible GPU whose turn it is visible, unless the line names a device itself.
deal_gpu() {
    local visible
    mapfile -t visible < <(gpus)
    [[ $1 =~ ^[0-9]+$ && ${#visible[@]} -gt 0 && $2 != *" --device"[\ =]* ]] || return 0
    export CUDA_VISIBLE_DEVICES=${visible[$1 % ${#visible[@]}]}
}

# The visible GPUs, one a line.
gpus() {
    if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
        tr , '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep . || true
    else
        nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null || true
    fi
}

# How many lines run side by side unless JOBS says so.
slots() {
    local n
    n=$(gpus | wc -l)
    if [ "$n" -gt 0 ]; then echo "$n"; else cores; fi
}

# Number of cores; nproc counts those that this process may use, but would count OMP_NUM_THREADS as well.
cores() { env -u OMP_NUM_THREADS nproc 2>/dev/null || getconf _NPROCESSORS_ONLN; }

# supervised COMMAND ...: runs it in a process group of its own, which Ctrl-C and SIGTERM end with all that it started.
supervised() {
    set -m
    "$@" &
    group=$!
    set +m
    trap stop_group INT TERM HUP
    wait "$group" || true
    trap - INT TERM HUP
}

stop_group() {
    echo "stopping; the same command goes on later" >&2
    while kill -TERM -- "-$group" 2>/dev/null; do sleep 0.5; done
    exit 130
}

# report_failures DIR N: names the lines that are not done, with the last line of their output.
report_failures() {
    local i failed=()
    for ((i = 1; i <= $2; i++)); do
        [ -e "$1/$i.done" ] || failed+=("$i")
    done
    if [ ${#failed[@]} -eq 0 ]; then
        rm -r "$1"
        rmdir "$(dirname "$1")" 2>/dev/null || true
        return
    fi
    echo "${#failed[@]} of $2 jobs failed; their output is in $1:"
    for i in "${failed[@]}"; do
        echo "  $(sed -n "${i}p" "$1/lines")"
        echo "    $(tail -n 1 "$1/$i.log" 2>/dev/null || echo "was never started")"
    done
    return 1
}

# last_failures FOLDER ...: what went wrong with the lines started last, engines that submit and return included.
last_failures() {
    local failed log
    mapfile -t failed < <(failures "$@" | sort)
    [ ${#failed[@]} -gt 0 ] || return 0
    log=${failed[0]%.failed}.log
    echo "${#failed[@]} jobs failed, such as $log: $(tail -n 1 "$log")"
}

# failures FOLDER ...: the marks of failed lines in the folders.
failures() {
    local folder
    for folder; do find "$folder/jobs" -name '*.failed' 2>/dev/null || true; done
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    set -euo pipefail
    run_one "$@"
fi
