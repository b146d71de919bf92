"""100,000 ratings, 1 to 5 stars, of 1,682 films by 943 people, each of whom rated at least 20: how will one be rated?

GroupLens lets nobody pass these data on, so they are read from the package `recbole` and never committed.  An index is
the id less one.  The ids run without gaps.
"""

from __future__ import annotations

from neurofleet.data.sources import packaged, read_columns
from neurofleet.data.write import Raw


def load() -> Raw:
    table = read_columns(packaged("recbole", "dataset_example/ml-100k/ml-100k.inter"), delimiter="\t")
    user, item = table["user_id:token"] - 1, table["item_id:token"] - 1
    return Raw(
        kind="categorical",
        task="regression",
        inputs={"user": user, "item": item},
        targets={"rating": table["rating:float"]},
        cardinalities=(int(user.max()) + 1, int(item.max()) + 1),
        source="recbole ml-100k: MovieLens 100K, GroupLens; Harper and Konstan 2015 (not to be redistributed)",
    )
