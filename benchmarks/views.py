"""What are several views of a cell worth, and what does half-width arithmetic cost?

    python benchmarks/views.py [--sets bm_munich bcisc] [--most 300] [--quick]

A crop may be shown to the classifier in eight ways (turned and flipped), whose answers are averaged;
each way costs as much time as the first. Real cells of the sets' validation parts fit the temperature of
each variant (so that all are equally well calibrated); their test parts, which no training and no choice
has seen, score it: accuracy of the category (each label's share of cells named right, and all cells),
log loss, calibration error, and CBLC's weighted F1. Beside each score stands its difference from the
variant that ships, with a 95 % bootstrap interval over cells.
"""
import argparse
import json
import time
from dataclasses import replace

import numpy as np
import pandas as pd

from cblc.classifier import Classifier
from cblc.cells.singles import read_singles
from cblc.data import VOCABULARY
from cblc.hospital.centers import own_crop_settings
from cblc.core.measures import expected_calibration_error
from cblc.learn.leaves import allowed_leaves, fit_temperature, to_probabilities
from cblc.sources.real_cells import read_real_cells

PARTS = 'valid', 'test'


def read_cells(sets, most, settings):
    "Read crops of the validation and test parts: crops, and a table with code, part and set"
    table = read_real_cells(sets=sets)
    table = table[table.part.isin(PARTS) & (table.code != 'artefact')]
    table = table.groupby(['center', 'part', 'label'], group_keys=False).head(most).reset_index(drop=True)
    crops, rows, _, _ = read_singles(list(table.path), settings, table.center.tolist(), progress=False)
    return crops, table.iloc[rows].reset_index(drop=True)


def judge(logits, allowed, is_valid, leaves):
    "Calibrate on the validation cells, and score each test cell: right, confidence, log loss, p of CBLC"
    temperature = fit_temperature(logits[is_valid], allowed[is_valid])
    p, allowed = to_probabilities(logits[~is_valid], temperature), allowed[~is_valid]
    of_category, of_truth = p@leaves.to_category, allowed@leaves.to_category > 0
    best = of_category.argmax(1)
    return pd.DataFrame(dict(
        right=of_truth[np.arange(len(p)), best], confidence=of_category.max(1),
        loss=-np.log((p*allowed).sum(1).clip(1e-12))))


def summarize(cells, labels):
    "Give the scores of a variant"
    balanced = cells.right.groupby(labels).mean().mean()
    return dict(
        accuracy=cells.right.mean(), balanced=balanced,
        log_loss=cells.loss.mean(),
        ece=expected_calibration_error(cells.right.to_numpy(), cells.confidence.to_numpy()))


def differences(cells, reference, labels, n=500, seed=0):
    "Give 95 % intervals of the scores' differences from the reference, cells drawn with replacement"
    rng, draws = np.random.default_rng(seed), []
    for _ in range(n):
        rows = rng.integers(len(labels), size=len(labels))
        drawn = [table.iloc[rows].reset_index(drop=True) for table in (cells, reference)]
        parts = [summarize(table, labels[rows]) for table in drawn]
        draws.append({name: parts[0][name] - parts[1][name] for name in parts[0]})
    return pd.DataFrame(draws).quantile([.025, .975])


def measure(arguments):
    "Score all variants: a table, and the figures for the last line"
    shipped = Classifier.load()
    crops, table = read_cells(arguments.sets, arguments.most, own_crop_settings(shipped))
    allowed = allowed_leaves(table.code, shipped.leaves, vocabulary=VOCABULARY).astype(float)
    is_valid, labels = (table.part == 'valid').to_numpy(), table.label[table.part == 'test'].to_numpy()
    print(f'{is_valid.sum()} validation and {len(labels)} test cells of {", ".join(arguments.sets)}')
    scored = {}
    for precision in ('f32', 'bf16'):
        classifier = Classifier.load(precision=precision)
        for views in (1, 2, 4, 8):
            start = time.process_time()
            logits = replace(classifier, views=views).logits(crops, progress=False)
            seconds = time.process_time() - start
            scored[views, precision] = judge(logits, allowed, is_valid, shipped.leaves), seconds
    reference = scored[shipped.views, 'f32'][0]
    rows = []
    for (views, precision), (cells, seconds) in scored.items():
        row = dict(views=views, precision=precision, ms_a_cell=1000*seconds/len(crops))
        row |= summarize(cells, labels)
        limits = differences(cells, reference, labels, arguments.draws)
        for name in limits:
            row[f'd_{name}'] = f'{limits[name].iloc[0]:+.4f} to {limits[name].iloc[1]:+.4f}'
        rows.append(row)
    return pd.DataFrame(rows), shipped.views, len(labels)


def main():
    "Measure and print"
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument('--sets', nargs='+', default=['bm_munich', 'bcisc'])
    parser.add_argument('--most', type=int, default=300, help='cells of each label and part')
    parser.add_argument('--draws', type=int, default=500)
    parser.add_argument('--quick', action='store_true')
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.most, arguments.draws = 6, 20
    table, views, n = measure(arguments)
    print(table.round(4).to_string(index=False))
    best = {f'{row.views} {row.precision}': round(row.log_loss, 4) for row in table.itertuples()}
    right = {f'{row.views} {row.precision}': round(row.accuracy, 4) for row in table.itertuples()}
    print(json.dumps(dict(log_loss=best, accuracy=right, shipped_views=views, test_cells=n)))


if __name__ == '__main__':
    main()
