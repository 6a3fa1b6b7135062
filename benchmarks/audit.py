"""Do a hundred labels of a patient's own smear make the ratio right where a frozen correction fails?

    python benchmarks/audit.py [--quick] [--seed N] [--jobs 1] [--classifier inverted]

Simulated patients of foreign laboratories (`cblc.ratio.foreign`): log-odds shifted by up to 1.5, a fifth
of the cells confusable (in every second patient: a fifth of all cells say nothing; in the others a fifth
of the other cells look like CBLC), a tenth of the finds no cells, recall 0.7 for CBLC and 0.95 for
others, ICC 0.1 between fields, 200-2,000 cells, a quarter of the patients in each band. At most 100
answers a patient, in rounds of 20: a find is one answer, a region with nothing missed is one, every
missed cell named is one.

- the audit: coverage and width of its 95 % interval for the ratio on the pictures, by band, and of its
  interval for the marrow;
- without the model: the same program and frame, its probabilities withheld (`width_ratio`);
- the ideal count: 100 cells drawn at random from all cells on the pictures as though every one were known
  (missed ones too), Wilson's interval for a finite population (`width_ratio_ideal`): no program can do
  that;
- the frozen correction of the home laboratory;
- the confidence sequence looked at after every label: `anytime_coverage` counts patients in whom it never
  failed.

The audit is to be valid whatever the classifier did: with --classifier its probabilities are turned around
(`inverted`), all the same (`constant`), or drawn at random (`random`), and the coverage has to stay.

The last line is JSON: coverage_min, coverage_max (over bands), width_ratio, anytime_coverage, and more.
"""
import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd

from cblc.core.measures import exact_interval, wilson_interval
from cblc.data import VOCABULARY
from cblc.patient import BANDS
from cblc.ratio.audit import estimate
from cblc.ratio.correction import correct_patient
from cblc.ratio.foreign import answer_plan, draw_smear
from cblc.ratio.prevalence import Validation
from cblc.ratio.sampling import AuditSettings, plan
from cblc.ratio.stopping import confidence_sequence

HOME = Validation(850, 150, 3840, 160, 110, 170, n_patients=20)
BLIND = AuditSettings(n_strata=1)


def audit_rows(smear, cells, seed, settings=AuditSettings(), answers=100):
    "Plan and answer in rounds of 20, up to so many answers"
    rows = None
    for budget in range(20, answers + 1, 20):
        rows = plan(cells, budget, seed, smear.regions, rows, settings=settings, vocabulary=VOCABULARY)
        rows = answer_plan(smear, rows)
    cost = np.maximum(rows.code.str.split().str.len().where(rows.kind == 'region', 1), 1)
    return rows[cost.cumsum() <= answers]


def ideal_width(smear, rng, n=100):
    "Measure the Wilson interval of a simple random sample of all cells"
    n_all = len(smear.is_cblc)
    share = rng.choice(smear.is_cblc, n, replace=False).mean()
    worth = n/(1 - n/n_all)
    low, high = wilson_interval(share*worth, worth)
    return high - low


def disguised(cells, how, rng):
    "Give the cells the probabilities of another classifier"
    p = cells.p_cblc.to_numpy()
    p = dict(real=p, inverted=1 - p, constant=np.full(len(p), .2), random=rng.random(len(p)))[how]
    is_called = p >= .5
    return cells.assign(p_cblc=p, p_N=p, p_N5=1 - p, cblc=is_called, category=np.where(is_called, 'N', 'N5'))


def one_patient(i, seed, classifier):
    "Audit one simulated patient in every way"
    smear = draw_smear([seed, i], band=i % 4, look_alikes=bool(i//4 % 2))
    smear = replace(smear, cells=disguised(smear.cells, classifier, np.random.default_rng([seed, i, 2])))
    words = dict(regions=smear.regions, vocabulary=VOCABULARY)
    rows = audit_rows(smear, smear.cells, i)
    share = estimate(smear.cells, rows, names=['cblc'], icc=.1, **words).shares['cblc']
    course = confidence_sequence(smear.cells, rows, **words)
    flat = smear.cells.assign(p_cblc=.2, cblc=False)
    blind_rows = audit_rows(smear, flat, i, BLIND)
    blind = estimate(flat, blind_rows, names=['cblc'], settings=BLIND, **words).shares['cblc']
    frozen = correct_patient(smear.cells, HOME).corrected_interval
    truth = smear.ratio
    return dict(
        band=BANDS[i % 4], look_alikes=bool(i//4 % 2), n_labels=len(rows),
        covers=share.low <= truth <= share.high,
        below=share.high < truth, above=share.low > truth, width=share.high - share.low,
        covers_smear=share.low_smear <= smear.expected <= share.high_smear,
        blind_covers=blind.low <= truth <= blind.high, blind_width=blind.high - blind.low,
        ideal_width=ideal_width(smear, np.random.default_rng([seed, i, 1])),
        frozen=frozen[0] <= truth <= frozen[1],
        anytime=bool(((course.low <= truth) & (truth <= course.high)).all()),
        anytime_width=course.high.iloc[-1] - course.low.iloc[-1], error=abs(share.ratio - truth))


def summary(group):
    "Summarize patients in a row"
    low, high = exact_interval(int(group.covers.sum()), len(group))
    names = ['covers', 'below', 'above', 'covers_smear', 'blind_covers', 'frozen', 'anytime', 'width',
             'anytime_width', 'error']
    return pd.Series(dict(n=len(group), low=low, high=high, **group[names].mean(),
                          width_ratio=group.width.mean()/group.blind_width.mean(),
                          width_ratio_ideal=group.width.mean()/group.ideal_width.mean()))


def main():
    "Run the patients and print tables and JSON"
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument('--quick', action='store_true', help='a smoke run of 80 patients')
    parser.add_argument('--seed', type=int, default=2026, help='of the patients')
    parser.add_argument('--patients', type=int, default=2000, help='how many')
    parser.add_argument('--jobs', type=int, default=1, help='processes')
    kinds = ('real', 'inverted', 'constant', 'random')
    parser.add_argument('--classifier', default='real', choices=kinds, help='what it did')
    args = parser.parse_args()
    n = 80 if args.quick else args.patients
    with ProcessPoolExecutor(args.jobs) as pool:
        audit = partial(one_patient, seed=args.seed, classifier=args.classifier)
        table = pd.DataFrame(list(pool.map(audit, range(n), chunksize=8)))
    bands = table.groupby('band').apply(summary, include_groups=False).reindex(BANDS)
    kinds = table.groupby('look_alikes').apply(summary, include_groups=False)
    total = summary(table)
    units = table.n_labels.mean()
    print(f'{n} patients, seed {args.seed}, classifier {args.classifier}, CPU; at most 100 answers each '
          f'({units:.0f} units)')
    print(pd.concat([bands, kinds, total.to_frame('all').T]).round(3).to_string())
    print(json.dumps(dict(
        coverage_min=round(bands.covers.min(), 4), coverage_max=round(bands.covers.max(), 4),
        width_ratio=round(total.width_ratio, 4), anytime_coverage=round(total.anytime, 4),
        anytime_coverage_min_band=round(bands.anytime.min(), 4),
        width_ratio_ideal=round(total.width_ratio_ideal, 4),
        width_ratio_max_band=round(bands.width_ratio.max(), 4),
        frozen_coverage=round(total.frozen, 4), smear_coverage=round(total.covers_smear, 4),
        n_patients=n, seed=args.seed, classifier=args.classifier, quick=args.quick)))


if __name__ == '__main__':
    main()
