# How a list of self-contained command lines is run; sourced by train.sh and eval.sh.

PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
gpus() { nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true; }

# run_lines: runs the lines on stdin, JOBS side by side; a failed line does not stop the others, and is named at the end.
run_lines() {
    local lines outputs gpus n
    lines=$(mktemp) outputs=$(mktemp -d)
    grep . >"$lines" || true
    n=$(wc -l <"$lines") gpus=$(gpus)
    export PYTHON outputs gpus n OMP_NUM_THREADS=1
    local jobs=${JOBS:-$([ "$gpus" -gt 0 ] && echo "$gpus" || getconf _NPROCESSORS_ONLN)}
    echo "$n jobs to do, $jobs side by side"
    nl -w1 -s' ' "$lines" | xargs -r -d '\n' -P "$jobs" --process-slot-var=SLOT -n 1 bash -c 'run_one "$0" || true'
    report_failures "$lines" "$outputs"
}

# run_one "NUMBER LINE": runs one line with its output in a file of its own.
run_one() {
    local number=${1%% *} line=${1#* } start=$SECONDS
    [ "$gpus" -eq 0 ] || export CUDA_VISIBLE_DEVICES=$((SLOT % gpus))
    if bash -c "exec $PYTHON ${line#python }" >"$outputs/$number.log" 2>&1; then
        echo "[$number/$n] $((SECONDS - start)) s: $(tail -n 1 "$outputs/$number.log")"
    else
        echo "[$number/$n] FAILED: $line"
        touch "$outputs/$number.failed"
    fi
}
export -f run_one

report_failures() {
    local failed
    failed=$(find "$2" -name '*.failed' | wc -l)
    if [ "$failed" -eq 0 ]; then
        rm -r "$1" "$2"
        return
    fi
    echo "$failed of $n jobs failed (their output is in $2):"
    for mark in "$2"/*.failed; do
        local number
        number=$(basename "$mark" .failed)
        echo "  $(sed -n "${number}p" "$1")"
        echo "    $(tail -n 1 "$2/$number.log")"
    done
    return 1
}
