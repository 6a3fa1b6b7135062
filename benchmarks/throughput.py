"""From fields to classified cells: cblc against a plain loop, and against its two networks alone.

    python benchmarks/throughput.py [--fields 16] [--rounds 5] [--views N] [--quick]

The same weights in all three, on the cores there are:

- plain: a loop over files of `ultralytics` predict (contours by its masks) and the classifier in eager
  PyTorch on the boxes' crops, one view each; it is given the right scale and looks at nothing else;
- cblc: `classify_images` and `quality_warnings`, with all they do: damaged files refused, the scale
  estimated, red cells and debris told apart, standard crops, morphology, light, focus and stain judged;
- limit: the two networks alone, in the engine that cblc uses, on the very tiles and crops, ready in memory.

cblc and the limit are measured twice, calculating in 32 bits (as it does unless asked otherwise) and in 16
(`precision='bf16'`, an option; names that end in `_bf16`), where the processor can.

They take turns; the figures are medians over rounds of the ratios within a round. Fields: the four marrow
fields of 2040 x 1536 px of SegPC (never trained on) and their mirror images, saved anew as JPEG; drawn ones
where the data are missing. Each is a file of its own, so that nothing is decoded less often than in use.

- speedup: plain's seconds over cblc's; fraction_of_limit: the limit's seconds over cblc's; `_processor`: the
  same of processor seconds, which other programs on the machine do not stretch;
- same_cells: share of cells that both find, at IoU 0.8 or more. What cblc takes for no cell of its own is
  left out on plain's side, too: finds of less than 20 px of the network (debris), and those of which more
  than 0.6 lies on a surer one (the same cell again); their number is printed, and `same_finds` leaves none
  out;
- of 16 bits: the share of the very crops that get the same category as in 32 (`same_category_bf16`), the
  largest and the mean difference of a probability (`largest_p_bf16`, `mean_p_bf16`), and the share of finds
  that are the same cells at IoU 0.8 as those of 32 bits (`same_finds_bf16`);
- stages: seconds of cblc's processor time by stage, from one more round.
"""
import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import shapely
import torch
from PIL import Image

from cblc.cells.morphology import crops_of_cohort
from cblc.cells.nucleus import has_nucleus
from cblc.cells.quality import quality_warnings
from cblc.classifier import Classifier
from cblc.core.engine import cores, in_threads
from cblc.core.images import keep_pictures, read_image
from cblc.hospital.centers import classify_images, own_crop_settings
from cblc.learn.export import load_net
from cblc.learn.segmenter import load_network
from cblc.matching import match
from cblc.segmentation import Segmenter, SegmentSettings, equivalent_diameter, segment_images, shared_scale
from cblc.sources.synthetic import CENTERS, MARROW, draw_field

SIDE = 2040, 1536  # px, of a field


def data_folder():
    "Find the folder of real images"
    default = Path(__file__).resolve().parents[2]/'shared/data'
    return Path(os.environ.get('CBLC_DATA', default))


def drawn_pictures(n):
    "Draw fields as large as the real ones"
    for k in range(n):
        center = CENTERS[f'center{k % 6 + 1}']
        field = draw_field(MARROW, center, size=SIDE[1]//2, n_cells=22, seed=k, um_per_px=.13)
        yield cv2.resize(field.image, SIDE, interpolation=cv2.INTER_CUBIC)


def real_pictures(paths, n):
    "Give fields and their mirror images"
    for k in range(n):
        pixels = np.asarray(Image.open(paths[k % len(paths)]).convert('RGB'))
        turn = k//len(paths) % 4
        pixels = pixels[::-1] if turn & 1 else pixels
        yield pixels[:, ::-1] if turn & 2 else pixels


def make_fields(folder, n):
    "Save the fields as files: an images table, and what they are"
    paths = sorted((data_folder()/'segpc_marrow/fullres/images').glob('*.jpg'))
    pictures = real_pictures(paths, n) if paths else drawn_pictures(n)
    rows = []
    for k, pixels in enumerate(pictures):
        path = folder/f'field{k:03}.jpg'
        Image.fromarray(np.ascontiguousarray(pixels)).save(path, quality=90)
        rows.append(dict(image_id=path.stem, path=path, patient_id='p', center=''))
    return pd.DataFrame(rows), 'real marrow' if paths else 'drawn'


class Plain:
    "The loop a person would write first"

    def __init__(self, classifier, scale, folder):
        self.yolo, self.scale = load_network(run=folder), scale
        self.net, self.size = load_net(classifier.bundle).eval(), classifier.size
        self.options = dict(conf=.25, iou=.5, device='cpu', verbose=False, save=False)

    def resized(self, image):
        "Bring a picture to the network's scale, and fill it up to a multiple of 32 px"
        size = [round(side*self.scale) for side in image.shape[1::-1]]
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        right, bottom = (-side % 32 for side in size)
        return cv2.copyMakeBorder(small, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=(114, 114, 114))

    def crops(self, image, boxes):
        "Cut a square around every box"
        crops = []
        for left, top, right, bottom in boxes:
            side = 1.25*max(right - left, bottom - top)/2
            x, y = (left + right)/2, (top + bottom)/2
            part = image[max(int(y - side), 0):int(y + side), max(int(x - side), 0):int(x + side)]
            crops.append(cv2.resize(part, (self.size, self.size), interpolation=cv2.INTER_AREA))
        return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float()

    def __call__(self, images):
        "Find and classify: contours of each image, and classes"
        contours, classes = [], []
        for path in images.path:
            image = cv2.imread(str(path))
            small = self.resized(image)
            result = self.yolo.predict(small, imgsz=small.shape[:2], **self.options)[0]
            contours.append([xy/self.scale for xy in result.masks.xy] if result.masks is not None else [])
            if len(result.boxes):
                crops = self.crops(image[..., ::-1], result.boxes.xyxy.numpy()/self.scale)
                with torch.inference_mode():
                    classes.append(self.net(crops).argmax(1))
        return contours, classes


class Cblc:
    "The same by cblc"

    def __init__(self, precision, views):
        self.segmenter = Segmenter.load(precision=precision)
        classifier = Classifier.load(precision=precision)
        self.classifier = replace(classifier, views=views or classifier.views)

    def __call__(self, images):
        "Find, judge and classify: the cells table, crops, doubts"
        with keep_pictures():
            cells, crops, _ = classify_images(images, self.segmenter, self.classifier, progress=False)
            return cells, crops, quality_warnings(images, cells)

    def stages(self, images):
        "Measure processor and wall seconds of each stage, one after the other"
        rows, names = [], ['read', 'segment', 'quality', 'crop and measure', 'classify']
        settings, cells, crops = own_crop_settings(self.classifier), None, None
        with keep_pictures():
            for name in names:
                start = time.process_time(), time.perf_counter()
                if name == 'read':
                    list(in_threads(read_image, images.path, cores()))
                elif name == 'segment':
                    cells, _ = segment_images(images, self.segmenter, progress=False, is_cell=has_nucleus)
                elif name == 'quality':
                    quality_warnings(images, cells)
                elif name == 'classify':
                    self.classifier.predict(crops, progress=False)
                else:
                    crops, _ = crops_of_cohort(images, cells, settings, progress=False)
                rows.append((name, time.process_time() - start[0], time.perf_counter() - start[1]))
        return pd.DataFrame(rows, columns=['stage', 'processor s', 'wall s'])


class Recorder:
    "An engine that keeps what it is given"

    def __init__(self, engine):
        self.engine, self.streams, self.threads, self.batches = engine, engine.streams, engine.threads, []

    def __call__(self, batch):
        self.batches.append(np.array(batch, np.float32))
        return self.engine(batch)


def record_inputs(ours, images):
    "Record the tiles and crops that the two networks get, the first look for the scale left out"
    segmenter, classifier = ours.segmenter, ours.classifier
    recorders = Recorder(segmenter.engine), Recorder(classifier.engine)
    segmenter.engine = recorders[0]
    object.__setattr__(classifier, 'engine', recorders[1])
    try:
        _, crops, _ = ours(images)
    finally:
        segmenter.engine = recorders[0].engine
        object.__setattr__(classifier, 'engine', recorders[1].engine)
    tiles = recorders[0].batches[-len(images):]
    return [(segmenter.engine, tiles), (classifier.engine, recorders[1].batches)]


def run_networks(inputs):
    "Run the two networks alone"
    for engine, batches in inputs:
        for _ in in_threads(engine, batches, engine.streams):
            pass


def as_polygons(contours):
    "Turn the contours of one picture into polygons"
    polygons = [shapely.make_valid(shapely.Polygon(contour)) for contour in contours if len(contour) > 3]
    return [polygon for polygon in polygons if polygon.area > 0]


def without_doubles(polygons, scale):
    "Leave out debris, and finds that lie mostly on a surer one, as cblc does; the surest first"
    settings, kept = SegmentSettings(), []
    for polygon in polygons:
        is_debris = equivalent_diameter([polygon])[0]*scale < settings.min_diameter
        shares = [polygon.intersection(other).area/min(polygon.area, other.area) for other in kept]
        if not is_debris and max(shares, default=0) <= settings.share:
            kept.append(polygon)
    return kept


def by_picture(cells, images):
    "Part the contours of a cells table by picture"
    return [list(cells.polygon[cells.image_id == image_id]) for image_id in images.image_id]


def same_cells(some, others):
    "Give the share of cells that both found, at IoU 0.8; of each a list of polygons a picture"
    n_matched = sum(len(match(*pair, iou=.8).pairs) for pair in zip(some, others) if all(pair))
    return 2*n_matched/max(sum(map(len, [*some, *others])), 1)


def compare_precisions(ours, images):
    "Say what 16 bits change: of the names of the very crops, and of the finds"
    (cells, crops, _), (others, _, _) = (one(images) for one in ours.values())
    tables = [one.classifier.predict(crops, progress=False) for one in ours.values()]
    p, q = (table.filter(regex='^p_').to_numpy() for table in tables)
    is_same, change = tables[0].category == tables[1].category, np.abs(p - q)
    finds = same_cells(by_picture(cells, images), by_picture(others, images))
    values = dict(same_category=is_same.mean(), largest_p=change.max(), mean_p=change.mean(),
                  same_finds=finds)
    return {f'{name}_bf16': round(float(value), 4) for name, value in values.items()}


def timed(peer, argument):
    "Time one call: seconds, and the processor's"
    start, processor = time.perf_counter(), time.process_time()
    peer(argument)
    return time.perf_counter() - start, time.process_time() - processor


def measure(peers, arguments):
    "Let all take turns: name -> (seconds, the processor's) of every round"
    seconds = {name: [] for name in peers}
    for number in range(arguments.rounds):
        for name in list(peers)[::1 if number % 2 else -1]:
            seconds[name].append(timed(*peers[name]))
        latest = ', '.join(f'{name} {values[-1][0]:.2f} s' for name, values in seconds.items())
        print(f'round {number + 1}: {latest}', flush=True)
    return seconds


def ratio(seconds, above, below, kind=0):
    "Give the median over rounds of the ratio of two peers' seconds; kind 1: of the processor's"
    return round(statistics.median(a[kind]/b[kind] for a, b in zip(seconds[above], seconds[below])), 2)


def parse_arguments():
    "Read the command line"
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument('--fields', type=int, default=16)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--views', type=int, help='of a cell; the bundle\'s own if not given')
    parser.add_argument('--quick', action='store_true')
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.fields, arguments.rounds = 3, 1
    return arguments


def ratios(seconds):
    "Give the ratios of both precisions, of wall clock and of processor time"
    figures = {}
    for precision in ('', '_bf16'):
        for kind, name in enumerate(('', '_processor')):
            ours = f'cblc{precision}'
            figures[f'speedup{name}{precision}'] = ratio(seconds, 'plain', ours, kind)
            figures[f'fraction_of_limit{name}{precision}'] = ratio(seconds, f'limit{precision}', ours, kind)
    return figures


def compare(folder, arguments):
    "Measure everything on fields in a folder: what is printed last"
    images, kind = make_fields(folder, arguments.fields)
    ours = {precision: Cblc(precision, arguments.views) for precision in ('f32', 'bf16')}
    segmenter, classifier = ours['f32'].segmenter, ours['f32'].classifier
    inputs = {precision: record_inputs(one, images) for precision, one in ours.items()}
    scale = shared_scale([read_image(path) for path in images.path[:8]], segmenter, is_cell=has_nucleus)
    plain = Plain(classifier, scale, folder)
    torch.set_num_threads(cores())
    theirs = [as_polygons(contours) for contours in plain(images)[0]]
    cells, _, _ = ours['f32'](images)
    mine, change = by_picture(cells, images), compare_precisions(ours, images)
    single = [without_doubles(polygons, scale) for polygons in theirs]
    share, n_plain = same_cells(single, mine), sum(map(len, theirs))
    n_left_out = n_plain - sum(map(len, single))
    print(f'{len(images)} fields, {kind}, {cores()} cores, scale {scale:.3f}, {classifier.views} views')
    print(f'cells: plain {n_plain}, of them {n_left_out} debris or doubles; cblc {len(cells)}; '
          f'the same at IoU 0.8: {share:.1%}')
    print('16 bits against 32: ' + ', '.join(f'{name} {value}' for name, value in change.items()))
    peers = dict(plain=(plain, images), cblc=(ours['f32'], images), limit=(run_networks, inputs['f32']),
                 cblc_bf16=(ours['bf16'], images), limit_bf16=(run_networks, inputs['bf16']))
    seconds = measure(peers, arguments)
    print(ours['f32'].stages(images).round(2).to_string(index=False))
    wall = {name: [value for value, _ in values] for name, values in seconds.items()}
    median = {f'{name}_s': round(statistics.median(values), 2) for name, values in wall.items()}
    return ratios(seconds) | change | dict(
        same_cells=round(share, 3), same_finds=round(same_cells(theirs, mine), 3), **median,
        fields=len(images), cells=len(cells), images=kind,
        views=classifier.views, cores=cores(), rounds=arguments.rounds)


def main():
    "Measure, and print the ratios"
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        figures = compare(Path(folder), arguments)
    print(json.dumps(figures))


if __name__ == '__main__':
    main()
