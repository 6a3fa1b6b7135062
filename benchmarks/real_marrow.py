"""Real cells of a laboratory that had no part in the training.

    python benchmarks/real_marrow.py [--work DIR] [--epochs 4] [--per-class 200] [--size 128]
                                     [--without drawn ground] [--laboratories bm_munich pbc128 small]
                                     [--rows NAME ... | --rows all] [--write] [--quick]

A laboratory is left out whole, a classifier is trained on all others by the shipped classifier's recipe
(recipes/classifier.py, with fewer cells and epochs), and names the left-out cells. Munich's two marrow sets
are of one archive and leave together; the small sets (BCISC, AML-LMU, and the two of segmentation_wbc,
which never teach) leave together. Beside it stands what a user would write in an evening: timm's network
from the same ImageNet weights, fine-tuned on the whole pictures of the same laboratories, for the same
epochs.

--rows all asks what each idea of the recipe is worth in a laboratory left out. Of the recipe's own network:
`network alone`, without the numbers of a pretrained network (`cblc.learn.pretrained_appearance`), and
`network alone, adapted`, its normalization measured anew on the cells left out, without their labels. With a
training each, and all without those numbers: no augmentation of colors, or of optics; every laboratory's
colors brought to those of one teacher (Reinhard's method, drawn cells field by field); the measured
appearance with half of the say. Differences are from `network alone`, of the same cells, and so are their
intervals.

Of each laboratory: balanced accuracy over the words of its experts (a cell is right where its category is
one that the word allows; artefacts are judged apart), and the weighted F1 of CBLC where the word decides
it. 95 % intervals by bootstrap over the cells (1,000 draws; no set names its patients, so they are too
narrow). Of each class at most --per-class cells are judged and taught. The segmenter that finds the cells
has seen masks or boxes of part of bcisc and pbc128 in its own training, but no class.

How sure the recipe was in each laboratory stands beside how often it was right (`cblc.trust.domain`); with
--write these pairs become cblc/assets/left_out.csv, by which `cblc diagnose` judges a laboratory.
"""
import argparse
import json
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from _recipe import recipe

ROWS = {  # name: how its cells are cut, and the settings that differ from the recipe's
    'recipe': ('cut', {}),
    'plain': ('whole', {}),
    'no color augmentation': ('cut', dict(stain=0., hue=0.)),
    'no optics augmentation': ('cut', dict(zoom=0., light=0., sharpness=0.)),
    'colors of one laboratory': ('standardized', {}),
    'measured appearance': ('cut', dict(appearance=.5)),
}
USUAL_ROWS = ('recipe', 'plain')
ALONE, ADAPTED = 'network alone', 'network alone, adapted'  # the recipe's network, used otherwise
MEASURED_CROPS = 200         # of a laboratory, by which its stain is measured
LEAVES_TOGETHER = {
    'bm_munich': ('bm_munich', 'bm_matek'),
    'pbc128': ('pbc128',),
    'small': ('bcisc', 'aml_lmu', 'segmentation_wbc'),
}


def whole_pictures(name, most):
    "Read the pictures of one set as they are, for the plain fine-tune"
    from cblc.cells.singles import read_singles
    from cblc.sources.real_cells import read_real_cells
    made = recipe()
    table = made.first_by_hash(read_real_cells(sets=[name]), most).reset_index(drop=True)
    crops, rows, _, _ = read_singles(list(table.path), made.SETTINGS['size'])
    table = table.iloc[rows].reset_index(drop=True)
    groups = [f'{name} {part} {Path(path).stem}' for part, path in zip(table.part, table.path)]
    described = dict(code=table.code, group=groups, part=table.part, set=table.center)
    return made.Cells(crops, pd.DataFrame(described))


def read_all(arguments):
    "Cut every set once: cells at one scale, and the same pictures whole"
    made, work = recipe(), Path(arguments.work)
    work.mkdir(parents=True, exist_ok=True)
    sets = [name for names in LEAVES_TOGETHER.values() for name in names]
    most = arguments.per_class
    cut = {name: made.kept(work, name, partial(made.real_cells, name, most)) for name in sets}
    whole = {name: made.kept(work, f'{name}_whole', partial(whole_pictures, name, most)) for name in sets}
    with ProcessPoolExecutor(arguments.workers) as pool:
        for name, make in (('drawn', partial(made.drawn_cells, pool, range(arguments.fields))),
                           ('ground', partial(made.ground_cells, pool))):
            if name not in arguments.without:
                cut[name] = made.kept(work, name, make)
    return cut, whole


def teachers(sets, left_out):
    "Join the sets that may teach; the part that is called test teaches nobody"
    from cblc.sources.public import PUBLIC_SETS
    may_teach = [
        cells for name, cells in sets.items()
        if name not in left_out and (name not in PUBLIC_SETS or PUBLIC_SETS[name].may_ship)
    ]
    return recipe().joined(may_teach)


def standardized(sets, left_out):
    "Bring the colors of every laboratory, and of every drawn field, to those of the first teacher"
    from cblc.cells.stain import StainNormalizer, measure_stain
    rng = np.random.default_rng(0)
    made = recipe()

    def stain_of(crops):
        return measure_stain(crops[rng.permutation(len(crops))[:MEASURED_CROPS]])

    reference = next(name for name in made.TEACHERS if name in sets and name not in left_out)
    is_cell = (sets[reference].table.code != made.ARTEFACT).to_numpy()
    normalizer = StainNormalizer('reinhard').fit(stain_of(sets[reference].crops[is_cell]))
    moved, notes = {}, []
    for name, cells in sets.items():
        crops = cells.crops.copy()
        for rows in cells.table.groupby('group' if name == 'drawn' else 'set').indices.values():
            crops[rows] = normalizer.transform(crops[rows], stain_of(crops[rows]), notes)
        moved[name] = made.Cells(crops, cells.table)
    print(f'colors brought to those of {reference}; {len(notes)} laboratories or fields left as they are')
    return moved


def train(cells, row, arguments):
    "Train by the recipe or a row of it, or a plain fine-tune from the same weights"
    from cblc.classifier import fit_classifier
    from cblc.data import VOCABULARY
    from cblc.learn.settings import fit_settings
    made, plain, shown = recipe(), row == 'plain', cells
    if not plain:
        shown = made.marrow_in_front(made.in_collages(made.in_real_colors(cells), arguments.per_class//4))
    parts = {part: shown.take((shown.table.part == part).to_numpy()) for part in ('train', 'valid')}
    shared = dict(epochs=arguments.epochs, threads=arguments.workers, size=arguments.size)
    settings = fit_settings(**made.SETTINGS | shared | ROWS[row][1])
    if plain:
        settings = fit_settings(
            recipe='plain', arch=made.SETTINGS['arch'], pretrained='package', batch=64, lr=1e-3, **shared)
    stages = {
        part: (own.crops, own.table.code.tolist(), own.table.group.tolist()) for part, own in parts.items()
    }
    classifier = fit_classifier(
        *stages['train'], settings=settings, vocabulary=VOCABULARY, valid=stages['valid'])
    return made.with_numbers(classifier, cells, arguments.workers) if row == 'recipe' else classifier


def named_cells(classifier, cells):
    "Name cells: predictions, how sure, whether the experts' word allows it, and the leaves it allows"
    from cblc.data import VOCABULARY
    from cblc.learn.leaves import allowed_leaves
    leaves = classifier.leaves
    allowed = allowed_leaves(cells.table.code.to_numpy(), leaves, vocabulary=VOCABULARY)
    predicted = classifier.predict(cells.crops, progress=False)
    confidence = predicted[[f'p_{name}' for name in leaves.categories]].to_numpy(float).max(1)
    named = np.array([leaves.categories.index(one) for one in predicted.category])
    is_right = ((allowed@leaves.to_category) > 0)[np.arange(len(named)), named]
    return predicted, confidence, is_right, allowed


def judge(classifier, cells, threshold, n_boot=1000):
    "Score one laboratory's cells, with intervals and their draws, and how sure the classifier was of them"
    from sklearn.metrics import f1_score

    from cblc.trust.domain import guessed_accuracy
    cells = cells.take((cells.table.code != 'artefact').to_numpy())
    words = cells.table.code.to_numpy()
    predicted, confidence, is_right, allowed = named_cells(classifier, cells)
    leaves = classifier.leaves
    may_be, may_not = (allowed & (leaves.to_cblc > 0)).any(1), (allowed & (leaves.to_cblc == 0)).any(1)
    is_decided, is_called = may_be != may_not, predicted.cblc.to_numpy(bool)

    def scores(rows):
        by_word = pd.Series(is_right[rows]).groupby(words[rows]).mean()
        own = rows[is_decided[rows]]
        return by_word.mean(), f1_score(may_be[own], is_called[own], average='weighted', zero_division=0)
    rng, n = np.random.default_rng(0), len(words)
    draws = np.array([scores(rng.integers(n, size=n)) for _ in range(n_boot)])
    low, high = np.quantile(draws, (.025, .975), axis=0)
    accuracy, f1 = scores(np.arange(n))
    return dict(
        n=n, balanced_accuracy=round(float(accuracy), 4), cblc_weighted_f1=round(float(f1), 4),
        balanced_accuracy_interval=[round(float(v), 3) for v in (low[0], high[0])],
        cblc_weighted_f1_interval=[round(float(v), 3) for v in (low[1], high[1])],
        cblc_sensitivity=round(float(is_called[is_decided & may_be].mean()), 4) if may_be.any() else None,
        accuracy=round(float(is_right.mean()), 4),
        guessed=round(guessed_accuracy(confidence, threshold), 4)), draws


def uses_of(row, classifier, crops):
    "Name the ways in which a trained classifier is used on the crops of a laboratory left out"
    yield row, classifier
    if row == 'recipe':
        alone = replace(classifier, appearance_weight=0.)
        yield ALONE, alone
        yield ADAPTED, alone.adapted(crops, 1.)


def leave_out(group, cut, whole, arguments):
    "Train without a group of sets, a row at a time, and judge its laboratories: scores, and their draws"
    left_out = LEAVES_TOGETHER[group]
    ways = dict(cut=cut, whole=whole)
    if 'colors of one laboratory' in arguments.rows:
        ways['standardized'] = standardized(cut, left_out)
    scores, draws = {}, {}
    for row in arguments.rows:
        sets = ways[ROWS[row][0]]
        teaching = teachers(sets, left_out)
        classifier = train(teaching, row, arguments)
        threshold = recipe().sure_enough(classifier, teaching)
        for name in left_out:
            own = sets[name]
            for center in sorted(set(own.table.set)):
                cells = own.take((own.table.set == center).to_numpy())
                for use, adapted in uses_of(row, classifier, cells.crops):
                    scores[center, use], draws[center, use] = judge(adapted, cells, threshold)
                    print(f'{center:20} {use:25} {json.dumps(scores[center, use])}', flush=True)
    return scores, draws


def differences(scores, draws):
    "Compare each row with the network alone, over the same cells of all laboratories: means and intervals"
    names = ('balanced_accuracy', 'cblc_weighted_f1')
    centers = sorted({center for center, _ in scores})
    rows = []
    for use in dict.fromkeys(use for _, use in scores):
        row = dict(row=use)
        for k, name in enumerate(names):
            means = [np.mean([scores[center, one][name] for center in centers]) for one in (use, ALONE)]
            row[name] = round(float(means[0]), 3)
            apart = [draws[center, use][:, k] - draws[center, ALONE][:, k] for center in centers]
            low, high = np.quantile(np.mean(apart, 0), (.025, .975))
            row[f'{name}, difference'] = f'{means[0] - means[1]:+.3f} ({low:+.3f} to {high:+.3f})'
        rows.append(row)
    return pd.DataFrame(rows)


def parse_arguments():
    "Read the command line"
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument('--work', help='folder for crops; they are cut once')
    parser.add_argument('--without', nargs='*', default=[], choices=('drawn', 'ground'))
    parser.add_argument('--laboratories', nargs='*', default=list(LEAVES_TOGETHER), choices=LEAVES_TOGETHER)
    parser.add_argument('--rows', nargs='*', default=list(USUAL_ROWS), choices=(*ROWS, 'all'))
    numbers = {'epochs': 4, 'per-class': 200, 'size': 128, 'fields': 40, 'workers': os.cpu_count()}
    for name, default in numbers.items():
        parser.add_argument(f'--{name}', type=int, default=default)
    parser.add_argument('--write', action='store_true', help='write cblc/assets/left_out.csv')
    parser.add_argument('--quick', action='store_true')
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.epochs, arguments.per_class, arguments.fields = 1, 12, 6
    if 'all' in arguments.rows:
        arguments.rows = list(ROWS)
    if 'recipe' not in arguments.rows:
        parser.error("--rows: name 'recipe' too, which the others are compared with")
    arguments.work = arguments.work or tempfile.mkdtemp()
    return arguments


def write_left_out(scores):
    "Write what left-out laboratories taught, where `cblc.trust.domain` reads it"
    path = Path(__file__).resolve().parents[1]/'cblc'/'assets'/'left_out.csv'
    rows = [
        dict(laboratory=center) | {key: found[key] for key in ('n', 'guessed', 'accuracy')}
        for (center, use), found in scores.items() if use == 'recipe'
    ]
    pd.DataFrame(rows).to_csv(path, index=False)
    print(f'wrote {path.name}: {len(rows)} laboratories')


def main():
    "Leave out each group in turn and print the table"
    arguments = parse_arguments()
    cut, whole = read_all(arguments)
    scores, draws = {}, {}
    for group in arguments.laboratories:
        own_scores, own_draws = leave_out(group, cut, whole, arguments)
        scores, draws = scores | own_scores, draws | own_draws
    figures = {}
    for (center, use), found in scores.items():
        start = '' if use == 'recipe' else use.replace(', ', ' ').replace(' ', '_') + '_'
        for key in ('balanced_accuracy', 'cblc_weighted_f1'):
            figures.setdefault(center, {})[start + key] = found[key]
    print(pd.DataFrame(figures).to_string())
    print(differences(scores, draws).to_string(index=False))
    if arguments.write:
        write_left_out(scores)
    print(json.dumps(figures))


if __name__ == '__main__':
    main()
