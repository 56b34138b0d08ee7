"""Makes one file of many, each of which defines a function: all that they need stands in it, once.

    text = merge([Source("03_layernorm_forward", text, "layernorm_forward"), ...], introduction)

Imports come first, each once. A function, a class or a constant that two sources define equally is kept once; a name that they define
differently gets another one in the later source, such as THREADS_GELU_FORWARD. Names are replaced where they stand, so that comments and
layout remain. What a source means by a name, it means afterwards.
"""

import ast
import re
import sys
from dataclasses import dataclass

from gpt2_numba.errors import UserError
from tutorials.module_names import DEFINITIONS, Bindings, Uses

WIDTH = 140
MUTABLE = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)


@dataclass(frozen=True)
class Source:
    """A file to merge."""

    name: str  # such as 03_layernorm_forward
    text: str
    function: str  # that it is there for; keeps its name


@dataclass(frozen=True)
class Import:
    """`import module as name`, or `from module import attribute as name`."""

    module: str
    attribute: str  # "" for a whole module
    name: str  # that it binds

    def renamed(self, name):
        return Import(self.module, self.attribute, name)

    @property
    def is_package(self):
        """Whether it is `import a.b`, which binds a."""
        return not self.attribute and "." in self.module and self.name == self.module.partition(".")[0]

    def meaning(self):
        """The same for imports that give a name the same meaning."""
        return (self.name, "") if self.is_package else (self.module, self.attribute)

    def line(self):
        if not self.attribute:
            return f"import {self.module}" if self.is_package or self.name == self.module else f"import {self.module} as {self.name}"
        return f"from {self.module} import {self.imported()}"

    def imported(self):
        return self.attribute if self.attribute == self.name else f"{self.attribute} as {self.name}"


@dataclass
class Part:
    """A statement of a module other than an import, with the comments above it."""

    node: ast.stmt
    first: int  # lines, from 0
    stop: int
    pieces: list  # what it defines one by one, as statements: a, b = 1, 2 has two, a = 1 and b = 2


class Module:
    """A parsed Source: its imports, its Parts, and what defines each of its names."""

    def __init__(self, source):
        self.source = source
        try:
            tree = ast.parse(source.text)
            if any(node.end_lineno >= following.lineno for node, following in zip(tree.body, tree.body[1:])):  # they share a line
                source = Source(source.name, ast.unparse(tree), source.function)
                tree = ast.parse(source.text)
        except (SyntaxError, ValueError) as error:  # ValueError: a null byte
            raise UserError(f"{source.name}: this is not Python: {error}") from None
        self.lines = source.text.replace("\r\n", "\n").replace("\r", "\n").encode().split(b"\n")
        self.title = (ast.get_docstring(tree) or "").partition("\n")[0]
        self.imports, self.parts = [], []
        self._divide(tree.body[1:] if ast.get_docstring(tree) is not None else tree.body, tree)
        self.uses = Uses(ast.Module([part.node for part in self.parts], []))
        self.assigned = declared_global(tree)
        self.definitions = {}  # name -> Imports and statements
        for imported in self.imports:
            self.definitions.setdefault(imported.name, []).append(imported)
        for piece in (piece for part in self.parts for piece in part.pieces):
            for name in Bindings([piece]).names | declared_global(piece):
                self.definitions.setdefault(name, []).append(piece)

    def _divide(self, statements, tree):
        first = 0 if statements is tree.body else tree.body[0].end_lineno
        for node in statements:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                self.imports += self._imports_of(node)
            else:
                self.parts.append(Part(node, first, node.end_lineno, list(pieces_of(node))))
            first = node.end_lineno
        if self.parts and self.parts[-1].node is statements[-1]:
            self.parts[-1].stop = len(self.lines)  # comments at the end

    def _imports_of(self, node):
        if isinstance(node, ast.Import):
            return [Import(alias.name, "", alias.asname or alias.name.partition(".")[0]) for alias in node.names]
        if node.level or node.names[0].name == "*":
            raise UserError(
                f"{self.source.name}: {ast.unparse(node)!r} cannot be merged with other files: import each name from its module"
            )
        return [Import(node.module, alias.name, alias.asname or alias.name) for alias in node.names]

    def signature(self, name, renames):
        """What defines a name, to be compared with another module's."""
        return tuple(
            definer.meaning() if isinstance(definer, Import) else self.uses.dump(definer, renames) for definer in self.definitions[name]
        )

    def can_be_shared(self, name):
        """Whether an equal definition of another module is as good: of a constant, of a function, but not of a list, which may change."""
        definers = self.definitions[name]
        return name not in self.assigned and all(
            isinstance(definer, (Import, *DEFINITIONS)) or name.isupper() and is_constant(definer) for definer in definers
        )

    def text_of(self, part, renames, kept):
        """A Part's text with other names. kept: its pieces that are still to be defined."""
        lines = self.lines[part.first : part.stop]
        code = part.node.lineno - 1 - part.first
        for decorator in getattr(part.node, "decorator_list", []):
            code = min(code, decorator.lineno - 1 - part.first)
        above = "".join(f"{line.decode()}\n" for line in lines[:code])
        if len(kept) < len(part.pieces):
            targets, values = zip(*(self.uses.unparse(piece, renames).split(" = ", 1) for piece in kept))
            return f"{above}{', '.join(targets)} = {', '.join(values)}"
        replaced = list(self.lines)
        for line, start, stop, name in sorted(self.uses.edits(part.node, self.lines, renames), reverse=True):
            replaced[line - 1] = replaced[line - 1][:start] + name.encode() + replaced[line - 1][stop:]
        text = b"\n".join(replaced[part.first + code : part.stop]).decode()
        if not _means(text, self.uses.dump(part.node, renames)):  # such as an f-string before Python 3.12, whose names have no place
            text = self.uses.unparse(part.node, renames)
        return above + text


def declared_global(tree):
    """The module's names that functions assign."""
    return {name for node in ast.walk(tree) if isinstance(node, ast.Global) for name in node.names}


def pieces_of(node):
    """The statements that a statement is made of: itself, or one for each name of a, b = 1, 2."""
    if (
        isinstance(node, ast.Assign)
        and len(node.targets) == 1
        and isinstance(node.targets[0], ast.Tuple)
        and isinstance(node.value, ast.Tuple)
    ):
        targets, values = node.targets[0].elts, node.value.elts
        names = {target.id for target in targets if isinstance(target, ast.Name)}
        reads = {inner.id for value in values for inner in ast.walk(value) if isinstance(inner, ast.Name)}
        simple = all(isinstance(target, ast.Name) for target in targets) and not any(isinstance(value, ast.Starred) for value in values)
        if simple and len(targets) == len(values) == len(names) and not names & reads:
            for target, value in zip(targets, values):
                yield ast.Assign([target], value, lineno=node.lineno)
            return
    yield node


def is_constant(node):
    return not any(isinstance(inner, MUTABLE) for inner in ast.walk(node))


def _means(text, expected):
    try:
        body = ast.parse(text).body
    except SyntaxError:
        return False
    return len(body) == 1 and ast.dump(body[0]) == expected


# ------------------------------------------------------------------------------------------------------------------ merging


def merge(sources, introduction, reserved=()):
    """The text of one file with the functions of all sources.

    introduction   its docstring
    reserved       names that only the source whose function it is may define
    Raises UserError for a source that is not Python, or that cannot be merged, in one line.
    """
    modules = [Module(source) for source in sources]
    target, sections = Target({word for source in sources for word in re.findall(r"\w+", source.text)}), []
    for module in modules:
        free = {name for other in modules if other is not module for name in other.uses.read - set(other.definitions)}
        renames = target.names_for(module, (free | set(reserved)) & set(module.definitions) - {module.source.function})
        sections.append(_section(module, renames, target.add(module, renames)))
    introduction = introduction.strip().replace("\\", "\\\\").replace('"', '\\"')
    return "\n".join([f'"""{introduction}\n"""\n', *import_lines(target.imports), *sections])


class Target:
    """What the merged file defines so far."""

    def __init__(self, words):
        self.words = words  # of all sources: a new name is none of them
        self.defined = {}  # name -> its signature
        self.others = {}  # name in the sources -> the names that it has been given
        self.imports = []

    def names_for(self, module, unwanted):
        """Name -> other name, for a module's names that mean something else in the file so far, and for those that are `unwanted`.

        A thing that is made of a renamed one is another thing, too: so the module is compared until nothing more has to be renamed.
        """
        renames, tried = {}, {name: {name} for name in unwanted}
        while differing := [name for name in module.definitions if not self.fits(module, name, renames, tried)]:
            for name in differing:
                rejected = tried.setdefault(name, {name})
                rejected.add(renames.get(name, name))
                renames[name] = next((other for other in self.others.get(name, []) if other not in rejected), None) or self.new_name(
                    module, name
                )
        return renames

    def fits(self, module, name, renames, tried):
        """Whether a module's name, as it is to be called, is free in the file, or means the same there."""
        other = renames.get(name, name)
        if other in tried.get(name, ()):
            return False
        return other not in self.defined or module.can_be_shared(name) and module.signature(name, renames) == self.defined[other]

    def new_name(self, module, name):
        is_package = any(isinstance(definer, Import) and definer.is_package for definer in module.definitions[name])
        if name in module.uses.fixed or is_package:
            raise UserError(
                f"{module.source.name}: another exercise has another {name}, and this one cannot be renamed: choose another name"
            )
        ending = module.source.name.lstrip("0123456789_") or "again"
        new = base = f"{name}_{ending.upper() if name.isupper() else ending}"
        number = 2
        while new in self.words:
            new, number = f"{base}_{number}", number + 1
        self.words.add(new)
        return new

    def add(self, module, renames):
        """Take over what a module defines. Returns name -> whether the file did not have it before."""
        names = {name: renames.get(name, name) for name in module.definitions}
        is_new = {name: other not in self.defined for name, other in names.items()}
        self.imports += [imported.renamed(names[imported.name]) for imported in module.imports]
        for name, other in names.items():
            if is_new[name]:
                self.defined[other] = module.signature(name, renames)
                if other != name:
                    self.others.setdefault(name, []).append(other)
        return is_new


def _section(module, renames, is_new):
    """A module's own text in the merged file."""
    name = module.source.name
    lines = ["", f"# {'-' * (WIDTH - 3 - len(name))} {name}", *([f"# {module.title}"] if module.title else [])]
    if renames:
        lines.append(f"# {', '.join(f'{name} is {new}' for name, new in renames.items())} here: another exercise has another one.")
    texts = []
    for part in module.parts:
        names = [Bindings([piece]).names for piece in part.pieces]
        kept = [piece for piece, bound in zip(part.pieces, names) if not bound or any(is_new[name] for name in bound)]
        if kept:
            texts.append(module.text_of(part, renames, kept))
    return "\n".join([*lines, "", "\n".join(texts).strip("\n"), ""])


def import_lines(imports):
    """Import statements, sorted as ruff sorts them: Python's own modules, others, this package's; one for a module."""
    groups = {}
    for imported in imports:
        groups.setdefault(_group(imported.module), set()).add(imported)
    return ["\n".join([*_group_lines(group), ""]) for _, group in sorted(groups.items())]


def _group(module):
    top = module.partition(".")[0]
    return 0 if top == "__future__" else 1 if top in sys.stdlib_module_names else 3 if top in ("gpt2_numba", "tutorials") else 2


def _group_lines(group):
    whole = sorted({imported.line() for imported in group if not imported.attribute})
    by_module = {}
    for imported in group:
        if imported.attribute:
            by_module.setdefault(imported.module, set()).add(imported.imported())
    return [*whole, *(f"from {module} import {', '.join(sorted(names))}" for module, names in sorted(by_module.items()))]
