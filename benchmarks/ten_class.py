"""Ten fine classes of one laboratory: is the classifier any good at home?

    python benchmarks/ten_class.py [--recipe home] [--view whole|cell|sized] [--epochs 30] [--size 96]
                                   [--arch TIMM] [--start none|package] [--seed 0] [--threads N]
                                   [--numbers] [--out DIR] [--quick]

PBC (pbc128) without IG and NEUTROPHIL, whose stage is not told: 70 % train, 15 % validation (best epoch,
temperature), 15 % test by a hash of the file name, from random weights or (--start package, with --arch
tf_efficientnet_lite0) ImageNet's, and without a recipe's adaptation, since the laboratory is not new. PBC
names no patients, so cells of one donor are on both sides and the figure flatters.
--numbers gives the numbers of ImageNet's network a say after the training (`with_pretrained_appearance`), as
much as makes the validation part's labels most likely.
--view takes another view than the recipe's. With --out, a run that was stopped goes on by the same command.
Macro F1 on the test part, 95 % interval by bootstrap over pictures (2,000 draws).
"""
import argparse
import json
import time
from dataclasses import replace

import numpy as np
import torch
from sklearn.metrics import classification_report, f1_score

from cblc.cells.singles import read_singles, view_settings
from cblc.classifier import fit_classifier, with_pretrained_appearance
from cblc.core.engine import cores
from cblc.learn.settings import fit_settings
from cblc.sources.public import FINE_CLASSES, public_root, read_pbc, split_by_name

SAYS = (.1, .2, .3, .4, .5)  # of the numbers, that are tried


def parse_arguments():
    "Read the command line"
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument('--recipe', default='home')
    parser.add_argument('--view')
    parser.add_argument('--epochs', type=int, default=30)
    parser.add_argument('--size', type=int, default=96)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--threads', type=int, default=cores())
    parser.add_argument('--arch', help='any timm model; default: EfficientNet-B0')
    parser.add_argument('--start', default='none', choices=['none', 'package'])
    parser.add_argument('--numbers', action='store_true')
    parser.add_argument('--out')
    parser.add_argument('--quick', action='store_true')
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.epochs, arguments.size = 1, 32
    return arguments


def read_cells(settings, quick):
    "Read the pictures of the ten classes as crops; labels and parts of the readable ones"
    start = time.time()
    cells = read_pbc()[0]
    cells = cells[cells.label.isin(FINE_CLASSES)].reset_index(drop=True)
    if quick:
        cells = cells.groupby('label').head(20).reset_index(drop=True)
    view, size = settings.prediction.view, settings.run.size
    crops, rows, found, unreadable = read_singles(
        cells.path.tolist(), view_settings(view, size), cells.center.tolist()
    )
    cells = cells.iloc[rows]
    part = cells.image_id.map(split_by_name).to_numpy()
    without_cell = 0 if view == 'whole' else int((~found).sum())
    counts = {name: int((part == name).sum()) for name in ('train', 'valid', 'test')}
    print(f'{len(cells)} pictures ({len(unreadable)} unreadable, {without_cell} without a cell), '
          f'read in {time.time() - start:.0f} s: {counts}', flush=True)
    return crops, cells.label.to_numpy(str), part


def with_numbers(classifier, cells, valid, threads):
    "Give ImageNet's numbers the say that makes the validation part's labels most likely"
    both = with_pretrained_appearance(classifier, cells, valid, SAYS[0], threads=threads)
    held_out = both.held_out
    opinions = classifier.probabilities(held_out.crops), both.appearance_probabilities(held_out.crops)
    given = [replace(both, appearance_weight=say, joint_temperature=1.) for say in SAYS]
    likely = [np.log((one.combine(*opinions)*held_out.allowed).sum(1).clip(1e-9)).mean() for one in given]
    best = int(np.argmax(likely))
    print(f'the numbers have {SAYS[best]} of the say', {s: round(float(v), 4) for s, v in zip(SAYS, likely)})
    return given[best]


def interval_of_f1(truth, predicted, seed, draws):
    "Bootstrap the macro F1 over pictures: its 95 % interval"
    samples = np.random.default_rng(seed).integers(len(truth), size=(draws, len(truth)))
    scores = [f1_score(truth[rows], predicted[rows], average='macro') for rows in samples]
    return np.quantile(scores, [.025, .975])


def main():
    "Train on one part of the laboratory, judge on another"
    arguments = parse_arguments()
    if public_root() is None:
        raise SystemExit('no public images here; set CBLC_DATA to their folder (data/README.md)')
    settings = fit_settings(
        recipe=arguments.recipe, view=arguments.view, size=arguments.size, epochs=arguments.epochs,
        seed=arguments.seed, threads=arguments.threads, arch=arguments.arch,
        pretrained=arguments.start == 'package' and 'package',
    )
    crops, label, part = read_cells(settings, arguments.quick)

    def cells_of(name):
        return crops[part == name], label[part == name].tolist()

    start = time.time()
    classifier = fit_classifier(
        *cells_of('train'), settings=settings, vocabulary=None, valid=(*cells_of('valid'), None),
        out=arguments.out,
    )
    seconds = time.time() - start
    if arguments.numbers:
        classifier = with_numbers(classifier, cells_of('train'), cells_of('valid'), arguments.threads)
    truth = label[part == 'test']
    predicted = classifier.predict(crops[part == 'test'], progress=False).category.to_numpy(str)
    print(classification_report(truth, predicted, digits=3))
    f1 = float(f1_score(truth, predicted, average='macro'))
    low, high = interval_of_f1(truth, predicted, arguments.seed, 200 if arguments.quick else 2000)
    print(f'{arguments.recipe}, {arguments.epochs} epochs at {arguments.size} px, seed {arguments.seed}, '
          f'{torch.get_num_threads()} CPU threads, trained in {seconds:.0f} s: '
          f'macro F1 {f1:.3f} [{low:.3f}-{high:.3f}]')
    figures = dict(macro_f1=f1, low=float(low), high=float(high))
    print(json.dumps({name: round(value, 4) for name, value in figures.items()} | dict(n=len(truth))))


if __name__ == '__main__':
    main()
