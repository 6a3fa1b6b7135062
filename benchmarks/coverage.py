"""Does the 95 % interval of a patient's CBLC ratio contain the truth, in every band?

    python benchmarks/coverage.py [--quick] [--seed N] [--jobs 2]

Simulated patients with a known ratio (`cblc.ratio.coverage` describes the world: clustered fields, missed cells, a classifier
that errs, and all of it known to the method only from each laboratory's finite validation):

- main world: four runs of 2,000 patients of 400 laboratories, ratio 1-60 % (a quarter in each band, log-uniform within),
  200-2,000 cells; `coverage` and its bands pool the four;
- fixed ratios 1, 3, 5, 10, 20, 40, 60 %: 1,000 patients each, so that no prior over the ratio can buy the coverage;
- harder worlds, in which patients differ from the validation's average (standard deviation of log-odds 0.15 and 0.5);
- peer in the same run: the plain count with its exact binomial (Clopper-Pearson) interval, and as point estimates
  classify-and-count, mean probability, adjusted count, probabilistic adjusted count and EM;
- time: 10,000 patients of 500 cells from the cells table to raw and corrected intervals.

The last line is JSON: coverage, coverage_min_band, coverage_max_band, binomial_coverage, mae_ratio (corrected over
classify-and-count), seconds_10k_patients, and what the runs were.
"""
import argparse, json, time
from concurrent.futures import ProcessPoolExecutor
import numpy as np, pandas as pd
from cblc.data import VOCABULARY
from cblc.ratio.coverage import coverage_table, judge, make_world, point_errors
from cblc.ratio.patients import count_fields, patient_table
from cblc.ratio.prevalence import Validation, correct_ratios

RATIOS = (.01, .03, .05, .10, .20, .40, .60)
COLS = ['n', 'coverage', 'low', 'high', 'below', 'above', 'binomial', 'width', 'mae_raw', 'mae_corrected', 'mae_ratio']

def run(job):
    "Simulate one world and judge it; the first also compares point estimates"
    kw, points = job; world = make_world(**kw); judged = judge(world)
    return judged, point_errors(world, judged) if points else None

def seconds_10k(n_patients=10_000, n_cells=500, n_fields=12, seed=0):
    "Time raw and corrected intervals of many patients, from the cells table on"
    rng = np.random.default_rng(seed); p = rng.beta(.3, 1.2, n_patients*n_cells).astype('f4')
    who = np.repeat([f'p{i:05d}' for i in range(n_patients)], n_cells); field = np.tile(np.arange(n_cells)*n_fields//n_cells, n_patients)
    cells = pd.DataFrame(dict(patient_id=who, image_id=np.char.add(np.char.add(who, '-'), field.astype(str)), center='center1', category='N', counted=True, p_cblc=p, cblc=p >= .5))
    start = time.perf_counter(); table = patient_table(cells, vocabulary=VOCABULARY); raw = time.perf_counter() - start
    table = table.drop(columns='n_cells').join(correct_ratios(count_fields(cells), Validation(850, 150, 2900, 100, 80, 120)),
                                               on='patient_id')
    total = time.perf_counter() - start
    assert len(table) == n_patients and table[['cblc_low', 'corrected_low', 'corrected_high']].notna().to_numpy().all()
    return raw, total

def show(title, table): print(f'\n{title}'); print(table[COLS].to_string(float_format=lambda x: f'{x:.3f}'))

if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument('--quick', action='store_true', help='few patients, a smoke run')
    ap.add_argument('--seed', type=int, default=0); ap.add_argument('--jobs', type=int, default=2, help='processes')
    a = ap.parse_args(); n, labs, runs, fixed_n = (200, 20, 1, 60) if a.quick else (2000, 400, 4, 1000); s = 1000*a.seed
    jobs = [(dict(n_patients=n, n_labs=labs, seed=s + i), i == 0)
            for i in range(runs)] + [(dict(n_patients=n, n_labs=labs, differ=d, seed=s + 100 + i), False) for i, d in enumerate((.15, .5))]
    jobs += [(dict(n_patients=fixed_n, n_labs=fixed_n//5, ratio=r, seed=s + 200 + i), False) for i, r in enumerate(RATIOS)]
    raw, total = seconds_10k(1000 if a.quick else 10_000)
    with ProcessPoolExecutor(a.jobs) as pool: done = list(pool.map(run, jobs))
    main, fixed = pd.concat([j for j, _ in done[:runs]]), pd.concat([j for j, _ in done[runs + 2:]]); t = coverage_table(main)
    show(f'Main world: {runs} runs of {n} patients, {labs} laboratories each, seeds {s} to {s + runs - 1}; by true ratio', t)
    print('each run: ' + ', '.join(f'{j.corrected_covers.mean():.4f}' for j, _ in done[:runs]))
    show(f'Fixed true ratios, {fixed_n} patients each, seeds {s + 200} to {s + 200 + len(RATIOS) - 1}', coverage_table(fixed, by='truth'))
    for k, d in enumerate((.15, .5)):
        show(f'Harder world: patients differ by {d} in log-odds, {n} patients, seed {s + 100 + k}', coverage_table(done[runs + k][0]))
    print(f'\nMean absolute error in percentage points, {n} patients, seed {s}'); print(done[0][1].round(2).to_string())
    print(f'\n{1000 if a.quick else 10_000} patients of 500 cells: {raw:.1f} s with raw intervals, {total:.1f} s with corrected ones too (one process)')
    bands = t.drop(index='all').coverage
    print(json.dumps(dict(coverage=round(t.coverage['all'], 4), coverage_min_band=round(bands.min(), 4), coverage_max_band=round(bands.max(), 4), binomial_coverage=round(t.binomial['all'], 4), mae_ratio=round(t.mae_ratio['all'], 4),
                          seconds_10k_patients=round(total*(10 if a.quick else 1), 1), coverage_of_runs=[round(j.corrected_covers.mean(), 4) for j, _ in done[:runs]], coverage_fixed={f'{100*r:g} %': round(c, 4) for r, c in coverage_table(fixed, by='truth').coverage.drop('all').items()},
                          coverage_patients_differ={str(d): round(done[runs + k][0].corrected_covers.mean(), 4) for k, d in enumerate((.15, .5))}, n_patients=int(t.n['all']), seed=a.seed, quick=a.quick)))
