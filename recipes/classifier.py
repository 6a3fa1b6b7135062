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
from dataclasses import dataclass, replace
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

# what a public set's class says in codes of the vocabulary
PBC_CODES = dict(
    BA='B', EO='E', ERB='R2|R3', LY='L', MO='M2', PMY='N1', MY='N2', MMY='N3', BNE='N4', SNE='N5',
    NEUTROPHIL='N4|N5', IG='N1|N2|N3',
)
BCISC_CODES = dict(baso='B', eosi='E', lymp='L', mono='M2', neut='N4|N5')
LMU_CODES = dict(
    BAS='B', EBO='R2|R3', EOS='E', LYT='L', LYA='L', MOB='M|M0', MON='M2', MYB='N2', MMZ='N3', MYO='N|N0',
    NGB='N4', NGS='N5', PMB='N1|N2', PMO='N1',
)
COMMAND = 'python recipes/classifier.py --out cblc/assets/classifier'
WARNING = (
    'Trained on synthetic and public blood cells, on no real bone marrow: its categories on real marrow are '
    'untested.'
)


@dataclass(frozen=True)
class Cells:
    "Crops with their labels and the name of the field or picture each is from"
    crops: np.ndarray  # n x S x S x 3 uint8
    labels: list       # n codes, terms joined by '|', or 'artefact'
    origins: list      # n names

    def __add__(self, other):
        crops = np.concatenate([self.crops, other.crops])
        return Cells(crops, self.labels + other.labels, self.origins + other.origins)

    def of(self, kept):
        "Take the cells marked in `kept`"
        labels = [label for label, is_kept in zip(self.labels, kept) if is_kept]
        return Cells(self.crops[kept], labels, [name for name, is_kept in zip(self.origins, kept) if is_kept])

    @property
    def stage(self):
        "Give the three arguments of a stage of `fit_classifier`"
        return self.crops, self.labels, self.origins


@cache
def segmenter():
    "Load the shipped segmenter once a process"
    return Segmenter.load(threads=1)


def drawn_field(seed, by_segmenter):
    "Draw a field in a random style"
    rng = np.random.default_rng([7, seed, by_segmenter])
    everything = {code: 1. for code in CODES if code != 'F'}
    rare_too = {code: .3 for code in everything} | MARROW
    mix = everything if rng.random() < .6 else rare_too
    style = random_style(rng, .7)
    difficulty, field_seed, um_per_px = rng.uniform(0, .3), int(rng.integers(2**31)), rng.uniform(.12, .26)
    return draw_field(mix, style, size=512, difficulty=difficulty, seed=field_seed, um_per_px=um_per_px)


def synthetic_cells(seed, crop, by_segmenter):
    "Cut one synthetic field's cells, by true contours or by the segmenter's: crops and codes"
    field = drawn_field(seed, by_segmenter)
    truth = field.cells
    if not by_segmenter:
        truth = truth[VOCABULARY.is_nucleated(truth.code).to_numpy(bool)]
        return crop_cells(field.image, list(truth.polygon), crop), list(truth.code)
    found = segmenter().predict(field.image, um_per_px=field.um_per_px)
    pairs = match(list(truth.polygon), list(found.polygon)).pairs
    codes = pd.Series('artefact', index=range(len(found)), dtype=object)
    codes.iloc[pairs[:, 1]] = truth.code.to_numpy(object)[pairs[:, 0]]
    is_named = np.array([code == 'artefact' or VOCABULARY.is_nucleated(code) for code in codes], bool)
    return crop_cells(field.image, list(found.polygon), crop)[is_named], list(codes[is_named])


def synthetic_fields(pool, seeds, crop, by_segmenter):
    "Cut the cells of many synthetic fields"
    cut = partial(synthetic_cells, crop=crop, by_segmenter=by_segmenter)
    fields = list(pool.map(cut, seeds, chunksize=4))
    origins = [f'field {seed} {by_segmenter}' for seed, (_, codes) in zip(seeds, fields) for _ in codes]
    labels = [code for _, codes in fields for code in codes]
    return Cells(np.concatenate([crops for crops, _ in fields]), labels, origins)


def real_cell(row, crop):
    "Cut one real cell, or nothing where its outline is not to be trusted"
    path, polygon, box, label, part = row
    image = read_image(path)
    outline = polygon if polygon is not None else box_polygon(image, box)
    if outline is None:
        return None
    return crop_cells(image, [outline], crop)[0], label, part


def lmu_rows(root):
    "List AML-LMU cells: they lie in the middle of their picture, and the segmenter finds them"
    rows, finder = [], Segmenter.load()
    for path in sorted((Path(root)/'aml_lmu').rglob('*.tiff')):
        code = LMU_CODES.get(path.stem.split('___')[-1].split('_')[0])
        if code is None:
            continue
        image = read_image(path)
        middle = np.array(image.shape[1::-1])/2
        central = [
            polygon for polygon in finder.predict(image).polygon
            if np.hypot(polygon.centroid.x - middle[0], polygon.centroid.y - middle[1]) < .15*middle.sum()
        ]
        if central:
            rows.append((path, max(central, key=lambda polygon: polygon.area), None, code, 'train'))
    return rows


def real_cells(pool, crop, most):
    "Cut the real cells, at most `most`: cells and their part (train, valid, test)"
    images, boxes = read_pbc()
    table = images.merge(boxes.drop(columns='label'), on='image_id')
    rows = [
        (row.path, None, (row.x0, row.y0, row.x1, row.y1), PBC_CODES[row.label], split_by_name(row.image_id))
        for row in table.itertuples()
    ]
    images, cells = read_bcisc()
    table = cells.merge(images[~images.held_out], on='image_id')
    rows += [(row.path, row.polygon, None, BCISC_CODES[row.label], 'train') for row in table.itertuples()]
    rows += lmu_rows(public_root())
    rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))[:most]]
    cut = [cell for cell in pool.map(partial(real_cell, crop=crop), rows, chunksize=32) if cell]
    parts = np.array([part for _, _, part in cut])
    number = {part: iter(range(len(cut))) for part in ('train', 'valid', 'test')}
    origins = [f'picture {part} {next(number[part])}' for part in parts]
    return Cells(np.stack([crop for crop, _, _ in cut]), [label for _, label, _ in cut], origins), parts


def judge(classifier, cells, name):
    "Score categories that the label allows, and CBLC where the label decides it"
    predicted = classifier.predict(cells.crops, progress=False)
    allowed = [sorted(set(label.split('|'))) for label in cells.labels]
    is_right = np.array([
        category in set(VOCABULARY.category_of(codes)) for category, codes in zip(predicted.category, allowed)
    ])
    answers = [set(VOCABULARY.is_cblc(codes)) for codes in allowed]
    is_decided = np.array([len(answer) == 1 for answer in answers])
    truth = np.array([float(min(answer)) for answer in answers])[is_decided]
    f1 = np.nan
    if len(set(truth)) == 2:
        decisions = predicted.cblc[is_decided].astype(bool)
        f1 = cell_scores(truth, predicted.p_cblc[is_decided], decisions, n_boot=0)['weighted_f1']
    return {
        f'{name}_n': len(is_right),
        f'{name}_category_accuracy': round(float(is_right.mean()), 4),
        f'{name}_cblc_weighted_f1': round(float(f1), 4),
    }


def parse_arguments():
    "Read the command line"
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument('--out', required=True)
    defaults = dict(size=64, epochs=6, epochs2=6, fields=1200, real=6000, workers=os.cpu_count())
    for name, default in defaults.items():
        parser.add_argument(f'--{name}', type=int, default=default)
    parser.add_argument('--quick', action='store_true')
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.epochs = arguments.epochs2 = 1
        arguments.fields, arguments.real = 20, 300
    return arguments


def prepare(arguments, crop):
    "Cut all cells: real ones and their parts, and four sets of synthetic ones"
    n, n_held = arguments.fields, arguments.fields//6
    with ProcessPoolExecutor(arguments.workers) as pool:
        real, parts = real_cells(pool, crop, arguments.real)
        print(len(real.crops), 'real cells', pd.Series(parts).value_counts().to_dict(), flush=True)
        drawn = dict(
            one=synthetic_fields(pool, range(n), crop, False),
            two=synthetic_fields(pool, range(n), crop, True),
            valid=synthetic_fields(pool, range(10**6, 10**6 + n_held), crop, True),
            test=synthetic_fields(pool, range(2*10**6, 2*10**6 + n_held), crop, True),
        )
    n_artefacts = drawn['two'].labels.count('artefact')
    print(f'{len(drawn["one"].labels)} synthetic cells by true contours, {len(drawn["two"].labels)} by the '
          f'segmenter ({n_artefacts} artefacts)', flush=True)
    return real, parts, drawn


def main():
    "Cut, train in two stages, judge and write the bundle"
    arguments = parse_arguments()
    crop = replace(STANDARD, size=arguments.size)
    real, parts, drawn = prepare(arguments, crop)
    train = real.of(parts == 'train')
    settings = fit_settings(
        recipe='cblc', **SMEARS, pretrained=False, threads=arguments.workers, size=arguments.size,
        epochs=arguments.epochs, epochs2=arguments.epochs2,
    )
    classifier = fit_classifier(
        *(drawn['one'] + train).stage, settings=settings, vocabulary=VOCABULARY,
        second_stage=(drawn['two'] + train).stage,
        valid=(drawn['valid'] + real.of(parts == 'valid')).stage,
        out=Path(arguments.out).parent/'classifier_run',
    )
    is_cell = np.array([label != 'artefact' for label in drawn['test'].labels])
    judged = judge(classifier, drawn['test'].of(is_cell), 'synthetic_test')
    judged |= judge(classifier, real.of(parts == 'test'), 'pbc_test')
    classifier = replace(classifier, metrics={**classifier.metrics, **judged})
    print(classifier.metrics)
    n_drawn = len(drawn['one'].labels) + len(drawn['two'].labels)
    trained_on = (
        f'{n_drawn} synthetic marrow cells in random styles, and {len(train.labels)} public blood cells: PBC '
        '(Acevedo et al. 2020, CC BY 4.0), BCISC (Apache-2.0), AML-LMU (Matek et al. 2019, CC BY 3.0)'
    )
    classifier.save(
        arguments.out, trained_on, COMMAND, name='research classifier', crop=vars(crop), licence='AGPL-3.0',
        warnings=[WARNING],
    )


if __name__ == '__main__':
    main()
