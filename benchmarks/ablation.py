"""What each idea of the classifier is worth in hospitals that had no part in the training (drawn cells).

    python benchmarks/ablation.py [--rows 'plain;cblc, no zoom or spin'] [--epochs 6] [--epochs2 6] [--seed 0]
                                  [--jobs N] [--work DIR] [--quick]

258 drawn patients of six centers, two fields each; training in two stages on patients of Centers 1-3,
temperature and best epoch on others of them, Centers 4, 5 and 6 external. All rows share cohort,
detections, splits, epochs, size, learning rate, batch and random first weights, but for the rows that
change just that. A row is one network (P1's five folds would multiply every row alike), used twice: frozen,
and adapted, its normalization measured again on each center's crops without their labels, as the recipe
`cblc` does in a laboratory that is new to it; `numbers of a pretrained network` is the recipe `generative`,
which finds a new center's shift instead. The last line has `p1` as P1 uses it, frozen, and `cblc`
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
IMAGENET = dict(arch='tf_efficientnet_lite0', pretrained='package', lr=1e-3)
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
    "plain, from ImageNet's weights": ('plain', 'ours', IMAGENET),
    "cblc, from ImageNet's weights": ('cblc', 'ours', IMAGENET),
    'cblc, measured appearance': ('cblc', 'ours', dict(appearance=.5)),
    'numbers of a pretrained network': ('generative', 'ours', {}),
}


def crop_settings(size):
    "Name the ways of cutting a crop: P1's window on the field's ground, ours, and ours without its light"
    from cblc.cells.crops import STANDARD, CropSettings
    ours = replace(STANDARD, size=size)
    window = CropSettings(size=size, scale='fixed', window_px=160)
    return dict(p1=window, ours=ours, unlit=replace(ours, white_balance=False))


def prepare(arguments, folder):
    "Draw the cohort, find and match its cells, cut every kind of crop once"
    from cblc.cells.morphology import crops_of_cohort
    from cblc.data import split_patients
    from cblc.matching import match_cells
    from cblc.segmentation import Segmenter, segment_images
    from cblc.sources.cohort import make_cohort
    n_patients = (8, 6, 6, 2, 2, 2) if arguments.quick else None
    cohort = make_cohort(
        folder/'cohort', n_patients=n_patients, shape='study', fields_per_patient=2, seed=arguments.seed
    )
    found, problems = segment_images(cohort.images, Segmenter.load(), cohort.um_per_px)
    if problems:
        raise SystemExit('\n'.join(problems))
    _, found = match_cells(cohort.cells, found)
    main_patients = cohort.patients[~cohort.patients.center.isin(EXTERNAL)]
    split = split_patients(main_patients, {'train': .8, 'valid': .2}, arguments.seed)
    expert = cohort.cells[cohort.cells.patient_id.map(split) == 'train'].reset_index(drop=True)
    crops = {
        name: [crops_of_cohort(cohort.images, table, cut, progress=False)[0] for table in (expert, found)]
        for name, cut in crop_settings(arguments.size).items()
    }
    return expert, found.assign(split=found.patient_id.map(split).fillna('external')), crops


def settings_of(row, arguments):
    "Make a row's settings; temperature and best epoch are the frozen network's"
    from cblc.learn.settings import fit_settings
    from cblc.study import SMEARS
    recipe, _, differing = ROWS[row]
    shared = dict(
        size=arguments.size, epochs=arguments.epochs, epochs2=arguments.epochs2, seed=arguments.seed,
        pretrained=False, threads=1, lr=arguments.lr, batch=32,
    )
    of_recipe = SMEARS if recipe == 'cblc' else {}
    return fit_settings(recipe=recipe, **shared | of_recipe | differing)


def train_and_judge(job):
    "Train a row and score it in each external center, frozen and adapted: name, scores, seconds"
    row, arguments = job
    import torch
    from cblc.classifier import fit_classifier
    from cblc.data import VOCABULARY
    from cblc.learn.study_cells import labeled_crops, training_labels
    torch.set_num_threads(1)
    expert_crops, found_crops = crops[ROWS[row][1]]
    labeled_expert = training_labels(expert, artefacts=False, vocabulary=VOCABULARY)
    labeled_found = training_labels(found, artefacts=True, vocabulary=VOCABULARY)

    def part(name):
        return labeled_crops(labeled_found, found_crops, labeled_found.split == name)

    start = time.time()
    if ROWS[row][0] == 'generative':
        classifier = fit_numbers(part('train'), arguments)
        uses = dict(frozen=classifier, adapted=classifier)
    else:
        classifier = fit_classifier(
            *labeled_crops(labeled_expert, expert_crops), settings=settings_of(row, arguments),
            second_stage=part('train'), valid=part('valid'), vocabulary=VOCABULARY,
        )
        uses = dict(frozen=classifier, adapted=replace(classifier, adapt_bn=1.))
    if row == 'cblc':
        uses['frozen, one view'] = replace(classifier, views=1)
    scores = {use: {center: judge(model, found_crops, labeled_found, center, use == 'adapted')
                    for center in EXTERNAL} for use, model in uses.items()}
    return row, scores, time.time() - start


def fit_numbers(cells, arguments):
    "Model the numbers of the segmenter's crops"
    from cblc.data import VOCABULARY
    from cblc.learn.generative import GenerativeSettings, fit_generative
    settings = GenerativeSettings(
        pretrained='package', size=max(arguments.size, 96), seed=arguments.seed, threads=1
    )
    return fit_generative(*cells, settings=settings, vocabulary=VOCABULARY)


def judge(classifier, crops, cells, center, adapts):
    "Score a classifier on the matched cells of an external center; it may adapt to all that was found there"
    from cblc.core.measures import cell_scores
    from cblc.data import VOCABULARY
    is_here = (cells.center == center).to_numpy()
    is_matched = is_here & cells.code.notna().to_numpy()
    matched = cells[is_matched]
    if adapts:
        classifier = classifier.adapted(crops[is_here])
    predicted = classifier.predict(crops[is_matched], progress=False)
    named = VOCABULARY.is_nucleated(matched.code).to_numpy(bool)
    truth = VOCABULARY.is_cblc(matched.code[named]).to_numpy(bool)
    return cell_scores(
        truth, predicted.p_cblc[named], predicted.cblc[named], matched.patient_id[named], n_boot=500, seed=0
    )


def parse_arguments():
    "Read the command line"
    from cblc.core.engine import cores
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    for name, default in dict(epochs=6, epochs2=6, seed=0, size=64, jobs=cores()).items():
        parser.add_argument(f'--{name}', type=int, default=default)
    parser.add_argument('--lr', type=float, default=2e-3)
    parser.add_argument('--rows', default='', help='further rows than p1 and cblc, parted by ;  default: all')
    parser.add_argument('--work')
    parser.add_argument('--quick', action='store_true')
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.epochs, arguments.epochs2, arguments.size = 1, 1, 32
    return arguments


def chosen_rows(arguments):
    "List the rows asked for, those of the last line first"
    wanted = arguments.rows.split(';') if arguments.rows else list(ROWS)
    rows = [row for row in ROWS if row in ('p1', 'cblc') or row in wanted]
    if arguments.quick:
        rows = [row for row in rows if 'shipped' not in row]
    return sorted(rows, key=lambda row: row not in ('p1', 'cblc'))


def with_interval(scores, name):
    "Write a figure with its interval"
    return f'{scores[name]:.3f} [{scores[f"{name}_low"]:.3f}-{scores[f"{name}_high"]:.3f}]'


def print_row(row, uses, seconds):
    "Print a row, one line for each use"
    for use, by_center in uses.items():
        cells = [
            f'{center} F1 {with_interval(scores, "weighted_f1")} ECE {with_interval(scores, "ece")} '
            f'n={scores["n"]}/{scores["n_patients"]}'
            for center, scores in by_center.items()
        ]
        print(f'{row:31} {use:16}', *cells, sep='  ')
    print(f'{"":31} trained and judged in {seconds:.0f} s')


def main():
    "Train every row, and print the table"
    global expert, found, crops  # made once, and inherited by the forked processes
    from cblc.core.engine import progress_bar
    arguments = parse_arguments()
    rows, start = chosen_rows(arguments), time.time()
    with tempfile.TemporaryDirectory() as folder:
        expert, found, crops = prepare(arguments, Path(arguments.work or folder))
    print(f'{len(expert)} expert cells to train on, {len(found)} detections, drawn and cut in '
          f'{time.time() - start:.0f} s; CPU, seed {arguments.seed}, '
          f'{arguments.epochs}+{arguments.epochs2} epochs at {arguments.size} px, lr {arguments.lr}')
    jobs = [(row, arguments) for row in rows]
    with multiprocessing.get_context('fork').Pool(arguments.jobs, maxtasksperchild=1) as pool:
        finished = progress_bar(pool.imap_unordered(train_and_judge, jobs), 'training', len(jobs))
        results = {row: (uses, seconds) for row, uses, seconds in finished}
    for row in ROWS:
        if row in results:
            print_row(row, *results[row])
    figures = {}
    for center in EXTERNAL:
        pairs = {row: results[row][0][use][center] for row, use in (('p1', 'frozen'), ('cblc', 'adapted'))}
        figures[center] = {row: {name: round(scores[name], 4) for name in ('weighted_f1', 'ece')}
                           for row, scores in pairs.items()}
    print(json.dumps(figures))


if __name__ == '__main__':
    main()
