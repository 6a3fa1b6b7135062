#| export
import json
import re
import unicodedata
from dataclasses import replace
from pathlib import Path
import pandas as pd
from cblc.core.bundle import read_bundle, shipped
from cblc.core.errors import InputError
from cblc.core.run import Run, hide_folders, remove
from cblc.core.slides import pixel_sizes
from cblc.sources.pictures import gather

#| export
def smear_dates(
    images: pd.DataFrame,  # image_id, path
) -> dict:                 # image_id -> date; empty unless all lie in folders of dates, of two days at least
    "Read the dates of serial smears from their folders' names"
    days = [Path(path).parent.name for path in images.path]
    is_dated = all(re.fullmatch(r'\d{4}-\d\d-\d\d', day) for day in days)
    return dict(zip(images.image_id, days)) if is_dated and len(set(days)) > 1 else {}

#| export
def _correction(cells, images, meta):
    "Give the corrected ratio, the course over time, and what to mind, as far as the bundle's validation goes"
    from cblc.hospital.frozen import Frozen
    from cblc.ratio.correction import correct_patient
    from cblc.ratio.serial import count_smears, serial_table
    validation, clustering = Frozen.from_meta(meta).correction
    days, warnings = smear_dates(images), []
    if days:
        warnings.append(f'smears of {len(set(days.values()))} dates are counted together in the ratio')
    if validation is None:
        if days:
            warnings[0] += '; the bundle holds no frozen validation to compare them by'
        return {}, None, warnings
    corrected = correct_patient(cells, validation, clustering)
    warnings += corrected.warnings
    if not days:
        return corrected.to_json(), None, warnings
    counts = count_smears(cells.assign(smear_id=cells.image_id.map(days)))
    course = serial_table(counts, {day: day for day in days.values()}, validation, clustering)
    return corrected.to_json(), course, warnings


def _open_classifier(model):
    "Open a classifier whose labels can be counted"
    from cblc.classifier import Classifier
    classifier = Classifier.load(read_bundle(model or shipped('classifier'), 'classifier'))
    if classifier.vocabulary is None:
        problem = 'its labels are free names, of which no marrow count can be made'
        raise InputError(problem, 'give a bundle trained on a vocabulary', classifier.bundle.path)
    return classifier


def _find_once(pictures, segmenter):
    "Find the cells, each once: cells with `place`, lines for unreadable pictures, notes on shared cells"
    from cblc.cells.frame import mark_frame
    from cblc.cells.twice import mark_twice, own_cells
    from cblc.segmentation import Segmenter, segment_images
    found, unreadable = segment_images(pictures.images, Segmenter.load(segmenter or None))
    if len(unreadable) == len(pictures.images):
        raise InputError(unreadable[0])
    placed = mark_frame(own_cells(found, pictures.images), pictures.images)
    cells, notes = mark_twice(placed, pictures.images, pictures.overlaps)
    return cells, unreadable, notes


def _judge_pictures(images, cells):
    "Give what is doubtful in the pictures, as summary.json holds it"
    from cblc.cells.quality import quality_warnings
    return [warning.to_json() for warning in quality_warnings(images, cells, pixel_sizes(images))]

#| export
WRITTEN = ('summary.json', 'report.html', 'review.html', 'cells.parquet', 'cells.csv', 'cells.geojson',
           'geojson', 'smears.csv', 'fields')
_LOGS = ('run.log', 'manifest.json')
_ASIDE = '.fields.part'         # where a slide's fields wait until the results are there


def _patient_name(inputs, patient):
    "Name the patient after the first input where no name is given"
    first = Path(inputs[0])
    name = patient or (first.resolve().name if first.is_dir() else first.stem)
    return unicodedata.normalize('NFC', str(name)).strip()


def _refuse_other(folder, patient, force):
    "Refuse a folder that holds another patient's results, or what cannot be told"
    path = folder / 'summary.json'
    if force or not path.exists():
        return
    try:
        owner = json.loads(path.read_bytes())['patient_id']
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError('damaged', "give another folder, or --force to write over it", path) from error
    if str(owner) != patient:
        problem = f"holds the results of patient {owner}, these are {patient}'s"
        raise InputError(problem, 'give another folder, or --force to write over it', folder)


def _forget(folder, images):
    "Remove the results of the time before, the summary first; move the fields in place: the images table"
    for name in WRITTEN:
        remove(folder / name)
    aside, fields = folder / _ASIDE, folder / 'fields'
    if any(path.parent == aside for path in images.path):
        aside.rename(fields)
    return images.assign(path=[fields / path.name if path.parent == aside else path for path in images.path])


def _patient_pictures(inputs, folder, patient):
    "Gather the pictures, each with the patient's name; InputError where there is none"
    remove(folder / _ASIDE)
    own = [folder, *(folder / name for name in (*WRITTEN, *_LOGS))]
    pictures = gather(inputs, folder / _ASIDE, own)
    if not len(pictures.images):
        if pictures.problems:
            raise InputError(pictures.problems[0])
        remedy = 'give PNG, JPEG, TIFF or BMP files, a folder of them, or a slide'
        raise InputError('no pictures here', remedy, where=', '.join(map(str, inputs)))
    return replace(pictures, images=pictures.images.assign(patient_id=patient, center=''))


def _to_mind(run, problems, notes, meta):
    "Log what was skipped or given twice, and list it with what the bundle warns of"
    lines = [*(f'skipped: {hide_folders(problem)}' for problem in problems), *map(hide_folders, notes)]
    for line in lines:
        run.log(line)
    return [*lines, *meta.get('warnings', []), f'The model was trained on: {meta["trained_on"]}.']

#| export
def _with_correction(count, cells, images, meta):
    "Give what summary.json holds, and the course over time"
    corrected, course, notes = _correction(cells, images, meta)
    return {**count.to_json(), **corrected, 'warnings': [*count.warnings, *notes]}, course


def _diagnose(run, inputs, patient, classifier, segmenter):
    "Walk from pictures to files: what summary.json holds"
    from cblc.hospital.centers import classify_images
    from cblc.pages.patient import write_patient
    from cblc.patient import summarize_patient
    bundle, vocabulary = classifier.bundle, classifier.vocabulary
    pictures = _patient_pictures(inputs, run.folder, patient)
    images = pictures.images
    found, unreadable, shared = _find_once(pictures, segmenter)
    cells, crops, _ = classify_images(
        images, None, classifier, find=lambda *_: (found, unreadable), adapt=True)
    notes = [*pictures.notes, *shared]
    warnings = _to_mind(run, [*pictures.problems, *unreadable], notes, bundle.meta)
    n_read = len(images) - len(unreadable)
    count = summarize_patient(cells, patient, n_read, bundle.id, warnings, vocabulary=vocabulary)
    summary, course = _with_correction(count, cells, images, bundle.meta)
    summary = {**summary, 'quality': _judge_pictures(images, cells)}
    for doubt in summary['quality']:
        run.log(f'doubt: {doubt["text"]}')
    images = _forget(run.folder, images)
    write_patient(summary, cells, images, run.folder, crops, bundle.meta, course, vocabulary=vocabulary)
    run.log(f'{patient}: {count.n_cells} cells in {count.n_images} images, in {run.folder / "report.html"}')
    return summary


def diagnose(
    inputs,             # files, folders, slides of one patient
    out,                # folder for the results
    model='',           # classifier bundle; the shipped research one by default
    segmenter='',       # segmenter bundle; the shipped one by default
    patient: str = '',  # the patient's identifier; by default the first input's name
    say=print,          # takes each log line
    force=False,        # write over another patient's results
) -> dict:              # what summary.json holds
    "Go from one patient's pictures to cells, summary and report"
    run = Run(out, say)
    patient = _patient_name(inputs, patient)
    _refuse_other(run.folder, patient, force)
    try:
        return _diagnose(run, inputs, patient, _open_classifier(model), segmenter)
    finally:
        remove(run.folder / _ASIDE)
