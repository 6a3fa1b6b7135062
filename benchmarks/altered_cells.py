"""What another hue, or a picture's edge across the cell, costs the classifier that ships.

    python benchmarks/altered_cells.py [--model BUNDLE] [--per-class 300] [--work DIR] [--quick]

Validation cells of two laboratories that taught it (Munich's marrow and PBC's blood; recipes/classifier.py)
and the cells of two that never did (segmentation_WBC's): as they are, drawn toward a random hue and darkness,
and cut. What lies farther from the cell's middle than a share of half a usual cell's width (6.5 micrometers)
is taken away to one side, and what is left is moved to the middle, as the finder would. `cblc.cells.frame`
counts cells whose middle lies three quarters of that half width or more inside the picture. A hue or a cut is
an alteration, no other laboratory and no other microscope.

Of each: the share named right of all cells that have a name, balanced accuracy over the experts' words, and
the weighted F1 of CBLC. The last line is JSON: for each alteration and laboratory `right`,
`balanced_accuracy` and `cblc_weighted_f1`.
"""
import argparse
import json
import os
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from _recipe import recipe

SETS = dict(bm_munich='valid', pbc128='valid', segmentation_wbc='test')  # and the part that is judged
HALF_CELL_UM = 6.5
CUTS = (1., .75, .5)    # shares of half a cell's width, at which the picture ends


def in_hues(cells, seed=0):
    "Draw every crop toward a hue of its own, and make it paler or darker"
    from cblc.cells.stain import toward_hue
    rng = np.random.default_rng(seed)
    crops = [
        toward_hue(crop, rng.dirichlet([4., 4., 4.])*3, .7, rng.uniform(.7, 1.3)) for crop in cells.crops
    ]
    return replace(cells, crops=np.array(crops))


def cut_off(cells, share):
    "Take away what lies beyond a share of half a cell's width to the right of the middle, and move the rest"
    made = recipe()
    fill = np.array(made.CUT.fill, np.uint8)
    side = made.CUT.size
    half_cell = HALF_CELL_UM/made.CUT.window_um*side
    edge = round(side/2 + share*half_cell)
    shift = max(0, round((1 - share)*half_cell/2))
    crops = np.empty_like(cells.crops)
    crops[:] = fill
    crops[:, :, shift:edge + shift] = cells.crops[:, :, :edge]
    return replace(cells, crops=crops)


def score(classifier, cells):
    "Score one laboratory's cells"
    from cblc.data import VOCABULARY
    from cblc.learn.leaves import allowed_leaves
    made = recipe()
    named = cells.take((cells.table.code != made.ARTEFACT).to_numpy())
    leaves, (name,) = classifier.leaves, set(named.table.set)
    allowed = allowed_leaves(named.table.code, leaves, vocabulary=VOCABULARY)@leaves.to_category > 0
    found = classifier.predict(named.crops, progress=False).category
    is_right = allowed[np.arange(len(allowed)), [leaves.categories.index(one) for one in found]]
    judged = made.judge(classifier, named)
    keys = ('balanced_accuracy', 'cblc_weighted_f1')
    return dict(n=len(is_right), right=round(float(is_right.mean()), 4)) | {
        key: judged[f'{name}_{key}'] for key in keys}


def main():
    "Alter the cells in each way and print the table"
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument('--model', help='a classifier bundle; the shipped one by default')
    parser.add_argument('--per-class', type=int, default=300, help='pictures read of each word, of all parts')
    parser.add_argument('--work', help='folder for crops; they are cut once')
    parser.add_argument('--threads', type=int, default=os.cpu_count())
    parser.add_argument('--quick', action='store_true')
    arguments = parser.parse_args()
    from cblc.classifier import Classifier
    made, work = recipe(), Path(arguments.work or tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)
    most = 12 if arguments.quick else arguments.per_class
    classifier = Classifier.load(arguments.model, threads=arguments.threads)
    alterations = {'as they are': lambda cells: cells, 'in other hues': in_hues}
    alterations |= {f'cut at {share:g}': partial(cut_off, share=share) for share in CUTS}
    rows = []
    for name, part in SETS.items():
        cells = made.kept(work, name, partial(made.real_cells, name, most))
        cells = cells.take((cells.table.part == part).to_numpy())
        for laboratory in sorted(set(cells.table.set)):
            own = cells.take((cells.table.set == laboratory).to_numpy())
            for alteration, alter in alterations.items():
                rows.append(dict(laboratory=laboratory, cells=alteration) | score(classifier, alter(own)))
    print(pd.DataFrame(rows).to_string(index=False))
    print(json.dumps({
        row['cells']: {own['laboratory']: {key: own[key] for key in list(own)[3:]}
                       for own in rows if own['cells'] == row['cells']}
        for row in rows}))


if __name__ == '__main__':
    main()
