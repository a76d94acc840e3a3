"""What is public of the construction of draft trees."""

from .acceptance import AcceptanceCounter
from .dynamic_trees import DYNAMIC_VERIFY, DraftPool, check_dynamic, dynamic_tree
from .falcon_trees import FalconLevel, FalconTables, falcon_tables, falcon_tree
from .latency import LatencyTable
from .policies import Eagle2Tree, FalconTree, PPDTree, StaticTree, TreePolicy
from .ppd_plan import PPDPlan, PPDRows, PPDState, ppd_chain, ppd_plan, ppd_size
from .tree_size import SizeChoice, choose_size, common_size, dynamic_size, pooled_sizes
from .trees import Tree, best_first_tree, expected_tokens, tree_from_parents, tree_from_paths
from .trust import DraftTrust

__all__ = [
    "DYNAMIC_VERIFY",
    "AcceptanceCounter",
    "DraftPool",
    "DraftTrust",
    "Eagle2Tree",
    "FalconLevel",
    "FalconTables",
    "FalconTree",
    "LatencyTable",
    "PPDPlan",
    "PPDRows",
    "PPDState",
    "PPDTree",
    "SizeChoice",
    "StaticTree",
    "Tree",
    "TreePolicy",
    "best_first_tree",
    "check_dynamic",
    "choose_size",
    "common_size",
    "dynamic_size",
    "dynamic_tree",
    "expected_tokens",
    "falcon_tables",
    "falcon_tree",
    "pooled_sizes",
    "ppd_chain",
    "ppd_plan",
    "ppd_size",
    "tree_from_parents",
    "tree_from_paths",
]
