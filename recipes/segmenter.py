"""Trains the segmenter that ships with cblc, on synthetic marrow and permissive public images only.

    python recipes/segmenter.py --out cblc/assets/segmenter [--quick]

Tiles of 320 px are put together from four sources, then a YOLO11n-seg is trained from random weights:

- synthetic marrow fields in random styles (stain, optics, camera far beyond the six centers of the synthetic cohort);
- BCISC blood fields (Apache-2.0), slides 3, 6 and 9 left out for evaluation;
- PBC single cells (CC BY 4.0) and TXL-PBC fields (MIT), outlined from their boxes by GrabCut;
- collages: real cells cut out along their outline, recoloured and set close together, on a real or synthetic ground.

SegPC (non-commercial) and segmentation_WBC (GPL) are never read here.
"""
import argparse, os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
import cv2, numpy as np, shapely
from shapely.affinity import affine_transform
from cblc.core.contours import polygon_to_mask
from cblc.core.images import read_image
from cblc.sources.public import read_bcisc, read_pbc, read_txl, box_polygon
from cblc.sources.laboratories import random_style
from cblc.sources.synthetic import CODES, MARROW, draw_field
from cblc.learn.segmenter import YoloSettings, cut_window, write_yolo_tiles, train_segmenter, export_segmenter
from cblc.segmentation import equivalent_diameter

TILE = 320                # px, side of a training tile
DIAMETER = (36, 150)      # px, range of the typical cell diameter in a tile

def diameter_px(polygons): return np.median(equivalent_diameter(polygons)) if len(polygons) else 60.

def random_mix(rng):
    "A marrow from anywhere between health and disease: all codes, plasma cells or blasts in front."
    mix = {c: .3 for c in CODES if c != 'F'} | MARROW
    kind = rng.choice(['marrow', 'all', 'plasma', 'blasts'], p=[.4, .2, .25, .15])
    if kind == 'all': mix = {c: 1. for c in mix}
    if kind == 'plasma': mix |= dict(P=40, P1=10, P2=10, P3=10)
    if kind == 'blasts': mix |= {str(c): 30. for c in rng.choice(['N', 'N1', 'M', 'M1', 'R', 'R1', 'L'], 2)}
    return mix

def stain(image, rng, strength=1.):
    "Mix and scale the optical densities at random: another laboratory's stain, light and camera."
    od = -np.log(np.clip(image.astype(np.float32), 1, 255)/255)
    mix = np.eye(3) + strength*rng.normal(0, .12, (3, 3)); gain = np.exp(strength*rng.normal(0, .2))
    out = 255*np.exp(-np.clip(gain*od@mix.T + strength*rng.normal(0, .04, 3), 0, None))
    return np.clip(out, 0, 255).astype(np.uint8)

def camera(image, rng):
    "Add what optics and camera add: defocus, noise, gamma, JPEG."
    im = image
    if rng.random() < .35: im = cv2.GaussianBlur(im, (0, 0), rng.uniform(.4, 1.8))
    if rng.random() < .3: im = (255*(im/255.)**rng.uniform(.7, 1.4)).astype(np.uint8)
    if rng.random() < .4: im = np.clip(im + rng.normal(0, rng.uniform(1, 8), im.shape), 0, 255).astype(np.uint8)
    if rng.random() < .4: im = cv2.imdecode(cv2.imencode('.jpg', im, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(35, 95))])[1], 1)
    return im

def synthetic_tile(seed):
    rng = np.random.default_rng([1, seed])
    style = random_style(rng)
    um = 14/np.exp(rng.uniform(*np.log(DIAMETER)))      # a 14 um cell spans DIAMETER px
    field = draw_field(random_mix(rng), style, size=TILE, difficulty=rng.uniform(0, .6), seed=int(rng.integers(2**31)), um_per_px=um)
    keep = field.cells[field.cells.code != 'V']
    im = stain(field.image, rng, .6) if rng.random() < .4 else field.image
    return camera(im, rng), list(keep.polygon)

def real_tile(seed, fields):
    "One window of a real field whose leukocytes are all outlined."
    rng = np.random.default_rng([2, seed]); path, polygons = fields[seed % len(fields)]
    image = read_image(path); h, w = image.shape[:2]; d = diameter_px(polygons)
    scale = np.exp(rng.uniform(*np.log(DIAMETER)))/d
    g = polygons[rng.integers(len(polygons))]
    spread = .35*TILE/scale if rng.random() < .85 else .8*TILE/scale
    center = np.clip(np.array([g.centroid.x, g.centroid.y]) + rng.uniform(-spread, spread, 2), 0, (w, h))
    im, polys = cut_window(image, polygons, scale, center, TILE)
    return camera(stain(im, rng) if rng.random() < .7 else im, rng), polys

def cut_out(path, polygon):
    "A real cell with its soft mask: RGB patch, alpha, outline, all in patch px."
    image = read_image(path); x0, y0, x1, y1 = polygon.bounds; pad = 4
    a, b = max(0, int(x0)-pad), max(0, int(y0)-pad); c, d = min(image.shape[1], int(x1)+pad+1), min(image.shape[0], int(y1)+pad+1)
    g = affine_transform(polygon, [1, 0, 0, 1, -a, -b])
    return image[b:d, a:c], g

def collage_tile(seed, cells, grounds):
    "Real cells, recoloured as one smear, set close together on a real or synthetic ground."
    rng = np.random.default_rng([3, seed]); d = np.exp(rng.uniform(*np.log(DIAMETER)))
    if rng.random() < .5:
        path, polygons = grounds[rng.integers(len(grounds))]; image = read_image(path); h, w = image.shape[:2]
        im, polys = cut_window(image, polygons, d/diameter_px(polygons), rng.uniform(0, 1, 2)*(w, h), TILE)
    else:
        f = draw_field(random_mix(rng), random_style(rng), size=TILE, n_cells=int(rng.integers(0, 4)),
                       seed=int(rng.integers(2**31)), um_per_px=14/d)
        im, polys = f.image, list(f.cells[f.cells.code != 'V'].polygon)
    tone = rng.normal(0, .1, (3, 3)) + np.eye(3)
    n = int(np.clip(rng.integers(2, 3 + (TILE/d)**2*.9), 2, 40)); im = im.astype(np.float32); hub = rng.uniform(.2, .8, 2)*TILE
    for _ in range(n):
        patch, g = cut_out(*cells[rng.integers(len(cells))])
        s = d/diameter_px([g])*np.exp(rng.normal(0, .2)); turn = rng.uniform(0, 360)
        m = cv2.getRotationMatrix2D((g.centroid.x, g.centroid.y), turn, s)
        at = hub + rng.normal(0, .35*TILE, 2) if rng.random() < .7 else rng.uniform(0, TILE, 2)
        m[:, 2] += at - (g.centroid.x, g.centroid.y)
        h = affine_transform(g, [*m[0, :2], *m[1, :2], *m[:, 2]])
        over = [h.intersection(q).area/min(h.area, q.area) for q in polys if h.intersects(q)]
        if over and max(over) > .12: continue
        mask = polygon_to_mask(g.buffer(.6), patch.shape[:2]).astype(np.float32)
        alpha = cv2.GaussianBlur(cv2.warpAffine(mask, m, (TILE, TILE), flags=cv2.INTER_LINEAR), (0, 0), .7)[..., None]
        od = -np.log(np.clip(patch.astype(np.float32), 1, 255)/255)@tone.T; new = 255*np.exp(-np.clip(od, 0, None))
        layer = cv2.warpAffine(new.astype(np.float32), m, (TILE, TILE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        im = alpha*layer + (1-alpha)*im; polys.append(h)
    im, frame = np.clip(im, 0, 255).astype(np.uint8), shapely.box(0, 0, TILE, TILE)
    polys = [q for p in polys for q in [p.intersection(frame)] if q.geom_type == 'Polygon' and q.area > .15*p.area and q.area > 60]
    return camera(stain(im, rng) if rng.random() < .7 else im, rng), polys

def outline(row):
    "GrabCut outlines of all boxes of one picture, or nothing where one of them is not to be trusted."
    path, boxes = row; image = read_image(path)
    up = 2 if max(image.shape[:2]) < 400 else 1
    polys = [box_polygon(image, b, up=up) for b in boxes]
    return (path, polys) if polys and all(p is not None for p in polys) else None

def outlined(images, boxes, pool, n=None, seed=0):
    rows = boxes.groupby('image_id')[['x0', 'y0', 'x1', 'y1']].apply(lambda b: b.to_numpy().tolist())
    paths = images.set_index('image_id').path.loc[rows.index]
    pick = np.random.default_rng(seed).permutation(len(rows))[:n]
    return [r for r in pool.map(outline, [(paths.iloc[i], rows.iloc[i]) for i in pick], chunksize=8) if r]

def build_tiles(out, counts, workers, quick=False):
    "Make all tiles, a share of them for validation, as a YOLO-seg folder."
    images, cells = read_bcisc(); images = images[~images.held_out]
    bcisc = [(r.path, list(cells[cells.image_id == r.image_id].polygon)) for r in images.itertuples()]
    with ProcessPoolExecutor(workers) as pool:
        pbc = outlined(*read_pbc(), pool, n=100 if quick else 2400)
        txl = outlined(*read_txl(), pool, n=60 if quick else None)
        print(f'outlined by GrabCut: {len(pbc)} PBC, {len(txl)} TXL-PBC pictures; BCISC fields for training: {len(bcisc)}', flush=True)
        singles = [(p, g) for p, gs in pbc + bcisc for g in gs]
        jobs = dict(synthetic=synthetic_tile, bcisc=partial(real_tile, fields=bcisc), pbc=partial(real_tile, fields=pbc),
                    txl=partial(real_tile, fields=txl), collage=partial(collage_tile, cells=singles, grounds=pbc + bcisc))
        tiles = {f'{k}_{i:05}': t for k, f in jobs.items() for i, t in enumerate(pool.map(f, range(counts[k]), chunksize=16))}
    return write_yolo_tiles(tiles, out, valid=.05)

if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--out', required=True); ap.add_argument('--work', default='segmenter_run')
    ap.add_argument('--quick', action='store_true')
    ap.add_argument('--epochs', type=int, default=9); ap.add_argument('--workers', type=int, default=os.cpu_count())
    ap.add_argument('--device', default='cpu')
    a = ap.parse_args()
    counts = dict(synthetic=3600, bcisc=500, pbc=900, txl=500, collage=1500)
    if a.quick: counts, a.epochs = {k: 24 for k in counts}, 1
    data = Path(a.work)/'tiles'
    if not (data/'data.yaml').exists(): build_tiles(data, counts, a.workers, a.quick)
    s = YoloSettings(imgsz=TILE, epochs=a.epochs, batch=32, device=a.device)
    model = train_segmenter(data/'data.yaml', Path(a.work)/'run', s)
    export_segmenter(model, a.out, s, trained_on=f'{counts["synthetic"]} synthetic marrow tiles and {sum(counts.values())-counts["synthetic"]} tiles of BCISC (Apache-2.0), PBC (CC BY 4.0) and TXL-PBC (MIT)',
                     command='python recipes/segmenter.py --out cblc/assets/segmenter')
