#| export
import math
from dataclasses import dataclass
from pathlib import Path
import numpy as np
import pandas as pd
import shapely
from cblc.core.errors import InputError
from cblc.core.images import BadImage, read_image
from cblc.core.page import data_uri, figure_uri, render_page
from cblc.core.run import write_csv, write_json, write_whole
from cblc.core.contours import write_cells
from cblc.core.geojson_masks import write_geojson
from cblc.data import need_columns, Vocabulary
from cblc.patient import (
    BAND_COLORS, BANDS, CATEGORY_COLORS, GENETICS_NOTE, THRESHOLDS, CountSettings, category_columns,
    count_cells, counted_cells, lineages, review,
)
from cblc.ratio.serial import plot_serial

#| export
def ratio_bar(
    ratio: float,      # 0-1; NaN draws the bands alone
    low: float,        # lower limit of the interval, 0-1
    high: float,       # upper limit of the interval, 0-1
    width: int = 640,  # of the drawing, in its own units
) -> str:              # SVG
    "Draw the ratio with its interval against the clinical bands"
    def position(share):
        return 12 + (width - 24) * math.sqrt(share)

    limits = (0, *THRESHOLDS, 1)
    bands = [
        dict(left=position(start), right=position(end), color=color, name=name)
        for start, end, color, name in zip(limits, limits[1:], BAND_COLORS, BANDS)
    ]
    ticks = [
        dict(x=position(share), percent=f'{100 * share:.0f}', is_threshold=share in THRESHOLDS)
        for share in (0, .05, .1, .2, .5, 1)
    ]
    marks, summary = None, 'no cells were counted'
    if not math.isnan(ratio):
        marks = dict(ratio=position(ratio), low=position(low), high=position(high))
        summary = f'{100 * ratio:.1f} %, interval {100 * low:.1f} to {100 * high:.1f} %'
    return render_page('ratio_bar.svg', width=width, bands=bands, ticks=ticks, marks=marks, summary=summary)

#| export
def certainty(
    cells: pd.DataFrame,  # classified cells table
) -> pd.Series:           # 0-1; NaN where the table holds no probabilities
    "Take each cell's probability of the category it was given, the largest"
    columns = category_columns(cells)
    return cells[columns].max(axis=1) if columns else pd.Series(np.nan, index=cells.index)


@dataclass(frozen=True)
class GalleryCell:
    "A cell as the page shows it"
    uri: str      # its picture
    p: str        # probability of its category, or 'no p'
    cblc: bool    # is it CBLC
    review: bool  # is it for a person to look at
    alt: str      # the picture in words


@dataclass(frozen=True)
class GalleryGroup:
    "The cells of one category, the least certain first"
    category: str  # of the vocabulary
    meaning: str   # what the category holds, in words
    color: str     # of its frames, #rrggbb
    n: int         # counted cells of the category
    cells: tuple   # of `GalleryCell`, those that are shown

#| export
def _meaning(category, vocabulary):
    "Say in words what a category holds"
    if category == 'other' and 'other' not in vocabulary.codes:
        return 'megakaryocytic, plasma cells, basophils, phagocytes, unclear'
    return vocabulary.table.meaning.to_dict().get(category, '')


def _color(category):
    "Give a category its color, gray where it has none"
    return CATEGORY_COLORS.get(category, '#6f6f6f')


def _shrink(image, side):
    "Shrink a picture so that its longer side is at most `side`"
    from PIL import Image
    scale = side / max(image.shape[:2])
    if scale >= 1:
        return np.asarray(image)
    size = [max(1, round(length * scale)) for length in (image.shape[1], image.shape[0])]
    return np.asarray(Image.fromarray(image).resize(size, Image.LANCZOS))


def _gallery_cell(cell, crop, p, to_review):
    "Describe one cell of the gallery"
    probability = 'no p' if math.isnan(p) else f'{p:.2f}'
    mark = ', CBLC' if cell.cblc else ''
    alt = f'cell {cell.get("cell_id", "")}, named {cell.category}, probability {probability}{mark}'
    return GalleryCell(data_uri(_shrink(crop, 96), 80), probability, bool(cell.cblc), bool(to_review), alt)

#| export
def gallery(
    cells: pd.DataFrame,      # classified cells table with `counted`
    crops: np.ndarray,        # n x size x size x 3 uint8, in the rows' order
    most: int = 24,           # cells shown a category
    review_below: float = CountSettings.review_below,  # certainty of a cell to look at, 0-1
    *,
    vocabulary: Vocabulary,   # of the categories
) -> list:                    # a `GalleryGroup` for each category that has counted cells
    "Choose the cells to show, grouped by category, least certain first"
    if len(crops) != len(cells):
        problem = f'{len(crops)} crops for {len(cells)} cells'
        raise InputError(problem, 'pass the crops of this very table, in its order')
    need_columns(cells, ['category', 'cblc', 'counted'], 'the gallery')
    p, to_review = certainty(cells).to_numpy(), review(cells, review_below).to_numpy()
    groups = []
    for category in vocabulary.categories:
        rows = np.flatnonzero(cells.counted & (cells.category == category))
        rows = rows[np.argsort(p[rows], kind='stable')]
        shown = [_gallery_cell(cells.iloc[row], crops[row], p[row], to_review[row]) for row in rows[:most]]
        if len(rows):
            meaning = _meaning(category, vocabulary)
            groups.append(GalleryGroup(category, meaning, _color(category), len(rows), tuple(shown)))
    return groups

#| export
def _line(cell, thin):
    "Choose the width and color of a cell's contour"
    if not cell.counted:
        return thin, '#9a9a9a'
    return thin * (3 if cell.cblc else 2), _color(cell.category)


def draw_contours(
    image: np.ndarray,    # H x W x 3 uint8; left alone
    cells: pd.DataFrame,  # classified cells of this image with `counted`, contours in full-resolution px
    side: int = 1000,     # longest side of the result, px
) -> np.ndarray:          # h x w x 3 uint8
    "Draw every cell's contour on a smaller copy of the field, colored by category, CBLC thick"
    import cv2
    need_columns(cells, ['polygon', 'category', 'cblc', 'counted'], 'drawing')
    small = np.array(_shrink(image, side))
    scale = np.array([small.shape[1] / image.shape[1], small.shape[0] / image.shape[0]])
    thin = max(1, round(min(small.shape[:2]) / 400))
    for cell in cells[['polygon', 'category', 'cblc', 'counted']].itertuples():
        # cv2 counts in sixteenths of a pixel here, from the middle of the first one
        ring = np.round(np.asarray(cell.polygon.exterior.coords) * scale * 16 - 8).astype(np.int32)
        width, color = _line(cell, thin)
        rgb = tuple(int(color[start:start + 2], 16) for start in (1, 3, 5))
        if cell.counted:  # a white rim, for dark ground
            cv2.polylines(small, [ring], True, (255, 255, 255), width + 2, cv2.LINE_AA, shift=4)
        cv2.polylines(small, [ring], True, rgb, width, cv2.LINE_AA, shift=4)
    return small

#| export
LIMITS = (
    'The program counts what lies in the pictures it was given. Whether they show the right part of a good '
    'smear is for the person who took them.',
    'The interval carries the number of cells, their clustering by field, and cells the model is unsure of. '
    'It does not repair a model that leans to one side, nor cells the segmenter missed; a corrected ratio, '
    "where one is shown, does so as far as the model's validation tells.",
    'Morphology alone does not tell a blast of AML from every look-alike: regenerating marrow, growth '
    'factors and other leukemias can raise the ratio.',
    "CBLC ratio and WHO blast ratio are different figures and must not be compared with each other's "
    'cut-offs without thought.',
)


def percent(
    share,            # 0-1; None or NaN where it is not defined
    digits: int = 1,  # after the point
) -> str:             # without the sign, a dash where it is not defined
    "Write a share in percent"
    return '–' if share is None or math.isnan(share) else f'{100 * share:.{digits}f}'


_WHY_NOT = {
    'edge': "cut by a picture's edge", 'guard zone': 'in the guard zone along an edge',
    'artefact': 'artefacts', 'no nucleus': 'without a nucleus', 'seen twice': 'shown by two fields',
}


def why_left_out(
    summary: dict,  # from `summarize_patient`
) -> str:           # reasons with their counts; empty where nothing is left out
    "Say in words how many finds are not counted, and why"
    reasons = summary.get('left_out') or {}
    named = [f'{n} {_WHY_NOT.get(reason, reason)}' for reason, n in reasons.items()]
    n_others = summary.get('n_left_out', 0) - sum(reasons.values())
    return ', '.join([*named, *([f'{n_others} that are no cell, or unclear'] if n_others else [])])


def _figures_beside(summary):
    "List the figures beside the ratio: name, value, how it is made"
    me_ratio = summary.get('me_ratio', math.nan)
    figures = [
        ('WHO blast ratio', f'{percent(summary["who_blast_ratio"])} %',
         'what the WHO counts as blasts, over all nucleated cells'),
        ('M:E ratio', '–' if math.isnan(me_ratio) else f'{me_ratio:.1f}',
         'granulocytic and monocytic over erythroid cells'),
        ('To look at', str(summary['n_review']), 'cells the model is unsure of'),
        ('Left out', str(summary.get('n_left_out', 0)), why_left_out(summary) or 'every find counts'),
    ]
    if not math.isnan(summary.get('corrected_ratio', math.nan)):
        low, high = (percent(limit) for limit in summary['corrected_interval'])
        how = (f'{low} to {high} %, freed from the errors the model showed in its validation; speaks '
               f'{percent(summary["p_ge_20"], 0)} % for a ratio of 20 % and more')
        figures.insert(0, ('Corrected ratio', f'{percent(summary["corrected_ratio"])} %', how))
    if not math.isnan(summary.get('non_erythroid_ratio', math.nan)):
        how = 'CBLC among non-erythroid cells, as erythroid cells are half or more'
        figures.append(('Non-erythroid ratio', f'{percent(summary["non_erythroid_ratio"])} %', how))
    return figures


def _count_rows(cells, vocabulary):
    "Lay the counts out by lineage and category"
    counts, counted = count_cells(cells, vocabulary=vocabulary), counted_cells(cells)
    n_cblc = counted[counted.cblc.astype(bool)].category.value_counts()
    total, largest = max(int(counts.sum()), 1), max(int(counts.max()), 1)
    holds_cblc = set(vocabulary.table.category[vocabulary.table.cblc])
    groups = []
    for lineage, categories in lineages(vocabulary).groupby(lineages(vocabulary), sort=False):
        rows = [
            dict(category=category, meaning=_meaning(category, vocabulary), color=_color(category),
                 n=int(counts[category]), pct=percent(counts[category] / total), mark=category in holds_cblc,
                 n_cblc=int(n_cblc.get(category, 0)), width=round(100 * counts[category] / largest, 1))
            for category in categories.index
        ]
        n = sum(row['n'] for row in rows)
        groups.append(dict(name=lineage, n=n, pct=percent(n / total), rows=rows))
    return groups

#| export
def _image_of(images, image_id):
    "Find a picture by its id in a dict or an images table; None where it is missing or unreadable"
    if isinstance(images, pd.DataFrame):
        images = dict(zip(images.image_id, images.path))
    image = images.get(image_id)
    if image is None or isinstance(image, np.ndarray):
        return image
    try:
        return read_image(image)
    except BadImage:  # named in the summary's warnings by whoever found the cells
        return None


def _field_rows(cells, images, most, side):
    "Encode the fields with the most CBLC, and count all fields"
    image_ids = list(images.image_id) if isinstance(images, pd.DataFrame) else list(images)
    counts = counted_cells(cells).groupby('image_id').cblc.agg(['size', 'sum'])
    counts = counts.reindex(image_ids, fill_value=0)
    counts = counts.sort_values(['sum', 'size'], ascending=False, kind='stable')
    rows = []
    for image_id, count in counts.iterrows():
        image = _image_of(images, image_id) if len(rows) < most else None
        if image is None:
            continue
        drawn = draw_contours(image, cells[cells.image_id == image_id], side)
        caption = f'{image_id}: {int(count["size"])} cells counted, {int(count["sum"])} of them CBLC'
        rows.append(dict(uri=data_uri(drawn, 74), alt=f'field {caption}, contours drawn', caption=caption,
                         w=drawn.shape[1], h=drawn.shape[0]))
    return rows, len(image_ids)


def model_facts(
    meta: dict,  # what a bundle says of itself; None or empty where nothing is known
) -> list:       # of (name, text)
    "Say what is known of a bundle in words"
    if not meta:
        return []
    keys = dict(Name='name', How='trained_how', Licence='licence', cblc='cblc_version')
    keys = {'Name': 'name', 'Trained on': 'trained_on', **keys}
    facts = [(name, meta.get(key)) for name, key in keys.items()]
    measured = {k: v for k, v in (meta.get('metrics') or {}).items() if not isinstance(v, (dict, list))}
    texts = [f'{k} {v:.3g}' if isinstance(v, float) else f'{k} {v}' for k, v in measured.items()]
    facts.append(('Measured', ', '.join(texts)))
    facts += [('Mind', warning) for warning in meta.get('warnings') or []]
    return [(name, str(text)) for name, text in facts if text not in (None, '')]

#| export
@dataclass(frozen=True)
class PageSettings:
    "How much a patient's page shows"
    cells_per_category: int = 24                       # in the gallery
    fields: int = 8                                    # those with the most CBLC
    field_side: int = 900                              # px, longest side of a field
    review_below: float = CountSettings.review_below   # certainty of a cell that is marked for a look, 0-1


def _cblc_names(vocabulary):
    "Say which cells CBLC are"
    names = vocabulary.table.meaning[vocabulary.table.cblc]
    return ', '.join(f'{name} ({code})' for code, name in names.items())


def _count_values(summary, cells, vocabulary):
    "Lay the count out for the template"
    from markupsafe import Markup
    ratio, (low, high) = summary['cblc_ratio'], summary['cblc_interval']
    shown = [category for category in vocabulary.categories if category in set(cells.category)]
    return dict(
        ratio=percent(ratio), low=percent(low), high=percent(high), bar=Markup(ratio_bar(ratio, low, high)),
        band_color=dict(zip(BANDS, BAND_COLORS)).get(summary['band'], '#eee'),
        stats=_figures_beside(summary), left_out=why_left_out(summary),
        lineages=_count_rows(cells, vocabulary), cblc_names=_cblc_names(vocabulary),
        key=[(category, _color(category)) for category in shown])

#| export
def patient_report(
    summary: dict,                # from `summarize_patient`
    cells: pd.DataFrame,          # the patient's classified cells table with `counted` and polygons
    images,                       # image_id -> array or path, or an images table
    crops: np.ndarray = None,     # n x size x size x 3 uint8 in the order of `cells`; None: no gallery
    bundle_meta: dict = None,     # what the classifier's bundle says of itself
    out='report.html',            # file to write
    files: str = '',              # what lies beside the page, in words
    serial: pd.DataFrame = None,  # from `serial_table`, where the patient has smears of several dates
    settings: PageSettings = PageSettings(),  # how much is shown
    *,
    vocabulary: Vocabulary,       # of the categories
) -> Path:                        # the file
    "Write the page of one patient"
    fields, n_fields = _field_rows(cells, images, settings.fields, settings.field_side)
    most, below, groups, course = settings.cells_per_category, settings.review_below, [], ''
    if crops is not None:
        groups = gallery(cells, crops, most, below, vocabulary=vocabulary)
    if serial is not None and len(serial) > 1:
        course = figure_uri(plot_serial(serial).figure)
    return write_whole(out, render_page(
        'patient.html', s=summary, note=GENETICS_NOTE, limits=LIMITS, files=files, serial=course,
        model=model_facts(bundle_meta), gallery=groups, cap=most, review_below=below, fields=fields,
        n_fields=n_fields, **_count_values(summary, cells, vocabulary)))

#| export
_NOT_COUNTED = 'not counted'


def _qupath_object(cell):
    "Describe a find as QuPath does: a detection with a class of name and color"
    name, color = str(cell.category), _color(cell.category)
    if not cell.counted:
        name, color = f'{name}: {_NOT_COUNTED}', '#9a9a9a'
    rgb = [int(color[start:start + 2], 16) for start in (1, 3, 5)]
    why = str(getattr(cell, 'why_not', '') or '')
    metadata = dict(metadata=dict(why_not=why)) if why else {}
    properties = dict(classification=dict(name=name, color=rgb), **metadata)
    return dict(id=None, objectType='detection', properties=properties)


def _on_sources(cells, images):
    "Move cells from the fields of a slide to the slide: cells, and image_id of all pictures and slides"
    if not isinstance(images, pd.DataFrame):
        return cells, list(images)
    if 'source' not in images:
        return cells, list(images.image_id)
    sources = images.source.where(images.source.notna(), images.image_id)
    table = images.assign(source=sources).set_index('image_id')
    known = table.loc[cells.image_id]
    places = known[['x', 'y']].astype(float).fillna(0).to_numpy()
    moved = [shapely.transform(polygon, lambda xy, place=place: xy + place)
             for polygon, place in zip(cells.polygon, places)]
    polygons = pd.Series(moved, cells.index, dtype=object)
    return cells.assign(polygon=polygons, image_id=known.source.to_numpy()), list(table.source.unique())


def write_qupath(
    cells: pd.DataFrame,   # classified cells table with `counted`, polygons in px of their images
    images,                # image_id -> array or path, or an images table (of a slide's fields source, x, y)
    out,                   # folder for one file a picture or slide
) -> Path:                 # the folder
    "Write the finds as QuPath opens them, over each picture or slide"
    placed, sources = _on_sources(cells, images)
    objects = [_qupath_object(cell) for cell in placed.itertuples()]
    codes = placed.category.astype(object)
    placed = placed.assign(code=codes, qupath=pd.Series(objects, placed.index, dtype=object))
    return write_geojson(placed, out, pd.DataFrame(dict(image_id=sources)))

#| export
def write_summary(
    summary: dict,  # from `summarize_patient`
    path,           # file to write
) -> Path:          # the file
    "Write a summary as JSON"
    return write_json(path, summary, indent=2)


def write_patient(
    summary: dict,                # from `summarize_patient`
    cells: pd.DataFrame,          # the patient's classified cells table with `counted` and polygons
    images,                       # image_id -> array or path, or an images table
    out,                          # folder, made if need be
    crops: np.ndarray = None,     # n x size x size x 3 uint8 in the order of `cells`; None: no gallery
    bundle_meta: dict = None,     # what the classifier's bundle says of itself
    serial: pd.DataFrame = None,  # from `serial_table`, where the patient has smears of several dates
    settings: PageSettings = PageSettings(),  # how much the page shows
    *,
    vocabulary: Vocabulary,       # of the categories
) -> dict:                        # summary, cells, geojson, report and, of several dates, smears -> path
    "Write a patient's files into a folder"
    out = Path(out)
    written = dict(
        cells=Path(write_cells(cells, out / 'cells.parquet')),
        geojson=write_qupath(cells, images, out / 'geojson'))
    files = 'cells.parquet (a row a cell), geojson (a file a picture, opens in QuPath), summary.json'
    if serial is not None:
        written['smears'] = out/'smears.csv'
        write_csv(serial, written['smears'], True)
        files += ', smears.csv (a row a date)'
    report = patient_report(
        summary, cells, images, crops, bundle_meta, out / 'report.html', files, serial, settings,
        vocabulary=vocabulary)
    written['summary'] = write_summary(summary, out / 'summary.json')  # the last
    return {**written, 'report': report}
