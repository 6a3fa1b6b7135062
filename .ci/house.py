"""Check the house rules that ruff does not know, over the exported package; print every breach, then a count.

    python .ci/house.py            check; exit code 1 where a rule is broken
    python .ci/house.py --table    write CONTRIBUTING's table of rooms anew, from the notebooks' own `>` lines
    python .ci/house.py --room R   check one room (such as learn/training) alone

Rules: a room has at most 400 exported lines, none over 110 characters (nbdev's own list of names is left out,
which nbdev wraps at 120); a function at most 40 lines and 1,600 characters; every parameter of a public function,
method or dataclass has its comment; every public function has a one-line docstring that starts with a capital and
ends without a full stop; no private name crosses rooms; imports point to the floors below; links between our own
files lead somewhere; the table of rooms in CONTRIBUTING.md is what the notebooks say.
"""
import ast
import io
import json
import re
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE, NOTEBOOKS = ROOT / 'cblc', ROOT / 'nbs'
MOST_LINES, MOST_WIDTH, MOST_FUNCTION_LINES, MOST_FUNCTION_CHARACTERS = 400, 110, 40, 1600
NAMES = r'(?s)__all__ = \[.*?\]\n'
FLOORS = [
    'core', 'data', 'sources', 'segmentation', 'matching', 'cells', 'learn', 'classifier', 'diffusion',
    'patient', 'ratio', 'trust', 'hospital', 'external', 'pages', 'study', 'diagnose', 'batch', 'tables', 'cli',
]
TABLE_START, TABLE_END = '<!-- rooms: written by .ci/house.py --table -->', '<!-- end of rooms -->'


def room_of(path):
    """Name a module as its notebook is named in imports, such as learn/training"""
    return str(path.relative_to(PACKAGE).with_suffix('')).replace('\\', '/')


def rooms():
    """List the modules that notebooks export"""
    return [p for p in sorted(PACKAGE.rglob('*.py')) if p.name not in ('__init__.py', '_modidx.py')]


def code_lines(source):
    """Keep the lines that are neither blank nor comments nor nbdev's list of names"""
    body = re.sub(NAMES, '', source)
    return [line for line in body.splitlines() if line.strip() and not line.lstrip().startswith('#')]


def commented_lines(source):
    """Find the lines that end in a comment"""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = [token for token in tokens if token.type == tokenize.COMMENT]
    return {token.start[0] for token in comments if len(token.string.strip('# ')) > 1}


def parameters_of(function, is_method):
    """List the parameters a reader must be told about"""
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args]
    if is_method and not any(getattr(d, 'id', '') == 'staticmethod' for d in function.decorator_list):
        named = named[1:]
    extra = [a for a in (arguments.vararg, arguments.kwarg) if a is not None]
    return named + arguments.kwonlyargs + extra


def is_dataclass(node):
    """Tell whether a class is decorated as a dataclass"""
    return any('dataclass' in ast.unparse(d) for d in node.decorator_list)


def public_functions(tree):
    """Yield (function, class or None) for every public function and method"""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith('_'):
            yield node, None
        if isinstance(node, ast.ClassDef) and not node.name.startswith('_'):
            for part in node.body:
                is_public = isinstance(part, ast.FunctionDef) and (
                    not part.name.startswith('_') or part.name in ('__init__', '__call__')
                )
                if is_public:
                    yield part, node


def undocumented(tree, comments):
    """Yield the parameters and fields without a comment of their own"""
    for function, owner in public_functions(tree):
        name = f'{owner.name}.{function.name}' if owner else function.name
        taken = {}
        for parameter in parameters_of(function, owner is not None):
            if parameter.lineno not in comments or parameter.lineno in taken:
                yield parameter.lineno, f'{name}: parameter {parameter.arg} has no comment of its own'
            taken[parameter.lineno] = True
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith('_') and is_dataclass(node):
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and field.lineno not in comments:
                    yield field.lineno, f'{node.name}: field {ast.unparse(field.target)} has no comment'


def bad_docstrings(tree):
    """Yield public functions without a docstring of the one form"""
    functions = [(f, o) for f, o in public_functions(tree) if not f.name.startswith('__')]
    nodes = [(f, f'{o.name}.{f.name}' if o else f.name) for f, o in functions]
    nodes += [(n, n.name) for n in tree.body if isinstance(n, ast.ClassDef) and not n.name.startswith('_')]
    for node, name in nodes:
        text = ast.get_docstring(node)
        if text is None:
            yield node.lineno, f'{name}: no docstring'
        elif '\n' in text or text.endswith('.') or not text[:1].isupper():
            rule = 'is not one line that starts with a capital and has no full stop'
            yield node.lineno, f'{name}: the docstring {rule}'


def big_functions(tree, source):
    """Yield functions that are longer than a reader's breath"""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = node.end_lineno - node.lineno + 1
            characters = len(ast.get_source_segment(source, node))
            if lines > MOST_FUNCTION_LINES or characters > MOST_FUNCTION_CHARACTERS:
                yield node.lineno, f'{node.name}: {lines} lines, {characters} characters'


def imported_rooms(node, room):
    """Name the module of this package that an import statement takes from, or None"""
    if not isinstance(node, ast.ImportFrom):
        return None
    if node.level:
        base = room.split('/')[: -node.level] if node.level <= len(room.split('/')) else []
        return '/'.join(base + (node.module or '').split('.')).strip('/')
    if node.module and node.module.startswith('cblc.'):
        return node.module[len('cblc.'):].replace('.', '/')
    return None


def long_lines(source):
    """Yield the lines that a reader must scroll for"""
    body = re.sub(NAMES, lambda names: '\n' * names[0].count('\n'), source)
    for number, line in enumerate(body.splitlines(), 1):
        if len(line) > MOST_WIDTH:
            yield number, f'{len(line)} characters'


def crossings(tree, room):
    """Yield private names that cross rooms, and imports that point to a floor above"""
    for node in ast.walk(tree):
        other = imported_rooms(node, room)
        if not other or other == room:
            continue
        for name in node.names:
            if name.name.startswith('_') and not name.name.startswith('__'):
                yield node.lineno, f'{name.name} is private to {other}'
        own, theirs = FLOORS.index(room.split('/')[0]), FLOORS.index(other.split('/')[0])
        if theirs > own:
            yield node.lineno, f'imports {other}, which is a floor above'


def check_room(path):
    """List the breaches of one exported module as (line, text)"""
    source = path.read_text(encoding='utf-8')
    tree, room = ast.parse(source), room_of(path)
    n_lines = len(code_lines(source))
    found = [(0, f'{n_lines} exported lines')] if n_lines > MOST_LINES else []
    found += [*undocumented(tree, commented_lines(source)), *bad_docstrings(tree), *big_functions(tree, source)]
    return sorted([*found, *long_lines(source), *crossings(tree, room)])


def reading_order():
    """List the notebooks in the order of the floors"""
    def rank(path):
        parts = path.relative_to(NOTEBOOKS).with_suffix('').parts
        return FLOORS.index(re.sub(r'^\d+_', '', parts[0])), parts
    found = [p for p in NOTEBOOKS.rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts]
    return sorted((p for p in found if p.name != 'index.ipynb'), key=rank)


def rooms_table():
    """Make CONTRIBUTING's table of rooms from the first cell of every notebook"""
    rows = ['| notebook | module | answers |', '|---|---|---|']
    for path in reading_order():
        cells = json.loads(path.read_text(encoding='utf-8'))['cells']
        sources = [''.join(c['source']) for c in cells]
        answer = next(line[1:].strip() for line in sources[0].splitlines() if line.startswith('>'))
        module = next(m[1] for m in (re.search(r'^#\| default_exp (\S+)', s, re.M) for s in sources) if m)
        stem = path.relative_to(NOTEBOOKS).with_suffix('').as_posix()
        rows.append(f'| [{stem}](nbs/{stem}.ipynb) | `cblc.{module}` | {answer} |')
    return '\n'.join(rows)


def notebook_prose(path):
    """Give the markdown of a notebook"""
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    return '\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')


def broken_links():
    """Yield links between our own files that lead nowhere"""
    pages = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', ROOT / 'data' / 'README.md']
    prose = [(page, page.read_text(encoding='utf-8')) for page in pages]
    prose += [(path, notebook_prose(path)) for path in reading_order()]
    for path, text in prose:
        for target in re.findall(r'\]\((?!\w+:|#)([^)\s#]+)', text):
            if not (path.parent / target).exists():
                yield f'{path.relative_to(ROOT).as_posix()}: the link to {target} leads nowhere'


def contributing_with_table():
    """Give CONTRIBUTING.md with the table of rooms as the notebooks have it"""
    text = (ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8')
    head, rest = text.split(TABLE_START)
    return f'{head}{TABLE_START}\n{rooms_table()}\n{TABLE_END}{rest.split(TABLE_END)[1]}'


def main(arguments):
    """Check the house, or write its table"""
    if arguments == ['--table']:
        (ROOT / 'CONTRIBUTING.md').write_text(contributing_with_table(), encoding='utf-8')
        return 0
    chosen = [p for p in rooms() if arguments[:1] != ['--room'] or room_of(p) in arguments[1:]]
    breaches = [f'cblc/{room_of(p)}.py:{line}: {text}' for p in chosen for line, text in check_room(p)]
    if not arguments:
        breaches += broken_links()
    if not arguments and contributing_with_table() != (ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8'):
        breaches.append('CONTRIBUTING.md: the table of rooms is stale; run python .ci/house.py --table')
    print('\n'.join(breaches))
    print(f'{len(chosen)} rooms, {len(breaches)} breaches')
    return 1 if breaches else 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
