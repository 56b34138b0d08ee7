"""One HTML page with the curves of all runs, their settings and their machines. Nothing outside the file is needed; it reads well on a phone.

The curves are SVG inside the page. Each carries the class of its run (run-0, run-1, ...) and of its kind, and a few lines of JavaScript
switch them on and off. Without JavaScript everything is shown.
"""

import html
import re

from gpt2_numba.plotting.curves import (
    PANELS,
    QUIET_COLOUR,
    matplotlib_alone,
    one_panel,
    panels_of,
    run_colour,
    short,
    svg_text,
)
from gpt2_numba.plotting.layers import has_layers, layers_figure
from gpt2_numba.progress import duration

PANEL_SIZE = (4.7, 3.1)  # inches, 72 units of the SVG each: letters of 10 units are readable on a phone, which shows them in their size

_STYLE = """
:root { color-scheme: light; --line: #dfe3e8; --quiet: #5b6670; }
* { box-sizing: border-box; }
body { font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: #1c2329; background: #f6f7f9; margin: 0; }
main { max-width: 1500px; margin: 0 auto; padding: 16px; }
h1 { font-size: 1.35rem; margin: 4px 0; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 28px 0 8px; overflow-wrap: anywhere; }
.quiet { color: var(--quiet); font-size: 0.9rem; margin: 2px 0; }
.switches { display: flex; flex-wrap: wrap; gap: 6px 8px; padding: 8px 0; position: sticky; top: 0; background: #f6f7f9; z-index: 1; }
.switches label { display: inline-flex; align-items: center; gap: 6px; background: white; border: 1px solid var(--line); border-radius: 16px;
  padding: 3px 12px 3px 8px; cursor: pointer; max-width: 100%; overflow-wrap: anywhere; }
.dot { width: 11px; height: 11px; border-radius: 50%; flex: none; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 420px), 1fr)); gap: 12px; }
figure { margin: 0; background: white; border: 1px solid var(--line); border-radius: 8px; padding: 8px 8px 4px; min-width: 0; cursor: zoom-in; }
figure.large { grid-column: 1 / -1; cursor: zoom-out; }
figcaption { font-size: 0.9rem; font-weight: 600; padding: 0 4px 2px; }
figure svg { width: 100%; height: auto; display: block; max-height: 85vh; }
svg text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 8px; margin: 8px 0 12px; }
.tile { background: white; border: 1px solid var(--line); border-radius: 8px; padding: 6px 10px; }
.tile b { display: block; font-size: 1.15rem; font-weight: 600; overflow-wrap: anywhere; }
.wide { overflow-x: auto; background: white; border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-size: 0.87rem; }
th, td { text-align: left; padding: 4px 10px; border-top: 1px solid var(--line); vertical-align: top; overflow-wrap: anywhere; }
tr:first-child > * { border-top: 0; }
th { font-weight: 500; color: var(--quiet); white-space: nowrap; }
tr.differs td { background: #fff6da; }
details { margin: 8px 0; }
summary { cursor: pointer; padding: 4px 0; }
"""

# Switches: a box with data-hides="run-0" hides what has that class. Choices outlive a reload where the browser keeps them.
_SCRIPT = """
const boxes = [...document.querySelectorAll("input[data-hides]")], key = "hidden:" + location.pathname;
function apply() {
  const hidden = boxes.filter(box => !box.checked).map(box => box.dataset.hides);
  document.getElementById("hiding").textContent = hidden.map(name => "." + name + " { display: none; }").join("\\n");
  try { sessionStorage.setItem(key, JSON.stringify(hidden)); } catch (error) {}
}
try {
  const hidden = JSON.parse(sessionStorage.getItem(key) || "[]");
  boxes.forEach(box => { box.checked = !hidden.includes(box.dataset.hides); });
} catch (error) {}
boxes.forEach(box => box.addEventListener("change", apply));
apply();
document.querySelectorAll("figure").forEach(figure => figure.addEventListener("click", () => figure.classList.toggle("large")));
"""


def page(runs, title, style, reload_seconds=None):
    """The page as text.

    runs            list of Run        style  a curves.Style
    reload_seconds  the page loads itself again after that time; None: never
    """
    panels = "\n".join(_panel(name, runs, style) for name in panels_of(runs))
    layers = "\n".join(_layers(number, run, style.axis) for number, run in enumerate(runs) if has_layers(run))
    parts = [
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{_text(title)}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<style>{_STYLE}</style>\n<style id="hiding"></style>\n</head>\n<body>\n<main>\n<h1>{_text(title)}</h1>',
        f'<p class="quiet">{_text(_situation(runs, reload_seconds))}</p>',
        _switches(runs, style),
        f'<div class="panels">\n{panels}\n</div>',
        layers,
        "\n".join(_summary(number, run, alone=len(runs) == 1) for number, run in enumerate(runs)),
        _tables(runs),
        f"</main>\n<script>{_SCRIPT}{_reloading(reload_seconds)}</script>\n</body>\n</html>\n",
    ]
    return "\n".join(part for part in parts if part)


def _text(value):
    return html.escape(str(value))


def _reloading(seconds):
    return f"setTimeout(() => location.reload(), {1000 * seconds:.0f});\n" if seconds else ""


def _situation(runs, reload_seconds):
    what = "one run" if len(runs) == 1 else f"{len(runs)} runs"
    how = f"; this page is drawn again every {reload_seconds:g} seconds while a run goes on" if reload_seconds else ""
    return f"{what}, drawn by python -m gpt2_numba.plot{how}. A click enlarges a picture."


# -------------------------------------------------------------------------------------------------------- pictures


def _switches(runs, style):
    """Boxes that hide runs, single steps, validation, and published lines."""
    boxes = []
    if len(runs) > 1:
        boxes += [(f"run-{number}", run.name, run_colour(number)) for number, run in enumerate(runs)]
    boxes += [("train", "training", None), ("single", "single steps", None), ("val", "validation", None)]
    if any(style.published.values()):
        boxes.append(("published", "GPT-2 and GPT-3", None))
    labels = []
    for name, text, colour in boxes:
        dot = f'<span class="dot" style="background:{colour}"></span>' if colour else ""
        labels.append(f'<label><input type="checkbox" checked data-hides="{name}">{dot}{_text(text)}</label>')
    return f'<div class="switches">{"".join(labels)}</div>'


def _panel(name, runs, style):
    with matplotlib_alone():
        svg = inline_svg(one_panel(name, runs, style, PANEL_SIZE), prefix=name)
    return f"<figure>\n<figcaption>{_text(PANELS[name].title)}</figcaption>\n{svg}\n</figure>"


def _layers(number, run, axis):
    with matplotlib_alone():
        svg = inline_svg(layers_figure(run, axis), prefix=f"layers-{number}")
    return (
        f'<h2 class="run-{number}">Layers of {_text(run.name)}</h2>\n<div class="wide run-{number}"><div style="min-width:720px">'
        f'<figure style="cursor:auto;border:0">{svg}</figure></div></div>'
    )


def inline_svg(figure, prefix):
    """A matplotlib Figure as an <svg> element for a page that has others: its ids begin with `prefix`, its classes are those of the curves."""
    svg = svg_text(figure)
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\1{prefix}-", svg)
    return re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1), count=1).strip()


# ---------------------------------------------------------------------------------------------------------- tables


def _summary(number, run, alone):
    """What a run has reached."""
    _, hours = run.get("hours")
    _, tokens = run.get("tokens")
    steps, most = run.steps_done, run.header.get("max_steps")
    loss, accuracy, speed, mfu = (run.last(name) for name in ("val_loss", "eval_accuracy", "tokens_per_second", "mfu"))
    train = run.last("train_loss")
    tiles = [
        ("steps", f"{steps:,}" + (f" of {most:,}" if isinstance(most, int) else "")),
        ("training loss", None if train is None else f"{train:.4f}"),
        ("validation loss", None if loss is None else f"{loss:.4f}"),
        ("HellaSwag", None if accuracy is None else f"{100 * accuracy:.2f} %"),
        ("tokens", short(tokens[-1]) if len(tokens) else None),
        ("time", duration(3600 * hours[-1]) if len(hours) else None),
        ("tokens/s", f"{speed:,.0f}" if speed is not None else None),
        ("MFU", f"{100 * mfu:.1f} %" if mfu is not None else None),
        ("GPU", run.header.get("machine", {}).get("GPU")),
    ]
    shown = "".join(f'<div class="tile"><span class="quiet">{name}</span><b>{_text(value)}</b></div>' for name, value in tiles if value)
    dot = f'<span class="dot" style="display:inline-block;background:{QUIET_COLOUR if alone else run_colour(number)}"></span> '
    return f'<h2>{dot}{_text(run.name)}</h2>\n<p class="quiet">{_text(_story(run))}</p>\n<div class="tiles">{shown}</div>'


def _story(run):
    """When the run was started and resumed, and how it ended."""
    if not run.header:
        return "There is no run.jsonl: settings, machine and times are not known."
    headers = run.history.headers
    parts = [f"Started {headers[0].get('time', '')}"] if headers[0]["step"] == 0 else []
    parts += [f"resumed at step {header['step']} ({header.get('time', '')})" for header in headers[len(parts) :]]
    parts.append(f"ended: {run.ended}" if run.ended else "no end is logged: it is still running, or was killed")
    text = "; ".join(parts)
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _tables(runs):
    """Settings, machine and versions, a column for each run; rows in which runs differ are marked."""
    known = [run for run in runs if run.header]
    if not known:
        return ""
    parts = []
    for title, name, is_open in (
        ("Settings", "settings", True), ("Model and data", "model", True), ("Machine", "machine", True), ("Versions", "versions", False),
    ):  # fmt: skip
        columns = [_facts(run.header, name) for run in known]
        rows = _rows(list(dict.fromkeys(key for column in columns for key in column)), columns)
        head = f"<tr><th></th>{''.join(f'<td><b>{_text(run.name)}</b></td>' for run in known)}</tr>" if len(known) > 1 else ""
        table = f'<div class="wide"><table>{head}{rows}</table></div>'
        parts.append(f"<details{' open' * is_open}><summary><b>{title}</b></summary>{table}</details>")
    return "\n".join(parts)


def _facts(header, name):
    """One table's column: name -> value, what was not given left out."""
    facts = dict(header.get(name) or {}) if isinstance(header.get(name), dict) else {}
    if name == "model":
        facts |= {key: value for key, value in (header.get("data") or {}).items()}
        facts |= {"tokens per step": header.get("tokens_per_step"), "steps": header.get("max_steps"), "commit": header.get("commit")}
        if isinstance(facts.get("bytes"), int):
            facts["memory of the model"] = f"{facts.pop('bytes') / 2**30:.2f} GiB"
    return {key: value for key, value in facts.items() if value is not None}


def _rows(keys, columns):
    rows = []
    for key in keys:
        values = [_value(column.get(key)) for column in columns]
        differs = ' class="differs"' if len(set(values)) > 1 else ""
        cells = "".join(f"<td>{_text(value)}</td>" for value in values)
        rows.append(f"<tr{differs}><th>{_text(str(key).replace('_', ' '))}</th>{cells}</tr>")
    return "".join(rows)


def _value(value):
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    return "" if value is None else str(value)
