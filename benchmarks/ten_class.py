"""Ten fine classes of one laboratory: is the classifier any good at home?

    python benchmarks/ten_class.py [--recipe home] [--view whole|cell|sized] [--epochs 30] [--size 96] [--seed 0] [--threads N] [--out DIR] [--quick]

PBC (pbc128) without IG and NEUTROPHIL, whose stage is not told: 70 % train, 15 % validation (best epoch, temperature), 15 % test by a
hash of the file name, from random weights, and without a recipe's adaptation, since the laboratory is not new. PBC names no patients,
so cells of one donor are on both sides and the figure flatters. --view takes another view than the recipe's. With --out, a run that was stopped goes on by the same command.
Macro F1 on the test part, 95 % interval by bootstrap over pictures (2,000 draws).
"""
import argparse, json, time
import numpy as np, torch
from sklearn.metrics import classification_report, f1_score

if __name__ == '__main__':
    from cblc.classifier import fit_classifier
    from cblc.core.engine import cores
    from cblc.sources.public import FINE_CLASSES, split_by_name, public_root, read_pbc
    from cblc.cells.singles import read_singles, view_settings
    from cblc.learn.settings import fit_settings
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--recipe', default='home'); ap.add_argument('--view'); ap.add_argument('--out')
    ap.add_argument('--quick', action='store_true')
    for k, v in dict(epochs=30, size=96, seed=0, threads=cores()).items(): ap.add_argument(f'--{k}', type=int, default=v)
    a = ap.parse_args(); t = time.time()
    if public_root() is None: raise SystemExit('no public images here; set CBLC_DATA to their folder (data/README.md)')
    cells = read_pbc()[0]; cells = cells[cells.label.isin(FINE_CLASSES)].reset_index(drop=True)
    if a.quick: cells, a.epochs, a.size = cells.groupby('label').head(20).reset_index(drop=True), 1, 32
    s = fit_settings(recipe=a.recipe, view=a.view, size=a.size, epochs=a.epochs, seed=a.seed, pretrained=False, threads=a.threads)
    crops, rows, found, bad = read_singles(cells.path.tolist(), view_settings(s.prediction.view, a.size), cells.center.tolist())
    cells = cells.iloc[rows]; part = cells.image_id.map(split_by_name).to_numpy(); label = cells.label.to_numpy(str)
    print(f'{len(cells)} pictures ({len(bad)} unreadable, {int((~found).sum()) if s.prediction.view != "whole" else 0} without a cell), read in {time.time()-t:.0f} s:', {k: int((part == k).sum()) for k in ('train', 'valid', 'test')}, flush=True)
    take = lambda k: (crops[part == k], label[part == k].tolist()); t = time.time()
    clf = fit_classifier(*take('train'), settings=s, vocabulary=None, valid=(*take('valid'), None), out=a.out); trained = time.time() - t
    truth, said = label[part == 'test'], clf.predict(crops[part == 'test'], progress=False).category.to_numpy(str)
    print(classification_report(truth, said, digits=3)); rng = np.random.default_rng(a.seed)
    draws = [f1_score(truth[i], said[i], average='macro') for i in rng.integers(len(truth), size=(200 if a.quick else 2000, len(truth)))]
    low, high = np.quantile(draws, [.025, .975]); f1 = f1_score(truth, said, average='macro')
    print(f'{a.recipe}, {a.epochs} epochs at {a.size} px, seed {a.seed}, {torch.get_num_threads()} CPU threads, trained in {trained:.0f} s: macro F1 {f1:.3f} [{low:.3f}-{high:.3f}]')
    print(json.dumps(dict(macro_f1=round(float(f1), 4), low=round(float(low), 4), high=round(float(high), 4), n=len(truth))))
