"""Five blood cell classes in a laboratory that had no part in the training.

    python benchmarks/five_class.py [--seeds 3] [--per-class 200] [--epochs 8] [--size 64] [--jobs N]
                                    [--quick]

Four public sources stand for four laboratories: train on three, test on the fourth, with every recipe on
the same pictures, for the same epochs, at the same size, from random weights, at one learning rate and
batch. `plain` and `p1` see each picture as it is; `cblc` first finds the cell, cuts it at its source's one
scale and lights it alike (cblc.cells.singles). `plain, cblc's crops` tells what of the gain is the crop's.
Of a source's class at most --per-class pictures are taken, by file-name hash (0: all). The segmenter that
finds the cells has seen masks or boxes of part of `bcisc` and `pbc128` in its own training, but no class,
and nothing of segmentation_wbc.

Weighted F1 on the source left out; 95 % intervals by bootstrap over its pictures (2,000 draws, averaged
over seeds and sources). No source names its patients, so pictures of one patient may count more than once.
"""
import argparse
import itertools
import json
import multiprocessing
import time

import numpy as np

PEERS = {  # name: recipe, and whether the cell is found and lit first
    'plain': ('plain', False),
    'p1': ('p1', False),
    "plain, cblc's crops": ('plain', True),
    'cblc': ('cblc', True),
}
SOURCES = ('wbc_dataset1', 'wbc_dataset2', 'bcisc', 'pbc128')
COLUMNS = (*SOURCES, 'mean')


def read_views(pictures, size):
    "Read both views of all pictures: as they are, and as cells found and lit"
    from cblc.cells.singles import read_singles, view_settings
    from cblc.learn.settings import fit_settings
    found_view = view_settings(fit_settings('cblc').prediction.view, size)
    views = {}
    for is_found, cut in ((False, size), (True, found_view)):
        crops, _, has_cell, unreadable = read_singles(pictures.path, cut, pictures.center)
        if unreadable:
            raise SystemExit('\n'.join(unreadable))
        views[is_found] = crops
        if is_found:
            print(f'cells found in {has_cell.sum()} of {len(has_cell)} pictures; the rest as they are')
    return views


def classify_left_out(job):
    "Train without a source and classify its pictures: the job's name, source and seed, and the classes"
    name, source, seed, arguments = job
    import torch
    from cblc.classifier import fit_classifier
    from cblc.learn.settings import fit_settings
    torch.set_num_threads(1)
    recipe, is_found = PEERS[name]
    left_out, crops = (pictures.center == source).to_numpy(), views[is_found]
    settings = fit_settings(
        recipe=recipe, size=arguments.size, epochs=arguments.epochs, seed=seed, pretrained=False, threads=1,
        lr=arguments.lr, batch=arguments.batch,
    )
    labels = pictures.label[~left_out].tolist()
    classifier = fit_classifier(crops[~left_out], labels, settings=settings, vocabulary=None)
    predicted = classifier.predict(crops[left_out], adapt=True, progress=False)
    return name, source, seed, predicted.category.to_numpy(str)


def weighted_f1(truth, predicted, samples):
    "Compute scikit-learn's weighted F1 of each row of positions in `samples`, from counts"
    names = np.unique(np.r_[truth, predicted])
    n = len(names)
    pairs = np.searchsorted(names, truth)[samples]*n + np.searchsorted(names, predicted)[samples]
    counts = np.stack([np.bincount(row, minlength=n*n).reshape(n, n) for row in pairs])
    hits, support, named = counts.diagonal(axis1=1, axis2=2), counts.sum(2), counts.sum(1)
    return (2*hits/np.maximum(support + named, 1)*support).sum(1)/support.sum(1)


def score_peers(predictions, pictures, n_boot=2000):
    "Average scores over seeds, with bootstrap draws that share their pictures between peers"
    rng, scores, draws = np.random.default_rng(0), {}, {}
    for source in SOURCES:
        truth = pictures.label[pictures.center == source].to_numpy(str)
        samples = rng.integers(len(truth), size=(n_boot, len(truth)))
        everything = np.arange(len(truth))[None]
        for name in PEERS:
            runs = [classes for (*key, _), classes in predictions.items() if key == [name, source]]
            scores[name, source] = np.mean([weighted_f1(truth, run, everything)[0] for run in runs])
            draws[name, source] = np.mean([weighted_f1(truth, run, samples) for run in runs], axis=0)
    for name in PEERS:
        scores[name, 'mean'] = np.mean([scores[name, source] for source in SOURCES])
        draws[name, 'mean'] = np.mean([draws[name, source] for source in SOURCES], axis=0)
    return scores, draws


def as_interval(draws):
    "Write the 95 % interval of bootstrap draws"
    return '{:.3f}-{:.3f}'.format(*np.quantile(draws, [.025, .975]))


def print_table(scores, draws):
    "Print every peer, and by how much cblc differs from the two published ways"
    for name in PEERS:
        cells = [f'{s} {scores[name, s]:.3f} [{as_interval(draws[name, s])}]' for s in COLUMNS]
        print(f'{name:20s}', *cells, sep='  ')
    for peer in ('plain', 'p1'):
        cells = []
        for source in COLUMNS:
            gain = scores['cblc', source] - scores[peer, source]
            interval = as_interval(draws['cblc', source] - draws[peer, source])
            cells.append(f'{source} {gain:+.3f} [{interval}]')
        print(f'cblc less {peer}:', *cells, sep='  ')


def parse_arguments():
    "Read the command line"
    from cblc.core.engine import cores
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    for name, default in dict(seeds=3, per_class=200, epochs=8, size=64, jobs=cores(), batch=32).items():
        parser.add_argument(f'--{name.replace("_", "-")}', type=int, default=default)
    parser.add_argument('--lr', type=float, default=2e-3)
    parser.add_argument('--quick', action='store_true')
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds, arguments.per_class, arguments.epochs, arguments.size = 1, 12, 1, 32
    return arguments


def main():
    "Leave every source out once, with every peer"
    global pictures, views  # read once, and inherited by the forked processes
    from cblc.core.engine import progress_bar
    from cblc.sources.public import public_root, read_five_class
    arguments = parse_arguments()
    if public_root() is None:
        raise SystemExit('no public images here; set CBLC_DATA to their folder (data/README.md)')
    start = time.time()
    pictures = read_five_class(per_class=arguments.per_class)
    views = read_views(pictures, arguments.size)
    print(pictures.groupby(['center', 'label']).size().unstack(fill_value=0).to_string())
    print(f'read in {time.time() - start:.0f} s')
    runs = itertools.product(range(arguments.seeds), PEERS, SOURCES)
    jobs = [(name, source, seed, arguments) for seed, name, source in runs]
    with multiprocessing.get_context('fork').Pool(arguments.jobs, maxtasksperchild=1) as pool:
        finished = progress_bar(pool.imap_unordered(classify_left_out, jobs), 'training', len(jobs))
        predictions = {(name, source, seed): classes for name, source, seed, classes in finished}
    scores, draws = score_peers(predictions, pictures)
    print(f'\nweighted F1 on the source left out; CPU, {arguments.seeds} seeds, {arguments.epochs} epochs, '
          f'{arguments.size} px, {time.time() - start:.0f} s')
    print_table(scores, draws)
    by_source = {name: {source: round(scores[name, source], 4) for source in SOURCES} for name in PEERS}
    means = {name: round(scores[name, 'mean'], 4) for name in ('plain', 'p1', 'cblc')}
    print(json.dumps(means | dict(by_source=by_source)))


if __name__ == '__main__':
    main()
