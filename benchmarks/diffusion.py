"""The diffusion classifier against EfficientNet-B0, on the same splits, crops and augmentation.

    python benchmarks/diffusion.py in-domain|low-data|anomaly|shift|cost [--train] [--steps N] [--epochs N] [--seed 0] [--arch TIMM]
                                   [--device auto] [--threads N] [--work DIR] [--quick]

in-domain  ten fine classes of PBC (without IG and NEUTROPHIL), split by a hash of the file name: macro F1 on the test part
low-data   10, 20 and 50 pictures a class, --seeds draws of them, --jobs at a time: balanced accuracy on the test part
anomaly    a class held out of training (--hold-out ERB, then PMY; LMU: leukemic blasts of AML-LMU, nothing held out), told from the
           test part by each model's scores
shift      trained on PBC's five classes, tested on bcisc and segmentation_wbc: balanced accuracy
cost       the published protocol and ours with the same weights on --cells test cells: runs of the network and seconds a cell

Weights: those that ship for in-domain, anomaly (ERB, LMU) and cost, unless --train. Pictures come as single cells, found, lit alike and
at one scale a source (`SIZED` of cblc.crops), at 64 px. PBC names no patients, so figures flatter all models alike. Intervals: bootstrap
over pictures, 2,000 draws (AUC: 200). --work keeps the crops and the models of all but low-data for the next command, and for the same one after a stop.
"""
import argparse, json, multiprocessing, time
from dataclasses import replace
from functools import partial
from pathlib import Path
import numpy as np, pandas as pd, torch
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score, roc_curve
from cblc.bundle import shipped
from cblc.classifier import fit_classifier
from cblc.crops import SIZED
from cblc.data import read_image
from cblc.diffusion import DiffusionSettings, fit_diffusion, load_diffusion, published_errors
from cblc.engine import cores, progress
from cblc.public import FINE, FIVE, part_of, public_root, read_five_class, read_pbc
from cblc.singles import as_crops, read_singles
from cblc.student import fit_student
from cblc.training import FitSettings

# the pictures

def single_cells(a, paths, labels, names, centers, tag):
    "Crops, labels and part of the pictures, read once and kept in the work folder."
    at = kept(a, tag, a.size, f'{len(paths)}.npz')
    if at and at.is_file():
        z = np.load(at); return z['x'], z['y'], z['part']
    x, rows, found, bad = read_singles(list(paths), replace(SIZED, size=a.size), list(centers))
    y, part = np.asarray(labels, str)[rows], np.array([part_of(names[i]) for i in rows])
    print(f'{tag}: {len(x)} pictures, {int((~found).sum())} without a cell, {len(bad)} unreadable', flush=True)
    if at: at.parent.mkdir(parents=True, exist_ok=True); np.savez(at, x=x, y=y, part=part)
    return x, y, part

def pbc_table(a, labels):
    "PBC's pictures of some labels."
    t = read_pbc()[0]; t = t[t.label.isin(list(labels))]
    return (t.groupby('label').head(24) if a.quick else t).reset_index(drop=True)

def pbc_cells(a, classes={k: k for k in FINE}):
    "PBC's cells, label -> class: a function of the part, and all crops, classes and parts."
    t = pbc_table(a, classes); x, y, part = single_cells(a, t.path, t.label, t.image_id.tolist(), t.center, f'pbc{len(classes)}')
    y = np.array([classes[k] for k in y]); return lambda k, keep=True: (x[(part == k) & keep], y[(part == k) & keep]), (x, y, part)

def few(y, n, seed):
    "Positions of at most n cells a class."
    rng = np.random.default_rng(seed); return np.concatenate([rng.permutation(np.flatnonzero(y == k))[:n] for k in np.unique(y)])

# the models

def diffusion_settings(a, **kw):
    tiny = dict(widths=(32, 48), candidates=(6, 2), bank_cells=40, batch=16) if a.quick else {}
    return DiffusionSettings(**dict(size=a.size, steps=a.steps, precision='bf16', seed=a.seed, device=a.device, threads=a.threads) | tiny | kw)

def cnn_settings(a, like, **kw):
    "A classifier augmented as the diffusion model is."
    same = {k: getattr(like, k) for k in ('stain', 'zoom', 'spin', 'resample', 'balance')}
    return FitSettings(**dict(recipe='plain', arch=a.arch, size=a.size, epochs=a.epochs, seed=like.seed, pretrained=False, device=a.device, threads=a.threads) | same | kw)

def fit_cnn(x, y, valid, s, out=None): return fit_classifier(x, y.tolist(), settings=s, vocabulary=None, valid=(valid[0], valid[1].tolist(), None), out=out)

def fit_generative(x, y, valid, s, out=None): return fit_diffusion(x, y.tolist(), settings=s, vocabulary=None, valid=(valid[0], valid[1].tolist(), None), out=out)

def kept(a, *name): # a folder for a model's checkpoint, so that the next command, or the same after a stop, goes on from there
    return Path(a.work)/'_'.join(map(str, name)) if a.work else None

def fit_both(a, train, valid, bundle=None):
    "A diffusion classifier, trained or as it ships, and a discriminative one with the same augmentation."
    t = time.time(); s = diffusion_settings(a); d = shipped_or_none(a, bundle) or fit_generative(*train, valid, s, kept(a, 'diffusion', len(train[0]))); how = d.settings or s
    t1 = time.time(); c = fit_cnn(*train, valid, cnn_settings(a, how), kept(a, a.arch, len(train[0])))
    print(f'{len(train[0])} cells: diffusion {f"as shipped, {d.settings.steps} steps of {d.settings.batch}" if d.bundle else f"{s.steps} steps of {s.batch}, {t1-t:.0f} s"}; {a.arch} {a.epochs} epochs, {time.time()-t1:.0f} s', flush=True)
    return d, c

def shipped_or_none(a, name):
    "The bundle that ships, unless it is to be trained anew or this is a smoke run."
    if a.train or a.quick or name is None: return None
    try: return replace(load_diffusion(shipped(name)), device=a.device)
    except ValueError: print(f'no bundle {name!r} ships; training')

# figures and their intervals

def draws_of(score, truth, *said, n=2000, seed=0):
    "Score of each row of `said`, and of draws of pictures that all rows share (n x rows)."
    at = np.random.default_rng(seed).integers(len(truth), size=(n, len(truth)))
    return [float(score(truth, s)) for s in said], np.array([[score(truth[i], s[i]) for s in said] for i in at])

def ends(d): return '{:.3f}-{:.3f}'.format(*np.quantile(d, [.025, .975]))

def names_of(model, x): return np.array(model.leaves.names)[model.probabilities(x, show=False).argmax(1)]

macro_f1 = partial(f1_score, average='macro')

# the questions

def in_domain(a):
    part, _ = pbc_cells(a); d, c = fit_both(a, part('train'), part('valid'), 'diffusion'); x, y = part('test')
    (fd, fc), draws = draws_of(macro_f1, y, names_of(d, x), names_of(c, x), n=200 if a.quick else 2000)
    print(f'macro F1 on {len(y)} test cells: diffusion {fd:.3f} [{ends(draws[:, 0])}], {a.arch} {fc:.3f} [{ends(draws[:, 1])}], difference {fd-fc:+.3f} [{ends(draws[:, 0]-draws[:, 1])}]')
    return dict(macro_f1=round(fd, 4), macro_f1_cnn=round(fc, 4))

def low_run(a, train, valid, test, job):
    "One draw of few cells: balanced accuracy of both models. The classifier sees twice as many crops as the diffusion model does."
    n, seed = job; tr, va = few(train[1], n, seed), few(valid[1], max(2, n//4), seed); pick = lambda p, i: (p[0][i], p[1][i])
    steps = max(20, a.steps//12); s = diffusion_settings(a, seed=seed, steps=steps, batch=32, early=2.5, lr=3e-3, threads=1 if a.jobs > 1 else a.threads)
    d = fit_generative(*pick(train, tr), pick(valid, va), s); c = fit_cnn(*pick(train, tr), pick(valid, va), cnn_settings(a, s, epochs=max(2, 2*steps*s.batch//len(tr)), threads=s.threads))
    return [dict(n=n, seed=seed, model=k, bal_acc=balanced_accuracy_score(test[1], names_of(m, test[0]))) for k, m in (('diffusion', d), ('cnn', c))]

def low_data(a):
    part, _ = pbc_cells(a); test = part('test'); i = few(test[1], a.cells//10, 0); test = test[0][i], test[1][i]; out = {}
    work, jobs = partial(low_run, a, part('train'), part('valid'), test), [(n, seed) for n in (50, 20, 10) for seed in range(a.seeds)]
    if a.jobs > 1:
        with multiprocessing.get_context('spawn').Pool(a.jobs, maxtasksperchild=1) as pool: got = list(progress(pool.imap_unordered(work, jobs), 'draws', len(jobs)))
    else: got = [work(j) for j in jobs]
    t = pd.DataFrame(sum(got, [])).pivot_table(index=['n', 'seed'], columns='model', values='bal_acc'); print(t.round(3).to_string())
    for n, g in t.groupby('n'):
        diff = (g.diffusion - g.cnn).to_numpy(); b = np.random.default_rng(0).choice(diff, (2000, len(diff))).mean(1); out[str(n)] = g.mean().round(4).to_dict()
        print(f'{n} a class: diffusion {g.diffusion.mean():.3f}, {a.arch} {g.cnn.mean():.3f}, difference {diff.mean():+.3f} [{ends(b)}] over {len(g)} draws')
    return out

def cnn_scores(c, x, train):
    "Anomaly scores of a discriminative network: probability, energy, distance of features to the classes' means (Mahalanobis, Lee et al. 2018)."
    from scipy.special import logsumexp
    z, p, body = c.logits(x, show=False), c.probabilities(x, show=False), c.net.body.eval()
    def features(v):
        got = []
        with torch.inference_mode():
            for i in range(0, len(v), 128):
                u = (torch.from_numpy(v[i:i+128]).permute(0, 3, 1, 2).float() - c.net.mean.view(1, -1, 1, 1))/c.net.std.view(1, -1, 1, 1)
                got.append(body.forward_head(body.forward_features(u), pre_logits=True).numpy())
        return np.concatenate(got)
    f, g = features(train[0]), features(x); names, at = np.unique(train[1], return_inverse=True); mean = np.stack([f[at == k].mean(0) for k in range(len(names))])
    inv = np.linalg.pinv(np.cov((f - mean[at]).T) + 1e-3*np.eye(f.shape[1]))
    return {'max probability': 1-p.max(1), 'energy': -logsumexp(z, 1), 'feature distance': np.stack([np.einsum('ij,jk,ik->i', g-m, inv, g-m) for m in mean], 1).min(1)}

def foreign_cells(a, x, y, part):
    "The cells that no model was shown."
    if a.hold_out != 'LMU': return x[(y == a.hold_out) & (part == 'test')]
    paths = sorted(p for k in ('MYO', 'MOB') for p in (public_root()/'aml_lmu').rglob(f'*{k}*.tiff'))[:48 if a.quick else None]
    return single_cells(a, paths, ['blast']*len(paths), [p.name for p in paths], ['lmu']*len(paths), 'lmu')[0]

def anomaly(a):
    part, (x, y, k) = pbc_cells(a); known = y != a.hold_out; train = part('train', known); foreign = foreign_cells(a, x, y, k)
    d, c = fit_both(a, train, part('valid', known), dict(ERB='diffusion_no_erb', LMU='diffusion').get(a.hold_out)); own = part('test', known)[0]
    both, truth = np.concatenate([own, foreign]), np.repeat([0, 1], [len(own), len(foreign)]); m = d.meter(both)
    kinds = {'diffusion': 'both', 'diffusion: look alone': 'look', 'diffusion: errors alone': 'errors', 'diffusion: null class': 'null'}
    e = d.errors(both, d.profile.pairs, m); scores = {name: d.profile.distance(m.look, e, kind) for name, kind in kinds.items()} | {'diffusion: max probability': 1-d.race(both, meter=m).probabilities(d.temperature).max(1)}
    scores |= {f'{a.arch}: {name}': v for name, v in cnn_scores(c, both, train).items()}; auc = {}
    for name, v in scores.items():
        (auc[name],), draws = draws_of(roc_auc_score, truth, v, n=200); fpr, tpr, _ = roc_curve(truth, v); j = (tpr-fpr).argmax()
        print(f'{name:34s} AUC {auc[name]:.3f} [{ends(draws)}], at the Youden point sensitivity {tpr[j]:.3f}, specificity {1-fpr[j]:.3f}')
    print(f'{a.hold_out} (n={len(foreign)}) against {len(own)} test cells of the known classes')
    return dict(auc=round(auc['diffusion'], 4), auc_best_cnn=round(max(v for name, v in auc.items() if not name.startswith('diffusion')), 4))

def shift(a):
    part, _ = pbc_cells(a, {k: v for k, v in FIVE.items() if k.isupper()}); d, c = fit_both(a, part('train'), part('valid'))
    t = read_five_class(per_class=12 if a.quick else 0); t = t[t.center != 'pbc128'].reset_index(drop=True)
    fx, fy, _ = single_cells(a, t.path, t.label, t.path.map(str).tolist(), t.center, 'five')
    p = pbc_table(a, [k for k in FIVE if k.isupper()]); whole = lambda paths: as_crops([read_image(q) for q in paths], a.size)
    wx, wy, k = whole(p.path), p.label.map(FIVE).to_numpy(str), p.image_id.map(part_of).to_numpy()
    plain = fit_cnn(wx[k == 'train'], wy[k == 'train'], (wx[k == 'valid'], wy[k == 'valid']), FitSettings(recipe='plain', arch=a.arch, size=a.size, epochs=a.epochs, seed=a.seed, pretrained=False, device=a.device, threads=a.threads), kept(a, 'plain', a.arch))
    s, draws = draws_of(balanced_accuracy_score, fy, names_of(d, fx), names_of(c, fx), names_of(plain, whole(t.path)), n=200)
    for i, name in enumerate(('diffusion', f'{a.arch}, same crops and augmentation', 'plain, pictures as they are')): print(f'{name:50s} balanced accuracy {s[i]:.3f} [{ends(draws[:, i])}] on {len(fy)} pictures of bcisc and segmentation_wbc')
    return dict(bal_acc=round(s[0], 4), bal_acc_plain=round(s[2], 4))

def crops_a_second(model, x, n=2000):
    "Crops that a model classifies in a second, after a first look."
    many = np.resize(x, (n, *x.shape[1:])); model.probabilities(many[:64], show=False)
    t = time.time(); model.probabilities(many, show=False); return n/(time.time()-t)

def cost(a):
    part, _ = pbc_cells(a); x, y = part('test'); i = few(y, max(1, a.cells//20), a.seed); x, y = x[i], y[i]
    d = shipped_or_none(a, 'diffusion') or fit_generative(*part('train'), part('valid'), diffusion_settings(a)); names = np.array(d.leaves.names); d.race(x[:4])
    t = time.time(); race = d.race(x); ours = time.time()-t
    t = time.time(); e, trials = published_errors(d, x, a.seed, most=200 if a.quick else 2000); theirs = time.time()-t
    runs = d.runs(race), trials.max(1) if d.net.heads == 'all' else trials.sum(1)
    s, draws = draws_of(balanced_accuracy_score, y, names[race.winner], names[e.argmin(1)], n=500)
    for name, n, sec, acc in zip(('cblc', 'cytodiffusion'), runs, (ours, theirs), s): print(f'{name:14s} {n.mean():8.2f} runs of the network a cell, {sec/len(x):.4f} s a cell, balanced accuracy {acc:.3f} (n={len(x)}, {d.meter(x[:1]).device}, {torch.get_num_threads()} threads)')
    train = part('train'); k = few(train[1], 100 if a.device == 'cpu' and not a.train else len(train[1]), 0)
    student = fit_student(d, train[0][k], train[1][k], (*part('valid'), None), settings=cnn_settings(a, d.settings, epochs=max(1, a.epochs//4))); rate = crops_a_second(student, x)
    print(f'student: {rate:.0f} crops/s, balanced accuracy {balanced_accuracy_score(y, names_of(student, x)):.3f}; the protocols differ by {s[0]-s[1]:+.4f} [{ends(draws[:, 0]-draws[:, 1])}]')
    return dict(evaluations_ratio=round(runs[0].sum()/runs[1].sum(), 4), seconds_ratio=round(ours/theirs, 4), bal_acc_difference=round(s[0]-s[1], 4), student_crops_per_s=round(rate, 1))

QUESTIONS = {'in-domain': in_domain, 'low-data': low_data, 'anomaly': anomaly, 'shift': shift, 'cost': cost}

if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter); ap.add_argument('what', choices=QUESTIONS)
    for k, v in dict(steps=DiffusionSettings.steps, seed=0, seeds=5, epochs=14, size=64, cells=1000, threads=cores(), jobs=1).items(): ap.add_argument(f'--{k}', type=int, default=v)
    for k, v in dict(arch='efficientnet_b0', device='auto', work='').items(): ap.add_argument(f'--{k}', default=v)
    ap.add_argument('--hold-out', default='ERB', choices=['ERB', 'PMY', 'LMU']); ap.add_argument('--train', action='store_true'); ap.add_argument('--quick', action='store_true'); a = ap.parse_args()
    if public_root() is None: raise SystemExit('no public images here; set CBLC_DATA to their folder (data/README.md)')
    if a.quick: a.steps, a.epochs, a.size, a.seeds, a.cells = 40, 1, 32, 1, 40
    torch.set_num_threads(a.threads); t = time.time(); out = QUESTIONS[a.what](a)
    print(f'{a.what}, seed {a.seed}, {a.size} px, {time.time()-t:.0f} s'); print(json.dumps(out))
