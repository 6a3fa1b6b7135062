"""What each idea of the classifier is worth in hospitals that had no part in the training, on the synthetic study cohort.

    python benchmarks/ablation.py [--rows 'plain;cblc, no zoom or spin'] [--epochs 6] [--epochs2 6] [--seed 0] [--jobs N] [--work DIR] [--quick]

258 drawn patients of six centers, two fields each; training in two stages on patients of Centers 1-3, temperature and best epoch on
others of them, Centers 4, 5 and 6 external. All rows share cohort, detections, splits, epochs, size, learning rate, batch and
random first weights, but for the rows that change just that. A row is one network (P1's five folds would multiply every row alike),
used twice: frozen, and adapted, its normalisation measured again on each center's crops without their labels, as the recipe `cblc`
does in a laboratory that is new to it. The last line has `p1` as P1 uses it, frozen, and `cblc` adapted. CBLC or not, over detections matched with an expert's cell: weighted F1 and expected calibration error, 95 % intervals by bootstrap
over patients. Drawn cells: the table ranks ideas, it does not foretell a hospital's figure.
"""
import argparse, json, multiprocessing, tempfile, time
from dataclasses import replace
from pathlib import Path

EXTERNAL = ('center4', 'center5', 'center6')

def looks(size):
    "Ways of cutting a crop: P1's window of one size in pixels on the field's own ground, and ours."
    from cblc.cells.crops import CropSettings, STANDARD
    ours = replace(STANDARD, size=size)
    return dict(p1=CropSettings(size=size, scale='fixed', window_px=160), ours=ours, unlit=replace(ours, white_balance=False))

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

def prepare(args, work):
    "Draw the cohort, find and match its cells, cut every kind of crop once."
    from cblc.sources.cohort import make_cohort
    from cblc.cells.morphology import crops_of_cohort
    from cblc.matching import match_cells
    from cblc.segmentation import Segmenter, segment_images
    from cblc.data import split_patients
    cohort = make_cohort(work/'cohort', n_patients=(8, 6, 6, 2, 2, 2) if args.quick else None, shape='study',
                         fields_per_patient=2, seed=args.seed)
    found, problems = segment_images(cohort.images, Segmenter.load(), cohort.um_per_px); assert not problems, problems
    _, found = match_cells(cohort.cells, found)
    split = split_patients(cohort.patients[~cohort.patients.center.isin(EXTERNAL)], {'train': .8, 'valid': .2}, args.seed)
    expert = cohort.cells[cohort.cells.patient_id.map(split) == 'train'].reset_index(drop=True)
    crops = {k: [crops_of_cohort(cohort.images, t, s, progress=False)[0] for t in (expert, found)] for k, s in looks(args.size).items()}
    return expert, found.assign(split=found.patient_id.map(split).fillna('external')), crops

def one(job):
    "Train a row and score it in each external center, frozen and adapted."
    name, args = job
    import torch
    from cblc.classifier import fit_classifier
    from cblc.data import VOCABULARY
    from cblc.data import VOCABULARY
    from cblc.learn.study_cells import labeled_crops, training_labels
    from cblc.study import SMEARS
    from cblc.learn.settings import fit_settings
    torch.set_num_threads(1); recipe, look, differs = ROWS[name]; x1, x2 = crops[look]
    e, f = (training_labels(t, artefacts=t is found, vocabulary=VOCABULARY) for t in (expert, found))
    # temperature and best epoch are the frozen network's
    s = fit_settings(recipe=recipe, **dict(size=args.size, epochs=args.epochs, epochs2=args.epochs2, seed=args.seed, pretrained=False, threads=1, lr=args.lr, batch=32) | (SMEARS if recipe == 'cblc' else {}) | differs)
    take = lambda part: labeled_crops(f, x2, f.split == part)
    t = time.time(); clf = fit_classifier(*labeled_crops(e, x1), settings=s, second_stage=take('train'), valid=take('valid'), vocabulary=VOCABULARY)
    used = dict(frozen=clf, adapted=replace(clf, adapt_bn=1.)) | ({'frozen, one look': replace(clf, views=1)} if name == 'cblc' else {})
    return name, {use: {c: judge(model, x2, f, c) for c in EXTERNAL} for use, model in used.items()}, time.time() - t

def judge(clf, crops, cells, center):
    "Score a classifier on the matched cells of an external center; it adapts to all that was found there."
    from cblc.data import VOCABULARY
    from cblc.core.measures import cell_scores
    here = (cells.center == center).to_numpy(); mine = here & cells.code.notna().to_numpy(); cells = cells[mine]
    p = (clf.adapted(crops[here]) if clf.adapt_bn else clf).predict(crops[mine], progress=False)
    named = VOCABULARY.is_nucleated(cells.code).to_numpy(bool); truth = VOCABULARY.is_cblc(cells.code[named]).to_numpy(bool)
    return cell_scores(truth, p.p_cblc[named], p.cblc[named], cells.patient_id[named], n_boot=500, seed=0)

def main():
    global expert, found, crops
    from cblc.core.engine import cores, progress_bar
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for k, v in dict(epochs=6, epochs2=6, seed=0, size=64, jobs=cores()).items(): ap.add_argument(f'--{k}', type=int, default=v)
    ap.add_argument('--lr', type=float, default=2e-3)
    ap.add_argument('--rows', default='', help='further rows than p1 and cblc, parted by ;  default: all')
    ap.add_argument('--work'); ap.add_argument('--quick', action='store_true'); args = ap.parse_args()
    if args.quick: args.epochs, args.epochs2, args.size = 1, 1, 32
    names = sorted([n for n in ROWS if n in ('p1', 'cblc') or not args.rows or n in args.rows.split(';')],
                   key=lambda n: n not in ('p1', 'cblc'))
    t = time.time()
    if args.quick: names = [n for n in names if 'shipped' not in n]
    with tempfile.TemporaryDirectory() as tmp: expert, found, crops = prepare(args, Path(args.work or tmp))
    print(f'{len(expert)} expert cells to train on, {len(found)} detections, drawn and cut in {time.time()-t:.0f} s; CPU, seed {args.seed}, {args.epochs}+{args.epochs2} epochs at {args.size} px, learning rate {args.lr}')
    with multiprocessing.get_context('fork').Pool(args.jobs, maxtasksperchild=1) as pool:
        got = {n: (r, s) for n, r, s in progress_bar(pool.imap_unordered(one, [(n, args) for n in names]), 'training', len(names))}
    cell = lambda s, k: f'{s[k]:.3f} [{s[k+"_low"]:.3f}-{s[k+"_high"]:.3f}]'
    for n in (n for n in ROWS if n in got):
        for use, r in got[n][0].items():
            print(f'{n:31} {use:16}', *(f'{c} F1 {cell(r[c], "weighted_f1")} ECE {cell(r[c], "ece")} n={r[c]["n"]}/{r[c]["n_patients"]}' for c in EXTERNAL), sep='  ')
        print(f'{"":31} trained and judged in {got[n][1]:.0f} s')
    print(json.dumps({c: {n: {k: round(got[n][0][use][c][k], 4) for k in ('weighted_f1', 'ece')} for n, use in (('p1', 'frozen'), ('cblc', 'adapted'))} for c in EXTERNAL}))

if __name__ == '__main__': main()
