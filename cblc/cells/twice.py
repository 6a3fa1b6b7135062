#| export
import numpy as np
import pandas as pd
import shapely
from cblc.core.errors import InputError

#| export
_COVERED = .5        # of the smaller contour, above which two are one cell
_SLACK = .15         # of a cell's longer side: how far its middle may differ from field to field


def _depths(cells, cores):
    "Measure how deep in its core the middle of each cell lies, px; negative outside"
    left, top, right, bottom = shapely.bounds(cells.polygon.to_numpy(object)).reshape(-1, 4).T
    x, y = (left + right)/2, (top + bottom)/2
    x0, y0, x1, y1 = np.array(cores, float).reshape(-1, 4).T
    depth = np.min([x - x0, x1 - x, y - y0, y1 - y], axis=0)
    return depth, _SLACK*np.maximum(right - left, bottom - top)


def _shifted(cells, places):
    "Move contours from their fields to the slide or picture that all lie on"
    return [shapely.transform(polygon, lambda xy, place=place: xy + place)
            for polygon, place in zip(cells.polygon, places)]


def _covers(one, other):
    "Tell whether two contours are one cell"
    return one.intersection(other).area > _COVERED*min(one.area, other.area)


def _own_of_slide(cells, polygons, depth):
    "Choose the finds of one slide that stay, the deepest in their cores first"
    tree, fields, kept = shapely.STRtree(polygons), cells.image_id.to_numpy(), set()
    for i in np.argsort(-depth, kind='stable'):
        near = [j for j in tree.query(polygons[i]) if j in kept and fields[j] != fields[i]]
        if not any(_covers(polygons[i], polygons[j]) for j in near):
            kept.add(int(i))
    return np.array(sorted(kept), int)


def own_cells(
    cells: pd.DataFrame,    # image_id, polygon in the field's px
    images: pd.DataFrame,   # image_id; source, x, y, core of slides' fields (`slide_fields`)
) -> pd.DataFrame:          # rows of `cells`, in their order; those of pictures untouched
    "Keep the finds that belong to their field of a slide, each cell once"
    if 'core' not in images or not len(cells):
        return cells
    fields = images[images.core.notna()].set_index('image_id')
    is_field = cells.image_id.isin(fields.index).to_numpy()
    stays = ~is_field
    own = fields.reindex(cells.image_id[is_field])
    for slide in own.source.unique():
        rows = np.flatnonzero(is_field)[(own.source == slide).to_numpy()]
        part, known = cells.iloc[rows], fields.loc[cells.image_id.iloc[rows]]
        depth, slack = _depths(part, list(known.core))
        candidates = np.flatnonzero(depth >= -slack)
        places = known[['x', 'y']].to_numpy(float)
        polygons = _shifted(part.iloc[candidates], places[candidates])
        kept = candidates[_own_of_slide(part.iloc[candidates], polygons, depth[candidates])]
        stays[rows[kept]] = True
    return cells[stays]

#| export
def _pairs(cells, overlap, rows):
    "List the cells (row, row) that two overlapping pictures share"
    mine, theirs = rows.get(overlap.image_id, []), rows.get(overlap.other, [])
    if not len(mine) or not len(theirs):
        return []
    shift = np.array([overlap.dx, overlap.dy], float)
    moved = _shifted(cells.iloc[mine], [shift]*len(mine))
    others = cells.polygon.to_numpy(object)[theirs]
    tree, pairs = shapely.STRtree(others), []
    for i, polygon in zip(mine, moved):
        common = {j: polygon.intersection(others[j]).area for j in tree.query(polygon)}
        best = max(common, key=common.get, default=None)
        if best is not None and _covers(polygon, others[best]):
            pairs.append((int(i), int(theirs[best])))
    return pairs


def _groups(pairs, n):
    "Join pairs that share a cell: the number of its group for each of `n` cells"
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    one, other = np.array(pairs, int).reshape(-1, 2).T
    graph = coo_array((np.ones(len(one)), (one, other)), shape=(n, n))
    return connected_components(graph, directed=False)[1]


def mark_twice(
    cells: pd.DataFrame,      # image_id, polygon, place, whole (`mark_frame`)
    images: pd.DataFrame,     # image_id, in the order in which pictures come first
    overlaps: pd.DataFrame,   # image_id, other, dx, dy (`find_overlaps`)
) -> tuple:                   # cells, all but one with `place` 'seen twice' and `whole` False; notes, a line each
    "Count a cell once that several pictures show"
    if 'place' not in cells:
        raise InputError('the cells have no column place', 'mark them by mark_frame first')
    cells, pairs, notes = cells.reset_index(drop=True), [], []
    rows = cells.groupby('image_id', sort=False).indices
    for overlap in overlaps.itertuples():
        shared = _pairs(cells, overlap, rows)
        pairs += shared
        notes.append(f'{overlap.image_id} overlaps {overlap.other} (moved by {abs(overlap.dx)} and '
                     f'{abs(overlap.dy)} px): {len(shared)} cells on both are counted once')
    if not pairs:
        return cells, notes
    turn = cells.image_id.map({name: number for number, name in enumerate(images.image_id)})
    order = pd.DataFrame(dict(group=_groups(pairs, len(cells)), out=cells.place != 'inside', turn=turn))
    again = order.sort_values(['group', 'out', 'turn'], kind='stable').duplicated('group').sort_index()
    place = cells.place.mask(again, 'seen twice')
    return cells.assign(place=place, whole=cells.whole.astype(bool) & ~again), notes
