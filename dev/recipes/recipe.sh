# The steps of a recipe, from text to an exported model. A recipe sets the variables below, sources this file, and calls `cook "$@"`.
#
#   NAME      of the run: its log directory is log_NAME, its exported folder hf_NAME
#   CORPUS    a source of python -m gpt2_numba.data, with its options            (an array)
#   ARRIVING  yes: training starts with the first shard while the others arrive; no: it waits for all of them
#   SHARDS    the beginning of the shards' names, before _train_000001.bin
#   TOKENIZER of the shards: gpt2 or bytes
#   GPUS      processes, each with a GPU; with 0 it is one process on the CPU
#   FLAGS     of python -m gpt2_numba.train, apart from files and directories    (an array)
#   PROMPT    what the trained model is asked to continue
#
# A recipe that was interrupted goes on where it was when it is started again: data that are here are not fetched again, and training
# resumes from its newest checkpoint. All files are written to the directory from which it is started.
#
# With --rehearse all steps run within a minute, without a GPU and without a network, in a directory of their own: the flags of the recipe, but
# a tiny model, few steps, and the text that is built in. So a mistake in the last step shows before the first day of training.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
PYTHON=${PYTHON:-python}
export PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH}
EVALUATE=() # more options of python -m gpt2_numba.evaluate

cook() {
    case ${1-} in
        '') ;;
        --rehearse) rehearse "${2:-rehearsal_$NAME}" ;;
        *) echo "usage: $0 [--rehearse [DIRECTORY]]" >&2 && exit 2 ;;
    esac
    LOG=log_$NAME
    FLAGS+=(-i "${SHARDS}_train_*.bin" -j "${SHARDS}_val_*.bin" -o "$LOG")
    [[ -z ${QUESTIONS-} ]] || FLAGS+=(-h 1 --eval-file "$QUESTIONS")
    fetch
    train
    judge
    draw
    export_folder
}

package() { # a command of the package, shown before it runs
    echo "+ python -m gpt2_numba.$*" >&2
    "$PYTHON" -m "gpt2_numba.$@"
}

fetch() {
    [[ -z ${QUESTIONS-} || -e $QUESTIONS ]] || package data "${QUESTION_SOURCE[@]}" --out "$(dirname "$QUESTIONS")"
    if [[ $ARRIVING == yes ]]; then # in the order in which the processes will need them
        package data "${CORPUS[@]}" --ranks "$((GPUS > 1 ? GPUS : 1))" --name "$(basename "$SHARDS")" --out "$(dirname "$SHARDS")" &
        trap "kill $! 2>/dev/null || true" EXIT
        FLAGS+=(--wait-for-shards on)
    elif ! compgen -G "${SHARDS}_train_*.bin" >/dev/null || [[ -e ${SHARDS}_progress.json ]]; then
        package data "${CORPUS[@]}" --tokenizer "$TOKENIZER" --name "$(basename "$SHARDS")" --out "$(dirname "$SHARDS")"
    fi
}

train() { # until the last step: after a crash, or if a GPU fails, it is started again (dev/launch/resume_loop.sh)
    local command=("$PYTHON" -m gpt2_numba.train)
    ((GPUS < 2)) || command=(mpirun -np "$GPUS" --bind-to none "${command[@]}")
    echo "+ ${command[*]} ${FLAGS[*]} -y 1" >&2
    if command -v setsid >/dev/null; then
        "$ROOT/dev/launch/resume_loop.sh" "$LOG" "${command[@]}" "${FLAGS[@]}"
    else # macOS: without the loop
        "${command[@]}" "${FLAGS[@]}" -y 1
    fi
}

judge() { # loss and bits per byte on all of the validation text, all questions, and two samples
    package evaluate "$LOG" "${EVALUATE[@]}" --shards "${SHARDS}_val_*.bin" ${QUESTIONS:+--questions "$QUESTIONS"}
    package sample "$LOG" --prompt "$PROMPT" --samples 2 --tokens 64
}

draw() {
    package plot "$LOG" --html "$LOG/run.html"
}

export_folder() { # for transformers, and for whoever wants the model
    [[ -e hf_$NAME ]] || package export "$LOG" "hf_$NAME" --tokenizer "$TOKENIZER"
}

rehearse() { # directory
    mkdir -p "$1"
    cd "$1"
    ARRIVING=no TOKENIZER=bytes SHARDS=data/built_in GPUS=0
    CORPUS=(built-in) EVALUATE=(--tokens 20000)
    if [[ -n ${QUESTIONS-} ]]; then
        QUESTIONS=data/hellaswag_val.bin
        QUESTION_SOURCE=(hellaswag --questions "$ROOT/dev/recipes/rehearsal_questions.jsonl" --tokenizer bytes)
    fi
    # The last flag of a name counts. Everything that happens once in a while happens here, the last step among it.
    FLAGS+=(--device cpu --model L=2,NH=2,C=32 -b 2 -t 128 -d 512 -x 6 -u 2 -n 2 -v 3 -m 2 -s 6 -g 16 -z 0)
    PROMPT="import "
}
