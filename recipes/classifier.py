"""Trains the research classifier that ships with cblc, on synthetic marrow and permissive public cells only.

    python recipes/classifier.py --out cblc/assets/classifier [--quick]

Stage 1: crops along true contours of synthetic cells in random styles, and PBC (CC BY 4.0), BCISC
(Apache-2.0, slides 3, 6 and 9 left out) and AML-LMU (CC BY 3.0) cells. Stage 2: crops along the shipped
segmenter's contours of other synthetic fields, its false finds as artefacts, and the same real cells.
Labels of real cells are what their experts said and no more: 'neutrophil' is N4 or N5.

PBC names no patients, so its split is by file-name hash: 70 % train, 15 % valid, 15 % test. The figures on
the card are of the test part and of synthetic fields never trained on.
"""
import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
import numpy as np
import pandas as pd
from cblc.cells.crops import STANDARD, crop_cells
from cblc.classifier import fit_classifier
from cblc.core.images import read_image
from cblc.core.measures import cell_scores
from cblc.data import VOCABULARY
from cblc.learn.settings import fit_settings
from cblc.matching import match
from cblc.segmentation import Segmenter
from cblc.sources.laboratories import random_style
from cblc.sources.public import box_polygon, public_root, read_bcisc, read_pbc, split_by_name
from cblc.sources.synthetic import CODES, MARROW, draw_field
from cblc.study import SMEARS

PBC = dict(BA='B', EO='E', ERB='R2|R3', LY='L', MO='M2', PMY='N1', MY='N2', MMY='N3', BNE='N4', SNE='N5',
           NEUTROPHIL='N4|N5', IG='N1|N2|N3')
BCISC = dict(baso='B', eosi='E', lymp='L', mono='M2', neut='N4|N5')
LMU = dict(BAS='B', EBO='R2|R3', EOS='E', LYT='L', LYA='L', MOB='M|M0', MON='M2', MYB='N2', MMZ='N3',
           MYO='N|N0', NGB='N4', NGS='N5', PMB='N1|N2', PMO='N1')


@cache
def segmenter():
    "The shipped segmenter, opened once a process"
    return Segmenter.load(threads=1)


def found_cells(field, crop):
    "Crops and codes of a synthetic field by the segmenter's contours, false finds as artefacts"
    found = segmenter().predict(field.image, um_per_px=field.um_per_px)
    pairs = match(list(field.cells.polygon), list(found.polygon)).pairs
    codes = pd.Series('artefact', index=range(len(found)), dtype=object)
    codes.iloc[pairs[:, 1]] = field.cells.code.to_numpy(object)[pairs[:, 0]]
    named = np.array([code == 'artefact' or VOCABULARY.is_nucleated(code) for code in codes], bool)
    return crop_cells(field.image, list(found.polygon), crop)[named], list(codes[named])


def synthetic_cells(seed, crop, find):
    "One synthetic field's crops and codes, by true contours, or by the segmenter's"
    rng = np.random.default_rng([7, seed, find])
    codes = [code for code in CODES if code != 'F']
    mix = dict.fromkeys(codes, 1.) if rng.random() < .6 else dict.fromkeys(codes, .3) | MARROW
    field = draw_field(
        mix, random_style(rng, .7), size=512, difficulty=rng.uniform(0, .3), seed=int(rng.integers(2**31)),
        um_per_px=rng.uniform(.12, .26))
    if find:
        return found_cells(field, crop)
    cells = field.cells[VOCABULARY.is_nucleated(field.cells.code).to_numpy(bool)]
    return crop_cells(field.image, list(cells.polygon), crop), list(cells.code)


def real_cell(row, crop):
    "One real cell's crop, label and part, or None where its outline is not to be trusted"
    path, polygon, box, label, part = row
    image = read_image(path)
    if polygon is None:
        polygon = box_polygon(image, box)
    return None if polygon is None else (crop_cells(image, [polygon], crop)[0], label, part)


def lmu_rows(root):
    "AML-LMU cells lie in the middle of their picture; the outline is found by the segmenter"
    finder, rows = Segmenter.load(), []
    for path in sorted((Path(root)/'aml_lmu').rglob('*.tiff')):
        code = LMU.get(path.stem.split('___')[-1].split('_')[0])
        if code is None:
            continue
        image = read_image(path)
        x, y = np.array(image.shape[1::-1])/2
        near = [polygon for polygon in finder.predict(image).polygon
                if np.hypot(polygon.centroid.x - x, polygon.centroid.y - y) < .15*(x + y)]
        if near:
            rows.append((path, max(near, key=lambda polygon: polygon.area), None, code, 'train'))
    return rows


def real_cells(pool, crop, n):
    "Crops, labels and parts of at most n real cells"
    images, boxes = read_pbc()
    table = images.merge(boxes.drop(columns='label'), on='image_id')
    rows = [(row.path, None, (row.x0, row.y0, row.x1, row.y1), PBC[row.label], split_by_name(row.image_id))
            for row in table.itertuples()]
    images, cells = read_bcisc()
    table = cells.merge(images[~images.held_out], on='image_id')
    rows += [(row.path, row.polygon, None, BCISC[row.label], 'train') for row in table.itertuples()]
    rows += lmu_rows(public_root())
    rows = [rows[k] for k in np.random.default_rng(0).permutation(len(rows))[:n]]
    cut = [cell for cell in pool.map(partial(real_cell, crop=crop), rows, chunksize=32) if cell]
    crops, labels, parts = zip(*cut)
    return np.stack(crops), np.array(labels, object), np.array(parts)


def fields(pool, seeds, crop, find):
    "Crops, codes and a name of the field for each cell"
    drawn = list(pool.map(partial(synthetic_cells, crop=crop, find=find), seeds, chunksize=4))
    codes = [code for _, own in drawn for code in own]
    names = [f'field {seed} {find}' for seed, (_, own) in zip(seeds, drawn) for _ in own]
    return np.concatenate([crops for crops, _ in drawn]), codes, names


def with_real(synthetic, real, part):
    "Synthetic cells and the real ones of a part, each real one a patient of its own"
    crops, labels, parts = real
    chosen = parts == part
    names = [f'picture {part} {k}' for k in range(chosen.sum())]
    return (np.concatenate([synthetic[0], crops[chosen]]), synthetic[1] + list(labels[chosen]),
            synthetic[2] + names)


def judge(classifier, crops, labels, what):
    "Share of cells whose category their label allows, and CBLC weighted F1 where the label decides it"
    predictions = classifier.predict(crops, progress=False)
    terms = [sorted(label.split('|')) for label in labels]
    right = np.array([category in set(VOCABULARY.category_of(own))
                      for category, own in zip(predictions.category, terms)])
    cblc = [set(VOCABULARY.is_cblc(own)) for own in terms]
    decided = np.array([len(answers) == 1 for answers in cblc])
    truth = np.array([min(answers) for answers in cblc], float)[decided]
    f1 = np.nan
    if len(set(truth)) == 2:
        in_cblc = predictions.cblc[decided].astype(bool)
        f1 = cell_scores(truth, predictions.p_cblc[decided], in_cblc, n_boot=0)['weighted_f1']
    return {f'{what}_n': len(right), f'{what}_category_accuracy': round(float(right.mean()), 4),
            f'{what}_cblc_weighted_f1': round(float(f1), 4)}


def make_cells(args, crop):
    "All cells, drawn and cut: the two stages, held-out and test fields, and the real ones"
    n = 20 if args.quick else args.fields
    with ProcessPoolExecutor(args.workers) as pool:
        real = real_cells(pool, crop, 300 if args.quick else args.real)
        print(len(real[0]), 'real cells', pd.Series(real[2]).value_counts().to_dict(), flush=True)
        seeds = dict(
            first=(0, n, False), second=(0, n, True), held_out=(10**6, n//6, True),
            test=(2*10**6, n//6, True))
        drawn = {name: fields(pool, range(start, start + count), crop, find)
                 for name, (start, count, find) in seeds.items()}
    n_artefacts = drawn['second'][1].count('artefact')
    print(f"{len(drawn['first'][1])} synthetic cells by true contours, "
          f"{len(drawn['second'][1])} by the segmenter ({n_artefacts} artefacts)", flush=True)
    return drawn, real


def read_arguments():
    "Read the command line"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', required=True)
    parser.add_argument('--quick', action='store_true')
    numbers = dict(workers=os.cpu_count(), size=64, epochs=6, epochs2=6, fields=1200, real=6000)
    for name, default in numbers.items():
        parser.add_argument(f'--{name}', type=int, default=default)
    args = parser.parse_args()
    if args.quick:
        args.epochs, args.epochs2 = 1, 1
    return args


def main():
    "Draw, train, judge and write the bundle"
    args = read_arguments()
    crop = replace(STANDARD, size=args.size)
    drawn, real = make_cells(args, crop)
    settings = fit_settings(
        'cblc', **SMEARS, pretrained=False, threads=args.workers, size=args.size, epochs=args.epochs,
        epochs2=args.epochs2)
    classifier = fit_classifier(
        *with_real(drawn['first'], real, 'train'), settings=settings, vocabulary=VOCABULARY,
        second_stage=with_real(drawn['second'], real, 'train'),
        valid=with_real(drawn['held_out'], real, 'valid'), out=Path(args.out).parent/'classifier_run')
    is_cell = np.array([label != 'artefact' for label in drawn['test'][1]])
    cells = [label for label in drawn['test'][1] if label != 'artefact']
    in_test = real[2] == 'test'
    metrics = {
        **classifier.metrics, **judge(classifier, drawn['test'][0][is_cell], cells, 'synthetic_test'),
        **judge(classifier, real[0][in_test], list(real[1][in_test]), 'pbc_test')}
    print(metrics)
    n_drawn, n_real = len(drawn['first'][1]) + len(drawn['second'][1]), int((real[2] == 'train').sum())
    replace(classifier, metrics=metrics).save(
        args.out,
        f'{n_drawn} synthetic marrow cells in random styles, and {n_real} public blood cells: '
        'PBC (Acevedo et al. 2020, CC BY 4.0), BCISC (Apache-2.0), AML-LMU (Matek et al. 2019, CC BY 3.0)',
        'python recipes/classifier.py --out cblc/assets/classifier', name='research classifier',
        crop=vars(crop), licence='AGPL-3.0',
        warnings=['Trained on synthetic and public blood cells, on no real bone marrow: '
                  'its categories on real marrow are untested.'])


if __name__ == '__main__':
    main()
