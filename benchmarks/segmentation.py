"""The shipped segmenter on real images it never saw.

    python benchmarks/segmentation.py [--model BUNDLE] [--quick]

- bcisc_ap50: mask AP at IoU 0.50 over BCISC blood fields of slides 3, 6 and 9, which no training has seen;
- segpc_recall: share of plasma cells found at IoU >= 0.5, over mask components that are one cell (solidity >= 0.90),
  SegPC marrow fields, never trained on (each size counted beside it);
- segwbc_iou: mean over segmentation_WBC crops of the IoU of the best contour with the expert's cell (0 where nothing is found), never trained on.

Intervals are 95 % bootstrap intervals over images. Peer in the same run: an Otsu threshold on the nuclear stain with a
watershed on the distance map, the usual way without a network (scikit-image), on the same images.
"""
import argparse, json, time
import numpy as np, pandas as pd, shapely
from cblc.core.images import read_image
from cblc.core.engine import cores
from cblc.matching import average_precision
from cblc.sources.public import read_bcisc, read_segpc, read_segmentation_wbc, components
from cblc.segmentation import Segmenter, segment_images

def threshold_cells(images):
    "Peer without a network: Otsu on optical density of the green channel, watershed split, contours of what is left."
    from scipy import ndimage as ndi
    from skimage import filters, measure, morphology, segmentation
    rows = []
    for r in images.itertuples():
        im = read_image(r.path); f = max(1, max(im.shape[:2])//640)
        od = filters.gaussian(-np.log(np.clip(im[::f, ::f, 1].astype(float), 1, 255)/255), 1.5)
        mask = morphology.remove_small_objects(od > filters.threshold_otsu(od), max_size=150)
        dist = ndi.distance_transform_edt(mask)
        peaks = measure.label(morphology.h_maxima(dist, 3))
        lab = segmentation.watershed(-dist, peaks, mask=mask)
        for p in measure.regionprops(lab):
            if p.area < 150: continue
            g = components(np.pad(p.image, 1), level=0, min_area=1)
            if g: rows.append(dict(image_id=r.image_id, score=float(od[lab == p.label].mean()),
                                   polygon=shapely.affinity.affine_transform(g[0], [f, 0, 0, f, f*(p.bbox[1]-1), f*(p.bbox[0]-1)])))
    return pd.DataFrame(rows, columns=['image_id', 'score', 'polygon'])

def by_image(images, cells): return {i: cells[cells.image_id == i] for i in images.image_id}

def best_iou(expert, found):
    "IoU of the best of `found` with each expert polygon, 0 where none touches it."
    if not len(found): return np.zeros(len(expert))
    e, f = np.asarray(expert, object)[:, None], np.asarray(found, object)[None]
    inter = shapely.area(shapely.intersection(e, f))
    return (inter/(shapely.area(e) + shapely.area(f) - inter)).max(1)

def bootstrap(values, statistic, n=1000, seed=0):
    "95 % interval of a statistic over images drawn with replacement."
    rng = np.random.default_rng(seed); k = len(values)
    draws = [statistic([values[i] for i in rng.integers(0, k, k)]) for _ in range(n)]
    return np.nanpercentile(draws, [2.5, 97.5])

def ap50(images, truth, found, n):
    t, f = by_image(images, truth), by_image(images, found); ids = list(images.image_id)
    def ap(some):
        T = pd.concat([t[i].assign(image_id=str(k)) for k, i in enumerate(some)])
        F = pd.concat([f[i].assign(image_id=str(k)) for k, i in enumerate(some)])
        return average_precision(T, F)['ap50']
    return ap(ids), bootstrap(ids, ap, n), len(truth)

def recall(images, truth, found, n):
    f = by_image(images, found)
    hits = [(best_iou(g.polygon[g.one_cell.astype(bool)], f[i].polygon) >= .5) for i, g in truth.groupby('image_id') if g.one_cell.any()]
    rate = lambda h: np.concatenate(h).mean()
    return rate(hits), bootstrap(hits, rate, n), sum(map(len, hits))

def wbc_iou(images, truth, found, n):
    f = by_image(images, found)
    ious = [best_iou(g.polygon, f[i].polygon).mean() for i, g in truth.groupby('image_id')]
    return np.mean(ious), bootstrap(ious, np.mean, n), len(ious)

if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--model'); ap.add_argument('--quick', action='store_true', help='six images a set')
    a = ap.parse_args(); seg = Segmenter.load(a.model); n = 50 if a.quick else 1000
    bc, bt = read_bcisc(); bc = bc[bc.held_out]
    sets = dict(bcisc_ap50=((bc, bt[bt.image_id.isin(bc.image_id)]), ap50), segpc_recall=(read_segpc(), recall),
                segwbc_iou=(read_segmentation_wbc(), wbc_iou))
    print(f'device: CPU, {cores()} cores, {seg.engine.backend}; model {a.model or "shipped"}\n{"figure":32} {"value":>7} {"95 % interval":>17} {"cells":>6} {"images":>7} {"s/image":>8} {"threshold peer":>15}')
    last = {}
    for name, ((images, truth), figure) in sets.items():
        if a.quick: images = images.iloc[::max(1, len(images)//6)]; truth = truth[truth.image_id.isin(images.image_id)]
        t = time.time(); found, problems = segment_images(images, seg, progress=False); t = (time.time() - t)/len(images)
        for p in problems: print('problem:', p)
        parts = [(name, images)] + [(f'  {c}', images[k == c])
                                    for k in [images.center if name != 'segpc_recall'
                                              else images.image_id.str.split('_').str[0]] for c in sorted(k.unique()) if k.nunique() > 1]
        for label, part in parts:
            v, (lo, hi), k = figure(part, truth[truth.image_id.isin(part.image_id)], found, n)
            peer = figure(part, truth[truth.image_id.isin(part.image_id)], threshold_cells(part), 1)[0] if label == name else np.nan
            print(f'{label:32} {v:7.3f} {lo:8.3f}-{hi:8.3f} {k:6} {len(part):7} {t:8.2f} {peer:15.3f}', flush=True)
            if label == name: last[name] = round(float(v), 4)
    print(json.dumps(last))
