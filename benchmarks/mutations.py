"""Does any damaged input stop a reader otherwise than by a line that names the file and what to do?

Small sound inputs of every kind are damaged at random: bytes flipped, cut, doubled and put in; JSON, TOML,
tables and label files rewritten with values of other kinds, missing, endless or nested. Each is read in a
process of its own that is watched: an exception other than an InputError is a traceback, 5 s of processor
time a hang, 1 GB of memory too much, and a refusal that lacks the file or a remedy is raw.

    python benchmarks/mutations.py [--quick] [--inputs 20000] [--seed 0] [--only NAME] [--workers 2]
"""
import argparse
import copy
import base64
import csv
import io
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import tifffile
import tomli_w
from PIL import Image
from shapely.geometry import Point

import cblc.sources.check
import cblc.sources.convert
from cblc.cells.crops import CropSettings
from cblc.cells.singles import read_singles
from cblc.core.bundle import read_bundle, shipped, write_bundle
from cblc.core.contours import read_cells, write_cells
from cblc.core.errors import InputError
from cblc.core.images import image_pages, image_paths, image_size, read_image
from cblc.core.listing import place_in, tomllib
from cblc.core.run import Run
from cblc.core.sheets import read_sheet
from cblc.core.survey import SurveySettings, slide_fields, survey_slide
from cblc.data import VOCABULARY, Vocabulary, read_cohort
from cblc.hospital.frozen import Frozen, NaiveBaselines
from cblc.hospital.judge import CenterResult
from cblc.hospital.summary import read_centers

SECONDS = 5             # of a process's own time, from which an input is a hang
MOST_GROWTH = 10**9     # bytes
SIDE = 96               # px of the drawn field


# ---- sound inputs -------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Kind:
    "A kind of input: its files, which of them are damaged, and who reads them"
    name: str
    files: dict         # path in the folder -> bytes
    damaged: tuple      # paths of those that are damaged, one at a time
    read: object        # called with the folder
    share: float = 1.   # how often, beside the others


def drawn_field():
    "Draw a field with four cells: pixels and contours"
    rng = np.random.default_rng(0)
    pixels = rng.integers(205, 235, (SIDE, SIDE, 3))
    cells = [Point(x, y).buffer(12, 8) for x, y in ((20, 20), (66, 24), (30, 68), (72, 72))]
    y, x = np.mgrid[:SIDE, :SIDE]
    for cell in cells:
        inside = np.hypot(x - cell.centroid.x, y - cell.centroid.y) < 12
        pixels[inside] = rng.integers((110, 60, 130), (150, 95, 170), (int(inside.sum()), 3))
    return pixels.astype(np.uint8), cells


FIELD, CELLS = drawn_field()
CODES = ('N', 'N4', 'L', 'R2')


def packed(pixels, kind, **options):
    "Encode a picture by Pillow"
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def packed_tiff(pixels, **options):
    "Encode a TIFF by tifffile"
    stream = io.BytesIO()
    tifffile.imwrite(stream, pixels, **options)
    return stream.getvalue()


PNG = packed(FIELD, 'PNG')


def as_json(value):
    "Encode JSON"
    return json.dumps(value, ensure_ascii=False).encode()


def points_of(cell):
    "List the points of a contour"
    return np.asarray(cell.exterior.coords)[:-1].round(2).tolist()


def labelme():
    "Write LabelMe shapes of every kind"
    shapes = [dict(label=code, points=points_of(cell), group_id=k, shape_type='polygon', flags={})
              for k, (code, cell) in enumerate(zip(CODES, CELLS))]
    shapes.append(dict(label='nucleus', points=points_of(CELLS[0].buffer(-4)), group_id=0,
                       shape_type='polygon'))
    shapes.append(dict(label='L', points=[[4, 40], [16, 52]], shape_type='rectangle', group_id=None))
    shapes.append(dict(label='E', points=[[50, 50], [50, 56]], shape_type='circle', group_id=None))
    mask = base64.b64encode(packed(np.ones((8, 10), np.uint8) * 255, 'PNG')).decode()
    shapes.append(dict(label='N5', points=[[80, 40], [89, 47]], shape_type='mask', mask=mask))
    doc = dict(version='5.5.0', flags={}, shapes=shapes, imagePath='a.png', imageData=None,
               imageHeight=SIDE, imageWidth=SIDE)
    return as_json(doc)


def coco():
    "Write COCO annotations: polygons, run lengths packed and plain, a box"
    from cblc.core.rle import encode_runs
    entries = [dict(id=k + 1, image_id=1, category_id=k + 1, iscrowd=0, area=cell.area,
                    bbox=[cell.bounds[0], cell.bounds[1], 24, 24], segmentation=[sum(points_of(cell), [])])
               for k, cell in enumerate(CELLS)]
    entries[1]['segmentation'] = encode_runs(CELLS[1], (SIDE, SIDE))
    counts = [SIDE * 40, 20, 76, 20, SIDE * (SIDE - 40) - 116]
    entries[2]['segmentation'] = dict(size=[SIDE, SIDE], counts=counts)
    del entries[3]['segmentation']
    doc = dict(images=[dict(id=1, file_name='a.png', width=SIDE, height=SIDE)], annotations=entries,
               categories=[dict(id=k + 1, name=code) for k, code in enumerate(CODES)])
    return as_json(doc)


def geojson():
    "Write QuPath's features: cells with nucleus and measurements, an annotation with a hole"
    features = []
    for code, cell in zip(CODES, CELLS):
        geometry = dict(type='Polygon', coordinates=[points_of(cell) + points_of(cell)[:1]])
        nucleus = points_of(cell.buffer(-4))
        properties = dict(objectType='cell', classification=dict(name=code, color=[1, 2, 3]),
                          measurements={'Area px^2': 452.4, 'Mean': 1.5}, name='x', metadata={'a': 'b'})
        features.append(dict(type='Feature', id=f'id-{code}', geometry=geometry, properties=properties,
                             nucleusGeometry=dict(type='Polygon', coordinates=[nucleus + nucleus[:1]])))
    rings = [[[2, 80], [12, 80], [12, 92], [2, 92], [2, 80]], [[5, 84], [8, 84], [8, 88], [5, 88], [5, 84]]]
    geometry = dict(type='MultiPolygon', coordinates=[rings])
    properties = dict(objectType='annotation', classification=dict(names=['E', 'x']))
    features.append(dict(type='Feature', geometry=geometry, properties=properties))
    return as_json(dict(type='FeatureCollection', features=features))


def yolo():
    "Write label lines, one of them a box"
    lines = [' '.join([str(k), *(f'{v / SIDE:.5f}' for v in sum(points_of(cell), []))])
             for k, cell in enumerate(CELLS)]
    return '\n'.join([*lines, '2 0.5 0.5 0.1 0.1']).encode()


def label_image():
    "Paint the cells as numbers"
    labels = np.zeros((SIDE, SIDE), np.uint16)
    y, x = np.mgrid[:SIDE, :SIDE]
    for k, cell in enumerate(CELLS, 1):
        labels[np.hypot(x - cell.centroid.x, y - cell.centroid.y) < 12] = 300 * k
    return labels


def cohort_files():
    "Write a cohort of two patients"
    toml = dict(name='drawn', vocabulary='vocabulary.csv', annotations='labelme',
                centers={'Aachen': dict(role='main', um_per_px=.1), '4': dict(role='external')})
    patients = ('patient_id,center,diagnosis,expert_blast_percent,age\n'
                'p-1,Aachen,AML,"63,5",50\n007,4,none,,41\n')
    images = 'image_id,patient_id,path\na,p-1,images/a.png\nb,007,images/b.png\n'
    return {
        'cohort.toml': tomli_w.dumps(toml).encode(), 'patients.csv': patients.encode(),
        'images.csv': images.encode(), 'images/a.png': PNG,
        'images/b.png': packed(FIELD[::-1], 'PNG'), 'annotations/a.json': labelme(),
        'vocabulary.csv': VOCABULARY.table.to_csv(index=False).encode(),
    }


def crop_files():
    "Write a crop cohort"
    rows = ('path,label,patient_id,center,split', 'x/1.png,N,p1,A,train', 'x/2.png,L,p1,A,',
            'x/1.png,N4,p2,B,valid')
    small = packed(FIELD[10:60, 10:70], 'PNG')
    return {'cells.csv': '\n'.join(rows).encode(), 'x/1.png': PNG, 'x/2.png': small}


def bundle_files(folder):
    "Write a bundle without its network, by what the shipped classifier says of itself"
    meta = json.loads((shipped('classifier')/'bundle.json').read_bytes())['meta']
    meta['thresholds'] = {**meta.get('thresholds', {}), 'patient_cblc_ratio': .2, 'nc_ratio': .6}
    meta['settings'] = {**meta['settings'], 'majority_cblc': False, 'frozen_on': ['1', '2']}
    meta['vocabulary'] = VOCABULARY.to_rows()
    write_bundle(folder, meta, {'w': np.ones(3, np.float32)}, {'model.onnx': b'no network'})
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def slide():
    "Write a slide of two levels"
    big = np.tile(FIELD, (6, 6, 1))
    return packed_tiff(big, tile=(128, 128), photometric='rgb', compression='zlib',
                       description='Aperio Image Library v11\n576x576 |AppMag = 40|MPP = 0.25')


# ---- readers ------------------------------------------------------------------------------------------

def read_annotation(folder):
    "Go through what `cblc convert` does"
    cblc.sources.convert.convert(folder/'labels', 'geojson', folder/'out', folder/'images')


def read_whole_cohort(folder):
    "Go through what `cblc check` and the reader of a study do"
    faults = cblc.sources.check.check_cohort(folder)
    for fault in faults.itertuples():
        if not (fault.file and fault.problem and fault.remedy):
            raise RawFault(f'{fault.file}: {fault.row}: {fault.problem}; {fault.remedy}')
    read_cohort(folder)


def read_pictures(folder):
    "Go through what a diagnosis does to pictures"
    for path in (page for file in image_paths(folder) for page in image_pages(file)):
        width, height = image_size(path)
        if read_image(path).shape != (height, width, 3):
            raise AssertionError('size and picture differ')


def read_crops(folder):
    "Go through what `cblc fit` and `cblc predict` do to a table of pictures"
    sheet = read_sheet(folder/'cells.csv', ['path', 'label'])
    paths = [place_in(folder, name) for name in sheet.table.path.dropna()]
    *_, problems = read_singles(paths, 32, progress=False)
    if problems and len(problems) == len(paths):
        raise InputError('none of its pictures could be read', problems[0], folder/'cells.csv')


def open_bundle(folder):
    "Go through what is taken from a bundle before its network runs"
    bundle = read_bundle(folder, 'classifier')
    Frozen.from_meta(bundle.meta)
    crop = bundle.meta['input'].get('crop')
    if crop:
        CropSettings.from_dict(crop)
    if bundle.meta.get('vocabulary'):
        Vocabulary.from_rows(bundle.meta['vocabulary'], bundle.path/'bundle.json')
    bundle.weights()


def resume(folder):
    "Go through what a run does to the manifest of the time before"
    run = Run(folder, say=lambda line: None)
    run.step('draw', 'abc', lambda: (folder/'x.txt').write_text('x'), ['x.txt'])


def read_frozen(folder):
    "Read a damaged vocabulary"
    Vocabulary.from_csv(folder/'vocabulary.csv')


def sum_centers(folder):
    "Read the results of centers"
    read_centers(folder)


def open_slide(folder):
    "Read fields of a slide"
    survey = survey_slide(folder/'s.svs', SurveySettings(side=128))
    for path in slide_fields(survey).path[:2]:
        read_image(path)


def open_cells(folder):
    "Read a cells table"
    read_cells(folder/'cells.parquet')


class RawFault(Exception):
    "A fault that lacks its file or a remedy"


def picture_kinds():
    "List pictures of every encoding"
    gray = FIELD.mean(2)
    yield 'JPEG', {'a.jpg': packed(FIELD, 'JPEG', quality=90)}
    yield 'JPEG progressive', {'a.jpg': packed(FIELD, 'JPEG', quality=80, progressive=True)}
    yield 'PNG', {'a.png': PNG}
    yield 'PNG 16 bit', {'a.png': cv2.imencode('.png', FIELD.astype(np.uint16) * 257)[1].tobytes()}
    yield 'PNG palette', {'a.png': packed(np.asarray(Image.fromarray(FIELD).quantize(32)), 'PNG')}
    yield 'BMP', {'a.bmp': packed(FIELD, 'BMP')}
    yield 'WebP', {'a.webp': packed(FIELD, 'WEBP', quality=80)}
    yield 'JPEG 2000', {'a.jp2': packed(FIELD, 'JPEG2000')}
    yield 'TIFF', {'a.tif': packed(FIELD, 'TIFF')}
    tiled = packed_tiff(FIELD, tile=(32, 32), photometric='rgb', compression='zlib')
    yield 'TIFF zlib tiled', {'a.tif': tiled}
    yield 'TIFF 16 bit', {'a.tif': packed_tiff((gray * 257).astype(np.uint16))}
    yield 'TIFF float', {'a.tif': packed_tiff((gray / 255).astype(np.float32))}
    yield 'TIFF pages', {'a.tif': packed_tiff(np.stack([FIELD, FIELD[::-1]]), photometric='rgb')}
    channels = np.ascontiguousarray(FIELD.transpose(2, 0, 1))
    about = dict(axes='CYX', mode='composite')
    yield 'TIFF ImageJ', {'a.tif': packed_tiff(channels, imagej=True, metadata=about)}


def result_files():
    "Write what external validation left of a center"
    frozen = Frozen(threshold=.2, centers=('1', '2'), baselines=NaiveBaselines(False, .6))
    result = CenterResult('A', 'external', 2, 4, 30, 28, 26, flow=[dict(step='cells', n=28, note='')],
                          codes=dict(N=3, L=4), cells=dict(model=dict(f1=.8, n=26)), patients=dict(auc=.9),
                          frozen=frozen, model='x', warnings=['mind'])
    return {'A/center.json': as_json(result.to_json()), 'A/manifest.json': b'{"inputs": "x"}'}


def cells_table():
    "Write a cells table"
    with tempfile.TemporaryDirectory() as folder:
        table = pd.DataFrame(dict(cell_id=list('abcd'), image_id='a', polygon=pd.Series(CELLS, dtype=object),
                                  code=CODES, score=.5))
        write_cells(table, Path(folder)/'cells.parquet')
        return {'cells.parquet': (Path(folder)/'cells.parquet').read_bytes()}


def annotation_kinds():
    "List annotation files of every format"
    names = b'N\nN4\nL\nR2\n'
    yaml = b'path: .\nnames:\n  0: N\n  1: N4\n  2: L\n  3: R2\n'
    table = b'image_id,label,cell_id,code\na,300,x,N\na,600,y,L\n'
    labels = label_image()
    colors = np.dstack([labels % 251, labels // 7 % 256, labels % 13]).astype(np.uint8)
    yield 'LabelMe', {'labels/a.json': labelme()}, 4
    yield 'COCO', {'labels/a.json': coco()}, 4
    yield 'GeoJSON', {'labels/a.geojson': geojson()}, 4
    yield 'YOLO', {'labels/a.txt': yolo(), 'labels/classes.txt': names}, 2
    yield 'YOLO yaml', {'labels/a.txt': yolo(), 'labels/data.yaml': yaml}, 2
    yield 'mask PNG', {'labels/a.png': packed(labels, 'PNG'), 'labels/labels.csv': table}, 2
    yield 'mask TIFF', {'labels/a.tif': packed_tiff(labels.astype('>u2'), byteorder='>')}, 1
    yield 'mask colors', {'labels/a.png': packed(colors, 'PNG')}, 1
    yield 'mask float', {'labels/a.tif': packed_tiff(labels.astype(np.float32))}, 1


def all_kinds(scratch):
    "List every kind of input"
    kinds = []
    for name, files, share in annotation_kinds():
        kinds.append(Kind(name, files | {'images/a.png': PNG}, tuple(files), read_annotation, share))
    for name, files in picture_kinds():
        kinds.append(Kind(name, files, tuple(files), read_pictures, 2))
    cohort = cohort_files()
    for file in sorted(set(cohort) - {'images/b.png'}):
        kinds.append(Kind(f'cohort {file}', cohort, (file,), read_whole_cohort, .5))
    crops = crop_files()
    kinds.append(Kind('crop cohort', crops, tuple(crops), read_crops, 2))
    bundle = bundle_files(scratch/'bundle')
    kinds.append(Kind('bundle', bundle, ('bundle.json',) * 4 + tuple(sorted(bundle)), open_bundle, 3))
    entries = dict(draw=dict(inputs='abc', outputs={'x.txt': 'f' * 64}))
    manifest = {'x.txt': b'x', 'manifest.json': as_json(entries)}
    kinds.append(Kind('manifest', manifest, ('manifest.json',), resume, 1))
    results = result_files()
    kinds.append(Kind('center.json', results, tuple(results), sum_centers, 1))
    kinds.append(Kind('cells.parquet', cells_table(), ('cells.parquet',), open_cells, 1))
    kinds.append(Kind('slide', {'s.svs': slide()}, ('s.svs',), open_slide, .5))
    return kinds


# ---- damage -------------------------------------------------------------------------------------------

ODD = (None, True, False, 0, -1, 1, 2, 3.5, float('nan'), float('inf'), -float('inf'), 1e308, 10**400,
       10**9, 10**6, 2**31, 2**63, -2**40, '', ' ', 'x', 'é' * 3, '\u202e\u0000\ud7ff', '🩸', '1', '1e9',
       'NaN', 'null', '../../x', '/etc/x', 'C:\\x', '=1+1', 'a' * 5000, [], {}, [[]], [None], [[None]], [0],
       [[0, 0]], ['x'], [[1, 2], [3]], [[1, 2], [3, 4], [5, 'x']], [1, 2, 3, 4, 5], {'x': 1},
       {'': None}, [[[0, 0], [1, 1]]],
       [[float('nan')] * 2] * 3, [[1e300, 1e300], [0, 0], [1, 5]], [10**9, 10**9], [[]] * 3)


def odd_one(rng):
    "Draw one of the odd values, a fresh one: what becomes of it must not reach the next input"
    return copy.deepcopy(rng.choice(ODD))


def deep(rng):
    "Nest lists or tables deeper than a reader likes"
    value = odd_one(rng)
    for _ in range(rng.choice((5, 60, 400))):
        value = [value] if rng.random() < .5 else {'a': value}
    return value


def odd_value(rng, before=None):
    "Draw a value that is out of place, or one near that before"
    if rng.random() < .1:
        return deep(rng)
    if type(before) in (int, float) and rng.random() < .4:
        return rng.choice((-before, before * 1000, before + 1, str(before), [before], before // 3))
    if isinstance(before, str) and rng.random() < .3:
        return rng.choice((before + ' ', before.upper(), before[::-1], before * 50, before.encode().hex()))
    if isinstance(before, list) and before and rng.random() < .5:
        parts = before[:1], before[:-1], before[::-1], before[0]
        return rng.choice((*parts, before * 2, [before], {'0': before}))
    return odd_one(rng)


def places(value, path=()):
    "List the paths of all that is in a document"
    yield path
    if not isinstance(value, (dict, list)):
        return
    for key, inside in value.items() if isinstance(value, dict) else enumerate(value):
        yield from places(inside, (*path, key))


def copied(value):
    "Copy a document; not step by step, which ends at some depth"
    return json.loads(json.dumps(value))


def damage_document(doc, rng):
    "Change a few entries of a document"
    doc = copied(doc)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        paths = [path for path in places(doc) if path]
        if not paths or rng.random() < .02:
            return odd_value(rng, doc)
        short = [path for path in paths if len(path) <= rng.choice((1, 2, 3, 4, 9))] or paths
        *way, key = rng.choice(short)
        holder = doc
        for step in way:
            holder = holder[step]
        action = rng.random()
        if action < .2:
            del holder[key]
        elif action < .3 and isinstance(holder, list):
            holder.insert(key, copied(rng.choice(holder)))
        elif action < .35 and isinstance(holder, dict):
            holder[rng.choice(('x', '', 'Points', 'é', str(key).upper(), f'{key} '))] = holder.pop(key)
        else:
            holder[key] = odd_value(rng, holder[key])
    return doc


def damage_json(data, rng):
    "Damage a JSON file in its structure"
    text = json.dumps(damage_document(json.loads(data), rng), ensure_ascii=rng.random() < .5)
    action = rng.random()
    if action < .03:
        text = '[' * 100_000 + text
    elif action < .06:
        text = text.replace('1', '1e999', 1)
    elif action < .08:
        text = text.replace('{', '{"shapes": 1, "images": 2, "features": 3, "type": 4, ', 1)
    return text.encode(rng.choice(('utf-8',) * 12 + ('utf-8-sig', 'utf-16', 'latin-1')), 'replace')


def plain_toml(value, depth=0):
    "Take out of a document what TOML cannot hold"
    if depth == 80:
        return 'deep'
    if isinstance(value, dict):
        return {str(key): plain_toml(inside, depth + 1) for key, inside in value.items()}
    if isinstance(value, list):
        return [plain_toml(inside, depth + 1) for inside in value]
    if isinstance(value, str):
        return ''.join(letter for letter in value if letter.isprintable())
    is_small = type(value) is int and abs(value) < 2**60
    return value if type(value) in (float, bool) or is_small else str(value)


def damage_toml(data, rng):
    "Damage a TOML file in its structure"
    doc = plain_toml(damage_document(tomllib.loads(data.decode()), rng))
    return tomli_w.dumps(doc if isinstance(doc, dict) else {'x': doc}).encode()


CELL_ODD = ('', ' ', 'x', '"', '""', "'", ';', '\t', '\n', '\r', '\0', '1e999', 'nan', 'NaN', 'None', '-1',
            '0', '007', '7.0', '=cmd', '../x', '/etc/hostname', 'C:\\x', '~', '\\\\s\\x', '..', '.', 'é',
            'e\u0301', '\u200b', '🩸', 'a' * 300, 'a/' * 2000, 'x' * 200_000, '1,5', '50 %', '10**9',
            '9' * 400, 'AML', 'con', 'A\u202eB')


def damage_table(data, rng, mark=','):
    "Damage a table in its rows, cells and marks"
    rows = list(csv.reader(io.StringIO(data.decode()), delimiter=mark))
    for _ in range(rng.choice((1, 1, 2, 5))):
        action, row = rng.random(), rng.randrange(len(rows))
        column = rng.randrange(max(len(rows[row]), 1))
        if action < .5 and rows[row]:
            rows[row][column] = rng.choice(CELL_ODD)
        elif action < .6:
            rows[row] = rows[row][:column] + rows[row][column + 1:]
        elif action < .7:
            rows[row].insert(column, rng.choice(CELL_ODD))
        elif action < .8:
            rows.insert(row, list(rng.choice(rows)))
        elif action < .85 and len(rows) > 1:
            del rows[row]
        elif action < .9:
            rows = [cells[:column] + cells[column + 1:] for cells in rows]
        else:
            rows.insert(row, [rng.choice(CELL_ODD) for _ in range(rng.choice((0, 1, 3, 60)))])
    end = rng.choice(('\n', '\n', '\r\n', '\r', '\n\n'))
    mark = rng.choice((mark,) * 8 + (';', '\t', '|', ' '))
    lines = [mark.join(f'"{cell}"' if rng.random() < .05 else cell for cell in cells) for cells in rows]
    text = rng.choice(('',) * 10 + ('sep=;\n', '\n\n', '#')) + end.join(lines)
    return text.encode(rng.choice(('utf-8',) * 12 + ('utf-8-sig', 'utf-16', 'latin-1')), 'replace')


def damage_bytes(data, rng):
    "Damage a file byte by byte"
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        if not data:
            break
        start = rng.randrange(rng.choice((len(data), min(len(data), 64), min(len(data), 600))))
        end = start + rng.choice((1, 2, 4, 8, 100, len(data)))
        action = rng.randrange(9)
        if action == 0:
            data[start] ^= 1 << rng.randrange(8)
        elif action == 1:
            data[start:end] = rng.randbytes(len(data[start:end])) if end - start <= 100 else b'\xff'
        elif action == 2:
            del data[start:]
        elif action == 3:
            del data[start:end]
        elif action == 4:
            data[start:start] = data[start:end]
        elif action == 5:
            data[start:start] = rng.randbytes(rng.choice((1, 4, 1000)))
        elif action == 6:
            data[start:end] = bytes(len(data[start:end]))
        elif action == 7:
            number = rng.choice((0, 1, 255, 2**16, 30_000, 2**31, 2**32 - 1))
            data[start:start + 4] = struct.pack(f'{rng.choice("<>")}I', number)
        else:
            number = rng.choice((0, 1, 2, 3, 16, 4000, 30_000, 65_535))
            data[start:start + 2] = struct.pack(f'{rng.choice("<>")}H', number)
    return bytes(data)


STRUCTURES = {
    '.json': damage_json, '.geojson': damage_json, '.toml': damage_toml, '.csv': damage_table,
    '.txt': partial(damage_table, mark=' '), '.yaml': partial(damage_table, mark=' '),
}


def damaged(kind, number, seed):
    "Draw the damage of one input: the file's path, its new bytes"
    rng = random.Random(f'{seed}/{kind.name}/{number}')
    path = rng.choice(kind.damaged)
    change = STRUCTURES.get(Path(path).suffix)
    if change is None or rng.random() < .35:
        return path, damage_bytes(kind.files[path], rng)
    try:
        data = change(kind.files[path], rng)
    except RecursionError:      # nested too deep to be written
        data = b'[' * 100_000
    return path, damage_bytes(data, rng) if rng.random() < .05 else data


# ---- the watch ----------------------------------------------------------------------------------------

def memory(key):
    "Tell a figure of this process's memory, bytes"
    with open('/proc/self/status') as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(key))


def lay_out(folder, files):
    "Write the files of an input into an empty folder"
    shutil.rmtree(folder, ignore_errors=True)
    for path, data in files.items():
        (folder/path).parent.mkdir(parents=True, exist_ok=True)
        (folder/path).write_bytes(data)


def is_raw(error, kind):
    "Tell a refusal that does not name a file of the input, or gives no remedy"
    names = {Path(part).name for path in kind.files for part in (path, Path(path).parent) if Path(part).name}
    return not error.remedy.strip() or not any(name in str(error) for name in names)


def outcome(kind, folder):
    "Read one input: how it ended, and a line about it"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            kind.read(folder)
        return 'read', ''
    except RawFault as error:
        return 'raw', str(error)
    except InputError as error:
        return 'raw' if is_raw(error, kind) else 'refused', str(error)
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if f'{os.sep}cblc{os.sep}' in frame.filename]
        place = ' < '.join(f'{Path(frame.filename).stem}:{frame.lineno}' for frame in own[:-4:-1])
        return 'traceback', f'{type(error).__name__} at {place}: {str(error)[:150]}'


def work(kinds, seed, scratch, channel):
    "Read the inputs asked for, in a process of its own"
    cv2.setNumThreads(1)
    limit = memory('VmSize') + 4 * MOST_GROWTH
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    folder = Path(scratch)/f'{os.getpid()}'/'input'
    while (task := channel.recv()) is not None:
        kind, number = kinds[task[0]], task[1]
        path, data = damaged(kind, number, seed)
        lay_out(folder, kind.files | {path: data})
        Path('/proc/self/clear_refs').write_text('5')
        before = memory('VmRSS')
        kind_of_end, line = outcome(kind, folder)
        growth = memory('VmHWM') - before
        if growth > MOST_GROWTH and kind_of_end != 'traceback':
            kind_of_end, line = 'memory', f'{growth / 1e9:.1f} GB; {line}'
        channel.send((kind_of_end, f'{path}: {line}' if line else path))


def processor_seconds(process):
    "Tell the processor time of a process; infinite once it has ended"
    try:
        text = Path(f'/proc/{process.pid}/stat').read_text()
    except OSError:
        return float('inf')
    fields = text.rsplit(')', 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


class Worker:
    "A process that reads, watched from outside"

    def __init__(self, kinds, seed, scratch):
        self.about, self.task = (kinds, seed, scratch), None
        self.start()

    def start(self):
        "Start a process"
        self.channel, inside = multiprocessing.Pipe()
        self.process = multiprocessing.Process(target=work, args=(*self.about, inside), daemon=True)
        self.process.start()
        inside.close()

    def ask(self, task):
        "Give it an input to read"
        self.task, self.begun = task, time.time()
        self.used = processor_seconds(self.process)
        self.channel.send(task)

    def answer(self):
        "Tell how it ended, with a line about it; None while it reads"
        try:
            if self.channel.poll():
                return self.channel.recv()
        except (EOFError, ConnectionError):
            pass
        if not self.process.is_alive():
            self.process.join()
            code = self.process.exitcode
            self.start()
            return 'traceback', f'the process died ({code})'
        used, passed = processor_seconds(self.process) - self.used, time.time() - self.begun
        if used > SECONDS or passed > 12 * SECONDS:
            self.process.kill()
            self.process.join()
            self.start()
            return 'hang', f'over {SECONDS} s'
        return None

    def end(self):
        "Let the process go"
        self.channel.send(None)
        self.process.join()


def show_fault(kinds, result):
    "Print a fault as soon as it is found"
    (k, number), end, line, _ = result
    if end not in ('read', 'refused'):
        print(f'{end}: {kinds[k].name} {number}: {line[:300]}', file=sys.stderr, flush=True)


def go_through(kinds, tasks, args, scratch):
    "Share the tasks out to watched processes: task, end, line and seconds of each"
    workers = [Worker(kinds, args.seed, scratch) for _ in range(args.workers)]
    waiting, results = tasks[::-1], []
    while waiting or any(worker.task for worker in workers):
        for worker in workers:
            if worker.task is None and waiting:
                worker.ask(waiting.pop())
        wait([worker.channel for worker in workers], timeout=.5)
        for worker in workers:
            answer = worker.answer() if worker.task else None
            if answer:
                results.append((worker.task, *answer, time.time() - worker.begun))
                show_fault(kinds, results[-1])
                worker.task = None
    for worker in workers:
        worker.end()
    return results


def all_tasks(kinds, n):
    "Say which inputs are tried: about `n`, by the share of each kind"
    total = sum(kind.share for kind in kinds)
    return [(k, number) for k, kind in enumerate(kinds) for number in range(int(n * kind.share / total) + 1)]


def check_sound(kinds, scratch):
    "Refuse to go on where an undamaged input is not read"
    for kind in kinds:
        lay_out(scratch/'sound', kind.files)
        end, line = outcome(kind, scratch/'sound')
        if end != 'read':
            raise SystemExit(f'{kind.name} is not read even undamaged: {line}')


def shortened(line):
    "Take numbers and names out of a line, so that the same fault counts once"
    return re.sub(r'\d+', '#', line)[:90]


ENDS = ('read', 'refused', 'traceback', 'hang', 'memory', 'raw')


def table_of(kinds, results):
    "Print what became of each kind, and the faults found"
    print(f'{"kind":28}{"tried":>10}{"".join(f"{end:>10}" for end in ENDS)}{"slowest":>10}')
    for k, kind in enumerate(kinds):
        own = [result for result in results if result[0][0] == k]
        counts = Counter(result[1] for result in own)
        figures = ''.join(f'{counts[end]:10}' for end in ENDS)
        print(f'{kind.name:28}{len(own):10}{figures}{max(result[3] for result in own):8.1f} s')
    groups = {}
    for (k, number), end, line, _ in results:
        if end not in ('read', 'refused'):
            groups.setdefault((end, kinds[k].name, shortened(line)), []).append((number, line))
    for (end, name, _), cases in sorted(groups.items()):
        print(f'{end} {len(cases)} x {name} {cases[0][0]}: {cases[0][1][:300]}')


def main():
    "Damage, read, count"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--quick', action='store_true', help='300 inputs')
    parser.add_argument('--inputs', type=int, default=20_000, help='at least so many')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--only', default='', help='kinds whose name holds this')
    parser.add_argument('--number', type=int, default=None, help='read this input of --only alone, unwatched')
    parser.add_argument('--workers', type=int, default=2)
    args = parser.parse_args()
    begun = time.time()
    with tempfile.TemporaryDirectory() as scratch:
        kinds = [kind for kind in all_kinds(Path(scratch)) if args.only.lower() in kind.name.lower()]
        if args.number is not None:
            path, data = damaged(kinds[0], args.number, args.seed)
            lay_out(Path(scratch)/'input', kinds[0].files | {path: data})
            print(path, data[:1500])
            kinds[0].read(Path(scratch)/'input')
            return
        check_sound(kinds, Path(scratch))
        tasks = all_tasks(kinds, 300 if args.quick else args.inputs)
        random.Random(args.seed).shuffle(tasks)
        results = go_through(kinds, tasks, args, scratch)
    table_of(kinds, results)
    ends = Counter(end for _, end, _, _ in results)
    print(f'seed {args.seed}; {len(kinds)} kinds; {time.time() - begun:.0f} s on {args.workers} processes')
    print(json.dumps(dict(tried=len(results), tracebacks=ends['traceback'], hangs=ends['hang'],
                          memory_over=ends['memory'], raw_errors=ends['raw'])))


if __name__ == '__main__':
    main()
