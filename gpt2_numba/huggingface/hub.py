"""Models by their names on the hub (huggingface.co, or HF_ENDPOINT): Hugging Face's cache, and downloads into it.

    HUB/models--OWNER--NAME/refs/main              the commit of the newest version that was fetched
    HUB/models--OWNER--NAME/snapshots/COMMIT/      its files

HUB is HF_HUB_CACHE, or HF_HOME/hub, or ~/.cache/huggingface/hub. transformers finds there what was downloaded here, and the other way round.
refs/main is written when all files are there, so a download that broke off is not taken for a model; the next one continues it.
"""

import contextlib
import os
import re
import time
import urllib.parse
from pathlib import Path

from gpt2_numba.data.fetching.download import download
from gpt2_numba.data.fetching.download import read_json as read_json_from
from gpt2_numba.data.fetching.hub import hub_address
from gpt2_numba.errors import UserError
from gpt2_numba.huggingface.config_json import read_config
from gpt2_numba.huggingface.folder import CONFIG_FILE, INDEX, WEIGHTS, files_of_index, weight_files
from gpt2_numba.progress import Progress

try:
    import fcntl
except ImportError:  # Windows: two downloads of one model at the same time are not noticed
    fcntl = None

SHORT_NAMES = {name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")}

_OWNER_AND_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def hub_id(name):
    """OWNER/NAME of a model on the hub, or None if the text cannot be one."""
    return SHORT_NAMES.get(name) or (name if _OWNER_AND_NAME.fullmatch(name) else None)


def cached_folder(model):
    """The Path of a model's folder in Hugging Face's cache; None if it is not there, or has no weights. model: OWNER/NAME."""
    old_names = [name for name, now in SHORT_NAMES.items() if now == model]  # before models had owners
    for name in (model, *old_names):
        repository = _repository(name)
        try:
            commit = (repository / "refs" / "main").read_text().strip()
        except (OSError, ValueError):
            continue
        folder = repository / "snapshots" / commit
        with contextlib.suppress(UserError):  # only some files: transformers fetches each when it needs it
            weight_files(folder)
            return folder
    return None


def download_folder(model, report=None):
    """Download config.json and the weights of a model into the cache. Returns their folder, a Path.

    model   OWNER/NAME
    report  called again and again with a text about what is being done; None: not called. Progress is printed in any case
    Processes of one host that want the same model wait for the one that downloads it. Raises UserError if there is no such model.
    """
    report = report or (lambda what: None)
    if os.environ.get("HF_HUB_OFFLINE", os.environ.get("TRANSFORMERS_OFFLINE", "")).upper() in ("1", "ON", "YES", "TRUE"):
        raise UserError(f"{model} is not in {_cache()}, and HF_HUB_OFFLINE forbids to download it: unset it, or copy the model there")
    repository = _repository(model)
    try:
        repository.mkdir(parents=True, exist_ok=True)
        with _one_process_at_a_time(repository / ".gpt2_numba.lock", report):
            return cached_folder(model) or _download(model, repository, report)
    except OSError as error:
        raise UserError(
            f"{model} is downloaded into {repository}, which cannot be written ({error.strerror or error}): choose another directory with HF_HOME"
        ) from error


def _download(model, repository, report):
    endpoint = hub_address()
    try:
        info, _ = read_json_from(f"{endpoint}/api/models/{model}/revision/main?blobs=true")
    except UserError as error:
        raise UserError(f"{model} is neither a folder here nor in {_cache()}, and the hub does not give it: {error}") from error
    commit, files = _commit_and_files(model, info)
    folder = repository / "snapshots" / commit

    def fetch(name):
        def advance(count):
            report(f"downloading {model}")
            progress.advance(count)

        url = f"{endpoint}/{model}/resolve/{commit}/{urllib.parse.quote(name)}"
        with Progress(f"downloading {model}, {name}", files[name]["size"], "B") as progress:
            download(url, folder / name, report=advance, **files[name])

    weights = next((name for weights in WEIGHTS for name in (weights, weights + INDEX) if name in files), None)
    if CONFIG_FILE not in files or weights is None:
        raise UserError(f"{endpoint}/{model} must have {CONFIG_FILE} and {' or '.join(WEIGHTS)}, and has not: it is no GPT2LMHeadModel")
    fetch(CONFIG_FILE)
    read_config(folder / CONFIG_FILE)  # before gigabytes of another kind of model
    fetch(weights)
    for part in files_of_index(folder / weights) if weights.endswith(INDEX) else []:
        if part not in files:
            raise UserError(f"{endpoint}/{model}: {weights} names {part}, which is not there: the model is incomplete. Use another one")
        fetch(part)
    _write_commit(repository / "refs", commit)
    return folder


def _write_commit(directory, commit):
    directory.mkdir(exist_ok=True)
    (directory / ".gpt2_numba.main").write_text(commit)
    os.replace(directory / ".gpt2_numba.main", directory / "main")


def _commit_and_files(model, info):
    """From the hub's answer: the commit, and name -> {"size": bytes, "sha256": hexadecimal or None}. Small files have no SHA-256 there."""
    try:
        commit, files = info["sha"], {}
        for file in info["siblings"]:
            large = file.get("lfs") or {}
            files[file["rfilename"]] = {"size": large.get("size", file.get("size")), "sha256": large.get("sha256")}
        if not re.fullmatch("[0-9a-f]{40,64}", commit):
            raise ValueError("commit")
        return commit, files
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{model}: the hub's answer must say its commit and its files, and does not. Is HF_ENDPOINT a hub?") from error


def _repository(model):
    return _cache() / f"models--{model.replace('/', '--')}"


def _cache():
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(os.path.expandvars(os.path.expanduser(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub"))))


@contextlib.contextmanager
def _one_process_at_a_time(path, report):
    """Hold a lock on the file at `path`, waiting for it if need be, where the system has such locks."""
    with open(path, "w") as file:
        while fcntl:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                report(f"waiting for another process, which has locked {path}")
                time.sleep(0.5)
                continue
            except OSError:  # a network file system without locks
                pass
            break
        yield
