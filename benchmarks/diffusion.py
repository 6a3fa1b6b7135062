"""The diffusion classifier against EfficientNet-B0, on the same splits, crops and augmentation.

    python benchmarks/diffusion.py in-domain|low-data|anomaly|shift|cost [--train] [--steps N] [--epochs N] [--seed 0] [--arch TIMM]
                                   [--device auto] [--threads N] [--work DIR] [--results FILE] [--quick]

in-domain  ten fine classes of PBC (without IG and NEUTROPHIL), split by a hash of the file name: macro F1 on the test part
low-data   10, 20 and 50 pictures a class, --seeds draws of them, --jobs at a time: balanced accuracy on --cells/10 of each class's test cells
anomaly    a class held out of training (--hold-out ERB, then PMY; LMU: leukemic blasts of AML-LMU, nothing held out), told from the
           test part by each model's scores
shift      trained on PBC's five classes, tested on bcisc and segmentation_wbc: balanced accuracy
cost       the published protocol and ours with the same weights on test cells, --cells/20 a class: runs of the network and seconds a cell

Weights: those that ship for in-domain, anomaly (ERB, LMU) and cost, unless --train. Pictures come as single cells, found, lit alike and
at one scale a source (`SIZED` of cblc.cells.crops), at 64 px. PBC names no patients, so figures flatter all models alike. Intervals: bootstrap
over pictures (in low-data over draws of training cells, too), 2,000 draws (AUC: 200, cost: 500). --work keeps the crops, and the models
of all but low-data, for the next command and for the same one after a stop. --results adds the table to a JSON file; diffusion/03_classifier
draws from benchmarks/diffusion.json.
"""
import argparse, json, multiprocessing, sys, time
from dataclasses import replace
from functools import partial
from pathlib import Path
import numpy as np, pandas as pd, torch
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score, roc_curve
from cblc.core.bundle import shipped
from cblc.classifier import fit_classifier
from cblc.cells.crops import SIZED
from cblc.core.images import read_image
from cblc.diffusion.classifier import DiffusionSettings, fit_diffusion, load_diffusion, published_errors
from cblc.core.engine import cores, progress_bar
from cblc.sources.public import FINE_CLASSES, FIVE_CLASSES, split_by_name, public_root, read_five_class, read_pbc
from cblc.diffusion.racing import fit_bank
from cblc.cells.singles import as_crops, read_singles
from cblc.diffusion.student import Relay, fit_student
from cblc.learn.settings import fit_settings

# the pictures

def single_cells(a, paths, labels, names, centers, tag):
    "Crops, labels and part of the pictures, read once and kept in the work folder."
    at = kept(a, tag, a.size, f'{len(paths)}.npz')
    if at and at.is_file():
        z = np.load(at); return z['x'], z['y'], z['part']
    x, rows, found, bad = read_singles(list(paths), replace(SIZED, size=a.size), list(centers))
    y, part = np.asarray(labels, str)[rows], np.array([split_by_name(names[i]) for i in rows])
    print(f'{tag}: {len(x)} pictures, {int((~found).sum())} without a cell, {len(bad)} unreadable', flush=True)
    if at: at.parent.mkdir(parents=True, exist_ok=True); np.savez(at, x=x, y=y, part=part)
    return x, y, part

def pbc_table(a, labels):
    "PBC's pictures of some labels."
    t = read_pbc()[0]; t = t[t.label.isin(list(labels))]
    return (t.groupby('label').head(24) if a.quick else t).reset_index(drop=True)

def pbc_cells(a, classes={k: k for k in FINE_CLASSES}):
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
    return fit_settings(**dict(recipe='plain', arch=a.arch, size=a.size, epochs=a.epochs, seed=like.seed, pretrained=False, device=a.device, threads=a.threads) | same | kw)

def fit_cnn(x, y, valid, s, out=None):
    return fit_classifier(x, y.tolist(), settings=s, vocabulary=None, valid=(valid[0], valid[1].tolist(), None), out=out)

def fit_generative(x, y, valid, s, out=None):
    return fit_diffusion(x, y.tolist(), settings=s, vocabulary=None, valid=(valid[0], valid[1].tolist(), None), out=out)

def kept(a, *name): # where crops or a model's checkpoint stay for the next command, or for the same after a stop
    return Path(a.work)/'_'.join(map(str, name)) if a.work else None

def fit_both(a, train, valid, bundle=None):
    "A diffusion classifier, trained or as it ships, and a discriminative one with the same augmentation."
    t = time.time(); s = diffusion_settings(a)
    d = shipped_or_none(a, bundle) or fit_generative(*train, valid, s, kept(a, 'diffusion', len(train[0])))
    how = d.settings or s
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

def _again(y, rng): # draw pictures again, within each class
    at = np.arange(len(y))
    for k in np.unique(y): i = np.flatnonzero(y == k); at[i] = rng.choice(i, len(i))
    return at

def row(model, value, draws, **more): # of the table: a figure, its 95 % interval, and what else there is to say
    low, high = np.quantile(draws, [.025, .975]); return dict(model=model, value=float(value), low=float(low), high=float(high), **more)

def compared(score, truth, said, n=2000): # said: name -> answers; the first is ours, the last the peer it is set against
    v, draws = draws_of(score, truth, *said.values(), n=n); first, *_, last = said
    return [row(name, x, d) for name, x, d in zip(said, v, draws.T)] + [row(f'{first} less {last}', v[0]-v[-1], draws[:, 0]-draws[:, -1])]

def names_of(model, x): return np.array(model.leaves.names)[model.probabilities(x).argmax(1)]

def by_look(d, x): return np.array(d.leaves.names)[d.head_start(x).argmax(1)] # without the denoiser

macro_f1 = partial(f1_score, average='macro')

# the questions: each answers with a dict for the last line, and with the rows of its table

def in_domain(a):
    part, _ = pbc_cells(a); d, c = fit_both(a, part('train'), part('valid'), 'diffusion'); x, y = part('test')
    rows = compared(macro_f1, y, {'diffusion': names_of(d, x), 'look alone': by_look(d, x), a.arch: names_of(c, x)},
                    n=200 if a.quick else 2000)
    return dict(macro_f1=rows[0]['value'], macro_f1_cnn=rows[2]['value']), rows

def low_run(a, train, valid, test, job):
    "One draw of few cells: which test cells each model has right. The classifier sees twice as many crops as the diffusion model does."
    n, seed = job; tr, va = few(train[1], n, seed), few(valid[1], max(2, n//4), seed); pick = lambda p, i: (p[0][i], p[1][i])
    steps = max(20, a.steps//12)
    s = diffusion_settings(a, seed=seed, steps=steps, batch=32, early=2.5, lr=3e-3, threads=1 if a.jobs > 1 else a.threads)
    d = fit_generative(*pick(train, tr), pick(valid, va), s)
    c = fit_cnn(*pick(train, tr), pick(valid, va), cnn_settings(a, s, epochs=max(2, 2*steps*s.batch//len(tr)), threads=s.threads))
    return n, seed, np.stack([names_of(d, test[0]), by_look(d, test[0]), names_of(c, test[0])]) == test[1]

def low_data(a):
    part, _ = pbc_cells(a); test = part('test'); i = few(test[1], a.cells//10, 0); test = test[0][i], test[1][i]
    out, rows, models = {}, [], ('diffusion', 'look alone', a.arch)
    work, jobs = partial(low_run, a, part('train'), part('valid'), test), [(n, seed) for n in (50, 20, 10) for seed in range(a.seeds)]
    if a.jobs > 1:
        with multiprocessing.get_context('spawn').Pool(a.jobs, maxtasksperchild=1) as pool:
            got = list(progress_bar(pool.imap_unordered(work, jobs), 'draws', len(jobs)))
    else: got = [work(j) for j in jobs]
    for n in (10, 20, 50): # intervals over draws of the training cells and over pictures
        right = np.stack([r for m, _, r in sorted(got, key=lambda g: g[:2]) if m == n]); rng = np.random.default_rng(0)
        score = lambda r: np.mean([r[..., test[1] == k].mean((0, 2)) for k in np.unique(test[1])], 0)
        v, draws = score(right), np.array([score(right[rng.integers(a.seeds, size=a.seeds)][..., _again(test[1], rng)]) for _ in range(2000)])
        each = [score(r[None]).round(3).tolist() for r in right]
        rows += [row(k, v[j], draws[:, j], a_class=n, each=[e[j] for e in each])
                 for j, k in enumerate(models)] + [row(f'diffusion less {a.arch}', v[0]-v[2], draws[:, 0]-draws[:, 2], a_class=n)]
        out[str(n)] = dict(diffusion=float(v[0]), cnn=float(v[2]))
    return out, rows

def cnn_scores(c, x, train):
    "Anomaly scores of a discriminative network: probability, energy, distance of features to the classes' means (Mahalanobis, Lee et al. 2018)."
    from scipy.special import logsumexp
    z, p, body = c.logits(x, progress=False), c.probabilities(x, progress=False), c.net.body.eval()
    def features(v):
        got = []
        with torch.inference_mode():
            for i in range(0, len(v), 128):
                u = (torch.from_numpy(v[i:i+128]).permute(0, 3, 1, 2).float() - c.net.mean.view(1, -1, 1, 1))/c.net.std.view(1, -1, 1, 1)
                got.append(body.forward_head(body.forward_features(u), pre_logits=True).numpy())
        return np.concatenate(got)
    f, g = features(train[0]), features(x); names, at = np.unique(train[1], return_inverse=True)
    mean = np.stack([f[at == k].mean(0) for k in range(len(names))])
    inv = np.linalg.pinv(np.cov((f - mean[at]).T) + 1e-3*np.eye(f.shape[1]))
    return {'max probability': 1-p.max(1), 'energy': -logsumexp(z, 1),
            'feature distance': np.stack([np.einsum('ij,jk,ik->i', g-m, inv, g-m) for m in mean], 1).min(1)}

LMU = dict(MYO='blast', MOB='blast', MON='MO', LYT='LY', NGS='SNE', NGB='BNE', EOS='EO', BAS='BA', EBO='ERB', PMO='PMY',
           MYB='MY', MMZ='MMY')

def foreign_cells(a, x, y, part):
    "The cells that no model was shown; and, of another laboratory, cells of the kinds that it was."
    if a.hold_out != 'LMU': return x[(y == a.hold_out) & (part == 'test')], x[:0]
    t = [(p, LMU[k]) for p in sorted((public_root()/'aml_lmu').rglob('*.tiff'))
         if (k := p.name.split('_')[0]) in LMU and '___' not in p.name] # without the copies that somebody augmented
    paths, kinds = zip(*t); x, y, _ = single_cells(a, paths, kinds, [p.name for p in paths], ['lmu']*len(t), 'lmu')
    return x[y == 'blast'], x[y != 'blast']

def anomaly(a):
    part, (x, y, k) = pbc_cells(a); known = y != a.hold_out; train = part('train', known); foreign, others = foreign_cells(a, x, y, k)
    d, c = fit_both(a, train, part('valid', known), dict(ERB='diffusion_no_erb', LMU='diffusion').get(a.hold_out))
    own = part('test', known)[0]
    cells, n = np.concatenate([own, foreign, others]), len(own) + len(foreign); m = d.meter(cells)
    e = d.errors(cells, d.profile.pairs, m)
    kinds = {'diffusion': 'both', 'diffusion: look alone': 'look', 'diffusion: errors alone': 'errors', 'diffusion: null class': 'null'}
    scores = {name: d.profile.distance(m.look, e, kind) for name, kind in kinds.items()}
    scores['diffusion: max probability'] = 1 - d.race(cells, meter=m).probabilities(d.temperature).max(1)
    scores |= {f'{a.arch}: {name}': v for name, v in cnn_scores(c, cells, train).items()}
    def judge(name, v, away, what):
        v, truth, rng = np.r_[v[:len(own)], v[away]], np.repeat([0, 1], [len(own), len(cells[away])]), np.random.default_rng(0)
        draws = [roc_auc_score(truth, v[i]) for i in (_again(truth, rng) for _ in range(200))]; fpr, tpr, _ = roc_curve(truth, v); j = (tpr-fpr).argmax()
        return row(name, roc_auc_score(truth, v), draws, sensitivity=tpr[j], specificity=1-fpr[j], foreign=len(cells[away]), known=len(own), what=what)
    rows = [judge(name, v, slice(len(own), n), a.hold_out) for name, v in scores.items()]
    best = max(r['value'] for r in rows if not r['model'].startswith('diffusion'))
    if len(others): rows += [judge(name, v, slice(n, None), 'known kinds of that laboratory') for name, v in scores.items()]
    return dict(auc=rows[0]['value'], auc_best_cnn=best), rows

def shift(a):
    part, _ = pbc_cells(a, {k: v for k, v in FIVE_CLASSES.items() if k.isupper()}); d, c = fit_both(a, part('train'), part('valid'))
    t = read_five_class(per_class=12 if a.quick else 0); t = t[t.center != 'pbc128'].reset_index(drop=True)
    fx, fy, _ = single_cells(a, t.path, t.label, t.path.map(str).tolist(), t.center, 'five')
    p = pbc_table(a, [k for k in FIVE_CLASSES if k.isupper()]); whole = lambda paths: as_crops([read_image(q) for q in paths], a.size)
    wx, wy, k = whole(p.path), p.label.map(FIVE_CLASSES).to_numpy(str), p.image_id.map(split_by_name).to_numpy()
    plain = fit_cnn(wx[k == 'train'], wy[k == 'train'], (wx[k == 'valid'], wy[k == 'valid']),
                    fit_settings(recipe='plain', arch=a.arch, size=a.size, epochs=a.epochs, seed=a.seed, pretrained=False,
                                device=a.device, threads=a.threads), kept(a, 'plain', a.arch))
    rows = compared(balanced_accuracy_score, fy,
                    {'diffusion': names_of(d, fx), 'look alone': by_look(d, fx),
                     f'{a.arch}, the same crops and augmentation': names_of(c, fx),
                     'plain, pictures as they are': names_of(plain, whole(t.path))})
    return dict(bal_acc=rows[0]['value'], bal_acc_plain=rows[3]['value']), [r | dict(pictures=len(fy)) for r in rows]

def errors_alone(d, x, y, seed):
    "The same model without the head start of the look: another bank, chosen on validation cells"
    i = few(y, 30, seed); e = d.errors(x[i], np.arange(len(d.looks)))[:, :-1]
    return replace(d, bank=fit_bank(e, np.array([d.leaves.names.index(k) for k in y[i]])))

def cost(a):
    part, _ = pbc_cells(a); train, valid, (x, y) = map(part, ('train', 'valid', 'test'))
    i = few(y, max(1, a.cells//20), a.seed); x, y = x[i], y[i]
    d = shipped_or_none(a, 'diffusion') or fit_generative(*train, valid, diffusion_settings(a), kept(a, 'diffusion', len(train[0])))
    names = np.array(d.leaves.names); d.race(x[:64])
    ran = {} # name -> answers, runs of the network, seconds
    for name, m in {'cblc': d, 'cblc, errors alone': errors_alone(d, *valid, a.seed)}.items():
        t = time.time()
        race = m.race(x)
        ran[name] = names[race.winner], m.runs(race), time.time()-t
    student = fit_student(d, *train, (*valid, None), settings=cnn_settings(a, d.settings), out=kept(a, 'student', a.arch, len(train[0])))
    student.probabilities(x[:64], progress=False)
    t = time.time(); said = names_of(student, x); ran['student'] = said, np.zeros(len(x)), time.time()-t
    t = time.time(); p = Relay(student, d).predict(x)
    ran['student, then cblc'] = p.category.to_numpy(str), np.where(p.handed_over, ran['cblc'][1], 0), time.time()-t
    t = time.time(); e, trials = published_errors(d, x, a.seed, most=200 if a.quick else 2000)
    ran['cytodiffusion'] = names[e.argmin(1)], trials.max(1) if d.net.heads == 'all' else trials.sum(1), time.time()-t
    print(f'{len(x)} cells; {100*p.handed_over.mean():.0f} % handed over by the student')
    *rows, gap = compared(balanced_accuracy_score, y, {k: v[0] for k, v in ran.items()}, n=500)
    rows = [r | dict(runs=n.mean(), seconds=sec/len(x), cells=len(x)) for r, (_, n, sec) in zip(rows, ran.values())] + [gap]
    first, last = rows[0], rows[-2]
    return dict(evaluations_ratio=first['runs']/last['runs'], seconds_ratio=first['seconds']/last['seconds'], bal_acc_difference=gap['value'], student_crops_per_s=1/rows[2]['seconds']), rows

def keep_results(a, ran, rows):
    "Put this command's table beside those of others."
    path = Path(a.results); told = json.loads(path.read_text()) if path.is_file() else {}
    name = ' '.join([a.what] + [a.hold_out]*(a.what == 'anomaly') + [a.arch]*(a.arch != 'efficientnet_b0'))
    path.write_text(json.dumps(told | {name: dict(ran=ran, rows=rows)}, indent=1) + '\n')

QUESTIONS = {'in-domain': in_domain, 'low-data': low_data, 'anomaly': anomaly, 'shift': shift, 'cost': cost}

if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('what', choices=QUESTIONS)
    for k, v in dict(steps=DiffusionSettings.steps, seed=0, seeds=5, epochs=14, size=64, cells=1000, threads=cores(), jobs=1).items():
        ap.add_argument(f'--{k}', type=int, default=v)
    for k, v in dict(arch='efficientnet_b0', device='auto', work='', results='').items(): ap.add_argument(f'--{k}', default=v)
    ap.add_argument('--hold-out', default='ERB', choices=['ERB', 'PMY', 'LMU'])
    ap.add_argument('--train', action='store_true'); ap.add_argument('--quick', action='store_true')
    a = ap.parse_args()
    if public_root() is None: raise SystemExit('no public images here; set CBLC_DATA to their folder (data/README.md)')
    if a.quick: a.steps, a.epochs, a.size, a.seeds, a.cells = 40, 1, 32, 1, 40
    torch.set_num_threads(a.threads); t = time.time(); out, rows = QUESTIONS[a.what](a)
    rounded = lambda v: {k: rounded(x) for k, x in v.items()} if isinstance(v, dict) else round(v, 4) if isinstance(v, float) else v
    device = 'cuda' if a.device != 'cpu' and torch.cuda.is_available() else 'cpu'
    asked = ' '.join(v for k, v in zip(['', *sys.argv[1:]], sys.argv[1:]) if not {k, v} & {'--work', '--results'})
    ran = dict(command=f'python benchmarks/diffusion.py {asked}', device=device, threads=a.threads, jobs=a.jobs,
               steps=a.steps, epochs=a.epochs, size=a.size, seed=a.seed, seconds=round(time.time()-t))
    print(pd.DataFrame(rows).round(4).to_string(index=False)); print(ran)
    if a.results: keep_results(a, ran, [rounded(r) for r in rows])
    print(json.dumps(rounded(out)))
