"""Myeloma marrow, where hardly any cell is a blast: is a plasma cell called one, and never a blast?

    python benchmarks/myeloma.py [--model BUNDLE] [--segmenter BUNDLE] [--letterboxed N] [--quick]

Real marrow fields of patients with multiple myeloma (SegPC-2021, CC BY-NC-SA 4.0: judged on, never trained
on), of which the plasma cells are painted and nothing else is known. The walk is that of `cblc diagnose`.
A painted spot is a single plasma cell where one find covers it with a contour IoU of 0.5 or more; spots of
several fused cells drop out by that. Judged are the four fields in full resolution and, with --letterboxed,
some of the small ones.

Printed: cells counted and their share of CBLC; of the painted single plasma cells that are whole, those
named plasma cells and those called CBLC, with exact 95 % intervals (cells of one patient go together, so
they are too narrow). The last line is JSON: counted, cblc_share, plasma_n, plasma_named, plasma_cblc.
"""
import argparse
import json

import numpy as np
import pandas as pd

PLASMA = 'P'   # the vocabulary's leaf


def read_fields(n_small):
    "List the fields: an images table with the path of each mask"
    from cblc.core.images import image_paths
    from cblc.sources.public import public_root
    base = public_root(None)/'segpc_marrow'
    small = image_paths(base/'images')
    chosen = [small[i] for i in np.unique(np.linspace(0, len(small) - 1, n_small).astype(int))]
    rows = []
    for folder, paths in ((base/'fullres', image_paths(base/'fullres'/'images')), (base, chosen)):
        for path in paths:
            mask = next(iter(sorted((folder/'masks').glob(f'{path.stem}.*'))))
            center = folder.name
            rows.append(dict(image_id=path.stem, path=path, mask=mask, patient_id='', center=center))
    return pd.DataFrame(rows)


def painted_cells(mask_path):
    "Outline the painted spots of one field"
    import cv2
    from shapely import Polygon

    from cblc.core.images import read_image
    mask = (read_image(mask_path).mean(2) > 127).astype(np.uint8)
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    polygons = [Polygon(outline[:, 0]).buffer(0) for outline in outlines if len(outline) > 20]
    return [polygon for polygon in polygons if polygon.geom_type == 'Polygon' and polygon.area > 0]


def plasma_cells(cells, images):
    "Keep the whole finds that are painted single plasma cells"
    from cblc.matching import match
    kept = []
    for field in images.itertuples():
        own = cells[(cells.image_id == field.image_id) & cells.whole.astype(bool)]
        pairs = match(painted_cells(field.mask), list(own.polygon)).pairs
        kept += [own.index[find] for _, find in pairs]
    return cells.loc[kept]


def main():
    "Walk the fields and print the shares"
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument('--model', help='a classifier bundle; the shipped one by default')
    parser.add_argument('--segmenter', help='a segmenter bundle; the shipped one by default')
    parser.add_argument('--letterboxed', type=int, default=0, help='small fields to judge as well')
    parser.add_argument('--quick', action='store_true')
    arguments = parser.parse_args()
    from cblc.classifier import Classifier
    from cblc.core.bundle import read_bundle, shipped
    from cblc.core.measures import exact_interval
    from cblc.hospital.centers import classify_images
    from cblc.segmentation import Segmenter
    classifier = Classifier.load(read_bundle(arguments.model or shipped('classifier'), 'classifier'))
    images = read_fields(arguments.letterboxed)
    images = images[:1] if arguments.quick else images
    cells, _, _ = classify_images(
        images, Segmenter.load(arguments.segmenter), classifier, adapt=True, progress=False)
    counted = cells[cells.counted]
    print(f'{len(images)} fields, {len(cells)} finds, {len(counted)} counted; by category:')
    print(counted.category.value_counts().to_string())
    plasma = plasma_cells(cells, images)
    named, blast_like = (plasma.leaf == PLASMA), plasma.cblc.astype(bool) & (plasma.category != 'artefact')
    for text, n_yes, n in (('counted cells are CBLC', int(counted.cblc.sum()), len(counted)),
                           ('painted plasma cells are named so', int(named.sum()), len(plasma)),
                           ('painted plasma cells are called CBLC', int(blast_like.sum()), len(plasma))):
        low, high = exact_interval(n_yes, n) if n else (np.nan, np.nan)
        print(f'{n_yes} of {n} {text}: {100*n_yes/max(n, 1):.1f} % [{100*low:.1f}-{100*high:.1f}]')
    share = float(counted.cblc.mean()) if len(counted) else None
    print(json.dumps(dict(
        counted=len(counted), cblc_share=share, plasma_n=len(plasma),
        plasma_named=float(named.mean()), plasma_cblc=float(blast_like.mean()),
        of_plasma=plasma.leaf.value_counts().to_dict())))


if __name__ == '__main__':
    main()
