"""The diffusion classifier against EfficientNet-B0, on the same splits, crops and augmentation.

    python benchmarks/diffusion.py in-domain|low-data|anomaly|shift|cost [--train] [--steps N] [--seed 0] [--arch TIMM] [--device auto] [--work DIR] [--quick]

in-domain  ten fine classes of PBC (without IG and NEUTROPHIL), split by a hash of the file name: macro F1 on the test part
low-data   10, 20 and 50 pictures a class, --seeds draws of them: balanced accuracy on the test part
anomaly    a class held out of training (--hold-out ERB, then PMY; LMU: leukemic blasts of AML-LMU, nothing held out), told from the test part by each model's scores
shift      trained on PBC's five classes, tested on bcisc and segmentation_wbc: balanced accuracy
cost       the published protocol and ours with the same weights on --cells test cells: runs of the network and seconds a cell

Weights: those that ship for in-domain, anomaly (ERB) and cost, unless --train. Pictures come as single cells, found and lit alike
(cblc.singles), at 64 px. PBC names no patients, so figures flatter all models alike. Intervals: bootstrap over pictures, 2,000 draws.
"""
import argparse, json, time
from dataclasses import replace
from pathlib import Path
import numpy as np, pandas as pd, torch
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score, roc_curve

FINE = dict(BA='BA', EO='EO', ERB='ERB', LY='LY', MO='MO', PMY='PMY', MY='MY', MMY='MMY', BNE='BNE', SNE='SNE')

def single_cells(a, paths, labels, names, centers, tag):
    "Crops, labels and part of the pictures, read once and kept in the work folder."
    from cblc.crops import STANDARD
    from cblc.public import part_of
    from cblc.singles import read_singles
    kept = Path(a.work)/f'{tag}_{a.size}_{len(paths)}.npz' if a.work else None
    if kept and kept.is_file(): z = np.load(kept); return z['x'], z['y'], z['part']
    x, rows, found, bad = read_singles(list(paths), replace(STANDARD, size=a.size), list(centers)); y = np.asarray(labels, str)[rows]; part = np.array([part_of(names[i]) for i in rows])
    print(f'{tag}: {len(x)} pictures, {int((~found).sum())} without a cell, {len(bad)} unreadable', flush=True)
    if kept: kept.parent.mkdir(parents=True, exist_ok=True); np.savez(kept, x=x, y=y, part=part)
    return x, y, part

def read_pbc_cells(a, classes=FINE):
    "PBC's cells of some classes: label -> class."
    from cblc.public import read_pbc
    t = read_pbc()[0]; t = t[t.label.isin(list(classes))].reset_index(drop=True)
    if a.quick: t = t.groupby('label').head(24).reset_index(drop=True)
    x, y, part = single_cells(a, t.path, t.label, t.image_id.tolist(), t.center, 'pbc_' + ('five' if 'NEUTROPHIL' in classes else 'ten'))
    return x, np.array([classes[k] for k in y]), part

def few(y, n, seed):
    "Positions of n cells a class."
    rng = np.random.default_rng(seed); return np.concatenate([rng.permutation(np.flatnonzero(y == k))[:n] for k in np.unique(y)])

def settings(a, **kw):
    from cblc.diffusion import DiffusionSettings
    tiny = dict(widths=(32, 48), candidates=(6, 2), bank_cells=40, batch=16) if a.quick else {}
    return DiffusionSettings(**dict(size=a.size, steps=a.steps, seed=a.seed, device=a.device) | tiny | kw)

def fit_both(a, x, y, valid, seed=0, steps=None, cnn_epochs=None, diffusion=None):
    "A diffusion classifier and an EfficientNet with the same augmentation."
    from cblc.diffusion import fit_diffusion
    from cblc.classifier import fit_classifier
    from cblc.training import FitSettings
    t = time.time(); s = settings(a, seed=seed, **({} if steps is None else dict(steps=steps)))
    d = diffusion or fit_diffusion(x, y.tolist(), settings=s, vocabulary=None, valid=(*valid, None)); t1 = time.time()
    f = FitSettings(recipe='plain', arch=a.arch, size=a.size, epochs=cnn_epochs or a.epochs, stain=s.stain, zoom=s.zoom, spin=s.spin, balance=s.balance, seed=seed, pretrained=False, device=a.device)
    c = fit_classifier(x, y.tolist(), settings=f, vocabulary=None, valid=(valid[0], valid[1].tolist(), None))
    print(f'{len(x)} cells: diffusion {t1-t:.0f} s ({"as shipped" if diffusion else f"{s.steps} steps of {s.batch}"}), {a.arch} {time.time()-t1:.0f} s ({f.epochs} epochs)', flush=True)
    return d, c

def shipped_or_none(a, name):
    "The bundle that ships, unless it is to be trained anew or this is a smoke run."
    from cblc.bundle import shipped
    from cblc.diffusion import load_diffusion
    if a.train or a.quick: return None
    try: return replace(load_diffusion(shipped(name)), device=a.device)
    except ValueError: print(f'no bundle {name!r} ships; training'); return None

def interval(score, truth, *said, n=2000, seed=0):
    "Score of each row of `said`, and draws over pictures that all rows share."
    rng = np.random.default_rng(seed); at = rng.integers(len(truth), size=(n, len(truth)))
    return [score(truth, s) for s in said], np.array([[score(truth[i], s[i]) for s in said] for i in at])

def ends(d): return '{:.3f}-{:.3f}'.format(*np.quantile(d, [.025, .975]))

def in_domain(a):
    x, y, part = read_pbc_cells(a); take = lambda k: (x[part == k], y[part == k])
    d, c = fit_both(a, *take('train'), take('valid'), a.seed, diffusion=shipped_or_none(a, 'diffusion')); tx, ty = take('test')
    macro = lambda t, p: f1_score(t, p, average='macro'); (fd, fc), draws = interval(macro, ty, d.predict(tx).category.to_numpy(str), c.predict(tx, show=False).category.to_numpy(str), n=200 if a.quick else 2000)
    print(f'macro F1 on {len(ty)} test cells: diffusion {fd:.3f} [{ends(draws[:, 0])}], {a.arch} {fc:.3f} [{ends(draws[:, 1])}], difference [{ends(draws[:, 0]-draws[:, 1])}]')
    return dict(macro_f1=round(fd, 4), macro_f1_cnn=round(fc, 4))

def low_data(a):
    x, y, part = read_pbc_cells(a); rows, out = [], {}; test = np.flatnonzero(part == 'test'); test = test[few(y[test], a.cells//10, 0)]
    for n in (10, 20, 50):
        for seed in range(a.seeds):
            tr = np.flatnonzero(part == 'train'); tr = tr[few(y[tr], n, seed)]; va = np.flatnonzero(part == 'valid'); va = va[few(y[va], max(2, n//4), seed)]
            steps = max(20, a.steps//8); d, c = fit_both(a, x[tr], y[tr], (x[va], y[va]), seed, steps, max(2, steps*64//len(tr)//8))
            for name, m in (('diffusion', d), ('cnn', c)): rows.append(dict(n=n, seed=seed, model=name, bal_acc=balanced_accuracy_score(y[test], m.predict(x[test]).category.to_numpy(str))))
    t = pd.DataFrame(rows).pivot_table(index=['n', 'seed'], columns='model', values='bal_acc'); print(t.round(3).to_string())
    for n, g in t.groupby('n'):
        diff = (g.diffusion - g.cnn).to_numpy(); b = [np.mean(np.random.default_rng(i).choice(diff, len(diff))) for i in range(2000)]
        print(f'{n} a class: diffusion {g.diffusion.mean():.3f}, {a.arch} {g.cnn.mean():.3f}, difference {diff.mean():+.3f} [{ends(b)}] over {len(g)} seeds'); out[str(n)] = dict(diffusion=round(g.diffusion.mean(), 4), cnn=round(g.cnn.mean(), 4))
    return out

def cnn_scores(c, x, train):
    "Anomaly scores of a discriminative network: probability, energy, distance of features to the classes' means (Mahalanobis, Lee et al. 2018)."
    from scipy.special import logsumexp
    z, p = c.logits(x, show=False), c.probabilities(x, show=False); body = c.net.body.eval()
    def features(v):
        got = []
        with torch.inference_mode():
            for i in range(0, len(v), 128): u = (torch.from_numpy(v[i:i+128]).permute(0, 3, 1, 2).float() - c.net.mean.view(1, -1, 1, 1))/c.net.std.view(1, -1, 1, 1); got.append(body.forward_head(body.forward_features(u), pre_logits=True).numpy())
        return np.concatenate(got)
    f, g = features(train[0]), features(x); names = np.unique(train[1]); mean = np.stack([f[train[1] == k].mean(0) for k in names]); centred = f - mean[np.searchsorted(names, train[1])]
    inv = np.linalg.pinv(np.cov(centred.T) + 1e-3*np.eye(f.shape[1])); dist = np.stack([np.einsum('ij,jk,ik->i', g-m, inv, g-m) for m in mean], 1).min(1)
    return {'max probability': 1-p.max(1), 'energy': -logsumexp(z, 1), 'feature distance': dist}

def anomaly(a):
    from cblc.public import public_root
    held = a.hold_out; x, y, part = read_pbc_cells(a); keep = y != held; take = lambda k: (x[keep & (part == k)], y[keep & (part == k)])
    d, c = fit_both(a, *take('train'), take('valid'), a.seed, diffusion=shipped_or_none(a, 'diffusion_no_erb') if held == 'ERB' else shipped_or_none(a, 'diffusion') if held == 'LMU' else None); known = take('test')[0]
    if held == 'LMU':
        paths = sorted(p for k in ('MYO', 'MOB') for p in (public_root()/'aml_lmu').rglob(f'*{k}*.tiff'))[:48 if a.quick else None]; foreign = single_cells(a, paths, ['blast']*len(paths), [p.name for p in paths], ['lmu']*len(paths), 'lmu')[0]
    else: foreign = x[~keep & (part == 'test')]
    both = np.concatenate([known, foreign]); truth = np.repeat([0, 1], [len(known), len(foreign)]); race = d.race(both)
    scores = {'diffusion: null class': d.anomaly(both), 'diffusion: uncertainty': 1-race.probabilities(d.temperature).max(1)} | {f'{a.arch}: {k}': v for k, v in cnn_scores(c, both, take('train')).items()}; auc = {}
    for k, v in scores.items():
        (auc[k],), draws = interval(roc_auc_score, truth, v, n=200); fpr, tpr, _ = roc_curve(truth, v); j = (tpr-fpr).argmax()
        print(f'{k:34s} AUC {auc[k]:.3f} [{ends(draws)}], at the Youden point sensitivity {tpr[j]:.3f}, specificity {1-fpr[j]:.3f}')
    print(f'{held} (n={len(foreign)}) against {len(known)} test cells of the known classes')
    return dict(auc=round(auc['diffusion: null class'], 4), auc_best_cnn=round(max(v for k, v in auc.items() if not k.startswith('diffusion')), 4))

def shift(a):
    from cblc.classifier import fit_classifier
    from cblc.data import read_image
    from cblc.public import FIVE, part_of, read_five_class, read_pbc
    from cblc.singles import as_crops
    from cblc.training import FitSettings
    x, y, part = read_pbc_cells(a, FIVE); take = lambda k: (x[part == k], y[part == k])
    t = read_five_class(per_class=12 if a.quick else 0); t = t[t.center != 'pbc128'].reset_index(drop=True)
    fx, fy, _ = single_cells(a, t.path, t.label, t.path.map(str).tolist(), t.center, 'five'); d, c = fit_both(a, *take('train'), take('valid'), a.seed)
    p = read_pbc()[0]; p = p[p.label.isin(list(FIVE))].reset_index(drop=True)
    if a.quick: p = p.groupby('label').head(24).reset_index(drop=True)
    whole = lambda paths: as_crops([read_image(p) for p in paths], a.size)
    wx, names, k = whole(p.path), p.label.map(FIVE).to_numpy(str), p.image_id.map(part_of).to_numpy(); take = lambda v: (wx[k == v], names[k == v].tolist())
    s = FitSettings(recipe='plain', arch=a.arch, size=a.size, epochs=a.epochs, seed=a.seed, pretrained=False, device=a.device)
    plain = fit_classifier(*take('train'), settings=s, vocabulary=None, valid=(*take('valid'), None))
    said = [d.predict(fx).category.to_numpy(str), c.predict(fx, show=False).category.to_numpy(str), plain.predict(whole(t.path), show=False).category.to_numpy(str)]; s, draws = interval(balanced_accuracy_score, fy, *said, n=200)
    for i, name in enumerate(('diffusion', f"{a.arch}, same crops and augmentation", 'plain, pictures as they are')): print(f'{name:50s} balanced accuracy {s[i]:.3f} [{ends(draws[:, i])}] on {len(fy)} pictures of bcisc and segmentation_wbc')
    return dict(bal_acc=round(s[0], 4), bal_acc_plain=round(s[2], 4))

def cost(a):
    from cblc.diffusion import fit_diffusion, published_errors
    from cblc.student import fit_student
    from cblc.training import FitSettings
    x, y, part = read_pbc_cells(a); take = lambda k: (x[part == k], y[part == k]); test = np.flatnonzero(part == 'test'); test = test[few(y[test], max(1, a.cells//20), a.seed)]
    d = shipped_or_none(a, 'diffusion') or fit_diffusion(*take('train'), settings=settings(a), vocabulary=None, valid=(*take('valid'), None)); names = np.array(d.leaves.names); d.race(x[test[:4]])
    t = time.time(); ours = d.race(x[test]); t_ours = time.time()-t; t = time.time(); e, trials = published_errors(d, x[test], a.seed, most=200 if a.quick else 2000); t_theirs = time.time()-t
    said = names[ours.winner], names[e.argmin(1)]; s, draws = interval(balanced_accuracy_score, y[test], *said, n=500); gap = draws[:, 0]-draws[:, 1]; device = d.meter(x[:1]).device
    for name, runs, sec, acc in (('cytodiffusion', trials.sum(1).mean(), t_theirs, s[1]), ('cblc', ours.evaluations.mean(), t_ours, s[0])): print(f'{name:14s} {runs:8.1f} runs of the network a cell, {sec/len(test):.4f} s a cell, balanced accuracy {acc:.3f} (n={len(test)}, {device}, {torch.get_num_threads()} threads)')
    tr = few(take('train')[1], 10**6 if a.train or a.device != 'cpu' else 100, 0); tx, ty = (v[tr] for v in take('train')); student = fit_student(d, tx, ty, (*take('valid'), None), settings=FitSettings(recipe='plain', arch=a.arch, size=a.size, epochs=max(1, a.epochs//4), pretrained=False, device=a.device))
    many = np.concatenate([x]*(1 + 2000//len(x)))[:2000]; student.probabilities(many[:64], show=False); t = time.time(); student.probabilities(many, show=False); rate = len(many)/(time.time()-t); print(f'student: {rate:.0f} crops/s; balanced accuracy gap of the protocols {s[0]-s[1]:+.4f} [{ends(gap)}]')
    return dict(evaluations_ratio=round(ours.evaluations.sum()/trials.sum(), 4), seconds_ratio=round(t_ours/t_theirs, 4), bal_acc_difference=round(s[0]-s[1], 4), student_crops_per_s=round(rate, 1))

if __name__ == '__main__':
    from cblc.engine import cores
    from cblc.public import public_root
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter); what = {'in-domain': in_domain, 'low-data': low_data, 'anomaly': anomaly, 'shift': shift, 'cost': cost}; ap.add_argument('what', choices=what)
    for k, v in dict(steps=20000, seed=0, seeds=5, epochs=14, size=64, cells=1000).items(): ap.add_argument(f'--{k}', type=int, default=v)
    for k, v in dict(arch='efficientnet_b0', device='auto', work='').items(): ap.add_argument(f'--{k}', default=v)
    ap.add_argument('--hold-out', default='ERB', choices=['ERB', 'PMY', 'LMU']); ap.add_argument('--train', action='store_true'); ap.add_argument('--quick', action='store_true'); a = ap.parse_args()
    if public_root() is None: raise SystemExit('no public images here; set CBLC_DATA to their folder (data/README.md)')
    if a.quick: a.steps, a.epochs, a.size, a.seeds, a.cells = 40, 1, 32, 1, 40
    torch.set_num_threads(cores()); t = time.time(); out = what[a.what](a)
    print(f'{a.what}, seed {a.seed}, {a.size} px, {time.time()-t:.0f} s'); print(json.dumps(out))
