"""Real cells of a laboratory that had no part in the training.

    python benchmarks/real_marrow.py [--work DIR] [--epochs 4] [--per-class 200] [--without drawn ground]
                                     [--laboratories bm_munich pbc128 small] [--write] [--quick]

A laboratory is left out whole, a classifier is trained on all others by the shipped classifier's recipe
(recipes/classifier.py, with fewer cells and epochs), and names the left-out cells. Munich's two marrow sets
are of one archive and leave together; the small sets (BCISC, AML-LMU, and the two of segmentation_wbc,
which never teach) leave together. Beside it stands what a user would write in an evening: timm's network
from the same ImageNet weights, fine-tuned on the whole pictures of the same laboratories, for the same
epochs.

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
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from _recipe import recipe

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


def train(cells, plain, arguments):
    "Train by the recipe, or a plain fine-tune from the same weights"
    from cblc.classifier import fit_classifier
    from cblc.data import VOCABULARY
    from cblc.learn.settings import fit_settings
    made = recipe()
    if not plain:
        cells = made.marrow_in_front(made.in_collages(made.in_real_colors(cells), arguments.per_class//4))
    parts = {part: cells.take((cells.table.part == part).to_numpy()) for part in ('train', 'valid')}
    settings = fit_settings(**made.SETTINGS | dict(epochs=arguments.epochs, threads=arguments.workers))
    if plain:
        settings = fit_settings(
            recipe='plain', arch=made.SETTINGS['arch'], pretrained='package', size=made.SETTINGS['size'],
            batch=64, lr=1e-3, epochs=arguments.epochs, threads=arguments.workers)
    stages = {
        part: (own.crops, own.table.code.tolist(), own.table.group.tolist()) for part, own in parts.items()
    }
    return fit_classifier(*stages['train'], settings=settings, vocabulary=VOCABULARY, valid=stages['valid'])


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
    "Score one laboratory's cells, with intervals, and say how sure the classifier was of them"
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
        guessed=round(guessed_accuracy(confidence, threshold), 4))


def leave_out(group, cut, whole, arguments):
    "Train twice without a group of sets and judge its laboratories"
    left_out = LEAVES_TOGETHER[group]
    results = {}
    for peer, sets in (('recipe', cut), ('plain', whole)):
        teaching = teachers(sets, left_out)
        classifier = train(teaching, peer == 'plain', arguments)
        threshold = recipe().sure_enough(classifier, teaching)
        for name in left_out:
            own = sets[name]
            for center in sorted(set(own.table.set)):
                scores = judge(classifier, own.take((own.table.set == center).to_numpy()), threshold)
                results.setdefault(center, {})[peer] = scores
                print(f'{center:20} {peer:7} {json.dumps(scores)}', flush=True)
    return results


def parse_arguments():
    "Read the command line"
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument('--work', help='folder for crops; they are cut once')
    parser.add_argument('--without', nargs='*', default=[], choices=('drawn', 'ground'))
    parser.add_argument('--laboratories', nargs='*', default=list(LEAVES_TOGETHER), choices=LEAVES_TOGETHER)
    numbers = {'epochs': 4, 'per-class': 200, 'fields': 40, 'workers': os.cpu_count()}
    for name, default in numbers.items():
        parser.add_argument(f'--{name}', type=int, default=default)
    parser.add_argument('--write', action='store_true', help='write cblc/assets/left_out.csv')
    parser.add_argument('--quick', action='store_true')
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.epochs, arguments.per_class, arguments.fields = 1, 12, 6
    arguments.work = arguments.work or tempfile.mkdtemp()
    return arguments


def write_left_out(results):
    "Write what left-out laboratories taught, where `cblc.trust.domain` reads it"
    path = Path(__file__).resolve().parents[1]/'cblc'/'assets'/'left_out.csv'
    keys = ('n', 'guessed', 'accuracy')
    rows = [
        dict(laboratory=center) | {key: peers['recipe'][key] for key in keys}
        for center, peers in results.items()
    ]
    pd.DataFrame(rows).to_csv(path, index=False)
    print(f'wrote {path.name}: {len(rows)} laboratories')


def main():
    "Leave out each group in turn and print the table"
    arguments = parse_arguments()
    cut, whole = read_all(arguments)
    results = {}
    for group in arguments.laboratories:
        results |= leave_out(group, cut, whole, arguments)
    figures = {
        center: {
            key if peer == 'recipe' else f'plain_{key}': scores[key]
            for peer, scores in peers.items() for key in ('balanced_accuracy', 'cblc_weighted_f1')
        } for center, peers in results.items()
    }
    print(pd.DataFrame(figures).T.to_string())
    if arguments.write:
        write_left_out(results)
    print(json.dumps(figures))


if __name__ == '__main__':
    main()
