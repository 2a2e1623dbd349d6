"""What datasets with a quota take, measured anew (store/dataset_quota.py): between two measurements their figures only grow."""

from __future__ import annotations

from typing import Any

from leptonstore.daemon.maintenance.work import Work
from leptonstore.errors import Conflict
from leptonstore.store import Store
from leptonstore.store.dataset_quota import measure, quotas, to_json


def measure_all(store: Store, work: Work) -> dict[str, Any]:
    """Of each dataset with a quota, what is used; `left`: those whose versions were removed meanwhile."""
    store.refresh()
    names, used, left = list(quotas(store.state)), {}, []
    for done, name in enumerate(names):
        work.tell(done, len(names), "datasets", name)
        try:
            quota = measure(store, name)
        except Conflict:
            left.append(name)
            continue
        if quota is not None:
            used[name] = to_json(quota)
    work.tell(len(names), len(names), "datasets", "")
    return {"datasets": used, "left": left}
