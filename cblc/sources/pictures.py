#| export
import hashlib
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
import numpy as np
import pandas as pd
from cblc.core.errors import InputError
from cblc.core.images import BadImage, image_pages, image_paths, image_size, passed_over, read_image
from cblc.core.pictures import plain_path
from cblc.core.slides import SLIDE_SUFFIXES, is_slide, slide_fields, slide_key, slide_parts
from cblc.sources.overlap import find_overlaps, make_overview, usual_step

#| export
def _forms(path):
    "List the names a picture could have, the shortest first"
    text = str(path.absolute()).encode('utf-8', 'replace').decode()
    parts = [re.sub(r'[\x00-\x1f\x7f]', ' ', part).strip() for part in plain_path(text).parts]
    return [plain_path(parts[-1]).stem, *('/'.join(parts[-n:]) for n in range(1, len(parts)))]


def name_sources(
    paths,      # of pictures and slides, each another file or page
) -> list:      # text, NFC, in the order of `paths`; no two alike, not even in another case
    "Give every picture the shortest part of its path that no other has"
    forms = [_forms(path) for path in paths]
    level = [0]*len(forms)
    while True:
        names = [form[min(depth, len(form) - 1)] for form, depth in zip(forms, level)]
        counts = Counter(name.casefold() for name in names)
        double = [i for i, name in enumerate(names) if counts[name.casefold()] > 1]
        if all(level[i] >= len(forms[i]) - 1 for i in double):
            break
        for i in double:
            level[i] += 1
    for number, i in enumerate(double[1:], 2):          # paths that differ in nothing a name can show
        names[i] = f'{names[i]} ({number})'
    return names

#| export
_FEW = 5             # files of one kind that are all named


def _kinds_in_words(entries):
    "Name files and folders, many of one ending by their number"
    kinds = {}
    for path in entries:
        kinds.setdefault('/' if path.is_dir() else path.suffix.lower(), []).append(path.name)
    texts = []
    for kind, names in kinds.items():
        if kind == '/':
            names = [f'{name}/' for name in names]
        if len(names) <= _FEW:
            texts += names
        else:
            what = 'folders' if kind == '/' else f'{kind or "other"} files'
            texts.append(f'{len(names)} {what} ({", ".join(names[:2])}, ...)')
    return ', '.join(texts)


def _list_folder(folder, own):
    "List slides and pictures in a folder, and a line for what is passed over"
    slides = [path for path in sorted(folder.iterdir())
              if path.suffix.lower() in SLIDE_SUFFIXES and path.is_file() and path.name[0] != '.']
    parts = {part.resolve() for slide in slides for part in slide_parts(slide)} | own
    try:
        pictures = [path for path in image_paths(folder) if path.resolve() not in parts]
    except InputError:
        pictures = []
    rest = [path for path in passed_over(folder) if path not in slides and path.resolve() not in parts]
    remedy = 'save pictures as PNG, JPEG or TIFF, and give each folder by its own name'
    line = f'{folder}: not read: {_kinds_in_words(rest)}; {remedy}'
    return slides + pictures, [line] if rest else []


def list_files(
    inputs,        # files, folders
    own=(),        # files and folders of the results, which are no input
) -> tuple:        # paths, each file once; a line for whatever is not read
    "List the slides and pictures that were given"
    own, paths, problems = {Path(path).resolve() for path in own}, [], []
    for path in map(Path, inputs):
        if path.is_dir():
            found, passed = _list_folder(path, own)
            paths += found
            problems += passed
        elif path.exists():
            paths.append(path)
        else:
            problems.append(f'{path}: no such file; check the path')
    distinct = {}
    for path in paths:
        distinct.setdefault(path.resolve(), path)
    return list(distinct.values()), problems

#| export
_SERIES = re.compile(rb'\x20\x00\x0e\x00(?:UI..)?([0-9.]{10,64})', re.DOTALL)      # (0020,000E), of PS3.6


def dicom_series(
    path,      # a .dcm file
) -> str:      # empty where it has none
    "Read the number of the series that a DICOM file belongs to"
    with open(path, 'rb') as file:
        found = _SERIES.search(file.read(1 << 17))
    return found[1].decode() if found else ''


def _one_of_two(path, other, what):
    "Say that a file is another one again"
    names = [path.name, other.name]
    if names[0] == names[1]:
        names = [f'{file.parent.name}/{file.name}' for file in (path, other)]
    return f'{names[0]} is the same {what} as {names[1]}; it is counted once'


def _distinct_slides(paths):
    "Keep one file of every slide: paths, problems, notes"
    kept, series, problems, notes = {}, {}, {}, []
    for path in paths:
        group = (path.parent, dicom_series(path)) if path.suffix.lower() == '.dcm' else (path, '')
        if group[1] and series.get(group):
            continue
        try:
            key = slide_key(path)
        except BadImage as error:
            problems.setdefault(group if group[1] else path, str(error))
            continue
        series[group] = True
        if key in kept:
            notes.append(_one_of_two(path, kept[key], 'slide'))
        else:
            kept[key] = path
    unread = [line for group, line in problems.items() if not series.get(group)]
    return list(kept.values()), unread, notes

#| export
def _name_length(path):
    "Measure a name: of two equal pictures, the one without `Copy of` stays"
    return len(path.name)


def _look_at(path, step):
    "Decode a picture: hash of its pixels and overview, or its BadImage"
    try:
        image = read_image(path)
    except BadImage as error:
        return error, None
    digest = hashlib.sha256(repr(image.shape).encode())
    digest.update(np.ascontiguousarray(image))
    return digest.hexdigest(), make_overview(image, step)


def _step(paths):
    "Choose by how much the pictures are shrunk, from the sizes their headers tell"
    sizes = []
    for path in paths:
        try:
            sizes.append(image_size(path))
        except BadImage:                # named when it is decoded
            continue
    return usual_step(sizes)


def _distinct_pictures(paths, looks):
    "Keep one of every picture with equal pixels: paths, problems, notes"
    readable = [path for path in paths if not isinstance(looks[path][0], BadImage)]
    problems = [str(looks[path][0]) for path in paths if path not in set(readable)]
    kept = {}
    for path in sorted(readable, key=_name_length):
        kept.setdefault(looks[path][0], path)
    notes = [_one_of_two(path, kept[looks[path][0]], 'picture')
             for path in readable if path != kept[looks[path][0]]]
    return [path for path in readable if path == kept[looks[path][0]]], problems, notes


def _image_rows(sources, is_slide_of, fields):
    "Make the images table of pictures and slides, and the problems of slides that cannot be cut"
    rows, problems = [], []
    names = name_sources(sources)
    for path, name in zip(sources, names):
        if not is_slide_of[path]:
            rows.append(dict(image_id=name, path=path))
            continue
        is_taken = any(other != name and other.startswith(f'{name}_x') for other in names)
        try:
            cut = slide_fields(path, fields, f'{name} (slide)' if is_taken else name)
        except BadImage as error:
            problems.append(str(error))
        else:
            rows += cut.to_dict('records')
    return pd.DataFrame(rows, columns=IMAGE_COLUMNS), problems

#| export
IMAGE_COLUMNS = ['image_id', 'path', 'source', 'x', 'y', 'core', 'um_per_px']


@dataclass(frozen=True)
class Pictures:
    "The pictures of one patient, each once and under a name of its own"
    images: pd.DataFrame    # IMAGE_COLUMNS, as `slide_fields` gives them; of a picture image_id and path
    overlaps: pd.DataFrame  # pairs of pictures that show the same place (`find_overlaps`)
    problems: list          # a line for each file that is not used
    notes: list             # a line for each that was given twice


def _best_first(images, overviews):
    "Order pictures so that the largest of several copies comes first, then the one of the shortest name"
    sizes = [overviews[name].size if name in overviews else (0, 0) for name in images.image_id]
    ranks = [(-width*height, len(name)) for (width, height), name in zip(sizes, images.image_id)]
    order = sorted(range(len(images)), key=ranks.__getitem__)
    return images.iloc[order]


def _without_copies(images, overlaps):
    "Leave out pictures that are another one in another format or size: images, overlaps, notes"
    copies = overlaps[overlaps.same]
    notes = [f'{row.image_id} shows the same field as {row.other}; it is counted once'
             for row in copies.itertuples()]
    gone = set(copies.image_id)
    rest = overlaps[~overlaps.image_id.isin(gone) & ~overlaps.other.isin(gone)]
    return images[~images.image_id.isin(gone)].reset_index(drop=True), rest.reset_index(drop=True), notes


def gather(
    inputs,      # files, folders, slides
    fields,      # folder for the fields that are cut from slides
    own=(),      # files and folders of the results, which are no input
) -> Pictures:
    "Collect the pictures of one patient"
    paths, problems = list_files(inputs, own)
    paths = [page for path in paths for page in ([path] if is_slide(path) else image_pages(path))]
    is_slide_of = {path: is_slide(path) for path in paths}
    pictures = [path for path in paths if not is_slide_of[path]]
    slides, unread, notes = _distinct_slides([path for path in paths if is_slide_of[path]])
    step = _step(pictures)
    with ThreadPoolExecutor(2) as pool:
        looks = dict(zip(pictures, pool.map(lambda path: _look_at(path, step), pictures)))
        distinct, bad, more = _distinct_pictures(pictures, looks)
        sources = [path for path in paths if path in {*distinct, *slides}]
        images, uncut = _image_rows(sources, is_slide_of, fields)
        is_field = images.source.notna().to_numpy()
        if is_field.any() and len({*slides, *distinct}) > 1:
            cut = list(images.path[is_field])
            looks |= dict(zip(cut, pool.map(lambda path: _look_at(path, step), cut)))
    overviews = {row.image_id: looks[row.path][1] for row in images.itertuples() if row.path in looks}
    images, overlaps, same = _without_copies(images, find_overlaps(_best_first(images, overviews), overviews))
    return Pictures(images, overlaps, problems + unread + bad + uncut, notes + more + same)
