"""What each idea of the classifier is worth in hospitals that had no part in the training, on drawn patients.

    python benchmarks/ablation.py [--rows 'plain;cblc, no zoom or spin'] [--epochs 6] [--epochs2 6] [--seed 0]
                                  [--jobs N] [--work DIR] [--quick]

258 drawn patients of six centers, two fields each; training in two stages on patients of Centers 1-3,
temperature and best epoch on others of them, Centers 4, 5 and 6 external. All rows share cohort,
detections, splits, epochs, size, learning rate, batch and random first weights, but for the rows that
change just that. A row is one network (P1's five folds would multiply every row alike), used twice: frozen,
and adapted, its normalization measured again on each center's crops without their labels, as the recipe
`cblc` does in a laboratory that is new to it. The last line has `p1` as P1 uses it, frozen, and `cblc`
adapted. CBLC or not, over detections matched with an expert's cell: weighted F1 and expected calibration
error, 95 % intervals by bootstrap over patients. Drawn cells: the table ranks ideas, it does not foretell a
hospital's figure.
"""
import argparse
import json
import multiprocessing
import tempfile
import time
from dataclasses import replace
from pathlib import Path

EXTERNAL = ('center4', 'center5', 'center6')
ROWS = {  # name: recipe, crops, settings that differ
    'plain': ('plain', 'p1', {}),
    'p1': ('p1', 'p1', {}),
    "p1, cblc's crops": ('p1', 'ours', {}),
    'cblc': ('cblc', 'ours', {}),
    'cblc, not white-balanced': ('cblc', 'unlit', {}),
    'cblc, no stain augmentation': ('cblc', 'ours', dict(stain=0.)),
    'cblc, no zoom or spin': ('cblc', 'ours', dict(zoom=0., spin=False)),
    'cblc, rare kinds as often': ('cblc', 'ours', dict(balance=1.)),
    'cblc, from the shipped weights': ('cblc', 'ours', dict(pretrained='shipped', lr=1e-3)),
}
SHARED = {}  # cells and crops, made once and inherited by the processes that train


def crop_settings(size):
    "Ways to cut a crop: P1's window of one size in pixels on the field's own ground, and ours"
    from cblc.cells.crops import STANDARD, CropSettings
    ours = replace(STANDARD, size=size)
    p1 = CropSettings(size=size, scale='fixed', window_px=160)
    return dict(p1=p1, ours=ours, unlit=replace(ours, white_balance=False))


def prepare(args, work):
    "Draw the cohort, find and match its cells, cut every kind of crop once"
    from cblc.cells.morphology import crops_of_cohort
    from cblc.data import split_patients
    from cblc.matching import match_cells
    from cblc.segmentation import Segmenter, segment_images
    from cblc.sources.cohort import make_cohort
    n_patients = (8, 6, 6, 2, 2, 2) if args.quick else None
    cohort = make_cohort(
        work/'cohort', n_patients=n_patients, shape='study', fields_per_patient=2, seed=args.seed)
    found, problems = segment_images(cohort.images, Segmenter.load(), cohort.um_per_px)
    if problems:
        raise SystemExit('\n'.join(problems))
    _, found = match_cells(cohort.cells, found)
    main = cohort.patients[~cohort.patients.center.isin(EXTERNAL)]
    split = split_patients(main, {'train': .8, 'valid': .2}, args.seed)
    expert = cohort.cells[cohort.cells.patient_id.map(split) == 'train'].reset_index(drop=True)
    crops = {
        name: [crops_of_cohort(cohort.images, cells, crop, progress=False)[0] for cells in (expert, found)]
        for name, crop in crop_settings(args.size).items()
    }
    found = found.assign(split=found.patient_id.map(split).fillna('external'))
    return dict(expert=expert, found=found, crops=crops, vocabulary=cohort.vocabulary)


def settings_of(row, args):
    "The settings of a row"
    from cblc.learn.settings import fit_settings
    from cblc.study import SMEARS
    recipe, _, changes = ROWS[row]
    shared = dict(
        size=args.size, epochs=args.epochs, epochs2=args.epochs2, seed=args.seed, pretrained=False, threads=1,
        lr=args.lr, batch=32)
    return fit_settings(recipe, **shared | (SMEARS if recipe == 'cblc' else {}) | changes)


def run_row(job):
    "Train a row and score it in each external center, frozen and adapted"
    import torch
    from cblc.classifier import fit_classifier
    from cblc.learn.study_cells import labeled_crops, training_labels
    row, args = job
    torch.set_num_threads(1)
    vocabulary, (expert_crops, found_crops) = SHARED['vocabulary'], SHARED['crops'][ROWS[row][1]]
    expert = training_labels(SHARED['expert'], vocabulary=vocabulary)
    found = training_labels(SHARED['found'], artefacts=True, vocabulary=vocabulary)
    second, valid = (labeled_crops(found, found_crops, found.split == part) for part in ('train', 'valid'))
    begun = time.time()
    # temperature and best epoch are the frozen network's
    classifier = fit_classifier(
        *labeled_crops(expert, expert_crops), settings=settings_of(row, args), vocabulary=vocabulary,
        second_stage=second, valid=valid)
    used = dict(frozen=classifier, adapted=replace(classifier, adapt_bn=1.))
    if row == 'cblc':
        used['frozen, one view'] = replace(classifier, views=1)
    scores = {
        use: {c: score_center(model, found_crops, found, c, vocabulary) for c in EXTERNAL}
        for use, model in used.items()
    }
    return row, scores, time.time() - begun


def score_center(classifier, crops, cells, center, vocabulary):
    "Score a classifier on the matched cells of a center; it adapts to all that was found there"
    from cblc.core.measures import cell_scores
    here = (cells.center == center).to_numpy()
    matched = here & cells.code.notna().to_numpy()
    cells = cells[matched]
    if classifier.adapt_bn:
        classifier = classifier.adapted(crops[here])
    predictions = classifier.predict(crops[matched], progress=False)
    is_cell = vocabulary.is_nucleated(cells.code).to_numpy(bool)
    truth = vocabulary.is_cblc(cells.code[is_cell]).to_numpy(bool)
    p, in_cblc, patients = predictions.p_cblc, predictions.cblc, cells.patient_id
    return cell_scores(truth, p[is_cell], in_cblc[is_cell], patients[is_cell], n_boot=500, seed=0)


def print_scores(results):
    "Print a line a row and use, then the line of JSON"
    def figure(scores, name):
        return f'{scores[name]:.3f} [{scores[name + "_low"]:.3f}-{scores[name + "_high"]:.3f}]'

    for row in (row for row in ROWS if row in results):
        scores, seconds = results[row]
        for use, by_center in scores.items():
            cells = (f'{center} F1 {figure(s, "weighted_f1")} ECE {figure(s, "ece")} '
                     f'n={s["n"]}/{s["n_patients"]}' for center, s in by_center.items())
            print(f'{row:31} {use:16}', *cells, sep='  ')
        print(f'{"":31} trained and judged in {seconds:.0f} s')
    last = {}
    for center in EXTERNAL:
        of_use = {row: results[row][0][use][center] for row, use in (('p1', 'frozen'), ('cblc', 'adapted'))}
        last[center] = {row: {name: round(scores[name], 4) for name in ('weighted_f1', 'ece')}
                        for row, scores in of_use.items()}
    print(json.dumps(last))


def read_arguments():
    "Read the command line"
    from cblc.core.engine import cores
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in dict(epochs=6, epochs2=6, seed=0, size=64, jobs=cores()).items():
        parser.add_argument(f'--{name}', type=int, default=default)
    parser.add_argument('--lr', type=float, default=2e-3)
    parser.add_argument('--rows', default='', help='further rows than p1 and cblc, parted by ;  default: all')
    parser.add_argument('--work', help='folder for the cohort; default: a temporary one')
    parser.add_argument('--quick', action='store_true')
    args = parser.parse_args()
    if args.quick:
        args.epochs, args.epochs2, args.size = 1, 1, 32
    return args


def main():
    "Draw, train every row, and print the table"
    from cblc.core.engine import progress_bar
    args = read_arguments()
    always, begun = ('p1', 'cblc'), time.time()
    rows = [row for row in ROWS if row in always or not args.rows or row in args.rows.split(';')]
    if args.quick:
        rows = [row for row in rows if 'shipped' not in row]
    with tempfile.TemporaryDirectory() as folder:
        SHARED.update(prepare(args, Path(args.work or folder)))
    print(f"{len(SHARED['expert'])} expert cells to train on, {len(SHARED['found'])} detections, "
          f'drawn and cut in {time.time()-begun:.0f} s; CPU, seed {args.seed}, '
          f'{args.epochs}+{args.epochs2} epochs at {args.size} px, learning rate {args.lr}')
    jobs = [(row, args) for row in sorted(rows, key=lambda row: row not in always)]
    with multiprocessing.get_context('fork').Pool(args.jobs, maxtasksperchild=1) as pool:
        done = list(progress_bar(pool.imap_unordered(run_row, jobs), 'training', len(jobs)))
    print_scores({row: (scores, seconds) for row, scores, seconds in done})


if __name__ == '__main__':
    main()
