"""Trains the segmenter that ships with cblc, on synthetic marrow and permissive public images only.

    python recipes/segmenter.py --out cblc/assets/segmenter [--start BUNDLE] [--share 1.] [--quick]

Tiles of 320 px are put together from four sources, then a YOLO11n-seg is trained, from random weights or from
those of a bundle. A third of the pictures are given a hue of any direction, since in some laboratories red
cells are gray-blue or violet, and color alone must not make a nucleated cell:

- synthetic marrow fields in random styles (stain, optics, camera far beyond the synthetic cohort's);
- BCISC blood fields (Apache-2.0), slides 3, 6 and 9 left out for evaluation;
- PBC single cells (CC BY 4.0) and TXL-PBC fields (MIT), outlined from their boxes by GrabCut;
- collages: real cells cut out along their outline, recolored, set close together, on a real or drawn ground.

The weights that ship were made in two runs: nine epochs from random weights, before pictures were given hues,
and five from those (`--epochs 5 --share 0.3 --start cblc/assets/segmenter`), of which the network halfway
between start and end was kept. In recolored fields that leaves a sixth to a half of the finds that are too
many (benchmarks/other_stain.py: gray-blue 64 in place of 124 beside 52 white cells); cells are found as well.

SegPC (non-commercial) and segmentation_WBC (GPL) are never read here.
"""
import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import shapely
from shapely.affinity import affine_transform

from cblc.cells.stain import toward_hue
from cblc.core.bundle import read_bundle
from cblc.core.contours import polygon_to_mask
from cblc.core.images import read_image
from cblc.learn.network import copied_weights
from cblc.learn.segmenter import (
    YoloSettings, cut_window, export_segmenter, load_network, train_segmenter, write_yolo_tiles,
)
from cblc.learn.start import move_back
from cblc.segmentation import equivalent_diameter
from cblc.sources.laboratories import random_style
from cblc.sources.public import box_polygon, read_bcisc, read_pbc, read_txl
from cblc.sources.synthetic import CODES, MARROW, draw_field

START_SHARE = .5         # of a start's weights in the finished network
TILE = 320                # px, side of a training tile
DIAMETER = (36, 150)      # px, range of the typical cell diameter in a tile
CELL_UM = 14              # micrometers, the typical cell of a drawn field
COUNTS = dict(synthetic=3600, bcisc=500, pbc=900, txl=500, collage=1500)
OTHER_HUE = .35           # share of the pictures in a hue of any direction


def typical_diameter(polygons):
    """Give the median diameter of cells, px; 60 where there are none"""
    return np.median(equivalent_diameter(polygons)) if len(polygons) else 60.


def random_diameter(rng):
    """Draw the typical cell's diameter in a tile, px"""
    return np.exp(rng.uniform(*np.log(DIAMETER)))


def random_mix(rng):
    """Draw a marrow from anywhere between health and disease: all codes, plasma cells or blasts in front"""
    mix = {code: .3 for code in CODES if code != 'F'} | MARROW
    kind = rng.choice(['marrow', 'all', 'plasma', 'blasts'], p=[.4, .2, .25, .15])
    if kind == 'all':
        return {code: 1. for code in mix}
    if kind == 'plasma':
        return mix | dict(P=40, P1=10, P2=10, P3=10)
    if kind == 'blasts':
        return mix | {str(code): 30. for code in rng.choice(['N', 'N1', 'M', 'M1', 'R', 'R1', 'L'], 2)}
    return mix


def stain(image, rng, strength=1.):
    """Mix and scale the optical densities at random: another laboratory's stain, light and camera"""
    density = -np.log(np.clip(image.astype(np.float32), 1, 255)/255)
    mix = np.eye(3) + strength*rng.normal(0, .12, (3, 3))
    gain = np.exp(strength*rng.normal(0, .2))
    offset = strength*rng.normal(0, .04, 3)
    return np.clip(255*np.exp(-np.clip(gain*density@mix.T + offset, 0, None)), 0, 255).astype(np.uint8)


def camera(image, rng):
    """Add what optics and camera add: defocus, gamma, noise, JPEG"""
    if rng.random() < .35:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(.4, 1.8))
    if rng.random() < .3:
        image = (255*(image/255.)**rng.uniform(.7, 1.4)).astype(np.uint8)
    if rng.random() < .4:
        noise = rng.normal(0, rng.uniform(1, 8), image.shape)
        image = np.clip(image + noise, 0, 255).astype(np.uint8)
    if rng.random() < .4:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(35, 95))]
        image = cv2.imdecode(cv2.imencode('.jpg', image, quality)[1], 1)
    return image


def photographed(image, rng, p_stain, strength=1.):
    """Stain a picture anew with some probability, and photograph it"""
    if rng.random() < OTHER_HUE:
        hue, strength = rng.dirichlet([3., 3., 3.])*3, rng.uniform(.4, .95)
        return camera(toward_hue(image, hue, strength, rng.uniform(.7, 1.5)), rng)
    return camera(stain(image, rng, strength) if rng.random() < p_stain else image, rng)


def synthetic_tile(seed):
    """Draw one field in a random style"""
    rng = np.random.default_rng([1, seed])
    style = random_style(rng)
    um_per_px = CELL_UM/random_diameter(rng)
    mix, difficulty = random_mix(rng), rng.uniform(0, .6)
    field = draw_field(mix, style, size=TILE, difficulty=difficulty, seed=int(rng.integers(2**31)),
                       um_per_px=um_per_px)
    nucleated = field.cells[field.cells.code != 'V']
    return photographed(field.image, rng, .4, .6), list(nucleated.polygon)


def real_tile(seed, fields):
    """Cut one window of a real field whose leukocytes are all outlined"""
    rng = np.random.default_rng([2, seed])
    path, polygons = fields[seed % len(fields)]
    image = read_image(path)
    height, width = image.shape[:2]
    typical = typical_diameter(polygons)
    scale = random_diameter(rng)/typical
    middle = polygons[rng.integers(len(polygons))].centroid
    spread = (.35 if rng.random() < .85 else .8)*TILE/scale
    center = np.array([middle.x, middle.y]) + rng.uniform(-spread, spread, 2)
    tile, shown = cut_window(image, polygons, scale, np.clip(center, 0, (width, height)), TILE)
    return photographed(tile, rng, .7), shown


def cut_out(path, polygon, pad=4):
    """Cut a real cell out of its picture: RGB patch, and its outline in patch px"""
    image = read_image(path)
    x0, y0, x1, y1 = (int(v) for v in polygon.bounds)
    left, top = max(0, x0 - pad), max(0, y0 - pad)
    right, bottom = min(image.shape[1], x1 + pad + 1), min(image.shape[0], y1 + pad + 1)
    return image[top:bottom, left:right], affine_transform(polygon, [1, 0, 0, 1, -left, -top])


def collage_ground(rng, diameter, grounds):
    """Choose what a collage is laid on: a window of a real field, or a drawn field with few cells"""
    if rng.random() < .5:
        path, polygons = grounds[rng.integers(len(grounds))]
        image = read_image(path)
        center = rng.uniform(0, 1, 2)*image.shape[1::-1]
        return cut_window(image, polygons, diameter/typical_diameter(polygons), center, TILE)
    mix, style = random_mix(rng), random_style(rng)
    field = draw_field(mix, style, size=TILE, n_cells=int(rng.integers(0, 4)), seed=int(rng.integers(2**31)),
                       um_per_px=CELL_UM/diameter)
    return field.image, list(field.cells[field.cells.code != 'V'].polygon)


def random_place(rng, outline, diameter, hub):
    """Draw size, turn and place of a cell in a collage: a 2 x 3 matrix"""
    scale = diameter/typical_diameter([outline])*np.exp(rng.normal(0, .2))
    turn, middle = rng.uniform(0, 360), (outline.centroid.x, outline.centroid.y)
    matrix = cv2.getRotationMatrix2D(middle, turn, scale)
    place = hub + rng.normal(0, .35*TILE, 2) if rng.random() < .7 else rng.uniform(0, TILE, 2)
    matrix[:, 2] += place - middle
    return matrix


def lay_cell(image, patch, outline, matrix, tone):
    """Blend a recolored cell into a picture (float32)"""
    mask = polygon_to_mask(outline.buffer(.6), patch.shape[:2]).astype(np.float32)
    alpha = cv2.warpAffine(mask, matrix, (TILE, TILE), flags=cv2.INTER_LINEAR)
    alpha = cv2.GaussianBlur(alpha, (0, 0), .7)[..., None]
    density = -np.log(np.clip(patch.astype(np.float32), 1, 255)/255)@tone.T
    recolored = (255*np.exp(-np.clip(density, 0, None))).astype(np.float32)
    layer = cv2.warpAffine(recolored, matrix, (TILE, TILE), flags=cv2.INTER_LINEAR,
                           borderMode=cv2.BORDER_REFLECT)
    return alpha*layer + (1 - alpha)*image


def shown_in_tile(polygons):
    """Keep the cells of which a fair part lies in the tile, cut to it"""
    frame, shown = shapely.box(0, 0, TILE, TILE), []
    for polygon in polygons:
        part = polygon.intersection(frame)
        if part.geom_type == 'Polygon' and part.area > .15*polygon.area and part.area > 60:
            shown.append(part)
    return shown


def collage_tile(seed, cells, grounds):
    """Set real cells, recolored as one smear, close together on a real or synthetic ground"""
    rng = np.random.default_rng([3, seed])
    diameter = random_diameter(rng)
    image, polygons = collage_ground(rng, diameter, grounds)
    image, polygons = image.astype(np.float32), list(polygons)
    tone = rng.normal(0, .1, (3, 3)) + np.eye(3)
    n_cells = int(np.clip(rng.integers(2, 3 + (TILE/diameter)**2*.9), 2, 40))
    hub = rng.uniform(.2, .8, 2)*TILE
    for _ in range(n_cells):
        patch, outline = cut_out(*cells[rng.integers(len(cells))])
        matrix = random_place(rng, outline, diameter, hub)
        placed = affine_transform(outline, [*matrix[0, :2], *matrix[1, :2], *matrix[:, 2]])
        touched = [g for g in polygons if placed.intersects(g)]
        overlaps = [placed.intersection(g).area/min(placed.area, g.area) for g in touched]
        if max(overlaps, default=0) <= .12:
            image = lay_cell(image, patch, outline, matrix, tone)
            polygons.append(placed)
    return photographed(np.clip(image, 0, 255).astype(np.uint8), rng, .7), shown_in_tile(polygons)


def outline_boxes(row):
    """Outline all boxes of one picture by GrabCut, or give None where one of them is not to be trusted"""
    path, boxes = row
    image = read_image(path)
    up = 2 if max(image.shape[:2]) < 400 else 1
    polygons = [box_polygon(image, box, up=up) for box in boxes]
    return (path, polygons) if polygons and all(p is not None for p in polygons) else None


def outlined(images, boxes, pool, n=None, seed=0):
    """Outline the boxes of `n` pictures: a list of (path, polygons)"""
    corners = boxes.groupby('image_id')[['x0', 'y0', 'x1', 'y1']].apply(lambda b: b.to_numpy().tolist())
    paths = images.set_index('image_id').path.loc[corners.index]
    chosen = np.random.default_rng(seed).permutation(len(corners))[:n]
    rows = [(paths.iloc[i], corners.iloc[i]) for i in chosen]
    return [row for row in pool.map(outline_boxes, rows, chunksize=8) if row]


def build_tiles(out, counts, workers, quick=False):
    """Make all tiles, a share of them for validation, as a YOLO-seg folder"""
    images, cells = read_bcisc()
    images = images[~images.held_out]
    bcisc = [(r.path, list(cells[cells.image_id == r.image_id].polygon)) for r in images.itertuples()]
    with ProcessPoolExecutor(workers) as pool:
        pbc = outlined(*read_pbc(), pool, n=100 if quick else 2400)
        txl = outlined(*read_txl(), pool, n=60 if quick else None)
        print(f'outlined by GrabCut: {len(pbc)} PBC, {len(txl)} TXL-PBC pictures; '
              f'BCISC fields for training: {len(bcisc)}', flush=True)
        singles = [(path, polygon) for path, polygons in pbc + bcisc for polygon in polygons]
        makers = dict(
            synthetic=synthetic_tile, bcisc=partial(real_tile, fields=bcisc),
            pbc=partial(real_tile, fields=pbc), txl=partial(real_tile, fields=txl),
            collage=partial(collage_tile, cells=singles, grounds=pbc + bcisc))
        tiles = {}
        for kind, make in makers.items():
            for i, tile in enumerate(pool.map(make, range(counts[kind]), chunksize=16)):
                tiles[f'{kind}_{i:05}'] = tile
    return write_yolo_tiles(tiles, out, valid=.05)


def main():
    """Build the tiles, train, and write the bundle"""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument('--out', required=True)
    parser.add_argument('--work', default='segmenter_run')
    parser.add_argument('--quick', action='store_true')
    parser.add_argument('--epochs', type=int, default=9)
    parser.add_argument('--workers', type=int, default=os.cpu_count())
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--start', help='a segmenter bundle to go on from; its learning rate is a quarter')
    parser.add_argument('--share', type=float, default=1., help='of the tiles that are made')
    args = parser.parse_args()
    counts = {kind: 24 if args.quick else round(n*args.share) for kind, n in COUNTS.items()}
    tiles, epochs = Path(args.work)/'tiles', 1 if args.quick else args.epochs
    if not (tiles/'data.yaml').exists():
        build_tiles(tiles, counts, args.workers, args.quick)
    settings = YoloSettings(imgsz=TILE, epochs=epochs, batch=32, device=args.device)
    command = f'python recipes/segmenter.py --out {args.out} --epochs {epochs} --share {args.share:g}'
    if args.start:
        settings = replace(settings, lr=settings.lr/4)
        command += f' --start {args.start}'
    run = Path(args.work)/'run'
    model = train_segmenter(tiles/'data.yaml', run, settings, start=args.start)
    if args.start:
        move_back(model.model, copied_weights(load_network(args.start, run).model), START_SHARE)
    n_real = sum(counts.values()) - counts['synthetic']
    trained_on = (f'{counts["synthetic"]} synthetic marrow tiles and {n_real} tiles of BCISC (Apache-2.0), '
                  'PBC (CC BY 4.0) and TXL-PBC (MIT)')
    if args.start:
        trained_on += f', from the weights of {read_bundle(args.start).id}, which saw others of these kinds'
    export_segmenter(model, args.out, settings, trained_on, command)


if __name__ == '__main__':
    main()
