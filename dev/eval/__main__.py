"""EleutherAI's evaluation harness on a model of ours, and the same log-likelihoods computed here.

    pip install 'lm_eval[hf]==0.4.13'
    python -m dev.eval MODEL --tasks hellaswag,arc_easy,piqa --out DIR           needs a network: the harness fetches its data
    python -m dev.eval MODEL --questions hellaswag_val.jsonl --out DIR           needs none

MODEL is a Hugging Face folder with its tokenizer, or whatever python -m gpt2_numba.export takes, which is then exported to DIR/model. The
harness runs in float32 and leaves its results in DIR. Then this program prints them as a table, reads the texts that the harness scored
from its samples, computes their log-likelihoods with the kernels of this package, and prints the largest difference. Exit code 1 if one
is larger than rounding explains.

--questions makes a task of JSON lines with HellaSwag's ctx, label and endings, asked as llm.c asks them. The harness's own hellaswag mends
the texts first and puts the activity's name before them, so its scores are a little higher.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from dev.eval.samples import log_likelihoods, read_samples
from gpt2_numba import export
from gpt2_numba.command_line import Parser, exit_code, main_program, user_path
from gpt2_numba.errors import UserError

HARNESS = "lm_eval[hf]==0.4.13"
LARGEST_DIFFERENCE = 2e-5  # of a sum of log-likelihoods, relative to it, or nats: float32 in both programs, sums in another order
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {path}}}}}
output_type: multiple_choice
validation_split: validation
doc_to_text: "{{{{ctx}}}}"
doc_to_choice: "{{{{endings}}}}"
doc_to_target: "{{{{label|int}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""


def model_folder(model, out):
    """The Hugging Face folder of MODEL, exported if it is not one. Raises UserError if it has no tokenizer, which the harness needs."""
    folder = Path(model)
    if not (folder / "config.json").exists():
        folder = out / "model"
        if not folder.exists() and export.main([str(model), str(folder), "--dtype", "float32"]):
            raise UserError(f"{model} could not be exported to {folder}: see above")
    if not (folder / "tokenizer.json").exists():
        raise UserError(f"{folder} must have a tokenizer, and has no tokenizer.json: export the model with --tokenizer gpt2 or bytes")
    return folder


def write_task(questions, out):
    """Write the harness's description of a task with the JSON lines `questions` to OUT/tasks. Returns its name."""
    name = f"{questions.stem}_as_in_llmc"
    (out / "tasks").mkdir(parents=True, exist_ok=True)
    (out / "tasks" / f"{name}.yaml").write_text(TASK.format(name=name, path=json.dumps(str(questions.resolve()))))
    return name


def run_harness(folder, tasks, settings):
    """Run the harness. Raises UserError if it fails or is missing."""
    command = [
        sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args", f"pretrained={folder},dtype=float32",
        "--tasks", ",".join(tasks), "--batch_size", settings.batch_size, "--output_path", str(settings.out / "results"), "--log_samples",
        "--include_path", str(settings.out / "tasks"),
    ]  # fmt: skip
    command += ["--device", settings.device] if settings.device else []
    command += ["--limit", str(settings.limit)] if settings.limit else []
    (settings.out / "tasks").mkdir(parents=True, exist_ok=True)
    print("+", " ".join(command), flush=True)
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError(f"the harness is not installed: pip install '{HARNESS}'")
    if subprocess.run(command).returncode:
        raise UserError("the harness has failed: see above")


def newest(out, pattern):
    """The newest files of the harness, one for each name without its date. Raises UserError if there are none."""
    found = {}
    for path in sorted((out / "results").rglob(pattern)):
        found[path.name.partition("_20")[0]] = path
    if not found:
        raise UserError(f"{out} has no results of the harness ({pattern}): run it first")
    return list(found.values())


def print_summary(path):
    """Print the scores in a results_*.json of the harness as a table."""
    results = json.loads(path.read_text())
    print(f"\n{'task':<32} {'shots':>5}  {'metric':<10} {'value':>8}   standard error")
    for task, scores in results["results"].items():
        for key, value in scores.items():
            metric, _, rule = key.partition(",")
            if rule and not metric.endswith("_stderr") and isinstance(value, (int, float)):
                error = scores.get(f"{metric}_stderr,{rule}")
                shots = results.get("n-shot", {}).get(task, 0)
                shown = f"{error:.4f}" if isinstance(error, float) else ""
                print(f"{task:<32} {shots:>5}  {metric:<10} {value:8.4f}   {shown}".rstrip())


def compare(folder, paths):
    """Print how the harness's log-likelihoods compare with ours. Returns whether they agree."""
    agree = True
    for path in paths:
        samples = read_samples(path)
        theirs = np.array([sample.log_likelihood for sample in samples])
        ours = log_likelihoods(folder, [(sample.context, sample.continuation) for sample in samples])
        worst = int(np.argmax(np.abs(ours - theirs) / np.maximum(1, np.abs(theirs))))
        error = abs(ours[worst] - theirs[worst]) / max(1, abs(theirs[worst]))
        agree = agree and error <= LARGEST_DIFFERENCE
        print(
            f"{path.name.partition('_20')[0]}: {len(samples):,} log-likelihoods, largest relative difference {error:.1e}: "
            f"{theirs[worst]:.6f} by the harness, {ours[worst]:.6f} by this package"
        )
    return agree


def run(argv):
    """Do what the command line asks for. Returns the exit code."""
    parser = Parser(prog="python -m dev.eval", doc=__doc__)
    parser.add_argument("model", metavar="MODEL", type=user_path, help="Hugging Face folder, log directory or model file")
    parser.add_argument(
        "--tasks", metavar="TASK,...", help="the harness's, such as hellaswag,arc_easy; python -m lm_eval ls tasks lists them"
    )
    parser.add_argument("--questions", metavar="JSONL", type=user_path, help="a task of one's own: JSON lines with ctx, label, endings")
    parser.add_argument("--out", metavar="DIR", type=user_path, required=True, help="directory for model, tasks and results")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N questions of each task (default: all)")
    parser.add_argument("--batch-size", default="16", metavar="N", help="of the harness, or auto (default 16)")
    parser.add_argument("--device", metavar="NAME", help="of the harness: cpu, cuda:0 (default: its own choice)")
    parser.add_argument("--no-run", action="store_true", help="only print and compare the results that are in DIR")
    settings = parser.parse_args(argv)
    folder = model_folder(settings.model, settings.out)
    if not settings.no_run:
        tasks = settings.tasks.split(",") if settings.tasks else []
        tasks += [write_task(settings.questions, settings.out)] if settings.questions else []
        if not tasks:
            raise UserError("nothing to evaluate the model on: give --tasks, --questions or both")
        run_harness(folder, tasks, settings)
    print_summary(newest(settings.out, "results_*.json")[-1])
    return 0 if compare(folder, newest(settings.out, "samples_*.jsonl")) else 1


def main(argv):
    """The command line. Returns the exit code: 2 for a user error, reported in one line."""
    return exit_code(run, argv)


if __name__ == "__main__":
    main_program(main)
