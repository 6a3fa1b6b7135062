"""The shipped segmenter on real images it never saw.

    python benchmarks/segmentation.py [--model BUNDLE] [--quick]

- bcisc_ap50: mask AP at IoU 0.50 over BCISC blood fields of slides 3, 6 and 9, which no training has seen;
- segpc_recall: share of plasma cells found at IoU >= 0.5, over mask components that are one cell (solidity >=
  0.90), SegPC marrow fields, never trained on (each size counted beside it);
- segwbc_iou: mean over segmentation_WBC crops of the IoU of the best contour with the expert's cell (0 where
  nothing is found), never trained on.

Intervals are 95 % bootstrap intervals over images. Peer in the same run: an Otsu threshold on the nuclear
stain and a watershed on the distance map, the usual way without a network (scikit-image), on the same images.
"""
import argparse
import json
import time

import numpy as np
import pandas as pd
import shapely
from scipy import ndimage
from shapely.affinity import affine_transform
from skimage import filters, measure, morphology, segmentation

from cblc.core.engine import cores
from cblc.core.images import read_image
from cblc.matching import average_precision
from cblc.segmentation import Segmenter, segment_images
from cblc.sources.public import components, read_bcisc, read_segmentation_wbc, read_segpc

LEAST_AREA = 150  # px of the shrunken picture, of the peer's cells


def threshold_field(image_id, image):
    """Find the cells of one image without a network: rows of image_id, score, polygon"""
    step, rows = max(1, max(image.shape[:2])//640), []
    green = image[::step, ::step, 1].astype(float)
    density = filters.gaussian(-np.log(np.clip(green, 1, 255)/255), 1.5)
    mask = morphology.remove_small_objects(density > filters.threshold_otsu(density), max_size=LEAST_AREA)
    distance = ndimage.distance_transform_edt(mask)
    peaks = measure.label(morphology.h_maxima(distance, 3))
    labels = segmentation.watershed(-distance, peaks, mask=mask)
    for region in measure.regionprops(labels):
        outlines = components(np.pad(region.image, 1), level=0, min_area=1)
        if region.area < LEAST_AREA or not outlines:
            continue
        top, left = region.bbox[:2]
        polygon = affine_transform(outlines[0], [step, 0, 0, step, step*(left - 1), step*(top - 1)])
        score = float(density[labels == region.label].mean())
        rows.append(dict(image_id=image_id, score=score, polygon=polygon))
    return rows


def threshold_cells(images):
    """Find cells by Otsu on optical density of the green channel and a watershed: the peer"""
    rows = []
    for row in images.itertuples():
        rows += threshold_field(row.image_id, read_image(row.path))
    return pd.DataFrame(rows, columns=['image_id', 'score', 'polygon'])


def by_image(images, cells):
    """Part a cells table by image"""
    return {image_id: cells[cells.image_id == image_id] for image_id in images.image_id}


def best_iou(expert, found):
    """Give the IoU of the best of `found` with each expert polygon, 0 where none touches it"""
    if not len(found):
        return np.zeros(len(expert))
    rows, columns = np.asarray(expert, object)[:, None], np.asarray(found, object)[None]
    shared = shapely.area(shapely.intersection(rows, columns))
    return (shared/(shapely.area(rows) + shapely.area(columns) - shared)).max(1)


def bootstrap(values, statistic, n, seed=0):
    """Give the 95 % interval of a statistic over images drawn with replacement"""
    rng, n_values = np.random.default_rng(seed), len(values)
    draws = []
    for _ in range(n):
        draws.append(statistic([values[i] for i in rng.integers(0, n_values, n_values)]))
    return np.nanpercentile(draws, [2.5, 97.5])


def ap50(images, truth, found, n):
    """Measure average precision at IoU 0.5: value, interval, number of cells"""
    true_of, found_of = by_image(images, truth), by_image(images, found)

    def pooled(tables, ids):
        return pd.concat([tables[image_id].assign(image_id=str(k)) for k, image_id in enumerate(ids)])

    def figure(ids):
        return average_precision(pooled(true_of, ids), pooled(found_of, ids))['ap50']
    ids = list(images.image_id)
    return figure(ids), bootstrap(ids, figure, n), len(truth)


def recall(images, truth, found, n):
    """Measure the share of single cells found at IoU 0.5: value, interval, number of cells"""
    found_of, hits = by_image(images, found), []
    for image_id, group in truth.groupby('image_id'):
        single = group.polygon[group.one_cell.astype(bool)]
        if len(single):
            hits.append(best_iou(single, found_of[image_id].polygon) >= .5)

    def figure(some):
        return np.concatenate(some).mean()
    return figure(hits), bootstrap(hits, figure, n), sum(map(len, hits))


def wbc_iou(images, truth, found, n):
    """Measure the mean IoU of the best contour: value, interval, number of images"""
    found_of, ious = by_image(images, found), []
    for image_id, group in truth.groupby('image_id'):
        ious.append(best_iou(group.polygon, found_of[image_id].polygon).mean())
    return np.mean(ious), bootstrap(ious, np.mean, n), len(ious)


def parts_of(name, images):
    """Part a set's images: all of them, then each source or size"""
    kinds = images.image_id.str.split('_').str[0] if name == 'segpc_recall' else images.center
    parts = [(name, images)]
    if kinds.nunique() > 1:
        parts += [(f'  {kind}', images[kinds == kind]) for kind in sorted(kinds.unique())]
    return parts


def judge_set(name, images, truth, figure, segmenter, n):
    """Print the rows of one set; give its figure"""
    start = time.time()
    found, problems = segment_images(images, segmenter, progress=False)
    seconds = (time.time() - start)/len(images)
    for problem in problems:
        print('problem:', problem)
    for label, part in parts_of(name, images):
        own = truth[truth.image_id.isin(part.image_id)]
        value, (low, high), count = figure(part, own, found, n)
        peer = np.nan
        if label == name:
            peer, overall = figure(part, own, threshold_cells(part), 1)[0], value
        interval = f'{low:8.3f}-{high:8.3f}'
        print(f'{label:32} {value:7.3f} {interval} {count:6} {len(part):7} {seconds:8.2f} {peer:15.3f}',
              flush=True)
    return round(float(overall), 4)


def main():
    """Judge the segmenter on the three sets"""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument('--model')
    parser.add_argument('--quick', action='store_true', help='six images a set')
    args = parser.parse_args()
    segmenter, n = Segmenter.load(args.model), 50 if args.quick else 1000
    bcisc, bcisc_cells = read_bcisc()
    bcisc = bcisc[bcisc.held_out]
    sets = dict(bcisc_ap50=((bcisc, bcisc_cells[bcisc_cells.image_id.isin(bcisc.image_id)]), ap50),
                segpc_recall=(read_segpc(), recall), segwbc_iou=(read_segmentation_wbc(), wbc_iou))
    print(f'device: CPU, {cores()} cores, {segmenter.engine.backend}; model {args.model or "shipped"}')
    print(f'{"figure":32} {"value":>7} {"95 % interval":>17} {"cells":>6} {"images":>7} {"s/image":>8} '
          f'{"threshold peer":>15}')
    figures = {}
    for name, ((images, truth), figure) in sets.items():
        if args.quick:
            images = images.iloc[::max(1, len(images)//6)]
            truth = truth[truth.image_id.isin(images.image_id)]
        figures[name] = judge_set(name, images, truth, figure, segmenter, n)
    print(json.dumps(figures))


if __name__ == '__main__':
    main()
