"""Trains the research classifier that ships with cblc, on synthetic marrow and permissive public cells only.

    python recipes/classifier.py --out cblc/assets/classifier [--quick]

Stage 1: crops along true contours of synthetic cells in random styles, and PBC (CC BY 4.0), BCISC (Apache-2.0, slides 3, 6 and 9
left out) and AML-LMU (CC BY 3.0) cells. Stage 2: crops along the shipped segmenter's contours of other synthetic fields, its false
finds as artefacts, and the same real cells. Labels of real cells are what their experts said and no more: 'neutrophil' is N4 or N5.

PBC names no patients, so its split is by file-name hash: 70 % train, 15 % valid, 15 % test. The figures on the card are of the test
part and of synthetic fields never trained on.
"""
import argparse, os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
import numpy as np, pandas as pd
from cblc.classifier import fit_classifier
from cblc.cells.crops import STANDARD, crop_cells
from cblc.core.images import read_image
from cblc.data import VOCABULARY
from cblc.matching import match
from cblc.core.measures import cell_scores
from cblc.sources.public import box_polygon, split_by_name, public_root, read_bcisc, read_pbc
from cblc.segmentation import Segmenter
from cblc.study import SMEARS
from cblc.sources.laboratories import random_style
from cblc.sources.synthetic import CODES, MARROW, draw_field
from cblc.learn.settings import fit_settings

PBC = dict(BA='B', EO='E', ERB='R2|R3', LY='L', MO='M2', PMY='N1', MY='N2', MMY='N3', BNE='N4', SNE='N5', NEUTROPHIL='N4|N5', IG='N1|N2|N3')
BCISC = dict(baso='B', eosi='E', lymp='L', mono='M2', neut='N4|N5')
LMU = dict(BAS='B', EBO='R2|R3', EOS='E', LYT='L', LYA='L', MOB='M|M0', MON='M2', MYB='N2', MMZ='N3', MYO='N|N0', NGB='N4',
           NGS='N5', PMB='N1|N2', PMO='N1')

def synthetic_cells(seed, crop, find):
    "One synthetic field's crops and codes, by true contours, or by the segmenter's."
    rng = np.random.default_rng([7, seed, find])
    mix = {c: 1. for c in CODES if c != 'F'} if rng.random() < .6 else {c: .3 for c in CODES if c != 'F'} | MARROW
    f = draw_field(mix, random_style(rng, .7), size=512, difficulty=rng.uniform(0, .3), seed=int(rng.integers(2**31)),
                   um_per_px=rng.uniform(.12, .26))
    truth = f.cells; nucleated = VOCABULARY.is_nucleated(truth.code).to_numpy(bool)
    if not find: truth = truth[nucleated]; return crop_cells(f.image, list(truth.polygon), crop), list(truth.code)
    global segmenter
    if 'segmenter' not in globals(): segmenter = Segmenter.load(threads=1)
    found = segmenter.predict(f.image, um_per_px=f.um_per_px); m = match(list(truth.polygon), list(found.polygon))
    codes = pd.Series('artefact', index=range(len(found)), dtype=object)
    codes.iloc[m.pairs[:, 1]] = truth.code.to_numpy(object)[m.pairs[:, 0]]
    named = np.array([c == 'artefact' or VOCABULARY.is_nucleated(c) for c in codes], bool)
    return crop_cells(f.image, list(found.polygon), crop)[named], list(codes[named])

def real_cell(row, crop):
    "One real cell's crop, or nothing where its outline is not to be trusted."
    path, polygon, box, label, part = row; image = read_image(path)
    g = polygon if polygon is not None else box_polygon(image, box)
    return None if g is None else (crop_cells(image, [g], crop)[0], label, part)

def lmu_rows(root):
    "AML-LMU cells lie in the middle of their picture; the box is found by the segmenter."
    seg, rows = Segmenter.load(), []
    for p in sorted((Path(root)/'aml_lmu').rglob('*.tiff')):
        code = LMU.get(p.stem.split('___')[-1].split('_')[0])
        if code is None: continue
        image = read_image(p); found = seg.predict(image); mid = np.array(image.shape[1::-1])/2
        near = [g for g in found.polygon if np.hypot(g.centroid.x-mid[0], g.centroid.y-mid[1]) < .15*mid.sum()]
        if near: rows.append((p, max(near, key=lambda g: g.area), None, code, 'train'))
    return rows

def real_cells(pool, crop, n):
    images, boxes = read_pbc(); t = images.merge(boxes.drop(columns='label'), on='image_id')
    rows = [(r.path, None, (r.x0, r.y0, r.x1, r.y1), PBC[r.label], split_by_name(r.image_id)) for r in t.itertuples()]
    images, cells = read_bcisc(); t = cells.merge(images[~images.held_out], on='image_id')
    rows += [(r.path, r.polygon, None, BCISC[r.label], 'train') for r in t.itertuples()] + lmu_rows(public_root())
    rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))[:n]]
    got = [r for r in pool.map(partial(real_cell, crop=crop), rows, chunksize=32) if r]
    return np.stack([g[0] for g in got]), np.array([g[1] for g in got], object), np.array([g[2] for g in got])

def fields(pool, seeds, crop, find):
    "Crops, codes and a name of the field for each."
    got = list(pool.map(partial(synthetic_cells, crop=crop, find=find), seeds, chunksize=4))
    return np.concatenate([g[0] for g in got]), [c for g in got for c in g[1]], [f'field {s} {find}' for s, g in zip(seeds, got) for _ in g[1]]

def judge(clf, crops, labels, what):
    "Share of cells whose category is among those the label allows, and CBLC weighted F1 where the label decides it."
    pred = clf.predict(crops, progress=False); allowed = [set(l.split('|')) for l in labels]
    right = np.array([c in set(VOCABULARY.category_of(sorted(a))) for c, a in zip(pred.category, allowed)])
    cblc = [set(VOCABULARY.is_cblc(sorted(a))) for a in allowed]; sure = np.array([len(c) == 1 for c in cblc])
    truth = np.array([c.copy().pop() for c in cblc], float)[sure]
    s = cell_scores(truth, pred.p_cblc[sure], pred.cblc[sure].astype(bool), n_boot=0) if len(set(truth)) == 2 else {}
    return {f'{what}_n': len(right), f'{what}_category_accuracy': round(float(right.mean()), 4),
            f'{what}_cblc_weighted_f1': round(float(s.get('weighted_f1', np.nan)), 4)}

if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--out', required=True); ap.add_argument('--quick', action='store_true')
    ap.add_argument('--workers', type=int, default=os.cpu_count())
    ap.add_argument('--size', type=int, default=64); ap.add_argument('--epochs', type=int, default=6)
    ap.add_argument('--epochs2', type=int, default=6); ap.add_argument('--fields', type=int, default=1200)
    ap.add_argument('--real', type=int, default=6000)
    a = ap.parse_args(); crop = replace(STANDARD, size=a.size); n = 20 if a.quick else a.fields
    with ProcessPoolExecutor(a.workers) as pool:
        rx, ry, rp = real_cells(pool, crop, 300 if a.quick else a.real)
        print(len(rx), 'real cells', pd.Series(rp).value_counts().to_dict(), flush=True)
        one, two = fields(pool, range(n), crop, False), fields(pool, range(n), crop, True)
        held, test = fields(pool, range(10**6, 10**6 + n//6), crop, True), fields(pool, range(2*10**6, 2*10**6 + n//6), crop, True)
    print(f'{len(one[1])} synthetic cells by true contours, {len(two[1])} by the segmenter ({two[1].count("artefact")} artefacts)', flush=True)
    tr, va, te = (rp == k for k in ('train', 'valid', 'test')); who = lambda k: [f'picture {k} {i}' for i in range((rp == k).sum())]
    both = lambda s, k, m: (np.concatenate([s[0], rx[m]]), s[1] + list(ry[m]), s[2] + who(k))
    settings = fit_settings(recipe='cblc', **SMEARS, pretrained=False, threads=a.workers, size=a.size,
                           epochs=1 if a.quick else a.epochs, epochs2=1 if a.quick else a.epochs2)
    clf = fit_classifier(*both(one, 'train', tr), settings=settings, vocabulary=VOCABULARY, second_stage=both(two, 'train', tr),
                         valid=both(held, 'valid', va), out=Path(a.out).parent/'classifier_run')
    real = np.array([l != 'artefact' for l in test[1]])
    clf = replace(clf, metrics={**clf.metrics, **judge(clf, test[0][real], [l for l in test[1] if l != 'artefact'], 'synthetic_test'),
                   **judge(clf, rx[te], list(ry[te]), 'pbc_test')})
    print(clf.metrics)
    clf.save(a.out, f'{len(one[1]) + len(two[1])} synthetic marrow cells in random styles, and {int(tr.sum())} public blood cells: PBC (Acevedo et al. 2020, CC BY 4.0), BCISC (Apache-2.0), AML-LMU (Matek et al. 2019, CC BY 3.0)',
             'python recipes/classifier.py --out cblc/assets/classifier', name='research classifier', crop=vars(crop), licence='AGPL-3.0',
             warnings=['Trained on synthetic and public blood cells, on no real bone marrow: its categories on real marrow are untested.'])
