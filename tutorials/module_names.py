"""Where a source means a name of its module: for renaming it and nothing else, not a local variable of the same name, not a word in a text.

tree = ast.parse(text)
uses = Uses(tree)
uses.read                            the module's names, and builtins, that it reads
uses.dump(node, {"SIZE": "WIDTH"})   ast.dump of a node with these names in place of the others
uses.edits(node, {...})              where the text changes: (line, first byte, last byte + 1, the new name)
"""

import ast
import re
from contextlib import contextmanager

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DEFINITIONS = (*FUNCTIONS, ast.ClassDef)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
CAPTURES = tuple(getattr(ast, name) for name in ("MatchAs", "MatchStar", "MatchMapping"))


def captured_name(node):
    """The name that an `except ... as name` or a pattern of `match` binds, or None."""
    return getattr(node, "name", None) or getattr(node, "rest", None)


class Bindings(ast.NodeVisitor):
    """The names that statements bind in their own scope: `names`, without those that a `global` statement gives to the module."""

    def __init__(self, nodes):
        self.names, self.declared = set(), set()
        for node in nodes:
            self.visit(node)
        self.names -= self.declared

    def visit_Name(self, node):
        if not isinstance(node.ctx, ast.Load):
            self.names.add(node.id)

    def visit_Import(self, node):
        self.names.update(alias.asname or alias.name.partition(".")[0] for alias in node.names)

    visit_ImportFrom = visit_Import

    def visit_Global(self, node):
        self.declared.update(node.names)

    def visit_arg(self, node):
        self.names.add(node.arg)

    def visit_Lambda(self, node):
        pass  # a scope of its own, as are the next ones

    def generic_visit(self, node):
        if isinstance(node, DEFINITIONS):
            self.names.add(node.name)
        elif isinstance(node, COMPREHENSIONS):  # `:=` binds outside of it
            self.names.update(inner.target.id for inner in ast.walk(node) if isinstance(inner, ast.NamedExpr))
        else:
            if isinstance(node, (ast.ExceptHandler, *CAPTURES)):
                self.names.update({captured_name(node)} - {None})
            super().generic_visit(node)


class Uses(ast.NodeVisitor):
    """The nodes of a module that mean one of its names. `places` are (node, attribute, name)."""

    def __init__(self, tree):
        self.places, self.read, self.fixed = [], set(), set()  # fixed: names that stand where they cannot be replaced
        self.scopes = []  # (whether inner scopes see its names, its names), the innermost one last
        self.visit(tree)

    def is_local(self, name):
        return any(name in names for is_seen, names in [*((seen, names) for seen, names in self.scopes[:-1] if seen), *self.scopes[-1:]])

    @contextmanager
    def scope(self, names, is_seen=True):
        self.scopes.append((is_seen, names))
        yield
        self.scopes.pop()

    def add(self, node, attribute, name):
        if not self.is_local(name):
            self.places.append((node, attribute, name))
            return True

    def visit_all(self, nodes):
        for node in nodes:
            if node is not None:
                self.visit(node)

    def visit_Name(self, node):
        if self.add(node, "id", node.id) and isinstance(node.ctx, ast.Load):
            self.read.add(node.id)

    def visit_FunctionDef(self, node):
        self.add(node, "name", node.name)
        parameters = node.args
        arguments = [*parameters.posonlyargs, *parameters.args, *parameters.kwonlyargs, parameters.vararg, parameters.kwarg]
        self.visit_all([*node.decorator_list, *parameters.defaults, *parameters.kw_defaults, node.returns])
        self.visit_all([argument.annotation for argument in arguments if argument])
        with self.scope(Bindings([parameters, *node.body]).names):
            self.visit_all(node.body)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node):
        self.visit_all([*node.args.defaults, *node.args.kw_defaults])
        with self.scope(Bindings([node.args]).names):
            self.visit(node.body)

    def visit_ClassDef(self, node):
        self.add(node, "name", node.name)
        self.visit_all([*node.decorator_list, *node.bases, *node.keywords])
        with self.scope(Bindings(node.body).names, is_seen=False):
            self.visit_all(node.body)

    def visit_comprehension_scope(self, node):
        first = node.generators[0].iter  # is evaluated outside
        self.visit(first)
        with self.scope(Bindings([generator.target for generator in node.generators]).names):
            self.visit_all(child for child in self.inner_parts(node) if child is not first)

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = visit_comprehension_scope

    @staticmethod
    def inner_parts(node):
        for generator in node.generators:
            yield from (generator.target, generator.iter, *generator.ifs)
        yield from (getattr(node, part) for part in ("elt", "key", "value") if hasattr(node, part))

    def visit_Global(self, node):
        self.places += [(node, "names", name) for name in node.names]

    def generic_visit(self, node):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            self.fixed.update(name for name in Bindings([node]).names if not self.is_local(name))
        elif isinstance(node, (ast.ExceptHandler, *CAPTURES)):
            self.fixed.update(name for name in {captured_name(node)} if name and not self.is_local(name))
        super().generic_visit(node)

    # ----------------------------------------------------------------------------------------------------- other names

    @contextmanager
    def renamed(self, renames):
        """The tree with other names, until the end of the `with`."""
        changed = [place for place in self.places if place[2] in renames]
        self._replace(changed, renames.get)
        yield
        self._replace(changed, lambda name: name)

    @staticmethod
    def _replace(places, new_name):
        for node, attribute, name in places:
            if attribute == "names":
                names = getattr(node, "original", None) or list(node.names)
                node.original, node.names = names, [new_name(n) or n for n in names]
            else:
                setattr(node, attribute, new_name(name))

    def dump(self, node, renames):
        with self.renamed(renames):
            return ast.dump(node)

    def unparse(self, node, renames):
        with self.renamed(renames):
            return ast.unparse(node)

    def edits(self, node, lines, renames):
        """[(line, first byte, last byte + 1, new name)] for the text of a statement. lines: those of the source, as bytes."""
        found, inside = [], {id(inner) for inner in ast.walk(node)}
        for place, attribute, name in self.places:
            if id(place) in inside and name in renames:
                line, start = lines[place.lineno - 1], place.col_offset
                if attribute != "id":  # `def NAME`, `class NAME`, `global A, B`
                    start = next((match.start() for match in re.finditer(rb"\b%s\b" % name.encode(), line) if match.start() > start), start)
                stop = start + len(name.encode())
                if line[start:stop] == name.encode():  # before Python 3.12, what is inside an f-string has no right place
                    found.append((place.lineno, start, stop, renames[name]))
        return found
