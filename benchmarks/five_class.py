"""Five blood cell classes in a laboratory that had no part in the training.

    python benchmarks/five_class.py [--seeds 3] [--per-class 200] [--epochs 8] [--size 64] [--jobs N]
                                    [--quick]

Four public sources stand for four laboratories: train on three, test on the fourth, with every recipe on
the same pictures, for the same epochs, at the same size, from random weights, at one learning rate and
batch. `plain` and `p1` see each picture as it is; `cblc` first finds the cell, cuts it at its source's one
scale and lights it alike (cblc.cells.singles), and measures its normalization again on the source left out,
without labels. `plain, cblc's crops` tells what of the gain is the crop's. Of a source's class at most
--per-class pictures are taken, by file-name hash (0: all). The segmenter that finds the cells has seen
masks or boxes of part of `bcisc` and `pbc128` in its own training, but no class, and nothing of
segmentation_wbc.

Weighted F1 on the source left out; 95 % intervals by bootstrap over its pictures (2,000 draws, averaged
over seeds and sources). No source names its patients, so pictures of one patient may count more than once.
"""
import argparse
import json
import multiprocessing
import time
import numpy as np

# recipe, found and lit?
PEERS = {
    'plain': ('plain', False), 'p1': ('p1', False),
    "plain, cblc's crops": ('plain', True), 'cblc': ('cblc', True),
}
SOURCES = ('wbc_dataset1', 'wbc_dataset2', 'bcisc', 'pbc128')
SHARED = {}  # pictures and crops, read once and inherited by the processes that train


def read_views(pictures, size):
    "All pictures as they are (False), and as cells found and lit (True)"
    from cblc.cells.singles import read_singles, view_settings
    from cblc.learn.settings import fit_settings
    views, own = {}, view_settings(fit_settings('cblc').prediction.view, size)
    for is_found, view in ((False, size), (True, own)):
        views[is_found], _, found, skipped = read_singles(pictures.path, view, pictures.center)
        if skipped:
            raise SystemExit('\n'.join(skipped))
    print(f'cells found in {found.sum()} of {len(found)} pictures; the rest are taken as they are')
    return views


def run_job(job):
    "Train without a source and classify it: the classes it names"
    import torch
    from cblc.classifier import fit_classifier
    from cblc.learn.settings import fit_settings
    name, source, seed, args = job
    torch.set_num_threads(1)
    recipe, is_found = PEERS[name]
    pictures, crops = SHARED['pictures'], SHARED['views'][is_found]
    out = (pictures.center == source).to_numpy()
    settings = fit_settings(
        recipe, size=args.size, epochs=args.epochs, seed=seed, pretrained=False, threads=1, lr=args.lr,
        batch=args.batch)
    classifier = fit_classifier(
        crops[~out], pictures.label[~out].tolist(), settings=settings, vocabulary=None)
    named = classifier.predict(crops[out], adapt=True, progress=False).category.to_numpy(str)
    return (name, source, seed), named


def weighted_f1(truth, named, rows):
    "scikit-learn's weighted F1 of each row of positions, from counts"
    names = np.unique(np.r_[truth, named])
    n = len(names)
    true, predicted = np.searchsorted(names, truth)[rows], np.searchsorted(names, named)[rows]
    counts = np.stack([np.bincount(pairs, minlength=n*n).reshape(n, n) for pairs in true*n + predicted])
    right, of_class, of_name = counts.diagonal(axis1=1, axis2=2), counts.sum(2), counts.sum(1)
    return (2*right/np.maximum(of_class + of_name, 1)*of_class).sum(1)/of_class.sum(1)


def score_peers(results, pictures, n_boot=2000):
    "Mean over seeds of each peer and source, with draws that share their pictures between peers"
    rng, scores, draws = np.random.default_rng(0), {}, {}
    for source in SOURCES:
        truth = pictures.label[pictures.center == source].to_numpy(str)
        drawn, whole = rng.integers(len(truth), size=(n_boot, len(truth))), np.arange(len(truth))[None]
        for peer in PEERS:
            by_seed = [named for key, named in results.items() if key[:2] == (peer, source)]
            scores[peer, source] = np.mean([weighted_f1(truth, named, whole) for named in by_seed], axis=0)[0]
            draws[peer, source] = np.mean([weighted_f1(truth, named, drawn) for named in by_seed], axis=0)
    for peer in PEERS:
        for table in (scores, draws):
            table[peer, 'mean'] = np.mean([table[peer, source] for source in SOURCES], axis=0)
    return scores, draws


def interval(draws):
    "95 % of the draws"
    return '{:.3f}-{:.3f}'.format(*np.quantile(draws, [.025, .975]))


def print_scores(scores, draws):
    "Print each peer, the differences to cblc, and the line of JSON"
    columns = (*SOURCES, 'mean')
    for peer in PEERS:
        cells = (f'{c} {scores[peer, c]:.3f} [{interval(draws[peer, c])}]' for c in columns)
        print(f'{peer:20s}', *cells, sep='  ')
    for peer in ('plain', 'p1'):
        gains = {c: (scores['cblc', c] - scores[peer, c], draws['cblc', c] - draws[peer, c]) for c in columns}
        cells = (f'{c} {gain:+.3f} [{interval(d)}]' for c, (gain, d) in gains.items())
        print(f'cblc less {peer}:', *cells, sep='  ')
    means = {peer: round(scores[peer, 'mean'], 4) for peer in ('plain', 'p1', 'cblc')}
    by_source = {peer: {source: round(scores[peer, source], 4) for source in SOURCES} for peer in PEERS}
    print(json.dumps(means | dict(by_source=by_source)))


def read_arguments():
    "Read the command line"
    from cblc.core.engine import cores
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = dict(seeds=3, per_class=200, epochs=8, size=64, jobs=cores(), batch=32)
    for name, default in numbers.items():
        parser.add_argument(f'--{name.replace("_", "-")}', type=int, default=default)
    parser.add_argument('--lr', type=float, default=2e-3)
    parser.add_argument('--quick', action='store_true')
    args = parser.parse_args()
    if args.quick:
        args.seeds, args.per_class, args.epochs, args.size = 1, 12, 1, 32
    return args


def main():
    "Read, train every peer without every source, and print the table"
    from cblc.core.engine import progress_bar
    from cblc.sources.public import public_root, read_five_class
    args = read_arguments()
    if public_root() is None:
        raise SystemExit('no public images here; set CBLC_DATA to their folder (data/README.md)')
    begun = time.time()
    pictures = read_five_class(per_class=args.per_class)
    SHARED.update(pictures=pictures, views=read_views(pictures, args.size))
    counts = pictures.groupby(['center', 'label']).size().unstack(fill_value=0)
    print(counts.to_string(), f'\nread in {time.time()-begun:.0f} s')
    jobs = [(peer, source, seed, args) for seed in range(args.seeds) for peer in PEERS for source in SOURCES]
    with multiprocessing.get_context('fork').Pool(args.jobs, maxtasksperchild=1) as pool:
        results = dict(progress_bar(pool.imap_unordered(run_job, jobs), 'training', len(jobs)))
    print(f'\nweighted F1 on the source left out; CPU, {args.seeds} seeds, {args.epochs} epochs, '
          f'{args.size} px, {time.time()-begun:.0f} s')
    print_scores(*score_peers(results, pictures))


if __name__ == '__main__':
    main()
