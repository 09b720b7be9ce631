"""First prompts and their combinations, each followed by corrective clicks.

python benchmarks/study_strategies.py --data DIR
"""

from accuracy import mean_by_round
from study import Row, given, parser, write

PAPER = {("click", 0): 0.885, ("click", 1): 0.912, ("click", 2): 0.924, ("click", 4): 0.935, ("click", 6): 0.938}
PAPER |= {("click", 8): 0.941, ("box", 0): 0.906}
"""By first prompt and number of corrections; the plot counts interactions, which is one more."""
STRATEGIES = {"click": 8, "box": 3, "text": 3, "text+click": 3, "box+click": 3}
NAN = float("nan")

if __name__ == "__main__":
    segmenter, records, seeds = given(parser(__doc__).parse_args())
    write(
        "study_strategies",
        [
            Row(f"{strategy} + {r} corrections", dice, PAPER.get((strategy, r), NAN))
            for strategy, num_rounds in STRATEGIES.items()
            for r, dice in enumerate(mean_by_round(segmenter, records, strategy, num_rounds, seeds))
        ],
    )
