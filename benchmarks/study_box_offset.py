"""How far an annotator's box misses: each side moved by up to so many pixels.

python benchmarks/study_box_offset.py --data DIR
"""

from accuracy import mean_by_round
from study import Row, given, parser, write

from imis_net.evaluation.floors import EllipseFloor

PAPER = {8: 0.898, 6: 0.901, 4: 0.903, 2: 0.905, 0: 0.906}

if __name__ == "__main__":
    segmenter, records, seeds = given(parser(__doc__).parse_args())
    rows = []
    for offset_px, paper in PAPER.items():
        ours, floor = (
            mean_by_round(s, records, "box", 0, seeds, max_offset_px=offset_px)[0] for s in (segmenter, EllipseFloor())
        )
        rows.append(Row(f"box, sides off by up to {offset_px} px", ours, paper, f"ellipse {floor:.3f}"))
    write("study_box_offset", rows)
