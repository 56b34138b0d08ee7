#!/usr/bin/env bash
# Train to the end: after a crash, or the failure of a GPU or a host, resume from the newest checkpoint.
#
#     dev/launch/resume_loop.sh LOG_DIR COMMAND [ARGUMENT]...
#     dev/launch/resume_loop.sh log124M dev/launch/single_node_mpirun.sh
#
# Runs COMMAND ... -o LOG_DIR -y 1 again and again until it exits with 0. COMMAND sets the checkpoint interval (-n).
# By the exit code of the run, the loop
#     0               done                                    exits with 0
#     2, 126, 127     a mistake in the command                exits with the same code
#     130, 143        stopped by the user or the scheduler    exits with 130
#     1               its last steps were not finite          exits with 1: the same data would come to the same end
#     any other       a crash, or a rank that died or hung    starts the run again; gives up and exits with 1 after several failures
# On Ctrl-C, or a signal to this script (TERM, USR1), the run writes a checkpoint and stops, and the loop ends.
set -uo pipefail

MAX_FAILURES=${MAX_FAILURES:-3}  # the loop gives up after this many crashes in a row without a new checkpoint
WAIT_SECONDS=${WAIT_SECONDS:-10} # before the next start: time for dead processes to free the GPUs

if (($# < 2)); then
    echo "usage: $0 LOG_DIR COMMAND [ARGUMENT]..." >&2
    exit 2
fi
LOG_DIR=$1
shift

newest_checkpoint() { # prints its step, if there is one; DONE_ is the last file written of a checkpoint
    find "$LOG_DIR" -maxdepth 1 -name 'DONE_*' 2>/dev/null | sed 's/.*DONE_//' | sort -n | tail -n 1
}

has_diverged() { # the last three training steps in the log, after which a run ends, have a loss or a norm that is not finite
    [[ $(grep -E '^s:[0-9]+ trl:' "$LOG_DIR/main.log" 2>/dev/null | tail -n 3 | grep -cE '(trl|norm):-?(nan|inf)') -eq 3 ]]
}

say() {
    echo "$(date '+%F %T') resume_loop: $*" >&2
}

run=      # process ID of the run
stopping= # set by a signal
unsent=   # set by a signal that arrives before the run's process ID is known
request_stop() { # of one training process, which all others follow; if none is on this host, the launcher has to forward the signal
    local id # USR1, because on INT or TERM mpirun kills the processes within half a second. Open MPI 4.1.6 does not forward USR1
    for id in $(pgrep --session "$run" --full 'gpt2_numba[.]train' 2>/dev/null); do
        case $(ps -o comm= -p "$id" 2>/dev/null) in
            '' | mpirun* | mpiexec* | orterun* | prterun* | srun* | ssh*) ;;
            *) kill -USR1 "$id" 2>/dev/null && return ;;
        esac
    done
    kill -USR1 "$run" 2>/dev/null
}
stop() {
    stopping=yes
    say "stopping once the run has written its checkpoint"
    if [[ -n $run ]]; then
        request_stop
    else
        unsent=yes
    fi
}
trap stop INT TERM USR1

failures=0
while [[ -z $stopping ]]; do
    before=$(newest_checkpoint)
    setsid "$@" -o "$LOG_DIR" -y 1 & # in its own session: Ctrl-C reaches only this script, which then signals the run
    run=$!
    [[ -n $unsent ]] && request_stop
    wait "$run"
    code=$?
    while kill -0 "$run" 2>/dev/null; do # a signal interrupted the wait, but the run continues
        wait "$run"
        code=$?
    done
    run=

    if ((code == 0)); then
        say "the run is done"
        exit 0
    elif [[ -n $stopping || $code == 130 || $code == 143 ]]; then
        say "the run was stopped; the same command resumes it"
        exit 130
    elif ((code == 2 || code == 126 || code == 127)); then
        say "exit code $code: a mistake in the command, see above; starting again would not help"
        exit "$code"
    fi

    if ((code == 1)) && has_diverged; then
        say "the run has diverged; starting again would not help"
        exit 1
    fi
    after=$(newest_checkpoint)
    if [[ $after != "$before" ]]; then
        failures=0
        say "exit code $code: the run failed; resuming from its new checkpoint of step $after"
    else
        failures=$((failures + 1))
        say "exit code $code: the run failed; $failures in a row without a new checkpoint (newest: ${after:-none})"
    fi
    if ((failures >= MAX_FAILURES)); then
        say "giving up"
        exit 1
    fi
    sleep "$WAIT_SECONDS"
done
exit 130
