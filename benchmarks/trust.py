"""Does doubt know where the errors are, on real cells of laboratories that a model never saw?

    python benchmarks/trust.py [--work DIR] [--quick]

Real single cells of six laboratories (`cblc.sources.real_cells`; Munich's two marrow sets are of one archive
and leave together) are cut once and described once (kept in --work): by the classifier that ships, and by
features that have seen no blood cell at all, EfficientNet-Lite0's ImageNet features and 56 measured numbers
(`cblc.learn.appearance`). On the latter light heads (shrunken linear discriminants) are trained in a second,
leaving each laboratory out in its turn; features are standardized within each laboratory, which needs no
label. So `left-out laboratories` are left out indeed. The classifier that ships is judged out of laboratory
on the two sets of segmentation_wbc alone, the only cells that its training never saw.

Ten kinds: blasts (with promonocytes), N1, N2, N3, neutrophils (N4 and N5), E, B, M2, L, erythroblasts. Of a
left-out laboratory the cells count whose kind the others teach (20 cells or more); the rest are its foreign
cells.

- error_ratio_at_10pct: rejecting the least certain tenth (by entropy), the error left over the error before;
  the worst laboratory. Rejecting a tenth can take away a tenth at most, so beside it stands the least ratio
  that any score could have reached at that error, and the share of the attainable that was attained.
- error_ratio_cblc_at_10pct: the same for the clinical question, CBLC or not, doubt being how near its
  probability is to one half; `blast` is WHO blast or not. The worst laboratory; `_pooled` over all cells,
  `_ensemble` by how little heads that each lacked one more laboratory believe in the same answer;
  error_cblc_at_099: errors among the answers stated at 0.99, with their number and Wilson's interval, and
  how many the guarded confidence of the other laboratories leaves. `_all` counts cells of kinds that nobody
  taught, too: with Munich left out hardly a blast is, so its blasts are called something else, surely.
- error_at_099: wrong answers among those in which heads that each lacked one more laboratory believe with
  0.99 on average (`cblc.trust.doubt.agreed_confidence`), over all left-out laboratories, with their number;
  the table also counts cells of kinds nobody taught that are answered so. _guarded: by the guarded confidence
  of the other laboratories (`cblc.trust.calibration`); _stated: as stated by the one head.
- error_ratio_shipped_at_10pct, error_shipped_at_099 and their like with `_cblc`: the same of the classifier
  that ships, on segmentation_wbc's two laboratories: what a user gets.
- beside them, in tables: which of the six scores of doubt (margin, entropy, an ensemble of heads that each
  lacked one laboratory more, the race of the diffusion model that ships, distances of features, likeness to
  another laboratory) is best for errors, for foreign cells, for shift; and our models beside each other.
- conformal_min, _max: coverage of 90 % sets of the classifier that ships, for each kind with 100 cells or
  more at home that it was not shown, mean over random halves: one labels, the other is asked.
- conformal_shift_min: coverage of a left-out laboratory's cells by sets that the other left-out laboratories
  taught, weighted by likeness; the worst laboratory. conformal_shift_size: how many kinds such a set holds.
  conformal_cblc_shift_min, conformal_cblc_size: the same of sets of CBLC or not.
- artefacts_rejected, cells_lost: bm_munich's NIF (test part) and bm_matek's artefacts against real cells, the
  classifier's leaf, a light head taught Munich's training part, nucleus and distance, as far as they help on
  the training side (`choose_evidence`); the threshold costs 3 % of the training side's cells at
  most. The classifier that ships was taught bm_matek's; _clean is a head that was not. NIF means *not
  identifiable*: some of them are cells.
  blasts_lost: of blasts (validation and test parts), whose loss moves the ratio; _commands: by one half,
  where `cblc diagnose` draws the line.
- review_gain: how much narrower the interval becomes by the first 5 % of the cells in the queue's order, over
  5 % at random; drawn patients, the lesser of the WHO blast ratio's and CBLC's. Beside it on a scale on which
  an interval does not shrink because its ratio moved (arcsine), and for the error of the ratio.

The last line is JSON.
"""
import argparse
import json
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from _recipe import recipe
from scipy import special

from cblc.classifier import Classifier
from cblc.core.measures import wilson_interval
from cblc.data import VOCABULARY
from cblc.learn.appearance import cell_features
from cblc.learn.features import feature_net
from cblc.sources.toys import toy_cells
from cblc.trust.artefacts import artefact_evidence, choose_evidence, fit_artefacts, judge_rejection
from cblc.trust.calibration import class_calibration, fit_outside
from cblc.trust.conformal import coverage, fit_conformal, fit_laboratories, shift_weights, union_sets
from cblc.trust.doubt import (
    KnownCells, agreed_confidence, compare_doubts, doubt_table, reject, tell_apart,
)
from cblc.trust.psychometrics import certain_answers, compare_observers, fit_psychometric
from cblc.trust.triage import review_course, review_queue

SETS = ('bm_munich', 'bm_matek', 'pbc128', 'bcisc', 'aml_lmu', 'segmentation_wbc')
MOST = dict(pbc128=700)   # cells a label; the classifier that ships was shown at most 400
ARTEFACT = 'artefact'
KINDS = {  # what the experts said -> one of ten kinds; other words are passed over
    'N|M': 'blast', 'N': 'blast', 'M': 'blast', 'N1': 'N1', 'N2': 'N2', 'N3': 'N3', 'N4': 'neutrophil',
    'N5': 'neutrophil', 'N4|N5': 'neutrophil', 'E': 'E', 'B': 'B', 'M2': 'M2', 'L': 'L', 'R': 'erythroblast',
    'R2|R3': 'erythroblast', 'R1|R2|R3': 'erythroblast',
}
NAMES = ('blast', 'N1', 'N2', 'N3', 'neutrophil', 'E', 'B', 'M2', 'L', 'erythroblast')
LEAST_TAUGHT = 20   # cells of a kind, below which a head does not know it
SIZE = 128   # px, of the ImageNet features


def kept_array(work, name, make):
    "Read an array from the work folder, or make and keep it"
    path = Path(work)/f'{name}.npy'
    if not path.exists():
        np.save(path, make())
    return np.load(path)


def described(work, name, quick, classifier, net):
    "Cut one set's cells and describe them, or read what was kept"
    made, most = recipe(), 30 if quick else MOST.get(name, 10**6)
    cells = made.kept(work, name, partial(made.real_cells, name, most))
    table = cells.table.rename(columns=dict(set='laboratory'))[['code', 'part', 'laboratory', 'group']]
    bundle = classifier.bundle.id.rpartition(' ')[2]  # of all its files
    return table.assign(set=name), dict(
        shipped=kept_array(
            work, f'{name}_{bundle}', lambda: classifier.probabilities(cells.crops, progress=False)),
        measured=kept_array(work, f'{name}_measured', lambda: cell_features(cells.crops)),
        imagenet=net(cells.crops, keep=Path(work)/'features', progress=False))


def read_cells(arguments, classifier):
    "Put all sets together: a table, and the arrays that go with it"
    net = feature_net('tf_efficientnet_lite0', 'package', SIZE)
    sets = [described(arguments.work, name, arguments.quick, classifier, net) for name in SETS]
    names = 'shipped', 'measured', 'imagenet'
    arrays = {name: np.concatenate([own[name] for _, own in sets]) for name in names}
    table = pd.concat([own for own, _ in sets], ignore_index=True)
    table['kind'] = table.code.map(KINDS)
    table['laboratory'] = table.laboratory.replace('bm_matek', 'bm_munich')   # of one archive
    return table, arrays


def taught_cells(table):
    "Mark the cells that the shipped classifier was shown: training and validation cells, PBC's first 400"
    from cblc.sources.real_cells import read_real_cells
    made = recipe()
    first = made.first_by_hash(read_real_cells(sets=['pbc128']), 400)
    shown = {Path(path).stem for path in first.path}
    stems = table.group.str.split(' ', n=2).str[2]
    is_first = (table.set != 'pbc128') | stems.isin(shown)
    return (is_first & table.part.isin(['train', 'valid']) & (table.set != 'segmentation_wbc')).to_numpy()


def standardized(features, laboratory):
    "Give each feature mean 0 and deviation 1 within each laboratory, without a label"
    scaled = np.empty(features.shape, np.float64)
    for name in np.unique(laboratory):
        own = features[laboratory == name]
        scaled[laboratory == name] = (own - own.mean(0))/own.std(0).clip(1e-6)
    return scaled


class Head:
    "A shrunken linear discriminant on principal components, every kind alike, calibrated on validation cells"

    def __init__(self, features, kinds, valid):
        from sklearn.decomposition import PCA
        from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
        from sklearn.pipeline import make_pipeline

        from cblc.learn.leaves import fit_temperature
        names = np.unique(kinds[~valid])
        width = min(200, (~valid).sum() - 1)
        model = LinearDiscriminantAnalysis(
            solver='lsqr', shrinkage='auto', priors=np.full(len(names), 1/len(names)))
        self.model = make_pipeline(PCA(width, random_state=0, svd_solver='randomized'), model)
        self.model.fit(features[~valid], kinds[~valid])
        self.names, self.temperature = tuple(names), 1.
        asked = valid & np.isin(kinds, names)
        if asked.sum() >= 50:
            log_p = np.log(self.model.predict_proba(features[asked]).clip(1e-12))
            self.temperature = fit_temperature(log_p, kinds[asked][:, None] == names)

    def __call__(self, features, names=NAMES):
        "Give probabilities of all kinds, 0 for those that were not taught"
        from cblc.learn.leaves import to_probabilities
        if not len(features):
            return np.zeros((0, len(names)))
        own = to_probabilities(np.log(self.model.predict_proba(features).clip(1e-12)), self.temperature)
        p = np.zeros((len(features), len(names)))
        for k, name in enumerate(self.names):
            p[:, names.index(name)] = own[:, k]
        return p


def teach(table, features, without, least=LEAST_TAUGHT):
    "Train a head on all laboratories that may teach but some; also the kinds it was taught well enough"
    may = table.kind.notna() & (table.set != 'segmentation_wbc') & ~table.laboratory.isin(without)
    rows = np.flatnonzero(may.to_numpy())
    kinds, valid = table.kind.to_numpy(object)[rows], (table.part == 'valid').to_numpy()[rows]
    counts = pd.Series(kinds[~valid]).value_counts()
    known = [name for name in NAMES if counts.get(name, 0) >= least]
    kept = np.isin(kinds, known)
    return Head(features[rows[kept]], kinds[kept].astype(str), valid[kept]), known, rows[kept]


def left_out_heads(table, features, laboratories):
    "Train a head without each laboratory, and without each two of them"
    pairs = {frozenset({one, other} - {None}) for one in laboratories for other in (None, *laboratories)}
    return {pair: teach(table, features, pair) for pair in pairs}


def left_out_answers(table, features, laboratories, heads):
    "Judge every laboratory by a head that saw neither it nor, in turn, another one"
    answers = {}
    for one in laboratories:
        for other in [None, *laboratories]:
            if other == one:
                continue
            head, known, _ = heads[frozenset({one, other} - {None})]
            own = np.flatnonzero(((table.laboratory == one) & table.kind.notna()).to_numpy())
            is_known = table.kind.iloc[own].isin(known).to_numpy()
            answers[one, other] = own, is_known, head(features[own])
    return answers


def kind_probabilities(leaf_probabilities, leaves):
    "Sum a classifier's leaves to kinds; what is none of them is left out of the sum"
    of_kind = dict(
        blast=('N', 'N0', 'M', 'M0', 'M1'), N1=('N1',), N2=('N2',), N3=('N3',), neutrophil=('N4', 'N5'),
        E=('E',), B=('B',), M2=('M2',), L=('L',), erythroblast=('R', 'R1', 'R2', 'R3'))
    sums = np.stack([leaf_probabilities[:, [leaves.names.index(leaf) for leaf in of_kind[name]]].sum(1)
                     for name in NAMES], 1)
    artefact = leaf_probabilities[:, [leaves.names.index(leaf) for leaf in ('V', ARTEFACT)]].sum(1)
    return sums/sums.sum(1, keepdims=True).clip(1e-9), artefact


def doubts_of(rows, head, members, features, reference, likeness):
    "Compute every score of doubt of some cells; the ensemble lacked another laboratory, member by member"
    rows_features = features[rows]
    every = [member(rows_features) for member in members]
    return doubt_table(head(rows_features), rows_features[:, -56:], reference, every, likeness=likeness)


def judge_doubts(table, features, measured, answers, laboratories, heads):
    "Say what each score of doubt is worth in every left-out laboratory"
    rows = []
    for one in laboratories:
        own, is_known, p = answers[one, None]
        head, known, taught = heads[frozenset({one})]
        members = [heads[frozenset({one, other})][0] for other in laboratories if other != one]
        reference = KnownCells.fit(features[taught][:, -56:], table.kind.iloc[taught].to_numpy(str))
        home = np.flatnonzero((table.part == 'test').to_numpy() & table.kind.isin(known).to_numpy()
                              & (table.laboratory != one).to_numpy())
        of_home, of_own = shift_weights(measured[home], measured[own])
        doubts = doubts_of(own, head, members, features, reference, of_own)
        kind = table.kind.iloc[own].to_numpy(object)
        is_wrong = np.array(NAMES, object)[p.argmax(1)] != kind
        worth = compare_doubts(doubts[is_known], is_wrong[is_known])
        foreign = tell_apart(doubts[is_known], doubts[~is_known]) if (~is_known).sum() >= 20 else {}
        usual = doubts_of(home, head, members, features, reference, of_home)
        shift = tell_apart(usual, doubts[is_known])
        for name, row in worth.iterrows():
            rows.append(
                dict(laboratory=one, n=int(is_known.sum()), error=is_wrong[is_known].mean(), score=name)
                | row.to_dict() | dict(
                    attained=(1 - row.ratio)/(1 - row.least_ratio), shift=shift[name],
                    n_foreign=int((~is_known).sum()), foreign=foreign[name] if len(foreign) else np.nan))
    return pd.DataFrame(rows)


DIFFUSION_KINDS = dict(BA='B', BNE='neutrophil', EO='E', ERB='erythroblast', LY='L', MMY='N3', MO='M2',
                       MY='N2', PMY='N1', SNE='neutrophil')


class DiffusionAnswers:
    "What the diffusion model that ships, which knows PBC alone, makes of cells"

    def __init__(self, work):
        from cblc.core.bundle import shipped
        from cblc.diffusion.classifier import DiffusionClassifier
        self.model, self.work = DiffusionClassifier.load(shipped('diffusion'), device='cpu'), work
        self.kinds = [DIFFUSION_KINDS[name] for name in self.model.leaves.names]

    def __call__(self, name, rows):
        "Ask it of some cells of a set: probabilities of the kinds, and its scores of doubt"
        crops = recipe().kept(self.work, name, None).crops[rows]
        meter = self.model.meter(crops)
        race = self.model.race(meter)
        p = race.probabilities(self.model.temperature)
        of_kind = np.stack([p[:, [kind == name for kind in self.kinds]].sum(1) for name in NAMES], 1)
        doubts = doubt_table(of_kind, errors=-race.score)
        return of_kind, doubts.assign(anomaly=self.model.anomaly(meter))


def some_rows(table, name, wanted, most):
    "Choose cells of a set at random: their rows in the table, and in the set"
    start = np.flatnonzero((table.set == name).to_numpy())[0]
    rows = np.flatnonzero(((table.set == name) & wanted).to_numpy())
    rows = np.sort(np.random.default_rng(0).permutation(rows)[:most])
    return rows, rows - start


def judge_diffusion(table, work, most=300):
    "Say what the doubts of the diffusion model are worth: errors, kinds it never saw, other laboratories"
    ask, knows, rows = DiffusionAnswers(work), table.kind.isin(set(DIFFUSION_KINDS.values())), []
    parts = dict(pbc128=knows & (table.part == 'test'), bm_munich=knows, segmentation_wbc=knows)
    found = {name: some_rows(table, name, wanted, most) for name, wanted in parts.items()}
    asked = {name: (table.kind.iloc[own].to_numpy(object), *ask(name, at))
             for name, (own, at) in found.items()}
    _, blasts = some_rows(table, 'bm_munich', table.kind == 'blast', most)
    foreign = ask('bm_munich', blasts)[1] if len(blasts) else None
    for name, (kind, p, doubts) in asked.items():
        wrong = np.array(NAMES, object)[p.argmax(1)] != kind
        odd = tell_apart(doubts, foreign) if name == 'bm_munich' and foreign is not None else {}
        shift = tell_apart(asked['pbc128'][2], doubts)
        for score, row in compare_doubts(doubts, wrong).iterrows():
            rows.append(dict(set=name, n=len(kind), error=wrong.mean(), score=score) | row.to_dict() | dict(
                shift=shift[score] if name != 'pbc128' else np.nan, foreign=odd.get(score, np.nan)))
    home = dict(pbc128='pbc128, at home')
    answers = {home.get(name, name): (p.max(1), np.array(NAMES, object)[p.argmax(1)] == kind)
               for name, (kind, p, _) in asked.items()}
    return pd.DataFrame(rows), answers


def generative_answers(table, features, heads, one):
    "Ask a generative classifier, on the head's features and teachers, of a left-out laboratory"
    from cblc.learn.densities import ask_opinions, fit_opinion_weights, fit_opinions
    from cblc.learn.leaves import to_probabilities
    _, known, taught = heads[frozenset({one})]
    kinds = table.kind.iloc[taught].to_numpy(object)
    truth = np.array([known.index(kind) for kind in kinds])
    numbers = np.roll(features, 56, axis=1)   # those that are measured come first
    half = np.arange(len(taught)) % 5 > 0
    opinions = fit_opinions(numbers[taught[half]], truth[half], len(known), 56)
    weights = fit_opinion_weights(ask_opinions(opinions, numbers[taught[~half]]), truth[~half])
    own = np.flatnonzero(((table.laboratory == one) & table.kind.isin(known)).to_numpy())
    answer = np.tensordot(weights, ask_opinions(opinions, numbers[own]), 1)
    p = to_probabilities(answer)
    return p.max(1), np.array(known, object)[p.argmax(1)] == table.kind.iloc[own].to_numpy(object)


def head_answers(table, answers, one):
    "Take a head's answers of a left-out laboratory: confidence, right or not"
    own, is_known, p = answers[one, None]
    right = np.array(NAMES, object)[p.argmax(1)] == table.kind.iloc[own].to_numpy(object)
    return p.max(1)[is_known], right[is_known]


def judge_observers(table, features, kinds_p, answers, heads, of_diffusion, laboratories):
    "Put our models beside each other: accuracy against confidence where none of their training was"
    groups = {one: [one] for one in ('bm_munich', 'pbc128') if one in laboratories}
    groups['wbc'] = [one for one in laboratories if one.startswith('wbc')]
    observers = {}
    for group, names in groups.items():
        if names:
            both = dict(head=[head_answers(table, answers, one) for one in names],
                        generative=[generative_answers(table, features, heads, one) for one in names])
            observers |= {f'{model}, {group}': tuple(map(np.concatenate, zip(*parts)))
                          for model, parts in both.items()}
    observers |= {f'diffusion, {name}': own for name, own in of_diffusion.items()}
    own = np.flatnonzero(((table.set == 'segmentation_wbc') & table.kind.notna()).to_numpy())
    right = np.array(NAMES, object)[kinds_p[own].argmax(1)] == table.kind.iloc[own].to_numpy(object)
    return compare_observers(observers | {'shipped, wbc': (kinds_p[own].max(1), right)})


def judge_certainty(table, answers, laboratories):
    "Count errors among answers at 0.99 in each left-out laboratory, by the guarded confidence of the others"
    rows = []
    for one in laboratories:
        parts = []
        for other in laboratories:
            if other != one:
                own, is_known, p = answers[other, one]
                right = np.array(NAMES, object)[p.argmax(1)] == table.kind.iloc[own].to_numpy(object)
                parts.append((p.max(1)[is_known], right[is_known], np.repeat(other, is_known.sum())))
        confidence, right, laboratory = (np.concatenate(part) for part in zip(*parts))
        outside = fit_outside(confidence, right, laboratory)
        own, is_known, p = answers[one, None]
        right = np.array(NAMES, object)[p.argmax(1)] == table.kind.iloc[own].to_numpy(object)
        members = [answers[one, other][2] for other in laboratories if other != one]
        stated, agreed = p.max(1), agreed_confidence(members, p.argmax(1))
        for how, values in (('stated', stated), ('expected', outside.expected(stated)),
                            ('guarded', outside.guarded(stated)), ('agreed', agreed)):
            rows.append(
                dict(laboratory=one, how=how) | certain_answers(values[is_known], right[is_known]).to_json()
                | dict(foreign=int((~is_known).sum()), foreign_certain=int((values[~is_known] >= .99).sum())))
    return pd.DataFrame(rows)


CLINICAL = dict(cblc=('blast', 'N1'), blast=('blast',))   # questions -> kinds that answer yes


def clinical_answers(table, answers, key, kinds, foreign=False):
    "Say of one laboratory's cells whether they are of some kinds: the probability, and the truth"
    own, is_known, p = answers[key]
    kept = np.ones(len(own), bool) if foreign else is_known
    truth = table.kind.iloc[own].isin(kinds).to_numpy()
    return p[kept][:, [NAMES.index(kind) for kind in kinds]].sum(1), truth[kept]


def guarded_by(table, answers, one, laboratories, kinds):
    "Fit how far confidence in a clinical answer can be trusted, on the laboratories but one"
    parts = []
    for other in laboratories:
        if other != one:
            p, truth = clinical_answers(table, answers, (other, one), kinds)
            parts.append((np.maximum(p, 1 - p), (p >= .5) == truth, np.repeat(other, len(p))))
    return fit_outside(*(np.concatenate(part) for part in zip(*parts)))


def members_doubt(answers, one, laboratories, kinds, called, kept):
    "Measure how little the heads that each lacked one more laboratory believe in an answer, on average"
    columns = [NAMES.index(kind) for kind in kinds]
    members = [answers[one, other][2][kept][:, columns].sum(1) for other in laboratories if other != one]
    return 1 - np.mean([np.where(called, p, 1 - p) for p in members], 0)


def judge_clinical(table, answers, laboratories):
    "Judge clinical questions in left-out laboratories, with and without the cells of kinds nobody taught"
    rows, figures = [], {}
    for question, kinds in CLINICAL.items():
        for foreign in (False, True):
            found = []
            for one in laboratories:
                p, truth = clinical_answers(table, answers, (one, None), kinds, foreign)
                if not p.any():
                    continue   # none of these kinds was taught
                surest, wrong = np.maximum(p, 1 - p), (p >= .5) != truth
                guarded = guarded_by(table, answers, one, laboratories, kinds).guarded(surest)
                kept = answers[one, None][1] | foreign
                ensemble = members_doubt(answers, one, laboratories, kinds, p >= .5, kept)
                found.append(dict(
                    question=question, foreign=foreign, laboratory=one, yes=int(truth.sum()),
                    sensitivity=(p >= .5)[truth].mean() if truth.any() else np.nan,
                    specificity=(p < .5)[~truth].mean(), **reject(1 - surest, wrong).to_json(),
                    n_099=int((surest >= .99).sum()), wrong_099=int(wrong[surest >= .99].sum()),
                    n_099_guarded=int((guarded >= .99).sum()),
                    wrong_099_guarded=int(wrong[guarded >= .99].sum()),
                    ensemble=reject(ensemble, wrong).ratio, pairs=(1 - surest, wrong),
                    pairs_ensemble=(ensemble, wrong)))
            figures |= clinical_figures(f'{question}_all' if foreign else question, pd.DataFrame(found))
            rows += found
    return pd.DataFrame(rows).drop(columns=['pairs', 'pairs_ensemble']), figures


def clinical_figures(question, rows):
    "Put laboratories together: worst ratio, ratio over all cells, errors among the surest answers"
    every = reject(*(np.concatenate(part) for part in zip(*rows.pairs)))
    by_ensemble = reject(*(np.concatenate(part) for part in zip(*rows.pairs_ensemble)))
    n, n_wrong = int(rows.n_099.sum()), int(rows.wrong_099.sum())
    low, high = wilson_interval(n_wrong, n) if n else (np.nan, np.nan)
    return {f'error_ratio_{question}_at_10pct': rows.ratio.max(), f'error_{question}': every.error,
            f'error_ratio_{question}_at_10pct_pooled': every.ratio,
            f'error_ratio_{question}_ensemble_at_10pct_pooled': by_ensemble.ratio,
            f'least_ratio_{question}_at_10pct_pooled': every.least_ratio,
            f'error_{question}_at_099': n_wrong/n if n else np.nan, f'n_{question}_at_099': n,
            f'error_{question}_at_099_low': low, f'error_{question}_at_099_high': high,
            f'n_{question}_at_099_guarded': int(rows.n_099_guarded.sum()),
            f'n_wrong_{question}_at_099_guarded': int(rows.wrong_099_guarded.sum())}


def judge_clinical_sets(table, answers, laboratories, level=.9):
    "Measure sets of CBLC or not in each left-out laboratory, calibrated by the other left-out ones"
    rows, names, kinds = [], ('CBLC', 'not'), CLINICAL['cblc']
    for one in laboratories:
        p, truth = clinical_answers(table, answers, (one, None), kinds)
        parts = []
        for other in laboratories:
            if other != one:
                q, true = clinical_answers(table, answers, (other, one), kinds)
                parts.append((np.where(true, *names), np.c_[q, 1 - q], np.repeat(other, len(q))))
        said, chances, where = (np.concatenate(part) for part in zip(*parts))
        fitted = fit_laboratories(said.astype(object), chances, where, names, level)
        sets = union_sets(fitted, np.c_[p, 1 - p])
        found = coverage(np.where(truth, *names).astype(object), sets, names)
        rows.append(dict(laboratory=one, n=len(p), yes=int(truth.sum()), covered=found.covered['all'],
                         covered_cblc=found.covered['CBLC'], covered_not=found.covered['not'],
                         size=found['size']['all'], both=(sets.sum(1) == 2).mean()))
    return pd.DataFrame(rows)


def judge_home_sets(p, kinds, least=100, halves=100):
    "Measure the coverage of 90 % sets on cells of the home laboratories that the classifier was not shown"
    rng, covered, sizes = np.random.default_rng(0), [], []
    for _ in range(halves):
        order = rng.permutation(len(kinds))
        known, asked = order[::2], order[1::2]
        sets = fit_conformal(kinds[known], p[known], NAMES).sets(p[asked])
        found = coverage(kinds[asked], sets, NAMES)
        covered.append(found.covered)
        sizes.append(found['size'])
    counts = pd.Series(kinds).value_counts()
    names = [name for name in NAMES if counts.get(name, 0) >= least]
    figures = pd.DataFrame(dict(covered=np.mean(covered, 0), size=np.mean(sizes, 0)), index=covered[0].index)
    return figures.loc[names].assign(n=counts[names])


def judge_shifted_sets(table, features, measured, answers, laboratories):
    "Measure the coverage of 90 % sets in left-out laboratories, calibrated at home and by other laboratories"
    rows = []
    for one in laboratories:
        own, is_known, p = answers[one, None]
        own, p = own[is_known], p[is_known]
        kind = table.kind.iloc[own].to_numpy(object)
        head, known, taught = teach(table, features, {one})
        at_home = taught[(table.part == 'valid').to_numpy()[taught]]
        home = fit_conformal(table.kind.iloc[at_home].to_numpy(object), head(features[at_home]), NAMES)
        parts = []
        for other in laboratories:
            if other != one:
                rest, is_told, q = answers[other, one]
                weights, _ = shift_weights(measured[rest[is_told]], measured[own])
                parts.append((table.kind.iloc[rest[is_told]].to_numpy(object), q[is_told],
                              np.repeat(other, is_told.sum()), weights))
        kinds, chances, names, weights = (np.concatenate(part) for part in zip(*parts))
        fitted = fit_laboratories(kinds, chances, names, NAMES, weights=weights)
        possible = np.isin(NAMES, known)
        for how, sets in (('at home', home.sets(p)), ('left-out, weighted', union_sets(fitted, p))):
            found = coverage(kind, sets & possible, NAMES).loc['all']
            rows.append(dict(laboratory=one, how=how, kinds=int(possible.sum())) | found.to_dict())
    return pd.DataFrame(rows)


def artefact_head(table, features, kinds, train):
    "Ask a light head that was taught Munich's training part how like an artefact each find is, 0-1"
    names, p = (*NAMES, ARTEFACT), np.full(len(table), .5)
    head = Head(features[train], kinds[train].astype(str), np.zeros(train.sum(), bool))
    p[~train] = head(features[~train], names)[:, -1]
    return p


def judge_artefacts(table, features, measured, kinds_p, artefact_leaf=None, lost=.03):
    "Keep artefacts out: learned on Munich's training part, priced on validation cells, asked of the rest"
    is_artefact = (table.code == ARTEFACT).to_numpy()
    usable = (is_artefact | table.kind.notna().to_numpy()) & (table.set != 'segmentation_wbc').to_numpy()
    from_matek = (table.set == 'bm_matek').to_numpy()
    kinds = table.kind.where(~is_artefact, ARTEFACT).to_numpy(object)
    train, valid, test = ((table.part == part).to_numpy() & usable & ~from_matek
                          for part in ('train', 'valid', 'test'))
    p_head = artefact_head(table, features, kinds, train)
    cells = train & ~is_artefact
    known = KnownCells.fit(measured[cells], kinds[cells].astype(str))
    is_clean = artefact_leaf is None
    evidence = artefact_evidence(measured, known, p_head if is_clean else artefact_leaf,
                                 None if is_clean else kinds_p)
    choices = [('unclear',), ('unclear', 'distance', 'relative'), tuple(evidence)]
    if not is_clean:
        evidence = evidence.assign(head=special.logit(p_head.clip(1e-4, 1 - 1e-4)))
        choices[1:1] = [('unclear', 'entropy'), ('unclear', 'entropy', 'head')]
        choices.append(tuple(evidence))
    half = np.zeros(len(table), bool)
    half[np.flatnonzero(valid & ~is_artefact)[::2]] = True
    learned = valid & ~half
    chosen, shares = choose_evidence(evidence[learned], is_artefact[learned], choices, lost)
    kept_out = {' '.join(own): round(share, 3) for own, share in zip(choices, shares)}
    print(f'\nkept out on the training side {kept_out}; used: {chosen}')
    evidence = evidence[list(chosen)]
    fitted = fit_artefacts(evidence[learned], is_artefact[learned], evidence[half], lost)
    asked = {'bm_munich NIF': test & is_artefact & (table.set == 'bm_munich').to_numpy(),
             'bm_matek artefacts': from_matek & is_artefact, 'cells of the test parts': test & ~is_artefact,
             'cells of bm_matek': from_matek & ~is_artefact & usable}
    rows = {name: dict(n=int(own.sum()), left_out=float(fitted.rejects(evidence[own]).mean()))
            for name, own in asked.items() if own.any()}
    every = test | (from_matek & usable)
    judged = judge_rejection(fitted, evidence[every], is_artefact[every])
    return pd.DataFrame(rows).T, judged, fitted.rejects(evidence)


def judge_prices(table, artefact_leaf, rejects):
    "Say what it costs of each kind: by the frozen threshold, and by one half as the commands do"
    usable = table.part.isin(['valid', 'test']) & (table.set != 'segmentation_wbc')
    usable = (usable | (table.set == 'bm_matek')).to_numpy()
    own = table.assign(word=table.kind.where(table.code != ARTEFACT, ARTEFACT), frozen=rejects,
                       commands=artefact_leaf >= .5)[usable & (table.kind.notna() | (table.code == ARTEFACT))]
    by_word = own.groupby('word')[['frozen', 'commands']]
    return by_word.mean().assign(n=by_word.size())


def review_gain(n_patients, share=.05):
    "Measure what the first cells of the queue do to both intervals of drawn patients, beside cells at random"
    rows = []
    for seed in range(n_patients):
        rng = np.random.default_rng([15, seed])
        cells = toy_cells(
            float(np.exp(rng.uniform(*np.log([.03, .5])))), n=int(rng.choice([200, 500, 1000])),
            separation=float(rng.choice([3., 4.5, 6.])), seed=1000 + seed)
        queue, chance = review_queue(cells, vocabulary=VOCABULARY), rng.permutation(len(cells))
        looks, orders = [int(share*len(cells))], dict(none=queue[:0], queue=queue, random=chance)
        truth = dict(cblc=np.mean(VOCABULARY.is_cblc(cells.code)),
                     who_blast=cells.code.isin(VOCABULARY.table.code[VOCABULARY.table.who_blast]).mean())
        for how, order in orders.items():
            row = review_course(cells, cells.code, order, looks, vocabulary=VOCABULARY).iloc[0]
            for name, true in truth.items():
                low, high, ratio = (row[f'{name}_{part}'] for part in ('low', 'high', 'ratio'))
                scaled = 2*(np.arcsin(np.sqrt(high)) - np.arcsin(np.sqrt(low)))
                figures = dict(width=high - low, scaled=scaled, error=abs(ratio - true))
                rows.append(dict(name=name, how=how) | figures)
    means = pd.DataFrame(rows).groupby(['name', 'how']).mean().unstack()
    gains = {}
    for figure in ('width', 'scaled', 'error'):
        own = means[figure]
        gains[figure] = (own.none - own.queue)/(own.none - own.random)
    return means, pd.DataFrame(gains)


def parse_arguments():
    "Read the command line"
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument('--work', help='folder for cells; they are cut and described once')
    parser.add_argument('--model', help="a classifier's bundle; the one that ships by default")
    parser.add_argument('--patients', type=int, default=200, help='drawn, for the review')
    parser.add_argument('--quick', action='store_true')
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.patients = 12
    arguments.work = arguments.work or tempfile.mkdtemp()
    Path(arguments.work).mkdir(parents=True, exist_ok=True)
    return arguments


def judge_shipped(table, kinds_p):
    "Judge the shipped classifier on the two laboratories that no weight of it has seen: what a user gets"
    rows, figures = [], {}
    for one in ('wbc_dataset1', 'wbc_dataset2'):
        own = np.flatnonzero((table.laboratory == one).to_numpy() & table.kind.notna().to_numpy())
        kind, p = table.kind.iloc[own].to_numpy(object), kinds_p[own]
        wrong = np.array(NAMES, object)[p.argmax(1)] != kind
        called, is_cblc = p[:, :2].sum(1), np.isin(kind, NAMES[:2])
        for question, doubt, is_wrong in (
                ('ten kinds', doubt_table(p).entropy, wrong),
                ('CBLC or not', np.minimum(called, 1 - called), (called >= .5) != is_cblc)):
            stated = p.max(1) if question == 'ten kinds' else 1 - doubt
            certain = certain_answers(stated, ~is_wrong)
            rows.append(
                dict(laboratory=one, question=question) | reject(doubt, is_wrong).to_json()
                | dict(n_099=certain.n_certain, wrong_099=certain.n_wrong, upper_099=certain.upper))
    table = pd.DataFrame(rows)
    for name, own in table.groupby('question'):
        key, n = 'shipped' if name == 'ten kinds' else 'shipped_cblc', own.n_099.sum()
        figures |= {f'error_ratio_{key}_at_10pct': own.ratio.max(),
                    f'least_ratio_{key}_at_10pct': own.least_ratio.max(),
                    f'error_{key}': np.average(own.error, weights=own.n), f'n_{key}_at_099': n,
                    f'error_{key}_at_099': own.wrong_099.sum()/n if n else np.nan}
    return table, figures


def judge_curves(table, answers, laboratories):
    "Fit accuracy against the log-odds of the confidence in every left-out laboratory"
    rows = {}
    for one in laboratories:
        own, is_known, p = answers[one, None]
        right = np.array(NAMES, object)[p.argmax(1)] == table.kind.iloc[own].to_numpy(object)
        p, right = p[is_known].max(1).clip(1e-6, 1 - 1e-6), right[is_known]
        fit = fit_psychometric(np.log(p/(1 - p)), right).to_json()
        names = ('n', 'threshold', 'slope', 'lapse', 'lapse_low', 'lapse_high')
        rows[one] = {name: fit[name] for name in names}
    return pd.DataFrame(rows).T


def judge_outside(table, features, measured, laboratories, figures):
    "Judge doubt, certainty and sets in left-out laboratories: heads and their answers"
    heads = left_out_heads(table, features, laboratories)
    answers = left_out_answers(table, features, laboratories, heads)
    doubts = judge_doubts(table, features, measured, answers, laboratories, heads)
    print('\nscores of doubt in left-out laboratories\n', doubts.round(3).to_string(index=False))
    means = doubts.groupby('score')[['auc', 'foreign', 'shift']].mean()
    print('\nof errors, foreign cells, shift: mean over laboratories\n', means.round(3).to_string())
    best = doubts[doubts.score == 'entropy']
    figures |= dict(error_ratio_at_10pct=best.ratio.max(), least_ratio_at_10pct=best.least_ratio.max(),
                    attained_at_10pct=best.attained.min())
    certain = judge_certainty(table, answers, laboratories)
    print('\ncertain answers\n', certain.round(4).to_string(index=False))
    sums = certain.groupby('how')[['n', 'n_certain', 'n_wrong', 'foreign', 'foreign_certain']].sum()
    errors = sums.n_wrong/sums.n_certain
    print(sums.assign(error=errors).round(4).to_string())
    figures |= dict(error_at_099=errors['agreed'], n_at_099=sums.n_certain['agreed'],
                    error_at_099_guarded=errors['guarded'], n_at_099_guarded=sums.n_certain['guarded'],
                    error_at_099_stated=errors['stated'], n_at_099_stated=sums.n_certain['stated'])
    clinical, found = judge_clinical(table, answers, laboratories)
    print('\nCBLC or not, WHO blast or not\n', clinical.round(3).to_string(index=False))
    sets = judge_clinical_sets(table, answers, laboratories)
    print('\n90 % sets of CBLC or not in left-out laboratories\n', sets.round(3).to_string(index=False))
    figures |= found
    figures |= dict(conformal_cblc_shift_min=sets.covered.min(), conformal_cblc_size=sets['size'].mean())
    shifted = judge_shifted_sets(table, features, measured, answers, laboratories)
    print('\n90 % sets in left-out laboratories\n', shifted.round(3).to_string(index=False))
    weighted = shifted[shifted.how == 'left-out, weighted']
    figures |= dict(conformal_shift_min=weighted.covered.min(), conformal_shift_size=weighted['size'].mean())
    curves = judge_curves(table, answers, laboratories)
    print('\naccuracy against confidence\n', curves.round(3).to_string())
    return heads, answers


def judge_at_home(table, kinds_p, quick, figures):
    "Judge calibration and sets of the shipped classifier on cells of its laboratories it was not shown"
    from_home = table.kind.notna().to_numpy() & (table.set != 'segmentation_wbc').to_numpy()
    unseen = from_home & ~taught_cells(table)
    kinds, p = table.kind[unseen].to_numpy(object), kinds_p[unseen]
    print('\ncalibration at home\n', class_calibration(kinds, p, NAMES).round(3).to_string())
    home = judge_home_sets(p, kinds, 2 if quick else 100)
    print('\n90 % sets at home\n', home.round(4).to_string())
    figures |= dict(conformal_min=home.covered.min(), conformal_max=home.covered.max())


def main():
    "Print the tables and the line of JSON"
    arguments, figures = parse_arguments(), {}
    classifier = Classifier.load(arguments.model)
    table, arrays = read_cells(arguments, classifier)
    kinds_p, artefact_leaf = kind_probabilities(arrays['shipped'], classifier.leaves)
    measured, laboratory = arrays['measured'].astype(float), table.laboratory.to_numpy(str)
    features = np.hstack([standardized(arrays[name], laboratory) for name in ('imagenet', 'measured')])
    words = table.assign(kind=table.kind.fillna(table.code))
    print(words.groupby(['laboratory', 'kind']).size().unstack(0, fill_value=0).to_string())
    counts = table[table.kind.notna()].laboratory.value_counts()
    laboratories = sorted(counts.index[counts >= (30 if arguments.quick else 50)])
    heads, answers = judge_outside(table, features, measured, laboratories, figures)
    shipped, found = judge_shipped(table, kinds_p)
    print('\nthe classifier that ships, in laboratories it never saw')
    print(shipped.round(3).to_string(index=False))
    figures |= found
    doubts, of_diffusion = judge_diffusion(table, arguments.work, 20 if arguments.quick else 300)
    print('\ndoubts of the diffusion model, taught PBC alone\n', doubts.round(3).to_string(index=False))
    beside = judge_observers(table, features, kinds_p, answers, heads, of_diffusion, laboratories)
    print('\nour models beside each other, out of their laboratories\n', beside.round(3).to_string())
    judge_at_home(table, kinds_p, arguments.quick, figures)
    for ending, leaf in (('', artefact_leaf), ('_clean', None)):
        lost = .3 if arguments.quick else .03
        rows, judged, rejects = judge_artefacts(table, features, measured, kinds_p, leaf, lost)
        print(f'\nartefacts{ending}\n', rows.round(3).to_string(), '\n', judged)
        figures |= {f'artefacts_rejected{ending}': judged.rejected, f'cells_lost{ending}': judged.lost}
        prices = judge_prices(table, artefact_leaf, rejects)
        print(f'\nleft out of each kind{ending}\n', prices.round(3).to_string())
        if leaf is not None:
            figures |= dict(
                blasts_lost=prices.frozen.get('blast', np.nan),
                artefacts_rejected_commands=prices.commands[ARTEFACT],
                blasts_lost_commands=prices.commands.get('blast', np.nan))
    means, gains = review_gain(arguments.patients)
    print('\nreview of 5 % of the cells\n', means.round(4).to_string(), '\n', gains.round(2).to_string())
    figures |= dict(review_gain=gains.width.min(), review_gain_scaled=gains.scaled.min(),
                    review_gain_error=gains.error.min())
    print(json.dumps({name: round(float(value), 4) for name, value in figures.items()}))


if __name__ == '__main__':
    main()
