"""Five blood cell classes in a laboratory that had no part in the training.

    python benchmarks/five_class.py [--seeds 3] [--per-class 200] [--epochs 8] [--size 64] [--jobs N] [--quick]

Four public sources stand for four laboratories: train on three, test on the fourth, with every recipe on the same pictures, for the
same epochs, at the same size, from random weights, at one learning rate and batch. `plain` and `p1` see each picture as it is; `cblc`
first finds the cell, cuts it at its source's one scale and lights it alike (cblc.cells.singles). `plain, cblc's crops` tells what of the gain is the
crop's. Of a source's class at most --per-class pictures are taken, by file-name hash (0: all). The segmenter that finds the cells has
seen masks or boxes of part of `bcisc` and `pbc128` in its own training, but no class, and nothing of segmentation_wbc.

Weighted F1 on the source left out; 95 % intervals by bootstrap over its pictures (2,000 draws, averaged over seeds and sources). No
source names its patients, so pictures of one patient may count more than once.
"""
import argparse, json, multiprocessing, time
import numpy as np

# recipe, found and lit?
PEERS = {'plain': ('plain', False), 'p1': ('p1', False), "plain, cblc's crops": ('plain', True), 'cblc': ('cblc', True)}
SOURCES = ('wbc_dataset1', 'wbc_dataset2', 'bcisc', 'pbc128')

def read(pictures, size):
    "Both views of all pictures: as they are, and as cells found and lit."
    from cblc.cells.singles import read_singles, view_settings
    from cblc.learn.settings import fit_settings
    views = {}
    for found, how in ((False, size), (True, view_settings(fit_settings('cblc').prediction.view, size))):
        crops, rows, cell, bad = read_singles(pictures.path, how, pictures.center)
        if bad: raise SystemExit('\n'.join(bad))
        views[found] = crops
        if found: print(f'cells found in {cell.sum()} of {len(cell)} pictures; the rest are taken as they are')
    return views

def one(job):
    "Train without a source and classify it: rows of its pictures, and the classes said."
    name, source, seed, args = job
    import torch
    from cblc.classifier import fit_classifier
    from cblc.learn.settings import fit_settings
    torch.set_num_threads(1)
    recipe, found = PEERS[name]; out = (pictures.center == source).to_numpy(); crops = views[found]
    s = fit_settings(recipe=recipe, size=args.size, epochs=args.epochs, seed=seed, pretrained=False, threads=1, lr=args.lr, batch=args.batch)
    clf = fit_classifier(crops[~out], pictures.label[~out].tolist(), settings=s, vocabulary=None)
    return name, source, seed, clf.predict(crops[out], adapt=True, progress=False).category.to_numpy(str)

def weighted_f1(truth, said, at):
    "Weighted F1 (scikit-learn's) of each row of positions `at`, from counts."
    names = np.unique(np.r_[truth, said]); n = len(names); t, p = np.searchsorted(names, truth)[at], np.searchsorted(names, said)[at]
    counts = np.stack([np.bincount(k, minlength=n*n).reshape(n, n) for k in t*n + p])
    hit, of, named = counts.diagonal(axis1=1, axis2=2), counts.sum(2), counts.sum(1)
    return (2*hit/np.maximum(of + named, 1)*of).sum(1)/of.sum(1)

def table(got, pictures, n_boot=2000):
    "Mean over seeds of each peer and source, with draws that share their pictures between peers."
    rng, scores, draws = np.random.default_rng(0), {}, {}
    for source in SOURCES:
        truth = pictures.label[pictures.center == source].to_numpy(str); at = rng.integers(len(truth), size=(n_boot, len(truth)))
        for name in PEERS:
            said = [r for (n, s, _), r in got.items() if (n, s) == (name, source)]
            scores[name, source], draws[name, source] = (np.mean([weighted_f1(truth, r, i) for r in said], axis=0) for i in (np.arange(len(truth))[None], at))
            scores[name, source] = scores[name, source][0]
    for name in PEERS: scores[name, 'mean'], draws[name, 'mean'] = (np.mean([t[name, s] for s in SOURCES], axis=0) for t in (scores, draws))
    return scores, draws

def main():
    global pictures, views
    from cblc.core.engine import cores, progress_bar
    from cblc.sources.public import public_root, read_five_class
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for k, v in dict(seeds=3, per_class=200, epochs=8, size=64, jobs=cores(), batch=32).items():
        ap.add_argument(f'--{k.replace("_", "-")}', type=int, default=v)
    ap.add_argument('--lr', type=float, default=2e-3); ap.add_argument('--quick', action='store_true'); args = ap.parse_args()
    if public_root() is None: raise SystemExit('no public images here; set CBLC_DATA to their folder (data/README.md)')
    if args.quick: args.seeds, args.per_class, args.epochs, args.size = 1, 12, 1, 32
    t = time.time(); pictures = read_five_class(per_class=args.per_class); views = read(pictures, args.size)
    print(pictures.groupby(['center', 'label']).size().unstack(fill_value=0).to_string(), f'\nread in {time.time()-t:.0f} s')
    jobs = [(n, s, k, args) for k in range(args.seeds) for n in PEERS for s in SOURCES]
    with multiprocessing.get_context('fork').Pool(args.jobs, maxtasksperchild=1) as pool:
        got = {r[:3]: r[3] for r in progress_bar(pool.imap_unordered(one, jobs), 'training', len(jobs))}
    scores, draws = table(got, pictures); ends = lambda d: '{:.3f}-{:.3f}'.format(*np.quantile(d, [.025, .975]))
    print(f'\nweighted F1 on the source left out; CPU, {args.seeds} seeds, {args.epochs} epochs, {args.size} px, {time.time()-t:.0f} s')
    for name in PEERS: print(f'{name:20s}', *(f'{s} {scores[name, s]:.3f} [{ends(draws[name, s])}]' for s in (*SOURCES, 'mean')), sep='  ')
    for peer in ('plain', 'p1'):
        print(f'cblc less {peer}:', *(f'{s} {scores["cblc", s]-scores[peer, s]:+.3f} [{ends(draws["cblc", s]-draws[peer, s])}]' for s in (*SOURCES, 'mean')), sep='  ')
    print(json.dumps({n: round(scores[n, 'mean'], 4) for n in ('plain', 'p1', 'cblc')} | dict(by_source={n: {s: round(scores[n, s], 4) for s in SOURCES} for n in PEERS})))

if __name__ == '__main__': main()
