"""Five blood cell classes in a laboratory that had no part in the training.

    python benchmarks/five_class.py [--seeds 3] [--per-class 200] [--epochs 8] [--size 64] [--jobs N]
                                    [--arch TIMM] [--start none|package] [--peers 'cblc;generative'] [--quick]

Four public sources stand for four laboratories: train on three, test on the fourth, with every recipe on
the same pictures, for the same epochs, at the same size, from the same start (random weights, or, with
`--start package --arch tf_efficientnet_lite0`, ImageNet's), at one learning rate and batch. `plain` and `p1`
see each picture as it is; `cblc` first finds the cell, cuts it at its source's one scale and lights it alike
(cblc.cells.singles). `plain, cblc's crops` tells what of the gain is the crop's. `generative` models numbers
of the same cells at 144 px, with a network of ImageNet's weights that is not trained
(cblc.learn.generative); the shift of the laboratory left out is found without its labels, as `cblc` measures
its normalization there. `generative, not adapted` is the same without. `cblc and generative` is the mean of
the probabilities of both, which costs no training of its own.
Of a source's class at most --per-class pictures are taken, by file-name hash (0: all). The segmenter that
finds the cells has seen masks or boxes of part of `bcisc` and `pbc128` in its own training, but no class,
and nothing of segmentation_wbc.

Weighted F1 on the source left out; 95 % intervals by bootstrap over its pictures (2,000 draws, averaged
over seeds and sources). No source names its patients, so pictures of one patient may count more than once.
"""
import argparse
import itertools
import json
import multiprocessing
import time

import numpy as np

PEERS = {  # name: recipe, and whether the cell is found and lit first
    'plain': ('plain', False),
    'p1': ('p1', False),
    "plain, cblc's crops": ('plain', True),
    'cblc': ('cblc', True),
    'generative': ('generative', True),
    'generative, not adapted': ('generative', True),
}
NUMBERS_SIZE = 144  # px, of the crops that `generative` sees
SOURCES = ('wbc_dataset1', 'wbc_dataset2', 'bcisc', 'pbc128')
COLUMNS = (*SOURCES, 'mean')
BOTH = 'cblc and generative'


def class_probabilities(predicted):
    "Take the probabilities of a classifier's answer: pictures x classes"
    return predicted.filter(regex='^p_').rename(columns=lambda name: name.removeprefix('p_'))


def with_mean_of_both(probabilities):
    "Add the mean of `cblc` and `generative`, where both were asked"
    means = {}
    for (name, source, seed), table in probabilities.items():
        other = probabilities.get(('generative', source, seed))
        if name == 'cblc' and other is not None:
            means[BOTH, source, seed] = (table + other[table.columns])/2
    return probabilities | means


def read_views(pictures, size, arguments):
    "Read both views of all pictures: as they are, and as cells found and lit"
    from cblc.cells.singles import read_singles, view_settings
    from cblc.learn.settings import fit_settings
    found_view = view_settings(fit_settings('cblc').prediction.view, size)
    views, cuts = {}, {False: size, True: found_view}
    if 'generative' in arguments.chosen:
        cuts['numbers'] = view_settings('sized', arguments.numbers_size)
    for is_found, cut in cuts.items():
        crops, _, has_cell, unreadable = read_singles(pictures.path, cut, pictures.center)
        if unreadable:
            raise SystemExit('\n'.join(unreadable))
        views[is_found] = crops
        if is_found is True:
            print(f'cells found in {has_cell.sum()} of {len(has_cell)} pictures; the rest as they are')
    return views


def numbers_left_out(arguments):
    "Model numbers without each source: each job and its probabilities, the same for every seed"
    from cblc.learn.features import feature_net
    from cblc.learn.generative import Describer, GenerativeSettings, fit_generative
    settings = GenerativeSettings(pretrained='package', size=arguments.numbers_size, threads=1)
    net = feature_net(settings.arch, settings.pretrained, settings.size, settings.views, 1)
    crops, labels, centers = views['numbers'], pictures.label.to_numpy(str), pictures.center.to_numpy(str)
    every = Describer(settings.size, net)(crops)
    number_of = {crop.tobytes(): row for crop, row in zip(crops, every)}

    class Known(Describer):
        "Looks numbers up"

        def __call__(self, crops, progress=True):
            return np.stack([number_of[crop.tobytes()] for crop in crops])

    for source, seed in itertools.product(SOURCES, range(arguments.seeds)):
        own = centers == source
        model = fit_generative(
            crops[~own], labels[~own].tolist(), centers=centers[~own], settings=settings,
            describe=Known(settings.size, net), vocabulary=None)
        for name, there in (('generative', model.for_center(source, crops[own])),
                            ('generative, not adapted', model)):
            yield (name, source, seed), class_probabilities(there.predict(crops[own]))


def classify_left_out(job):
    "Train without a source and classify its pictures: the job's name, source and seed, and its probabilities"
    name, source, seed, arguments = job
    import torch
    from cblc.classifier import fit_classifier
    from cblc.learn.settings import fit_settings
    torch.set_num_threads(1)
    recipe, is_found = PEERS[name]
    left_out, crops = (pictures.center == source).to_numpy(), views[is_found]
    settings = fit_settings(
        recipe=recipe, size=arguments.size, epochs=arguments.epochs, seed=seed, threads=1,
        arch=arguments.arch, pretrained=arguments.start == 'package' and 'package',
        lr=arguments.lr, batch=arguments.batch,
    )
    labels = pictures.label[~left_out].tolist()
    classifier = fit_classifier(crops[~left_out], labels, settings=settings, vocabulary=None)
    predicted = classifier.predict(crops[left_out], adapt=True, progress=False)
    return (name, source, seed), class_probabilities(predicted)


def weighted_f1(truth, predicted, samples):
    "Compute scikit-learn's weighted F1 of each row of positions in `samples`, from counts"
    names = np.unique(np.r_[truth, predicted])
    n = len(names)
    pairs = np.searchsorted(names, truth)[samples]*n + np.searchsorted(names, predicted)[samples]
    counts = np.stack([np.bincount(row, minlength=n*n).reshape(n, n) for row in pairs])
    hits, support, named = counts.diagonal(axis1=1, axis2=2), counts.sum(2), counts.sum(1)
    return (2*hits/np.maximum(support + named, 1)*support).sum(1)/support.sum(1)


def score_peers(predictions, pictures, peers, n_boot=2000):
    "Average scores over seeds, with bootstrap draws that share their pictures between peers"
    rng, scores, draws = np.random.default_rng(0), {}, {}
    for source in SOURCES:
        truth = pictures.label[pictures.center == source].to_numpy(str)
        samples = rng.integers(len(truth), size=(n_boot, len(truth)))
        everything = np.arange(len(truth))[None]
        for name in peers:
            runs = [classes for (*key, _), classes in predictions.items() if key == [name, source]]
            scores[name, source] = np.mean([weighted_f1(truth, run, everything)[0] for run in runs])
            draws[name, source] = np.mean([weighted_f1(truth, run, samples) for run in runs], axis=0)
    for name in peers:
        scores[name, 'mean'] = np.mean([scores[name, source] for source in SOURCES])
        draws[name, 'mean'] = np.mean([draws[name, source] for source in SOURCES], axis=0)
    return scores, draws


def as_interval(draws):
    "Write the 95 % interval of bootstrap draws"
    return '{:.3f}-{:.3f}'.format(*np.quantile(draws, [.025, .975]))


def print_table(scores, draws, peers):
    "Print every peer, and by how much cblc differs from the two published ways"
    for name in peers:
        cells = [f'{s} {scores[name, s]:.3f} [{as_interval(draws[name, s])}]' for s in COLUMNS]
        print(f'{name:20s}', *cells, sep='  ')
    for peer in {'plain', 'p1'} & set(peers) if 'cblc' in peers else ():
        cells = []
        for source in COLUMNS:
            gain = scores['cblc', source] - scores[peer, source]
            interval = as_interval(draws['cblc', source] - draws[peer, source])
            cells.append(f'{source} {gain:+.3f} [{interval}]')
        print(f'cblc less {peer}:', *cells, sep='  ')


def parse_arguments():
    "Read the command line"
    from cblc.core.engine import cores
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    for name, default in dict(seeds=3, per_class=200, epochs=8, size=64, jobs=cores(), batch=32).items():
        parser.add_argument(f'--{name.replace("_", "-")}', type=int, default=default)
    parser.add_argument('--lr', type=float, default=2e-3)
    parser.add_argument('--arch', help='any timm model; default: EfficientNet-B0')
    parser.add_argument('--start', default='none', choices=['none', 'package'])
    parser.add_argument('--peers', default='', help='some of the rows, parted by ;  default: all')
    parser.add_argument('--quick', action='store_true')
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds, arguments.per_class, arguments.epochs, arguments.size = 1, 12, 1, 32
    arguments.numbers_size = 48 if arguments.quick else NUMBERS_SIZE
    wanted = arguments.peers.split(';') if arguments.peers else list(PEERS)
    arguments.chosen = [name for name in PEERS if name in wanted]
    return arguments


def main():
    "Leave every source out once, with every peer"
    global pictures, views  # read once, and inherited by the forked processes
    from cblc.core.engine import progress_bar
    from cblc.sources.public import public_root, read_five_class
    arguments = parse_arguments()
    if public_root() is None:
        raise SystemExit('no public images here; set CBLC_DATA to their folder (data/README.md)')
    start = time.time()
    pictures = read_five_class(per_class=arguments.per_class)
    views = read_views(pictures, arguments.size, arguments)
    print(pictures.groupby(['center', 'label']).size().unstack(fill_value=0).to_string())
    print(f'read in {time.time() - start:.0f} s')
    trained = [name for name in arguments.chosen if PEERS[name][0] != 'generative']
    runs = itertools.product(range(arguments.seeds), trained, SOURCES)
    jobs = [(name, source, seed, arguments) for seed, name, source in runs]
    with multiprocessing.get_context('fork').Pool(arguments.jobs, maxtasksperchild=1) as pool:
        finished = progress_bar(pool.imap_unordered(classify_left_out, jobs), 'training', len(jobs))
        probabilities = dict(finished)
    if 'generative' in arguments.chosen:
        probabilities |= dict(numbers_left_out(arguments))
    predictions = {
        job: table.idxmax(axis=1).to_numpy(str) for job, table in with_mean_of_both(probabilities).items()
    }
    peers = [name for name in (*PEERS, BOTH) if any(key[0] == name for key in predictions)]
    scores, draws = score_peers(predictions, pictures, peers)
    print(f'\nweighted F1 on the source left out; CPU, {arguments.seeds} seeds, {arguments.epochs} epochs, '
          f'{arguments.size} px, {arguments.per_class} pictures a class, start: {arguments.start}, '
          f'{time.time() - start:.0f} s')
    print_table(scores, draws, peers)
    by_source = {name: {source: round(scores[name, source], 4) for source in SOURCES} for name in peers}
    means = {name: round(scores[name, 'mean'], 4) for name in peers}
    print(json.dumps(means | dict(by_source=by_source)))


if __name__ == '__main__':
    main()
