"""Do a hundred labels of a patient's own smear make the ratio right where a frozen correction fails?

    python benchmarks/audit.py [--quick] [--seed N] [--patients 2000] [--others 400] [--jobs 1]

Simulated patients of foreign laboratories (`cblc.ratio.foreign`): log-odds shifted by up to 1.5, a fifth
of the cells confusable (in every second patient: a fifth of all cells say nothing; in the others a fifth
of the other cells look like CBLC), a tenth of the finds no cells, recall 0.7 for CBLC and 0.95 for
others, ICC 0.1 between fields, 200-2,000 cells, a quarter of the patients in each band. A hundred
answers a patient, in rounds of 20: a find is one answer, a region with nothing missed is one, every
missed cell named is one. A person stops at the first answer from the 98th on, and finishes the region that
is open: who leaves out the region that would go beyond a hundred leaves out regions with many missed cells.

- the audit: coverage and width of its 95 % interval for the ratio on the pictures, by band, and of its
  interval for the marrow;
- without the model: the same program and frame, its probabilities withheld (`width_ratio`);
- the ideal count: 100 cells drawn at random from all cells on the pictures as though every one were known
  (missed ones too), Wilson's interval for a finite population (`width_ratio_ideal`): no program can do
  that;
- the frozen correction of the home laboratory;
- the confidence sequence looked at after every label: `anytime_coverage` counts patients in whom it never
  failed.

The audit is to be valid whatever the classifier did, so the first --others patients are audited again with
its probabilities turned around (`inverted`), all the same (`constant`), or drawn at random (`random`): their
figures carry these names as endings. All settings were chosen on other seeds (1001 and 1002).

The last line is JSON: coverage_min, coverage_max (over bands), width_ratio, anytime_coverage, and more.
"""
import argparse
import json
from concurrent.futures import ProcessPoolExecutor
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
from cblc.ratio.sampling import AuditSettings, plan_in_rounds
from cblc.ratio.stopping import confidence_sequence

HOME = Validation(850, 150, 3840, 160, 110, 170, n_patients=20)
BLIND = AuditSettings(n_strata=1)


def audit_rows(smear, cells, seed, settings=AuditSettings(), answers=100):
    "Plan and answer in rounds of 20, until 98 answers or a few more are given"
    rows = plan_in_rounds(
        cells, partial(answer_plan, smear), answers, seed, smear.regions, settings=settings,
        vocabulary=VOCABULARY)
    cost = np.maximum(rows.code.str.split().str.len().where(rows.kind == 'region', 1), 1).cumsum().to_numpy()
    kept = int(np.searchsorted(cost, answers - 2)) + 1
    return rows[:kept], int(cost[min(kept, len(cost)) - 1])


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


def audited(smear, cells, seed, settings=AuditSettings()):
    "Audit a patient: the share, the labels, and how many answers they took"
    rows, n_answers = audit_rows(smear, cells, seed, settings)
    share = estimate(cells, rows, smear.regions, ['cblc'], icc=.1, settings=settings, vocabulary=VOCABULARY)
    return share.shares['cblc'], rows, n_answers


def one_patient(i, seed, classifier):
    "Audit one simulated patient in every way"
    smear = draw_smear([seed, i], band=i % 4, look_alikes=bool(i//4 % 2))
    cells = disguised(smear.cells, classifier, np.random.default_rng([seed, i, 2]))
    share, rows, n_answers = audited(smear, cells, i)
    course = confidence_sequence(cells, rows, smear.regions, vocabulary=VOCABULARY)
    blind, _, _ = audited(smear, cells.assign(p_cblc=.2, cblc=False), i, BLIND)
    frozen = correct_patient(cells, HOME).corrected_interval if classifier == 'real' else (np.nan, np.nan)
    truth = smear.ratio
    return dict(
        band=BANDS[i % 4], look_alikes=bool(i//4 % 2), n_labels=len(rows), n_answers=n_answers,
        covers=share.low <= truth <= share.high,
        below=share.high < truth, above=share.low > truth, width=share.high - share.low,
        covers_smear=share.low_smear <= smear.expected <= share.high_smear,
        blind_covers=blind.low <= truth <= blind.high, blind_width=blind.high - blind.low,
        ideal_width=ideal_width(smear, np.random.default_rng([seed, i, 1])),
        frozen=frozen[0] <= truth <= frozen[1],
        anytime=bool(((course.low <= truth) & (truth <= course.high)).all()),
        anytime_width=course.high.iloc[-1] - course.low.iloc[-1], error=abs(share.ratio - truth),
        blind_error=abs(blind.ratio - truth))


def summary(group):
    "Summarize patients in a row"
    low, high = exact_interval(int(group.covers.sum()), len(group))
    names = ['covers', 'below', 'above', 'covers_smear', 'blind_covers', 'frozen', 'anytime', 'width',
             'anytime_width', 'error']
    return pd.Series(dict(n=len(group), low=low, high=high, **group[names].mean(),
                          width_ratio=group.width.mean()/group.blind_width.mean(),
                          width_ratio_ideal=group.width.mean()/group.ideal_width.mean(),
                          error_ratio=np.sqrt((group.error**2).mean()/(group.blind_error**2).mean())))


def one_world(classifier, n, seed, pool):
    "Audit n patients with one classifier: print the table, give the figures"
    audit = partial(one_patient, seed=seed, classifier=classifier)
    table = pd.DataFrame(list(pool.map(audit, range(n), chunksize=8)))
    bands = table.groupby('band').apply(summary, include_groups=False).reindex(BANDS)
    kinds = table.groupby('look_alikes').apply(summary, include_groups=False)
    total = summary(table)
    print(f'{n} patients, seed {seed}, classifier {classifier}, CPU; {table.n_answers.mean():.1f} answers '
          f'each ({table.n_answers.max()} at most, {table.n_labels.mean():.0f} units)')
    print(pd.concat([bands, kinds, total.to_frame('all').T]).round(3).to_string(), flush=True)
    ending = '' if classifier == 'real' else f'_{classifier}'
    figures = dict(
        coverage_min=bands.covers.min(), coverage_max=bands.covers.max(), width_ratio=total.width_ratio,
        anytime_coverage=total.anytime, anytime_coverage_min_band=bands.anytime.min(),
        blind_coverage_min=bands.blind_covers.min(), n_patients=n)
    if classifier == 'real':
        figures |= dict(
            width_ratio_ideal=total.width_ratio_ideal, width_ratio_max_band=bands.width_ratio.max(),
            frozen_coverage=total.frozen, smear_coverage=total.covers_smear, error_ratio=total.error_ratio)
    return {f'{name}{ending}': round(value, 4) for name, value in figures.items()}


def main():
    "Run the patients and print tables and JSON"
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument('--quick', action='store_true', help='a smoke run of 80 patients')
    parser.add_argument('--seed', type=int, default=2026, help='of the patients')
    parser.add_argument('--patients', type=int, default=2000, help='how many')
    parser.add_argument('--others', type=int, default=400, help='of them with each useless classifier')
    parser.add_argument('--jobs', type=int, default=1, help='processes')
    args = parser.parse_args()
    n, n_others = (80, 16) if args.quick else (args.patients, min(args.others, args.patients))
    figures = {}
    with ProcessPoolExecutor(args.jobs) as pool:
        for classifier in ('real', 'constant', 'random', 'inverted')[:4 if n_others else 1]:
            figures |= one_world(classifier, n if classifier == 'real' else n_others, args.seed, pool)
    print(json.dumps(figures | dict(seed=args.seed, quick=args.quick)))


if __name__ == '__main__':
    main()
