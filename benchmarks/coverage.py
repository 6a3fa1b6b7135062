"""Does the 95 % interval of a patient's CBLC ratio contain the truth, in every band?

    python benchmarks/coverage.py [--quick] [--seed N] [--jobs 2]

Simulated patients with a known ratio (`cblc.ratio.coverage` describes the world: fields, missed cells,
a classifier that errs, and all of it known to the method only from each laboratory's finite validation):

- main world: four runs of 2,000 patients of 400 laboratories, ratio 1-60 % (a quarter in each band,
  log-uniform within), 200-2,000 cells; `coverage` and its bands pool the four;
- fixed ratios 1, 3, 5, 10, 20, 40, 60 %: 1,000 patients each, so that no prior over the ratio can buy the
  coverage;
- harder worlds, in which patients differ from the validation's average (standard deviation of log-odds 0.15
  and 0.5);
- worlds in which the promise broke: the validation is of three main centers, or of one, and the smears come
  from another whose log-odds are shifted by -1 or +1, or all centers' shifts are drawn with a standard
  deviation of 0.5 or 1; a tenth of the detections is no cell; three or five validation patients, alike or
  differing by 0.5; an ICC of fields of 0.1 and 0.2 with 1-5 fields; ratios of 0, 0.2, 0.5, 90, 98 and 100 %.
  A world passes where its intervals cover at least 93 %, refused or not, or where at least 90 % of the
  intervals that miss were refused (`refused`);
- peer in the same run: the plain count with its exact binomial (Clopper-Pearson) interval, and as point
  estimates classify-and-count, mean probability, adjusted count, probabilistic adjusted count and EM;
- time: 10,000 patients of 500 cells from the cells table to raw and corrected intervals.

The last line is JSON: coverage, coverage_min_band, coverage_max_band, binomial_coverage, mae_ratio (corrected
over classify-and-count), seconds_10k_patients, what the runs were, and `worlds`: of each its coverage, the
share refused of the intervals that miss, the share refused of all, and the mean width.
"""
import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pandas as pd

from cblc.data import VOCABULARY
from cblc.ratio.correction import correct_ratios
from cblc.ratio.coverage import Troubles, count_broken, coverage_table, judge, make_world, point_errors
from cblc.ratio.patients import count_fields, patient_table
from cblc.ratio.prevalence import Validation

RATIOS = (.01, .03, .05, .10, .20, .40, .60)
DIFFER = (.15, .5)  # standard deviations of patients' shifts, in log-odds
EXTREME = (0., .002, .005, .9, .98, 1.)
COLUMNS = ['n', 'coverage', 'low', 'high', 'below', 'above', 'binomial', 'width', 'mae_raw', 'mae_corrected',
           'mae_ratio']


def broken_worlds():
    "Describe the worlds in which the promise broke: name -> arguments of `make_world`"
    worlds = {}
    for n, name in ((3, 'three main centers'), (1, 'one main center')):
        for shift in (-1., 1.):
            worlds[f'{name}, site shift {shift:+g}'] = dict(troubles=Troubles(n_centers=n, site_shift=shift))
        for sd in (.5, 1.):
            worlds[f'{name}, site SD {sd:g}'] = dict(troubles=Troubles(n_centers=n, site_sd=sd))
    worlds['10 % false detections'] = dict(troubles=Troubles(false=.1))
    for n in (3, 5):
        worlds[f'{n} validation patients'] = dict(troubles=Troubles(n_validated=n))
        worlds[f'{n} validation patients, SD 0.5'] = dict(troubles=Troubles(n_validated=n, differ=.5))
    for icc in (.1, .2):
        worlds[f'ICC {icc:g}, 1-5 fields'] = dict(icc=icc, n_fields=(1, 5))
    return worlds | {f'ratio {100*ratio:g} %': dict(ratio=ratio) for ratio in EXTREME}


def run(job):
    "Simulate one world and judge it; where asked, compare point estimates too"
    words, points = job
    world = make_world(**words)
    judged = judge(world)
    return judged, point_errors(world, judged) if points else None


def seconds_to_correct(n_patients, n_cells=500, n_fields=12, seed=0):
    "Time raw and corrected intervals of many patients, from the cells table on"
    n = n_patients*n_cells
    p = np.random.default_rng(seed).beta(.3, 1.2, n).astype('f4')
    patient = np.repeat([f'p{i:05d}' for i in range(n_patients)], n_cells)
    field = np.tile(np.arange(n_cells)*n_fields//n_cells, n_patients).astype(str)
    image = np.char.add(np.char.add(patient, '-'), field)
    cells = pd.DataFrame(dict(patient_id=patient, image_id=image, center='center1', category='N', p_cblc=p,
                              cblc=p >= .5, counted=True))
    start = time.perf_counter()
    table = patient_table(cells, vocabulary=VOCABULARY)
    raw = time.perf_counter() - start
    corrected = correct_ratios(count_fields(cells), Validation(850, 150, 2900, 100, 80, 120))
    table = table.drop(columns='n_cells').join(corrected, on='patient_id')
    total = time.perf_counter() - start
    limits = ['cblc_low', 'corrected_low', 'corrected_high']
    assert len(table) == n_patients and table[limits].notna().to_numpy().all()
    return raw, total


def show(title, table):
    "Print a coverage table"
    print(f'\n{title}')
    print(table[COLUMNS].to_string(float_format=lambda x: f'{x:.3f}'))


def parse_args():
    "Read the command line"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--quick', action='store_true', help='few patients, a smoke run')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--jobs', type=int, default=2, help='processes')
    return parser.parse_args()


def main():
    "Run all worlds and print the tables"
    args = parse_args()
    n, n_labs, n_runs, n_fixed, n_timed = 2000, 400, 4, 1000, 10_000
    if args.quick:
        n, n_labs, n_runs, n_fixed, n_timed = 200, 20, 1, 60, 1000
    seed = 1000*args.seed
    words = dict(n_patients=n, n_labs=n_labs)
    jobs = [(words | dict(seed=seed + i), i == 0) for i in range(n_runs)]
    jobs += [(words | dict(troubles=Troubles(differ=d), seed=seed + 100 + i), False)
             for i, d in enumerate(DIFFER)]
    jobs += [(dict(n_patients=n_fixed, n_labs=n_fixed//5, ratio=r, seed=seed + 200 + i), False)
             for i, r in enumerate(RATIOS)]
    broken = broken_worlds()
    jobs += [(dict(n_patients=n_fixed, n_labs=n_fixed//5, seed=seed + 300 + i) | own, False)
             for i, own in enumerate(broken.values())]
    raw, total = seconds_to_correct(n_timed)
    with ProcessPoolExecutor(args.jobs) as pool:
        done = list(pool.map(run, jobs))
    worlds, errors = [judged for judged, _ in done], done[0][1]
    n_main, n_known = n_runs + len(DIFFER), n_runs + len(DIFFER) + len(RATIOS)
    runs, harder, fixed = worlds[:n_runs], worlds[n_runs:n_main], worlds[n_main:n_known]
    counted = pd.DataFrame({name: count_broken(judged) for name, judged in zip(broken, worlds[n_known:])}).T
    by_band, by_ratio = coverage_table(pd.concat(runs)), coverage_table(pd.concat(fixed), by='truth')

    show(f'Main world: {n_runs} runs of {n} patients, {n_labs} laboratories each, '
         f'seeds {seed} to {seed + n_runs - 1}; by true ratio', by_band)
    print('each run: ' + ', '.join(f'{judged.corrected_covers.mean():.4f}' for judged in runs))
    seeds = f'seeds {seed + 200} to {seed + 200 + len(RATIOS) - 1}'
    show(f'Fixed true ratios, {n_fixed} patients each, {seeds}', by_ratio)
    for i, (differ, judged) in enumerate(zip(DIFFER, harder)):
        show(f'Harder world: patients differ by {differ} in log-odds, {n} patients, seed {seed + 100 + i}',
             coverage_table(judged))
    print(f'\nWorlds in which the promise broke: {n_fixed} patients each, seeds {seed + 300} to '
          f'{seed + 300 + len(broken) - 1}\n{counted.round(3).to_string()}')
    print(f'\nMean absolute error in percentage points, {n} patients, seed {seed}')
    print(errors.round(2).to_string())
    print(f'\n{n_timed} patients of 500 cells: {raw:.1f} s with raw intervals, '
          f'{total:.1f} s with corrected ones too (one process)')
    bands = by_band.drop(index='all').coverage
    print(json.dumps(dict(
        coverage=round(by_band.coverage['all'], 4),
        coverage_min_band=round(bands.min(), 4),
        coverage_max_band=round(bands.max(), 4),
        binomial_coverage=round(by_band.binomial['all'], 4),
        mae_ratio=round(by_band.mae_ratio['all'], 4),
        seconds_10k_patients=round(total*10_000/n_timed, 1),
        coverage_of_runs=[round(judged.corrected_covers.mean(), 4) for judged in runs],
        coverage_fixed={f'{100*r:g} %': round(c, 4) for r, c in by_ratio.coverage.drop('all').items()},
        coverage_patients_differ={str(differ): round(judged.corrected_covers.mean(), 4)
                                  for differ, judged in zip(DIFFER, harder)},
        width=round(by_band.width['all'], 4),
        refused_at_home=round((pd.concat(runs).refused != '').mean(), 4),
        worlds=json.loads(counted.drop(columns='n').astype(float).round(4).to_json(orient='index')),
        n_patients=int(by_band.n['all']),
        seed=args.seed,
        quick=args.quick)))


if __name__ == '__main__':
    main()
