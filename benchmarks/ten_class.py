"""Ten fine classes of one laboratory: is the classifier any good at home?

    python benchmarks/ten_class.py [--recipe home] [--view whole|cell|sized] [--epochs 30] [--size 96]
                                   [--seed 0] [--threads N] [--out DIR] [--quick]

PBC (pbc128) without IG and NEUTROPHIL, whose stage is not told: 70 % train, 15 % validation (best epoch,
temperature), 15 % test by a hash of the file name, from random weights, and without a recipe's adaptation,
since the laboratory is not new. PBC names no patients, so cells of one donor are on both sides and the
figure flatters. --view takes another view than the recipe's. With --out, a run that was stopped goes on by
the same command. Macro F1 on the test part, 95 % interval by bootstrap over pictures (2,000 draws).
"""
import argparse
import json
import time
import numpy as np
import torch
from sklearn.metrics import classification_report, f1_score
from cblc.cells.singles import read_singles, view_settings
from cblc.classifier import fit_classifier
from cblc.core.engine import cores
from cblc.learn.settings import fit_settings
from cblc.sources.public import FINE_CLASSES, public_root, read_pbc, split_by_name


def read_arguments():
    "Read the command line"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--recipe', default='home')
    parser.add_argument('--view')
    parser.add_argument('--out')
    parser.add_argument('--quick', action='store_true')
    for name, default in dict(epochs=30, size=96, seed=0, threads=cores()).items():
        parser.add_argument(f'--{name}', type=int, default=default)
    args = parser.parse_args()
    if args.quick:
        args.epochs, args.size = 1, 32
    return args


def read_cells(args, settings):
    "Crops, labels and parts (train, valid, test) of the ten classes"
    begun = time.time()
    cells = read_pbc()[0]
    cells = cells[cells.label.isin(FINE_CLASSES)].reset_index(drop=True)
    if args.quick:
        cells = cells.groupby('label').head(20).reset_index(drop=True)
    view = settings.prediction.view
    crops, rows, found, skipped = read_singles(
        cells.path.tolist(), view_settings(view, args.size), cells.center.tolist())
    cells = cells.iloc[rows]
    parts, labels = cells.image_id.map(split_by_name).to_numpy(), cells.label.to_numpy(str)
    unseen = int((~found).sum()) if view != 'whole' else 0
    counts = {part: int((parts == part).sum()) for part in ('train', 'valid', 'test')}
    print(f'{len(cells)} pictures ({len(skipped)} unreadable, {unseen} without a cell), '
          f'read in {time.time()-begun:.0f} s:', counts, flush=True)
    return crops, labels, parts


def bootstrap_f1(truth, named, n_draws, seed):
    "Macro F1 with its 95 % interval over pictures"
    rng = np.random.default_rng(seed)
    rows = rng.integers(len(truth), size=(n_draws, len(truth)))
    draws = [f1_score(truth[i], named[i], average='macro') for i in rows]
    return f1_score(truth, named, average='macro'), *np.quantile(draws, [.025, .975])


def main():
    "Train, test and print the table"
    args = read_arguments()
    if public_root() is None:
        raise SystemExit('no public images here; set CBLC_DATA to their folder (data/README.md)')
    settings = fit_settings(
        args.recipe, view=args.view, size=args.size, epochs=args.epochs, seed=args.seed, pretrained=False,
        threads=args.threads)
    crops, labels, parts = read_cells(args, settings)
    train, valid, test = (parts == part for part in ('train', 'valid', 'test'))
    begun = time.time()
    classifier = fit_classifier(
        crops[train], labels[train].tolist(), settings=settings, vocabulary=None,
        valid=(crops[valid], labels[valid].tolist(), None), out=args.out)
    trained = time.time() - begun
    named = classifier.predict(crops[test], progress=False).category.to_numpy(str)
    print(classification_report(labels[test], named, digits=3))
    f1, low, high = bootstrap_f1(labels[test], named, 200 if args.quick else 2000, args.seed)
    print(f'{args.recipe}, {args.epochs} epochs at {args.size} px, seed {args.seed}, '
          f'{torch.get_num_threads()} CPU threads, trained in {trained:.0f} s: '
          f'macro F1 {f1:.3f} [{low:.3f}-{high:.3f}]')
    figures = {name: round(float(value), 4) for name, value in dict(macro_f1=f1, low=low, high=high).items()}
    print(json.dumps(figures | dict(n=int(test.sum()))))


if __name__ == '__main__':
    main()
