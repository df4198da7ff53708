# SPDX-License-Identifier: Apache-2.0
"""What this machine can and cannot do for a lab, each with its remedy.

`facts` gathers what is so (it makes real attempts, see `probes`), `checks` judges it: a fact that
labs of namespace nodes need and that is missing fails, one that only narrows what a lab can do or
how fast warns. The judgement is a pure function, so that every machine can be tested on any.
"""

from mint_vni.doctor.checks import Check, Status, examine
from mint_vni.doctor.facts import CgroupController, Facts, KernelFact, gather

__all__ = ["CgroupController", "Check", "Facts", "KernelFact", "Status", "examine", "gather"]
