#!/usr/bin/env bash
# Train until the end: when the run crashes, or a GPU or a host fails, go on from the newest checkpoint.
#
#     dev/launch/resume_loop.sh LOG_DIR COMMAND [ARGUMENT]...
#     dev/launch/resume_loop.sh log124M dev/launch/single_node_mpirun.sh
#
# Runs COMMAND ... -o LOG_DIR -y 1 again and again, until it ends with 0. The command says how often there is a checkpoint (-n).
# What it makes of the run's exit code:
#     0               done                                    ends with 0
#     2, 126, 127     a mistake in the command                ends with the same
#     130, 143        stopped by the user or the scheduler    ends with 130
#     any other       a crash, or a rank that died or hung    starts the run again; ends with 1 after several in vain
# Ctrl-C, or a signal to this script (TERM, USR1): the run is asked to write a checkpoint and stop, and is not started again.
set -uo pipefail

MAX_FAILURES=${MAX_FAILURES:-3}  # after so many crashes in a row without a new checkpoint the loop gives up
WAIT_SECONDS=${WAIT_SECONDS:-10} # before the next start: time for dead processes to leave the GPUs

if (($# < 2)); then
    echo "usage: $0 LOG_DIR COMMAND [ARGUMENT]..." >&2
    exit 2
fi
LOG_DIR=$1
shift

newest_checkpoint() { # its step, or nothing; DONE_ is the last file of a checkpoint
    find "$LOG_DIR" -maxdepth 1 -name 'DONE_*' 2>/dev/null | sed 's/.*DONE_//' | sort -n | tail -n 1
}

say() {
    echo "$(date '+%F %T') resume_loop: $*" >&2
}

run=
stopping=
stop() {
    stopping=yes
    say "stopping, as soon as the run has written its checkpoint"
    # USR1, because mpirun hands it on and waits; after INT or TERM it kills the processes within half a second.
    [[ -n $run ]] && kill -USR1 "$run" 2>/dev/null
}
trap stop INT TERM USR1

failures=0
while [[ -z $stopping ]]; do
    before=$(newest_checkpoint)
    setsid "$@" -o "$LOG_DIR" -y 1 & # a session of its own: Ctrl-C reaches this script only, which then asks the run to stop
    run=$!
    wait "$run"
    code=$?
    while kill -0 "$run" 2>/dev/null; do # a signal ended the waiting, not the run
        wait "$run"
        code=$?
    done
    run=

    if ((code == 0)); then
        say "the run is done"
        exit 0
    elif [[ -n $stopping || $code == 130 || $code == 143 ]]; then
        say "the run was stopped; the same command goes on with it"
        exit 130
    elif ((code == 2 || code == 126 || code == 127)); then
        say "exit code $code: a mistake in the command, see above; another start would not mend it"
        exit "$code"
    fi

    after=$(newest_checkpoint)
    if [[ $after != "$before" ]]; then
        failures=0
        say "exit code $code: the run failed; it goes on from its new checkpoint of step $after"
    else
        failures=$((failures + 1))
        say "exit code $code: the run failed, $failures times now without a new checkpoint (newest: ${after:-none})"
    fi
    if ((failures >= MAX_FAILURES)); then
        say "giving up"
        exit 1
    fi
    sleep "$WAIT_SECONDS"
done
exit 130
